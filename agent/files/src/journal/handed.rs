//! What one process hands over to the next, so that none of a file system's changes is missed between them: a queue
//! that the kernel goes on filling. It must not know how it gets there.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use fanotify_fid::Fanotify;
use fanotify_fid::handle::handle_from_fd;
use ferry_proto::Fault;

use super::changes::Handle;
use super::watch::Backend;

/// A queue of a file system's events.
#[derive(Debug)]
pub struct Handed {
    /// The fanotify group.
    pub queue: OwnedFd,
    /// What the kernel tells by it.
    pub backend: Backend,
}

impl Handed {
    /// The group, if it is marked for the same as this one. A mark goes with its file system: one that was mounted anew
    /// is not watched; and an agent of another version may have wanted to know less.
    pub(super) fn group_like(self, like: &Fanotify) -> Result<Fanotify, Fault> {
        let marks =
            |queue| marks(queue).map_err(|e| Fault::io("the marks of a queue cannot be read", &e));
        let known = marks(self.queue.as_fd())?;
        if known.is_empty() || known != marks(like.as_fd())? {
            return Err(Fault::precondition("the file system has not been watched all the time"));
        }
        // SAFETY: only of a fanotify group the kernel tells such marks.
        #[allow(unsafe_code)]
        Ok(unsafe { Fanotify::from_fd(self.queue) })
    }
}

/// What a group is marked for; empty for all that is no group.
fn marks(queue: BorrowedFd<'_>) -> io::Result<String> {
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", queue.as_raw_fd()))?;
    let marks = told.lines().filter(|line| line.starts_with("fanotify sdev:"));
    Ok(marks.collect::<Vec<_>>().join("\n"))
}

/// What an open directory is known by, to every process, as long as its file system is mounted.
///
/// # Errors
/// The file system has no handles.
pub fn handle_of(directory: impl AsFd) -> io::Result<Handle> {
    handle_from_fd(directory).map(Into::into)
}
