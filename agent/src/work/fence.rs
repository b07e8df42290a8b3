//! The fence: the account takes no writes here and its connections are held. It is recorded, with the
//! former state of all that it changes, before anything is changed; and it fails closed: what it
//! denies is denied by the services' own persistent state.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_failpoints::{Promise, broken};
use ferry_host::processes::{
    Process, Stop, Writer, keep_stopped, of_users, plan_keep_stopped, stop_all, wait_no_writers,
    writers_below,
};
use ferry_host::sites_fence::{self, Services};
use ferry_host::{closed, cron, hooks, users};
use ferry_proto::Fault;
use ferry_proto::command::Receipt;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::{Agent, ENGINES, blocking, engine};
use crate::clock::{Deadline, unix_ms};
use crate::ledger::{Account, Closed, Standing};
use crate::work::{Job, arm, done_with, mail_spec, spec};

/// How long a hook of the account may run.
const HOOK: Duration = Duration::from_secs(60);
/// How long to wait for the last writer to let go.
const WRITERS: Duration = Duration::from_secs(10);
/// What is named of what has come back.
const NAMED: usize = 8;

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
            if account.taken_back == Some(job.of.job) {
                return Err(taken_back(job));
            }
            begin(job, account, deadline_seconds, grace_ms).await?
        }
        Standing::Fenced { of, ending: false, .. } if of.job == job.of.job => account,
        _ => return Err(job.stands_otherwise(&account, "armed by this move")),
    };
    // Goes on to its end also if nobody waits for it any more: who acts next needs the order.
    tokio::spawn(complete(job.clone(), account, grace, order))
        .await
        .map_err(|e| Fault::bug("the fence panicked").caused_by(&e))??;
    Ok(done_with(
        format!(
            "no process writes, connections are held; ends by itself after {deadline_seconds} s"
        ),
        [("fence_ms", started.elapsed().as_secs_f64() * 1000.0)],
    ))
}

/// An engine that did not hear of the first fence would else fence again and again, unasked.
fn taken_back(job: &Job) -> Fault {
    Fault::fenced(format!(
        "the fence of account {} has ended already, and {} serves it again",
        job.of.account, job.agent.name
    ))
    .remedy("undo this move; then move the account again, with a longer --deadline if it ran out")
}

