//! How long what fails is tried before a person is called. Counted is the time in which it was tried, by
//! the journal's dates: so it holds across restarts of the controller. How long an attempt takes, which may be
//! as long as the step's limit if nobody answers, changes nothing of it; neither does the time in
//! which nobody tried, because no controller ran or the job waited at its gate.

use std::time::Duration;

use ferry_proto::FaultClass;

use crate::spec::StepSpec;

/// How long a step that has no way back, or an undo, is tried while its faults are transient.
pub const UNTIL_STUCK: Duration = Duration::from_secs(12 * 3600);
/// How often a step that has no way back is tried although its faults are not transient: they say that
/// trying again cannot help by itself.
pub const REFUSALS_UNTIL_STUCK: u32 = 3;
/// How long a source that does not say whether it committed is asked again, at least, although its
/// faults are not transient.
pub const DOUBT_UNTIL_STUCK: Duration = Duration::from_secs(5 * 60);
/// The longest pause between two attempts.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How what is done now has failed, since it began or a person resumed the job.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Failures {
    /// When it failed last, Unix ms.
    last_ms: Option<i64>,
    /// How long it was tried since it first failed.
    tried: Duration,
    /// Failures whose class says that trying again cannot help by itself.
    refused: u32,
    /// How long it was tried, since the first of them, to no other answer than such.
    doubted: Duration,
}

impl Failures {
    /// Another attempt at `step` has failed.
    pub(crate) fn add(&mut self, step: &StepSpec, class: FaultClass, at_ms: i64) {
        let since = self.last_ms.map_or(Duration::ZERO, |last| between(step, last, at_ms));
        self.last_ms = Some(at_ms);
        self.tried += since;
        if class == FaultClass::Transient {
            return;
        }
        if self.refused > 0 {
            self.doubted += since;
        }
        self.refused = self.refused.saturating_add(1);
    }

    /// Whether a step that has no way back is not tried any more.
    pub(crate) fn end_step(&self) -> bool {
        self.tried >= UNTIL_STUCK || self.refused >= REFUSALS_UNTIL_STUCK
    }

    /// Whether the source is not asked any more what became of `commit`. An attempt at that lasts as long as
    /// the fence may: after its deadline the source refuses for sure, so it is asked beyond that.
    pub(crate) fn end_doubt(&self, commit: &StepSpec) -> bool {
        self.tried >= UNTIL_STUCK || self.doubted > commit.timeout().max(DOUBT_UNTIL_STUCK)
    }

    /// Whether an undo is not tried any more.
    pub(crate) fn end_undo(&self) -> bool {
        self.tried >= UNTIL_STUCK || self.refused > 0
    }
}

/// How long a step was tried between two failures. An attempt that a restart cut off is looked at and then
/// gone on with, each within the step's limit. What is longer than that, and a pause, was not trying: no
/// controller ran, the job waited at its gate, or the clock was set.
fn between(step: &StepSpec, last_ms: i64, at_ms: i64) -> Duration {
    let passed = u64::try_from(at_ms.saturating_sub(last_ms)).unwrap_or(0);
    Duration::from_millis(passed).min(2 * step.timeout() + LONGEST_PAUSE)
}
