//! Commands: each is taken once, recorded before it is begun, carried out, and its outcome recorded
//! before it is told. A repeated one is answered from the ledger.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_proto::command::{End, Intent, Outcome, Progress};
use ferry_proto::grant::SignedGrant;
use ferry_proto::ids::CommandId;
use ferry_proto::{Fault, FaultClass};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::Agent;
use crate::ledger::{CommandState, Entry};
use crate::work::{self, Job};

/// Commands at once; more are refused as transient.
const AT_ONCE: usize = 256;

/// A command as it arrived.
#[derive(Debug)]
pub struct Command {
    /// Its id.
    pub id: CommandId,
    /// The controller's generation.
    pub generation: u64,
    /// The bytes of the intent.
    pub intent: Vec<u8>,
    /// What lets this agent speak to another.
    pub grant: Option<SignedGrant>,
}

/// What is told of a command.
#[derive(Debug)]
pub enum Told {
    /// It ended.
    Ended(CommandId, Box<Outcome>),
    /// It goes on.
    Progress(CommandId, Progress),
}

/// What became of a command, as far as this process knows.
#[derive(Debug)]
pub enum Known {
    /// It ended.
    Ended(Box<Outcome>),
    /// It is under way.
    Running,
    /// It is neither: it may be sent (again).
    No,
}

/// Takes commands.
pub struct Commands {
    agent: Arc<Agent>,
    running: Mutex<HashMap<CommandId, CancellationToken>>,
    told: mpsc::Sender<Told>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Commands {
    /// Commands for `agent`; what comes of them goes to `told`. When `stop` fires, what runs is
    /// left where it is: the controller asks again.
    pub fn new(agent: Arc<Agent>, told: mpsc::Sender<Told>, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { agent, running: Mutex::default(), told, tasks: TaskTracker::new(), stop })
    }

    /// Takes a command. Its outcome is told later, also if it is a refusal.
    pub async fn submit(self: &Arc<Self>, command: Command) {
        let id = command.id;
        if self.running().contains_key(&id) {
            return; // Repeated while it runs: one outcome answers both.
        }
        match self.admit(&command).await {
            Ok(Admitted::Recorded(outcome)) => self.tell(id, outcome).await,
            Ok(Admitted::Begin(intent, digest)) => self.begin(command, intent, digest),
            Err(fault) => {
                tracing::warn!(%id, class = %fault.class, "refused a command: {fault}");
                self.tell(id, Err(fault)).await;
            }
        }
    }

    /// Asks a command to stop. It answers with its outcome, which may still be a success.
    pub fn cancel(&self, id: CommandId) {
        if let Some(cancel) = self.running().get(&id) {
            cancel.cancel();
        }
    }

    /// What became of a command.
    pub fn known(&self, id: CommandId) -> Known {
        if self.running().contains_key(&id) {
            return Known::Running;
        }
        match self.agent.look(|l| l.command(id)) {
            CommandState::Ended { outcome, .. } => Known::Ended(Box::new(outcome)),
            CommandState::Taken { .. } | CommandState::Unknown => Known::No,
        }
    }

