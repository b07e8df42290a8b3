//! The target's visitor of a pass: decides for each entry what is to be done, does it at once or when
//! its content has come, and ends each directory when all in it is done. What it may do is the guard's
//! word; what of the target's own may stay is `staying`'s; how inodes are made is `make`'s; receiving contents
//! is `incoming`'s. It must not know how the two trees are followed.

mod staying;

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use ferry_proto::Fault;
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use crate::confine::{Node, Tree};
use crate::creator;
use crate::entries::{Entry, What, Withheld};
use crate::flushing::Flushing;
use crate::guard::{self, Wanted};
use crate::halt::Halt;
use crate::incoming::{Arriving, Awaited, Incoming};
use crate::limits::Disks;
use crate::links::{Links, Meeting};
use crate::locks::{self, Lifting, Locks};
use crate::make;
use crate::mending::Mending;
use crate::metadata::{Handle, Identity, Kind, Stat, Time};
use crate::mirror::{Here, Verdict, Visitor, Want};
use crate::moving::Moving;
use crate::options::TargetOptions;
use crate::progress::Counters;
use crate::protocol::{Frame, Place, Unlisted};
use crate::reflink::Reflinks;
use crate::report::{NoteKind, show};
use crate::send::Summary;
use crate::tally::{Tally, one};
use crate::trouble::judge;
use crate::wire::{self, Outbox};

/// A directory while something in it is still to be done.
#[derive(Debug)]
pub struct DirState {
    /// Where it is.
    pub node: Arc<Node>,
    /// What it is to look like in the end; none if that is not ours to say.
    wanted: Option<Wanted>,
    /// Which inode was found or made.
    identity: Option<Identity>,
    /// The flags it was found with, which are lifted while things come.
    locks: Locks,
    created: bool,
    /// What is to come: its listing, entries' contents and first names.
    pending: AtomicUsize,
    /// Whether what is made in it is given an ACL by it.
    bequeaths: OnceLock<bool>,
}

impl DirState {
    fn new(
        node: Arc<Node>,
        wanted: Option<Wanted>,
        found: Option<&Stat>,
        created: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            wanted,
            identity: found.map(Stat::identity),
            locks: found.map_or(Locks::NONE, |found| found.locks),
            created,
            pending: AtomicUsize::new(1),
            bequeaths: OnceLock::new(),
        })
    }

    /// Whether what is made in it, which is open as `fd`, is given an ACL by it.
    pub(crate) fn bequeaths(&self, fd: BorrowedFd<'_>) -> bool {
        *self.bequeaths.get_or_init(|| make::has_default_acl(fd))
    }

    /// One more thing is to come.
    pub(crate) fn expect(&self) {
        self.pending.fetch_add(1, Ordering::Relaxed);
    }
}

