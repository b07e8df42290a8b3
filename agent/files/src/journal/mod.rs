//! The change journal: which names have changed below the trees that are watched since a pass last asked. What
//! may have been missed is said, and then the pass looks at everything.

mod changes;
mod extent;
mod fanotify;
mod handed;
mod inotify;
mod key;
mod known_names;
mod other_names;
mod plan;
mod reading;
mod watch;

pub use changes::{Changes, Handle, Lost, Names, Place};
pub use extent::Extent;
pub use handed::{Handed, handle_of};
pub(crate) use key::of_inode;
pub(crate) use known_names::KnownNames;
pub use plan::Plan;
pub(crate) use plan::{MAX_MOVES, Scope, Step};
pub use watch::{Backend, Watch, Watched, Whose};
