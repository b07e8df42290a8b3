//! Ferry's file engine: one streaming, incremental pass from a source tree to a target tree over several
//! byte streams, and a comparison of both afterwards.
//!
//! It knows trees, metadata and the streams between two ends. It must not know accounts, grants, TLS,
//! or who asked for the pass.
//!
//! At the source [`send_pass`] and [`verify_source`] run `send`: walkers (`walk`) list directories on the
//! control stream, suppliers (`supply`), one for each data stream, read the contents that are wanted
//! (`content`) or what differs of them (`differing`), and a `window` bounds what is under way. At the target
//! [`receive_pass`] and [`verify_target`] run `receive`: a `mirror` follows the listings through the target's
//! own tree and tells a visitor what is on either side; the visitor `apply` makes it equal (with `incoming`,
//! `mending`, `placing`, `make`, `remove`, `links`), the visitor `verify` compares. What an account may have is
//! decided in `guard`, and what goes beyond that, because it is as it was approved, in `approvals` (`approve` looks at
//! it beforehand); every access goes through `confine`; all that crosses the streams is in `protocol`, `entries`,
//! `blocks` and `shares`, and `wire` pumps it. Files that share what they hold are found by `sharing` at the source and
//! share again by `reflink` at the target. How fast all this may be is in `limits`; whose files the source gives out
//! is decided in `owners`.

mod acl;
mod apply;
mod approvals;
mod approve;
mod attributes;
mod blocks;
mod codec;
mod confine;
mod content;
mod creator;
mod dedupe;
mod differing;
mod digest;
mod direct;
mod directories;
mod entries;
mod exclusive;
mod extents;
mod flushing;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod halt;
mod holding;
#[cfg(test)]
mod hostile;
mod incoming;
pub mod journal;
mod limits;
mod linked;
mod links;
mod locks;
mod make;
mod mending;
mod metadata;
mod mirror;
mod moving;
mod names;
mod neighbour;
mod options;
mod owners;
mod pack;
mod placing;
mod progress;
mod projects;
mod protocol;
mod receive;
mod reflink;
mod remove;
mod report;
mod scan;
mod send;
mod session;
mod shares;
mod sharing;
mod spare;
mod stamps;
mod supply;
mod tally;
mod trouble;
mod verify;
mod walk;
mod window;
mod wire;

pub use approvals::Approvals;
pub use approve::{approve, as_approved};
pub use directories::Directories;
pub use holding::cannot_hold;
pub use limits::{Limits, Rates};
pub use options::{IdMap, Others, SourceOptions, TargetOptions};
pub use receive::{receive_pass, verify_target};
pub use remove::empty;
pub use report::{
    Bounded, Comparison, Difference, End, LIST_LIMIT, Note, NoteKind, PassReport, Progress,
    Refusal, Spent,
};
pub use scan::{Changed, Survey, TreeStats, changed_since, scan, survey};
pub use send::{send_pass, verify_source};
pub use session::{MAX_STREAMS, Streams};
pub use stamps::stamps_every_write;
