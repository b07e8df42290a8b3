//! Extended attributes: reading them without following anything, and which kinds there are. It must
//! not know which of them an account may have; that is `guard`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};

use crate::confine;
use crate::metadata::{Handle, Stat, proc_path};

/// Longest list of names that Linux gives.
const MAX_LIST: usize = 64 * 1024;
/// Longest value that Linux gives.
pub const MAX_VALUE: usize = 64 * 1024;
/// Most attributes of one inode that are carried.
pub const MAX_COUNT: usize = 256;
/// Most bytes of names and values of one inode that are carried.
pub const MAX_TOTAL: usize = 256 * 1024;

/// One extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attribute {
    /// Name with its namespace.
    pub name: Vec<u8>,
    /// Value as the kernel gives it.
    pub value: Vec<u8>,
}

/// What an attribute is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `user.*`: carried.
    User,
    /// An ACL: carried, with its numbers translated.
    Acl,
    /// File capabilities.
    Capability,
    /// `trusted.*`.
    Trusted,
    /// `security.*` that is not a label of the system.
    Security,
    /// Labels and properties of the system that holds the file.
    System,
}

/// What kind `name` is.
pub fn class(name: &[u8]) -> Class {
    const LABELS: [&[u8]; 5] = [
        b"security.selinux",
        b"security.ima",
        b"security.evm",
        b"security.apparmor",
        b"security.SMACK64",
    ];
    if name.starts_with(b"user.") {
        Class::User
    } else if name == b"system.posix_acl_access" || name == b"system.posix_acl_default" {
        Class::Acl
    } else if name == b"security.capability" {
        Class::Capability
    } else if name.starts_with(b"trusted.") {
        Class::Trusted
    } else if name.starts_with(b"security.") && !LABELS.iter().any(|l| name.starts_with(l)) {
        Class::Security
    } else {
        Class::System
    }
}

/// Why attributes could not be read.
#[derive(Debug)]
pub enum Unread {
    /// More or larger than what is carried.
    TooLarge,
    /// The inode changed its place meanwhile, or reading failed.
    Failed(Errno),
}

impl From<Errno> for Unread {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

/// The attributes of `name` in `dir`, which is the inode `stat`, sorted, without those of
/// [`Class::System`].
pub fn read_at(
    dir: BorrowedFd<'_>,
    name: &[u8],
    stat: &Stat,
) -> std::result::Result<Vec<Attribute>, Unread> {
    // There is no call for a name in a directory before Linux 6.13, but the directory's entry in
    // /proc leads to the very inode, and the last component is not followed.
    let mut path = Vec::with_capacity(32 + name.len());
    path.extend_from_slice(format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes());
    path.extend_from_slice(name);
    let names = list(|buffer| rustix::fs::llistxattr(path.as_slice(), buffer))?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    // Somebody may put another inode under this name between the two calls.
    let handle = confine::open_handle(dir, name)?;
    if Stat::of_fd(&handle)?.identity() != stat.identity() {
        return Err(Unread::Failed(Errno::STALE));
    }
    read_all(Handle::Named(handle.as_fd()))
}

/// The attributes of an open inode, as [`read_at`].
pub fn read_all(inode: Handle<'_>) -> std::result::Result<Vec<Attribute>, Unread> {
    let path = proc_path(inode.fd());
    let names = match inode {
        Handle::Open(fd) => list(|buffer| rustix::fs::flistxattr(fd, buffer))?,
        Handle::Named(_) => list(|buffer| rustix::fs::listxattr(&path, buffer))?,
    };
    let mut attributes = Vec::new();
    let mut total = 0;
    for name in names.split(|&b| b == 0).filter(|n| !n.is_empty()) {
        if class(name) == Class::System {
            continue;
        }
        let Some(value) = value(&path, name)? else {
            continue;
        };
        total += name.len() + value.len();
        if total > MAX_TOTAL || attributes.len() == MAX_COUNT {
            return Err(Unread::TooLarge);
        }
        attributes.push(Attribute { name: name.to_vec(), value });
    }
    attributes.sort_unstable();
    Ok(attributes)
}

fn list(mut call: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut short = [0; 512];
    match call(&mut short) {
        Ok(length) => return Ok(short[..length].to_vec()),
        Err(Errno::RANGE) => {}
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    }
    let mut long = vec![0; MAX_LIST];
    let length = call(&mut long)?;
    long.truncate(length);
    Ok(long)
}

/// The value of `name`; none if it went away meanwhile.
fn value(path: &str, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; 512];
    let length = match rustix::fs::getxattr(path, name, &mut buffer[..]) {
        Err(Errno::RANGE) => {
            buffer.resize(MAX_VALUE, 0);
            rustix::fs::getxattr(path, name, &mut buffer[..])
        }
        other => other,
    };
    match length {
        Ok(length) => {
            buffer.truncate(length);
            Ok(Some(buffer))
        }
        Err(Errno::NODATA) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Makes the attributes of `inode` those of `wanted`, given what it has. Answers whether anything was done.
pub fn replace(inode: Handle<'_>, have: &[Attribute], wanted: &[Attribute]) -> Result<bool> {
    let path = proc_path(inode.fd());
    let mut changed = false;
    for old in have {
        if !wanted.iter().any(|w| w.name == old.name) {
            match rustix::fs::removexattr(&path, old.name.as_slice()) {
                Ok(()) | Err(Errno::NODATA) => changed = true,
                Err(errno) => return Err(errno),
            }
        }
    }
    for new in wanted {
        if !have.contains(new) {
            set(inode, new).map_err(|errno| too_big(inode, errno))?;
            changed = true;
        }
    }
    Ok(changed)
}

fn set(inode: Handle<'_>, new: &Attribute) -> Result<()> {
    let (name, flags) = (new.name.as_slice(), XattrFlags::empty());
    match inode {
        Handle::Open(fd) => rustix::fs::fsetxattr(fd, name, &new.value, flags),
        Handle::Named(fd) => rustix::fs::setxattr(proc_path(fd), name, &new.value, flags),
    }
}

/// A file system without room in the inode for an attribute says that there is no space; only a full
/// one means it for all files.
fn too_big(inode: Handle<'_>, errno: Errno) -> Errno {
    let has_room = |fs: rustix::fs::StatVfs| fs.f_bavail > 0 && fs.f_favail > 0;
    let root = proc_path(inode.fd());
    match errno {
        Errno::NOSPC if rustix::fs::statvfs(root).is_ok_and(has_room) => Errno::TOOBIG,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_attributes_are_told_apart() {
        assert_eq!(class(b"user.mime"), Class::User);
        assert_eq!(class(b"system.posix_acl_default"), Class::Acl);
        assert_eq!(class(b"security.capability"), Class::Capability);
        assert_eq!(class(b"trusted.overlay.opaque"), Class::Trusted);
        assert_eq!(class(b"security.selinux"), Class::System);
        assert_eq!(class(b"security.other"), Class::Security);
        assert_eq!(class(b"system.nfs4_acl"), Class::System);
        assert_eq!(class(b"users.x"), Class::System);
    }
}
