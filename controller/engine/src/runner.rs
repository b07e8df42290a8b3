//! The loop: ask the pure state what is next, journal it, do it, journal what came of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ferry_failpoints::around_async;
use ferry_proto::command::Progress;
use ferry_proto::view::JobPhase;
use ferry_proto::{Fault, FaultClass};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::gate::Gate;
use crate::patience::LONGEST_PAUSE;
use crate::spec::JobSpec;
use crate::state::{Entry, Event, IllegalEvent, JobState, Next, StepState};
use crate::step::{Context, Journal, Observation, Steps};
use crate::wish::{Abort, Force, Pause, PauseWish};

/// How long to wait before trying again, by attempt.
fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(250u64.saturating_mul(1 << attempt.min(7))).min(LONGEST_PAUSE)
}

/// What the runner tells whoever watches, after it was journalled.
#[derive(Debug, Clone)]
pub enum Told {
    /// An event, as it is in the journal.
    Event(Entry),
    /// A step says how far it is. Not journalled.
    Progress {
        /// Index of the step.
        step: usize,
        /// How far.
        progress: Progress,
    },
}

/// Runs one job to its end.
pub struct Runner {
    spec: JobSpec,
    state: JobState,
    steps: Arc<Steps>,
    journal: Arc<dyn Journal>,
    told: mpsc::Sender<Told>,
    abort: Abort,
    pause: Pause,
    force: Force,
    /// What cancels a step that may be cancelled: an abort, or a pause once it is journalled.
    cut_off: CancellationToken,
    gate: Option<Arc<dyn Gate>>,
}

impl Runner {
    /// Takes a job up where its journal left it.
    ///
    /// # Errors
    /// If the journal cannot be read or does not fit the plan.
    pub async fn recover(
        spec: JobSpec,
        steps: Arc<Steps>,
        journal: Arc<dyn Journal>,
        told: mpsc::Sender<Told>,
        abort: Abort,
    ) -> Result<Self, Fault> {
        let entries = journal.load(spec.job).await?;
        let state = JobState::replay(&spec, &entries).map_err(|e| {
            Fault::bug(format!("the journal of job {} is damaged", spec.job)).caused_by(&e)
        })?;
        for step in &spec.steps {
            if !steps.contains_key(&step.kind) {
                return Err(Fault::bug(format!("no step kind is called {}", step.kind)));
            }
        }
        // Somebody wished it before the controller stopped: steps are cancelled as they were.
        if state.abort_requested {
            abort.wish_again();
        }
        let cut_off = abort.child_token();
        if state.pause_requested {
            cut_off.cancel();
        }
        let (pause, force) = (Pause::default(), Force::default());
        Ok(Self { spec, state, steps, journal, told, abort, pause, force, cut_off, gate: None })
    }

    /// Starts each step only when `gate` lets it.
    pub fn gated(self, gate: Arc<dyn Gate>) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// Hears who wishes that it stop for now, or go on.
    pub fn pausing(self, pause: Pause) -> Self {
        Self { pause, ..self }
    }

    /// Hears who vouches for its commit.
    pub fn heeding(self, force: Force) -> Self {
        Self { force, ..self }
    }

    /// The state now.
    pub fn state(&self) -> &JobState {
        &self.state
    }

    /// Goes on until nothing more happens by itself.
    ///
    /// # Errors
    /// Only if the journal fails: the job is then where the journal says.
    pub async fn run(mut self) -> Result<JobPhase, Fault> {
        loop {
            self.note_abort().await?;
            self.note_pause().await?;
            self.note_force().await?;
            match self.state.next(&self.spec) {
                Next::End(phase) => return Ok(phase),
                Next::Start { step, attempt } => {
                    if !self.back_off(step, attempt).await || !self.enter(step).await {
                        continue;
                    }
                    self.record(Event::StepStarted { step, attempt }).await?;
                    self.execute(step, attempt).await?;
                }
                Next::Resume { step, attempt } => self.resume(step, attempt).await?,
                Next::StartUndo { step, attempt } => {
                    self.back_off(step, attempt).await;
                    self.record(Event::UndoStarted { step, attempt }).await?;
                    self.undo(step, attempt).await?;
                }
                Next::ResumeUndo { step, attempt } => self.undo(step, attempt).await?,
            }
        }
    }

