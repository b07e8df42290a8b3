//! The source's walk: several walkers, each a directory's names at a time, every entry described
//! (`describing`) and put into a batch. A walker goes depth first; one that has nothing to do gets directories
//! of another's. It reads no contents, and must not know what the target has.

mod describing;

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferry_proto::Fault;
use rustix::io::Errno;

use crate::attributes::{self, Unread};
use crate::confine::{Node, Tree, has_vanished};
use crate::digest::{BatchDigest, Manifest};
use crate::directories::Directories;
use crate::entries::{Entry, What};
use crate::halt::Halt;
use crate::journal::{Changes, Plan, Scope, Step};
use crate::linked::Linked;
use crate::metadata::{Handle, Identity, Stat, Time};
use crate::names::Names;
use crate::neighbour::Neighbour;
use crate::options::SourceOptions;
use crate::owners::Owners;
use crate::progress::Counters;
use crate::projects;
use crate::protocol::{self, Directory, Frame, MAX_BATCH, Place, Purpose, Unlisted};
use crate::report::{Bounded, Note};
use crate::window::{Listed, Window};
use crate::wire::Outbox;

use describing::Look;
pub(crate) use describing::described;

/// A batch is sent when its entries weigh so much, roughly in bytes.
const BATCH_WEIGHT: usize = 48 * 1024;

/// Waiting walkers look so often whether all was stopped.
const LOOK: Duration = Duration::from_millis(100);

/// What all walkers of one pass share.
#[derive(Debug)]
pub struct Walk {
    tree: Arc<Tree>,
    window: Arc<Window>,
    counters: Counters,
    halt: Halt,
    purpose: Purpose,
    manifest: Arc<Manifest>,
    excludes: HashSet<Vec<u8>>,
    owners: Owners,
    changed_since: Option<Time>,
    doubted: HashSet<Vec<u8>>,
    known: Option<Arc<Directories>>,
    seen: Option<Arc<Mutex<Directories>>>,
    plan: Option<Arc<Plan>>,
    neighbour: Neighbour,
    notes: Mutex<Bounded<Note>>,
    linked: Mutex<Linked>,
    elsewhere: Option<Arc<Mutex<Changes>>>,
    shared: Mutex<Shared>,
    given: Condvar,
    /// Walkers that have nothing to do.
    idle: AtomicUsize,
}

/// Directories that any walker may take.
#[derive(Debug, Default)]
struct Shared {
    pending: Vec<Pending>,
    /// Walkers that have something to do, and so may give some of it away.
    busy: usize,
}

/// A directory to walk later.
#[derive(Debug)]
struct Pending {
    /// None for the root.
    place: Option<Below>,
    /// Whether the walk that `changed_since` is about was in its parent.
    in_known: bool,
    /// How much of it is looked at.
    scope: Scope,
}

#[derive(Debug)]
struct Below {
    parent: Arc<Node>,
    name: Box<[u8]>,
    identity: Identity,
    /// Where it was listed.
    listed: Place,
}

/// One of the walkers.
#[derive(Debug)]
struct Walker<'a> {
    walk: &'a Walk,
    out: Outbox,
    /// Its own directories, the next one last.
    stack: Vec<Pending>,
    /// Whether the directory that it is in was in the walk that `changed_since` is about.
    in_known: bool,
    /// That directory.
    directory: Option<Identity>,
    /// Whether names of inodes that have several are met there for the first time; none if there was none yet.
    meets_first: Option<bool>,
}

/// A directory that is being listed.
struct Listing<'a> {
    node: &'a Arc<Node>,
    /// Where it was listed itself.
    place: Directory,
    /// What is looked at in it; none: all, and all below.
    step: Option<&'a Step>,
}

impl Listing<'_> {
    /// Whether its other names are left alone.
    fn is_partial(&self) -> bool {
        self.step.is_some_and(|step| !step.all)
    }
}

