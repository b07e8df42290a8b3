//! Jobs that run. Each has one task that owns its runner (`task`); whoever wants to see it watches. It must not
//! know what a job's steps do.

mod display;
mod force;
mod journal;
mod pause;
mod task;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ferry_engine::{Abort, Event, Force, Pause, Steps};
use ferry_fleet::{Fleet, now_ms, to_its_end};
use ferry_plan::Plan;
use ferry_proto::Fault;
use ferry_proto::ids::{AccountName, JobId};
use ferry_proto::view::{JobPhase, JobView, StepPhase, StepView};
use ferry_store::{JobRow, Store};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::places::{MoveLimits, Places};
use crate::view::Folded;

pub use force::is_unheard;
pub(crate) use journal::fold;
pub use journal::read_plan;
use journal::to_json;

/// What is shown of a job: its view, or why it does not go on for now.
pub type Shown = Result<JobView, Fault>;

/// What may be wished of a running job.
#[derive(Clone, Default)]
struct Wishes {
    abort: Abort,
    pause: Pause,
    force: Force,
}

impl Wishes {
    /// Waits for one that may take a paused job up again.
    async fn for_a_paused_job(&self) {
        tokio::select! {
            () = self.abort.requested() => {}
            () = self.pause.wished() => {}
        }
    }
}

/// A job that has not ended.
#[derive(Clone)]
struct Running {
    account: AccountName,
    wishes: Wishes,
    shown: watch::Receiver<Shown>,
}

/// How long what is asked of a running job may take to be journalled.
const JOURNALLED_WITHIN: Duration = Duration::from_secs(20);

/// Which job is meant.
#[derive(Debug, Clone)]
pub enum Which {
    /// This one.
    Job(JobId),
    /// The last one of an account.
    LastOf(AccountName),
}

/// All jobs.
pub struct Jobs {
    store: Arc<dyn Store>,
    steps: Arc<Steps>,
    running: Mutex<HashMap<JobId, Running>>,
    /// Rung after each event, for those who follow the journal.
    bell: broadcast::Sender<()>,
    places: Arc<Places>,
    fleet: Arc<Fleet>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Jobs {
    /// Jobs of `store`, whose steps are done by `fleet`, so many at once as `limits` says. When `stop`
    /// fires, jobs are left where their journal says.
    pub fn new(
        store: Arc<dyn Store>,
        fleet: &Arc<Fleet>,
        limits: MoveLimits,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let (bell, _) = broadcast::channel(1);
        Arc::new(Self {
            store,
            steps: Arc::new(ferry_steps::kinds(fleet)),
            running: Mutex::default(),
            bell,
            places: Places::new(limits),
            fleet: fleet.clone(),
            tasks: TaskTracker::new(),
            stop,
        })
    }

    /// Takes up every job that has not ended.
    ///
    /// # Errors
    /// If the store cannot be read. A damaged job says so whenever it is asked for.
    pub async fn recover(self: &Arc<Self>) -> Result<(), Fault> {
        let mut ready = Vec::new();
        for row in self.store.jobs(None, true).await? {
            tracing::info!(job = %row.id, account = %row.account, "taking the job up again");
            ready.push(self.prepare(row).await);
        }
        // Only now: no place is given away that another job has from before.
        for job in ready {
            self.spawn(job);
        }
        Ok(())
    }

    /// Keeps a plan so that it can be started.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn keep(&self, plan: &Plan) -> Result<(), Fault> {
        let text = serde_json::to_string(plan)
            .map_err(|e| Fault::bug("a plan has no JSON").caused_by(&e))?;
        self.store
            .add_plan(&JobRow {
                id: plan.job,
                account: plan.account.clone(),
                plan: text,
                planned_ms: now_ms(),
                started_ms: None,
                ended_ms: None,
                phase: None,
            })
            .await
    }

    /// Starts a plan that was kept.
    ///
    /// # Errors
    /// If it is unknown, blocked, was started before, or another job has the account.
    pub async fn start(self: &Arc<Self>, id: JobId) -> Result<(), Fault> {
        let jobs = self.clone();
        to_its_end(async move { jobs.begin(id).await }).await
    }

    async fn begin(self: &Arc<Self>, id: JobId) -> Result<(), Fault> {
        let row = self.store.job(id).await?.ok_or_else(|| {
            Fault::precondition(format!("no plan is called {id}")).remedy("plan the move again")
        })?;
        if read_plan(&row)?.blocked {
            return Err(Fault::precondition(format!(
                "the plan for account {} is blocked",
                row.account
            ))
            .remedy("see its findings, mend them, and plan again"));
        }
        self.fleet.require_not_overtaken()?;
        let now = now_ms();
        if let Err(fault) = self.store.start_job(id, now).await {
            // The store knows that it may not be, and not why.
            self.refuse_if_busy(&row.account).await?;
            return Err(fault);
        }
        // Not read again: from here on nothing may fail before it has its task.
        let ready = self.prepare(JobRow { started_ms: Some(now), ..row }).await;
        self.spawn(ready);
        Ok(())
    }

