//! Under which names a pass has met the inodes that have several. The next pass asks whether they still have those,
//! and need not look for them in all directories. It is a hint of where to look, and proves nothing: whoever takes
//! it looks there. It must not know what is made of it.

use std::collections::HashMap;

use crate::metadata::Identity;

/// Bytes of names, roughly. If there are more none are kept: then they are looked for.
const MAX_BYTES: usize = 16 << 20;
/// What a path costs beside its bytes, roughly, and what an inode costs beside its paths.
const PATH: usize = 32;
const INODE: usize = 128;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownNames {
    /// Paths from the root of the tree.
    paths: HashMap<Identity, Vec<Box<[u8]>>>,
    bytes: usize,
    is_full: bool,
}

impl KnownNames {
    /// One is at `path`.
    pub fn note(&mut self, identity: Identity, path: &[u8]) {
        if self.is_full {
            return;
        }
        let paths = self.paths.entry(identity).or_default();
        self.bytes += path.len() + PATH + if paths.is_empty() { INODE } else { 0 };
        paths.push(path.into());
        if self.bytes > MAX_BYTES {
            *self = Self { is_full: true, ..Self::default() };
        }
    }

    /// Where it was met.
    pub fn of(&self, identity: Identity) -> &[Box<[u8]>] {
        self.paths.get(&identity).map_or(&[], Vec::as_slice)
    }

    /// Adds the inodes that were met earlier and not since.
    pub fn add_earlier(&mut self, earlier: &Self) {
        for (identity, paths) in &earlier.paths {
            if !self.paths.contains_key(identity) {
                paths.iter().for_each(|path| self.note(*identity, path));
            }
        }
    }

    /// No more are kept.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// None were met.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(ino: u64) -> Identity {
        Identity { dev: (8, 1), ino }
    }

    fn met(all: &[(u64, &str)]) -> KnownNames {
        let mut names = KnownNames::default();
        all.iter().for_each(|(ino, path)| names.note(identity(*ino), path.as_bytes()));
        names
    }

    #[test]
    fn what_was_met_later_counts() {
        let mut names = met(&[(1, "a"), (1, "new/a"), (2, "b")]);
        names.add_earlier(&met(&[(1, "old/a"), (3, "c"), (3, "d/c")]));
        assert_eq!(names, met(&[(1, "a"), (1, "new/a"), (2, "b"), (3, "c"), (3, "d/c")]));
        assert!(names.of(identity(4)).is_empty());
    }

    #[test]
    fn too_many_are_none() {
        let (mut names, long) = (KnownNames::default(), [b'x'; 4000]);
        for ino in 0.. {
            names.note(identity(ino), &long);
            assert!(names.bytes <= MAX_BYTES);
            if names.is_full {
                break;
            }
        }
        names.note(identity(1), b"more");
        assert!(names.is_empty());
        let mut later = met(&[(1, "a")]);
        later.add_earlier(&names);
        assert_eq!(later, met(&[(1, "a")]), "it begins anew with the next pass");
    }
}
