//! The target's half of the walk: it follows the source's listings through its own tree, checks that
//! they keep to the protocol, and tells a visitor name by name what is on either side. It must not
//! know what the visitor makes of it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferry_proto::Fault;
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::codec::Malformed;
use crate::confine::{MAX_DEPTH, Node, Tree};
use crate::entries::{Entry, What};
use crate::halt::{Halt, protocol_fault};
use crate::metadata::Stat;
use crate::names::{self, Names};
use crate::progress::Counters;
use crate::protocol::{DirStatus, Frame, MAX_BATCH, MAX_ENTRIES, Place, Purpose};
use crate::send::Summary;
use crate::wire::{self, Outbox};

/// A directory that both ends walk, as open as it is at the target.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// Where it is.
    pub node: &'a Arc<Node>,
    /// Its descriptor.
    pub fd: &'a OwnedFd,
}

/// What a visitor makes of an entry.
#[derive(Debug)]
pub struct Verdict<D> {
    /// The source is to send its content, or its digest.
    pub want: bool,
    /// A directory to walk on in, with the visitor's state for it.
    pub descend: Option<D>,
}

impl<D> Verdict<D> {
    /// Nothing more to do.
    pub const NOTHING: Self = Self { want: false, descend: None };
    /// Send the content.
    pub const WANT: Self = Self { want: true, descend: None };

    /// Walk on in it.
    pub fn descend(state: D) -> Self {
        Self { want: false, descend: Some(state) }
    }
}

/// What is done with what both ends have.
pub trait Visitor {
    /// What it keeps of a directory while that is walked.
    type Dir;

    /// The root, with what the source says of it.
    fn root(&mut self, node: &Arc<Node>, entry: Entry) -> Result<Self::Dir, Fault>;

    /// An entry of the source, and what has its name here.
    fn entry(
        &mut self,
        dir: &Self::Dir,
        here: Here<'_>,
        place: Place,
        entry: Entry,
        found: Option<Stat>,
    ) -> Result<Verdict<Self::Dir>, Fault>;

