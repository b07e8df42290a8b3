//! Pure planning: what both ends said and the policy go in, a plan comes out. No clock, no disk,
//! no await. The plan is data: it is shown, stored, compared and dry-run.
//!
//! * [`forecast`]: how long it will take.
//! * [`preflight`]: what stands in the way.
//! * [`plan`]: the steps.

pub mod forecast;
pub mod plan;
pub mod preflight;

pub use forecast::{Forecast, Policy};
pub use plan::{Heard, Inputs, Plan, PlannedDatabase, PlannedStep, finalize, plan};
