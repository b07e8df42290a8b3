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
    /// What it was marked for when it was handed over, in the kernel's words. A mark goes with its file system: one that
    /// was mounted anew is not watched.
    pub marks: String,
}

impl Handed {
    /// The group, if it is still what it was.
    pub(super) fn group(self) -> Result<Fanotify, Fault> {
        let marks = marks(self.queue.as_fd())
            .map_err(|e| Fault::io("the marks of a queue cannot be read", &e))?;
        if marks.is_empty() || marks != self.marks {
            return Err(Fault::precondition("the file system has not been watched all the time"));
        }
        // SAFETY: only of a fanotify group the kernel tells such marks.
        #[allow(unsafe_code)]
        Ok(unsafe { Fanotify::from_fd(self.queue) })
    }
}

/// What a group is marked for; empty for all that is no group.
pub(super) fn marks(queue: BorrowedFd<'_>) -> io::Result<String> {
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
