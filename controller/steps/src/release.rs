//! Passes held and coming connections to the target, and tells what visitors felt.

use ferry_proto::Fault;
use ferry_proto::command::{Move, Receipt};

use crate::agent_step::{Recipe, wrong_receipt};

pub(crate) const RECIPE: Recipe = Recipe { check, ..Recipe::plain("release") };

fn check(of: &Move, receipt: &Receipt) -> Result<(), Fault> {
    match receipt {
        Receipt::Released { .. } => Ok(()),
        other => Err(wrong_receipt(of, other)),
    }
}
