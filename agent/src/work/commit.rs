//! The point of no return: the source records durably that the account has moved. Afterwards it tells
//! the target itself, so that a lost controller does not lengthen the outage.

use std::sync::Arc;
use std::time::Duration;

use ferry_proto::command::{CommitRecord, Receipt};
use ferry_proto::{Fault, FaultClass};

use crate::agent::Agent;
use crate::clock::unix_ms;
use crate::ledger::Standing;
use crate::work::{Job, release};

/// How long to wait before the target is told again.
const AGAIN: Duration = Duration::from_secs(2);

/// Commits, unless the fence's deadline has passed.
///
/// # Errors
/// Of class Fenced: surely not committed. Of class Transient: unknown, ask again.
pub async fn commit(job: &Job) -> Result<Receipt, Fault> {
    let agent = &job.agent;
    let _order = agent.order(&job.of.account).await;
    if let Some(record) = committed(job)? {
        return Ok(Receipt::Committed(record));
    }
    let mut account = job.fenced()?;
    let Standing::Fenced { began_unix_ms, complete_unix: Some(fenced_at_unix), .. } =
        account.standing
    else {
        return Err(job.stands_otherwise(&account, "fenced by this move"));
    };
    let record = CommitRecord {
        job: job.of.job,
        account: job.of.account.clone(),
        source: job.of.source.clone(),
        target: job.of.target.clone(),
        epoch: job.of.epoch.next(),
        fenced_at_unix,
        committed_at_unix_ms: unix_ms(),
    };
    account.epoch = record.epoch;
    account.standing = Standing::Moved {
        of: job.of.clone(),
        record: record.clone(),
        fenced_unix_ms: began_unix_ms,
        released_unix_ms: None,
        grant: job.grant.clone(),
    };
    account.came_from = None;
    if let Err(fault) = job.set(account).await {
        // Neither yes nor no until it has been reread; what the ledger holds now is what counts.
        return match committed(job) {
            Ok(Some(record)) => Ok(Receipt::Committed(record)),
            Ok(None) | Err(_) => Err(Fault::new(
                FaultClass::Transient,
                format!("whether account {} is committed is not known yet", job.of.account),
            )
            .caused_by(&fault)),
        };
    }
    tracing::info!(account = %job.of.account, epoch = %record.epoch, target = %record.target, "committed");
    deliver(job.clone(), record.clone());
    Ok(Receipt::Committed(record))
}

/// The record, if this move has committed.
fn committed(job: &Job) -> Result<Option<CommitRecord>, Fault> {
    match job.account()?.standing {
        Standing::Moved { of, record, .. } if of.job == job.of.job => Ok(Some(record)),
        _ => Ok(None),
    }
}

/// Tells the target until it is open, then releases what is held. The controller does the same;
/// whoever is sooner. Ends when the move is released or the account stands otherwise.
fn deliver(job: Job, record: CommitRecord) {
    tokio::spawn(async move {
        while standing_unreleased(&job.agent, &record) {
            let delivered = match job.peer() {
                Ok(peer) => peer.open_account(record.clone()).await,
                Err(fault) => Err(fault),
            };
            let released = match delivered {
                Ok(()) => release::release(&job).await.map(|_| ()),
                Err(fault) => Err(fault),
            };
            match released {
                Ok(()) => return,
                Err(fault) => {
                    tracing::warn!(account = %record.account, "the target was not opened directly: {fault}");
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    });
}

fn standing_unreleased(agent: &Arc<Agent>, record: &CommitRecord) -> bool {
    agent.account(&record.account).is_some_and(|a| {
        matches!(a.standing, Standing::Moved { released_unix_ms: None, record: r, .. } if r == *record)
    })
}
