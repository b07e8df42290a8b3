//! Ferry's file engine: one streaming, incremental pass from a source tree to a target tree over one
//! byte stream, and a comparison of both afterwards.
//!
//! It knows trees, metadata and the stream between two ends. It must not know accounts, grants, TLS,
//! or who asked for the pass.
//!
//! At the source [`send_pass`] and [`verify_source`] run `send`: a walker (`walk`) streams sorted
//! listings, a second thread reads the contents that are wanted (`content`), and a `window` bounds what
//! is under way. At the target [`receive_pass`] and [`verify_target`] run `receive`: a `mirror` follows
//! the listings through the target's own tree and tells a visitor what is on either side; the visitor
//! `apply` makes it equal (with `incoming`, `placing`, `make`, `remove`, `links`), the visitor `verify`
//! compares. What an account may have is decided in `guard`; every access goes through `confine`; all
//! that crosses the stream is in `protocol` and `entries`, and `wire` pumps it.

mod acl;
mod apply;
mod attributes;
mod codec;
mod confine;
mod content;
mod digest;
mod directories;
mod entries;
mod exclusive;
#[doc(hidden)]
pub mod fuzzing;
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
mod stamps;
mod trouble;
mod verify;
mod walk;
mod window;
mod wire;

pub use directories::Directories;
pub use options::{IdMap, SourceOptions, TargetOptions};
pub use receive::{receive_pass, verify_target};
pub use report::{
    Bounded, Comparison, Difference, LIST_LIMIT, Note, NoteKind, PassReport, Progress, Refusal,
};
pub use scan::{Changed, TreeStats, changed_since, scan, survey};
pub use send::{send_pass, verify_source};
pub use stamps::stamps_every_write;
