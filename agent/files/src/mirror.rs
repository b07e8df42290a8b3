//! The target's half of the walk: it follows the source's listings through its own tree, several
//! directories at once, checks that they keep to the protocol, and tells a [`Visitor`] name by name what is on
//! either side. It must not know what the visitor makes of it.
//!
//! One thread reads the control stream (`reading`). It knows which directories may be listed, each a
//! [`Listing`] of its own, and hands every batch to its listing; workers take listings that have something to do. A directory's
//! batches are worked on in order and by one worker at a time, and only when its own entry was.

mod reading;
mod visitor;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferry_proto::Fault;
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::codec::Malformed;
use crate::confine::{Node, Tree};
use crate::entries::{Entry, What};
use crate::halt::{Halt, protocol_fault};
use crate::metadata::Stat;
use crate::names::{self, Names};
use crate::neighbour::Neighbour;
use crate::pack::{Unpacker, Waiting};
use crate::progress::Counters;
use crate::protocol::{Batch, Frame, MAX_BATCHES, MAX_ENTRIES, Place, Purpose, Unlisted};
use crate::session::Work;
use crate::wire::{self, Channels, Outbox};

use reading::Reading;
pub use visitor::{Descent, Here, Verdict, Visitor, Want};

/// Waiting threads look so often whether all was stopped.
const LOOK: Duration = Duration::from_millis(100);
/// No more is asked for when so many contents are wanted and have not come: those that the source may have under way,
/// and those that it has sent and we have not read yet. Of small ones that may be very many: a stream holds more of
/// them than we make files in a second.
pub const MAX_AWAITED: usize = 4 * MAX_ENTRIES;

/// A directory whose listing comes, or is to come.
struct Listing<D> {
    depth: u32,
    turn: Mutex<Turn<D>>,
    /// Whoever has the turn has this too.
    side: Mutex<Side<D>>,
}

/// What is to be done with a listing, and whether anybody does.
struct Turn<D> {
    parts: VecDeque<Part<D>>,
    /// Its own entry was met.
    is_known: bool,
    /// It is in the queue, or a worker has it.
    is_taken: bool,
}

enum Part<D> {
    /// Entries, with the listings of those that are directories.
    Batch(Batch, Vec<Arc<Listing<D>>>),
    Unlisted(Unlisted),
}

/// Our side of a directory.
enum Side<D> {
    /// Nothing below is to be touched, or its own entry was not met yet.
    Closed,
    /// To be opened when its listing comes.
    Found(Descent<D>),
    Open(Ours<D>),
}

struct Ours<D> {
    node: Arc<Node>,
    fd: Arc<OwnedFd>,
    state: D,
    /// Its names; none if the source lists only some of its own.
    names: Option<Names>,
    next: usize,
    /// The source has an entry in it.
    met: bool,
}

/// Listings that have something to do.
struct Queue<D> {
    ready: VecDeque<Arc<Listing<D>>>,
    /// Parts that were received and not worked on yet.
    parts: usize,
    /// Those of them that the source waits for an answer to.
    batches: usize,
    /// No part follows.
    is_closed: bool,
}

/// What all threads share.
struct Shared<V: Visitor> {
    tree: Arc<Tree>,
    halt: Halt,
    counters: Counters,
    visitor: V,
    queue: Mutex<Queue<V::Dir>>,
    changed: Condvar,
    neighbour: Neighbour,
    /// Contents wanted and not dealt with.
    awaited: AtomicUsize,
    /// Rung with the queue's lock when they are fewer than [`MAX_AWAITED`] again.
    fewer: Condvar,
}

fn refuse<T>(what: &'static str) -> Result<T, Fault> {
    Err(protocol_fault(&Malformed(what)))
}

