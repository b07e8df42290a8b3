//! Which directories a walk has met. A later walk tells by it where an earlier one has been: files that
//! came with a directory that was renamed into another's place have times as old as ever, so their
//! times alone prove nothing. It must not know what is made of that.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::metadata::Identity;

/// The directories of one walk, each under a digest of its path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directories(HashMap<u64, (u32, u32, u64)>);

impl Directories {
    /// Notes the directory at `path`.
    pub(crate) fn note(&mut self, path: &[u8], identity: Identity) {
        self.0.insert(digest(path), plain(identity));
    }

    /// Whether the same directory was at `path`.
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
