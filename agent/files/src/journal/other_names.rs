//! The other names of inodes that have several: whoever changes a file through one of them changes it under
//! all, and the kernel tells only the one. They are looked for by inode number in the directories of the whole
//! tree, without looking at what has those names. It must not know why somebody asks.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::known_names::KnownNames;
use super::plan::Components;
use crate::confine::{Node, Tree, has_vanished};
use crate::metadata::{Identity, Kind, Stat};
use crate::names::Numbered;

/// Inodes that a pass goes to.
#[derive(Debug, Default)]
pub struct Inodes {
    met: HashSet<Identity>,
    /// Those that have names that it does not go to, and those of their names that are known.
    several: HashMap<u64, Known>,
    /// Two have one number, as in subvolumes: directories do not tell which is which.
    are_alike: bool,
}

#[derive(Debug)]
struct Known {
    identity: Identity,
    names: u32,
    paths: Vec<Vec<u8>>,
    /// It was in this tree.
    was_here: bool,
}

impl Known {
    /// Whether those of its names that are known and so many others are all.
    fn has_all(&self, others: usize) -> bool {
        self.paths.len() + others >= self.names as usize
    }

    /// Where it is of where it `was`, but for what is known. The known ones are sorted.
    fn others<'a>(&self, tree: &Tree, was: &'a [Box<[u8]>]) -> Vec<&'a [u8]> {
        let is_known =
            |path: &[u8]| self.paths.binary_search_by(|known| known[..].cmp(path)).is_ok();
        let mut others: Vec<_> = was.iter().map(|path| &**path).filter(|p| !is_known(p)).collect();
        others.sort_unstable();
        others.dedup();
        others.retain(|path| exists(tree, path, self.identity));
        others
    }
}

impl Inodes {
    /// One is at `path`.
    pub fn add(&mut self, found: &Stat, path: Vec<u8>) {
        if found.kind == Kind::Directory {
            return;
        }
        let (identity, names) = (found.identity(), found.nlink);
        self.met.insert(identity);
        if names > 1 {
            self.known(identity, names).paths.push(path);
        }
    }

    /// One that has changed, under whichever names; it need not be in this tree.
    pub fn changed(&mut self, identity: Identity, names: u32) {
        if names > 0 && !self.met.contains(&identity) {
            self.known(identity, names);
        }
    }

    /// One that was in this tree and may have changed, under whichever names.
    pub fn was_here(&mut self, identity: Identity) {
        if !self.met.contains(&identity) {
            self.known(identity, u32::MAX).was_here = true;
        }
    }

    fn known(&mut self, identity: Identity, names: u32) -> &mut Known {
        let none = Known { identity, names, paths: Vec::new(), was_here: false };
        let known = self.several.entry(identity.ino).or_insert(none);
        self.are_alike |= known.identity != identity;
        known
    }

    /// All that are named in or below this directory, but for what is below those of its names that are not
    /// `wanted`.
    pub fn add_below(
        &mut self,
        tree: &Tree,
        top: Arc<Node>,
        wanted: &dyn Fn(&[u8]) -> bool,
    ) -> Result<(), Errno> {
        every_directory(tree, top, wanted, |directory, node, numbered| {
            for (name, _) in numbered.iter() {
                match Stat::of(directory, name) {
                    Ok(found) => self.add(&found, node.path_of(name)),
                    Err(errno) if has_vanished(errno) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Ok(())
        })
    }

    /// Forgets the inodes of which all names are known or are where they were. Answers those that were not known.
    /// Once some are not, all directories are looked in anyway, and nothing more is asked for.
    fn remembered(&mut self, tree: &Tree, names: &KnownNames) -> Vec<Components> {
        let (mut missing, mut is_incomplete) = (Vec::new(), false);
        self.several.retain(|_, known| {
            // A name can have been met twice.
            known.paths.sort_unstable();
            known.paths.dedup();
            if known.has_all(0) {
                return false;
            }
            if !is_incomplete {
                let others = known.others(tree, names.of(known.identity));
                is_incomplete = !known.has_all(others.len());
                if !is_incomplete {
                    missing.extend(others.into_iter().map(components));
                    return false;
                }
            }
            true
        });
        missing
    }

    /// The names of these inodes that are not known yet. They are looked for where `names` has them; in all
    /// directories, if those are not as many as there are.
    ///
    /// # Errors
    /// The tree cannot be read; [`Errno::NODATA`] where its directories tell other numbers than its files.
    pub fn missing(mut self, tree: &Tree, names: &KnownNames) -> Result<Vec<Components>, Errno> {
        if self.are_alike {
            return Err(Errno::NODATA);
        }
        let (mut missing, mut met) = (self.remembered(tree, names), HashSet::new());
        if self.several.is_empty() {
            return Ok(missing);
        }
        every_directory(tree, Node::root(), &|_| true, |directory, node, numbered| {
            for (name, ino) in numbered.iter() {
                let Some(known) = self.several.get(&ino) else { continue };
                let path = node.path_of(name);
                if known.paths.contains(&path) {
                    met.insert(ino);
                } else if Stat::of(directory, name).is_ok_and(|s| s.identity() == known.identity) {
                    missing.push(components(&path));
                    if known.paths.is_empty() {
                        met.insert(ino);
                    }
                }
            }
            Ok(())
        })?;
        // Overlays may number a file otherwise in its directory: then nothing is found, and that is not known. One that
        // was here and is not found may as well be gone.
        let told = |(ino, known): (&u64, &Known)| {
            let gone = || known.paths.iter().all(|path| !exists(tree, path, known.identity));
            met.contains(ino) || (!(known.was_here && known.paths.is_empty()) && gone())
        };
        if self.several.iter().all(told) { Ok(missing) } else { Err(Errno::NODATA) }
    }
}

/// The names of a path.
fn components(path: &[u8]) -> Components {
    path.split(|byte| *byte == b'/').map(Box::from).collect()
}

/// Whether the inode still has this name.
fn exists(tree: &Tree, path: &[u8], identity: Identity) -> bool {
    let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&path[..0], path),
    };
    let names = parent.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    let node = names.fold(Node::root(), |node, name| node.child(name));
    let found = tree.open(&node).and_then(|fd| Stat::of(&fd, name));
    found.is_ok_and(|found| found.identity() == identity && !found.is_mount)
}

