//! Watching a whole file system with fanotify: one mark on it. A directory's place is looked up once, to leave
//! out what is in none of the trees that are watched. It must not know what is made of the changes.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fanotify_fid::consts::{
    FAN_ATTRIB, FAN_CLASS_NOTIF, FAN_CLOEXEC, FAN_CLOSE_WRITE, FAN_CREATE, FAN_DELETE,
    FAN_MARK_ADD, FAN_MARK_FILESYSTEM, FAN_MODIFY, FAN_MOVE_SELF, FAN_MOVED_FROM, FAN_MOVED_TO,
    FAN_NONBLOCK, FAN_ONDIR, FAN_RENAME, FAN_REPORT_DFID_NAME, FAN_REPORT_DFID_NAME_TARGET,
    FAN_REPORT_FID, FAN_UNLIMITED_QUEUE,
};
use fanotify_fid::handle::{handle_from_fd, open_by_handle_at};
use fanotify_fid::{EventStop, Fanotify, FanotifyError, FidEvent, RenameSide};
use ferry_proto::Fault;
use rustix::io::Errno;

use super::changes::{Changes, Lost};
use super::handed::Handed;
use super::reading::{Reading, drain};
use super::watch::{Backend, Whose};
use crate::metadata::proc_path;

/// The read buffer: some thousand events.
const BUFFER: usize = 256 * 1024;
/// Directories whose place is remembered.
const MAX_KNOWN: usize = 1_000_000;

/// What changes a file itself.
const CHANGES: u64 = FAN_MODIFY | FAN_CLOSE_WRITE | FAN_ATTRIB;
const WATCHED: u64 = CHANGES | FAN_CREATE | FAN_DELETE | FAN_ONDIR;

/// A watched file system.
#[derive(Debug)]
pub struct FileSystem {
    backend: Backend,
    reading: Reading<Noting>,
}

impl FileSystem {
    /// Watches the one that `root` is on, from now on.
    ///
    /// # Errors
    /// The kernel or the file system cannot do it.
    pub fn start(root: OwnedFd, backend: Backend, whose: Whose) -> Result<Self, Fault> {
        let group = group(&root, backend, FAN_UNLIMITED_QUEUE)?;
        // Some tell handles that they do not take back: every directory would look as if it were gone.
        let taken_back = handle_from_fd(&root).and_then(|handle| open_by_handle_at(&root, &handle));
        taken_back.map_err(|error| cannot_watch(&error))?;
        Ok(Self { backend, reading: Reading::start(group, Noting::of(root, whose))? })
    }

    /// Goes on with these trees where another process has handed over.
    ///
    /// # Errors
    /// The kernel does not keep for them any more what it was told to.
    pub fn take_over(
        root: OwnedFd,
        handed: Handed,
        whose: Whose,
        trees: Vec<(PathBuf, Changes)>,
    ) -> Result<(Arc<Self>, Vec<Part>), Fault> {
        let backend = handed.backend;
        // What happens while the old queue is read is in both. The old one comes first: where a directory was
        // first is what counts.
        let group = group(&root, backend, FAN_UNLIMITED_QUEUE)?;
        let mut noting = Noting::of(root, whose);
        let numbers: Vec<u64> =
            trees.into_iter().map(|(path, changes)| noting.add(path, changes)).collect();
        // Whoever had our number then was somebody else.
        let us = noting.us.take();
        drain(&mut noting, &handed.group_like(&group)?);
        noting.us = us;
        noting.lose_if_failed();
        let this = Arc::new(Self { backend, reading: Reading::start(group, noting)? });
        let part = |number| Part { of: Arc::clone(&this), number };
        let parts = numbers.into_iter().map(part).collect();
        Ok((this, parts))
    }

    /// What happens from now on, kept by the kernel for another process. It is not without bound: nobody may come.
    ///
    /// # Errors
    /// The kernel has no room for another queue.
    pub fn hand_over(&self) -> Result<Handed, Fault> {
        let group = group(&self.reading.noting().mount, self.backend, 0)?;
        Ok(Handed { queue: group.into_inner(), backend: self.backend })
    }

