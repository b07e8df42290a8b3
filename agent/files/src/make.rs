//! Making and mending inodes at the target: under a temporary name first, dressed through a descriptor,
//! then renamed into place. It must not know why an inode is made or who may have it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use ferry_proto::approval::Device;
use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::{Errno, Result};

use crate::acl;
use crate::attributes::{self, Attribute, Class, Unread, class};
use crate::confine;
use crate::guard::Wanted;
use crate::locks::{self, Locks};
use crate::metadata::{Handle, Kind, Stat, Time};
use crate::names;
use crate::projects;

/// How often another temporary name is tried.
const TRIES: u32 = 8;

/// A new inode.
#[derive(Debug)]
pub struct Fresh {
    /// The inode.
    pub fd: OwnedFd,
    /// Its name, which is a temporary one until it is put in its place.
    pub name: Vec<u8>,
}

/// A new empty file, under a temporary name.
pub fn file(dir: BorrowedFd<'_>, wanted: &Wanted) -> Result<Fresh> {
    let mode = mode_at_birth(wanted);
    let (fd, name) = under_new_name(|name| confine::create_file(dir, name, mode))?;
    Ok(Fresh { fd, name })
}

/// A new empty file under its own name, where nothing has it. Until it is [`clothed`] its time is another
/// than the source's, so whoever finds it half done does not take it for equal.
pub fn file_named(dir: BorrowedFd<'_>, name: &[u8], wanted: &Wanted) -> Result<Fresh> {
    let made = confine::create_file(dir, name, mode_at_birth(wanted));
    made.map(|fd| Fresh { fd, name: name.to_vec() })
}

/// The mode that a new file has until it is [`clothed`]: the one wanted, where that shows nobody more than the file will
/// in the end, and its owner's alone otherwise.
fn mode_at_birth(wanted: &Wanted) -> Mode {
    let mode = if is_born_with(wanted) { u32::from(wanted.mode) } else { 0o600 };
    Mode::from_raw_mode(mode)
}

/// Whether a new file may have the mode wanted from the beginning, so that it need not be changed. As long as
/// its owner and its group may be root, all its users are others: whoever the group's bits keep out is one of them. And no list
/// takes away yet what the bits give.
fn is_born_with(wanted: &Wanted) -> bool {
    let Wanted { mode, attributes, approved, .. } = wanted;
    let group_is_as_others = (mode >> 3) & 0o7 == mode & 0o7;
    mode & !0o777 == 0
        && mode & umask() == 0
        && group_is_as_others
        && attributes.is_empty()
        && approved.is_none()
}

/// What a file that is made does not get of the bits asked for. Where that cannot be told, nothing is got.
fn umask() -> u16 {
    static UMASK: OnceLock<u16> = OnceLock::new();
    *UMASK.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        line.and_then(|mask| u16::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o777)
    })
}

/// Whether what is made in the directory is given an ACL by it. Where that cannot be told: yes.
pub fn has_default_acl(dir: BorrowedFd<'_>) -> bool {
    let found = rustix::fs::fgetxattr(dir, "system.posix_acl_default", &mut [0; 0][..]);
    !matches!(found, Err(Errno::NODATA | Errno::NOTSUP))
}

/// Gives a file that we made the metadata wanted, but this time, and no flags: it has yet to be put in its
/// place. `inherits`: its directory may have given it an ACL.
///
/// The order is that of [`dress`].
pub fn clothed(file: BorrowedFd<'_>, wanted: &Wanted, mtime: Time, inherits: bool) -> Result<()> {
    let inode = Handle::Open(file);
    let born = Stat::of_fd(file)?;
    if (born.uid, born.gid) != (wanted.uid, wanted.gid) {
        inode.chown(wanted.uid, wanted.gid)?;
    }
    if inherits || !wanted.attributes.is_empty() {
        let have = match inherits.then(|| attributes::read_all(inode)).transpose() {
            Ok(have) => comparable(have.unwrap_or_default()),
            Err(Unread::TooLarge) => return Err(Errno::TOOBIG),
            Err(Unread::Failed(errno)) => return Err(errno),
        };
        attributes::replace(inode, &have, &wanted.attributes)?;
    }
    // What a directory bequeaths has its say in the mode, and so may a file system.
    if inherits || !is_born_with(wanted) || born.mode != wanted.mode {
        inode.chmod(wanted.mode)?;
    }
    inode.set_mtime(mtime)
}

/// A new symlink.
pub fn symlink(dir: BorrowedFd<'_>, target: &[u8]) -> Result<Fresh> {
    let ((), name) = under_new_name(|name| rustix::fs::symlinkat(target, dir, name))?;
    named(dir, name, Kind::Symlink)
}

