//! Watching a file system with fanotify: one mark on the whole of it, and a thread that takes the events out
//! of the kernel's queue as fast as they come and notes them. A directory's place is looked up once, to leave
//! out what is in none of the trees that are watched. It must not know what is made of the changes.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use fanotify_fid::consts::{
    FAN_ATTRIB, FAN_CLASS_NOTIF, FAN_CLOEXEC, FAN_CLOSE_WRITE, FAN_CREATE, FAN_DELETE,
    FAN_MARK_ADD, FAN_MARK_FILESYSTEM, FAN_MODIFY, FAN_MOVED_FROM, FAN_MOVED_TO, FAN_NONBLOCK,
    FAN_ONDIR, FAN_RENAME, FAN_REPORT_DFID_NAME, FAN_REPORT_DFID_NAME_TARGET, FAN_REPORT_FID,
    FAN_UNLIMITED_QUEUE,
};
use fanotify_fid::handle::{handle_from_fd, open_by_handle_at};
use fanotify_fid::{EventStop, Fanotify, FanotifyError, FidEvent};
use ferry_proto::Fault;
use rustix::io::Errno;

use super::changes::{Changes, Lost};
use crate::metadata::proc_path;

/// The read buffer: some thousand events.
const BUFFER: usize = 256 * 1024;
/// The thread looks so often whether it is to end.
const LOOK: Duration = Duration::from_millis(200);
/// Directories whose place is remembered.
const MAX_KNOWN: usize = 1_000_000;

/// What the kernel can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// fanotify with both names of a rename and the handle of what was renamed: Linux 5.17.
    Renames,
    /// fanotify with names alone: Linux 5.9.
    Names,
}

impl Backend {
    /// For people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Renames => "fanotify, renames",
            Self::Names => "fanotify, names",
        }
    }
}

/// What changes a file itself.
const CHANGES: u64 = FAN_MODIFY | FAN_CLOSE_WRITE | FAN_ATTRIB;
const WATCHED: u64 = CHANGES | FAN_CREATE | FAN_DELETE | FAN_ONDIR;

/// A watched file system.
#[derive(Debug)]
pub struct Watch {
    backend: Backend,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    group: Fanotify,
    noting: Mutex<Noting>,
    is_over: AtomicBool,
}

/// Whose changes are noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whose {
    /// Everybody's.
    Everybodys,
    /// Everybody's but this process's own.
    Others,
}

impl Watch {
    /// Watches the file system that `root` is on, from now on; `best` is the most that is asked of the kernel.
    ///
    /// # Errors
    /// The kernel or the file system cannot do it.
    pub fn start(root: OwnedFd, best: Backend, whose: Whose) -> Result<Self, Fault> {
        let (group, backend) = group_of(&root, best)?;
        let noting = Noting {
            mount: root,
            trees: Vec::new(),
            next: 0,
            known: HashMap::new(),
            us: (whose == Whose::Others).then(|| std::process::id().cast_signed()),
            buffer: vec![0; BUFFER],
            has_failed: false,
        };
        let is_over = AtomicBool::new(false);
        let shared = Arc::new(Shared { group, noting: Mutex::new(noting), is_over });
        let reading = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("file-journal".to_owned())
            .spawn(move || reading.read())
            .map_err(|e| Fault::io("the thread of the change journal cannot be started", &e))?;
        Ok(Self { backend, shared, thread: Some(thread) })
    }

    /// What the kernel tells.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Notes changes of the tree at `root`, which is on this file system, from now on until it is dropped.
    pub fn tree(self: &Arc<Self>, root: &Path) -> Watched {
        let mut noting = self.shared.noting();
        let number = noting.next;
        noting.next += 1;
        noting.trees.push(Tree { number, path: root.to_owned(), changes: Changes::default() });
        noting.known.clear();
        Watched { watch: Arc::clone(self), number }
    }
}

/// A tree that is watched.
#[derive(Debug)]
pub struct Watched {
    watch: Arc<Watch>,
    number: u64,
}

impl Watched {
    /// What the kernel tells.
    pub fn backend(&self) -> Backend {
        self.watch.backend()
    }

    /// What has changed in it since the last time: all that was done before this call is in it.
    pub fn take(&self) -> Changes {
        let shared = &self.watch.shared;
        let mut noting = shared.noting();
        noting.drain(&shared.group);
        if noting.has_failed {
            noting.lose(Lost::Unreadable);
        }
        let ours = noting.trees.iter_mut().find(|tree| tree.number == self.number);
        ours.map(|tree| std::mem::take(&mut tree.changes)).unwrap_or_default()
    }

    /// What was taken was not dealt with.
    pub fn put_back(&self, changes: Changes) {
        let mut noting = self.watch.shared.noting();
        let ours = noting.trees.iter_mut().find(|tree| tree.number == self.number);
        ours.into_iter().for_each(|tree| tree.changes.put_back(changes.clone()));
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut noting = self.watch.shared.noting();
        noting.trees.retain(|tree| tree.number != self.number);
        noting.known.clear();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn noting(&self) -> MutexGuard<'_, Noting> {
        // A panic in the middle of a batch leaves the rest of it unnoted, and the thread is gone: see `read`.
        self.noting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread.
    fn read(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            // Interrupted it is just an early look.
            let _ = self.group.wait_readable(Some(LOOK));
            let mut noting = self.noting();
            noting.batch(&self.group);
            if noting.has_failed {
                break;
            }
        }
    }
}

