//! Which directories a walk has met. A later walk tells by it where an earlier one has been: files that
//! came with a directory that was renamed into another's place have times as old as ever, so their
//! times alone prove nothing. It must not know what is made of that.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::metadata::Identity;

/// The directories of one walk, each under a digest of its path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directories(HashMap<u64, (u32, u32, u64)>);

impl Directories {
    /// Leaves only those that the other walk has met too.
    pub fn keep_common(&mut self, other: &Self) {
        self.0.retain(|path, identity| other.0.get(path) == Some(identity));
    }

    /// Adds those of a later walk that did not go everywhere.
    pub fn update(&mut self, later: Self) {
        self.0.extend(later.0);
    }

    /// As if the walk had not been in the directory at `path`, nor below it.
    pub fn forget(&mut self, path: &Path) {
        self.0.remove(&digest(path.as_os_str().as_bytes()));
    }

    /// Notes the directory at `path`.
    pub(crate) fn note(&mut self, path: &[u8], identity: Identity) {
        self.0.insert(digest(path), plain(identity));
    }

    /// Whether the same directory was at `path`. What is below one that was not is no longer known either:
    /// the caller sees to that.
    pub(crate) fn has(&self, path: &[u8], identity: Identity) -> bool {
        self.0.get(&digest(path)) == Some(&plain(identity))
    }
}

fn plain(Identity { dev: (major, minor), ino }: Identity) -> (u32, u32, u64) {
    (major, minor, ino)
}

fn digest(path: &[u8]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(path).as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(all: &[(&str, u64)]) -> Directories {
        let mut directories = Directories::default();
        for (path, ino) in all {
            directories.note(path.as_bytes(), Identity { dev: (8, 1), ino: *ino });
        }
        directories
    }

    #[test]
    fn common_is_the_same_directory_in_the_same_place() {
        let mut ours = met(&[("", 1), ("a", 2), ("b", 3), ("c", 4)]);
        ours.keep_common(&met(&[("", 1), ("a", 2), ("b", 4), ("d", 4)]));
        assert_eq!(ours, met(&[("", 1), ("a", 2)]));
        let mut later = ours.clone();
        later.update(met(&[("a", 9), ("e", 5)]));
        assert_eq!(later, met(&[("", 1), ("a", 9), ("e", 5)]));
        ours.forget(Path::new("a"));
        assert_eq!(ours, met(&[("", 1)]));
    }
}