    /// Waits before a further attempt. False if a wish, or a word for the commit, arrived meanwhile.
    async fn back_off(&self, step: usize, attempt: u32) -> bool {
        let failed = self.state.failed_before(step, attempt);
        if failed == 0 {
            return true;
        }
        let unknown = self.state.commit_unknown(&self.spec);
        tokio::select! {
            () = tokio::time::sleep(backoff(failed.saturating_add(1))) => true,
            () = self.abort.requested(), if !self.state.abort_requested => false,
            // One that would lapse ends no wait.
            () = self.pause.wished(), if self.state.can_pause(&self.spec) => false,
            () = self.force.said(), if unknown => false,
        }
    }

    /// Waits at the gate. False if an abort or a pause was wished meanwhile, while there is a way back.
    async fn enter(&self, step: usize) -> bool {
        let Some(gate) = &self.gate else { return true };
        let entered = gate.enter(&self.spec.steps[step]);
        if self.state.abort_requested || !self.state.can_go_back(&self.spec) {
            entered.await;
            return true;
        }
        tokio::select! {
            biased;
            () = self.abort.requested() => false,
            () = self.pause.wished() => false,
            () = entered => true,
        }
    }

    async fn note_abort(&mut self) -> Result<(), Fault> {
        if self.abort.is_requested() && !self.state.abort_requested {
            self.record(self.abort.event()).await?;
        }
        Ok(())
    }

    /// Takes the wish for a pause, or for its end, if it can be granted. Else it lapses: whoever wished it sees
    /// that in how the job stands, and nothing is remembered that would stop it later.
    async fn note_pause(&mut self) -> Result<(), Fault> {
        match self.pause.take() {
            Some(PauseWish::Begin { by }) if self.state.can_pause(&self.spec) => {
                self.record(Event::PauseRequested { by }).await?;
                self.cut_off.cancel();
            }
            Some(PauseWish::End { by }) if self.state.pause_requested => {
                self.record(Event::Resumed { by }).await?;
                self.cut_off = self.abort.child_token();
            }
            Some(wish) => tracing::info!(job = %self.spec.job, "a wish has lapsed: {wish:?}"),
            None => {}
        }
        Ok(())
    }

    /// Takes a person's word for the commit, while its outcome is open.
    async fn note_force(&mut self) -> Result<(), Fault> {
        let open = self.spec.commit_point().filter(|_| self.state.commit_unknown(&self.spec));
        match open.and_then(|step| self.force.event(step)) {
            Some(event) => self.record(event).await,
            None => Ok(()),
        }
    }

    /// As [`Self::attend`], but none if a person vouches for the commit while its outcome is open: then
    /// there is nothing to wait for. An answer that is there counts more than that word.
    async fn heed<T>(&mut self, work: impl Future<Output = T>) -> Result<Option<T>, Fault> {
        if !self.state.commit_unknown(&self.spec) {
            return self.attend(work).await.map(Some);
        }
        let force = self.force.clone();
        tokio::select! {
            biased;
            done = self.attend(work) => done.map(Some),
            () = force.said() => Ok(None),
        }
    }

