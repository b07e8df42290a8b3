//! Opens the account at the target: on the source's committed record alone, whether it came through
//! the controller or from the source itself. First it finds out whether the account can be opened at
//! all; if not, it refuses for good, and the source takes the account back.

mod accept;
mod after;

use std::sync::Arc;

use ferry_host::sites_fence::{self, Services};
use ferry_host::{sites, users};
use ferry_proto::Fault;
use ferry_proto::command::{CommitRecord, Move, Receipt};
use ferry_proto::ids::{AccountName, JobId};

use crate::agent::{Agent, blocking, engine};
use crate::clock::unix_ms;
use crate::ledger::{Account, SourceRecord, Standing};
use crate::work::{Job, arm, done_with, forced, is_epoch, mail_spec, spec};

/// Opens the account, on the controller's word.
///
/// # Errors
/// Of class Fenced if there is no record of this move; else what does not open.
pub async fn on_command(job: &Job, commit: Option<&CommitRecord>) -> Result<Receipt, Fault> {
    if let Some(commit) = commit.filter(|commit| commit.forced.is_some()) {
        forced::check(job, commit)?;
    }
    // Apart: it holds the account several times over.
    match (commit, job.account()?.standing) {
        (Some(commit), _) => Box::pin(open(&job.agent, job.of.job, commit)).await,
        (None, Standing::Opening { of, record, .. }) if of.job == job.of.job => {
            Box::pin(open(&job.agent, job.of.job, &record)).await
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
/// Of class Fenced if the record is not of the move that is received here, or it was refused; else what
/// does not open: the account then stands as being opened, and is tried again.
pub async fn open(agent: &Arc<Agent>, job: JobId, commit: &CommitRecord) -> Result<Receipt, Fault> {
    let order = agent.order(&commit.account).await;
    let account = agent.account(&commit.account).ok_or_else(|| {
        Fault::fenced(format!("account {} is not received on {}", commit.account, agent.name))
    })?;
    let (account, of, source) = match account.standing.clone() {
        Standing::Serving if account.epoch == commit.epoch => {
            // What came after this was recorded may have failed: the source sends visitors on this.
            arm::reconcile(agent).await?;
            after::later(agent, &commit.account);
            return Ok(receipt("open already".to_owned(), &account));
        }
        Standing::Receiving { of, source, before } if matches(&of, job, commit) => {
            let standing = Standing::Opening {
                of: of.clone(),
                record: commit.clone(),
                source: source.clone(),
                before,
                // Nobody else can serve it: what is forced is not refused, but tried until it works.
                accepts: commit.forced.is_some(),
            };
            let account = Account { standing, epoch: commit.epoch, ..account };
            agent.set_account(&commit.account, Some(account.clone())).await?;
            (account, of, source)
        }
        Standing::Opening { of, source, .. } if matches(&of, job, commit) => {
            (accepted(agent, account, commit).await?, of, source)
        }
        Standing::Refused { of, refusal, .. } if matches(&of, job, commit) => {
            return Err(Fault::refused(refusal));
        }
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
    // Apart: it holds the account several times over.
    let (account, _order) = Box::pin(accept::accept(agent, account, order)).await?;
    serve(agent, &account, &source).await?;
    let mut open = account.clone();
    open.standing = Standing::Serving;
    open.closed = None;
    open.forced = recorded(&account).and_then(|record| record.forced.clone());
    open.served_again_unix_ms = None;
    open.came_from = Some(of.source_peer.ip());
    open.refreshed = None;
    open.after_open = Some(Box::new(after::plan(&account, &source, commit, unix_ms())));
    agent.set_account(&commit.account, Some(open.clone())).await?;
    arm::reconcile(agent).await?;
    after::later(agent, &commit.account);
    tracing::info!(account = %commit.account, epoch = %commit.epoch, "open");
    Ok(receipt(format!("served here at epoch {}", commit.epoch), &open))
}

/// An account whose commit the source has told itself, and that had not been tried when a person gave up
/// waiting: it is refused no more.
async fn accepted(
    agent: &Arc<Agent>,
    mut account: Account,
    commit: &CommitRecord,
) -> Result<Account, Fault> {
    if let Standing::Opening { accepts: accepts @ false, .. } = &mut account.standing
        && commit.forced.is_some()
    {
        *accepts = true;
        agent.set_account(&commit.account, Some(account.clone())).await?;
    }
    Ok(account)
}

/// The record on which it is being opened.
fn recorded(account: &Account) -> Option<&CommitRecord> {
    match &account.standing {
        Standing::Opening { record, .. } => Some(record),
        _ => None,
    }
}

/// Says what was done, and which minutes' cron jobs were or will be left out.
fn receipt(mut summary: String, account: &Account) -> Receipt {
    let missed = account.after_open.as_ref().map_or(0, |a| a.missed_minutes);
    if missed > 0 {
        summary.push_str(&format!("; cron missed {missed} minutes"));
    }
    #[allow(clippy::cast_precision_loss)]
    done_with(summary, [("cron_missed_minutes", missed as f64)])
}

fn matches(of: &Move, job: JobId, commit: &CommitRecord) -> bool {
    of.job == job
        && commit.job == job
        && commit.account == of.account
        && commit.source == of.source
        && commit.target == of.target
        && is_epoch(commit.epoch, of.epoch.next())
}

/// Enables everything: databases before what uses them, sites last.
async fn serve(agent: &Arc<Agent>, account: &Account, source: &SourceRecord) -> Result<(), Fault> {
    for (kind, record) in &source.databases {
        engine(*kind).open(&spec(account, *kind), record).await?;
    }
    let mail = mail_spec(&account.definition, account.uid, account.gid)?;
    agent.mail.open_here(&mail, &source.mail).await?;
    let (layout, made) = (agent.layout.clone(), account.made.clone().unwrap_or_default());
    let closed = account.closed.clone();
    let logins = users::LoginRecord {
        user: account.definition.user.clone(),
        expire: source.user.aging.expire,
    };
    // Not what systemd may start: like cron, it waits for its minute.
    blocking(move || {
        users::open_logins(&layout, &logins)?;
        match (closed, made.sites) {
            // It lived here before: its own configuration comes back.
            (Some(closed), _) => sites_fence::unfence(&layout, &closed.sites, Services::Running),
            (None, Some(plan)) => sites::open(&layout, &plan),
            (None, None) => Ok(()),
        }
    })
    .await
}

/// Goes on with what a crash cut off: accounts being opened, and what follows an open.
///
/// # Errors
/// What does not open.
pub async fn resume(agent: &Arc<Agent>, name: &AccountName) -> Result<(), Fault> {
    let Some(account) = agent.account(name) else { return Ok(()) };
    if let Standing::Opening { record, .. } = &account.standing {
        return open(agent, record.job, record).await.map(|_| ());
    }
    after::later(agent, name);
    Ok(())
}
