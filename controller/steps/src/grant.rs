//! What lets the two agents of a move speak to each other.

use ferry_fleet::Fleet;
use ferry_proto::Fault;
use ferry_proto::channel::unix_now;
use ferry_proto::command::{Forced, Move};
use ferry_proto::grant::{Grant, SignedGrant};

/// A grant for the two ends of a move to *start* something together within so many seconds.
///
/// # Errors
/// If the move is none.
pub fn grant(fleet: &Fleet, of: &Move, seconds: i64) -> Result<SignedGrant, Fault> {
    with_word(fleet, of, seconds, None)
}

/// The same, which may say whose word opens the target by force.
pub(crate) fn with_word(
    fleet: &Fleet,
    of: &Move,
    seconds: i64,
    forced: Option<Forced>,
) -> Result<SignedGrant, Fault> {
    let now = unix_now();
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
    })
}
