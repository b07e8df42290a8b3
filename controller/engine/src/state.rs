//! The pure heart: what a job's events mean, and what follows from them. No clock, no disk, no
//! await. The runner and recovery call the same two functions.

use ferry_proto::view::JobPhase;
use ferry_proto::{Fault, FaultClass};
use serde::{Deserialize, Serialize};

use crate::patience::Failures;
use crate::spec::JobSpec;

/// How often a step is tried before the commit point.
pub const ATTEMPTS_BEFORE_COMMIT: u32 = 5;

/// Something that happened. Journalled before it takes effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The step is about to be executed.
    StepStarted {
        /// Index of the step.
        step: usize,
        /// 1 for the first try.
        attempt: u32,
    },
    /// The step was executed and verified.
    StepDone {
        /// Index of the step.
        step: usize,
        /// The evidence.
        receipt: serde_json::Value,
    },
    /// An attempt failed.
    StepFailed {
        /// Index of the step.
        step: usize,
        /// Why.
        fault: Fault,
    },
    /// Somebody wants the job undone.
    AbortRequested {
        /// Who, as far as known.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        by: String,
    },
    /// Somebody wants the job to stop for now.
    PauseRequested {
        /// Who, as far as known.
        by: String,
    },
    /// The step is about to be undone.
    UndoStarted {
        /// Index of the step.
        step: usize,
        /// 1 for the first try.
        attempt: u32,
    },
    /// The step left nothing behind.
    UndoDone {
        /// Index of the step.
        step: usize,
    },
    /// An attempt to undo failed.
    UndoFailed {
        /// Index of the step.
        step: usize,
        /// Why.
        fault: Fault,
    },
    /// A person vouched for a commit that nobody can be asked about.
    CommitForced {
        /// Index of the commit.
        step: usize,
        /// Who, as far as known.
        by: String,
        /// What stands for the evidence.
        receipt: serde_json::Value,
    },
    /// A person looked at a stuck job and wants it tried again, or wants a paused one to go on.
    Resumed {
        /// Who, as far as known.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        by: String,
    },
}

impl Event {
    /// What fault tests know its journalling by: what happened, and to which step.
    pub(crate) fn point(&self, spec: &JobSpec) -> String {
        let (what, step) = match self {
            Self::StepStarted { step, .. } => ("step_started", step),
            Self::StepDone { step, .. } => ("step_done", step),
            Self::StepFailed { step, .. } => ("step_failed", step),
            Self::UndoStarted { step, .. } => ("undo_started", step),
            Self::UndoDone { step } => ("undo_done", step),
            Self::UndoFailed { step, .. } => ("undo_failed", step),
            Self::CommitForced { step, .. } => ("commit_forced", step),
            Self::AbortRequested { .. } => return "abort_requested".to_owned(),
            Self::PauseRequested { .. } => return "pause_requested".to_owned(),
            Self::Resumed { .. } => return "resumed".to_owned(),
        };
        format!("{what}.{}", spec.steps.get(*step).map_or("unknown", |s| &s.name))
    }
}

/// An event as the journal has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// When it was journalled, Unix ms.
    pub at_ms: i64,
    /// What happened.
    pub event: Event,
}

/// Where a step is.
#[derive(Debug, Clone, PartialEq)]
pub enum StepState {
    /// Not yet.
    Waiting,
    /// An attempt is under way, or was when the controller died.
    Running {
        /// Which.
        attempt: u32,
    },
    /// An attempt failed; another may follow.
    Failed {
        /// Which.
        attempt: u32,
        /// Why.
        fault: Fault,
    },
    /// Executed and verified.
    Done {
        /// The evidence.
        receipt: serde_json::Value,
    },
    /// Being undone.
    Undoing {
        /// Which attempt.
        attempt: u32,
    },
    /// An attempt to undo failed; another may follow.
    UndoFailed {
        /// Which.
        attempt: u32,
        /// Why.
        fault: Fault,
    },
    /// Undone.
    Undone,
}

