//! Project ids, by which file systems count quotas: ext4(5), xfs_quota(8). They are looked at only where a file
//! system counts them or the tree's root belongs to one: looking costs opening each file, and everywhere else
//! nobody would know of them. It must not know what is copied.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::{Errno, Result};
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

use crate::confine;
use crate::metadata::{Identity, Kind, Stat};

/// The project that an inode belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Project {
    /// Its number.
    pub id: u32,
    /// What is made in this directory belongs to it.
    pub inherits: bool,
}

impl std::fmt::Display for Project {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inherits = if self.inherits { ", inherited" } else { "" };
        write!(f, "{}{inherits}", self.id)
    }
}

/// struct fsxattr of linux/fs.h.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Extended {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    unused: [u8; 8],
}

const GET: Opcode = opcode::read::<Extended>(b'X', 31);
const SET: Opcode = opcode::write::<Extended>(b'X', 32);
const INHERITS: u32 = 0x200;

fn get(inode: BorrowedFd<'_>) -> Result<Extended> {
    #[allow(unsafe_code)]
    // SAFETY: FS_IOC_FSGETXATTR writes one struct fsxattr, whose fields are numbers.
    unsafe {
        ioctl(inode, Getter::<GET, Extended>::new())
    }
}

fn set(inode: BorrowedFd<'_>, extended: Extended) -> Result<()> {
    #[allow(unsafe_code)]
    // SAFETY: FS_IOC_FSSETXATTR reads one struct fsxattr.
    unsafe {
        ioctl(inode, Setter::<SET, Extended>::new(extended))
    }
}

/// The project of an inode that is open for reading: a file or a directory.
pub fn of(inode: BorrowedFd<'_>) -> Result<Project> {
    let extended = get(inode)?;
    Ok(Project { id: extended.project, inherits: extended.flags & INHERITS != 0 })
}

/// The project of `found`, which is `name` in `dir`; none for what is neither a file nor a directory.
pub fn of_name(dir: BorrowedFd<'_>, name: &[u8], found: &Stat) -> Result<Option<Project>> {
    let fd = match found.kind {
        Kind::File => confine::open_file(dir, name)?,
        Kind::Directory => confine::open_directory(dir, name)?,
        _ => return Ok(None),
    };
    if Stat::of_fd(&fd)?.identity() != found.identity() {
        return Err(Errno::STALE);
    }
    of(fd.as_fd()).map(Some)
}

/// Gives an inode its project. Answers whether it had another.
pub fn put(inode: BorrowedFd<'_>, project: Project) -> Result<bool> {
    let mut extended = get(inode)?;
    let flags = if project.inherits { INHERITS } else { 0 };
    if extended.project == project.id && extended.flags & INHERITS == flags {
        return Ok(false);
    }
    extended.project = project.id;
    extended.flags = extended.flags & !INHERITS | flags;
    set(inode, extended).map(|()| true)
}

/// Whether what is below `root` belongs to projects: its file system counts what they use, or it is itself
/// in one.
pub fn are_used(root: BorrowedFd<'_>) -> bool {
    are_counted(root) || of(root).is_ok_and(|project| project != Project::default())
}

/// Whether a file system can give ids to what is below `root` although it does not count what projects use.
/// XFS always can.
pub fn are_held(root: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(root).is_ok_and(|system| system.f_type as u64 == crate::holding::XFS)
}

fn are_counted(root: BorrowedFd<'_>) -> bool {
    let Ok(stat) = Stat::of_fd(root) else { return false };
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| counts(line, stat.identity()))
}

/// A line of mountinfo: proc_pid_mountinfo(5).
fn counts(line: &str, Identity { dev: (major, minor), .. }: Identity) -> bool {
    let is_it = line.split(' ').nth(2) == Some(&format!("{major}:{minor}"));
    let options = line.rsplit(' ').next().unwrap_or_default();
    is_it && options.split(',').any(|option| matches!(option, "prjquota" | "pquota"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells_is_read() {
        let identity = |minor| Identity { dev: (7, minor), ino: 2 };
        let counted = "36 35 7:0 / /srv rw,noatime master:1 - ext4 /dev/loop0 rw,prjquota";
        assert!(counts(counted, identity(0)) && !counts(counted, identity(1)));
        let not = "36 35 7:0 / /srv rw,prjquota - ext4 /dev/loop0 rw,usrquota";
        assert!(!counts(not, identity(0)) && !counts("", identity(0)));
        assert_eq!(size_of::<Extended>(), 28);
    }
}
