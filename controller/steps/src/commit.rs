//! The point of no return: the source records that the account has moved.

use ferry_proto::Fault;
use ferry_proto::command::{Move, Receipt};

use crate::agent_step::{Recipe, wrong_receipt};

pub(crate) const RECIPE: Recipe = Recipe { check, ..Recipe::plain("commit") };

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