    /// Waits until everything has stopped; `stop` must have fired.
    pub async fn stopped(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn admit(&self, command: &Command) -> Result<Admitted, Fault> {
        let intent: Intent = serde_json::from_slice(&command.intent).map_err(|e| {
            Fault::permanent("a command has an intent that this agent does not know")
                .caused_by(&e)
                .remedy("bring agent and controller to the same version")
        })?;
        self.check_generation(command.generation).await?;
        let digest = blake3::hash(&command.intent).to_hex().to_string();
        let id = command.id;
        match self.agent.look(|l| l.command(id)) {
            CommandState::Ended { digest: was, .. } | CommandState::Taken { digest: was }
                if was != digest =>
            {
                Err(Fault::permanent(format!("command {id} was sent before with another intent")))
            }
            CommandState::Ended { outcome, .. } => Ok(Admitted::Recorded(outcome)),
            CommandState::Taken { .. } => Ok(Admitted::Begin(intent, digest)),
            CommandState::Unknown => {
                if let Some(of) = intent.of() {
                    if of.source != self.agent.name && of.target != self.agent.name {
                        return Err(Fault::permanent(format!(
                            "the command is for a move from {} to {}, not for {}",
                            of.source, of.target, self.agent.name
                        )));
                    }
                    work::check_epoch(&self.agent, of)?;
                    let entry = Entry::Taken { id, digest: digest.clone() };
                    self.agent.write(move |l| l.record(entry)).await?;
                }
                Ok(Admitted::Begin(intent, digest))
            }
        }
    }

    /// A controller restored from an old backup is refused until support resolves it.
    async fn check_generation(&self, generation: u64) -> Result<(), Fault> {
        let seen = self.agent.look(|l| l.generation());
        if generation < seen {
            return Err(Fault::fenced(format!(
                "the controller is of generation {generation}, this agent has obeyed {seen}"
            ))
            .remedy("the controller was restored from an old backup: see docs/what-if/controller-restored.md"));
        }
        if generation > seen {
            self.agent.write(move |l| l.record(Entry::Generation { generation })).await?;
        }
        Ok(())
    }

    fn begin(self: &Arc<Self>, command: Command, intent: Intent, digest: String) {
        let id = command.id;
        // Also stopped by whatever stops the account's activity, unless it changes how the account
        // stands: then it holds the order, and ends by itself.
        let cancel = match &intent {
            Intent::Precopy { .. }
            | Intent::FinalPass { .. }
            | Intent::CopyDatabases { .. }
            | Intent::Verify { .. } => self.agent.activity(intent.account()),
            _ => CancellationToken::new(),
        };
        {
            let mut running = self.running();
            if running.len() >= AT_ONCE {
                let fault = Fault::transient("this agent has too many commands under way");
                let this = self.clone();
                self.tasks.spawn(async move { this.tell(id, Err(fault)).await });
                return;
            }
            running.insert(id, cancel.clone());
        }
        let this = self.clone();
        self.tasks.spawn(async move {
            let outcome = tokio::select! {
                outcome = this.carry_out(&command, &intent, cancel) => outcome,
                () = this.stop.cancelled() => {
                    this.running().remove(&id);
                    return;
                }
            };
            this.end(&command, &intent, digest, outcome).await;
        });
    }

    /// Records the outcome, then tells it.
    async fn end(&self, command: &Command, intent: &Intent, digest: String, outcome: Outcome) {
        let id = command.id;
        if let Err(fault) = &outcome {
            tracing::warn!(command = intent.kind(), account = %intent.account(), class = %fault.class, "failed: {fault}");
        } else {
            tracing::info!(command = intent.kind(), account = %intent.account(), "done");
        }
        let mut recorded = Ok(());
        if intent.of().is_some() {
            let entry = Entry::Ended { id, digest, outcome: outcome.clone() };
            recorded = self.agent.write(move |l| l.record(entry)).await;
        }
        self.running().remove(&id);
        match recorded {
            Ok(()) => self.tell(id, outcome).await,
            // Not told what is not recorded: it is tried again, and finds what is done.
            Err(fault) => self.tell(id, Err(fault.context("the outcome was not recorded"))).await,
        }
    }

    async fn carry_out(
        &self,
        command: &Command,
        intent: &Intent,
        cancel: CancellationToken,
    ) -> Outcome {
        let (progress, seen) = watch::channel(Progress::default());
        let telling = self.tasks.spawn(tell_progress(command.id, seen, self.told.clone()));
        let outcome = match intent.of() {
            None => self.inspect(intent, command.grant.as_ref()).await,
            Some(of) => {
                let job = Job {
                    agent: self.agent.clone(),
                    of: of.clone(),
                    grant: command.grant.clone(),
                    cancel,
                    progress,
                };
                dispatch(&job, intent).await
            }
        };
        // The work is gone and with it the sender of progress: nothing is told after the outcome.
        telling.abort();
        outcome
    }

    async fn inspect(&self, intent: &Intent, grant: Option<&SignedGrant>) -> Outcome {
        let Intent::Inspect { account, end, source, peer } = intent else {
            return Err(Fault::bug("an intent of no move is no inspection"));
        };
        match (end, source) {
            (End::Source, _) => work::inspect::source(&self.agent, account, *peer).await,
            (End::Target, Some(source)) => {
                work::inspect::target(&self.agent, source, *peer, grant).await
            }
            (End::Target, None) => {
                Err(Fault::bug("an inspection of the target came without the source's facts"))
            }
        }
    }

    async fn tell(&self, id: CommandId, outcome: Outcome) {
        // The link is gone only when the agent stops; the ledger has it.
        let _ = self.told.send(Told::Ended(id, Box::new(outcome))).await;
    }

    fn running(&self) -> MutexGuard<'_, HashMap<CommandId, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Admitted {
    Recorded(Outcome),
    Begin(Intent, String),
}

async fn tell_progress(
    id: CommandId,
    mut seen: watch::Receiver<Progress>,
    told: mpsc::Sender<Told>,
) {
    // At most so often: progress is for people.
    let mut pace = tokio::time::interval(std::time::Duration::from_millis(250));
    while seen.changed().await.is_ok() {
        pace.tick().await;
        let progress = seen.borrow_and_update().clone();
        if told.send(Told::Progress(id, progress)).await.is_err() {
            return;
        }
    }
}

async fn dispatch(job: &Job, intent: &Intent) -> Outcome {
    // A step that came to the wrong end would act on the wrong copy.
    let at_target = matches!(
        intent,
        Intent::Provision { .. }
            | Intent::Deprovision { .. }
            | Intent::Rehearse { .. }
            | Intent::Open { .. }
    );
    let expected = if at_target { &job.of.target } else { &job.of.source };
    if expected != &job.agent.name {
        return Err(Fault::new(
            FaultClass::Permanent,
            format!("{} is for {expected}, not for {}", intent.kind(), job.agent.name),
        ));
    }
    match intent {
        Intent::Inspect { .. } => Err(Fault::bug("an inspection is of no move")),
        Intent::Provision { .. } => work::provision::provision(job).await,
        Intent::Deprovision { .. } => work::provision::deprovision(job).await,
        Intent::Precopy { max_passes, converged_bytes, .. } => {
            work::files::precopy(job, *max_passes, *converged_bytes).await
        }
        Intent::Arm { .. } => work::arm::arm(job).await,
        Intent::Disarm { .. } => work::arm::disarm(job).await,
        Intent::Fence { deadline_seconds, grace_ms, .. } => {
            work::fence::fence(job, *deadline_seconds, *grace_ms).await
        }
        Intent::Unfence { .. } => work::unfence::unfence(job).await,
        Intent::FinalPass { .. } => work::files::final_pass(job).await,
        Intent::CopyDatabases { .. } => work::databases::copy(job).await,
        Intent::Verify { .. } => work::verify::verify(job).await,
        Intent::Rehearse { .. } => work::rehearse::rehearse(job).await,
        Intent::Commit { .. } => work::commit::commit(job).await,
        Intent::Open { commit, .. } => work::open::on_command(job, commit.as_ref()).await,
        Intent::Release { .. } => work::release::release(job).await,
        Intent::Finalize { erase, .. } => work::finalize::finalize(job, *erase).await,
    }
}