    /// What the kernel tells.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Notes changes of the tree at `root`, which is on it, from now on until it is dropped.
    pub fn tree(self: &Arc<Self>, root: &Path) -> Part {
        let number = self.reading.noting().add(root.to_owned(), Changes::default());
        Part { of: Arc::clone(self), number }
    }
}

/// A tree on a watched file system.
#[derive(Debug)]
pub struct Part {
    of: Arc<FileSystem>,
    number: u64,
}

impl Part {
    /// What has changed in it since the last time: all that was done before this call is in it.
    pub fn take(&self) -> Changes {
        let mut noting = self.of.reading.drained();
        noting.lose_if_failed();
        noting.tree(self.number).map(|tree| std::mem::take(&mut tree.changes)).unwrap_or_default()
    }

    /// Looks at what there is to take, and leaves it there.
    pub fn look<R>(&self, at: impl FnOnce(&Changes) -> R) -> R {
        let mut noting = self.of.reading.drained();
        noting.lose_if_failed();
        match noting.tree(self.number) {
            Some(tree) => at(&tree.changes),
            None => at(&Changes::default()),
        }
    }

    /// What was taken was not dealt with.
    pub fn put_back(&self, changes: Changes) {
        let mut noting = self.of.reading.noting();
        if let Some(tree) = noting.tree(self.number) {
            tree.changes.put_back(changes);
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut noting = self.of.reading.noting();
        noting.trees.retain(|tree| tree.number != self.number);
        noting.known.clear();
    }
}

/// A group with a mark on the file system; `queue`: how long its queue may grow.
fn group(root: &OwnedFd, backend: Backend, queue: u32) -> Result<Fanotify, Fault> {
    let (report, renames) = match backend {
        Backend::Renames => (FAN_REPORT_DFID_NAME_TARGET, FAN_RENAME),
        // Only by the last is it known which file was renamed.
        Backend::Names => {
            (FAN_REPORT_DFID_NAME | FAN_REPORT_FID, FAN_MOVED_FROM | FAN_MOVED_TO | FAN_MOVE_SELF)
        }
        Backend::Inotify => return Err(Fault::bug("inotify was asked for as fanotify")),
    };
    let flags = FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | queue | report;
    let marked = Fanotify::new(flags).and_then(|group| {
        group.mark_at(root, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, WATCHED | renames, ".")?;
        Ok::<_, FanotifyError>(group)
    });
    marked.map_err(|error| cannot_watch(&error))
}

fn cannot_watch(error: &(dyn std::error::Error + 'static)) -> Fault {
    Fault::precondition("this file system's changes cannot be watched as a whole (fanotify)")
        .caused_by(error)
}

/// A tree, and what has changed in it.
#[derive(Debug)]
struct Tree {
    number: u64,
    path: PathBuf,
    changes: Changes,
}

/// Takes events and notes what they are about.
#[derive(Debug)]
struct Noting {
    /// A directory on the file system, for opening others by their handles.
    mount: OwnedFd,
    trees: Vec<Tree>,
    /// The number of the next tree.
    next: u64,
    /// In which of the trees a directory is, if it is in one.
    known: HashMap<Box<[u8]>, Within>,
    /// Whose changes are not noted.
    us: Option<i32>,
    buffer: Vec<u8>,
    /// Events cannot be read any more.
    has_failed: bool,
}

/// In which trees a directory may be: no tree is watched in another, but one may be watched twice.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Within {
    /// In the one at this path.
    Tree(Arc<Path>),
    None,
    /// It cannot be told: it counts for each.
    Any,
}

impl super::reading::Noting for Noting {
    type Queue = Fanotify;

