//! The durable step runner. It knows that a job is a row of steps, each with observe, execute,
//! verify and undo, and that one of them may be the point of no return. It must not know what the
//! steps do.
//!
//! * [`spec`]: the job as data.
//! * [`state`]: a pure function (state, event) -> state and what to do next. Recovery replays it.
//! * [`patience`]: how long what fails is tried.
//! * [`step`]: what a step offers, and where events are kept.
//! * [`wish`]: what people wish of a job while it runs.
//! * [`gate`]: who lets a job go on to its next step.
//! * [`runner`]: the loop that joins them.

pub mod gate;
pub mod patience;
pub mod runner;
pub mod spec;
pub mod state;
pub mod step;
pub mod wish;

pub use gate::Gate;
pub use runner::{Runner, Told};
pub use spec::{JobSpec, StepSpec};
pub use state::{Entry, Event, JobState, Next, StepState};
pub use step::{Context, Journal, Observation, Step, Steps};
pub use wish::{Abort, Force, Pause};
