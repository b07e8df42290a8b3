//! Ferry's file engine: one streaming, incremental pass from a source tree to a target tree over one
//! byte stream, and a comparison of both afterwards.
//!
//! It knows trees, metadata and the stream between two ends. It must not know accounts, grants, TLS,
//! or who asked for the pass.

mod acl;
mod apply;
mod attributes;
mod codec;
mod confine;
mod content;
mod digest;
mod entries;
mod exclusive;
mod guard;
mod halt;
#[cfg(test)]
mod hostile;
mod incoming;
mod links;
mod make;
mod metadata;
mod mirror;
mod names;
mod options;
mod placing;
mod progress;
mod protocol;
mod receive;
mod remove;
mod report;
mod scan;
mod send;
mod session;
mod trouble;
mod verify;
mod walk;
mod window;
mod wire;

pub use options::{IdMap, SourceOptions, TargetOptions};
pub use receive::{receive_pass, verify_target};
pub use report::{
    Bounded, Comparison, Difference, LIST_LIMIT, Note, NoteKind, PassReport, Progress, Refusal,
};
pub use scan::{TreeStats, scan};
pub use send::{send_pass, verify_source};
