//! Takes an account back: a fenced one on command, at its deadline, and at boot; a committed one when
//! its target has refused it. Needs no free disk.

use std::sync::Arc;
use std::time::Duration;

use ferry_databases::FenceRecord;
use ferry_host::processes::allow;
use ferry_host::sites_fence::{self, Services};
use ferry_host::{cron, users};
use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::command::{Move, Receipt, Refusal};
use ferry_proto::ids::{AccountName, JobId};
use ferry_traffic::control::Target;

use crate::agent::{Agent, answers, blocking, engine};
use crate::clock::{Deadline, unix_ms};
use crate::ledger::{Account, Closed, Standing};
use crate::work::copied::Copied;
use crate::work::{Job, arm, done, mail_spec, spec};

/// How long visitors wait for a database that answers. One may take no change for long all the same: a backup
/// has locked it, or its disk is full, at which MariaDB looks again once a minute.
const LETS_IN: Duration = Duration::from_secs(5);
/// How long they wait for one that refuses to let the account in, which may pass.
const REFUSES: Duration = Duration::from_secs(10);
/// How long it may take once visitors do not wait any more; then it is tried again.
const LETS_IN_LATE: Duration = Duration::from_secs(60);

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

/// Takes back an account whose target has refused what was committed, at the epoch after it: the commit
/// record is void then, wherever it turns up. Nothing is copied: nothing was served elsewhere. May be
/// repeated.
///
/// # Errors
/// Of class Fenced if the refusal is of another commit than the one that stands here, or the account was
/// released; else what is not recorded, or does not open again.
pub async fn after_refusal(job: &Job, refusal: &Refusal) -> Result<Receipt, Fault> {
    let agent = &job.agent;
    let _order = agent.order(&job.of.account).await;
    let mut account = job.account()?;
    let epoch = refusal.epoch.next();
    let of_this_job = refusal.job == job.of.job;
    match &account.standing {
        Standing::Moved {
            of, record, released_unix_ms: None, fenced_unix_ms, came_from, ..
        } if of_this_job && refusal.is_of(record) => {
            account.came_from = *came_from;
            account.standing = ending(of.clone(), *fenced_unix_ms)?;
            account.epoch = epoch;
            job.set(account).await?;
            tracing::warn!(account = %job.of.account, %epoch, "the target has refused the account: {}", refusal.reason);
        }
        Standing::Fenced { of, ending: true, .. } | Standing::Armed { of }
            if of_this_job && of.job == refusal.job && account.epoch == epoch => {}
        _ if of_this_job && account.taken_back == Some(refusal.job) => {}
        _ => return Err(job.stands_otherwise(&account, "committed by this move and not released")),
    }
    take_back(agent, &job.of.account, Some(job.of.job)).await?;
    Ok(done(format!("served here again, at epoch {epoch}")))
}

/// A fence that is ending: whatever crashes, it goes on opening, and it can never be committed.
fn ending(of: Move, began_unix_ms: i64) -> Result<Standing, Fault> {
    Ok(Standing::Fenced {
        of,
        deadline: Deadline::after(Duration::ZERO)?,
        began_unix_ms,
        complete_unix: None,
        ending: true,
        open: false,
        grace_ms: None,
    })
}

/// Takes back a fenced account; the caller holds its order. False if it is not fenced.
async fn take_back(
    agent: &Arc<Agent>,
    name: &AccountName,
    job: Option<JobId>,
) -> Result<bool, Fault> {
    let Some(mut account) = agent.account(name) else { return Ok(false) };
    let of = match &account.standing {
        Standing::Fenced { of, .. } if job.is_none_or(|j| j == of.job) => of.clone(),
        Standing::Moved { of, .. } if job == Some(of.job) => {
            return Err(Fault::fenced(format!(
                "account {name} was committed: going back is a rollback"
            )));
        }
        _ => return Ok(false),
    };
    end(agent, &mut account).await?;
    agent.stop_activity(name);
    let mut first = None;
    if let Some(closed) = account.closed.clone() {
        let (answering, mut late) = those_that_answer(&closed.databases).await;
        let now = let_in(&account, answering, LETS_IN, &mut first).await;
        late.extend(now.late);
        let are_in = now.all || ending_for(&account) > REFUSES;
        let opened = open_to_visitors(agent, &mut account, &closed, are_in, &mut first).await;
        keep_first(&mut first, opened);
        keep_first(&mut first, open_the_rest(agent, &account).await);
        // Last: they keep whoever asks them waiting.
        for (kind, _) in let_in(&account, late, LETS_IN_LATE, &mut first).await.late {
            keep_first(
                &mut first,
                Err(Fault::transient(format!("{kind} takes no change for now"))),
            );
        }
    }
    if let Some(fault) = first {
        // Still ending: the deadline's watcher tries again what did not open.
        return Err(fault);
    }
    account.taken_back = Some(of.job);
    account.standing = Standing::Armed { of };
    account.closed = None;
    agent.set_account(name, Some(account)).await?;
    Copied::forget(agent, name).await;
    arm::reconcile(agent).await?;
    Ok(true)
}