    /// A fault if an account has a job that has not ended, or if this controller has been overtaken and
    /// knows nothing of jobs any more. For clear words: that two are never started at once is the
    /// store's to see to.
    ///
    /// # Errors
    /// That, or the store's.
    pub async fn refuse_if_busy(&self, account: &AccountName) -> Result<(), Fault> {
        self.fleet.require_not_overtaken()?;
        let Some(row) = self.store.jobs(Some(account), true).await?.into_iter().next() else {
            return Ok(());
        };
        let plan = read_plan(&row)?;
        let what = match plan.steps.iter().any(|step| step.commit_point) {
            true => format!("its {} move from {} to {}", plan.direction, plan.source, plan.target),
            false => format!("the end of its move to {}", plan.target),
        };
        Err(Fault::precondition(format!(
            "account {account} has a job under way, {what} (job {}): one at a time",
            row.id
        ))
        .remedy(format!(
            "see `ferry status {account}`; wait for its end (if it is paused, let it go on: ferry resume {account}), or undo it: ferry abort {account}"
        )))
    }

    /// Asks the running job of an account to undo itself; returns once that is journalled. `by` says
    /// who asks.
    ///
    /// # Errors
    /// If none runs, there is no way back, or the journal fails.
    pub async fn abort(&self, account: &AccountName, by: &str) -> Result<JobId, Fault> {
        let (id, Running { wishes, shown, .. }) = self.running_of(account)?;
        refuse_without_way_back(account, shown.borrow().as_ref().map_err(Clone::clone)?)?;
        wishes.abort.request(by);
        let is_noted = |view: &JobView| view.abort_requested || view.phase.has_ended();
        until_noted(id, account, shown, "the abort", is_noted).await.map(|_| id)
    }

    fn running_of(&self, account: &AccountName) -> Result<(JobId, Running), Fault> {
        let running = self.running();
        let of_account = running.iter().find(|(_, job)| &job.account == account);
        of_account.map(|(id, job)| (*id, job.clone())).ok_or_else(|| {
            Fault::precondition(format!("no job of account {account} is running"))
                .remedy("see `ferry status`; after a move, `ferry rollback` goes back")
        })
    }

    /// Goes on with a stuck job, which a person has looked at, or with a paused one. `by` says who.
    ///
    /// # Errors
    /// If it is neither, or the account had a later job.
    pub async fn resume(
        self: &Arc<Self>,
        which: &Which,
        by: &str,
    ) -> Result<(JobId, AccountName), Fault> {
        let (jobs, which, by) = (self.clone(), which.clone(), by.to_owned());
        to_its_end(async move { jobs.go_on(&which, by).await }).await
    }

    async fn go_on(
        self: &Arc<Self>,
        which: &Which,
        by: String,
    ) -> Result<(JobId, AccountName), Fault> {
        self.fleet.require_not_overtaken()?;
        let row = self.last(which).await?;
        if let Some(paused) = self.paused(&row)? {
            self.let_go_on(&row, paused, &by).await?;
            return Ok((row.id, row.account));
        }
        self.require_stuck(&row).await?;
        let event = to_json(&Event::Resumed { by: by.clone() })?;
        self.store.resume_job(row.id, &event, now_ms()).await?;
        tracing::info!(job = %row.id, account = %row.account, by, "job resumed");
        let _ = self.bell.send(());
        let (id, account) = (row.id, row.account.clone());
        let ready = self.prepare(row).await;
        self.spawn(ready);
        Ok((id, account))
    }

    /// The job that is meant, if it is the last of its account.
    async fn last(&self, which: &Which) -> Result<JobRow, Fault> {
        let account = match which {
            Which::LastOf(account) => account.clone(),
            Which::Job(id) => self.row(*id).await?.account,
        };
        let last = self.store.jobs(Some(&account), false).await?.into_iter().next();
        let Some(row) = last else {
            return Err(Fault::precondition(format!("account {account} has no job"))
                .remedy("see `ferry status`"));
        };
        if let Which::Job(id) = which
            && *id != row.id
        {
            // What it would do now is about an account that stands otherwise since.
            return Err(Fault::precondition(format!(
                "job {id} is not the last of account {account}: {} came after it",
                row.id
            ))
            .remedy(format!("see `ferry status {account}`")));
        }
        Ok(row)
    }