    fn batch(&mut self, group: &Fanotify) -> u64 {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut taken = 0;
        match group.read_events_reported(&mut buffer) {
            Ok((events, report)) => {
                taken = events.len() as u64;
                events.iter().for_each(|event| self.take(event));
                if report.stop != EventStop::End {
                    self.lose(Lost::Unreadable);
                }
            }
            Err(error) if error.is_would_block() => {}
            Err(_) => self.has_failed = true,
        }
        self.buffer = buffer;
        taken
    }

    fn has_failed(&self) -> bool {
        self.has_failed
    }
}

impl Noting {
    /// Nothing yet, of a file system.
    fn of(mount: OwnedFd, whose: Whose) -> Self {
        Self {
            mount,
            trees: Vec::new(),
            next: 0,
            known: HashMap::new(),
            us: (whose == Whose::Others).then(|| std::process::id().cast_signed()),
            buffer: vec![0; BUFFER],
            has_failed: false,
        }
    }

    /// Another tree; `changes`: what is noted of it. Answers its number.
    fn add(&mut self, path: PathBuf, changes: Changes) -> u64 {
        let number = self.next;
        self.next += 1;
        self.trees.push(Tree { number, path, changes });
        self.known.clear();
        number
    }

    fn tree(&mut self, number: u64) -> Option<&mut Tree> {
        self.trees.iter_mut().find(|tree| tree.number == number)
    }

    fn lose_if_failed(&mut self) {
        if self.has_failed {
            self.lose(Lost::Unreadable);
        }
    }

    fn lose(&mut self, why: Lost) {
        self.trees.iter_mut().for_each(|tree| tree.changes.lose(why));
    }

    fn take(&mut self, event: &FidEvent<'_>) {
        if event.is_overflow() {
            self.lose(Lost::Overflow);
        } else if Some(event.pid()) != self.us {
            self.event(event);
        }
    }

    fn event(&mut self, event: &FidEvent<'_>) {
        let mask = event.mask();
        let is_directory = mask & FAN_ONDIR != 0;
        let own = event.self_handle().filter(|_| is_directory);
        if let (Some(from), Some(to)) = (event.rename_source(), event.rename_target()) {
            return self.renamed(from, to, event.self_handle(), is_directory);
        }
        if is_directory && mask & (FAN_MOVED_FROM | FAN_MOVED_TO) != 0 {
            self.known.clear();
        }
        // Its names are told.
        if mask == FAN_ONDIR | FAN_MOVE_SELF {
            return;
        }
        let (directory, name) = match (event.dfid_name_handle(), event.self_handle()) {
            (Some(directory), _) => (directory, event.dfid_name_raw()),
            (None, Some(own)) if is_directory => (own, b"".as_slice()),
            // It has another number of names, was renamed, or was reached without one: that may be in any tree.
            (None, Some(own)) => {
                return self.trees.iter_mut().for_each(|tree| tree.changes.note_file(own));
            }
            (None, None) => return self.lose(Lost::Unplaced),
        };
        let within = self.within(directory);
        if is_directory && mask & FAN_MOVED_FROM != 0 {
            self.changes(&within).for_each(Changes::note_left);
        }
        if let Some(own) = own.filter(|_| mask & FAN_CREATE != 0) {
            self.changes(&within).for_each(|changes| changes.note_fresh(own));
        }
        if let Some(own) = event.self_handle().filter(|_| !is_directory && mask & CHANGES != 0) {
            self.changes(&within).for_each(|changes| changes.note_file(own));
        }
        let name = if name.is_empty() { b"." } else { name };
        self.changes(&within).for_each(|changes| changes.note(directory, name));
    }

