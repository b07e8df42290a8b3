//! What stands for a handle where the kernel gives none: where a directory was below the root of its tree, and
//! which inode a file was.

use super::changes::Handle;
use crate::metadata::Identity;

/// A `struct file_handle` begins with its length, and none is empty.
const NO_HANDLE: [u8; 4] = [0; 4];
/// What follows: a path, or a device and a number.
const PATH: u8 = b'd';
const INODE: u8 = b'f';

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key<'a> {
    /// The kernel's handle.
    Handle(&'a [u8]),
    /// The path of a directory below the root; empty for the root.
    Path(&'a [u8]),
    /// A file, by its inode.
    Inode(Identity),
}

impl<'a> Key<'a> {
    /// What a handle says.
    pub fn of(handle: &'a [u8]) -> Self {
        let Some(key) = handle.strip_prefix(&NO_HANDLE) else { return Self::Handle(handle) };
        match key.split_first() {
            Some((&PATH, path)) => Self::Path(path),
            Some((&INODE, bytes)) => inode(bytes).map_or(Self::Handle(handle), Self::Inode),
            _ => Self::Handle(handle),
        }
    }
}

/// Stands for the directory at `path` below the root.
pub fn of_path(path: &[u8]) -> Handle {
    [&NO_HANDLE, [PATH].as_slice(), path].concat().into()
}

/// Stands for a file.
pub fn of_inode(identity: Identity) -> Handle {
    let (major, minor) = identity.dev;
    let numbers = [major.to_le_bytes(), minor.to_le_bytes()].concat();
    [&NO_HANDLE, [INODE].as_slice(), &numbers, &identity.ino.to_le_bytes()].concat().into()
}

fn inode(bytes: &[u8]) -> Option<Identity> {
    let (major, bytes) = bytes.split_first_chunk()?;
    let (minor, bytes) = bytes.split_first_chunk()?;
    let dev = (u32::from_le_bytes(*major), u32::from_le_bytes(*minor));
    Some(Identity { dev, ino: u64::from_le_bytes(bytes.try_into().ok()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_for_a_handle_is_told_from_one() {
        let identity = Identity { dev: (8, 1), ino: 1 << 40 };
        assert_eq!(Key::of(&of_inode(identity)), Key::Inode(identity));
        for path in [b"".as_slice(), b"a/b", b"x\xff\ny"] {
            assert_eq!(Key::of(&of_path(path)), Key::Path(path));
        }
        for handle in [b"\x08\0\0\0\x01\0\0\0abcdefgh".as_slice(), b"\0\0\0\0", b"\0\0\0\0f12", b""]
        {
            assert_eq!(Key::of(handle), Key::Handle(handle));
        }
    }
}
