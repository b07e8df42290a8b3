//! Commands: each is taken once, recorded before it is begun, carried out, and its outcome recorded
//! before it is told. A repeated one is answered from the ledger. It must not know what the work of a command
//! is (`dispatch`), or how one came.

mod dispatch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_proto::Fault;
use ferry_proto::command::{Intent, Outcome, Progress};
use ferry_proto::grant::SignedGrant;
use ferry_proto::ids::CommandId;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::Agent;
use crate::doctor::turn;
use crate::ledger::{CommandState, Entry};
use crate::work::{self, Job};

use dispatch::{dispatch, inspect};

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

    /// Takes a command. Gives its outcome if that is known at once: recorded before, or a refusal.
    /// Else it is told later. Never waits for whoever hears what is told: he calls this.
    pub async fn submit(self: &Arc<Self>, command: Command) -> Option<Outcome> {
        let id = command.id;
        if self.running().contains_key(&id) {
            return None; // Repeated while it runs: one outcome answers both.
        }
        let begun = match self.admit(&command).await {
            Ok(Admitted::Recorded(outcome)) => return Some(outcome),
            Ok(Admitted::Begin(intent, digest)) => self.begin(command, *intent, digest),
            Err(fault) => Err(fault),
        };
        let fault = begun.err()?;
        tracing::warn!(%id, class = %fault.class, "refused a command: {fault}");
        Some(Err(fault))
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
            CommandState::Taken { .. } => {
                // Whoever took it may have got no further.
                self.note_undone(&intent).await?;
                Ok(Admitted::Begin(Box::new(intent), digest))
            }
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
                    let kind = intent.kind();
                    self.agent.write(move |l| l.record_of(kind, entry)).await?;
                    self.note_undone(&intent).await?;
                }
                Ok(Admitted::Begin(Box::new(intent), digest))
            }
        }
    }

    /// Remembers that a move is being undone: nobody goes on with it afterwards, so whoever still
    /// shows its grant is refused.
    async fn note_undone(&self, intent: &Intent) -> Result<(), Fault> {
        let (Intent::Disarm { of } | Intent::Unfence { of } | Intent::TakeBack { of, .. }) = intent
        else {
            return Ok(());
        };
        let job = of.job;
        if self.agent.look(|l| l.is_undone(job)) {
            return Ok(());
        }
        self.agent.write(move |l| l.record(Entry::Undone { job })).await
    }

    /// A controller restored from an old backup is refused until support resolves it.
    async fn check_generation(&self, generation: u64) -> Result<(), Fault> {
        self.agent.look(|l| l.require_not_older(generation))?;
        if self.agent.look(|l| l.generation()) == generation {
            return Ok(());
        }
        let obeyed = self.agent.write(move |l| l.obey(generation)).await;
        // Of what is written every fault is transient: that a later one came in between is said here.
        self.agent.look(|l| l.require_not_older(generation))?;
        obeyed
    }

    fn begin(
        self: &Arc<Self>,
        command: Command,
        intent: Intent,
        digest: String,
    ) -> Result<(), Fault> {
        let id = command.id;
        if let Intent::Precopy { .. } = &intent {
            // One that still runs was given up, while the controller did not reach this agent, say.
            self.agent.stop_activity(intent.account());
        }
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
                return Err(Fault::transient("this agent has too many commands under way"));
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
        Ok(())
    }

    /// Records the outcome, then tells it.
    async fn end(&self, command: &Command, intent: &Intent, digest: String, outcome: Outcome) {
        let id = command.id;
        if let Err(fault) = &outcome {
            tracing::warn!(command = intent.kind(), account = %intent.account(), class = %fault.class, "failed: {fault}");
        } else {
            tracing::info!(command = intent.kind(), account = %intent.account(), "done");
        }
        count(intent, &outcome);
        let mut recorded = Ok(());
        if intent.of().is_some() {
            let entry = Entry::Ended { id, digest, outcome: outcome.clone() };
            let kind = intent.kind();
            recorded = self.agent.write(move |l| l.record_of(kind, entry)).await;
        }
        self.running().remove(&id);
        match recorded {
            Ok(()) => self.tell(id, outcome).await,
            // Not told what is not recorded: it is tried again, and finds what is done. The fault
            // is Transient, as a commit may be recorded whose outcome is not.
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
            None => inspect(&self.agent, intent, command.grant.as_ref()).await,
            Some(of) => {
                let _turn = turn::of_command(&self.agent.config.state_directory).await?;
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
    Begin(Box<Intent>, String),
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
        // Never waits: while nobody hears it, progress must not fill the place of outcomes. What is
        // dropped the next one makes good.
        if told.capacity() > told.max_capacity() / 2 {
            let _ = told.try_send(Told::Progress(id, progress));
        }
    }
}

fn count(intent: &Intent, outcome: &Outcome) {
    let outcome = outcome.as_ref().map_or_else(|f| f.class.to_string(), |_| "done".to_owned());
    metrics::counter!("ferry_commands_total", "kind" => intent.kind(), "outcome" => outcome)
        .increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::ledger::Standing;
    use crate::ledger::failing::{ENOSPC, on_failing};
    use crate::testing::authority::Authority;
    use crate::testing::{a_move, account, agent, agent_with};
    use ferry_proto::FaultClass;
    use ferry_proto::command::Move;
    use ferry_proto::ids::Epoch;
    use tempfile::TempDir;

    struct Fixture {
        authority: Authority,
        agent: Arc<Agent>,
        commands: Arc<Commands>,
        heard: mpsc::Receiver<Told>,
        dir: TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
            let agent = agent(&authority, dir.path());
            Self::of(authority, dir, agent)
        }

        fn of(authority: Authority, dir: TempDir, agent: Arc<Agent>) -> Self {
            let (told, heard) = mpsc::channel(16);
            let commands = Commands::new(agent.clone(), told, CancellationToken::new());
            Self { authority, agent, commands, heard, dir }
        }

        /// As after a restart of the agent.
        fn restarted(self) -> Self {
            let Self { authority, dir, .. } = self;
            let agent = agent(&authority, dir.path());
            Self::of(authority, dir, agent)
        }

        /// What comes of it, said at once or later.
        async fn outcome(&mut self, command: Command) -> Outcome {
            let id = command.id;
            if let Some(outcome) = self.commands.submit(command).await {
                return outcome;
            }
            loop {
                if let Told::Ended(of, outcome) = self.heard.recv().await.unwrap() {
                    assert_eq!(of, id);
                    return *outcome;
                }
            }
        }

        async fn refusal(&mut self, command: Command) -> Fault {
            let known = command.id;
            let before = self.agent.look(|l| l.len());
            let fault = self.commands.submit(command).await.unwrap().unwrap_err();
            assert_eq!(self.agent.look(|l| l.len()), before, "a refusal changed the ledger");
            assert!(!matches!(self.commands.known(known), Known::Running));
            fault
        }

        async fn put(&self, standing: &Standing, epoch: u64) {
            let mut account = account("shop", standing);
            account.epoch = Epoch(epoch);
            self.agent.set_account(&"shop".parse().unwrap(), Some(account)).await.unwrap();
        }

        fn stands_armed(&self) -> bool {
            let account = self.agent.account(&"shop".parse().unwrap()).unwrap();
            matches!(account.standing, Standing::Armed { .. })
        }
    }

    fn disarm(id: CommandId, generation: u64, of: &Move) -> Command {
        let intent = serde_json::to_vec(&Intent::Disarm { of: of.clone() }).unwrap();
        Command { id, generation, intent, grant: None }
    }

    #[tokio::test]
    async fn a_replayed_command_is_answered_and_not_carried_out_again() {
        let mut fixture = Fixture::new();
        let (id, of) = (CommandId::new_now(), a_move());
        let first = fixture.outcome(disarm(id, 1, &of)).await;
        assert!(first.is_ok(), "{first:?}");
        // Carried out again, it would disarm this.
        fixture.put(&Standing::Armed { of: of.clone() }, 3).await;
        assert_eq!(fixture.commands.submit(disarm(id, 1, &of)).await, Some(first.clone()));
        assert!(matches!(fixture.commands.known(id), Known::Ended(o) if *o == first));
        let mut fixture = fixture.restarted();
        assert_eq!(fixture.commands.submit(disarm(id, 1, &of)).await, Some(first.clone()));
        assert!(fixture.agent.look(|l| l.is_undone(of.job)));
        // The same id with other bytes is another command under a false name.
        let fault = fixture.refusal(disarm(id, 1, &Move { epoch: Epoch(4), ..of.clone() })).await;
        assert_eq!(fault.class, FaultClass::Permanent);
        assert!(fault.message.contains("was sent before with another intent"), "{fault}");
        assert!(fixture.stands_armed());
        assert_eq!(fixture.commands.submit(disarm(id, 1, &of)).await, Some(first));
    }

    #[tokio::test(start_paused = true)]
    async fn a_precopy_stops_one_of_its_account_that_still_runs_and_waits_for_its_end() {
        let mut fixture = Fixture::new();
        let of = a_move();
        let before = fixture.agent.activity(&of.account);
        let still_runs = fixture.agent.copying(&of.account).await;
        let intent = Intent::Precopy { of, max_passes: 1, converged_bytes: 0 };
        let intent = serde_json::to_vec(&intent).unwrap();
        let [second, third] = [CommandId::new_now(), CommandId::new_now()];
        let command = |id| Command { id, generation: 1, intent: intent.clone(), grant: None };
        assert_eq!(fixture.commands.submit(command(second)).await, None);
        assert!(before.is_cancelled());
        // Only time passes.
        let hour = Duration::from_secs(3600);
        let early = tokio::time::timeout(hour, fixture.heard.recv()).await;
        assert!(early.is_err(), "it did not wait: {early:?}");
        assert_eq!(fixture.commands.submit(command(third)).await, None);
        let Told::Ended(id, outcome) = fixture.heard.recv().await.unwrap() else { panic!() };
        assert_eq!((id, outcome.unwrap_err().class), (second, FaultClass::Cancelled));
        drop(still_runs);
        let Told::Ended(id, outcome) = fixture.heard.recv().await.unwrap() else { panic!() };
        // It has begun, and found no such account.
        assert_eq!(id, third);
        assert_ne!(outcome.unwrap_err().class, FaultClass::Cancelled);
    }

    #[tokio::test]
    async fn an_undo_whose_mark_failed_is_marked_when_it_is_repeated() {
        let (ledger, kernel) = on_failing();
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let agent = agent_with(&authority, dir.path(), ledger);
        let mut fixture = Fixture::of(authority, dir, agent);
        let (id, of) = (CommandId::new_now(), a_move());
        // It is taken, but the mark finds the disk full.
        kernel.lock().unwrap().writes = [Ok(()), Err(ENOSPC)].into();
        let fault = fixture.commands.submit(disarm(id, 0, &of)).await.unwrap().unwrap_err();
        assert_eq!(fault.class, FaultClass::Transient, "{fault}");
        assert!(matches!(fixture.agent.look(|l| l.command(id)), CommandState::Taken { .. }));
        assert!(!fixture.agent.look(|l| l.is_undone(of.job)));
        fixture.outcome(disarm(id, 0, &of)).await.unwrap();
        assert!(fixture.agent.look(|l| l.is_undone(of.job)));
    }

    #[tokio::test]
    async fn an_older_epoch_is_refused() {
        let mut fixture = Fixture::new();
        let of = a_move();
        // Of another move; and of this one, at an epoch to which its refusal does not take it.
        for (armed, epoch) in [(a_move(), 5), (of.clone(), 6)] {
            fixture.put(&Standing::Armed { of: armed }, epoch).await;
            let fault = fixture.refusal(disarm(CommandId::new_now(), 0, &of)).await;
            assert_eq!(fault.class, FaultClass::Fenced);
            assert!(fault.message.contains(&format!("is at epoch {epoch}")), "{fault}");
            assert!(fixture.stands_armed());
        }
    }

    #[tokio::test]
    async fn an_older_controller_is_refused_also_after_a_restart() {
        let mut fixture = Fixture::new();
        fixture.outcome(disarm(CommandId::new_now(), 7, &a_move())).await.unwrap();
        for _ in 0..2 {
            let fault = fixture.refusal(disarm(CommandId::new_now(), 6, &a_move())).await;
            // Not Fenced: that would say of a commit that it surely was not made.
            assert_eq!(fault.class, FaultClass::Precondition);
            assert!(fault.message.contains("generation 6"), "{fault}");
            fixture = fixture.restarted();
        }
        fixture.outcome(disarm(CommandId::new_now(), 7, &a_move())).await.unwrap();
    }

    #[tokio::test]
    async fn a_command_for_another_server_is_refused() {
        let mut fixture = Fixture::new();
        let of = Move { source: "web2".parse().unwrap(), ..a_move() };
        let fault = fixture.refusal(disarm(CommandId::new_now(), 0, &of)).await;
        assert!(fault.message.contains("from web2 to transit1, not for web1"), "{fault}");
        // For this server, but for its other end.
        let of =
            Move { source: "web2".parse().unwrap(), target: "web1".parse().unwrap(), ..a_move() };
        let fault = fixture.outcome(disarm(CommandId::new_now(), 0, &of)).await.unwrap_err();
        assert!(fault.message.contains("is for web2, not for web1"), "{fault}");
    }

    #[tokio::test]
    async fn taking_a_command_never_waits_for_its_hearer() {
        let mut fixture = Fixture::new();
        let (id, of) = (CommandId::new_now(), a_move());
        let first = fixture.outcome(disarm(id, 1, &of)).await;
        while fixture.commands.told.try_send(Told::Progress(id, Progress::default())).is_ok() {}
        let foreign = Move { source: "web2".parse().unwrap(), ..of.clone() };
        let answers = async {
            assert_eq!(fixture.commands.submit(disarm(id, 1, &of)).await, Some(first));
            let refused = fixture.commands.submit(disarm(CommandId::new_now(), 1, &foreign)).await;
            assert!(matches!(refused, Some(Err(_))));
            let begun = fixture.commands.submit(disarm(CommandId::new_now(), 1, &of)).await;
            assert_eq!(begun, None);
        };
        tokio::time::timeout(Duration::from_secs(20), answers).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn progress_leaves_room_for_outcomes() {
        let (told, mut heard) = mpsc::channel(8);
        let (progress, seen) = watch::channel(Progress::default());
        let id = CommandId::new_now();
        let telling = tokio::spawn(tell_progress(id, seen, told.clone()));
        for n in 0..100 {
            progress.send_modify(|p| p.bytes_done = n);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(told.capacity(), 4, "half is for outcomes");
        for _ in 0..4 {
            heard.recv().await.unwrap();
        }
        progress.send_modify(|p| p.bytes_done = 100);
        let Told::Progress(_, latest) = heard.recv().await.unwrap() else { panic!() };
        assert_eq!(latest.bytes_done, 100);
        drop(progress);
        telling.await.unwrap();
    }

    #[tokio::test]
    async fn an_outcome_that_is_not_recorded_is_told_as_transient_whatever_the_disk_says() {
        let (ledger, kernel) = on_failing();
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let agent = agent_with(&authority, dir.path(), ledger);
        let mut fixture = Fixture::of(authority, dir, agent);
        let (id, of) = (CommandId::new_now(), a_move());
        let under_way = fixture.agent.order(&of.account).await;
        assert_eq!(fixture.commands.submit(disarm(id, 0, &of)).await, None);
        kernel.lock().unwrap().broken = Some(ENOSPC);
        drop(under_way);
        let Told::Ended(_, outcome) = fixture.heard.recv().await.unwrap() else { panic!() };
        assert_eq!(outcome.unwrap_err().class, FaultClass::Transient);
        // One that cannot be taken neither.
        let refused = fixture.commands.submit(disarm(CommandId::new_now(), 0, &of)).await;
        assert_eq!(refused.unwrap().unwrap_err().class, FaultClass::Transient);
        // Asked again when the disk is well, it is carried out.
        kernel.lock().unwrap().broken = None;
        assert!(matches!(fixture.commands.known(id), Known::No));
        fixture.outcome(disarm(id, 0, &of)).await.unwrap();
    }

    #[test]
    fn commands_are_counted_by_kind_and_outcome() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let intent = Intent::Disarm { of: a_move() };
        metrics::with_local_recorder(&recorder, || {
            count(&intent, &Ok(work::done("")));
            count(&intent, &Err(Fault::fenced("no")));
            count(&intent, &Err(Fault::fenced("no")));
        });
        let text = recorder.handle().render();
        let line = |outcome: &str, n: u32| {
            format!("ferry_commands_total{{kind=\"disarm\",outcome=\"{outcome}\"}} {n}\n")
        };
        assert!(text.contains(&line("done", 1)) && text.contains(&line("fenced", 2)), "{text}");
    }
}
