//! A job as it is shown: plan and events folded into one document, and each event as a sentence.

use ferry_engine::{Event, JobSpec, JobState, Next};
use ferry_plan::Plan;
use ferry_proto::Fault;
use ferry_proto::command::Progress;
use ferry_proto::view::{JobPhase, JobView, StepPhase, StepView};

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

    /// The document.
    pub fn view(&self) -> &JobView {
        &self.view
    }

    /// Takes an event that happened at `at_ms`.
    ///
    /// # Errors
    /// If it cannot follow: the journal is damaged.
    pub fn apply(&mut self, event: &Event, at_ms: i64) -> Result<(), Fault> {
        self.state.apply(event).map_err(|e| {
            Fault::bug(format!("the journal of job {} is damaged", self.plan.job)).caused_by(&e)
        })?;
        if let Some(step) = step_of(event).and_then(|i| self.view.steps.get_mut(i)) {
            show(step, event, at_ms);
        }
        self.conclude();
        if self.view.phase.has_ended() {
            self.view.ended_unix_ms = Some(at_ms);
        }
        Ok(())
    }

    /// Takes a word on progress.
    pub fn progress(&mut self, step: usize, progress: Progress) {
        if let Some(step) = self.view.steps.get_mut(step)
            && step.phase == StepPhase::Running
        {
            step.progress = Some(progress);
        }
    }

    fn conclude(&mut self) {
        self.view.committed = self.state.committed(&self.spec);
        self.view.phase = match self.state.next(&self.spec) {
            Next::End(phase) => phase,
            Next::StartUndo { .. } | Next::ResumeUndo { .. } => JobPhase::Undoing,
            Next::Start { .. } | Next::Resume { .. } => JobPhase::Running,
        };
        self.view.advice = self.advice();
    }

    /// Who serves the account, what is safe, what to do next.
    fn advice(&self) -> String {
        let Plan { account, source, target, .. } = &self.plan;
        match (self.view.phase, self.view.committed) {
            _ if self.spec.commit_point().is_none() => match self.view.phase {
                JobPhase::Stuck | JobPhase::Undone => {
                    "Nothing else was changed; see the step's fault, then try again.".to_owned()
                }
                _ => String::new(),
            },
            (JobPhase::Done, _) => format!(
                "{target} serves account {account}. The copy on {source} is kept, closed, so that `ferry rollback {account}` can return; `ferry finalize {account}` ends that."
            ),
            (JobPhase::Undone, _) => {
                format!("{source} serves account {account}; nothing is left of the move.")
            }
            (JobPhase::Stuck, true) => format!(
                "The account has moved to {target}, but a step after the commit failed for good. Its data is whole there. See the step's fault and docs/what-if/stuck-after-commit.md; then `ferry status {account}`."
            ),
            (JobPhase::Stuck, false) => format!(
                "Account {account} is with {source}: the fence ends by itself at its deadline. Something of the move could not be undone: see the step's fault and docs/what-if/stuck-undo.md."
            ),
            (JobPhase::Undoing, _) => {
                format!("{source} keeps account {account}; the move is being undone.")
            }
            (JobPhase::Running, true) => format!("The account has moved to {target}."),
            (JobPhase::Running, false) => {
                format!(
                    "Until the commit the account stays with {source}; `ferry abort {account}` undoes the move."
                )
            }
        }
    }
}

fn step_of(event: &Event) -> Option<usize> {
    match event {
        Event::StepStarted { step, .. }
        | Event::StepDone { step, .. }
        | Event::StepFailed { step, .. }
        | Event::UndoStarted { step, .. }
        | Event::UndoDone { step }
        | Event::UndoFailed { step, .. } => Some(*step),
        Event::AbortRequested | Event::Resumed => None,
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
        Event::StepDone { receipt, .. } => {
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
            step.ended_unix_ms = Some(at_ms);
        }
        Event::UndoFailed { fault, .. } => {
            step.phase = StepPhase::Stuck;
            step.fault = Some(fault.clone());
        }
        Event::AbortRequested | Event::Resumed => {}
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
        Event::StepStarted { step: i, attempt: 1 } => format!("{}: started", step(i)),
        Event::StepStarted { step: i, attempt } => format!("{}: attempt {attempt}", step(i)),
        Event::StepDone { step: i, .. } => format!("{}: done", step(i)),
        Event::StepFailed { step: i, fault } => {
            format!("{}: failed, {}: {fault}", step(i), fault.class)
        }
        Event::AbortRequested => "abort requested".to_owned(),
        Event::UndoStarted { step: i, .. } => format!("{}: undo started", step(i)),
        Event::UndoDone { step: i } => format!("{}: undone", step(i)),
        Event::UndoFailed { step: i, fault } => {
            format!("{}: undo failed, {}: {fault}", step(i), fault.class)
        }
        Event::Resumed => "resumed by a person".to_owned(),
    }
}