/// Visits a directory and all below, on this file system, but for what is below those of its names that are not
/// `wanted`.
fn every_directory(
    tree: &Tree,
    top: Arc<Node>,
    wanted: &dyn Fn(&[u8]) -> bool,
    mut visit: impl FnMut(&OwnedFd, &Arc<Node>, &Numbered) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut stack = vec![Arc::clone(&top)];
    while let Some(node) = stack.pop() {
        let read = tree.open(&node).and_then(|fd| Ok((Numbered::read(&fd)?, fd)));
        let (numbered, fd) = match read {
            Ok(read) => read,
            Err(errno) if has_vanished(errno) || errno == Errno::XDEV => continue,
            Err(errno) => return Err(errno),
        };
        visit(&fd, &node, &numbered)?;
        let is_wanted = |name: &&[u8]| !Arc::ptr_eq(&node, &top) || wanted(name);
        stack.extend(numbered.directories().filter(is_wanted).map(|name| node.child(name)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A file with three names, of which the pass goes to the first.
    fn three_names() -> (tempfile::TempDir, Tree, Inodes, Identity) {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["a", "b/deep"] {
            std::fs::create_dir_all(path(name)).unwrap();
        }
        std::fs::write(path("a/one"), "").unwrap();
        std::fs::hard_link(path("a/one"), path("b/deep/two")).unwrap();
        std::fs::hard_link(path("a/one"), path("three")).unwrap();
        let tree = Tree::open_root(dir.path()).unwrap();
        let found = stat(dir.path());
        let mut inodes = Inodes::default();
        inodes.add(&found, b"a/one".to_vec());
        (dir, tree, inodes, found.identity())
    }

    fn stat(root: &Path) -> Stat {
        Stat::of(rustix::fs::CWD, root.join("a/one").as_os_str().as_encoded_bytes()).unwrap()
    }

    fn known(identity: Identity, paths: &[&str]) -> KnownNames {
        let mut names = KnownNames::default();
        paths.iter().for_each(|path| names.note(identity, path.as_bytes()));
        names
    }

    fn sorted(mut places: Vec<Components>) -> Vec<String> {
        places.sort();
        let text = |place: &Components| String::from_utf8(place.join(&b'/')).unwrap();
        places.iter().map(text).collect()
    }

    #[test]
    fn names_that_are_where_they_were_are_not_looked_for() {
        let (_dir, tree, mut inodes, identity) = three_names();
        let names = known(identity, &["three", "a/one", "b/deep/two", "three", "a/gone"]);
        assert_eq!(sorted(inodes.remembered(&tree, &names)), ["b/deep/two", "three"]);
        assert!(inodes.several.is_empty());
    }

    #[test]
    fn names_that_are_no_more_where_they_were_are_looked_for() {
        let (dir, tree, mut inodes, identity) = three_names();
        std::fs::rename(dir.path().join("b/deep"), dir.path().join("b/other")).unwrap();
        // Another file has its name now.
        std::fs::write(dir.path().join("a/three"), "").unwrap();
        let names = known(identity, &["a/one", "b/deep/two", "three", "a/three"]);
        assert!(inodes.remembered(&tree, &names).is_empty());
        assert_eq!(sorted(inodes.missing(&tree, &names).unwrap()), ["b/other/two", "three"]);
    }
}
