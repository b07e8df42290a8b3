//! Watching one tree with inotify, where its file system cannot be watched as a whole: a watch on each directory. It
//! tells names alone, and of no directory that is renamed what it was: such a one is watched anew in its new place,
//! and all that is in it counts as changed. Where it gets too much it stops, and is begun anew by who looks at
//! everything then. It must not know what is made of the changes.

mod directories;

use std::collections::HashSet;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_proto::Fault;
use rustix::fs::inotify::{self, CreateFlags, Event, ReadFlags, Reader};
use rustix::io::Errno;

use self::directories::Directories;
use super::changes::{Changes, Lost};
use super::key;
use super::reading::{Noting, Reading};
use super::watch::Whose;
use crate::confine::{Node, Tree, has_vanished};
use crate::metadata::{Kind, Stat};
use crate::names::Numbered;

/// The read buffer: some thousand events.
const BUFFER: usize = 256 * 1024;
/// So many directories are watched anew because they, or one that they are in, were renamed. Each costs the kernel's
/// queue an event, and whoever waits for what is noted some time.
const MAX_RENAMED: usize = 5_000;
/// So many names, and renames, are remembered until the queue is empty.
const MAX_PENDING: usize = 100_000;
/// What changes a file itself, or the directory that is watched.
const CHANGES: ReadFlags = ReadFlags::MODIFY.union(ReadFlags::CLOSE_WRITE).union(ReadFlags::ATTRIB);
/// A name has another inode now.
const COMES: ReadFlags = ReadFlags::CREATE.union(ReadFlags::MOVED_TO);
/// A name has gone.
const GOES: ReadFlags = ReadFlags::DELETE.union(ReadFlags::MOVED_FROM);
/// File systems that change through this kernel alone: bcachefs, btrfs, ext2 to ext4, F2FS, overlayfs, tmpfs, XFS, ZFS.
const LOCAL: [i64; 8] = [
    0xca45_1a4e,
    0x9123_683e,
    0xef53,
    0xf2f5_2010,
    0x794c_7630,
    0x0102_1994,
    0x5846_5342,
    0x2fc1_2fc1,
];

/// Whether it can tell whose changes of what `root` is on.
///
/// # Errors
/// It cannot.
pub fn can_watch(root: BorrowedFd<'_>, whose: Whose) -> Result<(), Fault> {
    if whose == Whose::Others {
        return Err(Fault::precondition("inotify does not tell whose changes they are"));
    }
    let found = rustix::fs::fstatfs(root)
        .map_err(|e| Fault::io("it cannot be told what a root is on", &e.into()))?;
    if LOCAL.contains(&(found.f_type & 0xffff_ffff)) {
        return Ok(());
    }
    Err(Fault::precondition("this file system may be changed by others than this kernel"))
}

/// A tree that is watched.
#[derive(Debug)]
pub struct Watching {
    root: PathBuf,
    reading: Mutex<Reading<Noted>>,
}

impl Watching {
    /// Watches the tree at `root`, from now on.
    ///
    /// # Errors
    /// It is not there, or has too many directories.
    pub fn start(root: &Path) -> Result<Self, Fault> {
        let (queue, noted) = Noted::of(root)?;
        if noted.failed.is_some() {
            return Err(Fault::precondition(
                "not all directories of the tree can be watched (fs.inotify.max_user_watches)",
            ));
        }
        let reading = Mutex::new(Reading::start(queue, noted)?);
        Ok(Self { root: root.to_owned(), reading })
    }

    /// See [`super::Watched::take`].
    pub fn take(&self) -> Changes {
        let reading = self.reading();
        let mut noted = reading.drained();
        noted.lose_if_failed();
        noted.end_renames();
        noted.renamed = 0;
        std::mem::take(&mut noted.changes)
    }

    /// See [`super::Watched::look`].
    pub fn look<R>(&self, at: impl FnOnce(&Changes) -> R) -> R {
        let reading = self.reading();
        let mut noted = reading.drained();
        noted.lose_if_failed();
        at(&noted.changes)
    }

    /// See [`super::Watched::put_back`].
    pub fn put_back(&self, changes: Changes) {
        self.reading().noting().changes.put_back(changes);
    }

    /// See [`super::Watched::renew`].
    pub fn renew(&self) {
        let mut reading = self.reading();
        let why = reading.noting().failed;
        let Some(why @ (Lost::Overflow | Lost::TooMany)) = why else { return };
        // By a queue of its own: of the old one the kernel tells no more than that it is full.
        let Ok((queue, mut noted)) = Noted::of(&self.root) else { return };
        if noted.failed.is_some() {
            // Nor will it do the next time.
            reading.noting().failed = noted.failed;
            return;
        }
        noted.changes.lose(why);
        if let Ok(new) = Reading::start(queue, noted) {
            *reading = new;
        }
    }

