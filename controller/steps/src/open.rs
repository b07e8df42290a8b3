//! Opens the account at the target, on the source's record alone, or on that of a person's word.

use ferry_engine::Context;
use ferry_proto::Fault;
use ferry_proto::command::{CommitRecord, Intent, Receipt};

use crate::agent_step::Recipe;

pub(crate) const RECIPE: Recipe = Recipe { fill, ..Recipe::plain("open") };

/// Puts the commit record into the frozen intent.
fn fill(intent: Intent, context: &Context) -> Result<Intent, Fault> {
    let Intent::Open { of, .. } = intent else {
        return Err(Fault::bug("the step open has another intent"));
    };
    Ok(Intent::Open { of, commit: Some(committed(context)?) })
}

/// The record of the job's commit.
pub(crate) fn committed(context: &Context) -> Result<CommitRecord, Fault> {
    let receipt = context
        .receipts
        .get("commit")
        .ok_or_else(|| Fault::bug("the account was not committed before it is opened"))?;
    match serde_json::from_value(receipt.clone()) {
        Ok(Receipt::Committed(record)) => Ok(record),
        _ => Err(Fault::bug("the receipt of the commit is no commit record")),
    }
}
