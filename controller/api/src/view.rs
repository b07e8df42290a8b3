//! A job as it is shown: plan and events folded into one document, and each event as a sentence.

use ferry_engine::{Entry, Event, JobSpec, JobState, Next, StepState};
use ferry_plan::{Plan, PlannedStep};
use ferry_proto::Fault;
use ferry_proto::approval::Approval;
use ferry_proto::command::{Forced, Progress, Receipt};
use ferry_proto::view::{JobPhase, JobView, Paused, StepPhase, StepView};

use crate::advice::advice;

/// What is known of a running or ended job.
#[derive(Debug, Clone)]
pub struct Folded {
    plan: Plan,
    spec: JobSpec,
    state: JobState,
    view: JobView,
}

impl Folded {
    /// A job of which nothing has happened yet.
    ///
    /// # Errors
    /// If the plan is no job.
    pub fn new(plan: Plan, started_unix_ms: i64) -> Result<Self, Fault> {
        let spec = ferry_steps::job(&plan)?;
        let state = JobState::new(&spec);
        let steps = plan
            .steps
            .iter()
            .map(|s| StepView {
                name: s.name.clone(),
                title: s.title.clone(),
                server: s.server.clone(),
                phase: StepPhase::Waiting,
                attempts: 0,
                started_unix_ms: None,
                ended_unix_ms: None,
                receipt: None,
                fault: None,
                undo_fault: None,
                progress: None,
            })
            .collect();
        let view = JobView {
            job: plan.job,
            account: plan.account.clone(),
            direction: plan.direction,
            source: plan.source.clone(),
            target: plan.target.clone(),
            phase: JobPhase::Running,
            committed: false,
            commit_unknown: false,
            commit_unheard: false,
            forced: None,
            refused: None,
            abort_requested: false,
            paused: None,
            can_pause: false,
            waiting_for: None,
            advice: String::new(),
            started_unix_ms,
            ended_unix_ms: None,
            steps,
        };
        let mut folded = Self { plan, spec, state, view };
        folded.conclude();
        Ok(folded)
    }

    /// The job as the engine runs it.
    pub fn spec(&self) -> &JobSpec {
        &self.spec
    }

    /// The plan that it came from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What its events add up to.
    pub fn state(&self) -> &JobState {
        &self.state
    }

    /// The document.
    pub fn view(&self) -> &JobView {
        &self.view
    }

    /// Takes an event.
    ///
    /// # Errors
    /// If it cannot follow: the journal is damaged.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), Fault> {
        self.state.apply(&self.spec, entry).map_err(|e| {
            Fault::bug(format!("the journal of job {} is damaged", self.plan.job)).caused_by(&e)
        })?;
        let Entry { at_ms, event } = entry;
        if let Some(step) = step_of(event).and_then(|i| self.view.steps.get_mut(i)) {
            show(step, event, *at_ms);
        }
        if let Event::PauseRequested { by } = event {
            self.view.paused = Some(Paused { by: by.clone(), since_unix_ms: *at_ms });
        }
        self.conclude();
        if self.view.phase.has_ended() {
            self.view.ended_unix_ms = Some(*at_ms);
        }
        Ok(())
    }

    /// The store was restored from a backup, and the servers say that the job is over.
    pub fn overtake(&mut self, at_ms: Option<i64>) {
        self.view.phase = JobPhase::Overtaken;
        self.view.ended_unix_ms = at_ms;
        self.view.advice = advice(&self.plan, &self.spec, &self.view);
    }

    /// Takes a word on progress.
    pub fn progress(&mut self, step: usize, progress: Progress) {
        if let Some(step) = self.view.steps.get_mut(step)
            && step.phase == StepPhase::Running
        {
            step.progress = Some(progress);
        }
    }

    /// Whose word the commit rests on, if not the source's.
    fn forced(&self) -> Option<Forced> {
        let receipt = self.state.receipt(self.spec.commit_point()?)?;
        match serde_json::from_value(receipt.clone()) {
            Ok(Receipt::Committed(record)) => record.forced,
            _ => None,
        }
    }

    fn conclude(&mut self) {
        self.view.committed = self.state.committed(&self.spec);
        self.view.forced = self.forced();
        self.view.commit_unknown = self.state.commit_unknown(&self.spec);
        let void = self.state.void(&self.spec).and_then(Fault::final_refusal);
        self.view.refused = void.cloned();
        self.view.abort_requested = self.state.abort_requested;
        self.view.can_pause = self.state.can_pause(&self.spec);
        if !self.state.pause_requested {
            self.view.paused = None;
        }
        self.view.phase = match self.state.next(&self.spec) {
            Next::End(phase) => phase,
            Next::StartUndo { .. } | Next::ResumeUndo { .. } => JobPhase::Undoing,
            Next::Start { .. } | Next::Resume { .. } => JobPhase::Running,
        };
        let stuck = self.view.phase == JobPhase::Stuck;
        for (i, (shown, state)) in self.view.steps.iter_mut().zip(&self.state.steps).enumerate() {
            if self.state.was_cut_off(i) {
                // It has not failed; what it did before is old.
                (shown.phase, shown.fault, shown.receipt) = (StepPhase::Waiting, None, None);
            }
            if matches!(state, StepState::UndoFailed { .. }) {
                // Tried again until the engine gives up.
                shown.phase = if stuck { StepPhase::Stuck } else { StepPhase::Undoing };
            }
        }
        self.view.advice = advice(&self.plan, &self.spec, &self.view);
    }
}