/// The pass before did not leave the tree as the source takes it to be.
fn not_as_left(node: &Node) -> Fault {
    let path = crate::report::show(&node.path());
    Fault::transient(format!("{path}: the target does not have what the pass before left there"))
        .remedy("try again: the next pass looks at everything")
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panics stops the whole pass: nobody goes on with what it left.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Follows the source to the end, with so many workers. Answers the report as JSON, which was sent.
///
/// # Errors
/// What ended it.
pub fn follow<V: Visitor>(
    tree: Arc<Tree>,
    purpose: Purpose,
    (workers, neighbour): (usize, Neighbour),
    visitor: V,
    work: Work,
) -> Result<Vec<u8>, Fault> {
    let Work { control: Channels { outgoing, mut incoming, .. }, data, halt, counters } = work;
    let outbox = || Outbox::new(outgoing.clone(), halt.clone());
    let mut out = outbox();
    out.put(&Frame::Hello(purpose))?;
    if visitor.can_share() {
        out.put(&Frame::CanShare)?;
    }
    out.flush()?;
    let queue = Queue { ready: VecDeque::new(), parts: 0, batches: 0, is_closed: false };
    let shared = Shared {
        tree,
        halt: halt.clone(),
        counters,
        visitor,
        queue: Mutex::new(queue),
        changed: Condvar::new(),
        neighbour,
        awaited: AtomicUsize::new(0),
        fewer: Condvar::new(),
    };
    let summary = std::thread::scope(|scope| {
        let (shared, halt) = (&shared, &halt);
        let mut working = Vec::new();
        let mut parts = Vec::new();
        for _ in 0..workers {
            let out = outbox();
            working.push(scope.spawn(move || halt.watch(|| shared.work(out))));
        }
        for _ in &data {
            let out = outbox();
            parts.push(scope.spawn(move || halt.watch(|| shared.visitor.beside(out))));
        }
        for channels in data {
            // Our end of it is closed when the source's is.
            let Channels { outgoing, mut incoming, .. } = channels;
            let out = Outbox::new(outgoing, halt.clone());
            parts.push(scope.spawn(move || halt.watch(|| shared.receive(&mut incoming, out))));
        }
        let summary = Reading::new(shared, purpose).run(&mut incoming);
        if let Err(fault) = &summary {
            halt.stop(fault.clone());
        }
        // One that panicked has stopped us all.
        working.into_iter().for_each(|worker| drop(worker.join()));
        shared.visitor.met_all();
        parts.into_iter().for_each(|part| drop(part.join()));
        summary
    })?;
    halt.check()?;
    if shared.awaited.load(Ordering::Relaxed) > 0 {
        return refuse("a summary before all was sent");
    }
    let report = shared.visitor.finish(summary)?;
    out.put(&Frame::Report(&report))?;
    out.flush()?;
    Ok(report)
}

impl<D> Listing<D> {
    fn new(depth: u32) -> Arc<Self> {
        let turn = Turn { parts: VecDeque::new(), is_known: false, is_taken: false };
        Arc::new(Self { depth, turn: Mutex::new(turn), side: Mutex::new(Side::Closed) })
    }

    /// Its own entry was met.
    fn found(&self, side: Side<D>) {
        *lock(&self.side) = side;
        lock(&self.turn).is_known = true;
    }
}

impl<V: Visitor> Shared<V> {
    fn push(&self, listing: &Arc<Listing<V::Dir>>, part: Part<V::Dir>) -> Result<(), Fault> {
        {
            let mut queue = lock(&self.queue);
            queue.parts += 1;
            queue.batches += usize::from(matches!(part, Part::Batch(..)));
            if queue.batches > 2 * MAX_BATCHES {
                return refuse("more listings than it may have under way");
            }
        }
        lock(&listing.turn).parts.push_back(part);
        self.offer(listing);
        Ok(())
    }

    /// Puts a listing into the queue, if there is something to do and nobody does it.
    fn offer(&self, listing: &Arc<Listing<V::Dir>>) {
        {
            let mut turn = lock(&listing.turn);
            if turn.is_taken || !turn.is_known || turn.parts.is_empty() {
                return;
            }
            turn.is_taken = true;
        }
        lock(&self.queue).ready.push_back(Arc::clone(listing));
        self.changed.notify_one();
    }

    /// No part follows.
    fn close(&self) {
        lock(&self.queue).is_closed = true;
        self.changed.notify_all();
    }

    /// One worker: takes listings until there are no more.
    fn work(&self, mut out: Outbox) -> Result<(), Fault> {
        let mut turn = self.neighbour.turn();
        while let Some(listing) = self.next(&mut out)? {
            turn.waited();
            loop {
                let part = {
                    let mut turn = lock(&listing.turn);
                    let part = turn.parts.pop_front();
                    turn.is_taken = part.is_some();
                    part
                };
                let Some(part) = part else { break };
                self.halt.check()?;
                let is_batch = matches!(part, Part::Batch(..));
                if is_batch {
                    self.wait_for_contents(&mut out)?;
                }
                self.part(&listing, part, &mut out)?;
                let mut queue = lock(&self.queue);
                queue.parts -= 1;
                queue.batches -= usize::from(is_batch);
                if queue.parts == 0 && queue.is_closed {
                    self.changed.notify_all();
                }
                drop(queue);
                turn.done();
            }
        }
        Ok(())
    }

    /// The next listing to work on; none when all were.
    fn next(&self, out: &mut Outbox) -> Result<Option<Arc<Listing<V::Dir>>>, Fault> {
        if let Some(next) = lock(&self.queue).ready.pop_front() {
            return Ok(Some(next));
        }
        // The source waits for what we know.
        out.flush()?;
        let mut queue = lock(&self.queue);
        loop {
            if let Some(next) = queue.ready.pop_front() {
                return Ok(Some(next));
            }
            if queue.is_closed && queue.parts == 0 {
                return Ok(None);
            }
            self.halt.check()?;
            let waited = self.changed.wait_timeout(queue, LOOK);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until fewer than [`MAX_AWAITED`] contents are to come. Who deals with them never waits for us.
    fn wait_for_contents(&self, out: &mut Outbox) -> Result<(), Fault> {
        let are_many = || self.awaited.load(Ordering::Relaxed) >= MAX_AWAITED;
        if !are_many() {
            return Ok(());
        }
        // The source cannot send what it does not know to be wanted.
        out.flush()?;
        let mut queue = lock(&self.queue);
        while are_many() {
            self.halt.check()?;
            let waited = self.fewer.wait_timeout(queue, LOOK);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// A content is dealt with that was wanted.
    fn has_come(&self) {
        if self.awaited.fetch_sub(1, Ordering::Relaxed) == MAX_AWAITED {
            // Whoever has found them to be many waits by now.
            drop(lock(&self.queue));
            self.fewer.notify_all();
        }
    }

    fn part(
        &self,
        listing: &Listing<V::Dir>,
        part: Part<V::Dir>,
        out: &mut Outbox,
    ) -> Result<(), Fault> {
        let mut side = lock(&listing.side);
        match part {
            Part::Unlisted(why) => match std::mem::replace(&mut *side, Side::Closed) {
                Side::Found(found) if why == Unlisted::Untouched && found.is_new => {
                    Err(not_as_left(&found.node))
                }
                Side::Found(found) => self.visitor.unlisted(&found.node, found.state, why),
                _ => Ok(()),
            },
            Part::Batch(batch, children) => {
                self.enter(&mut side, batch.partial)?;
                let last = batch.last;
                self.batch(&mut side, batch, children, out)?;
                match std::mem::replace(&mut *side, Side::Closed) {
                    Side::Open(ours) if last => self.leave(listing.depth, ours),
                    other => {
                        *side = other;
                        Ok(())
                    }
                }
            }
        }
    }

    /// Opens our side of a directory, unless it is.
    fn enter(&self, side: &mut Side<V::Dir>, partial: bool) -> Result<(), Fault> {
        let Descent { node, state, is_new } = match std::mem::replace(side, Side::Closed) {
            Side::Found(found) => found,
            Side::Open(ours) if ours.names.is_none() != partial => {
                return refuse("both some names and all of one directory");
            }
            other => {
                *side = other;
                return Ok(());
            }
        };
        if is_new && partial {
            return Err(not_as_left(&node));
        }
        let names = |fd: &OwnedFd| (!partial).then(|| Names::read(fd)).transpose();
        let opened = self.tree.open(&node).and_then(|fd| Ok((names(&fd)?, fd)));
        match opened {
            Ok((names, fd)) => {
                *side = Side::Open(Ours { node, fd, state, names, next: 0, met: false });
                Ok(())
            }
            Err(errno) => self.visitor.unreadable(&node, state, errno),
        }
    }

    fn batch(
        &self,
        side: &mut Side<V::Dir>,
        batch: Batch,
        children: Vec<Arc<Listing<V::Dir>>>,
        out: &mut Outbox,
    ) -> Result<(), Fault> {
        let Batch { number, entries, .. } = batch;
        let mut bits = vec![0_u8; entries.len().div_ceil(8)];
        let (mut wanted, mut mended) = (0, Vec::new());
        let mut children = children.into_iter();
        for (index, entry) in (0_u16..).zip(entries) {
            let child = (entry.what == What::Directory).then(|| children.next()).flatten();
            let verdict = match side {
                Side::Open(ours) => self.meet(ours, Place { batch: number, index }, entry)?,
                _ => Verdict::NOTHING,
            };
            if verdict.want != Want::Nothing {
                bits[usize::from(index) / 8] |= 1 << (index % 8);
                wanted += 1;
            }
            if verdict.want == Want::Differing {
                mended.push(index);
            }
            if let Some(child) = child {
                child.found(verdict.descend.map_or(Side::Closed, Side::Found));
                self.offer(&child);
            }
        }
        self.awaited.fetch_add(wanted, Ordering::Relaxed);
        out.put(&Frame::Wants(number, &bits, mended.clone()))?;
        if !mended.is_empty() {
            // Whoever tells blocks speaks for himself, and the source must have heard us before.
            out.flush()?;
            self.visitor
                .told(&mut mended.iter().map(|index| Place { batch: number, index: *index }));
        }
        // While there is more to do, the source has enough to do as well.
        if lock(&self.queue).ready.is_empty() { out.flush() } else { Ok(()) }
    }

    /// Meets an entry of the source: first all of our names before it, then the one that is the same.
    fn meet(
        &self,
        ours: &mut Ours<V::Dir>,
        place: Place,
        entry: Entry,
    ) -> Result<Verdict<V::Dir>, Fault> {
        let Ours { node, fd, state, names, next, met } = ours;
        *met = true;
        let here = Here { node, fd };
        let is_here = match names {
            Some(names) => {
                let before = |name: &&[u8]| *name < entry.name.as_slice();
                while let Some(name) = names.get(*next).filter(before) {
                    self.only_here(state, here, name)?;
                    *next += 1;
                }
                let is_here = names.get(*next).is_some_and(|name| name == entry.name);
                *next += usize::from(is_here);
                is_here
            }
            None => true,
        };
        let found = if is_here { self.found(here, &entry.name)? } else { None };
        if entry.what == What::Gone {
            found.map_or(Ok(()), |_| self.only_here(state, here, &entry.name))?;
            return Ok(Verdict::NOTHING);
        }
        self.visitor.entry(state, here, place, entry, found)
    }

    /// What we have of this name.
    fn found(&self, here: Here<'_>, name: &[u8]) -> Result<Option<Stat>, Fault> {
        match Stat::of(here.fd, name) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => {
                let what = "what the target has in this place cannot be examined";
                let path = crate::report::show(&here.node.path_of(name));
                Err(Fault::io(format!("{path}: {what}"), &errno.into()))
            }
        }
    }

    fn only_here(&self, state: &V::Dir, here: Here<'_>, name: &[u8]) -> Result<(), Fault> {
        if names::is_reserved(name) {
            self.visitor.leftover(state, here, name)
        } else {
            self.visitor.extra(state, here, name)
        }
    }

    /// Ends a listing: the rest of our names.
    fn leave(&self, depth: u32, ours: Ours<V::Dir>) -> Result<(), Fault> {
        let Ours { node, fd, state, names, next, met } = ours;
        let Some(names) = names else { return self.visitor.leave(state) };
        if depth == 0 && !met {
            let own = names.iter().filter(|name| !names::is_reserved(name)).count();
            if own > 0 {
                self.visitor.emptied(own)?;
            }
        }
        let here = Here { node: &node, fd: &fd };
        for name in names.iter().skip(next) {
            self.only_here(&state, here, name)?;
        }
        self.visitor.leave(state)
    }

    /// One data stream, to its end.
    fn receive(
        &self,
        incoming: &mut mpsc::Receiver<bytes::Bytes>,
        mut out: Outbox,
    ) -> Result<(), Fault> {
        let mut stream = V::Stream::default();
        let (mut unpacker, mut waiting) = (Unpacker::default(), Waiting::new());
        let mut is_done = false;
        let mut turn = self.neighbour.turn();
        while !is_done {
            let since = Instant::now();
            let Some(chunk) = incoming.blocking_recv() else {
                self.halt.check()?;
                return Err(wire::cut_short());
            };
            if let Some(mostly) = waiting.add(since.elapsed()) {
                out.put(&Frame::Waiting(mostly))?;
                out.flush()?;
            }
            turn.waited();
            unpacker.for_each_frame(chunk, |frame| {
                self.halt.check()?;
                match frame {
                    _ if is_done => return refuse("a frame after its last one"),
                    Frame::Done => is_done = true,
                    frame => {
                        if self.visitor.content(&mut stream, frame)? {
                            // The visitor has found it to be one that was wanted.
                            self.has_come();
                        }
                    }
                }
                Ok(())
            })?;
            turn.done();
        }
        Ok(())
    }
}
