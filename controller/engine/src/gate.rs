//! Who lets a job go on to its next step. The engine asks before it starts a step, and says which
//! steps are over; what a gate counts is its own affair.

use async_trait::async_trait;

use crate::spec::StepSpec;

/// Lets a job through, one step after the other.
#[async_trait]
pub trait Gate: Send + Sync {
    /// Returns when the step may be started. Asked again for each attempt, and after a restart for
    /// each attempt that was not under way. May be dropped while it waits.
    async fn enter(&self, step: &StepSpec);

    /// The step is done, and that is journalled.
    fn done(&self, step: &StepSpec);

    /// The step is about to be undone, and that is journalled: the job goes back from here on. Said again for
    /// each attempt.
    fn undoing(&self, step: &StepSpec);

    /// A person vouched for the step, whose agent cannot be asked: it counts as done, and that is journalled.
    fn forced(&self, step: &StepSpec);

    /// Nothing of the step is left, and that is journalled.
    fn undone(&self, step: &StepSpec);
}
