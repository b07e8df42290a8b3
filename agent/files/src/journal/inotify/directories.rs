//! The directories of a tree that are watched, by their watches, and where each is. The kernel gives no number of a
//! watch twice. It must not know what happens in them.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::inotify::{self, WatchFlags};
use rustix::io::Errno;

use crate::confine::Node;
use crate::metadata::proc_path;

/// Most directories: each costs 1.7 KB with what it pins, and other services want watches, too.
const MAX: usize = 100_000;

const WATCHED: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::ONLYDIR);

/// See the module.
#[derive(Debug, Default)]
pub struct Directories(HashMap<i32, Directory>);

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
        self.0.get(&watch).map(|directory| Arc::clone(&directory.node))
    }

    /// Whether it is watched in this place already: in which directory, under which name.
    pub fn is_at(&self, watch: i32, place: Option<(i32, &[u8])>) -> bool {
        match place {
            None => self.0.get(&watch).is_some_and(|directory| directory.parent.is_none()),
            Some((parent, name)) => {
                let parent = self.0.get(&parent);
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
        if self.0.len() >= MAX {
            return false;
        }
        if let Some((parent, name)) = place {
            self.forget_name(parent, name, unwatch);
            if let Some(parent) = self.0.get_mut(&parent) {
                parent.below.insert(name.into(), watch);
            }
        }
        let parent = place.map(|(parent, _)| parent);
        self.0.insert(watch, Directory { node, parent, below: HashMap::new() });
        true
    }

    /// What has this name in a directory is there no more, with all below.
    pub fn forget_name(&mut self, parent: i32, name: &[u8], unwatch: impl FnMut(i32)) {
        let below = self.0.get(&parent).and_then(|parent| parent.below.get(name));
        if let Some(watch) = below.copied() {
            self.forget(watch, unwatch);
        }
    }

    /// A directory is there no more, with all below.
    pub fn forget(&mut self, watch: i32, mut unwatch: impl FnMut(i32)) {
        let place =
            self.0.get(&watch).and_then(|directory| Some((directory.parent?, &directory.node)));
        if let Some((parent, node)) = place {
            let name: Option<Box<[u8]>> = node.place().map(|(_, name)| name.into());
            let parent = self.0.get_mut(&parent);
            if let (Some(parent), Some(name)) = (parent, name) {
                parent.below.remove(&name);
            }
        }
        let mut stack = vec![watch];
        while let Some(watch) = stack.pop() {
            if let Some(directory) = self.0.remove(&watch) {
                unwatch(watch);
                stack.extend(directory.below.into_values());
            }
        }
    }

    /// None is watched any more.
    pub fn forget_all(&mut self, mut unwatch: impl FnMut(i32)) {
        self.0.drain().for_each(|(watch, _)| unwatch(watch));
    }
}

/// Has the kernel watch an open directory. Answers the watch that it has, if it is watched already.
pub fn add(queue: &OwnedFd, directory: BorrowedFd<'_>) -> Result<i32, Errno> {
    inotify::add_watch(queue, proc_path(directory), WATCHED)
}
