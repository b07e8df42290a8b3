//! Opens the account at the target: on the source's committed record alone, whether it came through
//! the controller or from the source itself.

use std::sync::Arc;
use std::time::Duration;

use ferry_host::{cron, hooks, sites, users};
use ferry_proto::Fault;
use ferry_proto::command::{CommitRecord, Move, Receipt};
use ferry_proto::ids::{AccountName, JobId};

use crate::agent::{Agent, blocking, engine};
use crate::clock::unix_ms;
use crate::ledger::{Account, SourceRecord, Standing};
use crate::work::{Job, arm, done, mail_spec, spec, unfence};

/// How long a hook of the account may run.
const HOOK: Duration = Duration::from_secs(60);

/// Opens the account, on the controller's word.
///
/// # Errors
/// Of class Fenced if there is no record of this move; else what does not open.
pub async fn on_command(job: &Job, commit: Option<&CommitRecord>) -> Result<Receipt, Fault> {
    match (commit, job.account()?.standing) {
        (Some(commit), _) => open(&job.agent, job.of.job, commit).await,
        (None, Standing::Opening { of, record, .. }) if of.job == job.of.job => {
            open(&job.agent, job.of.job, &record).await
        }
        (None, _) => Err(Fault::fenced(format!(
            "the source's record of the move of account {} has not reached {}",
            job.of.account, job.agent.name
        ))),
    }
}

/// Opens the account. May be repeated.
///
/// # Errors
/// Of class Fenced if the record is not of the move that is received here; else what does not open:
/// the account then stands as being opened, and is tried again.
pub async fn open(agent: &Arc<Agent>, job: JobId, commit: &CommitRecord) -> Result<Receipt, Fault> {
    let _order = agent.order(&commit.account).await;
    let account = agent.account(&commit.account).ok_or_else(|| {
        Fault::fenced(format!("account {} is not received on {}", commit.account, agent.name))
    })?;
    let (account, of, source) = match account.standing.clone() {
        Standing::Serving if account.epoch == commit.epoch => {
            // What came after this was recorded may have failed: the source sends visitors on this.
            arm::reconcile(agent).await?;
            start_cron(agent, &account, commit);
            return Ok(done("open already"));
        }
        Standing::Receiving { of, source, before } if matches(&of, job, commit) => {
            let standing = Standing::Opening {
                of: of.clone(),
                record: commit.clone(),
                source: source.clone(),
                before,
            };
            let account = Account { standing, epoch: commit.epoch, ..account };
            agent.set_account(&commit.account, Some(account.clone())).await?;
            (account, of, source)
        }
        Standing::Opening { of, source, .. } if matches(&of, job, commit) => (account, of, source),
        _ => {
            return Err(Fault::fenced(format!(
                "account {} is {} at epoch {} on {}: the record of epoch {} is not for it",
                commit.account,
                account.kind(),
                account.epoch,
                agent.name,
                commit.epoch
            )));
        }
    };
    agent.stop_activity(&commit.account);
    serve(agent, &account, &source).await?;
    let mut open = account;
    open.standing = Standing::Serving;
    open.closed = None;
    open.came_from = Some(of.source_peer.ip());
    agent.set_account(&commit.account, Some(open.clone())).await?;
    arm::reconcile(agent).await?;
    start_cron(agent, &open, commit);
    tracing::info!(account = %commit.account, epoch = %commit.epoch, "open");
    Ok(done(format!("served here at epoch {}", commit.epoch)))
}

fn matches(of: &Move, job: JobId, commit: &CommitRecord) -> bool {
    of.job == job
        && commit.job == job
        && commit.account == of.account
        && commit.source == of.source
        && commit.target == of.target
        && commit.epoch == of.epoch.next()
}

/// Enables everything: databases before what uses them, sites last.
async fn serve(agent: &Arc<Agent>, account: &Account, source: &SourceRecord) -> Result<(), Fault> {
    for (kind, record) in &source.databases {
        engine(*kind).open(&spec(account, *kind), record).await?;
    }
    let mail = mail_spec(&account.definition, account.uid, account.gid)?;
    agent.mail.open_here(&mail, &source.mail).await?;
    if let Some(closed) = &account.closed {
        // It lived here before: its own configuration comes back.
        return unfence::reopen_without_cron(agent, account, closed).await;
    }
    let (layout, made) = (agent.layout.clone(), account.made.clone().unwrap_or_default());
    let logins = users::LoginRecord {
        user: account.definition.user.clone(),
        expire: source.user.aging.expire,
    };
    blocking(move || {
        users::open_logins(&layout, &logins)?;
        made.sites.map_or(Ok(()), |plan| sites::open(&layout, &plan))
    })
    .await
}

/// Starts the account's cron jobs once the minute of the fence has passed on this clock, so that no
/// job runs twice in it; then the account's hook.
fn start_cron(agent: &Arc<Agent>, account: &Account, commit: &CommitRecord) {
    let (agent, account, name) = (agent.clone(), account.clone(), commit.account.clone());
    let fence_minute = commit.fenced_at_unix.div_euclid(60);
    let epoch = commit.epoch;
    tokio::spawn(async move {
        let next_minute = (fence_minute + 1) * 60 * 1000;
        let wait = u64::try_from(next_minute - unix_ms()).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let _order = agent.order(&name).await;
        let still = agent
            .account(&name)
            .is_some_and(|a| a.epoch == epoch && matches!(a.standing, Standing::Serving));
        if !still {
            return;
        }
        let (layout, definition) = (agent.layout.clone(), account.definition.clone());
        let started = blocking(move || {
            cron::enable(&layout, &definition.user)?;
            if let Some(hook) = &definition.hooks.after_open {
                hooks::run(&layout, &definition, hook, HOOK)?;
            }
            Ok(())
        })
        .await;
        if let Err(fault) = started {
            tracing::error!(account = %name, "cron or the hook did not start: {fault}");
        }
    });
}

/// Goes on with what a crash cut off: accounts being opened, and cron that waits for its minute.
///
/// # Errors
/// What does not open.
pub async fn resume(agent: &Arc<Agent>, name: &AccountName) -> Result<(), Fault> {
    let Some(account) = agent.account(name) else { return Ok(()) };
    match &account.standing {
        Standing::Opening { record, .. } => {
            let record = record.clone();
            open(agent, record.job, &record).await.map(|_| ())
        }
        Standing::Serving if account.came_from.is_some() => {
            // Any minute of a fence before this start has passed or passes within this one.
            let (layout, user) = (agent.layout.clone(), account.definition.user.clone());
            blocking(move || cron::enable(&layout, &user)).await
        }
        _ => Ok(()),
    }
}
