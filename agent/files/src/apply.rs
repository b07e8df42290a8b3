//! The target's visitor of a pass: decides for each entry what is to be done, does it at once or when
//! its content has come, and ends each directory when all in it is done. What it may do is the guard's
//! word; how inodes are made is `make`'s; receiving contents is `incoming`'s.

use std::cell::Cell;
use std::collections::{BTreeSet, HashSet};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ferry_proto::Fault;
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use crate::confine::{Node, Tree};
use crate::entries::{Entry, What, Withheld};
use crate::guard::{self, Wanted};
use crate::halt::Halt;
use crate::incoming::{Awaited, Incoming};
use crate::links::{Links, Meeting};
use crate::make;
use crate::metadata::{Handle, Identity, Kind, Stat};
use crate::mirror::{Here, Verdict, Visitor};
use crate::options::TargetOptions;
use crate::progress::Counters;
use crate::protocol::{DirStatus, Frame, Place};
use crate::report::{Note, NoteKind, PassReport, Refusal, show};
use crate::send::Summary;
use crate::trouble::judge;
use crate::wire;

/// A directory while something in it is still to be done.
#[derive(Debug)]
pub struct DirState {
    /// Where it is.
    pub node: Arc<Node>,
    /// What it is to look like in the end; none if that is not ours to say.
    wanted: Option<Wanted>,
    /// Which inode was found or made.
    identity: Option<Identity>,
    created: bool,
    /// Entries whose content or whose first name is to come.
    pending: Cell<usize>,
    listed: Cell<bool>,
}

/// A name that waits until the inode's first name stands.
#[derive(Debug)]
pub struct Waiting {
    /// Its directory.
    pub dir: Rc<DirState>,
    /// Its name there.
    pub name: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct Applier {
    pub(crate) tree: Arc<Tree>,
    pub(crate) options: TargetOptions,
    pub(crate) halt: Halt,
    pub(crate) counters: Counters,
    pub(crate) report: PassReport,
    pub(crate) incoming: Incoming,
    pub(crate) links: Links<Waiting>,
    /// Inodes here with several names that already are some entry's.
    claimed: HashSet<Identity>,
    /// The account's user ids here.
    own_uids: BTreeSet<u32>,
    began: Instant,
}

/// How an entry that needs no content came out.
pub(crate) enum Done {
    Kept,
    Mended,
    Created,
    Refused,
}

impl Applier {
    /// A visitor that makes `tree` equal.
    pub fn new(tree: Arc<Tree>, options: TargetOptions, halt: Halt, counters: Counters) -> Self {
        let own_uids = options.ids.uids.values().copied().collect();
        Self {
            tree,
            options,
            halt,
            counters,
            report: PassReport::default(),
            incoming: Incoming::default(),
            links: Links::default(),
            claimed: HashSet::new(),
            own_uids,
            began: Instant::now(),
        }
    }

    pub(crate) fn refuse(&mut self, path: &[u8], reason: impl Into<String>) {
        self.report.refused.push(Refusal { path: show(path), reason: reason.into() });
    }

    /// Refuses the entry, or ends the pass.
    pub(crate) fn trouble(&mut self, path: &[u8], doing: &str, errno: Errno) -> Result<(), Fault> {
        let reason = judge(&show(path), doing, errno)?;
        self.refuse(path, reason);
        Ok(())
    }

    pub(crate) fn note(&mut self, kind: NoteKind, path: &[u8], text: &str) {
        self.report.notes.push(Note { kind, path: show(path), text: text.to_owned() });
    }

    pub(crate) fn count(&mut self, done: &Done) {
        match done {
            Done::Kept => self.report.unchanged += 1,
            Done::Mended => self.report.metadata_changed += 1,
            Done::Created => self.report.created += 1,
            Done::Refused => {}
        }
    }

    /// Whether what was found may stay and be mended: it has the right content, and nobody else's
    /// inode changes with it.
    fn may_stay(&mut self, here: Here<'_>, entry: &Entry, found: &Stat) -> bool {
        let same = match (&entry.what, found.kind) {
            (What::File(size), Kind::File) => {
                found.size == *size && found.mtime == entry.mtime && !entry.doubtful
            }
            (What::Symlink(target), Kind::Symlink) => {
                rustix::fs::readlinkat(here.fd, entry.name.as_slice(), Vec::new())
                    .is_ok_and(|have| have.as_bytes() == target.as_slice())
            }
            (What::Fifo, Kind::Fifo) => true,
            _ => false,
        };
        // A name in the home may be one of a file that is not the account's.
        if !same || !self.own_uids.contains(&found.uid) {
            return false;
        }
        found.nlink == 1
            || (!self.options.ids.is_shared_uid(found.uid) && self.claimed.insert(found.identity()))
    }

