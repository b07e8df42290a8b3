//! The directories of a tree that are watched, by their watches, and where each is. The kernel gives no number of a
//! watch twice. It must not know what happens in them.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::inotify::{self, WatchFlags};
use rustix::io::Errno;

use crate::confine::Node;
use crate::metadata::proc_path;

/// Most directories of a tree: each costs 1.7 KB with what it pins.
const MAX: usize = 100_000;
/// How many watches one user may have.
const LIMIT: &str = "/proc/sys/fs/inotify/max_user_watches";
/// Those of all trees. Other services of root want watches, too: no more than half of what it may have.
static HELD: AtomicUsize = AtomicUsize::new(0);

const WATCHED: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::ONLYDIR);

/// See the module.
#[derive(Debug)]
pub struct Directories {
    all: HashMap<i32, Directory>,
    /// So many may be held by all trees.
    limit: usize,
}

impl Default for Directories {
    fn default() -> Self {
        let limit = std::fs::read_to_string(LIMIT).ok().and_then(|told| told.trim().parse().ok());
        Self { all: HashMap::new(), limit: limit.unwrap_or(0) / 2 }
    }
}

impl Drop for Directories {
    fn drop(&mut self) {
        HELD.fetch_sub(self.all.len(), Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Directory {
    node: Arc<Node>,
    /// In which directory; none for the root.
    parent: Option<i32>,
    below: HashMap<Box<[u8]>, i32>,
}

impl Directories {
    /// Where a directory is that is watched.
    pub fn node(&self, watch: i32) -> Option<Arc<Node>> {
        self.all.get(&watch).map(|directory| Arc::clone(&directory.node))
    }

    /// Whether it is watched in this place already: in which directory, under which name.
    pub fn is_at(&self, watch: i32, place: Option<(i32, &[u8])>) -> bool {
        match place {
            None => self.all.get(&watch).is_some_and(|directory| directory.parent.is_none()),
            Some((parent, name)) => {
                let parent = self.all.get(&parent);
                parent.is_some_and(|parent| parent.below.get(name) == Some(&watch))
            }
        }
    }

    /// Another one; what was in its place is not watched any more. False if there are too many.
    pub fn add(
        &mut self,
        watch: i32,
        place: Option<(i32, &[u8])>,
        node: Arc<Node>,
        unwatch: impl FnMut(i32),
    ) -> bool {
        if self.all.len() >= MAX || HELD.load(Ordering::Relaxed) >= self.limit {
            return false;
        }
        if let Some((parent, name)) = place {
            self.forget_name(parent, name, unwatch);
            if let Some(parent) = self.all.get_mut(&parent) {
                parent.below.insert(name.into(), watch);
            }
        }
        let parent = place.map(|(parent, _)| parent);
        let another = Directory { node, parent, below: HashMap::new() };
        if self.all.insert(watch, another).is_none() {
            HELD.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// What has this name in a directory is there no more, with all below.
    pub fn forget_name(&mut self, parent: i32, name: &[u8], unwatch: impl FnMut(i32)) {
        let below = self.all.get(&parent).and_then(|parent| parent.below.get(name));
        if let Some(watch) = below.copied() {
            self.forget(watch, unwatch);
        }
    }

    /// A directory is there no more, with all below.
    pub fn forget(&mut self, watch: i32, mut unwatch: impl FnMut(i32)) {
        let place =
            self.all.get(&watch).and_then(|directory| Some((directory.parent?, &directory.node)));
        if let Some((parent, node)) = place {
            let name: Option<Box<[u8]>> = node.place().map(|(_, name)| name.into());
            let parent = self.all.get_mut(&parent);
            if let (Some(parent), Some(name)) = (parent, name) {
                parent.below.remove(&name);
            }
        }
        let mut stack = vec![watch];
        while let Some(watch) = stack.pop() {
            if let Some(directory) = self.all.remove(&watch) {
                HELD.fetch_sub(1, Ordering::Relaxed);
                unwatch(watch);
                stack.extend(directory.below.into_values());
            }
        }
    }

    /// None is watched any more.
    pub fn forget_all(&mut self, mut unwatch: impl FnMut(i32)) {
        HELD.fetch_sub(self.all.len(), Ordering::Relaxed);
        self.all.drain().for_each(|(watch, _)| unwatch(watch));
    }
}

/// Has the kernel watch an open directory. Answers the watch that it has, if it is watched already.
pub fn add(queue: &OwnedFd, directory: BorrowedFd<'_>) -> Result<i32, Errno> {
    inotify::add_watch(queue, proc_path(directory), WATCHED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_trees_together_hold_no_more_than_the_limit() {
        let trees = || Directories { all: HashMap::new(), limit: 3 };
        let add = |tree: &mut Directories, watch| tree.add(watch, None, Node::root(), |_| ());
        let (mut one, mut other) = (trees(), trees());
        assert!(add(&mut one, 1) && add(&mut one, 2) && add(&mut other, 1));
        assert!(!add(&mut other, 2));
        one.forget(2, |_| ());
        assert!(add(&mut other, 2) && !add(&mut other, 3));
        drop(one);
        assert!(add(&mut other, 3));
        other.forget_all(|_| ());
        assert_eq!(HELD.load(Ordering::Relaxed), 0);
        let limit = std::fs::read_to_string(LIMIT).unwrap().trim().parse::<usize>().unwrap();
        assert_eq!(Directories::default().limit, limit / 2);
    }
}