fn step_of(event: &Event) -> Option<usize> {
    match event {
        Event::StepStarted { step, .. }
        | Event::CommitForced { step, .. }
        | Event::StepDone { step, .. }
        | Event::StepFailed { step, .. }
        | Event::UndoStarted { step, .. }
        | Event::UndoDone { step }
        | Event::UndoFailed { step, .. } => Some(*step),
        Event::AbortRequested { .. } | Event::PauseRequested { .. } | Event::Resumed { .. } => None,
    }
}

fn show(step: &mut StepView, event: &Event, at_ms: i64) {
    match event {
        Event::StepStarted { attempt, .. } => {
            step.phase = StepPhase::Running;
            step.attempts = *attempt;
            step.started_unix_ms.get_or_insert(at_ms);
            step.ended_unix_ms = None;
            step.progress = None;
        }
        Event::StepDone { receipt, .. } | Event::CommitForced { receipt, .. } => {
            step.phase = StepPhase::Done;
            step.receipt = serde_json::from_value(receipt.clone()).ok();
            step.fault = None;
            step.progress = None;
            step.ended_unix_ms = Some(at_ms);
        }
        Event::StepFailed { fault, .. } => {
            step.phase = StepPhase::Failed;
            step.fault = Some(fault.clone());
            step.progress = None;
            step.ended_unix_ms = Some(at_ms);
        }
        Event::UndoStarted { .. } => step.phase = StepPhase::Undoing,
        Event::UndoDone { .. } => {
            step.phase = StepPhase::Undone;
            step.undo_fault = None;
            step.ended_unix_ms = Some(at_ms);
        }
        // Its phase depends on whether it is tried again: see `conclude`.
        Event::UndoFailed { fault, .. } => step.undo_fault = Some(fault.clone()),
        Event::AbortRequested { .. } | Event::PauseRequested { .. } | Event::Resumed { .. } => {}
    }
}

/// An event as one sentence.
pub fn sentence(plan: &Plan, event: &Event) -> String {
    let step = |i: &usize| {
        plan.steps
            .get(*i)
            .map_or_else(|| format!("step {i}"), |s| format!("{} on {}", s.name, s.server))
    };
    match event {
        Event::StepStarted { step: i, attempt: 1 } => {
            format!("{}: started{}", step(i), plan.steps.get(*i).map(let_in).unwrap_or_default())
        }
        Event::StepStarted { step: i, attempt } => format!("{}: attempt {attempt}", step(i)),
        Event::StepDone { step: i, receipt } => format!("{}: done{}", step(i), given_up(receipt)),
        Event::StepFailed { step: i, fault } => {
            format!("{}: failed, {}: {fault}", step(i), fault.class)
        }
        Event::AbortRequested { by } => format!("abort requested{}", whose(by)),
        Event::PauseRequested { by } => format!("pause requested{}", whose(by)),
        Event::UndoStarted { step: i, .. } => format!("{}: undo started", step(i)),
        Event::UndoDone { step: i } => format!("{}: undone", step(i)),
        Event::UndoFailed { step: i, fault } => {
            format!("{}: undo failed, {}: {fault}", step(i), fault.class)
        }
        Event::CommitForced { by, .. } => format!(
            "{} opens the account by force, without the word of {}: it is off and isolated, {}",
            plan.target,
            plan.source,
            if by.is_empty() { "as was said".to_owned() } else { format!("says {by}") }
        ),
        Event::Resumed { by } => format!("resumed{}", whose(by)),
    }
}

/// What a step lets in although an account may not have it, and on whose word.
fn let_in(step: &PlannedStep) -> String {
    let word = |approval: &Approval| format!("{} (approved by {})", approval.what, approval.by);
    let all: Vec<_> = step.approvals.iter().map(word).collect();
    if all.is_empty() { String::new() } else { format!(", letting in {}", all.join("; ")) }
}

/// What a source that was lost had done with the account: nothing else says so.
fn given_up(receipt: &serde_json::Value) -> String {
    match serde_json::from_value(receipt.clone()) {
        Ok(receipt @ Receipt::GivenUp { .. }) => format!(": {}", receipt.in_words()),
        _ => String::new(),
    }
}

fn whose(by: &str) -> String {
    if by.is_empty() { String::new() } else { format!(" by {by}") }
}
