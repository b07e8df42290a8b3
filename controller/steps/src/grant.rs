//! What lets the two agents of a move speak to each other.

use ferry_fleet::Fleet;
use ferry_proto::Fault;
use ferry_proto::approval::Approval;
use ferry_proto::channel::unix_now;
use ferry_proto::command::{Forced, Move};
use ferry_proto::grant::{Grant, SignedGrant};

/// A grant for the two ends of a move to *start* something together within so many seconds.
///
/// # Errors
/// If the move is none.
pub fn grant(fleet: &Fleet, of: &Move, seconds: i64) -> Result<SignedGrant, Fault> {
    with_words(fleet, of, seconds, Words::default())
}

/// What people have said that a grant tells.
#[derive(Debug, Default)]
pub(crate) struct Words {
    /// That the target opens by force.
    pub(crate) forced: Option<Forced>,
    /// What goes to the target although an account may not have it.
    pub(crate) approvals: Vec<Approval>,
}

/// The same, with what people have said.
pub(crate) fn with_words(
    fleet: &Fleet,
    of: &Move,
    seconds: i64,
    words: Words,
) -> Result<SignedGrant, Fault> {
    let now = unix_now();
    let Words { forced, approvals } = words;
    fleet.authority().sign_grant(&Grant {
        id: uuid::Uuid::now_v7(),
        job: of.job,
        account: of.account.clone(),
        direction: of.direction,
        source: of.source.clone(),
        target: of.target.clone(),
        epoch: of.epoch,
        not_before: now,
        expires: now + seconds,
        controller_generation: fleet.generation(),
        forced,
        approvals,
    })
}