/// From here on a commit is refused, also after a crash.
async fn end(agent: &Arc<Agent>, account: &mut Account) -> Result<(), Fault> {
    let name = account.definition.name.clone();
    let Standing::Fenced { ending, deadline, .. } = &mut account.standing else { return Ok(()) };
    if *ending {
        return Ok(());
    }
    *ending = true;
    account.served_again_unix_ms = Some(unix_ms());
    let passed = deadline.has_passed();
    let before = deadline.clone();
    // Where it cannot be told which boot this is, as without a free descriptor, the old one stays: visitors
    // may wait longer for a database that lets nobody in, but the account is taken back.
    if let Ok(now) = Deadline::after(Duration::ZERO) {
        *deadline = now;
    }
    match agent.set_account(&name, Some(account.clone())).await {
        // Past the deadline a commit is refused in any case: a disk that is full or broken does not
        // keep the account from being served. Unless a commit was tried, and that disk may hold it:
        // then opening could make two writers.
        Err(fault) if passed && !agent.look(|l| l.may_have_moved(&name)) => {
            tracing::error!(account = %name, "the end of a fence is not recorded yet: {fault}");
            // Each time that this is tried, it is as if it began: how long it has lasted is told by this.
            if let Standing::Fenced { deadline, .. } = &mut account.standing {
                *deadline = before;
            }
            Ok(())
        }
        recorded => recorded,
    }
}

/// How long its fence has been ending.
fn ending_for(account: &Account) -> Duration {
    match &account.standing {
        Standing::Fenced { deadline, .. } => deadline.passed_for(),
        _ => Duration::ZERO,
    }
}

/// What a fence has closed of a database server.
type Database = (EngineKind, FenceRecord);

/// The databases whose servers answer, and those whose servers do not.
async fn those_that_answer(databases: &[Database]) -> (Vec<&Database>, Vec<&Database>) {
    let (mut answering, mut silent) = (Vec::new(), Vec::new());
    for database in databases {
        match answers(database.0).await {
            Ok(()) => answering.push(database),
            Err(fault) => {
                tracing::warn!("visitors do not wait for a database: {fault}");
                silent.push(database);
            }
        }
    }
    (answering, silent)
}

/// What came of letting an account into its databases.
struct LetIn<'a> {
    /// Whether none refused.
    all: bool,
    /// Those that have not in time.
    late: Vec<&'a Database>,
}

/// Lets the account into its databases again; each has so long.
async fn let_in<'a>(
    account: &Account,
    databases: Vec<&'a Database>,
    limit: Duration,
    first: &mut Option<Fault>,
) -> LetIn<'a> {
    let mut done = LetIn { all: true, late: Vec::new() };
    for database in databases {
        let (kind, record) = database;
        let (engine, spec) = (engine(*kind), spec(account, *kind));
        match tokio::time::timeout(limit, engine.unfence(&spec, record)).await {
            Ok(let_in) => {
                done.all &= let_in.is_ok();
                keep_first(first, let_in);
            }
            Err(_) => done.late.push(database),
        }
    }
    done
}

/// Opens what visitors need after the databases, and lets those in who are held, unless a database has just refused
/// the account. Logins, units, mail and cron may fail without keeping them waiting (on a full disk /etc/shadow
/// cannot be replaced), and so may a database server that does not answer or takes no change: it was not the
/// fence that stopped it.
async fn open_to_visitors(
    agent: &Arc<Agent>,
    account: &mut Account,
    closed: &Closed,
    are_in: bool,
    first: &mut Option<Fault>,
) -> Result<(), Fault> {
    // Before the sites, which may pass visitors on to what the account's units run.
    keep_first(first, open_logins_and_units(agent, closed).await);
    if !matches!(account.standing, Standing::Fenced { open: true, .. }) {
        reopen_sites(agent, account, closed).await?;
        if !are_in {
            return Ok(());
        }
        if let Standing::Fenced { open, .. } = &mut account.standing {
            *open = true;
        }
        let name = account.definition.name.clone();
        keep_first(first, agent.set_account(&name, Some(account.clone())).await);
    }
    agent.redirector.release(&account.definition.name, account.epoch, Target::Local).await
}

/// Lets the account log in and its units run. The one does not wait for the other.
async fn open_logins_and_units(agent: &Arc<Agent>, closed: &Closed) -> Result<(), Fault> {
    let (layout, closed) = (agent.layout.clone(), closed.clone());
    blocking(move || {
        let mut first = None;
        keep_first(&mut first, users::open_logins(&layout, &closed.logins));
        keep_first(&mut first, allow(&layout, &closed.units).map(|_| ()));
        first.map_or(Ok(()), Err)
    })
    .await
}

/// Mail and cron.
async fn open_the_rest(agent: &Arc<Agent>, account: &Account) -> Result<(), Fault> {
    let mail = mail_spec(&account.definition, account.uid, account.gid)?;
    let mut first = None;
    keep_first(&mut first, agent.mail.release(&mail).await);
    let (layout, user) = (agent.layout.clone(), account.definition.user.clone());
    keep_first(&mut first, blocking(move || cron::enable(&layout, &user)).await);
    first.map_or(Ok(()), Err)
}

/// Puts the account's sites back.
async fn reopen_sites(agent: &Arc<Agent>, account: &Account, closed: &Closed) -> Result<(), Fault> {
    let (layout, sites) = (agent.layout.clone(), closed.sites.clone());
    tracing::debug!(account = %account.definition.name, "opening the sites");
    blocking(move || sites_fence::unfence(&layout, &sites, Services::Running)).await
}

/// Keeps the first fault; logs those that follow.
fn keep_first(first: &mut Option<Fault>, result: Result<(), Fault>) {
    if let Err(fault) = result {
        tracing::error!(class = %fault.class, "while an account was taken back: {fault}");
        first.get_or_insert(fault);
    }
}