    /// Waits for `work`. An abort or a pause that is wished meanwhile is journalled at once, however long
    /// the work goes on.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Fault> {
        tokio::pin!(work);
        let (abort, pause) = (self.abort.clone(), self.pause.clone());
        loop {
            tokio::select! {
                biased;
                () = abort.requested(), if !self.state.abort_requested => self.note_abort().await?,
                () = pause.wished() => self.note_pause().await?,
                done = &mut work => return Ok(done),
            }
        }
    }

    /// What cancels the step at hand: an abort or a pause, while there is a way back. The commit and what
    /// comes after it are never cancelled: their outcome must become known.
    fn cancel(&self) -> CancellationToken {
        if self.state.can_go_back(&self.spec) {
            self.cut_off.clone()
        } else {
            CancellationToken::new()
        }
    }

    /// Journals an event, then takes it.
    async fn record(&mut self, event: Event) -> Result<(), Fault> {
        // On a copy first: what cannot follow must not reach the journal, which dates it.
        let illegal = |e: IllegalEvent| Fault::bug(e.to_string());
        let mut entry = Entry { at_ms: 0, event };
        self.state.clone().apply(&self.spec, &entry).map_err(illegal)?;
        let event = &entry.event;
        let failed = |e| Fault::transient("the journal could not be written").caused_by(&e);
        let append = self.journal.append(self.spec.job, event);
        let point = || format!("journal.{}", event.point(&self.spec));
        entry.at_ms = around_async(point, failed, append).await?;
        self.state.apply(&self.spec, &entry).map_err(illegal)?;
        match (&self.gate, &entry.event) {
            (Some(gate), Event::StepDone { step, .. }) => gate.done(&self.spec.steps[*step]),
            (Some(gate), Event::UndoStarted { step, .. }) => gate.undoing(&self.spec.steps[*step]),
            (Some(gate), Event::CommitForced { step, .. }) => gate.forced(&self.spec.steps[*step]),
            (Some(gate), Event::UndoDone { step }) => gate.undone(&self.spec.steps[*step]),
            _ => {}
        }
        // A watcher that is gone does not stop a job.
        let _ = self.told.send(Told::Event(entry)).await;
        Ok(())
    }

    fn context(&self, step: usize, attempt: u32, cancel: CancellationToken) -> Context {
        let receipts: HashMap<_, _> = self
            .spec
            .steps
            .iter()
            .zip(&self.state.steps)
            .filter_map(|(spec, state)| match state {
                StepState::Done { receipt } => Some((spec.name.clone(), receipt.clone())),
                _ => None,
            })
            .collect();
        let (progress, mut seen) = watch::channel(Progress::default());
        let told = self.told.clone();
        tokio::spawn(async move {
            // Ends with the context, which holds the only sender.
            while seen.changed().await.is_ok() {
                let progress = seen.borrow_and_update().clone();
                if told.send(Told::Progress { step, progress }).await.is_err() {
                    return;
                }
            }
        });
        Context {
            job: self.spec.job,
            spec: self.spec.steps[step].clone(),
            attempt,
            receipts,
            void: self.state.void(&self.spec).cloned(),
            cancel,
            abort: self.abort.child_token(),
            progress,
        }
    }

    /// An attempt was under way when the controller died: look, and go on if it is not done. If the
    /// job is to be undone or paused there is no need to look: the same attempt is sent again and cancelled,
    /// and says itself whether it was done.
    async fn resume(&mut self, step: usize, attempt: u32) -> Result<(), Fault> {
        let cancel = self.cancel();
        let context = self.context(step, attempt, cancel.clone());
        let kind = self.steps[&context.spec.kind].clone();
        let look = async {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Ok(Observation::NotDone),
                observed = within(&context, kind.observe(&context)) => observed,
            }
        };
        let Some(looked) = self.heed(look).await? else { return Ok(()) };
        match looked {
            Ok(Observation::Done(receipt)) => self.settle(step, attempt, Ok(receipt)).await,
            Ok(Observation::NotDone) => self.execute(step, attempt).await,
            Err(fault) => self.record(Event::StepFailed { step, fault }).await,
        }
    }

    async fn execute(&mut self, step: usize, attempt: u32) -> Result<(), Fault> {
        let context = self.context(step, attempt, self.cancel());
        let kind = self.steps[&context.spec.kind].clone();
        match self.heed(within(&context, kind.execute(&context))).await? {
            Some(outcome) => self.settle(step, attempt, outcome).await,
            None => Ok(()),
        }
    }

    /// Verifies what an attempt brought, and journals it.
    async fn settle(
        &mut self,
        step: usize,
        attempt: u32,
        outcome: Result<serde_json::Value, Fault>,
    ) -> Result<(), Fault> {
        let verified = match outcome {
            Err(fault) => Err(fault),
            Ok(receipt) => {
                let context = self.context(step, attempt, CancellationToken::new());
                let kind = self.steps[&context.spec.kind].clone();
                let verify = within(&context, kind.verify(&context, &receipt));
                self.attend(verify).await?.map(|()| receipt)
            }
        };
        let event = match verified {
            Ok(receipt) => Event::StepDone { step, receipt },
            Err(fault) => {
                tracing::warn!(job = %self.spec.job, step = %self.spec.steps[step].name, attempt, class = %fault.class, "step failed: {fault}");
                Event::StepFailed { step, fault }
            }
        };
        self.record(event).await
    }

    async fn undo(&mut self, step: usize, attempt: u32) -> Result<(), Fault> {
        let context = self.context(step, attempt, CancellationToken::new());
        let kind = self.steps[&context.spec.kind].clone();
        let receipt = self.state.receipt(step).cloned();
        let undo = within(&context, kind.undo(&context, receipt.as_ref()));
        let event = match self.attend(undo).await? {
            Ok(()) => Event::UndoDone { step },
            Err(fault) => {
                tracing::warn!(job = %self.spec.job, step = %self.spec.steps[step].name, attempt, class = %fault.class, "undo failed: {fault}");
                Event::UndoFailed { step, fault }
            }
        };
        self.record(event).await
    }
}

/// Bounds an attempt by the step's time limit. What was not heard in time is unknown: transient.
async fn within<T>(
    context: &Context,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(context.spec.timeout(), work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Fault::new(
            FaultClass::Transient,
            format!(
                "step {} gave no answer within {} s",
                context.spec.name, context.spec.timeout_seconds
            ),
        )),
    }
}