/// Closes everything and records that it is closed, before the deadline or not at all. The
/// deadline's watcher needs the order to take the account back: it is held until closing has really
/// ended, or both would act at once.
async fn complete(
    job: Job,
    account: Account,
    grace: Duration,
    _order: OwnedMutexGuard<()>,
) -> Result<(), Fault> {
    let (Some(closed), Standing::Fenced { deadline, .. }) = (&account.closed, &account.standing)
    else {
        return Err(Fault::bug("a fence was recorded without what it changes"));
    };
    let closing = Closing::default();
    let work = close(&job.agent, &account, closed, grace, &closing);
    let closed = tokio::time::timeout(deadline.left(), work).await;
    closing.end().await;
    closed.map_err(|_| {
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
    job.set(account).await
}

fn is_complete(job: &Job, account: &Account) -> bool {
    matches!(&account.standing, Standing::Fenced { of, complete_unix: Some(_), ending: false, .. }
        if of.job == job.of.job)
}

/// Runs the account's hook, then records the fence and all that it will change.
async fn begin(
    job: &Job,
    mut account: Account,
    deadline_seconds: u32,
    grace_ms: u32,
) -> Result<Account, Fault> {
    let agent = &job.agent;
    if let Some(hook) = account.definition.hooks.before_fence.clone() {
        let (layout, definition) = (agent.layout.clone(), account.definition.clone());
        blocking(move || hooks::run(&layout, &definition, &hook, HOOK).map(|_| ())).await?;
    }
    account.closed = Some(Box::new(plan(agent, &account).await?));
    account.served_again_unix_ms = None;
    account.standing = Standing::Fenced {
        of: job.of.clone(),
        deadline: Deadline::after(Duration::from_secs(u64::from(deadline_seconds)))?,
        began_unix_ms: unix_ms(),
        complete_unix: None,
        ending: false,
        open: false,
        grace_ms: Some(grace_ms),
    };
    job.set(account.clone()).await?;
    Ok(account)
}

/// What closing the account will change, and how that is now.
///
/// # Errors
/// What cannot be looked at.
pub async fn plan(agent: &Arc<Agent>, account: &Account) -> Result<Closed, Fault> {
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

/// Closes an account that is recorded as moved, as a fence does: no deadline ends that. May be repeated.
///
/// # Errors
/// What does not close.
pub async fn close_moved(
    agent: &Arc<Agent>,
    account: &Account,
    grace: Duration,
) -> Result<(), Fault> {
    let closed = account
        .closed
        .as_ref()
        .ok_or_else(|| Fault::bug("an account has moved, and what closes it is not recorded"))?;
    close(agent, account, closed, grace, &Closing::default()).await
}

/// What of closing cannot be dropped: work on threads.
#[derive(Default)]
struct Closing {
    /// Looked at between steps.
    stop: CancellationToken,
    threads: TaskTracker,
}

/// A step that blocks.
type Step = Box<dyn FnOnce() -> Result<(), Fault> + Send>;

impl Closing {
    /// Carries out `steps` one after the other, on a thread; begins none after the stop.
    async fn in_turn(&self, steps: Vec<Step>) -> Result<(), Fault> {
        let (stop, running) = (self.stop.clone(), self.threads.token());
        blocking(move || {
            let _running = running;
            for step in steps {
                if stop.is_cancelled() {
                    return Err(Fault::fenced("closing was stopped at the fence's deadline"));
                }
                step()?;
            }
            Ok(())
        })
        .await
    }

    /// Looks, on a thread, and changes nothing: who takes the account back does not wait for it.
    async fn look(
        &self,
        look: impl FnOnce(Stop<'_>) -> Result<(), Fault> + Send + 'static,
    ) -> Result<(), Fault> {
        let stop = self.stop.clone();
        blocking(move || look(&|| stop.is_cancelled())).await
    }

    /// Begins nothing more, and waits until what was begun has ended; but for looks, which then end
    /// as soon as they can.
    async fn end(&self) {
        self.stop.cancel();
        self.threads.close();
        self.threads.wait().await;
    }
}

/// Closes everything, in the order of the critical section. May be repeated.
async fn close(
    agent: &Arc<Agent>,
    account: &Account,
    closed: &Closed,
    grace: Duration,
    closing: &Closing,
) -> Result<(), Fault> {
    if broken(Promise::Fence) {
        return Ok(());
    }
    // New connections are held from here on.
    arm::reconcile(agent).await?;
    agent.redirector.drain(&account.definition.name, grace).await?;
    let mail = mail_spec(&account.definition, account.uid, account.gid)?;
    let host = closing.in_turn(host_steps(agent, account, closed, grace));
    // Mail and the host's services do not wait for each other.
    let (host, mail) = tokio::join!(host, agent.mail.fence(&mail));
    host?;
    mail?;
    for (kind, record) in &closed.databases {
        engine(*kind).fence(&spec(account, *kind), record, grace).await?;
    }
    let (layout, uid, roots) = (agent.layout.clone(), account.uid, roots(account));
    // Once more: something may have slipped in before the last door was closed.
    let again: Step = Box::new(move || stop_all(&layout, &[uid], &[], Duration::ZERO).map(|_| ()));
    closing.in_turn(vec![again]).await?;
    closing.look(move |stop| wait_no_writers(&roots, &[], WRITERS, stop)).await
}

/// Sites, logins, cron, units, processes.
fn host_steps(
    agent: &Arc<Agent>,
    account: &Account,
    closed: &Closed,
    grace: Duration,
) -> Vec<Step> {
    let (user, uid) = (account.definition.user.clone(), account.uid);
    let (sites, logins, units) =
        (closed.sites.clone(), closed.logins.clone(), closed.units.clone());
    let layout = || agent.layout.clone();
    let (l1, l2, l3, l4, l5) = (layout(), layout(), layout(), layout(), layout());
    vec![
        Box::new(move || sites_fence::fence(&l1, &sites, Services::Running, grace).map(|_| ())),
        Box::new(move || users::close_logins(&l2, &logins)),
        Box::new(move || cron::disable(&l3, &user)),
        Box::new(move || keep_stopped(&l4, &units)),
        Box::new(move || stop_all(&l5, &[uid], &[], grace).map(|_| ())),
    ]
}

/// Below which nobody may write.
fn roots(account: &Account) -> Vec<PathBuf> {
    vec![account.definition.home.clone()]
}

/// Looks whether the account is still as closed as the fence left it: something that the fence does
/// not know may have started a process of it, write into its home, or have given back what was denied.
///
/// # Errors
/// Of class Fenced, naming what has come back, or, in a fence, if its deadline passes meanwhile; else
/// what could not be looked at.
pub async fn still_closed(agent: &Agent, account: &Account) -> Result<(), Fault> {
    if broken(Promise::Fence) {
        return Ok(());
    }
    let name = &account.definition.name;
    let look = come_back(agent, account);
    let found = match &account.standing {
        // However long it takes to look, whoever takes the account back does not wait for it.
        Standing::Fenced { deadline, .. } => {
            tokio::time::timeout(deadline.left(), look).await.map_err(|_| {
                Fault::fenced(format!(
                    "the fence of account {name} has passed its deadline before all was seen that \
                     may have come back"
                ))
                .remedy("move it again with a longer --deadline")
            })??
        }
        // Nobody takes back what has moved.
        Standing::Moved { .. } => look.await?,
        _ => return Err(Fault::bug("an account that is not closed was to be still closed")),
    };
    if found.is_empty() {
        return Ok(());
    }
    let mut fault =
        Fault::fenced(format!("account {name} was closed, but something has come back since"))
            .remedy("find what starts it, stop that, and move again");
    fault.causes = found.into_iter().take(NAMED).collect();
    Err(fault)
}

/// What of the account has come back. Nobody looks on once this is dropped.
async fn come_back(agent: &Agent, account: &Account) -> Result<Vec<String>, Fault> {
    let (layout, uid, roots) = (agent.layout.clone(), account.uid, roots(account));
    let (definition, closed) = (account.definition.clone(), account.closed.clone());
    let stop = CancellationToken::new();
    let _until_dropped = stop.clone().drop_guard();
    let here = blocking(move || {
        let mut found = match closed {
            Some(closed) => closed::reopened(&layout, &definition, &closed.sites, &closed.units)?,
            None => Vec::new(),
        };
        let processes = of_users(&[uid], &[])?;
        let writers = writers_below(&roots, &[], &|| stop.is_cancelled())?;
        found.extend(processes.iter().map(Process::to_string));
        found.extend(writers.iter().map(Writer::to_string));
        Ok(found)
    });
    let (here, mail) = tokio::join!(here, mail_gaps(agent, account));
    let mut found = here?;
    found.extend(mail?);
    for kind in ENGINES {
        let spec = spec(account, kind);
        if !spec.is_empty() && !engine(kind).is_fenced(&spec).await? {
            found.push(format!("{kind} lets the account in"));
        }
    }
    Ok(found)
}

/// Whether the mail's fence has stood all the time: what came in has left no other trace. The mail of an
/// account that has moved is passed on, and none comes in.
async fn mail_gaps(agent: &Agent, account: &Account) -> Result<Vec<String>, Fault> {
    if !matches!(account.standing, Standing::Fenced { .. }) {
        return Ok(Vec::new());
    }
    agent.mail.gaps(&mail_spec(&account.definition, account.uid, account.gid)?).await
}