/// A new FIFO.
pub fn fifo(dir: BorrowedFd<'_>) -> Result<Fresh> {
    let mode = Mode::RUSR | Mode::WUSR;
    let ((), name) =
        under_new_name(|name| rustix::fs::mknodat(dir, name, FileType::Fifo, mode, 0))?;
    named(dir, name, Kind::Fifo)
}

/// A new device node.
pub fn device(dir: BorrowedFd<'_>, device: Device) -> Result<Fresh> {
    let kind = if device.block { FileType::BlockDevice } else { FileType::CharacterDevice };
    let (mode, numbers) =
        (Mode::RUSR | Mode::WUSR, rustix::fs::makedev(device.major, device.minor));
    let ((), name) = under_new_name(|name| rustix::fs::mknodat(dir, name, kind, mode, numbers))?;
    named(dir, name, Kind::Device(device))
}

/// Another name, a temporary one, for the inode that is `name` in `from`.
pub fn link(from: BorrowedFd<'_>, name: &[u8], dir: BorrowedFd<'_>) -> Result<Vec<u8>> {
    under_new_name(|new| rustix::fs::linkat(from, name, dir, new, AtFlags::empty()))
        .map(|((), new)| new)
}

fn under_new_name<T>(mut make: impl FnMut(&[u8]) -> Result<T>) -> Result<(T, Vec<u8>)> {
    let mut left = TRIES;
    loop {
        let name = names::temporary();
        match make(&name) {
            Err(Errno::EXIST) if left > 0 => left -= 1,
            made => return made.map(|made| (made, name)),
        }
    }
}

/// A handle on what was just made. Whoever owns the directory may have put something else in its
/// place, say a second name of a system file, so it must look as ours does.
fn named(dir: BorrowedFd<'_>, name: Vec<u8>, kind: Kind) -> Result<Fresh> {
    let opened = confine::open_handle(dir, &name).and_then(|fd| {
        let stat = Stat::of_fd(&fd)?;
        let us = rustix::process::geteuid().as_raw();
        let is_ours = stat.kind == kind && stat.nlink == 1 && stat.uid == us;
        if is_ours { Ok(fd) } else { Err(Errno::STALE) }
    });
    match opened {
        Ok(fd) => Ok(Fresh { fd, name }),
        Err(errno) => {
            discard(dir, &name);
            Err(errno)
        }
    }
}

/// Removes a temporary name. A leftover does no harm: the next pass removes it.
pub fn discard(dir: BorrowedFd<'_>, name: &[u8]) {
    let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
}

/// Whether `found` in `dir` already is as `wanted`.
pub fn is_dressed(dir: BorrowedFd<'_>, name: &[u8], found: &Stat, wanted: &Wanted) -> Result<bool> {
    dressed(dir, name, found, wanted, || attributes::read_at(dir, name, found))
}

/// The same, of the very inode that was found: no other that had its name for a moment counts.
pub fn is_dressed_itself(
    dir: BorrowedFd<'_>,
    name: &[u8],
    found: &Stat,
    wanted: &Wanted,
) -> Result<bool> {
    let inode = confine::open_handle(dir, name)?;
    let now = Stat::of_fd(&inode)?;
    if now.identity() != found.identity() || now.nlink != 1 {
        return Ok(false);
    }
    dressed(dir, name, &now, wanted, || attributes::read_all(Handle::Named(inode.as_fd())))
}

fn dressed(
    dir: BorrowedFd<'_>,
    name: &[u8],
    found: &Stat,
    wanted: &Wanted,
    attributes: impl FnOnce() -> std::result::Result<Vec<Attribute>, Unread>,
) -> Result<bool> {
    if !same_stat(found, wanted) {
        return Ok(false);
    }
    if found.kind == Kind::Symlink {
        return Ok(true);
    }
    if let Some(project) = wanted.project
        && projects::of_name(dir, name, found)? != Some(project)
    {
        return Ok(false);
    }
    match attributes() {
        Ok(have) => Ok(comparable(have) == wanted.attributes),
        Err(Unread::TooLarge) => Ok(false),
        Err(Unread::Failed(errno)) => Err(errno),
    }
}

/// Mends the metadata of `found`, which is `name` in `dir`.
pub fn redress(dir: BorrowedFd<'_>, name: &[u8], found: &Stat, wanted: &Wanted) -> Result<()> {
    let fd = match found.kind {
        Kind::File => confine::open_file(dir, name)?,
        _ => confine::open_handle(dir, name)?,
    };
    let handle = match found.kind {
        Kind::File => Handle::Open(fd.as_fd()),
        _ => Handle::Named(fd.as_fd()),
    };
    // What stands there now may be another inode than the one that was judged.
    let stat = Stat::of_fd(&fd)?;
    if stat.identity() != found.identity() || stat.uid != found.uid || stat.nlink != found.nlink {
        return Err(Errno::STALE);
    }
    dress(handle, wanted).map(drop)
}