    /// `own` was renamed. What leaves a tree can be changed from outside by its other names in it.
    fn renamed(
        &mut self,
        from: &RenameSide<'_>,
        to: &RenameSide<'_>,
        own: Option<&[u8]>,
        is_directory: bool,
    ) {
        if is_directory {
            self.known.clear();
        }
        let (was, is) = (self.within(from.handle()), self.within(to.handle()));
        self.changes(&was).for_each(|c| c.note(from.handle(), from.name().as_bytes()));
        self.changes(&is).for_each(|c| c.note(to.handle(), to.name().as_bytes()));
        let stays = was == is && was != Within::Any;
        if is_directory && !stays {
            self.changes(&was).for_each(Changes::note_left);
        }
        match own {
            Some(own) if is_directory && was == is => {
                let name = from.name().as_bytes();
                self.changes(&is).for_each(|c| c.note_moved(own, from.handle(), name));
            }
            Some(own) if is_directory => self.changes(&is).for_each(|c| c.note_fresh(own)),
            Some(own) if !stays => self.changes(&was).for_each(|c| c.note_file(own)),
            _ => {}
        }
    }

    /// The changes of the trees that something in such a directory is in.
    fn changes(&mut self, within: &Within) -> impl Iterator<Item = &mut Changes> {
        let is_one = move |path: &Path| match within {
            Within::Tree(one) => **one == *path,
            Within::None => false,
            Within::Any => true,
        };
        self.trees.iter_mut().filter(move |tree| is_one(&tree.path)).map(|tree| &mut tree.changes)
    }

    /// In which of the trees a directory is. One that is gone need not be noted: its own name, in its parent,
    /// is.
    fn within(&mut self, directory: &[u8]) -> Within {
        if let Some(known) = self.known.get(directory) {
            return known.clone();
        }
        let within = match open_by_handle_at(self.mount.as_fd(), directory) {
            Ok(fd) => self.tree_of(&fd),
            Err(error) if error.raw_os_error() == Some(Errno::STALE.raw_os_error()) => Within::None,
            Err(_) => Within::Any,
        };
        if self.known.len() == MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(directory.into(), within.clone());
        within
    }

    fn tree_of(&self, directory: &OwnedFd) -> Within {
        let path = rustix::fs::readlink(proc_path(directory.as_fd()), Vec::new());
        let Ok(path) = path else { return Within::Any };
        let path = PathBuf::from(OsString::from_vec(path.into_bytes()));
        let tree = self.trees.iter().find(|tree| path.starts_with(&tree.path));
        tree.map_or(Within::None, |tree| Within::Tree(tree.path.as_path().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::changes::Names;

    #[test]
    fn a_queue_that_was_told_less_is_not_believed() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let root = || OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let backend = Backend::Renames;
        let marked_for = |mask| {
            let flags = FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_DFID_NAME_TARGET;
            let group = Fanotify::new(flags).unwrap();
            group.mark_at(root(), FAN_MARK_ADD | FAN_MARK_FILESYSTEM, mask, ".").unwrap();
            Handed { queue: group.into_inner(), backend }
        };
        let take_over = |handed| FileSystem::take_over(root(), handed, Whose::Others, Vec::new());
        take_over(marked_for(WATCHED | FAN_RENAME)).unwrap();
        // As by an agent that did not know that one of them is needed.
        take_over(marked_for((WATCHED | FAN_RENAME) & !FAN_ATTRIB)).unwrap_err();
    }

    #[test]
    fn a_queue_is_emptied_however_long_it_is() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let root = || OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        for backend in [Backend::Renames, Backend::Names] {
            let group = group(&root(), backend, FAN_UNLIMITED_QUEUE).unwrap();
            let mut noting = Noting::of(root(), Whose::Everybodys);
            let number = noting.add(dir.path().to_owned(), Changes::default());
            // More than one read gives, and few enough to be remembered by name.
            for file in 0..9_000 {
                std::fs::write(dir.path().join(format!("{backend:?}-{file:050}")), "").unwrap();
            }
            drain(&mut noting, &group);
            let changes = &noting.tree(number).unwrap().changes;
            assert_eq!(changes.lost(), None);
            let (_, names) = changes.directories().next().unwrap();
            assert!(matches!(names, Names::Some(some) if some.len() == 9_000));
        }
    }
}
