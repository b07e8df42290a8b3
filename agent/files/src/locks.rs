//! Flags that keep an inode as it is, whoever wants to change it: immutable and append-only, chattr(1). Only
//! root sets and takes them. Here are reading, putting and lifting them; it must not know why.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{IFlags, StatxAttributes, ioctl_getflags, ioctl_setflags};
use rustix::io::{Errno, Result};

use crate::confine;
use crate::metadata::{Kind, Stat};

/// Which of them an inode has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Locks {
    /// Nothing about it can be changed, nor its names.
    pub immutable: bool,
    /// It can only grow.
    pub append_only: bool,
}

impl Locks {
    /// Neither.
    pub const NONE: Self = Self { immutable: false, append_only: false };

    /// As statx tells them.
    pub fn of(attributes: StatxAttributes) -> Self {
        Self {
            immutable: attributes.contains(StatxAttributes::IMMUTABLE),
            append_only: attributes.contains(StatxAttributes::APPEND),
        }
    }

    /// Whether it has neither.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match (self.immutable, self.append_only) {
            (false, false) => "none",
            (true, false) => "immutable",
            (false, true) => "append-only",
            (true, true) => "immutable, append-only",
        }
    }
}

/// Gives an inode these flags, and no other of the two. It is open for reading: a file or a directory.
pub fn put(inode: BorrowedFd<'_>, locks: Locks) -> Result<()> {
    let have = match ioctl_getflags(inode) {
        // A file system without flags has none to take.
        Err(Errno::NOTTY | Errno::NOTSUP | Errno::INVAL) if locks.is_none() => return Ok(()),
        // What it has no notion of, it cannot hold.
        Err(Errno::NOTTY | Errno::INVAL) => return Err(Errno::NOTSUP),
        other => other?,
    };
    let mut wanted = have;
    wanted.set(IFlags::IMMUTABLE, locks.immutable);
    wanted.set(IFlags::APPEND, locks.append_only);
    if wanted == have { Ok(()) } else { ioctl_setflags(inode, wanted) }
}

/// Opens `name` in `dir`, which `may` be opened: a file or a directory.
fn open(dir: BorrowedFd<'_>, name: &[u8], may: impl Fn(&Stat) -> bool) -> Result<Option<OwnedFd>> {
    let found = Stat::of(dir, name)?;
    if found.locks.is_none() || !may(&found) {
        return Ok(None);
    }
    let fd = match found.kind {
        Kind::File => confine::open_file(dir, name)?,
        Kind::Directory => confine::open_directory(dir, name)?,
        _ => return Ok(None),
    };
    let is_it = Stat::of_fd(&fd)?.identity() == found.identity();
    if is_it { Ok(Some(fd)) } else { Err(Errno::STALE) }
}

/// Takes the flags off `name` in `dir`, where it `may`. Answers whether it had one.
pub fn take_off(dir: BorrowedFd<'_>, name: &[u8], may: impl Fn(&Stat) -> bool) -> Result<bool> {
    match open(dir, name, may)? {
        Some(fd) => put(fd.as_fd(), Locks::NONE).map(|()| true),
        None => Ok(false),
    }
}

/// Flags that were lifted, and come back when this goes.
#[derive(Debug)]
pub struct Lifted {
    inode: OwnedFd,
    locks: Locks,
}

impl Lifted {
    /// Lifts the flags of `name` in `dir` for a while; none if it has none.
    pub fn of(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Self>> {
        let Some(inode) = open(dir, name, |_| true)? else { return Ok(None) };
        let locks = Stat::of_fd(&inode)?.locks;
        put(inode.as_fd(), Locks::NONE)?;
        Ok(Some(Self { inode, locks }))
    }
}

impl Drop for Lifted {
    fn drop(&mut self) {
        // One that does not come back is seen by the comparison, and put there by the next pass.
        let _ = put(self.inode.as_fd(), self.locks);
    }
}