/// A group with a mark on the file system.
fn group_of(root: &OwnedFd, best: Backend) -> Result<(Fanotify, Backend), Fault> {
    let try_one = |backend: Backend| {
        let (report, renames) = match backend {
            Backend::Renames => (FAN_REPORT_DFID_NAME_TARGET, FAN_RENAME),
            Backend::Names => {
                (FAN_REPORT_DFID_NAME | FAN_REPORT_FID, FAN_MOVED_FROM | FAN_MOVED_TO)
            }
        };
        let flags = FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | report;
        let group = Fanotify::new(flags)?;
        group.mark_at(root, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, WATCHED | renames, ".")?;
        Ok::<_, FanotifyError>((group, backend))
    };
    let tried = match best {
        Backend::Renames => try_one(Backend::Renames).or_else(|_| try_one(Backend::Names)),
        Backend::Names => try_one(Backend::Names),
    };
    // Some tell handles that they do not take back: every directory would look as if it were gone.
    let taken_back = handle_from_fd(root).and_then(|handle| open_by_handle_at(root, &handle));
    taken_back.map_err(|error| cannot_watch(&error))?;
    tried.map_err(|error| cannot_watch(&error))
}

fn cannot_watch(error: &(dyn std::error::Error + 'static)) -> Fault {
    Fault::precondition("this file system's changes cannot be watched (fanotify)")
        .caused_by(error)
        .remedy("nothing need be done: every pass looks at the whole tree instead")
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

impl Noting {
    /// Takes all that is in the queue by now.
    fn drain(&mut self, group: &Fanotify) {
        /// What the kernel counts of an event when it tells how long the queue is: its beginning alone.
        const COUNTED: u64 = 24;
        // An event is in the queue before whoever caused it goes on.
        let length = rustix::io::ioctl_fionread(group);
        let mut left = length.map_or(u64::MAX, |bytes| bytes.div_ceil(COUNTED));
        while left > 0 {
            match self.batch(group) {
                0 => break,
                events => left = left.saturating_sub(events),
            }
        }
    }

    /// Takes what one read gives. Answers how many events that were.
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
            if is_directory {
                self.known.clear();
            }
            let (was, is) = (self.within(from.handle()), self.within(to.handle()));
            self.changes(&was).for_each(|c| c.note(from.handle(), from.name().as_bytes()));
            self.changes(&is).for_each(|c| c.note(to.handle(), to.name().as_bytes()));
            match own {
                Some(own) if was == is => {
                    let name = from.name().as_bytes();
                    self.changes(&is).for_each(|c| c.note_moved(own, from.handle(), name));
                }
                Some(own) => self.changes(&is).for_each(|c| c.note_fresh(own)),
                None => {}
            }
            return;
        }
        if is_directory && mask & (FAN_MOVED_FROM | FAN_MOVED_TO) != 0 {
            self.known.clear();
        }
        let (directory, name) = match (event.dfid_name_handle(), event.self_handle()) {
            (Some(directory), _) => (directory, event.dfid_name_raw()),
            (None, Some(own)) if is_directory => (own, b"".as_slice()),
            // Its number of names has changed, or it was reached without a name: that may be in any tree.
            (None, Some(own)) => {
                return self.trees.iter_mut().for_each(|tree| tree.changes.note_file(own));
            }
            (None, None) => return self.lose(Lost::Unplaced),
        };
        let within = self.within(directory);
        if let Some(own) = own.filter(|_| mask & FAN_CREATE != 0) {
            self.changes(&within).for_each(|changes| changes.note_fresh(own));
        }
        if let Some(own) = event.self_handle().filter(|_| !is_directory && mask & CHANGES != 0) {
            self.changes(&within).for_each(|changes| changes.note_file(own));
        }
        let name = if name.is_empty() { b"." } else { name };
        self.changes(&within).for_each(|changes| changes.note(directory, name));
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

    #[test]
    fn all_of_a_long_queue_is_taken() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let root = OwnedFd::from(std::fs::File::open(directory.path()).unwrap());
        let watch = Arc::new(Watch::start(root, Backend::Renames, Whose::Everybodys).unwrap());
        let _watched = watch.tree(directory.path());
        // While this is held nobody else takes events out.
        let mut noting = watch.shared.noting();
        for dir in 0..20 {
            let dir = directory.path().join(dir.to_string());
            std::fs::create_dir(&dir).unwrap();
            for file in 0..1000 {
                std::fs::write(dir.join(file.to_string()), "x").unwrap();
            }
        }
        noting.drain(&watch.shared.group);
        let counted = noting.trees[0].changes.directories().map(|(_, names)| match names {
            super::super::changes::Names::Some(some) => some.len(),
            super::super::changes::Names::All => panic!("too many"),
        });
        // Each directory has its files, and the root the directories.
        assert_eq!(counted.sum::<usize>(), 20_020);
    }
}
