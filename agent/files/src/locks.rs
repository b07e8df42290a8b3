//! Flags that keep an inode as it is, whoever wants to change it: immutable and append-only, chattr(1). Only
//! root sets and takes them. Here are reading, putting and lifting them; it must not know why.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{IFlags, StatxAttributes, ioctl_getflags, ioctl_setflags};
use rustix::io::{Errno, Result};

use crate::confine;
use crate::metadata::{Identity, Kind, Stat};

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

/// Opens `name` in `dir`, which is `found`: a file or a directory.
fn open(dir: BorrowedFd<'_>, name: &[u8], found: &Stat) -> Result<Option<OwnedFd>> {
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
    let found = Stat::of(dir, name)?;
    if found.locks.is_none() || !may(&found) {
        return Ok(false);
    }
    match open(dir, name, &found)? {
        Some(fd) => put(fd.as_fd(), Locks::NONE).map(|()| true),
        None => Ok(false),
    }
}

/// Inodes whose flags are lifted now. Several may want that of one at once: it has them again when the last is done,
/// and nobody takes it for one that has none.
#[derive(Debug, Default)]
pub struct Lifting {
    all: Mutex<HashMap<Identity, Kept>>,
    /// Some have been lifted.
    is_used: AtomicBool,
}

/// Flags that an inode had.
#[derive(Debug)]
struct Kept {
    locks: Locks,
    /// So many have lifted them.
    by: u32,
}

impl Lifting {
    /// Lifts the flags of `name` in `dir`, where it `may`, until the answer goes; none if it has none.
    pub fn lift(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        may: impl Fn(&Stat) -> bool,
    ) -> Result<Option<Lifted<'_>>> {
        let mut all = self.all();
        let found = Stat::of(dir, name)?;
        let identity = found.identity();
        let has_none = found.locks.is_none() && !all.contains_key(&identity);
        if has_none || !may(&found) {
            return Ok(None);
        }
        let Some(inode) = open(dir, name, &found)? else { return Ok(None) };
        self.is_used.store(true, Ordering::Relaxed);
        put(inode.as_fd(), Locks::NONE)?;
        let kept = all.entry(identity).or_insert(Kept { locks: Locks::NONE, by: 0 });
        if !found.locks.is_none() {
            // Somebody else may have given it others meanwhile.
            kept.locks = found.locks;
        }
        kept.by += 1;
        Ok(Some(Lifted { lifting: self, inode, identity }))
    }

    /// Has `dress` decide about the flags of an inode that was `found` and is to have those `wanted`, while nobody
    /// lifts them or gives them back. It is told which to put now: none, if they are lifted, for then the inode gets
    /// those wanted when they come back.
    pub fn settle<T>(
        &self,
        found: &Stat,
        wanted: Locks,
        dress: impl FnOnce(Locks) -> Result<T>,
    ) -> Result<T> {
        let has_any = !found.locks.is_none() || !wanted.is_none();
        if !has_any && !self.is_used.load(Ordering::Relaxed) {
            return dress(wanted);
        }
        let mut all = self.all();
        let Some(kept) = all.get_mut(&found.identity()) else { return dress(wanted) };
        let done = dress(Locks::NONE)?;
        kept.locks = wanted;
        Ok(done)
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Identity, Kept>> {
        // Each change is one step, so a panic elsewhere cannot have left it half done.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Flags that were lifted, and come back when the last of these of an inode goes.
#[derive(Debug)]
pub struct Lifted<'a> {
    lifting: &'a Lifting,
    inode: OwnedFd,
    identity: Identity,
}

impl Drop for Lifted<'_> {
    fn drop(&mut self) {
        let mut all = self.lifting.all();
        let Some(kept) = all.get_mut(&self.identity) else { return };
        kept.by -= 1;
        if kept.by > 0 {
            return;
        }
        let locks = kept.locks;
        all.remove(&self.identity);
        // One that does not come back is seen by the comparison, and put there by the next pass.
        let misses_them = |inode: Stat| inode.nlink > 0 && inode.locks.is_none();
        if Stat::of_fd(&self.inode).is_ok_and(misses_them) {
            let _ = put(self.inode.as_fd(), locks);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMMUTABLE: Locks = Locks { immutable: true, append_only: false };
    const APPEND_ONLY: Locks = Locks { immutable: false, append_only: true };

    #[test]
    fn flags_come_back_with_the_last_who_lifted_them_and_as_they_are_to_be() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("one"), "").unwrap();
        std::fs::hard_link(dir.path().join("one"), dir.path().join("other")).unwrap();
        let open = std::fs::File::open(dir.path()).unwrap();
        let file = std::fs::File::open(dir.path().join("one")).unwrap();
        let stat = || Stat::of_fd(&file).unwrap();
        let lifting = Lifting::default();
        let lift = |name: &[u8]| lifting.lift(open.as_fd(), name, |_| true).unwrap();
        let told = |wanted| lifting.settle(&stat(), wanted, Ok).unwrap();
        assert!(lift(b"one").is_none());
        put(file.as_fd(), IMMUTABLE).unwrap();
        assert_eq!(told(APPEND_ONLY), APPEND_ONLY);
        let lifted = (lift(b"one"), lift(b"other"));
        assert!(lifted.0.is_some() && lifted.1.is_some());
        drop(lifted.0);
        assert!(stat().locks.is_none());
        drop(lifted.1);
        assert_eq!(stat().locks, IMMUTABLE);
        let lifted = lift(b"other");
        assert_eq!(told(APPEND_ONLY), Locks::NONE);
        drop(lifted);
        assert_eq!(stat().locks, APPEND_ONLY);
        let lifted = lift(b"one");
        assert_eq!(told(Locks::NONE), Locks::NONE);
        drop(lifted);
        assert!(stat().locks.is_none() && lift(b"one").is_none());
    }
}
