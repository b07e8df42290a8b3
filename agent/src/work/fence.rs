//! The fence: the account takes no writes here and its connections are held. It is recorded, with the
//! former state of all that it changes, before anything is changed; and it fails closed: what it
//! denies is denied by the services' own persistent state.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_host::processes::{keep_stopped, plan_keep_stopped, stop_all, wait_no_writers};
use ferry_host::sites_fence::{self, Services};
use ferry_host::{cron, hooks, users};
use ferry_proto::Fault;
use ferry_proto::command::Receipt;

use crate::agent::{Agent, ENGINES, blocking, engine};
use crate::clock::{Deadline, unix_ms};
use crate::ledger::{Account, Closed, Standing};
use crate::work::{Job, arm, done_with, mail_spec, spec};

/// How long a hook of the account may run.
const HOOK: Duration = Duration::from_secs(60);
/// How long to wait for the last writer to let go.
const WRITERS: Duration = Duration::from_secs(10);

/// Fences the account.
///
/// # Errors
/// If it is not armed by this move, or something does not close; undo it then, or wait for the
/// deadline.
pub async fn fence(job: &Job, deadline_seconds: u32, grace_ms: u32) -> Result<Receipt, Fault> {
    let agent = &job.agent;
    let started = Instant::now();
    let grace = Duration::from_millis(u64::from(grace_ms));
    let order = agent.order(&job.of.account).await;
    let account = match job.account()? {
        account if is_complete(job, &account) => {
            return Ok(done_with("fenced already", [("fence_ms", 0.0)]));
        }
        account => account,
    };
    let account = match &account.standing {
        Standing::Armed { of } if of.job == job.of.job => {
            begin(job, account, deadline_seconds).await?
        }
        Standing::Fenced { of, ending: false, .. } if of.job == job.of.job => account,
        _ => return Err(job.stands_otherwise(&account, "armed by this move")),
    };
    let closed = account
        .closed
        .clone()
        .ok_or_else(|| Fault::bug("a fence was recorded without what it changes"))?;
    // The deadline's watcher needs the order to take the account back; as long as closing goes on it
    // must not, or both would act at once. So closing ends at the deadline too.
    let left = match &account.standing {
        Standing::Fenced { deadline, .. } => deadline.left(),
        _ => Duration::ZERO,
    };
    tokio::time::timeout(left, close(agent, &account, &closed, grace)).await.map_err(|_| {
        Fault::fenced(format!(
            "account {} could not be closed before the fence's deadline",
            job.of.account
        ))
        .remedy("see the agent's journal for what did not close; give a longer --deadline")
    })??;
    let mut account = job.account()?;
    if let Standing::Fenced { complete_unix, .. } = &mut account.standing {
        *complete_unix = Some(unix_ms() / 1000);
    }
    job.set(account).await?;
    drop(order);
    Ok(done_with(
        format!(
            "no process writes, connections are held; ends by itself after {deadline_seconds} s"
        ),
        [("fence_ms", started.elapsed().as_secs_f64() * 1000.0)],
    ))
}

fn is_complete(job: &Job, account: &Account) -> bool {
    matches!(&account.standing, Standing::Fenced { of, complete_unix: Some(_), ending: false, .. }
        if of.job == job.of.job)
}

/// Runs the account's hook, then records the fence and all that it will change.
async fn begin(job: &Job, mut account: Account, deadline_seconds: u32) -> Result<Account, Fault> {
    let agent = &job.agent;
    if let Some(hook) = account.definition.hooks.before_fence.clone() {
        let (layout, definition) = (agent.layout.clone(), account.definition.clone());
        blocking(move || hooks::run(&layout, &definition, &hook, HOOK).map(|_| ())).await?;
    }
    account.closed = Some(Box::new(plan(agent, &account).await?));
    account.standing = Standing::Fenced {
        of: job.of.clone(),
        deadline: Deadline::after(Duration::from_secs(u64::from(deadline_seconds)))?,
        began_unix_ms: unix_ms(),
        complete_unix: None,
        ending: false,
        open: false,
    };
    job.set(account.clone()).await?;
    Ok(account)
}

async fn plan(agent: &Arc<Agent>, account: &Account) -> Result<Closed, Fault> {
    let mut databases = Vec::new();
    for kind in ENGINES {
        let spec = spec(account, kind);
        if !spec.is_empty() {
            databases.push((kind, engine(kind).plan_fence(&spec).await?));
        }
    }
    let (layout, definition, uid) = (agent.layout.clone(), account.definition.clone(), account.uid);
    blocking(move || {
        Ok(Closed {
            sites: sites_fence::plan_fence(&layout, &definition)?,
            logins: users::plan_close_logins(&layout, &definition.user)?,
            units: plan_keep_stopped(&layout, &definition.user, uid)?,
            databases,
        })
    })
    .await
}

/// Closes everything, in the order of the critical section. May be repeated.
async fn close(
    agent: &Arc<Agent>,
    account: &Account,
    closed: &Closed,
    grace: Duration,
) -> Result<(), Fault> {
    // New connections are held from here on.
    arm::reconcile(agent).await?;
    agent.redirector.drain(&account.definition.name, grace).await?;
    let mail = mail_spec(&account.definition, account.uid, account.gid)?;
    let (layout, plan) = (agent.layout.clone(), closed.clone());
    let (user, uid) = (account.definition.user.clone(), account.uid);
    let host = blocking(move || {
        sites_fence::fence(&layout, &plan.sites, Services::Running, grace)?;
        users::close_logins(&layout, &plan.logins)?;
        cron::disable(&layout, &user)?;
        keep_stopped(&layout, &plan.units)?;
        stop_all(&layout, &[uid], &[], grace).map(|_| ())
    });
    // Mail and the host's services do not wait for each other.
    let (host, mail) = tokio::join!(host, agent.mail.fence(&mail));
    host?;
    mail?;
    for (kind, record) in &closed.databases {
        engine(*kind).fence(&spec(account, *kind), record, grace).await?;
    }
    let (layout, roots) = (agent.layout.clone(), vec![account.definition.home.clone()]);
    blocking(move || {
        // Once more: something may have slipped in before the last door was closed.
        stop_all(&layout, &[uid], &[], Duration::ZERO)?;
        wait_no_writers(&roots, &[std::process::id()], WRITERS).map(|_| ())
    })
    .await
}