/// A name that waits until the inode's first name stands.
#[derive(Debug)]
pub struct Waiting {
    /// Its directory.
    pub dir: Arc<DirState>,
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
    pub(crate) disks: Disks,
    /// None: nobody needs it on the disk.
    pub(crate) flushing: Option<Flushing>,
    /// New files may be the account's from the beginning.
    pub(crate) creates_as_owner: bool,
    pub(crate) tally: Tally,
    pub(crate) incoming: Incoming,
    pub(crate) mending: Mending,
    pub(crate) reflinks: Reflinks,
    links: Mutex<Links<Waiting>>,
    pub(crate) lifting: Lifting,
    /// Inodes here with several names that already are some entry's.
    claimed: Mutex<HashSet<Identity>>,
    distrusted_since: Option<Time>,
    /// Only what has changed is listed.
    is_partial: AtomicBool,
    pub(crate) moving: Moving,
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
        let distrusted_since = options.distrusted_since.map(Time::from_system);
        let disks = Disks::new(&options.limits, &halt, &counters);
        let flushing = options.durable.then(|| Flushing::new(Arc::clone(&tree), halt.clone()));
        let creates_as_owner = creator::is_possible(tree.root_fd());
        let reflinks = Reflinks::new(&tree, &options);
        Self {
            tree,
            distrusted_since,
            options,
            halt,
            counters,
            disks,
            flushing,
            creates_as_owner,
            tally: Tally::default(),
            incoming: Incoming::default(),
            mending: Mending::default(),
            reflinks,
            links: Mutex::default(),
            lifting: Lifting::default(),
            claimed: Mutex::default(),
            is_partial: AtomicBool::new(false),
            moving: Moving::default(),
            began: Instant::now(),
        }
    }

    pub(crate) fn links(&self) -> MutexGuard<'_, Links<Waiting>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its metadata as it is to be here, if it may be.
    fn admit(&self, entry: &Entry, path: impl FnOnce() -> Vec<u8>) -> Result<Wanted, String> {
        guard::admit(entry, self.options.approved.at(path), &self.options.ids)
            .map(|wanted| wanted.where_projects_are_held(self.tree.holds_projects()))
    }

    /// Refuses the entry, or ends the pass.
    pub(crate) fn trouble(&self, path: &[u8], doing: &str, errno: Errno) -> Result<(), Fault> {
        let reason = judge(&show(path), doing, errno)?;
        self.tally.refuse(path, reason);
        Ok(())
    }

    pub(crate) fn count(&self, done: &Done) {
        match done {
            Done::Kept => one(&self.tally.unchanged),
            Done::Mended => one(&self.tally.metadata_changed),
            Done::Created => one(&self.tally.created),
            Done::Refused => {}
        }
    }

    /// An entry that is no directory and is not another name of a known inode.
    fn single(
        &self,
        dir: &Arc<DirState>,
        here: Here<'_>,
        place: Place,
        entry: Entry,
        wanted: Wanted,
        found: Option<Stat>,
    ) -> Result<Want, Fault> {
        let group = entry.link.map(|link| link.group);
        if let Some(found) = found.filter(|found| self.may_stay(here, &entry, &wanted, found)) {
            // What was approved has been looked at and needs nothing: what may be there now is given nothing either.
            let done = match wanted.approved {
                Some(_) => Done::Kept,
                None => self.mend(here, &entry.name, &found, &wanted)?,
            };
            self.count(&done);
            self.reflinks.stand(found.blocks.saturating_mul(512));
            let stands = !matches!(done, Done::Refused);
            let stands = stands.then(|| (found.identity(), wanted.locks));
            self.first_done(group, here.node, &entry.name, stands)?;
            return Ok(Want::Nothing);
        }
        if let What::File(size) = entry.what {
            self.counters.wanted(size);
            self.reflinks.expect(here.node, &entry.name, size);
            dir.expect();
            // What was approved comes whole, so that nothing of it stands before all of it is known.
            let mended =
                found.filter(|found| wanted.approved.is_none() && self.may_be_mended(size, found));
            let awaited = Awaited {
                dir: Arc::clone(dir),
                name: entry.name,
                wanted,
                group,
                listed: size,
                is_new: found.is_none(),
                mended: mended.map(|found| found.identity()),
            };
            let want = if mended.is_some() { Want::Differing } else { Want::All };
            return self.incoming.expect(place, awaited).map(|()| want);
        }
        let path = here.node.path_of(&entry.name);
        let fd = here.fd.as_fd();
        let made = match &entry.what {
            What::Symlink(target) => make::symlink(fd, target),
            What::Device(device) => make::device(fd, *device),
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
        let stands = identity.map(|identity| (identity, wanted.locks));
        self.first_done(group, here.node, &entry.name, stands)?;
        Ok(Want::Nothing)
    }

    fn mend(
        &self,
        here: Here<'_>,
        name: &[u8],
        found: &Stat,
        wanted: &Wanted,
    ) -> Result<Done, Fault> {
        let fd = here.fd.as_fd();
        let dress = |found: &Stat, wanted: &Wanted| match make::is_dressed(fd, name, found, wanted)?
        {
            true => Ok(Done::Kept),
            false => make::redress(fd, name, found, wanted).map(|()| Done::Mended),
        };
        let dressed = match found.nlink > 1 {
            // Whoever deals with its other names may lift its flags, or have lifted them when it was found.
            true => self.lifting.settle(found, wanted.locks, |locks| {
                let now = Stat::of(fd, name)?;
                if now.identity() != found.identity() {
                    return Err(Errno::STALE);
                }
                dress(&now, &Wanted { locks, ..wanted.clone() })
            }),
            false => dress(found, wanted),
        };
        match dressed {
            Ok(done) => Ok(done),
            Err(errno) => {
                self.trouble(&here.node.path_of(name), "given its metadata", errno)?;
                Ok(Done::Refused)
            }
        }
    }

    fn directory(
        &self,
        here: Here<'_>,
        entry: &Entry,
        wanted: Wanted,
        found: Option<Stat>,
    ) -> Result<Verdict<Arc<DirState>>, Fault> {
        let name = entry.name.as_slice();
        let state = |stat: &Stat, created| {
            let node = here.node.child(name);
            let state = DirState::new(node.clone(), Some(wanted), Some(stat), created);
            Verdict::descend(node, state, created)
        };
        if let Some(number) = entry.moved {
            let arrived = self.arrive(number, here, name)?;
            return Ok(arrived.map_or(Verdict::NOTHING, |stat| state(&stat, false)));
        }
        match found {
            Some(stat) if stat.kind == Kind::Directory => {
                // Its flags come back when all in it is done.
                return match self.unlock_directory(here, name, &stat)? {
                    true => Ok(state(&stat, false)),
                    false => Ok(Verdict::NOTHING),
                };
            }
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

    /// Takes flags off a directory that would keep what is in it. Answers whether it can be gone on with.
    fn unlock_directory(&self, here: Here<'_>, name: &[u8], found: &Stat) -> Result<bool, Fault> {
        if found.locks.is_none() {
            return Ok(true);
        }
        match self.unlock(here.fd.as_fd(), name) {
            Ok(_) => Ok(true),
            Err(errno) => {
                self.trouble(&here.node.path_of(name), "given its flags", errno)?;
                Ok(false)
            }
        }
    }

    /// One thing that was to come in the directory is done. When all are, it is given its own metadata: last,
    /// since all before changed its time.
    pub(crate) fn one_done(&self, dir: &DirState) -> Result<(), Fault> {
        if dir.pending.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        let Some(wanted) = &dir.wanted else { return Ok(()) };
        let dressed = self.tree.open(&dir.node).and_then(|fd| {
            if dir.identity != Some(Stat::of_fd(&fd)?.identity()) {
                return Err(Errno::STALE);
            }
            make::dress_unlocked(Handle::Open(fd.as_fd()), dir.locks, wanted)
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
    type Dir = Arc<DirState>;
    type Stream = Arriving;

    fn root(&self, node: &Arc<Node>, entry: Entry, partial: bool) -> Result<Self::Dir, Fault> {
        self.is_partial.store(partial, Ordering::Relaxed);
        let holds = self.tree.holds_projects();
        if entry.project.is_some() && !holds {
            let text = "project ids are not copied: this file system is not mounted to count what projects use";
            self.tally.note(NoteKind::NotCopied, b"", text);
        }
        let admitted = self.admit(&entry, Vec::new);
        let wanted = admitted.map_err(|reason| self.tally.refuse(b"", reason)).ok();
        let found = Stat::of_fd(self.tree.root_fd()).ok();
        if found.is_some_and(|found| !found.locks.is_none() && self.options.ids.has_uid(found.uid))
        {
            // As those of all other directories. Where it fails, what is in it tells.
            let _ = locks::put(self.tree.root_fd(), Locks::NONE);
        }
        let root = DirState::new(Arc::clone(node), wanted, found.as_ref(), false);
        if partial {
            self.moving.set_root(Arc::clone(&root));
        }
        Ok(root)
    }

    fn moved(&self, path: Vec<Vec<u8>>) -> Result<(), Fault> {
        let place = path.join(&b'/');
        if self.options.approved.has_below(&place) {
            // It would come along unseen to where nothing is approved.
            let place = show(&place);
            return Err(Fault::transient(format!(
                "something below {place} is approved where it is"
            ))
            .remedy("everything is looked at again"));
        }
        self.moving.add(path);
        Ok(())
    }

    fn depart(&self) -> Result<(), Fault> {
        self.depart_all()
    }

    fn entry(
        &self,
        dir: &Self::Dir,
        here: Here<'_>,
        place: Place,
        entry: Entry,
        found: Option<Stat>,
    ) -> Result<Verdict<Self::Dir>, Fault> {
        one(&self.tally.entries);
        if entry.what == What::Withheld(Withheld::Excluded) {
            return Ok(Verdict::NOTHING);
        }
        let admitted = match found {
            Some(found) if found.is_mount => {
                Err("something is mounted there at the target, which is not crossed".to_owned())
            }
            _ => self.admit(&entry, || here.node.path_of(&entry.name)),
        };
        let wanted = match admitted {
            Ok(wanted) => wanted,
            Err(reason) => {
                self.tally.refuse(&here.node.path_of(&entry.name), reason);
                return Ok(Verdict::NOTHING);
            }
        };
        if entry.what == What::Directory {
            return self.directory(here, &entry, wanted, found);
        }
        if let Some(link) = entry.link {
            let waiting = || Waiting { dir: Arc::clone(dir), name: entry.name.clone() };
            // Before whoever makes the first name can see that we wait for it.
            dir.expect();
            let meeting = self.links().meet(link, waiting)?;
            match meeting {
                Meeting::First => self.one_done(dir)?,
                Meeting::Waits => return Ok(Verdict::NOTHING),
                Meeting::Another(master) => {
                    self.another_name(here.node, &entry.name, &master)?;
                    self.one_done(dir)?;
                    return Ok(Verdict::NOTHING);
                }
            }
        }
        self.single(dir, here, place, entry, wanted, found).map(Verdict::want)
    }

    fn extra(&self, _: &Self::Dir, here: Here<'_>, name: &[u8]) -> Result<(), Fault> {
        if self.options.delete {
            self.remove(here.node, name)?;
        }
        Ok(())
    }

    fn leftover(&self, dir: &Self::Dir, here: Here<'_>, name: &[u8]) -> Result<(), Fault> {
        match rustix::fs::unlinkat(here.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // Ferry makes no such directory: it is the account's, like any other name.
            // And a name of a locked inode that was left when another one was given to it stays until that is lifted.
            Err(Errno::ISDIR | Errno::PERM) => self.extra(dir, here, name),
            Err(errno) => self.trouble(&here.node.path_of(name), "removed", errno),
        }
    }

    fn emptied(&self, names: usize) -> Result<(), Fault> {
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

    fn can_share(&self) -> bool {
        self.reflinks.can()
    }

    fn told(&self, mended: &mut dyn Iterator<Item = Place>) {
        self.mending.add(mended);
    }

    fn beside(&self, out: Outbox) -> Result<(), Fault> {
        self.tell_blocks(out)
    }

    fn met_all(&self) {
        self.mending.close();
    }

    fn leave(&self, dir: Self::Dir) -> Result<(), Fault> {
        self.one_done(&dir)
    }

    fn unlisted(&self, node: &Node, dir: Self::Dir, why: Unlisted) -> Result<(), Fault> {
        match why {
            Unlisted::Unreadable(errno) => {
                let why = guard::errno_text(errno);
                let reason = format!("it cannot be read at the source: {why}");
                self.tally.refuse(&node.path(), reason);
            }
            Unlisted::Vanished => {
                let text = "it was gone when it was to be listed";
                self.tally.disturbed(NoteKind::Vanished, &node.path(), text);
            }
            Unlisted::Untouched => {}
        }
        self.leave(dir)
    }

    fn unreadable(&self, node: &Node, _: Self::Dir, why: Errno) -> Result<(), Fault> {
        self.trouble(&node.path(), "opened", why)
    }

    fn content(&self, stream: &mut Arriving, frame: Frame<'_>) -> Result<bool, Fault> {
        self.receive(stream, frame)
    }

    fn finish(self, summary: Summary) -> Result<Vec<u8>, Fault> {
        self.end_moves()?;
        if let Some(flushing) = self.flushing {
            flushing.end()?;
        }
        let mut report = self.tally.report();
        report.notes.extend(summary.notes);
        report.started = summary.started;
        report.duration = self.began.elapsed();
        Ok(wire::to_json(&report))
    }
}
