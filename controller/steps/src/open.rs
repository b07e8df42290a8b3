//! Opens the account at the target, on the source's record alone.

use ferry_engine::Context;
use ferry_proto::Fault;
use ferry_proto::command::{Intent, Receipt};

use crate::agent_step::Recipe;

pub(crate) const RECIPE: Recipe = Recipe { fill, ..Recipe::plain("open") };

/// Puts the commit record into the frozen intent.
fn fill(intent: Intent, context: &Context) -> Result<Intent, Fault> {
    let Intent::Open { of, .. } = intent else {
        return Err(Fault::bug("the step open has another intent"));
    };
    let receipt = context
        .receipts
        .get("commit")
        .ok_or_else(|| Fault::bug("the account was not committed before it is opened"))?;
    match serde_json::from_value(receipt.clone()) {
        Ok(Receipt::Committed(record)) => Ok(Intent::Open { of, commit: Some(record) }),
        _ => Err(Fault::bug("the receipt of the commit is no commit record")),
    }
}
