//! Ferry's contract: what agents, controller and command line agree on. It knows none of them.

pub mod account;
pub mod approval;
pub mod artefact;
pub mod channel;
pub mod command;
pub mod fault;
#[doc(hidden)]
pub mod fuzzing;
pub mod grant;
pub mod ids;
pub mod shown;
pub mod view;

/// Types generated from `ferry/v1/*.proto`. They stop at the edge: each side converts them to its
/// own types in one place.
#[allow(missing_docs, clippy::all, clippy::too_many_lines)]
pub mod v1 {
    tonic::include_proto!("ferry.v1");
}

pub use fault::{Fault, FaultClass};
