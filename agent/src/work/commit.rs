//! The point of no return: the source records durably that the account has moved. Afterwards it tells
//! the target itself, so that a lost controller does not lengthen the outage.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_proto::command::{CommitRecord, Receipt};
use ferry_proto::ids::AccountName;
use ferry_proto::{Fault, FaultClass};
use tokio::sync::{OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::clock::unix_ms;
use crate::ledger::Standing;
use crate::work::copied::Copied;
use crate::work::{Job, fence, release, unfence};

/// How long to wait before the target is told again, at first and at most; in between a tenth of the time it
/// was told in vain: so long the account is served by nobody, and no wait makes that much longer.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// How long the target may take to open before it is asked again. It goes on meanwhile.
const OPEN: Duration = Duration::from_secs(60);

/// Commits, unless the fence's deadline has passed.
///
/// # Errors
/// Of class Fenced: surely not committed. Of class Transient: unknown, ask again.
pub async fn commit(job: &Job) -> Result<Receipt, Fault> {
    let agent = &job.agent;
    let _order = agent.order(&job.of.account).await;
    // An earlier attempt may have made it: whatever keeps it from being made now says nothing of that.
    let name = job.of.account.clone();
    agent.write(move |l| l.end_doubt(&name)).await.map_err(|fault| not_known(job, &fault))?;
    if let Some(record) = committed(job) {
        resume(agent, &job.of.account);
        return Ok(Receipt::Committed(record));
    }
    let account = job.fenced().map_err(surely_not)?;
    fence::still_closed(agent, &account).await.map_err(|fault| match fault.class {
        FaultClass::Fenced => fault,
        _ => not_known(job, &fault),
    })?;
    // Looking has taken time.
    let mut account = job.fenced().map_err(surely_not)?;
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
        forced: None,
    };
    account.epoch = record.epoch;
    account.standing = Standing::Moved {
        of: job.of.clone(),
        record: record.clone(),
        fenced_unix_ms: began_unix_ms,
        released_unix_ms: None,
        settled: false,
        grant: job.grant.clone(),
        came_from: account.came_from.take(),
    };
    if let Err(fault) = job.set(account).await {
        // Neither yes nor no until it has been reread; what the ledger holds now is what counts.
        let record = committed(job).ok_or_else(|| not_known(job, &fault))?;
        resume(agent, &job.of.account);
        Copied::forget(agent, &job.of.account).await;
        return Ok(Receipt::Committed(record));
    }
    tracing::info!(account = %job.of.account, epoch = %record.epoch, target = %record.target, "committed");
    resume(agent, &job.of.account);
    Copied::forget(agent, &job.of.account).await;
    Ok(Receipt::Committed(record))
}

/// Whatever keeps an account from being committed before anything was recorded.
fn surely_not(fault: Fault) -> Fault {
    Fault { class: FaultClass::Fenced, ..fault }
}

fn not_known(job: &Job, fault: &Fault) -> Fault {
    Fault::transient(format!("whether account {} is committed is not known yet", job.of.account))
        .caused_by(fault)
        .remedy("ask again; the fence's deadline ends the question")
}

/// The record, if this move has committed.
fn committed(job: &Job) -> Option<CommitRecord> {
    match job.agent.account(&job.of.account)?.standing {
        Standing::Moved { of, record, .. } if of.job == job.of.job => Some(record),
        _ => None,
    }
}

/// Tells the target of a commit until it is open, then releases what is held, until nothing of that is
/// left to do; if nobody does already. The controller does the same; whoever is sooner.
pub fn resume(agent: &Arc<Agent>, name: &AccountName) {
    if Away::of(agent, name).is_none_or(|away| away.settled) {
        return;
    }
    if let Some(turn) = agent.delivery(name) {
        tokio::spawn(deliver(agent.clone(), name.clone(), turn));
    }
}

/// An account that has moved away, and the means to tell its target.
struct Away {
    job: Job,
    record: CommitRecord,
    settled: bool,
}

impl Away {
    fn of(agent: &Arc<Agent>, name: &AccountName) -> Option<Self> {
        let Standing::Moved { of, record, settled, grant: Some(grant), .. } =
            agent.account(name)?.standing
        else {
            return None;
        };
        let job = Job {
            agent: agent.clone(),
            of,
            grant: Some(grant),
            cancel: CancellationToken::new(),
            progress: watch::Sender::default(),
        };
        Some(Self { job, record, settled })
    }

    async fn tell(&self) -> Result<(), Fault> {
        if self.record.forced.is_some() {
            // The target was opened before this server was told.
            return release::release(&self.job).await.map(|_| ());
        }
        let peer = self.job.peer()?;
        tokio::time::timeout(OPEN, peer.open_account(self.record.clone())).await.map_err(
            |_| Fault::transient(format!("{} is still opening the account", self.record.target)),
        )??;
        release::release(&self.job).await.map(|_| ())
    }
}

/// What came of telling the target: a refusal gives the account back.
async fn heed(away: &Away, fault: &Fault) {
    let name = &away.record.account;
    let Some(refusal) = fault.final_refusal() else {
        tracing::warn!(account = %name, "the target was not opened directly: {fault}");
        return;
    };
    if let Err(fault) = unfence::after_refusal(&away.job, refusal).await {
        tracing::error!(account = %name, class = %fault.class, "refused by the target, and not yet served here again: {fault}");
    }
}

/// Ends when what is committed is released in full, or the account stands otherwise.
async fn deliver(agent: Arc<Agent>, name: AccountName, turn: OwnedMutexGuard<()>) {
    let began = Instant::now();
    while let Some(away) = Away::of(&agent, &name).filter(|away| !away.settled) {
        if let Err(fault) = away.tell().await {
            heed(&away, &fault).await;
            tokio::time::sleep((began.elapsed() / 10).clamp(AGAIN.0, AGAIN.1)).await;
        }
    }
    drop(turn);
    // Another commit may have come when this one had ended but still held the turn.
    resume(&agent, &name);
}