    /// A name that only we have.
    fn extra(&mut self, dir: &Self::Dir, here: Here<'_>, name: &[u8]) -> Result<(), Fault>;

    /// A temporary file of a pass that was killed.
    fn leftover(&mut self, dir: &Self::Dir, here: Here<'_>, name: &[u8]) -> Result<(), Fault>;

    /// The source has nothing in its root, and we have so many names in ours.
    fn emptied(&mut self, names: usize) -> Result<(), Fault>;

    /// An answer to a batch was sent.
    fn answered(&mut self) -> Result<(), Fault>;

    /// All entries of the directory were met.
    fn leave(&mut self, dir: Self::Dir) -> Result<(), Fault>;

    /// The source could not list the directory.
    fn unlisted(&mut self, node: &Node, dir: Self::Dir, why: DirStatus) -> Result<(), Fault>;

    /// We could not.
    fn unreadable(&mut self, node: &Node, dir: Self::Dir, why: Errno) -> Result<(), Fault>;

    /// A frame of a content.
    fn content(&mut self, frame: Frame<'_>) -> Result<(), Fault>;

    /// All was received. Answers the report as JSON.
    fn finish(self, summary: Summary) -> Result<Vec<u8>, Fault>;
}

/// A directory whose listing is to come.
type Expected<D> = Option<(Arc<Node>, D)>;

/// The directory whose listing is coming.
struct Listing<D> {
    /// Our side of it; none if nothing below is to be touched.
    ours: Option<Ours<D>>,
    depth: u32,
    last_name: Vec<u8>,
    expected: Vec<Expected<D>>,
}

struct Ours<D> {
    node: Arc<Node>,
    fd: Arc<OwnedFd>,
    state: D,
    names: Names,
    next: usize,
}

/// Where the conversation stands.
enum Phase<D> {
    Greeting,
    Root,
    Walking { stack: Vec<(u32, Expected<D>)>, listing: Option<Listing<D>> },
    Walked,
}

/// See the module.
pub struct Mirror<V: Visitor> {
    tree: Arc<Tree>,
    out: Outbox,
    halt: Halt,
    counters: Counters,
    purpose: Purpose,
    phase: Phase<V::Dir>,
    visitor: V,
    batches: u64,
    /// Files wanted and not dealt with.
    outstanding: usize,
}

fn refuse<T>(what: &'static str) -> Result<T, Fault> {
    Err(protocol_fault(&Malformed(what)))
}

impl<V: Visitor> Mirror<V> {
    /// A mirror for `visitor`.
    pub fn new(
        tree: Arc<Tree>,
        out: Outbox,
        halt: Halt,
        counters: Counters,
        purpose: Purpose,
        visitor: V,
    ) -> Self {
        let phase = Phase::Greeting;
        let (batches, outstanding) = (0, 0);
        Self { tree, out, halt, counters, purpose, phase, visitor, batches, outstanding }
    }

    /// Follows the source to the end. Answers the report as JSON, which was sent.
    ///
    /// # Errors
    /// What ended it.
    pub fn run(mut self, incoming: &mut mpsc::Receiver<bytes::Bytes>) -> Result<Vec<u8>, Fault> {
        self.out.put(&Frame::Hello(self.purpose))?;
        self.out.flush()?;
        let mut summary = None;
        while summary.is_none() {
            let Some(chunk) = incoming.blocking_recv() else {
                self.halt.check()?;
                return Err(wire::cut_short());
            };
            wire::for_each_frame(chunk, |frame| {
                self.halt.check()?;
                if summary.is_some() {
                    return refuse("a frame after its last one");
                }
                summary = self.frame(frame)?;
                Ok(())
            })?;
            self.out.flush()?;
        }
        if self.outstanding > 0 || !matches!(self.phase, Phase::Walked) {
            return refuse("a summary before all was sent");
        }
        let report = self.visitor.finish(summary.unwrap_or_default())?;
        self.out.put(&Frame::Report(&report))?;
        self.out.flush()?;
        Ok(report)
    }

    fn frame(&mut self, frame: Frame<'_>) -> Result<Option<Summary>, Fault> {
        match (&mut self.phase, frame) {
            (Phase::Greeting, Frame::Hello(theirs)) if theirs == self.purpose => {
                self.phase = Phase::Root;
            }
            (Phase::Root, Frame::Root(entry)) => {
                let node = Node::root();
                let state = self.visitor.root(&node, entry)?;
                let stack = vec![(0, Some((node, state)))];
                self.phase = Phase::Walking { stack, listing: None };
            }
            (Phase::Walking { stack, listing: listing @ None }, Frame::Dir(status)) => {
                let Some((depth, expected)) = stack.pop() else {
                    return refuse("a directory that no listing named");
                };
                *listing = enter(&self.tree, &mut self.visitor, depth, expected, status)?;
            }
            (Phase::Walking { listing: Some(_), .. }, Frame::Batch(entries)) => {
                self.batch(entries)?;
            }
            (Phase::Walking { stack, listing }, Frame::DirEnd) => {
                let Some(done) = listing.take() else {
                    return refuse("the end of a listing that did not begin");
                };
                leave(&mut self.visitor, done, stack)?;
            }
            (Phase::Walking { stack, listing: None }, Frame::WalkEnd) if stack.is_empty() => {
                self.counters.scan_complete();
                self.phase = Phase::Walked;
            }
            (_, Frame::Summary(json)) => return wire::from_json(json).map(Some),
            (
                Phase::Walking { .. } | Phase::Walked,
                content @ (Frame::File(..)
                | Frame::Data(_)
                | Frame::Hole(_)
                | Frame::FileEnd(_)
                | Frame::Skip(..)
                | Frame::Hash(..)),
            ) => self.content(content)?,
            _ => return refuse("a frame out of turn"),
        }
        Ok(None)
    }

    fn content(&mut self, frame: Frame<'_>) -> Result<(), Fault> {
        let ends = matches!(frame, Frame::FileEnd(_) | Frame::Skip(..) | Frame::Hash(..));
        self.visitor.content(frame)?;
        if ends {
            // The visitor has found it to be one that was wanted.
            self.outstanding = self.outstanding.saturating_sub(1);
        }
        Ok(())
    }

    fn batch(&mut self, entries: Vec<Entry>) -> Result<(), Fault> {
        let Phase::Walking { listing: Some(listing), .. } = &mut self.phase else {
            return refuse("entries outside a listing");
        };
        if self.outstanding > MAX_ENTRIES + MAX_BATCH {
            return refuse("more listings than it may have under way");
        }
        self.counters.scanned(entries.len() as u64);
        let number = self.batches;
        self.batches += 1;
        let mut bits = vec![0_u8; entries.len().div_ceil(8)];
        for (index, entry) in entries.into_iter().enumerate() {
            if listing.last_name >= entry.name {
                return refuse("names out of order");
            }
            listing.last_name.clone_from(&entry.name);
            let is_directory = entry.what == What::Directory;
            if is_directory && listing.depth + 1 >= MAX_DEPTH {
                return refuse("a directory deeper than allowed");
            }
            // A batch has at most MAX_BATCH entries.
            let place = Place { batch: number, index: index as u16 };
            let verdict = match &mut listing.ours {
                Some(ours) => meet(&mut self.visitor, ours, place, entry)?,
                None => Verdict::NOTHING,
            };
            if verdict.want {
                bits[index / 8] |= 1 << (index % 8);
                self.outstanding += 1;
            }
            if is_directory {
                listing.expected.push(match (&listing.ours, verdict.descend) {
                    (Some(ours), Some(state)) => Some((ours.node.child(&listing.last_name), state)),
                    _ => None,
                });
            }
        }
        self.out.put(&Frame::Wants(number, &bits))?;
        self.out.flush()?;
        self.visitor.answered()
    }
}

/// Opens our side of the next directory.
fn enter<V: Visitor>(
    tree: &Tree,
    visitor: &mut V,
    depth: u32,
    expected: Expected<V::Dir>,
    status: DirStatus,
) -> Result<Option<Listing<V::Dir>>, Fault> {
    let listing = |ours| Some(Listing { ours, depth, last_name: Vec::new(), expected: Vec::new() });
    let (node, state) = match (expected, status) {
        (Some(both), DirStatus::Listed) => both,
        (Some((node, state)), why) => return visitor.unlisted(&node, state, why).map(|()| None),
        (None, DirStatus::Listed) => return Ok(listing(None)),
        (None, _) => return Ok(None),
    };
    let opened = tree.open(&node).and_then(|fd| {
        let names = Names::read(&fd)?;
        Ok((fd, names))
    });
    match opened {
        Ok((fd, names)) => Ok(listing(Some(Ours { node, fd, state, names, next: 0 }))),
        Err(errno) => {
            visitor.unreadable(&node, state, errno)?;
            Ok(listing(None))
        }
    }
}

/// Meets an entry of the source: first all of our names before it, then the one that is the same.
fn meet<V: Visitor>(
    visitor: &mut V,
    ours: &mut Ours<V::Dir>,
    place: Place,
    entry: Entry,
) -> Result<Verdict<V::Dir>, Fault> {
    let Ours { node, fd, state, names, next } = ours;
    let here = Here { node, fd };
    while let Some(name) = names.get(*next).filter(|name| *name < entry.name.as_slice()) {
        only_here(visitor, state, here, name)?;
        *next += 1;
    }
    let found = match names.get(*next) {
        Some(name) if name == entry.name => {
            *next += 1;
            match Stat::of(here.fd, name) {
                Ok(stat) => Some(stat),
                Err(Errno::NOENT) => None,
                Err(errno) => {
                    let what = "what the target has in this place cannot be examined";
                    let path = crate::report::show(&node.path_of(name));
                    return Err(Fault::io(format!("{path}: {what}"), &errno.into()));
                }
            }
        }
        _ => None,
    };
    visitor.entry(state, here, place, entry, found)
}

fn only_here<V: Visitor>(
    visitor: &mut V,
    state: &V::Dir,
    here: Here<'_>,
    name: &[u8],
) -> Result<(), Fault> {
    if names::is_reserved(name) {
        visitor.leftover(state, here, name)
    } else {
        visitor.extra(state, here, name)
    }
}

/// Ends a listing: the rest of our names, then the directories named in it are next.
fn leave<V: Visitor>(
    visitor: &mut V,
    done: Listing<V::Dir>,
    stack: &mut Vec<(u32, Expected<V::Dir>)>,
) -> Result<(), Fault> {
    let depth = done.depth;
    stack.extend(done.expected.into_iter().rev().map(|expected| (depth + 1, expected)));
    let Some(Ours { node, fd, state, names, next }) = done.ours else {
        return Ok(());
    };
    if depth == 0 && done.last_name.is_empty() {
        let own = names.iter().filter(|name| !names::is_reserved(name)).count();
        if own > 0 {
            visitor.emptied(own)?;
        }
    }
    let here = Here { node: &node, fd: &fd };
    for name in names.iter().skip(next) {
        only_here(visitor, &state, here, name)?;
    }
    visitor.leave(state)
}