impl Walk {
    /// A walk; `options` say what is given out.
    pub fn new(
        tree: Arc<Tree>,
        window: Arc<Window>,
        counters: Counters,
        halt: Halt,
        purpose: Purpose,
        manifest: Arc<Manifest>,
        options: &SourceOptions,
    ) -> Self {
        let bytes = |path: &std::path::PathBuf| path.as_os_str().as_bytes().to_vec();
        let scope = if options.plan.is_some() { Scope::Part(0) } else { Scope::Whole };
        let root = Pending { place: None, in_known: true, scope };
        Self {
            tree,
            window,
            counters,
            halt,
            purpose,
            manifest,
            excludes: options.excludes.iter().map(bytes).collect(),
            owners: Owners::of(options),
            changed_since: options.changed_since.map(Time::from_system),
            doubted: options.doubted.iter().map(bytes).collect(),
            known: options.known.clone(),
            seen: options.seen.clone(),
            plan: options.plan.clone(),
            neighbour: Neighbour::new(options.calm),
            notes: Mutex::default(),
            linked: Mutex::default(),
            elsewhere: options.elsewhere.clone(),
            shared: Mutex::new(Shared { pending: vec![root], busy: 0 }),
            given: Condvar::new(),
            idle: AtomicUsize::new(0),
        }
    }

    /// Walks the tree with so many walkers. `outbox` gives each its way to the control stream.
    ///
    /// # Errors
    /// The root cannot be read, or the pass was stopped.
    pub fn run(&self, walkers: usize, outbox: impl Fn() -> Outbox) -> Result<(), Fault> {
        let mut out = outbox();
        self.send_root(&mut out)?;
        out.flush()?;
        std::thread::scope(|scope| {
            for _ in 0..walkers {
                let out = outbox();
                scope.spawn(move || {
                    if let Err(fault) = Walker::new(self, out).run() {
                        self.halt.stop(fault);
                    }
                });
            }
        });
        self.halt.check()?;
        if let Some(elsewhere) = &self.elsewhere {
            *lock(elsewhere) = lock(&self.linked).elsewhere(self.plan.as_deref());
        }
        out.put(&Frame::WalkEnd)?;
        out.flush()?;
        self.window.all_listed();
        Ok(())
    }

    /// What is worth noting.
    pub fn notes(&self) -> Bounded<Note> {
        std::mem::take(&mut *lock(&self.notes))
    }

    fn send_root(&self, out: &mut Outbox) -> Result<(), Fault> {
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
        let mut entry = described(&stat, What::Directory, attributes);
        if self.tree.uses_projects() {
            entry.project = Some(projects::of(root).map_err(fail)?);
        }
        if self.purpose == Purpose::Verify {
            self.manifest.batch(&BatchDigest::new(b"", &mut [entry.clone()], 0));
        }
        out.put(&Frame::Root(entry, self.plan.is_some()))?;
        // A comparison finds them where they are now.
        let moves = self.plan.iter().filter(|_| self.purpose == Purpose::Pass);
        for place in moves.flat_map(|plan| plan.moves()) {
            let path = place.iter().map(|name| name.to_vec()).collect();
            out.put(&Frame::Moved(path))?;
        }
        Ok(())
    }

    fn step(&self, scope: Scope) -> Option<&Step> {
        self.plan.as_ref()?.step(scope)
    }