    fn reading(&self) -> MutexGuard<'_, Reading<Noted>> {
        // It is replaced as a whole.
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is watched, and what has changed in it.
#[derive(Debug)]
struct Noted {
    tree: Tree,
    directories: Directories,
    changes: Changes,
    /// Files with several names have been met in it.
    has_links: bool,
    /// How many directories have another place since somebody last asked.
    renamed: usize,
    /// The names that were looked at since the queue was empty: what was found there may be what came afterwards.
    examined: HashSet<(i32, Box<[u8]>)>,
    /// The renames of which only the beginning was told.
    leaving: HashSet<u32>,
    buffer: Vec<MaybeUninit<u8>>,
    /// It is not watched any more, and why.
    failed: Option<Lost>,
}

/// A directory that is to be watched, and the watch of the one that it is in; none for the root.
#[derive(Debug)]
struct Unwatched {
    parent: Option<i32>,
    node: Arc<Node>,
}

/// An event that is not bound to the buffer.
#[derive(Debug)]
struct Told {
    watch: i32,
    what: ReadFlags,
    /// Empty: it is about the directory that is watched.
    name: Box<[u8]>,
    /// Both ends of a rename have the same.
    cookie: u32,
}

impl Noting for Noted {
    type Queue = OwnedFd;

    fn batch(&mut self, queue: &OwnedFd) -> u64 {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut reader = Reader::new(queue.as_fd(), &mut buffer);
        let mut taken = 0;
        loop {
            match reader.next().map(|event| Told::from(&event)) {
                Ok(told) => {
                    taken += 1;
                    self.take(queue, &told);
                }
                Err(Errno::AGAIN) => {
                    self.end_renames();
                    self.examined.clear();
                    break;
                }
                Err(Errno::INTR) => break,
                Err(_) => {
                    self.give_up(queue, Lost::Unreadable);
                    break;
                }
            }
            if reader.is_buffer_empty() || self.failed.is_some() {
                break;
            }
        }
        self.buffer = buffer;
        taken
    }

    fn has_failed(&self) -> bool {
        self.failed.is_some()
    }
}

impl From<&Event<'_>> for Told {
    fn from(event: &Event<'_>) -> Self {
        let name = event.file_name().map_or(b"".as_slice(), |name| name.to_bytes());
        let (watch, what, cookie) = (event.wd(), event.events(), event.cookie());
        Self { watch, what, name: name.into(), cookie }
    }
}

