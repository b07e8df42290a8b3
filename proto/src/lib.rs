//! Ferry's contract: what agents, controller and command line agree on. It knows none of them.

pub mod account;
pub mod fault;
pub mod ids;

pub use fault::{Fault, FaultClass};
