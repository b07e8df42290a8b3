//! The source's walk: depth first, one directory's names at a time, each entry described and put into a
//! batch. It reads no contents, and must not know what the target has.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_proto::Fault;
use rustix::io::Errno;

use crate::attributes::{self, Unread};
use crate::confine::{MAX_DEPTH, Node, Tree, has_vanished};
use crate::digest::EntriesDigest;
use crate::directories::Directories;
use crate::entries::{Entry, Link, What, Withheld};
use crate::halt::Halt;
use crate::metadata::{Handle, Identity, Kind, Stat, Time};
use crate::names::{self, Names};
use crate::options::SourceOptions;
use crate::progress::Counters;
use crate::protocol::{DirStatus, Frame, MAX_BATCH, Purpose};
use crate::report::{Bounded, Note, NoteKind, show};
use crate::window::{Batch, Listed, Window};
use crate::wire::Outbox;

/// A batch is sent when its entries weigh so much, roughly in bytes.
const BATCH_WEIGHT: usize = 48 * 1024;

/// How often an inode that changes its place while it is described is looked at again.
const LOOKS: u32 = 3;

/// A bound on inodes whose other names were not met yet.
pub const MAX_LINKS: usize = 4_000_000;

/// Which owners' files the source gives out.
#[derive(Debug, Clone)]
pub struct Owners {
    own: std::collections::BTreeSet<u32>,
    shared: std::collections::BTreeSet<u32>,
}

impl Owners {
    /// Those of the options.
    pub fn of(options: &SourceOptions) -> Self {
        Self { own: options.uids.clone(), shared: options.shared_uids.clone() }
    }

    /// Why the inode is withheld, if it is.
    pub fn withhold(&self, stat: &Stat) -> Option<Withheld> {
        let is_own = self.own.contains(&stat.uid);
        let is_shared = stat.uid == 0 || self.shared.contains(&stat.uid);
        if !is_own && !self.shared.contains(&stat.uid) {
            Some(Withheld::Foreign(stat.uid))
        } else if is_shared && stat.kind != Kind::Directory && stat.nlink > 1 {
            // The account may have given a name in its home to another's file.
            Some(Withheld::SharedLink(stat.uid))
        } else {
            None
        }
    }
}

/// What the walk finds out beside the listings.
#[derive(Debug, Default)]
pub struct Findings {
    /// Notes for the report.
    pub notes: Bounded<Note>,
    /// Of all entries; made for a comparison, when the walk is over.
    pub entries: Option<blake3::Hash>,
}

/// The walker of one pass.
#[derive(Debug)]
pub struct Walker {
    /// What is walked.
    pub tree: Arc<Tree>,
    /// Frames out.
    pub out: Outbox,
    /// Batches under way.
    pub window: Arc<Window>,
    /// Progress.
    pub counters: Counters,
    /// Stops us.
    pub halt: Halt,
    /// What it finds out beside the listings.
    pub findings: Arc<Mutex<Findings>>,
    /// What the stream is for.
    pub purpose: Purpose,
    manifest: EntriesDigest,
    excludes: HashSet<Vec<u8>>,
    owners: Owners,
    changed_since: Option<Time>,
    doubted: HashSet<Vec<u8>>,
    known: Option<Arc<Directories>>,
    seen: Option<Arc<Mutex<Directories>>>,
    /// Whether the walk that `changed_since` is about was in this directory.
    in_known: bool,
    links: HashMap<Identity, Seen>,
    next_group: u64,
    next_batch: u64,
}

/// An inode with several names.
#[derive(Debug)]
struct Seen {
    group: u64,
    met: u32,
}

/// A directory to walk later.
struct Pending {
    parent: Arc<Node>,
    name: Box<[u8]>,
    identity: Identity,
    in_known: bool,
}

/// What a look at a name gave.
enum Look {
    Entry(Box<(Entry, Option<Stat>)>),
    Skip,
}