/// Gives an inode the metadata wanted. Answers whether anything had to be done.
///
/// The order matters: a new owner takes setuid bits and capabilities away, an ACL changes the mode,
/// everything else would come after the time, and nothing can be done to what is immutable.
pub fn dress(inode: Handle<'_>, wanted: &Wanted) -> Result<bool> {
    let found = Stat::of_fd(inode.fd())?.locks;
    if !found.is_none() {
        locks::put(inode.fd(), Locks::NONE)?;
    }
    dress_unlocked(inode, found, wanted)
}

/// The same, of an inode whose flags, which were `found`, are lifted.
pub fn dress_unlocked(inode: Handle<'_>, found: Locks, wanted: &Wanted) -> Result<bool> {
    let stat = Stat::of_fd(inode.fd())?;
    let mut changed = found != wanted.locks;
    if (stat.uid, stat.gid) != (wanted.uid, wanted.gid) {
        inode.chown(wanted.uid, wanted.gid)?;
        changed = true;
    }
    if stat.kind != Kind::Symlink {
        let have = match attributes::read_all(inode) {
            Ok(have) => comparable(have),
            Err(Unread::TooLarge) => return Err(Errno::TOOBIG),
            Err(Unread::Failed(errno)) => return Err(errno),
        };
        if have != wanted.attributes {
            changed |= attributes::replace(inode, &have, &wanted.attributes)?;
        }
        if changed || stat.mode != wanted.mode {
            inode.chmod(wanted.mode)?;
            changed = true;
        }
    }
    if stat.mtime != wanted.mtime {
        inode.set_mtime(wanted.mtime)?;
        changed = true;
    }
    if let Some(project) = wanted.project {
        changed |= projects::put(inode.fd(), project)?;
    }
    if !wanted.locks.is_none() {
        locks::put(inode.fd(), wanted.locks)?;
    }
    Ok(changed)
}

fn same_stat(found: &Stat, wanted: &Wanted) -> bool {
    (found.uid, found.gid, found.mtime) == (wanted.uid, wanted.gid, wanted.mtime)
        && found.locks == wanted.locks
        && (found.kind == Kind::Symlink || found.mode == wanted.mode)
}

/// What we have, in the form in which it is compared with what is wanted. What is privileged belongs to it: it may
/// have been approved once, and is not any more.
pub fn comparable(mut have: Vec<Attribute>) -> Vec<Attribute> {
    for attribute in &mut have {
        if class(&attribute.name) == Class::Acl {
            attribute.value = acl::canonical(&attribute.value);
        }
    }
    have
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(mode: u16) -> Wanted {
        Wanted {
            mode,
            uid: 64_001,
            gid: 64_001,
            mtime: Time::default(),
            attributes: Vec::new(),
            locks: Locks::NONE,
            project: None,
            approved: None,
        }
    }

    #[test]
    fn a_new_file_shows_nobody_more_than_it_will() {
        let at_birth = |wanted: &Wanted| mode_at_birth(wanted).as_raw_mode();
        for mode in [0o600, 0o400, 0o644, 0o444, 0o755, 0o711] {
            let expected = if mode & umask() == 0 { mode } else { 0o600 };
            assert_eq!(at_birth(&wanted(mode)), u32::from(expected), "{mode:o}");
        }
        // Root's group would read what the account's may, or the account's group what all others may; and what is set
        // takes effect at once.
        for mode in [0o640, 0o750, 0o670, 0o604, 0o705, 0o701, 0o645, 0o4755, 0o2644, 0o1644] {
            assert_eq!(at_birth(&wanted(mode)), 0o600, "{mode:o}");
        }
        let name = b"system.posix_acl_access".to_vec();
        let listed =
            Wanted { attributes: vec![Attribute { name, value: Vec::new() }], ..wanted(0o644) };
        assert_eq!(at_birth(&listed), 0o600);
    }

    #[test]
    fn a_new_file_has_the_mode_wanted_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let open = std::fs::File::open(dir.path()).unwrap();
        for mode in [0o600, 0o640, 0o644, 0o604, 0o666, 0o000, 0o4711] {
            let us = Wanted {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                ..wanted(mode)
            };
            let fresh = file(open.as_fd(), &us).unwrap();
            clothed(fresh.fd.as_fd(), &us, us.mtime, false).unwrap();
            assert_eq!(Stat::of_fd(&fresh.fd).unwrap().mode, mode, "{mode:o}");
            // A file system gave it another one.
            Handle::Open(fresh.fd.as_fd()).chmod(0o611).unwrap();
            clothed(fresh.fd.as_fd(), &us, us.mtime, false).unwrap();
            assert_eq!(Stat::of_fd(&fresh.fd).unwrap().mode, mode, "{mode:o}");
        }
    }
}
