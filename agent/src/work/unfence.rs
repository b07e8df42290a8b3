//! Takes a fenced account back: on command, at its deadline, and at boot. Needs no free disk.

use std::sync::Arc;

use ferry_host::processes::allow;
use ferry_host::sites_fence::{self, Services};
use ferry_host::{cron, users};
use ferry_proto::Fault;
use ferry_proto::command::Receipt;
use ferry_proto::ids::{AccountName, JobId};

use crate::agent::{Agent, blocking, engine};
use crate::ledger::{Account, Closed, Standing};
use crate::work::{Job, arm, done, mail_spec, spec};

/// Undo of the fence, on the controller's word.
///
/// # Errors
/// Of class Fenced if it was committed; else what does not open again.
pub async fn unfence(job: &Job) -> Result<Receipt, Fault> {
    let _order = job.agent.order(&job.of.account).await;
    if take_back(&job.agent, &job.of.account, Some(job.of.job)).await? {
        Ok(done("served here again"))
    } else {
        Ok(done("was not fenced"))
    }
}

/// Takes back an account whose deadline has passed.
///
/// # Errors
/// What does not open again.
pub async fn at_deadline(agent: &Arc<Agent>, name: &AccountName) -> Result<(), Fault> {
    let _order = agent.order(name).await;
    let passed = agent.account(name).is_some_and(
        |a| matches!(&a.standing, Standing::Fenced { deadline, ending, .. } if *ending || deadline.has_passed()),
    );
    if passed && take_back(agent, name, None).await? {
        tracing::warn!(account = %name, "the fence's deadline has passed: served here again");
    }
    Ok(())
}

/// Takes back a fenced account; the caller holds its order. False if it is not fenced.
async fn take_back(
    agent: &Arc<Agent>,
    name: &AccountName,
    job: Option<JobId>,
) -> Result<bool, Fault> {
    let Some(mut account) = agent.account(name) else { return Ok(false) };
    match &mut account.standing {
        Standing::Fenced { of, ending, .. } if job.is_none_or(|j| j == of.job) => {
            if !*ending {
                // From here on a commit is refused, also after a crash.
                *ending = true;
                agent.set_account(name, Some(account.clone())).await?;
            }
        }
        Standing::Moved { of, .. } if job == Some(of.job) => {
            return Err(Fault::fenced(format!(
                "account {name} was committed: going back is a rollback"
            )));
        }
        _ => return Ok(false),
    }
    agent.stop_activity(name);
    if let Some(closed) = &account.closed {
        reopen(agent, &account, closed).await?;
    }
    let Standing::Fenced { of, .. } = account.standing else {
        return Err(Fault::bug("a fence changed while it was ended"));
    };
    account.standing = Standing::Armed { of };
    account.closed = None;
    agent.set_account(name, Some(account)).await?;
    arm::reconcile(agent).await?;
    Ok(true)
}

/// Restores the former state of all that the fence changed: databases first, sites last.
///
/// # Errors
/// What does not open; everything else is tried all the same.
pub async fn reopen(agent: &Arc<Agent>, account: &Account, closed: &Closed) -> Result<(), Fault> {
    let mut first = None;
    for (kind, record) in &closed.databases {
        keep_first(&mut first, engine(*kind).unfence(&spec(account, *kind), record).await);
    }
    let mail = mail_spec(&account.definition, account.uid, account.gid)?;
    keep_first(&mut first, agent.mail.release(&mail).await);
    keep_first(&mut first, reopen_without_cron(agent, account, closed).await);
    let (layout, user) = (agent.layout.clone(), account.definition.user.clone());
    keep_first(&mut first, blocking(move || cron::enable(&layout, &user)).await);
    first.map_or(Ok(()), Err)
}

/// The host's part of [`reopen`], but for cron.
///
/// # Errors
/// The first of what does not open.
pub async fn reopen_without_cron(
    agent: &Arc<Agent>,
    account: &Account,
    closed: &Closed,
) -> Result<(), Fault> {
    let (layout, plan) = (agent.layout.clone(), closed.clone());
    tracing::debug!(account = %account.definition.name, "opening the host's part");
    blocking(move || {
        let mut first = None;
        keep_first(&mut first, users::open_logins(&layout, &plan.logins));
        keep_first(&mut first, allow(&layout, &plan.units).map(|_| ()));
        keep_first(&mut first, sites_fence::unfence(&layout, &plan.sites, Services::Running));
        first.map_or(Ok(()), Err)
    })
    .await
}

/// Keeps the first fault; logs those that follow.
fn keep_first(first: &mut Option<Fault>, result: Result<(), Fault>) {
    if let Err(fault) = result {
        tracing::error!(class = %fault.class, "while an account was taken back: {fault}");
        first.get_or_insert(fault);
    }
}