/// The state of a job: what its events add up to.
#[derive(Debug, Clone, PartialEq)]
pub struct JobState {
    /// One per step.
    pub steps: Vec<StepState>,
    /// The evidence of each step that was done, kept while it is undone.
    receipts: Vec<Option<serde_json::Value>>,
    /// Whether somebody asked for it to be undone.
    pub abort_requested: bool,
    /// Whether somebody wants it to stop for now, and nobody that it go on or be undone.
    pub pause_requested: bool,
    /// Which attempts a pause has cut off, by step.
    cut_off: Vec<CutOff>,
    /// Whether a pause has stopped it, and no step was started since.
    stopped: bool,
    /// Whether a person vouched for the commit.
    pub forced: bool,
    /// The last step that refused for good, and how.
    refused_for_good: Option<(usize, Fault)>,
    /// Of what is being done now.
    failures: Failures,
}

/// Attempts at a step that a pause has cut off: that they ended is no failure. One whose work it has made old
/// counts as such.
#[derive(Debug, Clone, Default, PartialEq)]
struct CutOff {
    /// How many attempts there were.
    begun: u32,
    /// How many have ended so.
    ended: u32,
    /// Whether the last one was told to stop.
    last: bool,
}

/// An event that cannot follow from the state: the journal is damaged, or the engine is wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("event {event} cannot follow: step {step} is {state}")]
pub struct IllegalEvent {
    /// The event.
    pub event: String,
    /// The step.
    pub step: usize,
    /// Its state.
    pub state: String,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Execute the step: this is a new attempt, to be journalled first.
    Start {
        /// Index of the step.
        step: usize,
        /// The attempt.
        attempt: u32,
    },
    /// An attempt was under way: observe, then go on with the same attempt.
    Resume {
        /// Index of the step.
        step: usize,
        /// The attempt.
        attempt: u32,
    },
    /// Undo the step: a new attempt.
    StartUndo {
        /// Index of the step.
        step: usize,
        /// The attempt.
        attempt: u32,
    },
    /// Undo was under way: do it again.
    ResumeUndo {
        /// Index of the step.
        step: usize,
        /// The attempt.
        attempt: u32,
    },
    /// Nothing more by itself.
    End(JobPhase),
}

impl JobState {
    /// A job of which nothing has happened yet.
    pub fn new(spec: &JobSpec) -> Self {
        Self {
            steps: vec![StepState::Waiting; spec.steps.len()],
            receipts: vec![None; spec.steps.len()],
            abort_requested: false,
            pause_requested: false,
            cut_off: vec![CutOff::default(); spec.steps.len()],
            stopped: false,
            forced: false,
            refused_for_good: None,
            failures: Failures::default(),
        }
    }

