//! The point of no return: the source records that the account has moved. Only if the target refuses
//! that for good does the source take the account back.

use ferry_proto::Fault;
use ferry_proto::command::{Intent, Move, Receipt};

use crate::agent_step::{Recipe, wrong_receipt};

pub(crate) const RECIPE: Recipe = Recipe {
    check,
    undo: |of, refusal| {
        let take_back =
            |refusal: &_| Intent::TakeBack { of: of.clone(), refusal: Clone::clone(refusal) };
        Some((of.source.clone(), take_back(refusal?)))
    },
    ..Recipe::plain("commit")
};

fn check(of: &Move, receipt: &Receipt) -> Result<(), Fault> {
    match receipt {
        Receipt::Committed(record)
            if record.job == of.job
                && record.account == of.account
                && record.source == of.source
                && record.target == of.target
                && record.epoch == of.epoch.next() =>
        {
            Ok(())
        }
        other => Err(wrong_receipt(of, other)),
    }
}