    /// The next directory that is given away; none when there will be none.
    fn take(&self) -> Result<Option<Pending>, Fault> {
        let mut shared = lock(&self.shared);
        self.idle.fetch_add(1, Ordering::Relaxed);
        loop {
            if let Some(next) = shared.pending.pop() {
                shared.busy += 1;
                self.idle.fetch_sub(1, Ordering::Relaxed);
                return Ok(Some(next));
            }
            if shared.busy == 0 {
                self.given.notify_all();
                return Ok(None);
            }
            self.halt.check()?;
            let waited = self.given.wait_timeout(shared, LOOK);
            shared = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Directories for those who have none.
    fn give(&self, directories: impl Iterator<Item = Pending>) {
        lock(&self.shared).pending.extend(directories);
        self.given.notify_all();
    }

    /// A walker has nothing left.
    fn rest(&self) {
        lock(&self.shared).busy -= 1;
    }
}

impl<'a> Walker<'a> {
    fn new(walk: &'a Walk, out: Outbox) -> Self {
        let (directory, meets_first) = (None, None);
        Self { walk, out, stack: Vec::new(), in_known: false, directory, meets_first }
    }

    fn run(mut self) -> Result<(), Fault> {
        let mut turn = self.walk.neighbour.turn();
        while let Some(next) = self.walk.take()? {
            turn.waited();
            self.stack.push(next);
            while let Some(next) = self.stack.pop() {
                self.walk.halt.check()?;
                self.directory(&next)?;
                self.share()?;
                turn.done();
            }
            self.out.flush()?;
            self.walk.rest();
        }
        Ok(())
    }

    /// Gives half of what is left to those who have nothing: the half that was met first, which is nearest to
    /// the root.
    fn share(&mut self) -> Result<(), Fault> {
        if self.stack.len() < 2 || self.walk.idle.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        // The listings that name them must be on their way before theirs can be.
        self.out.flush()?;
        let half = self.stack.len() / 2;
        self.walk.give(self.stack.drain(..half));
        Ok(())
    }

    /// Lists one directory and puts its subdirectories on the stack, the first on top.
    fn directory(&mut self, pending: &Pending) -> Result<(), Fault> {
        let (node, listed, expected) = match &pending.place {
            Some(below) => {
                (below.parent.child(&below.name), Some(below.listed), Some(below.identity))
            }
            None => (Node::root(), None, None),
        };
        let walk = self.walk;
        let listing = Listing { node: &node, place: listed, step: walk.step(pending.scope) };
        let opened = self.walk.tree.open(&node).and_then(|fd| {
            let identity = Stat::of_fd(&fd)?.identity();
            if expected.is_some_and(|e| identity != e) {
                return Err(Errno::STALE);
            }
            let names = match listing.step {
                Some(step) if !step.all => Names::of(step.names.keys().map(|name| &**name))?,
                _ => Names::read(&fd)?,
            };
            Ok((fd, identity, names))
        });
        let (fd, identity, names) = match opened {
            Ok(opened) => opened,
            Err(errno) => return self.unlisted(&node, listed, errno),
        };
        (self.directory, self.meets_first) = (Some(identity), None);
        self.in_known = pending.in_known;
        self.enter(&node, identity)?;
        let first = self.stack.len();
        let mut batch = Collecting::default();
        for name in names.iter() {
            self.walk.halt.check()?;
            match self.look(fd.as_fd(), &node, name) {
                Look::Entry(found) => batch.push(*found),
                Look::Nothing if listing.is_partial() && is_noted(&listing, name) => {
                    batch.push((Entry::gone(name), None));
                }
                Look::Nothing | Look::Reserved => continue,
            }
            if batch.is_full() {
                self.send_batch(&listing, std::mem::take(&mut batch), false)?;
            }
        }
        self.send_batch(&listing, batch, true)?;
        self.stack[first..].reverse();
        Ok(())
    }

    /// Notes the directory, and whether it was there before; `in_known` is yet what its parent was.
    fn enter(&mut self, node: &Node, identity: Identity) -> Result<(), Fault> {
        let Walk { known, seen, .. } = self.walk;
        if known.is_none() && seen.is_none() {
            return Ok(());
        }
        let path = node.path();
        self.in_known &= known.as_ref().is_none_or(|known| known.has(&path, identity));
        if !self.in_known && node.depth() == 0 {
            return Err(Fault::precondition(
                "the root of the tree is another directory than it was in the pass before",
            )
            .remedy("check that its file system is mounted, then begin anew"));
        }
        if let Some(seen) = seen {
            lock(seen).note(&path, identity);
        }
        Ok(())
    }

    fn unlisted(&mut self, node: &Node, listed: Directory, errno: Errno) -> Result<(), Fault> {
        if node.depth() == 0 {
            return Err(Fault::io("the root of the tree cannot be read", &errno.into()));
        }
        let why = match errno {
            errno if has_vanished(errno) || errno == Errno::XDEV => Unlisted::Vanished,
            other => Unlisted::Unreadable(other.raw_os_error().unsigned_abs()),
        };
        self.out.put(&Frame::Unlisted(listed, why)).map(drop)
    }

    fn send_batch(
        &mut self,
        listing: &Listing<'_>,
        batch: Collecting,
        last: bool,
    ) -> Result<(), Fault> {
        let Walk { window, .. } = self.walk;
        let node = listing.node;
        let Collecting { mut entries, stats, .. } = batch;
        if !window.has_room() {
            // What we wait for may be the answer to what still lies in our outbox.
            self.out.flush()?;
            window.wait_for_room()?;
        }
        self.walk.counters.scanned(entries.len() as u64);
        let digest = (self.walk.purpose == Purpose::Verify).then(|| {
            let contents = entries.iter().filter(|e| e.doubtful && matches!(e.what, What::File(_)));
            let contents = contents.count();
            BatchDigest::new(&node.path(), &mut entries, contents)
        });
        let scopes = self.scopes(listing, &mut entries, &stats);
        let listed = entries.iter().zip(&stats).map(|(entry, stat)| listed(entry, stat.as_ref()));
        let number = window.list(Arc::clone(node), listed.collect(), digest);
        let mut untouched = Vec::new();
        for (((index, entry), stat), scope) in (0..).zip(&entries).zip(&stats).zip(scopes) {
            let (What::Directory, Some(stat)) = (&entry.what, stat) else { continue };
            let listed = Place { batch: number, index };
            if scope == Scope::Untouched {
                untouched.push(listed);
                continue;
            }
            let (parent, name) = (Arc::clone(node), entry.name.as_slice().into());
            let below = Below { parent, name, identity: stat.identity(), listed };
            self.stack.push(Pending { place: Some(below), in_known: self.in_known, scope });
        }
        let (directory, partial) = (listing.place, listing.is_partial());
        let batch = protocol::Batch { number, directory, last, partial, entries };
        self.out.put(&Frame::Batch(batch))?;
        for place in untouched {
            self.out.put(&Frame::Unlisted(Some(place), Unlisted::Untouched))?;
        }
        Ok(())
    }

    /// How much is looked at of each of the entries that is a directory; of those that have another place the
    /// entry gets the move.
    fn scopes(
        &self,
        listing: &Listing<'_>,
        entries: &mut [Entry],
        stats: &[Option<Stat>],
    ) -> Vec<Scope> {
        let Some(step) = listing.step else { return vec![Scope::Whole; entries.len()] };
        let scope = |(entry, stat): (&mut Entry, &Option<Stat>)| {
            let (What::Directory, Some(stat)) = (&entry.what, stat) else { return Scope::Whole };
            let below = step.below(&entry.name, stat.identity(), self.walk.purpose);
            let (scope, moved) = below.unwrap_or((Scope::Whole, None));
            entry.moved = moved;
            scope
        };
        entries.iter_mut().zip(stats).map(scope).collect()
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one step, so a panic elsewhere cannot have left it half done.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether something happened to the name itself: it is not only on the way to others.
fn is_noted(listing: &Listing<'_>, name: &[u8]) -> bool {
    listing.step.is_some_and(|step| step.is_noted(name))
}

/// What is kept of an entry until it is wanted, if it is a file.
fn listed(entry: &Entry, stat: Option<&Stat>) -> Option<Listed> {
    match (&entry.what, stat) {
        (What::File(size), Some(stat)) => Some(Listed {
            name: entry.name.as_slice().into(),
            identity: stat.identity(),
            ctime: stat.ctime,
            size: *size,
            doubtful: entry.doubtful,
        }),
        _ => None,
    }
}

/// A batch that is being filled.
#[derive(Default)]
struct Collecting {
    entries: Vec<Entry>,
    stats: Vec<Option<Stat>>,
    weight: usize,
}

impl Collecting {
    fn push(&mut self, (entry, stat): (Entry, Option<Stat>)) {
        let attributes: usize = entry.attributes.iter().map(|a| a.name.len() + a.value.len()).sum();
        let target = if let What::Symlink(target) = &entry.what { target.len() } else { 0 };
        self.weight += 32 + entry.name.len() + attributes + target;
        self.entries.push(entry);
        self.stats.push(stat);
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= MAX_BATCH || self.weight >= BATCH_WEIGHT
    }
}