impl Noted {
    /// Nothing yet, of the tree at `root`, which is watched from now on.
    fn of(root: &Path) -> Result<(OwnedFd, Self), Fault> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|e| Fault::io("no inotify queue can be had", &e.into()))?;
        let mut noted = Self {
            tree: Tree::open_root(root)?,
            directories: Directories::default(),
            changes: Changes::default(),
            has_links: false,
            renamed: 0,
            examined: HashSet::new(),
            leaving: HashSet::new(),
            buffer: vec![MaybeUninit::uninit(); BUFFER],
            failed: None,
        };
        noted.watch(&queue, None, Node::root());
        Ok((queue, noted))
    }

    fn take(&mut self, queue: &OwnedFd, told: &Told) {
        if told.what.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.give_up(queue, Lost::Overflow);
        }
        let Some(node) = self.directories.node(told.watch) else {
            // Of one that is not watched there any more. Where it is now it is looked at wholly; not so other names of
            // what may have changed in it and gone.
            if self.has_links && !told.what.contains(ReadFlags::IGNORED) {
                self.changes.lose(Lost::Unplaced);
            }
            return;
        };
        if told.what.contains(ReadFlags::UNMOUNT) {
            return self.give_up(queue, Lost::Unreadable);
        }
        if told.what.contains(ReadFlags::IGNORED) {
            return self.directories.forget(told.watch, |_| {});
        }
        if self.examined.len().max(self.leaving.len()) > MAX_PENDING {
            return self.give_up(queue, Lost::TooMany);
        }
        if told.what.contains(ReadFlags::MOVED_FROM) {
            self.leaving.insert(told.cookie);
        } else if told.what.contains(ReadFlags::MOVED_TO) {
            self.leaving.remove(&told.cookie);
        }
        let directory = key::of_path(&node.path());
        if told.name.is_empty() {
            return self.changes.note(&directory, b".");
        }
        if !told.what.contains(ReadFlags::ISDIR) {
            self.file(&node, told);
        } else if !told.what.intersects(COMES | GOES) {
            // It is told by its own watch.
            return;
        }
        self.changes.note(&directory, &told.name);
        if told.what.contains(ReadFlags::DELETE | ReadFlags::ISDIR) {
            // Its watch has gone with it.
            self.directories.forget_name(told.watch, &told.name, |_| {});
        } else if told.what.contains(ReadFlags::ISDIR) {
            self.went(queue, told);
            if told.what.intersects(COMES) && self.failed.is_none() {
                self.watch(queue, Some(told.watch), node.child(&told.name));
            }
        }
    }

    /// A file that came or changed may have other names, which nobody tells; it is looked for under its name, and
    /// that may have gone, or be another's by now. Then which file it was is not known any more.
    fn file(&mut self, node: &Arc<Node>, told: &Told) {
        let comes = told.what.intersects(COMES);
        if !comes && !told.what.intersects(CHANGES) {
            return;
        }
        let is_again = !self.examined.insert((told.watch, told.name.clone()));
        let found = self.tree.open(node).and_then(|fd| Stat::of(&fd, &told.name));
        match found {
            Ok(found) if found.kind == Kind::Directory || (comes && is_again) => {
                self.changes.lose(Lost::Unplaced);
            }
            Ok(found) if found.nlink > 1 => {
                self.has_links = true;
                self.changes.note_file(&key::of_inode(found.identity()));
                if told.what.contains(ReadFlags::CREATE) {
                    self.changes.lose(Lost::Unplaced);
                }
            }
            Ok(_) => {}
            Err(errno) if has_vanished(errno) => self.changes.lose(Lost::Unplaced),
            Err(_) => self.changes.lose(Lost::Unreadable),
        }
    }

    fn lose_if_failed(&mut self) {
        if let Some(why) = self.failed {
            self.changes.lose(why);
        }
    }

    /// What has left the tree can be changed from outside, with what has other names here.
    fn end_renames(&mut self) {
        if !self.leaving.is_empty() && self.has_links {
            self.changes.lose(Lost::Unplaced);
        }
        self.leaving.clear();
    }

    /// Watches a directory and all below: first it, then what is in it, so that nothing comes unseen. `parent`: the
    /// watch of the directory that it is in; none for the root.
    fn watch(&mut self, queue: &OwnedFd, parent: Option<i32>, node: Arc<Node>) {
        let mut stack = vec![Unwatched { parent, node }];
        while let Some(next) = stack.pop() {
            match self.watch_one(queue, &next) {
                Ok(below) => stack.extend(below),
                // What was done in it, to files that have other names, was not told.
                Err(errno) if has_vanished(errno) => self.changes.lose(Lost::Unplaced),
                Err(Errno::XDEV) => {}
                Err(Errno::NOSPC) => return self.give_up(queue, Lost::Unwatched),
                Err(_) => return self.give_up(queue, Lost::Unreadable),
            }
        }
    }

    /// Watches one directory. Answers those in it that are to be watched yet.
    fn watch_one(&mut self, queue: &OwnedFd, next: &Unwatched) -> Result<Vec<Unwatched>, Errno> {
        let Unwatched { parent, node } = next;
        let fd = self.tree.open(node)?;
        let place = parent.map(|parent| (parent, node.place().map_or(&[][..], |(_, name)| name)));
        let mut watch = directories::add(queue, fd.as_fd())?;
        if self.directories.is_at(watch, place) {
            return Ok(Vec::new());
        }
        if self.directories.node(watch).is_some() {
            // It was elsewhere, and the event that says so is still to come: what it has told until now is of there.
            self.directories.forget(watch, |watch| unwatch(queue, watch));
            watch = directories::add(queue, fd.as_fd())?;
        }
        if !self.directories.add(watch, place, Arc::clone(node), |watch| unwatch(queue, watch)) {
            unwatch(queue, watch);
            return Err(Errno::NOSPC);
        }
        let names = Numbered::read(&fd)?;
        let has_several =
            |name| Stat::of(&fd, name).is_ok_and(|s| s.kind != Kind::Directory && s.nlink > 1);
        self.has_links = self.has_links || names.others().any(has_several);
        let below = |name| Unwatched { parent: Some(watch), node: node.child(name) };
        Ok(names.directories().map(below).collect())
    }

    /// A directory has another place than before, or is not in the tree any more.
    fn went(&mut self, queue: &OwnedFd, told: &Told) {
        let mut renamed = 0;
        self.directories.forget_name(told.watch, &told.name, |watch| {
            renamed += 1;
            unwatch(queue, watch);
        });
        self.renamed += renamed;
        if self.renamed > MAX_RENAMED {
            self.give_up(queue, Lost::TooMany);
        }
    }

    /// It is not watched any more.
    fn give_up(&mut self, queue: &OwnedFd, why: Lost) {
        self.directories.forget_all(|watch| unwatch(queue, watch));
        self.failed = Some(why);
    }
}

