//! Jobs that run. Each has one task that owns its runner; whoever wants to see it watches.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use ferry_engine::{Event, Journal, Runner, Steps, Told};
use ferry_fleet::{Fleet, now_ms};
use ferry_plan::Plan;
use ferry_proto::Fault;
use ferry_proto::ids::{AccountName, JobId};
use ferry_proto::view::{JobPhase, JobView};
use ferry_store::{JobRow, Store};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::view::Folded;

/// Events waiting for a job's view; the runner waits if it is full.
const TOLD: usize = 64;

/// The engine's journal, in the store.
struct StoreJournal(Arc<dyn Store>);

#[async_trait]
impl Journal for StoreJournal {
    async fn append(&self, job: JobId, event: &Event) -> Result<(), Fault> {
        let text = serde_json::to_string(event)
            .map_err(|e| Fault::bug("an event has no JSON").caused_by(&e))?;
        self.0.append_event(job, &text, now_ms()).await.map(|_| ())
    }

    async fn load(&self, job: JobId) -> Result<Vec<Event>, Fault> {
        let events = load_events(self.0.as_ref(), job).await?;
        Ok(events.into_iter().map(|(_, event)| event).collect())
    }
}

async fn load_events(store: &dyn Store, job: JobId) -> Result<Vec<(i64, Event)>, Fault> {
    const PAGE: u32 = 1000;
    let mut events = Vec::new();
    let mut after = 0;
    loop {
        let rows = store.events(Some(job), None, after, PAGE).await?;
        let Some(last) = rows.last() else { return Ok(events) };
        after = last.number;
        for row in rows {
            let event = serde_json::from_str(&row.event).map_err(|e| {
                Fault::bug(format!("event {} is damaged", row.number)).caused_by(&e)
            })?;
            events.push((row.at_ms, event));
        }
    }
}

/// A running job.
struct Running {
    abort: CancellationToken,
    view: watch::Receiver<JobView>,
}