    /// An entry that is no directory and is not another name of a known inode.
    fn single(
        &mut self,
        dir: &Rc<DirState>,
        here: Here<'_>,
        place: Place,
        entry: Entry,
        wanted: Wanted,
        found: Option<Stat>,
    ) -> Result<bool, Fault> {
        let group = entry.link.map(|link| link.group);
        if let Some(found) = found.filter(|found| self.may_stay(here, &entry, found)) {
            let done = self.mend(here, &entry.name, &found, &wanted)?;
            self.count(&done);
            let stands = !matches!(done, Done::Refused);
            self.first_done(group, here.node, &entry.name, stands.then(|| found.identity()))?;
            return Ok(false);
        }
        if let What::File(size) = entry.what {
            self.counters.wanted(size);
            dir.pending.set(dir.pending.get() + 1);
            let dir = Rc::clone(dir);
            self.incoming.expect(Awaited { place, dir, name: entry.name, wanted, group });
            return Ok(true);
        }
        let path = here.node.path_of(&entry.name);
        let fd = here.fd.as_fd();
        let made = match &entry.what {
            What::Symlink(target) => make::symlink(fd, target),
            _ => make::fifo(fd),
        };
        let identity = match made {
            Ok(fresh) => {
                let dressed = make::dress(Handle::Named(fresh.fd.as_fd()), &wanted)
                    .and_then(|_| Stat::of_fd(&fresh.fd));
                match dressed {
                    Ok(stat) if self.put(here, &fresh.name, &entry.name)? => Some(stat.identity()),
                    Ok(_) => None,
                    Err(errno) => {
                        make::discard(fd, &fresh.name);
                        self.trouble(&path, "given its metadata", errno)?;
                        None
                    }
                }
            }
            Err(errno) => {
                self.trouble(&path, "created", errno)?;
                None
            }
        };
        if identity.is_some() {
            self.count(&Done::Created);
        }
        self.first_done(group, here.node, &entry.name, identity)?;
        Ok(false)
    }

    fn mend(
        &mut self,
        here: Here<'_>,
        name: &[u8],
        found: &Stat,
        wanted: &Wanted,
    ) -> Result<Done, Fault> {
        let fd = here.fd.as_fd();
        let mended = match make::is_dressed(fd, name, found, wanted) {
            Ok(true) => return Ok(Done::Kept),
            Ok(false) => make::redress(fd, name, found, wanted),
            Err(errno) => Err(errno),
        };
        match mended {
            Ok(()) => Ok(Done::Mended),
            Err(errno) => {
                self.trouble(&here.node.path_of(name), "given its metadata", errno)?;
                Ok(Done::Refused)
            }
        }
    }

    fn directory(
        &mut self,
        here: Here<'_>,
        entry: &Entry,
        wanted: Wanted,
        found: Option<Stat>,
    ) -> Result<Verdict<Rc<DirState>>, Fault> {
        let name = entry.name.as_slice();
        let state = |stat: &Stat, created| {
            Verdict::descend(Rc::new(DirState {
                node: here.node.child(name),
                wanted: Some(wanted),
                identity: Some(stat.identity()),
                created,
                pending: Cell::new(0),
                listed: Cell::new(false),
            }))
        };
        match found {
            Some(stat) if stat.kind == Kind::Directory => return Ok(state(&stat, false)),
            Some(_) if !self.clear(here, name)? => return Ok(Verdict::NOTHING),
            _ => {}
        }
        let made = rustix::fs::mkdirat(here.fd, name, Mode::RWXU)
            .and_then(|()| Stat::of(here.fd, name))
            .and_then(|stat| match stat.kind {
                Kind::Directory if stat.uid == rustix::process::geteuid().as_raw() => Ok(stat),
                _ => Err(Errno::STALE),
            });
        match made {
            Ok(stat) => {
                self.count(&Done::Created);
                Ok(state(&stat, true))
            }
            Err(errno) => {
                self.trouble(&here.node.path_of(name), "created", errno)?;
                Ok(Verdict::NOTHING)
            }
        }
    }

    /// One entry of the directory that was pending is done.
    pub(crate) fn one_done(&mut self, dir: &Rc<DirState>) -> Result<(), Fault> {
        dir.pending.set(dir.pending.get().saturating_sub(1));
        self.end_if_done(dir)
    }

    /// Ends a directory in which all is done: its own metadata last, since all before changed its
    /// time.
    fn end_if_done(&mut self, dir: &Rc<DirState>) -> Result<(), Fault> {
        let Some(wanted) =
            dir.wanted.as_ref().filter(|_| dir.listed.get() && dir.pending.get() == 0)
        else {
            return Ok(());
        };
        let dressed = self.tree.open(&dir.node).and_then(|fd| {
            if dir.identity != Some(Stat::of_fd(&fd)?.identity()) {
                return Err(Errno::STALE);
            }
            make::dress(Handle::Open(fd.as_fd()), wanted)
        });
        match dressed {
            Ok(_) if dir.created || dir.node.depth() == 0 => {}
            Ok(true) => self.count(&Done::Mended),
            Ok(false) => self.count(&Done::Kept),
            Err(errno) => self.trouble(&dir.node.path(), "given its metadata", errno)?,
        }
        Ok(())
    }
}

impl Visitor for Applier {
    type Dir = Rc<DirState>;