fn unwatch(queue: &OwnedFd, watch: i32) {
    // One whose directory has gone has gone with it.
    let _ = inotify::remove_watch(queue, watch);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::reading::drain;

    /// A tree in memory, and where it is.
    fn a_tree() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let root = dir.path().canonicalize().unwrap();
        (dir, root)
    }

    #[test]
    fn what_the_kernel_could_not_keep_is_lost_and_nobody_begins_anew_while_events_come() {
        let (_dir, root) = a_tree();
        std::fs::create_dir(root.join("a")).unwrap();
        let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let limit: u32 = limit.trim().parse().unwrap();
        let (queue, mut noted) = Noted::of(&root).unwrap();
        for file in 0..=limit {
            std::fs::write(root.join(format!("a/{file}")), "").unwrap();
        }
        drain(&mut noted, &queue);
        // To begin anew with the same queue would fill it with what is told of each directory that was watched.
        assert_eq!(noted.failed, Some(Lost::Overflow));
    }

    #[test]
    fn what_was_given_up_is_watched_again_by_who_looks_at_everything() {
        let (_dir, root) = a_tree();
        std::fs::create_dir_all(root.join("b/c")).unwrap();
        let watching = Watching::start(&root).unwrap();
        {
            let reading = watching.reading();
            let what = ReadFlags::QUEUE_OVERFLOW;
            let full = Told { watch: -1, what, name: Box::default(), cookie: 0 };
            let queue = inotify::init(CreateFlags::CLOEXEC).unwrap();
            reading.noting().take(&queue, &full);
        }
        for _ in 0..2 {
            assert_eq!(watching.take().lost(), Some(Lost::Overflow), "it is not watched");
        }
        watching.renew();
        assert_eq!(watching.take().lost(), Some(Lost::Overflow), "what happened until now");
        watching.renew();
        std::fs::write(root.join("b/c/new"), "").unwrap();
        let changes = watching.take();
        assert_eq!(changes.lost(), None);
        assert!(changes.is_noted(&key::of_path(b"b/c"), b"new"));
        assert_eq!(changes.directories().count(), 1);
    }

    #[test]
    fn many_directories_that_are_renamed_are_too_many() {
        let (_dir, root) = a_tree();
        (0..MAX_RENAMED / 2).for_each(|number| {
            std::fs::create_dir_all(root.join(format!("0/{number}"))).unwrap();
        });
        let rename = |from: u32| {
            let name = |number: u32| root.join(number.to_string());
            std::fs::rename(name(from), name(from + 1)).unwrap();
        };
        let (queue, mut noted) = Noted::of(&root).unwrap();
        for (from, failed) in [(0, None), (1, Some(Lost::TooMany))] {
            rename(from);
            drain(&mut noted, &queue);
            assert_eq!(noted.failed, failed);
        }
        let watching = Watching::start(&root).unwrap();
        for from in 2..5 {
            rename(from);
            assert_eq!(watching.take().lost(), None, "they were not many since it was taken");
        }
        // Those that are removed cost nothing.
        std::fs::remove_dir_all(root.join("5")).unwrap();
        assert_eq!(watching.take().lost(), None);
    }

    /// What is lost after `does`, which nobody has looked at while it went on; `before` was looked at.
    fn lost_after(before: impl Fn(&Path), does: impl Fn(&Path)) -> Option<Lost> {
        let (_dir, root) = a_tree();
        for name in ["file", "linked"] {
            std::fs::write(root.join(name), "").unwrap();
        }
        let (queue, mut noted) = Noted::of(&root).unwrap();
        before(&root);
        for _ in 0..2 {
            drain(&mut noted, &queue);
            noted.batch(&queue);
        }
        noted.changes = Changes::default();
        does(&root);
        drain(&mut noted, &queue);
        noted.end_renames();
        noted.changes.lost()
    }

    fn append(path: &Path) {
        let file = std::fs::File::options().append(true).open(path).unwrap();
        std::io::Write::write_all(&mut &file, b"more").unwrap();
    }

    fn link(root: &Path) {
        std::fs::hard_link(root.join("linked"), root.join("another")).unwrap();
    }

    #[test]
    fn a_file_that_is_changed_where_it_is_is_known() {
        let appends = |root: &Path| append(&root.join("file"));
        assert_eq!(lost_after(|_| (), appends), None);
        assert_eq!(lost_after(link, |root| append(&root.join("linked"))), None);
        let comes = |root: &Path| {
            std::fs::write(root.join("new"), "").unwrap();
            std::fs::rename(root.join("file"), root.join("renamed")).unwrap();
        };
        assert_eq!(lost_after(link, comes), None);
        assert_eq!(
            lost_after(|_| (), |root| std::fs::remove_file(root.join("file")).unwrap()),
            None
        );
    }

    #[test]
    fn what_changed_by_a_name_that_has_gone_is_not_known() {
        let through = |root: &Path, name: &str| {
            append(&root.join(name));
            std::fs::remove_file(root.join(name)).unwrap();
        };
        // By a link that was there for a moment.
        let by_a_link = |root: &Path| {
            link(root);
            through(root, "another");
        };
        assert_eq!(lost_after(|_| (), by_a_link), Some(Lost::Unplaced));
        // Under another name than it had.
        let lost = lost_after(link, |root| {
            std::fs::rename(root.join("another"), root.join("renamed")).unwrap();
            through(root, "renamed");
        });
        assert_eq!(lost, Some(Lost::Unplaced));
        // Where more names have changed than are kept.
        let (_dir, root) = a_tree();
        std::fs::write(root.join("linked"), "").unwrap();
        link(&root);
        let (queue, mut noted) = Noted::of(&root).unwrap();
        let top = key::of_path(b"");
        (0..=10_000_u32).for_each(|number| noted.changes.note(&top, &number.to_le_bytes()));
        assert!(noted.changes.is_noted(&top, b"another"), "it is kept by name");
        through(&root, "another");
        drain(&mut noted, &queue);
        assert_eq!(noted.changes.lost(), Some(Lost::Unplaced));
        // In a directory that has another name by now.
        let in_directory = |root: &Path| {
            std::fs::create_dir(root.join("dir")).unwrap();
            std::fs::hard_link(root.join("linked"), root.join("dir/link")).unwrap();
        };
        let lost = lost_after(in_directory, |root| {
            std::fs::rename(root.join("dir"), root.join("renamed")).unwrap();
            through(root, "renamed/link");
        });
        assert_eq!(lost, Some(Lost::Unplaced));
        // In a directory that was there for a moment.
        let in_one = |root: &Path| {
            in_directory(root);
            append(&root.join("dir/link"));
            std::fs::remove_dir_all(root.join("dir")).unwrap();
        };
        assert_eq!(lost_after(|_| (), in_one), Some(Lost::Unplaced));
    }

    #[test]
    fn what_changed_by_a_name_that_is_anothers_by_now_is_not_known() {
        let lost = lost_after(link, |root| {
            append(&root.join("another"));
            std::fs::rename(root.join("file"), root.join("another")).unwrap();
        });
        assert_eq!(lost, Some(Lost::Unplaced));
        let lost = lost_after(
            |_| (),
            |root| {
                link(root);
                append(&root.join("another"));
                std::fs::rename(root.join("file"), root.join("another")).unwrap();
            },
        );
        assert_eq!(lost, Some(Lost::Unplaced));
    }

    #[test]
    fn what_is_written_by_a_descriptor_that_has_no_name_is_not_known() {
        use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};
        let (_dir, root) = a_tree();
        let (queue, mut noted) = Noted::of(&root).unwrap();
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = open(&root, flags, Mode::RUSR).unwrap();
        let path = crate::metadata::proc_path(file.as_fd());
        linkat(CWD, path, CWD, root.join("named"), AtFlags::SYMLINK_FOLLOW).unwrap();
        drain(&mut noted, &queue);
        noted.changes = Changes::default();
        rustix::io::write(&file, b"more").unwrap();
        drain(&mut noted, &queue);
        assert_eq!(noted.changes.lost(), Some(Lost::Unplaced));
    }

    #[test]
    fn what_leaves_a_tree_of_files_with_several_names_is_lost() {
        let (outside, _) = a_tree();
        let leaves = |root: &Path| {
            std::fs::rename(root.join("linked"), outside.path().join("left")).unwrap();
        };
        assert_eq!(lost_after(|_| (), leaves), None);
        assert_eq!(lost_after(link, leaves), Some(Lost::Unplaced));
    }
}