    /// The state after all of `entries`.
    ///
    /// # Errors
    /// The first event that cannot follow.
    pub fn replay<'a>(
        spec: &JobSpec,
        entries: impl IntoIterator<Item = &'a Entry>,
    ) -> Result<Self, IllegalEvent> {
        let mut state = Self::new(spec);
        for entry in entries {
            state.apply(spec, entry)?;
        }
        Ok(state)
    }

    /// Takes one event.
    ///
    /// # Errors
    /// If the event cannot follow from this state; the state is then unchanged.
    pub fn apply(&mut self, spec: &JobSpec, entry: &Entry) -> Result<(), IllegalEvent> {
        if !self.take_wish(spec, entry) {
            self.take_outcome(spec, entry)?;
        }
        self.note_stop(spec, &entry.event);
        Ok(())
    }

    /// Takes what became of a step; a wish that comes here cannot be granted.
    fn take_outcome(&mut self, spec: &JobSpec, entry: &Entry) -> Result<(), IllegalEvent> {
        let event = &entry.event;
        use StepState as S;
        let (step, next) = match event {
            Event::AbortRequested { .. } | Event::PauseRequested { .. } | Event::Resumed { .. } => {
                (self.at_hand(), None)
            }
            Event::StepStarted { step, attempt } => (*step, self.started(*step, *attempt)),
            Event::StepDone { step, receipt } => (
                *step,
                match self.steps.get(*step) {
                    Some(S::Running { .. }) => Some(S::Done { receipt: receipt.clone() }),
                    _ => None,
                },
            ),
            Event::CommitForced { step, receipt, .. } => {
                let commit = self.steps.get(*step).filter(|commit| is_unknown(commit));
                (*step, commit.map(|_| S::Done { receipt: receipt.clone() }))
            }
            Event::StepFailed { step, fault } => (
                *step,
                match self.steps.get(*step) {
                    Some(S::Running { attempt }) => {
                        Some(S::Failed { attempt: *attempt, fault: fault.clone() })
                    }
                    _ => None,
                },
            ),
            Event::UndoStarted { step, attempt } => (
                *step,
                match self.steps.get(*step) {
                    None | Some(S::Waiting | S::Undone) => None,
                    Some(_) => Some(S::Undoing { attempt: *attempt }),
                },
            ),
            Event::UndoDone { step } => (
                *step,
                match self.steps.get(*step) {
                    Some(S::Undoing { .. }) => Some(S::Undone),
                    _ => None,
                },
            ),
            Event::UndoFailed { step, fault } => (
                *step,
                match self.steps.get(*step) {
                    Some(S::Undoing { attempt }) => {
                        Some(S::UndoFailed { attempt: *attempt, fault: fault.clone() })
                    }
                    _ => None,
                },
            ),
        };
        match (next, self.steps.get_mut(step)) {
            (Some(next), Some(slot)) => {
                if let S::Done { receipt } = &next {
                    self.receipts[step] = Some(receipt.clone());
                }
                if let S::Failed { fault, .. } = &next
                    && fault.final_refusal().is_some()
                {
                    self.refused_for_good = Some((step, fault.clone()));
                }
                self.forced |= matches!(event, Event::CommitForced { .. });
                *slot = next;
                self.cut_off[step].take(event);
                self.count(spec, entry);
                Ok(())
            }
            (_, slot) => Err(IllegalEvent {
                event: format!("{event:?}"),
                step,
                state: slot.map_or_else(|| "not in the plan".to_owned(), |s| format!("{s:?}")),
            }),
        }
    }

    /// Takes what somebody wishes of the job, if it can be granted; whether that was it.
    fn take_wish(&mut self, spec: &JobSpec, entry: &Entry) -> bool {
        match &entry.event {
            Event::AbortRequested { .. } => {
                (self.abort_requested, self.pause_requested) = (true, false);
            }
            Event::PauseRequested { .. } if self.can_pause(spec) => {
                self.pause_requested = true;
                for (cut_off, step) in self.cut_off.iter_mut().zip(&self.steps) {
                    cut_off.last |= matches!(step, StepState::Running { .. });
                }
            }
            Event::Resumed { .. } => {
                if std::mem::take(&mut self.pause_requested) && self.stopped {
                    self.redo(spec);
                }
                self.count(spec, entry);
            }
            _ => return false,
        }
        true
    }

    /// What a pause has made old is to be done again: it stands as if that had cut it off.
    fn redo(&mut self, spec: &JobSpec) {
        for ((step, state), cut_off) in
            spec.steps.iter().zip(&mut self.steps).zip(&mut self.cut_off)
        {
            if !(step.again_after_pause && matches!(state, StepState::Done { .. })) {
                continue;
            }
            let fault = Fault::new(FaultClass::Cancelled, "it was done before the pause");
            *state = StepState::Failed { attempt: cut_off.begun, fault };
            (cut_off.ended, cut_off.last) = (cut_off.begun, true);
        }
    }

    fn note_stop(&mut self, spec: &JobSpec, event: &Event) {
        self.stopped |= self.next(spec) == Next::End(JobPhase::Paused);
        self.stopped &= !matches!(event, Event::StepStarted { .. });
    }

    /// Counts failures of what is being done now.
    fn count(&mut self, spec: &JobSpec, entry: &Entry) {
        match &entry.event {
            Event::StepFailed { step, fault } | Event::UndoFailed { step, fault } => {
                if let Some(step) = spec.steps.get(*step) {
                    self.failures.add(step, fault.class, entry.at_ms);
                }
            }
            Event::StepDone { .. }
            | Event::CommitForced { .. }
            | Event::UndoDone { .. }
            | Event::UndoStarted { attempt: 1, .. }
            | Event::Resumed { .. } => self.failures = Failures::default(),
            Event::StepStarted { .. }
            | Event::UndoStarted { .. }
            | Event::AbortRequested { .. }
            | Event::PauseRequested { .. } => {}
        }
    }

    /// The state of a step that starts, if it may: those before it must be done, and nobody wants a pause.
    fn started(&self, step: usize, attempt: u32) -> Option<StepState> {
        let before_done = self.steps.iter().take(step).all(|s| matches!(s, StepState::Done { .. }));
        match self.steps.get(step)? {
            StepState::Waiting | StepState::Failed { .. }
                if before_done && !self.pause_requested =>
            {
                Some(StepState::Running { attempt })
            }
            _ => None,
        }
    }

    /// The step at hand, going forward: the first that is not done.
    fn at_hand(&self) -> usize {
        let not_done = |s: &StepState| !matches!(s, StepState::Done { .. });
        self.steps.iter().position(not_done).unwrap_or(self.steps.len())
    }

    /// How many attempts at the step before this one have failed by themselves.
    pub(crate) fn failed_before(&self, step: usize, attempt: u32) -> u32 {
        let cut_off = self.cut_off.get(step).map_or(0, |cut_off| cut_off.ended);
        attempt.saturating_sub(1).saturating_sub(cut_off)
    }

    /// Whether the attempt at `step` that ended last was cut off by a pause, and has stopped for that.
    pub fn was_cut_off(&self, step: usize) -> bool {
        let is_cancelled = |state: &StepState| matches!(state, StepState::Failed { fault, .. } if fault.class == FaultClass::Cancelled);
        self.cut_off.get(step).is_some_and(|cut_off| cut_off.last)
            && self.steps.get(step).is_some_and(is_cancelled)
    }

    /// Whether a pause has stopped the job, and no step was started since, whoever let it go on.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Whether the job can be told to stop for now: it goes forward, and no step has begun but such as may
    /// wait for days, done or not.
    pub fn can_pause(&self, spec: &JobSpec) -> bool {
        let goes_on = matches!(self.next(spec), Next::Start { .. } | Next::Resume { .. });
        let begun = |state: &StepState| *state != StepState::Waiting;
        let first = spec.steps.first().is_some_and(|s| s.pausable);
        let mut steps = spec.steps.iter().zip(&self.steps);
        goes_on
            && !(self.abort_requested || self.pause_requested)
            && self.can_go_back(spec)
            && first
            && steps.all(|(s, state)| s.pausable || !begun(state))
    }

    /// The evidence of the step at `step`, if it was done.
    pub fn receipt(&self, step: usize) -> Option<&serde_json::Value> {
        self.receipts.get(step)?.as_ref()
    }

    /// Whether the point of no return is known to be passed.
    pub fn committed(&self, spec: &JobSpec) -> bool {
        let made = spec.commit_point().is_some_and(|at| self.receipt(at).is_some());
        made && self.void(spec).is_none()
    }

    /// Why the commit that was made is void, if it is: a step after it that may say so has refused for
    /// good.
    pub fn void(&self, spec: &JobSpec) -> Option<&Fault> {
        let (step, fault) = self.refused_for_good.as_ref()?;
        let after_commit = spec.commit_point().is_some_and(|at| at < *step);
        (after_commit && spec.steps.get(*step)?.may_void_commit).then_some(fault)
    }

    /// Whether the outcome of the commit is open: it was started and neither done nor refused.
    pub fn commit_unknown(&self, spec: &JobSpec) -> bool {
        spec.commit_point().and_then(|at| self.steps.get(at)).is_some_and(is_unknown)
    }

    /// Whether what was done can still be undone.
    pub fn can_go_back(&self, spec: &JobSpec) -> bool {
        let mut steps = spec.steps.iter().zip(&self.steps);
        let no_return = steps.any(|(s, state)| s.forward_only && *state != StepState::Waiting);
        !(no_return || self.committed(spec) || self.commit_unknown(spec))
    }

    /// What follows from this state.
    pub fn next(&self, spec: &JobSpec) -> Next {
        let undoing = self.steps.iter().any(|s| {
            matches!(
                s,
                StepState::Undoing { .. } | StepState::UndoFailed { .. } | StepState::Undone
            )
        });
        if undoing {
            return self.next_undo();
        }
        let Some((step, state)) =
            self.steps.iter().enumerate().find(|(_, s)| !matches!(s, StepState::Done { .. }))
        else {
            return Next::End(JobPhase::Done);
        };
        match state {
            StepState::Running { attempt } => Next::Resume { step, attempt: *attempt },
            StepState::Waiting | StepState::Failed { .. } if self.pause_requested => {
                Next::End(JobPhase::Paused)
            }
            StepState::Waiting if self.abort_requested && self.can_go_back(spec) => {
                self.next_undo()
            }
            StepState::Waiting => Next::Start { step, attempt: 1 },
            StepState::Failed { attempt, fault } => {
                self.after_failure(spec, step, *attempt, fault.class)
            }
            // Excluded above: not undoing and not done.
            _ => Next::End(JobPhase::Stuck),
        }
    }

    /// What follows when an attempt failed.
    fn after_failure(&self, spec: &JobSpec, step: usize, attempt: u32, class: FaultClass) -> Next {
        let again = Next::Start { step, attempt: attempt.saturating_add(1) };
        if self.can_go_back(spec) {
            let failed = self.failed_before(step, attempt.saturating_add(1));
            return match class {
                _ if self.abort_requested => self.next_undo(),
                // Whatever it says: nobody let it come to its own end.
                _ if self.cut_off[step].last => again,
                FaultClass::Transient if failed < ATTEMPTS_BEFORE_COMMIT => again,
                FaultClass::Transient
                | FaultClass::Precondition
                | FaultClass::Fenced
                | FaultClass::Cancelled
                | FaultClass::Permanent
                | FaultClass::Bug => self.next_undo(),
            };
        }
        let ended = if self.commit_unknown(spec) {
            self.failures.end_doubt(&spec.steps[step])
        } else {
            self.failures.end_step()
        };
        if ended { Next::End(JobPhase::Stuck) } else { again }
    }

    /// The next step to undo: the last one that was started and is not undone yet.
    fn next_undo(&self) -> Next {
        let started = self
            .steps
            .iter()
            .enumerate()
            .rev()
            .find(|(_, s)| !matches!(s, StepState::Waiting | StepState::Undone));
        match started {
            None => Next::End(JobPhase::Undone),
            Some((step, StepState::Undoing { attempt })) => {
                Next::ResumeUndo { step, attempt: *attempt }
            }
            Some((step, StepState::UndoFailed { attempt, .. })) => {
                if self.failures.end_undo() {
                    Next::End(JobPhase::Stuck)
                } else {
                    Next::StartUndo { step, attempt: attempt.saturating_add(1) }
                }
            }
            Some((step, _)) => Next::StartUndo { step, attempt: 1 },
        }
    }
}

impl CutOff {
    fn take(&mut self, event: &Event) {
        match event {
            Event::StepFailed { .. } if self.last => self.ended = self.ended.saturating_add(1),
            Event::StepStarted { attempt, .. } => (self.begun, self.last) = (*attempt, false),
            Event::UndoStarted { .. } => *self = Self::default(),
            _ => {}
        }
    }
}

/// Whether a commit that stands so was begun, and neither made nor refused as far as anybody knows.
fn is_unknown(commit: &StepState) -> bool {
    match commit {
        StepState::Running { .. } => true,
        StepState::Failed { fault, .. } => !is_refusal(fault.class),
        _ => false,
    }
}

/// Whether a failed commit is surely not committed. Only the source's own word that epoch, deadline
/// or state forbid it is a refusal. Everything else, a lost connection, a ledger that could not be
/// reread, a receipt that cannot be read, may hide a commit: it is asked for again.
fn is_refusal(class: FaultClass) -> bool {
    match class {
        FaultClass::Fenced => true,
        FaultClass::Transient
        | FaultClass::Precondition
        | FaultClass::Cancelled
        | FaultClass::Permanent
        | FaultClass::Bug => false,
    }
}
