//! The control stream's reader: which directories may be listed and how far each is, whether the source keeps
//! to the protocol, and whose every batch is. It must not know what is on the target's side.

use std::collections::HashMap;
use std::sync::Arc;

use ferry_proto::Fault;
use tokio::sync::mpsc;

use super::{Descent, Listing, Part, Shared, Side, Visitor, refuse};
use crate::confine::{MAX_DEPTH, Node};
use crate::entries::{Entry, What};
use crate::journal::MAX_MOVES;
use crate::protocol::{Batch, Directory, Frame, Place, Purpose, Unlisted};
use crate::send::Summary;
use crate::wire;

/// Most directories whose listing is to come.
const MAX_DIRECTORIES: usize = 4_000_000;

/// Where the conversation on the control stream stands.
#[derive(PartialEq, Eq)]
enum Phase {
    Greeting,
    Root,
    Moves,
    Walking,
    Walked,
}

/// A directory that may be listed, and the last name in it that was.
type Expected<D> = (Arc<Listing<D>>, Vec<u8>);

/// The control stream's reader.
pub(super) struct Reading<'a, V: Visitor> {
    shared: &'a Shared<V>,
    purpose: Purpose,
    /// Directories that may be listed.
    expected: HashMap<Directory, Expected<V::Dir>>,
    phase: Phase,
    /// Only what has changed is listed.
    is_partial: bool,
    /// How many directories have another place.
    moves: usize,
}

impl<'a, V: Visitor> Reading<'a, V> {
    pub(super) fn new(shared: &'a Shared<V>, purpose: Purpose) -> Self {
        let (expected, phase) = (HashMap::new(), Phase::Greeting);
        Self { shared, purpose, expected, phase, is_partial: false, moves: 0 }
    }

    pub(super) fn run(
        mut self,
        incoming: &mut mpsc::Receiver<bytes::Bytes>,
    ) -> Result<Summary, Fault> {
        let mut summary = None;
        while summary.is_none() {
            let Some(chunk) = incoming.blocking_recv() else {
                self.shared.halt.check()?;
                return Err(wire::cut_short());
            };
            wire::for_each_frame(chunk, |frame| {
                self.shared.halt.check()?;
                if summary.is_some() {
                    return refuse("a frame after its last one");
                }
                summary = self.frame(frame)?;
                Ok(())
            })?;
        }
        summary.ok_or_else(wire::cut_short)
    }

    fn frame(&mut self, frame: Frame<'_>) -> Result<Option<Summary>, Fault> {
        match (&self.phase, frame) {
            (Phase::Greeting, Frame::Hello(theirs)) if theirs == self.purpose => {
                self.phase = Phase::Root;
            }
            (Phase::Root, Frame::Root(entry, is_partial)) => {
                let node = Node::root();
                let state = self.shared.visitor.root(&node, entry, is_partial)?;
                let listing = Listing::new(0);
                listing.found(Side::Found(Descent { node, state, is_new: false }));
                self.expected.insert(None, (listing, Vec::new()));
                self.is_partial = is_partial;
                self.phase = if is_partial { Phase::Moves } else { Phase::Walking };
            }
            (Phase::Moves, Frame::Moved(path)) if self.moves < MAX_MOVES => {
                self.moves += 1;
                self.shared.visitor.moved(path)?;
            }
            (Phase::Moves, frame) => {
                self.phase = Phase::Walking;
                self.shared.visitor.depart()?;
                return self.frame(frame);
            }
            (Phase::Walking, Frame::Unlisted(_, Unlisted::Untouched)) if !self.is_partial => {
                return refuse("a listing that must not be left out");
            }
            (Phase::Walking, Frame::Unlisted(directory, why)) => {
                let Some((listing, last_name)) = self.expected.remove(&directory) else {
                    return refuse("a directory that no listing named");
                };
                if !last_name.is_empty() {
                    return refuse("a listing that is none");
                }
                self.shared.push(&listing, Part::Unlisted(why))?;
            }
            (Phase::Walking, Frame::Batch(batch)) => self.batch(batch)?,
            (Phase::Walking, Frame::WalkEnd) if self.expected.is_empty() => {
                self.shared.close();
                self.phase = Phase::Walked;
            }
            (Phase::Walked, Frame::Summary(json)) => return wire::from_json(json).map(Some),
            _ => return refuse("a frame out of turn"),
        }
        Ok(None)
    }

    fn batch(&mut self, batch: Batch) -> Result<(), Fault> {
        if batch.partial && !self.is_partial {
            return refuse("some names of a directory where all are to come");
        }
        let Some((listing, last_name)) = self.expected.get_mut(&batch.directory) else {
            return refuse("a directory that no listing named");
        };
        // In a batch they rise: its decoder has seen to that.
        if batch.entries.first().is_some_and(|first| *last_name >= first.name) {
            return refuse("names out of order");
        }
        let is_told = |entry: &Entry| entry.moved.is_none_or(|n| (n as usize) < self.moves);
        if !batch.entries.iter().all(is_told) {
            return refuse("a move that was not told");
        }
        let listing = Arc::clone(listing);
        match batch.entries.last() {
            _ if batch.last => drop(self.expected.remove(&batch.directory)),
            Some(last) => last_name.clone_from(&last.name),
            None => {}
        }
        let mut children = Vec::new();
        for (index, entry) in (0..).zip(&batch.entries) {
            if entry.what != What::Directory {
                continue;
            }
            if listing.depth + 1 >= MAX_DEPTH {
                return refuse("a directory deeper than allowed");
            }
            let child = Listing::new(listing.depth + 1);
            children.push(Arc::clone(&child));
            let place = Place { batch: batch.number, index };
            if self.expected.insert(Some(place), (child, Vec::new())).is_some() {
                return refuse("two batches of one number");
            }
        }
        if self.expected.len() > MAX_DIRECTORIES {
            return refuse("more directories than it may leave unlisted");
        }
        self.shared.counters.scanned(batch.entries.len() as u64);
        self.shared.push(&listing, Part::Batch(batch, children))
    }
}
