//! What operators call: planning, jobs, servers, accounts, events.
//!
//! * [`operators`]: the gRPC service; the edge where wire types become ours.
//! * [`auth`]: who may call it.
//! * [`planning`]: asks both ends, then plans; `approvals`: what a move lets in, and on whose word.
//! * [`jobs`]: jobs that run, and those that are taken up again after a restart.
//! * [`overtaken`]: which jobs of a restored store are not under way any more.
//! * [`places`]: how many moves there may be at one server at once; the others wait.
//! * [`view`]: a job as it is shown; [`advice`]: what a person should know of it.

pub mod advice;
mod approvals;
pub mod auth;
pub mod jobs;
pub mod operators;
pub mod overtaken;
pub mod places;
pub mod planning;
pub mod view;

pub use auth::OperatorToken;
pub use jobs::Jobs;
pub use operators::OperatorEndpoint;
pub use places::MoveLimits;