/// All jobs.
pub struct Jobs {
    store: Arc<dyn Store>,
    steps: Arc<Steps>,
    running: Mutex<HashMap<JobId, Running>>,
    /// Rung after each event, for those who follow the journal.
    bell: broadcast::Sender<()>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Jobs {
    /// Jobs of `store`, whose steps are done by `fleet`. When `stop` fires, jobs are left where
    /// their journal says.
    pub fn new(store: Arc<dyn Store>, fleet: &Arc<Fleet>, stop: CancellationToken) -> Arc<Self> {
        let (bell, _) = broadcast::channel(1);
        Arc::new(Self {
            store,
            steps: Arc::new(ferry_steps::kinds(fleet)),
            running: Mutex::default(),
            bell,
            tasks: TaskTracker::new(),
            stop,
        })
    }

    /// Takes up every job that has not ended.
    ///
    /// # Errors
    /// If the store cannot be read. A damaged job is logged and left alone.
    pub async fn recover(self: &Arc<Self>) -> Result<(), Fault> {
        for row in self.store.jobs(None, true).await? {
            tracing::info!(job = %row.id, account = %row.account, "taking the job up again");
            if let Err(fault) = self.spawn(&row).await {
                tracing::error!(job = %row.id, "cannot take the job up: {fault}");
            }
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
        let unknown =
            || Fault::precondition(format!("no plan is called {id}")).remedy("plan the move again");
        let row = self.store.job(id).await?.ok_or_else(unknown)?;
        if read_plan(&row)?.blocked {
            return Err(Fault::precondition(format!(
                "the plan for account {} is blocked",
                row.account
            ))
            .remedy("see its findings, mend them, and plan again"));
        }
        self.store.start_job(id, now_ms()).await?;
        let row = self.store.job(id).await?.ok_or_else(unknown)?;
        self.spawn(&row).await
    }

    /// Asks the running job of an account to undo itself.
    ///
    /// # Errors
    /// If none runs, or it has committed.
    pub fn abort(&self, account: &AccountName) -> Result<JobId, Fault> {
        let running = self.running();
        let (id, job) = running
            .iter()
            .find(|(_, job)| &job.view.borrow().account == account)
            .ok_or_else(|| {
                Fault::precondition(format!("no job of account {account} is running"))
                    .remedy("see `ferry status`; after a move, `ferry rollback` goes back")
            })?;
        if job.view.borrow().committed {
            return Err(Fault::precondition(format!(
                "the move of account {account} has committed"
            ))
            .remedy(format!("let it end, then: ferry rollback {account}")));
        }
        job.abort.cancel();
        Ok(*id)
    }

    /// A job as it is now, and as it changes.
    ///
    /// # Errors
    /// If it is unknown or its journal is damaged.
    pub async fn watch(&self, id: JobId) -> Result<watch::Receiver<JobView>, Fault> {
        if let Some(job) = self.running().get(&id) {
            return Ok(job.view.clone());
        }
        let row = self.store.job(id).await?.ok_or_else(|| {
            Fault::precondition(format!("no job is called {id}")).remedy("see `ferry status`")
        })?;
        // An ended job: a watch whose sender is gone shows one value, then ends.
        Ok(watch::channel(self.fold(&row).await?.view().clone()).1)
    }

    /// The jobs of one account or of all, newest first.
    ///
    /// # Errors
    /// If the store fails or a journal is damaged.
    pub async fn list(
        &self,
        account: Option<&AccountName>,
        running: bool,
    ) -> Result<Vec<JobView>, Fault> {
        let mut views = Vec::new();
        for row in self.store.jobs(account, running).await? {
            let live = self.running().get(&row.id).map(|job| job.view.borrow().clone());
            match live {
                Some(view) => views.push(view),
                None => views.push(self.fold(&row).await?.view().clone()),
            }
        }
        Ok(views)
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
        let mut folded = Folded::new(read_plan(row)?, row.started_ms.unwrap_or(row.planned_ms))?;
        for (at, event) in load_events(self.store.as_ref(), row.id).await? {
            folded.apply(&event, at)?;
        }
        Ok(folded)
    }

    async fn spawn(self: &Arc<Self>, row: &JobRow) -> Result<(), Fault> {
        let folded = self.fold(row).await?;
        let abort = CancellationToken::new();
        let (told, seen) = mpsc::channel(TOLD);
        let journal = Arc::new(StoreJournal(self.store.clone()));
        let runner = Runner::recover(
            folded.spec().clone(),
            self.steps.clone(),
            journal,
            told,
            abort.clone(),
        )
        .await?;
        let (sender, view) = watch::channel(folded.view().clone());
        self.running().insert(row.id, Running { abort, view });
        let jobs = self.clone();
        let id = row.id;
        self.tasks.spawn(async move {
            let showing = tokio::spawn(show(folded, seen, sender, jobs.bell.clone()));
            let outcome = tokio::select! {
                outcome = runner.run() => Some(outcome),
                () = jobs.stop.cancelled() => None,
            };
            // The runner is gone, and with it the sender: the view's task ends by itself.
            if showing.await.is_err() {
                tracing::error!(job = %id, "the job's view failed");
            }
            match outcome {
                Some(Ok(phase)) => jobs.ended(id, phase).await,
                Some(Err(fault)) => {
                    tracing::error!(job = %id, "the job stopped where its journal says: {fault}")
                }
                None => {}
            }
            jobs.running().remove(&id);
            let _ = jobs.bell.send(());
        });
        Ok(())
    }

    async fn ended(&self, id: JobId, phase: JobPhase) {
        tracing::info!(job = %id, %phase, "job ended");
        if let Err(fault) = self.store.end_job(id, &phase.to_string(), now_ms()).await {
            // It is taken up again at the next start, and ends at once.
            tracing::error!(job = %id, "the job's end was not noted: {fault}");
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<JobId, Running>> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Reads the plan of a job.
///
/// # Errors
/// Of class Bug if it is damaged.
pub fn read_plan(row: &JobRow) -> Result<Plan, Fault> {
    serde_json::from_str(&row.plan)
        .map_err(|e| Fault::bug(format!("the plan of job {} is damaged", row.id)).caused_by(&e))
}

/// Keeps a job's view current.
async fn show(
    mut folded: Folded,
    mut seen: mpsc::Receiver<Told>,
    sender: watch::Sender<JobView>,
    bell: broadcast::Sender<()>,
) {
    while let Some(told) = seen.recv().await {
        match told {
            Told::Event(event) => {
                if let Err(fault) = folded.apply(&event, now_ms()) {
                    tracing::error!("{fault}");
                }
                // Nobody may be listening.
                let _ = bell.send(());
            }
            Told::Progress { step, progress } => folded.progress(step, progress),
        }
        sender.send_replace(folded.view().clone());
    }
}