    fn root(&mut self, node: &Arc<Node>, entry: Entry) -> Result<Self::Dir, Fault> {
        let wanted =
            guard::admit(&entry, &self.options.ids).map_err(|reason| self.refuse(b"", reason)).ok();
        let identity = Stat::of_fd(self.tree.root_fd()).map(|stat| stat.identity()).ok();
        Ok(Rc::new(DirState {
            node: Arc::clone(node),
            wanted,
            identity,
            created: false,
            pending: Cell::new(0),
            listed: Cell::new(false),
        }))
    }

    fn entry(
        &mut self,
        dir: &Self::Dir,
        here: Here<'_>,
        place: Place,
        entry: Entry,
        found: Option<Stat>,
    ) -> Result<Verdict<Self::Dir>, Fault> {
        self.report.entries += 1;
        if entry.what == What::Withheld(Withheld::Excluded) {
            return Ok(Verdict::NOTHING);
        }
        let admitted = match found {
            Some(found) if found.is_mount => {
                Err("something is mounted there at the target, which \
                                                  is not crossed"
                    .to_owned())
            }
            _ => guard::admit(&entry, &self.options.ids),
        };
        let wanted = match admitted {
            Ok(wanted) => wanted,
            Err(reason) => {
                self.refuse(&here.node.path_of(&entry.name), reason);
                return Ok(Verdict::NOTHING);
            }
        };
        if entry.what == What::Directory {
            return self.directory(here, &entry, wanted, found);
        }
        if let Some(link) = entry.link {
            let waiting = || Waiting { dir: Rc::clone(dir), name: entry.name.clone() };
            match self.links.meet(link, waiting)? {
                Meeting::First => {}
                Meeting::Waits => {
                    dir.pending.set(dir.pending.get() + 1);
                    return Ok(Verdict::NOTHING);
                }
                Meeting::Another(master) => {
                    self.another_name(here.node, &entry.name, &master)?;
                    return Ok(Verdict::NOTHING);
                }
            }
        }
        let want = self.single(dir, here, place, entry, wanted, found)?;
        Ok(if want { Verdict::WANT } else { Verdict::NOTHING })
    }

    fn extra(&mut self, _: &Self::Dir, here: Here<'_>, name: &[u8]) -> Result<(), Fault> {
        if self.options.delete {
            self.remove(here.node, name)?;
        }
        Ok(())
    }

    fn leftover(&mut self, dir: &Self::Dir, here: Here<'_>, name: &[u8]) -> Result<(), Fault> {
        match rustix::fs::unlinkat(here.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // Ferry makes no such directory: it is the account's, like any other name.
            Err(Errno::ISDIR) => self.extra(dir, here, name),
            Err(errno) => self.trouble(&here.node.path_of(name), "removed", errno),
        }
    }

    fn emptied(&mut self, names: usize) -> Result<(), Fault> {
        if self.options.allow_emptied || !self.options.delete {
            return Ok(());
        }
        Err(Fault::precondition(format!(
            "root emptied: the source's tree has no entry, and the target's has {names}; nothing \
             was deleted"
        ))
        .remedy(
            "check that the source's file system is mounted; if the tree really is empty, put a \
             file into its root",
        ))
    }

    fn answered(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn leave(&mut self, dir: Self::Dir) -> Result<(), Fault> {
        dir.listed.set(true);
        self.end_if_done(&dir)
    }

    fn unlisted(&mut self, node: &Node, dir: Self::Dir, why: DirStatus) -> Result<(), Fault> {
        match why {
            DirStatus::Unreadable(errno) => {
                let why = guard::errno_text(errno);
                self.refuse(&node.path(), format!("it cannot be read at the source: {why}"));
            }
            DirStatus::Vanished | DirStatus::Listed => {
                self.note(NoteKind::Vanished, &node.path(), "it was gone when it was to be listed");
                self.report.changed_while_read += 1;
            }
        }
        self.leave(dir)
    }

    fn unreadable(&mut self, node: &Node, _: Self::Dir, why: Errno) -> Result<(), Fault> {
        self.trouble(&node.path(), "opened", why)
    }

    fn content(&mut self, frame: Frame<'_>) -> Result<(), Fault> {
        self.receive(frame)
    }

    fn finish(mut self, summary: Summary) -> Result<Vec<u8>, Fault> {
        if self.options.durable {
            rustix::fs::syncfs(self.tree.root_fd()).map_err(|errno| {
                Fault::io("the target's file system cannot be flushed", &errno.into())
                    .remedy("check the target's disk; what was copied may not last")
            })?;
        }
        self.report.notes.extend(summary.notes);
        self.report.started = summary.started;
        self.report.duration = self.began.elapsed();
        Ok(wire::to_json(&self.report))
    }
}
