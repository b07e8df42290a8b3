//! Whether a file system can hold what a tree has: what the tree needs is noted when it is looked through, and a
//! file without a name is tried with it. It must not know which ends these are.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use ferry_proto::Fault;
use ferry_proto::command::{Needing, TreeNeeds};
use rustix::fs::{Mode, OFlags, XattrFlags, fsetxattr};
use rustix::io::{Errno, Result};

use crate::acl;
use crate::attributes::{Attribute, Class, class};
use crate::locks::{self, Locks};
use crate::metadata::{Kind, Stat};

/// EXT4_SUPER_MAGIC of linux/magic.h.
pub const EXT4: u64 = 0xef53;
/// XFS_SUPER_MAGIC of linux/magic.h.
pub const XFS: u64 = 0x5846_5342;
/// BTRFS_SUPER_MAGIC of linux/magic.h.
pub const BTRFS: u64 = 0x9123_683e;

/// Notes what the inode `stat`, which has `attributes`, needs. `name` is its last component, `path` all of it.
pub fn note(
    needs: &mut TreeNeeds,
    stat: &Stat,
    attributes: &[Attribute],
    name: &[u8],
    path: &dyn Fn() -> String,
) {
    let most = |place: &mut Option<Needing>, amount: u64| {
        if amount > 0 && place.as_ref().is_none_or(|needing| needing.amount < amount) {
            *place = Some(Needing { path: path(), amount });
        }
    };
    most(&mut needs.name, name.len() as u64);
    match stat.kind {
        Kind::File => most(&mut needs.size, stat.size),
        Kind::Symlink => most(&mut needs.symlink, stat.size),
        _ => {}
    }
    let bytes = |wanted: Class| {
        let of = attributes.iter().filter(|a| class(&a.name) == wanted);
        of.map(|a| (a.name.len() + a.value.len()) as u64).sum()
    };
    most(&mut needs.attributes, bytes(Class::User));
    most(&mut needs.acl, bytes(Class::Acl));
    most(&mut needs.flags, u64::from(!stat.locks.is_none()));
}

/// What of `needs` the file system that has the directory `place` cannot hold: a sentence each, with a path that
/// needs it. None if that cannot be tried there. Nothing is left behind. It blocks: call it where blocking is
/// allowed.
///
/// # Errors
/// No file can be made in `place`.
pub fn cannot_hold(
    place: &Path,
    needs: &TreeNeeds,
) -> std::result::Result<Option<Vec<String>>, Fault> {
    let fail = |errno: Errno| {
        Fault::io(format!("no file could be tried in {}", place.display()), &errno.into())
    };
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let trial = match rustix::fs::open(place, flags, Mode::RUSR | Mode::WUSR) {
        Ok(trial) => trial,
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOSYS) => return Ok(None),
        Err(errno) => return Err(fail(errno)),
    };
    let system = rustix::fs::fstatfs(&trial).map_err(fail)?;
    let mut lacks = Vec::new();
    let mut lack = |what: &str, need: &Option<Needing>, holds: &dyn Fn(u64) -> bool| {
        if let Some(Needing { path, amount }) = need
            && !holds(*amount)
        {
            lacks.push(format!("it cannot hold {what}: {path} has {amount}"));
        }
    };
    #[allow(clippy::cast_sign_loss)]
    let longest = system.f_namelen as u64;
    // A target needs its 0 at the end.
    #[allow(clippy::cast_sign_loss)]
    let symlink = match system.f_type as u64 {
        XFS => 1023, // XFS_SYMLINK_MAXLEN is 1024.
        EXT4 => system.f_bsize as u64 - 1,
        _ => u64::MAX,
    };
    lack("names of that many bytes", &needs.name, &|amount| amount <= longest);
    lack("symlinks of that many bytes", &needs.symlink, &|amount| amount <= symlink);
    lack("files of that many bytes", &needs.size, &|amount| holds_size(&trial, amount));
    lack("extended attributes of that many bytes", &needs.attributes, &|amount| {
        holds_attributes(trial.as_fd(), amount)
    });
    lack("ACLs (bytes)", &needs.acl, &|_| holds_acl(trial.as_fd()));
    lack("immutable or append-only flags", &needs.flags, &|_| holds_flags(trial.as_fd()));
    Ok(Some(lacks))
}

fn is_lack(tried: Result<()>, lacks: &[Errno]) -> bool {
    tried.is_err_and(|errno| lacks.contains(&errno))
}

fn holds_size(trial: &OwnedFd, size: u64) -> bool {
    !is_lack(rustix::fs::ftruncate(trial, size), &[Errno::FBIG, Errno::INVAL])
}

/// As several values, since one may not be larger than [`VALUE`].
fn holds_attributes(trial: BorrowedFd<'_>, bytes: u64) -> bool {
    /// Less than the largest that Linux takes.
    const VALUE: usize = 60_000;
    let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut number = 0;
    while left > 0 {
        let name = format!("user.ferry{number}");
        let value = vec![b'x'; left.saturating_sub(name.len()).min(VALUE)];
        left = left.saturating_sub(name.len() + value.len());
        number += 1;
        let tried = fsetxattr(trial, &name, &value, XattrFlags::empty());
        if is_lack(tried, &[Errno::OPNOTSUPP, Errno::NOSPC, Errno::RANGE, Errno::TOOBIG]) {
            return false;
        }
    }
    true
}

fn holds_acl(trial: BorrowedFd<'_>) -> bool {
    let acl = acl::of_another_user();
    let tried = fsetxattr(trial, "system.posix_acl_access", &acl, XattrFlags::empty());
    !is_lack(tried, &[Errno::OPNOTSUPP])
}

fn holds_flags(trial: BorrowedFd<'_>) -> bool {
    let tried = locks::put(trial, Locks { immutable: true, append_only: false });
    // Else the file could not go.
    let _ = locks::put(trial, Locks::NONE);
    !is_lack(tried, &[Errno::OPNOTSUPP])
}
