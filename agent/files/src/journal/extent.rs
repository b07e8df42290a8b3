//! How much has changed: how many names, and how large the files are that they stand for. Nothing is taken by it, and
//! nothing follows from it for a pass. It must not know what anybody makes of it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use fanotify_fid::handle::open_by_handle_at;
use ferry_proto::Fault;

use super::changes::{Changes, Handle, Names};
use super::key::Key;
use super::watch::Watched;
use crate::confine::{Node, Tree};
use crate::metadata::{Kind, Stat};

/// So many names are looked at: whoever asks now and then costs the disk little.
const LOOKED_AT: usize = 1_000;

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Names that have changed.
    pub paths: u64,
    /// Bytes of the files that have them. Where the names are many it is told by some of them.
    pub bytes: u64,
    /// There may be more: what has changed in some directories is not counted any more.
    pub is_least: bool,
}

impl Extent {
    /// How much of the tree at `root` has changed since the changes were taken that are noted of it; none: more than
    /// is noted.
    ///
    /// # Errors
    /// The root cannot be opened.
    pub fn of(watched: &Watched, root: &Path) -> Result<Option<Self>, Fault> {
        let Some(noted) = watched.look(Noted::of) else { return Ok(None) };
        let tree = Tree::open_root(root)?;
        Ok(Some(noted.extent(&tree)))
    }
}

/// What is noted, and some of it by name.
struct Noted {
    paths: usize,
    is_least: bool,
    some: Vec<(Handle, Vec<Box<[u8]>>)>,
}

impl Noted {
    fn of(changes: &Changes) -> Option<Self> {
        if changes.lost().is_some() {
            return None;
        }
        let paths = changes.count();
        let (mut is_least, mut some, mut left) = (false, Vec::new(), LOOKED_AT);
        for (directory, names) in changes.directories() {
            let Names::Some(names) = names else {
                is_least = true;
                continue;
            };
            // Of each directory as large a part as of the whole: one may hold nothing but small files.
            let part = (names.len() * LOOKED_AT).div_ceil(paths.max(LOOKED_AT)).min(left);
            if part > 0 {
                left -= part;
                some.push((directory.into(), names.iter().take(part).cloned().collect()));
            }
        }
        Some(Self { paths, is_least, some })
    }

    fn extent(&self, tree: &Tree) -> Extent {
        let (mut names, mut bytes) = (0_u128, 0_u128);
        for (directory, some) in &self.some {
            names += some.len() as u128;
            // One that is gone has no files any more.
            let Some(directory) = open(tree, directory) else { continue };
            let found = some.iter().filter_map(|name| Stat::of(&*directory, name).ok());
            let files = found.filter(|stat| stat.kind == Kind::File);
            bytes += files.map(|stat| u128::from(stat.size)).sum::<u128>();
        }
        let of_all = bytes * self.paths as u128 / names.max(1);
        Extent {
            paths: self.paths as u64,
            bytes: u64::try_from(of_all).unwrap_or(u64::MAX),
            is_least: self.is_least,
        }
    }
}

fn open(tree: &Tree, directory: &[u8]) -> Option<Arc<OwnedFd>> {
    match Key::of(directory) {
        Key::Handle(handle) => open_by_handle_at(tree.root_fd(), handle).ok().map(Arc::new),
        Key::Path(path) => {
            let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
            let node = names.fold(Node::root(), |node, name| node.child(name));
            tree.open(&node).ok()
        }
        Key::Inode(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::changes::Lost;
    use super::super::key;
    use super::*;

    /// The directory that is known by its path, with so many files of ten bytes that are noted.
    fn fill(changes: &mut Changes, root: &Path, directory: &str, files: usize) {
        std::fs::create_dir_all(root.join(directory)).unwrap();
        for number in 0..files {
            let name = number.to_string();
            std::fs::write(root.join(directory).join(&name), [0; 10]).unwrap();
            changes.note(&key::of_path(directory.as_bytes()), name.as_bytes());
        }
    }

    fn extent(changes: &Changes, root: &Path) -> Extent {
        let tree = Tree::open_root(root).unwrap();
        Noted::of(changes).expect("it is noted").extent(&tree)
    }

    #[test]
    fn names_are_counted_and_files_weighed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let mut changes = Changes::default();
        assert_eq!(extent(&changes, &root), Extent::default());
        fill(&mut changes, &root, "a/b", 3);
        // What has gone is told too; a directory has no content, and neither has one that is gone.
        changes.note(&key::of_path(b"a/b"), b"gone");
        changes.note(&key::of_path(b"a"), b"b");
        changes.note(&key::of_path(b"nowhere"), b"x");
        assert_eq!(extent(&changes, &root), Extent { paths: 6, bytes: 30, is_least: false });
    }

    #[test]
    fn of_many_names_some_tell() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let mut changes = Changes::default();
        fill(&mut changes, &root, "large", 3 * LOOKED_AT);
        fill(&mut changes, &root, "small", 5);
        let noted = Noted::of(&changes).unwrap();
        let looked_at: usize = noted.some.iter().map(|(_, names)| names.len()).sum();
        assert!(looked_at <= LOOKED_AT, "{looked_at}");
        let paths = 3 * LOOKED_AT as u64 + 5;
        assert_eq!(noted.extent(&Tree::open_root(&root).unwrap()).bytes, 10 * paths);
        assert_eq!(noted.paths as u64, paths);
    }

    #[test]
    fn what_is_not_noted_any_more_is_not_counted() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let mut changes = Changes::default();
        for number in 0..20_000 {
            changes.note(&key::of_path(b"dir"), number.to_string().as_bytes());
        }
        let found = extent(&changes, &root);
        assert!(found.is_least && found.paths > 10_000, "{found:?}");
        changes.lose(Lost::Overflow);
        assert!(Noted::of(&changes).is_none());
    }
}
