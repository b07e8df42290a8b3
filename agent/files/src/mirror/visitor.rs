//! What is done with what both ends have: the visitor's interface, to which a pass and a comparison are two
//! answers. It must not know how the two trees are followed.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferry_proto::Fault;
use rustix::io::Errno;

use crate::confine::Node;
use crate::entries::Entry;
use crate::metadata::Stat;
use crate::protocol::{Frame, Place, Unlisted};
use crate::send::Summary;
use crate::wire::Outbox;

/// A directory that both ends walk, as open as it is at the target.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// Where it is.
    pub node: &'a Arc<Node>,
    /// Its descriptor.
    pub fd: &'a OwnedFd,
}

/// A directory that a visitor walks on in.
#[derive(Debug)]
pub struct Descent<D> {
    /// Where it is.
    pub node: Arc<Node>,
    /// What the visitor keeps of it.
    pub state: D,
    /// It was not there before, so that all of it must come.
    pub is_new: bool,
}

/// What the source is to send of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Nothing.
    Nothing,
    /// The content, or its digest.
    All,
    /// What differs of the content: it will be told the digests of our blocks.
    Differing,
}

/// What a visitor makes of an entry.
#[derive(Debug)]
pub struct Verdict<D> {
    /// What the source is to send.
    pub want: Want,
    /// A directory to walk on in.
    pub descend: Option<Descent<D>>,
}

impl<D> Verdict<D> {
    /// Nothing more to do.
    pub const NOTHING: Self = Self { want: Want::Nothing, descend: None };
    /// Send this.
    pub const fn want(want: Want) -> Self {
        Self { want, descend: None }
    }

    /// Walk on in it.
    pub fn descend(node: Arc<Node>, state: D, is_new: bool) -> Self {
        Self { want: Want::Nothing, descend: Some(Descent { node, state, is_new }) }
    }
}

/// What is done with what both ends have. Its methods are called from several threads at once.
pub trait Visitor: Send + Sync {
    /// What it keeps of a directory while that is walked.
    type Dir: Send + Sync;
    /// What it keeps of a data stream.
    type Stream: Default;

    /// The root, with what the source says of it; and whether only what has changed is listed.
    fn root(&self, node: &Arc<Node>, entry: Entry, partial: bool) -> Result<Self::Dir, Fault>;

    /// Where a directory was that has another place now.
    fn moved(&self, path: Vec<Vec<u8>>) -> Result<(), Fault>;

    /// All such places were told, and no entry was met yet.
    fn depart(&self) -> Result<(), Fault>;

    /// An entry of the source, and what has its name here.
    fn entry(
        &self,
        dir: &Self::Dir,
        here: Here<'_>,
        place: Place,
        entry: Entry,
        found: Option<Stat>,
    ) -> Result<Verdict<Self::Dir>, Fault>;

    /// A name that only we have.
    fn extra(&self, dir: &Self::Dir, here: Here<'_>, name: &[u8]) -> Result<(), Fault>;

    /// A temporary file of a pass that was killed.
    fn leftover(&self, dir: &Self::Dir, here: Here<'_>, name: &[u8]) -> Result<(), Fault>;

    /// The source has nothing in its root, and we have so many names in ours.
    fn emptied(&self, names: usize) -> Result<(), Fault>;

    /// Whether the source is to tell which files share what they hold.
    fn can_share(&self) -> bool;

    /// The source has been told that these are only to be mended.
    fn told(&self, mended: &mut dyn Iterator<Item = Place>);

    /// What a visitor does beside, in a thread of its own, until it is told that all entries were met. What
    /// it says goes to the control stream.
    fn beside(&self, out: Outbox) -> Result<(), Fault>;

    /// All entries were met.
    fn met_all(&self);

    /// All entries of the directory were met.
    fn leave(&self, dir: Self::Dir) -> Result<(), Fault>;

    /// The source could not list the directory.
    fn unlisted(&self, node: &Node, dir: Self::Dir, why: Unlisted) -> Result<(), Fault>;

    /// We could not.
    fn unreadable(&self, node: &Node, dir: Self::Dir, why: Errno) -> Result<(), Fault>;

    /// A frame of a data stream. Answers whether a content that was wanted is dealt with.
    fn content(&self, stream: &mut Self::Stream, frame: Frame<'_>) -> Result<bool, Fault>;

    /// All was received. Answers the report as JSON.
    fn finish(self, summary: Summary) -> Result<Vec<u8>, Fault>;
}
