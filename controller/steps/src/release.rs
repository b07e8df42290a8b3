//! Passes held and coming connections to the target, and tells what visitors felt. A source that was lost,
//! and comes back after the target was opened by force, first closes its copy.

use ferry_engine::Context;
use ferry_fleet::Fleet;
use ferry_proto::Fault;
use ferry_proto::command::{Intent, Move, Receipt};
use ferry_proto::ids::ServerName;

use crate::agent_step::{Recipe, wrong_receipt};
use crate::open::committed;

pub(crate) const RECIPE: Recipe = Recipe { fill, check, ..Recipe::plain("release") };

/// Puts a forced record into the frozen intent.
fn fill(intent: Intent, context: &Context) -> Result<Intent, Fault> {
    let Intent::Release { of, .. } = intent else {
        return Err(Fault::bug("the step release has another intent"));
    };
    let forced = Some(committed(context)?).filter(|record| record.forced.is_some());
    Ok(Intent::Release { of, forced })
}

fn check(of: &Move, receipt: &Receipt) -> Result<(), Fault> {
    match receipt {
        Receipt::Released { .. } | Receipt::GivenUp { .. } => Ok(()),
        other => Err(wrong_receipt(of, other)),
    }
}

/// Whether nobody will ever hear the command: it is for a lost source, which was cut off.
pub(crate) fn is_pointless(fleet: &Fleet, server: &ServerName, intent: &Intent) -> bool {
    matches!(intent, Intent::Release { forced: Some(_), .. }) && fleet.is_revoked(server)
}

/// What stands for the answer then.
pub(crate) fn cut_off(server: &ServerName) -> Receipt {
    Receipt::GivenUp {
        found: format!("{server} was cut off before it came back: it has not closed its copy"),
        written: Vec::new(),
        written_total: 0,
        look_at: format!(
            "if {server} ever starts again it may serve the account: erase its disk before that"
        ),
    }
}