impl Walker {
    /// A walker; `options` say what is given out.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one part of the pass, named at the call"
    )]
    pub fn new(
        tree: Arc<Tree>,
        out: Outbox,
        window: Arc<Window>,
        counters: Counters,
        halt: Halt,
        findings: Arc<Mutex<Findings>>,
        purpose: Purpose,
        options: &SourceOptions,
    ) -> Self {
        let bytes = |path: &std::path::PathBuf| path.as_os_str().as_bytes().to_vec();
        Self {
            tree,
            out,
            window,
            counters,
            halt,
            findings,
            purpose,
            manifest: EntriesDigest::default(),
            excludes: options.excludes.iter().map(bytes).collect(),
            owners: Owners::of(options),
            changed_since: options.changed_since.map(Time::from_system),
            doubted: options.doubted.iter().map(bytes).collect(),
            known: options.known.clone(),
            seen: options.seen.clone(),
            in_known: false,
            links: HashMap::new(),
            next_group: 0,
            next_batch: 0,
        }
    }

    /// Walks the tree.
    ///
    /// # Errors
    /// The root cannot be read, or the pass was stopped.
    pub fn run(mut self) -> Result<(), Fault> {
        let root = Node::root();
        self.send_root()?;
        let mut stack = Vec::new();
        self.in_known = true;
        self.directory(&root, None, &mut stack)?;
        while let Some(Pending { parent, name, identity, in_known }) = stack.pop() {
            self.halt.check()?;
            self.in_known = in_known;
            self.directory(&parent.child(&name), Some(identity), &mut stack)?;
        }
        self.out.put(&Frame::WalkEnd)?;
        self.out.flush()?;
        if self.purpose == Purpose::Verify {
            let entries = std::mem::take(&mut self.manifest).finish();
            self.findings().entries = Some(entries);
        }
        self.window.all_listed();
        Ok(())
    }

    fn send_root(&mut self) -> Result<(), Fault> {
        let fail = |errno: Errno| Fault::io("the root of the tree cannot be read", &errno.into());
        let root = self.tree.root_fd();
        let stat = Stat::of_fd(root).map_err(fail)?;
        let attributes = match attributes::read_all(Handle::Open(root)) {
            Ok(attributes) => attributes,
            Err(Unread::TooLarge) => {
                return Err(Fault::precondition("the root's extended attributes are too large"));
            }
            Err(Unread::Failed(errno)) => return Err(fail(errno)),
        };
        let entry = described(&stat, What::Directory, attributes);
        self.manifest.entry(&entry);
        self.out.put(&Frame::Root(entry)).map(drop)
    }

    /// Lists one directory and puts its subdirectories on the stack, the first on top.
    fn directory(
        &mut self,
        node: &Arc<Node>,
        expected: Option<Identity>,
        stack: &mut Vec<Pending>,
    ) -> Result<(), Fault> {
        let opened = self.tree.open(node).and_then(|fd| {
            let identity = Stat::of_fd(&fd)?.identity();
            if expected.is_some_and(|e| identity != e) {
                return Err(Errno::STALE);
            }
            Names::read(&fd).map(|names| (fd, identity, names))
        });
        let (fd, identity, names) = match opened {
            Ok(opened) => opened,
            Err(errno) => return self.unlisted(node, errno),
        };
        self.enter(node, identity)?;
        self.out.put(&Frame::Dir(DirStatus::Listed))?;
        let first = stack.len();
        let mut batch = Collecting::default();
        for name in names.iter() {
            self.halt.check()?;
            let (entry, stat) = match self.look(fd.as_fd(), node, name) {
                Look::Entry(found) => *found,
                Look::Skip => continue,
            };
            if let (What::Directory, Some(stat)) = (&entry.what, &stat) {
                let (parent, name) = (Arc::clone(node), name.into());
                let (identity, in_known) = (stat.identity(), self.in_known);
                stack.push(Pending { parent, name, identity, in_known });
            }
            if self.purpose == Purpose::Verify {
                self.manifest.entry(&entry);
            }
            batch.push(entry, stat);
            if batch.is_full() {
                self.send_batch(node, std::mem::take(&mut batch))?;
            }
        }
        self.send_batch(node, batch)?;
        self.manifest.directory_end();
        stack[first..].reverse();
        self.out.put(&Frame::DirEnd).map(drop)
    }

    /// Notes the directory, and whether it was there before; `in_known` is yet what its parent was.
    fn enter(&mut self, node: &Node, identity: Identity) -> Result<(), Fault> {
        if self.known.is_none() && self.seen.is_none() {
            return Ok(());
        }
        let path = node.path();
        self.in_known &= self.known.as_ref().is_none_or(|known| known.has(&path, identity));
        if !self.in_known && node.depth() == 0 {
            return Err(Fault::precondition(
                "the root of the tree is another directory than it was in the pass before",
            )
            .remedy("check that its file system is mounted, then begin anew"));
        }
        if let Some(seen) = &self.seen {
            seen.lock().unwrap_or_else(PoisonError::into_inner).note(&path, identity);
        }
        Ok(())
    }

    fn unlisted(&mut self, node: &Node, errno: Errno) -> Result<(), Fault> {
        if node.depth() == 0 {
            return Err(Fault::io("the root of the tree cannot be read", &errno.into()));
        }
        let status = match errno {
            errno if has_vanished(errno) || errno == Errno::XDEV => DirStatus::Vanished,
            other => DirStatus::Unreadable(other.raw_os_error().unsigned_abs()),
        };
        self.out.put(&Frame::Dir(status)).map(drop)
    }

    fn send_batch(&mut self, node: &Arc<Node>, batch: Collecting) -> Result<(), Fault> {
        if batch.entries.is_empty() {
            return Ok(());
        }
        if !self.window.has_room() {
            // What we wait for may be the answer to what still lies in our outbox.
            self.out.flush()?;
            self.window.wait_for_room()?;
        }
        self.counters.scanned(batch.entries.len() as u64);
        let number = self.next_batch;
        self.next_batch += 1;
        self.window.list(Batch { number, node: Arc::clone(node), entries: batch.listed });
        self.out.put(&Frame::Batch(batch.entries)).map(drop)
    }

    fn look(&mut self, dir: BorrowedFd<'_>, node: &Node, name: &[u8]) -> Look {
        if names::is_reserved(name) {
            self.note(NoteKind::Reserved, node, name, "Ferry keeps this name for temporary files");
            return Look::Skip;
        }
        let withheld = |why| {
            let entry = Entry { name: name.to_vec(), ..Entry::of(What::Withheld(why)) };
            Look::Entry(Box::new((entry, None)))
        };
        if !self.excludes.is_empty() && self.excludes.contains(&node.path_of(name)) {
            return withheld(Withheld::Excluded);
        }
        let mut looks = 0;
        loop {
            looks += 1;
            let described = Stat::of(dir, name)
                .map_err(Unread::from)
                .and_then(|stat| self.describe(dir, node, name, stat));
            match described {
                Ok(look) => return look,
                Err(Unread::TooLarge) => return withheld(Withheld::Attributes),
                Err(Unread::Failed(Errno::NOENT)) => return Look::Skip,
                Err(Unread::Failed(Errno::STALE | Errno::INVAL)) if looks < LOOKS => {}
                Err(Unread::Failed(errno)) => {
                    return withheld(Withheld::Unreadable(errno.raw_os_error().unsigned_abs()));
                }
            }
        }
    }

    fn describe(
        &mut self,
        dir: BorrowedFd<'_>,
        node: &Node,
        name: &[u8],
        stat: Stat,
    ) -> Result<Look, Unread> {
        let too_deep = stat.kind == Kind::Directory && node.depth() + 1 >= MAX_DEPTH;
        let withheld = if stat.is_mount {
            Some(Withheld::Mount)
        } else if too_deep {
            Some(Withheld::TooDeep)
        } else {
            self.owners.withhold(&stat)
        };
        let what = match (withheld, stat.kind) {
            (None, Kind::Socket) => {
                self.note(NoteKind::Socket, node, name, "a socket is not copied");
                return Ok(Look::Skip);
            }
            (Some(why), _) => What::Withheld(why),
            (None, Kind::File) => What::File(stat.size),
            (None, Kind::Directory) => What::Directory,
            (None, Kind::Fifo) => What::Fifo,
            (None, Kind::Device) => What::Device,
            (None, Kind::Symlink) => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
                What::Symlink(target.into_bytes())
            }
        };
        let attributes = match what {
            What::File(_) | What::Directory | What::Fifo => attributes::read_at(dir, name, &stat)?,
            _ => Vec::new(),
        };
        if stat.is_locked {
            let text = "its immutable or append-only flag is not copied";
            self.note(NoteKind::NotCopied, node, name, text);
        }
        let mut entry = described(&stat, what, attributes);
        entry.name = name.to_vec();
        entry.doubtful = match (self.purpose, self.changed_since) {
            (_, Some(since)) => {
                stat.ctime >= since
                    || !self.in_known
                    || (!self.doubted.is_empty() && self.doubted.contains(&node.path_of(name)))
            }
            (Purpose::Pass, None) => false,
            (Purpose::Verify, None) => true,
        };
        let linkable = !matches!(entry.what, What::Directory | What::Withheld(_));
        if linkable && stat.nlink > 1 {
            entry.link = self.link(&stat);
        }
        Ok(Look::Entry(Box::new((entry, Some(stat)))))
    }

    /// The group of an inode with several names.
    fn link(&mut self, stat: &Stat) -> Option<Link> {
        let names = stat.nlink;
        let full = self.links.len() >= MAX_LINKS;
        match self.links.entry(stat.identity()) {
            std::collections::hash_map::Entry::Occupied(mut seen) => {
                let Seen { group, met } = seen.get_mut();
                *met += 1;
                let link = Link { group: *group, names };
                if *met >= names {
                    seen.remove();
                }
                Some(link)
            }
            // Beyond the bound names become files of their own; the comparison shows it.
            std::collections::hash_map::Entry::Vacant(_) if full => None,
            std::collections::hash_map::Entry::Vacant(free) => {
                let group = self.next_group;
                self.next_group += 1;
                free.insert(Seen { group, met: 1 });
                Some(Link { group, names })
            }
        }
    }

    fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, kind: NoteKind, node: &Node, name: &[u8], text: &str) {
        let note = Note { kind, path: show(&node.path_of(name)), text: text.to_owned() };
        self.findings().notes.push(note);
    }
}

fn described(stat: &Stat, what: What, attributes: Vec<attributes::Attribute>) -> Entry {
    let Stat { mode, uid, gid, mtime, .. } = *stat;
    Entry { mode, uid, gid, mtime, attributes, ..Entry::of(what) }
}

/// A batch that is being filled.
#[derive(Default)]
struct Collecting {
    entries: Vec<Entry>,
    listed: Vec<Option<Listed>>,
    weight: usize,
}

impl Collecting {
    fn push(&mut self, entry: Entry, stat: Option<Stat>) {
        let attributes: usize = entry.attributes.iter().map(|a| a.name.len() + a.value.len()).sum();
        let target = if let What::Symlink(target) = &entry.what { target.len() } else { 0 };
        self.weight += 32 + entry.name.len() + attributes + target;
        self.listed.push(match (&entry.what, stat) {
            (What::File(size), Some(stat)) => Some(Listed {
                name: entry.name.as_slice().into(),
                identity: stat.identity(),
                ctime: stat.ctime,
                size: *size,
                doubtful: entry.doubtful,
            }),
            _ => None,
        });
        self.entries.push(entry);
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= MAX_BATCH || self.weight >= BATCH_WEIGHT
    }
}