    async fn require_stuck(&self, row: &JobRow) -> Result<(), Fault> {
        let phase = self.fold(row).await?.view().phase;
        if row.ended_ms.is_some() && phase == JobPhase::Stuck {
            return Ok(());
        }
        let JobRow { id, account, .. } = row;
        Err(Fault::precondition(format!(
            "job {id} of account {account} is {phase}: only a stuck job is resumed, or a paused one"
        ))
        .remedy(format!("see `ferry status {account}`")))
    }

    async fn row(&self, id: JobId) -> Result<JobRow, Fault> {
        self.store.job(id).await?.ok_or_else(|| {
            Fault::precondition(format!("no job is called {id}")).remedy("see `ferry status`")
        })
    }

    /// A job as it is now, and as it changes.
    ///
    /// # Errors
    /// If it is unknown, its journal is damaged, or it does not go on for now.
    pub async fn watch(&self, id: JobId) -> Result<watch::Receiver<Shown>, Fault> {
        let row = self.row(id).await?;
        // After the row: a job that ends in between is shown as it ended.
        let live = self.running().get(&id).map(|job| job.shown.clone());
        if let Some(shown) = live {
            let trouble = shown.borrow().as_ref().err().cloned();
            return trouble.map_or(Ok(shown), Err);
        }
        // An ended job: a watch whose sender is gone shows one value, then ends.
        let row = if row.ended_ms.is_none() { self.row(id).await? } else { row };
        Ok(watch::channel(Ok(self.fold(&row).await?.view().clone())).1)
    }

    /// The jobs of one account or of all, newest first; and a sentence for each that is damaged or
    /// does not go on for now.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn list(
        &self,
        account: Option<&AccountName>,
        running: bool,
    ) -> Result<(Vec<JobView>, Vec<String>), Fault> {
        let overtaken = self.fleet.require_not_overtaken().err();
        let (mut views, mut problems) =
            (Vec::new(), Vec::from_iter(overtaken.map(|fault| fault.to_string())));
        for row in self.store.jobs(account, running).await? {
            let live = self.running().get(&row.id).map(|job| job.shown.borrow().clone());
            let trouble = match live {
                Some(Ok(view)) => {
                    views.push(view);
                    continue;
                }
                Some(Err(fault)) => Some(fault),
                None => None,
            };
            let trouble = match self.fold(&row).await {
                Ok(folded) => {
                    views.push(folded.view().clone());
                    trouble
                }
                Err(fault) => Some(fault),
            };
            problems
                .extend(trouble.map(|f| format!("job {} of account {}: {f}", row.id, row.account)));
        }
        Ok((views, problems))
    }

    /// Rings after each event.
    pub fn bell(&self) -> broadcast::Receiver<()> {
        self.bell.subscribe()
    }

    /// Waits until every job's task has stopped; `stop` must have fired.
    pub async fn stopped(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn fold(&self, row: &JobRow) -> Result<Folded, Fault> {
        fold(self.store.as_ref(), row).await
    }

    fn running(&self) -> MutexGuard<'_, HashMap<JobId, Running>> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Waits until a running job's view is such, or the job does not go on: what was asked of it is journalled.
async fn until_noted(
    id: JobId,
    account: &AccountName,
    mut shown: watch::Receiver<Shown>,
    what: &str,
    is_noted: impl Fn(&JobView) -> bool,
) -> Result<JobView, Fault> {
    let noted = shown.wait_for(|shown| shown.as_ref().map_or(true, &is_noted));
    match tokio::time::timeout(JOURNALLED_WITHIN, noted).await {
        Ok(Ok(shown)) => shown.clone(),
        Ok(Err(_)) | Err(_) => Err(Fault::transient(format!(
            "job {id} of account {account} has not journalled {what}"
        ))
        .remedy("see `ferry status`, then ask again")),
    }
}

/// A fault if the job has no way back.
fn refuse_without_way_back(account: &AccountName, view: &JobView) -> Result<(), Fault> {
    if let Some(forced) = view.forced.as_ref().filter(|_| view.committed) {
        return Err(Fault::precondition(format!(
            "account {account} was opened by force on {}, on the word of {}",
            view.target, forced.by
        ))
        .remedy(format!(
            "its job waits for {0} to come back and close its copy; if it never will: ferry server revoke {0}",
            view.source
        )));
    }
    if view.committed {
        return Err(Fault::precondition(format!("the move of account {account} has committed"))
            .remedy(format!("let it end, then: ferry rollback {account}")));
    }
    let begun = |step: &StepView| step.name == "finalize" && step.phase != StepPhase::Waiting;
    if view.steps.iter().any(begun) {
        return Err(Fault::precondition(format!(
            "the move of account {account} is being ended for good: there is no way back"
        ))
        .remedy(format!("see `ferry status {account}`")));
    }
    Ok(())
}
