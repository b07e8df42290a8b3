//! Which files of the source share what they hold (`cp --reflink`), found by where their contents lie on the disk.
//! Of each file that is sent the file system is asked, and what it says that something else has too is
//! remembered; what is met again is told to the target. Files that the target has already are looked at only if
//! such a one was sent, so a pass that sends nothing asks nothing. It must not know what the target makes of it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, Range};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_proto::Fault;

use crate::confine::{self, Node, Tree};
use crate::extents::{self, Extent, Lies};
use crate::metadata::{Identity, Kind, Stat};
use crate::neighbour::Turn;
use crate::protocol::Frame;
use crate::shares::{MAX_DEPTH, MAX_PARTS, Part, SMALLEST, SMALLEST_FILE, Share};
use crate::supply::{Opened, Supplier};
use crate::window::{Batch, Listed};

/// A bound on what is remembered; beyond it files are whole copies. So much takes some 20 MiB.
const MAX_PIECES: usize = 256 * 1024;
/// A bound on the extents of one file that are looked at: a second's work.
const MAX_EXTENTS: usize = 256 * 1024;
/// A bound on files to be looked at that the target has already.
const MAX_KEPT: usize = 256 * 1024;

/// See the module. All suppliers of a pass share it.
#[derive(Debug)]
pub struct Sharing {
    /// The source's files may share.
    is_possible: bool,
    /// The target's can share as well.
    is_asked: AtomicBool,
    /// Suppliers that still send contents.
    suppliers: AtomicUsize,
    met: Mutex<Met>,
    /// Files that the target has already.
    kept: Mutex<Vec<Member>>,
}

/// A file.
#[derive(Debug)]
struct Member {
    node: Arc<Node>,
    name: Box<[u8]>,
    identity: Identity,
}

impl Member {
    /// None if it is too deep to be told.
    fn of(node: &Arc<Node>, file: &Listed) -> Option<Self> {
        let (node, name) = (Arc::clone(node), file.name.clone());
        let is_near = (node.depth() as usize) < MAX_DEPTH;
        is_near.then_some(Self { node, name, identity: file.identity })
    }

    fn path(&self) -> Vec<Vec<u8>> {
        let path = self.node.path_of(&self.name);
        path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect()
    }

    /// Opens it, if it is still there.
    fn open(&self, tree: &Tree) -> Option<(OwnedFd, Stat)> {
        let fd = confine::open_file(tree.open(&self.node).ok()?, &self.name).ok()?;
        let stat = Stat::of_fd(&fd).ok()?;
        let is_it = stat.kind == Kind::File && stat.identity() == self.identity;
        is_it.then_some((fd, stat))
    }
}

impl Sharing {
    /// Of a pass with so many suppliers, between files that may share or cannot.
    pub fn new(is_possible: bool, suppliers: usize) -> Self {
        Self {
            is_possible,
            is_asked: AtomicBool::new(false),
            suppliers: AtomicUsize::new(suppliers),
            met: Mutex::default(),
            kept: Mutex::default(),
        }
    }

    /// The target's files can share.
    pub fn ask(&self) {
        self.is_asked.store(true, Ordering::Relaxed);
    }

    fn minds(&self, size: u64) -> bool {
        self.is_possible && size >= SMALLEST_FILE && self.is_asked.load(Ordering::Relaxed)
    }

    /// The target wants nothing of a file's content.
    pub fn keeps(&self, node: &Arc<Node>, file: &Listed) {
        if !self.minds(file.size) {
            return;
        }
        let mut kept = lock(&self.kept);
        if kept.len() < MAX_KEPT {
            kept.extend(Member::of(node, file));
        }
    }

    /// What the target has already and may have something in common with what was sent.
    fn take_kept(&self) -> Vec<Member> {
        let kept = std::mem::take(&mut *lock(&self.kept));
        if lock(&self.met).pieces == 0 { Vec::new() } else { kept }
    }

    /// What a file has in common with those that were sent before it. It is remembered itself if it `is_sent`.
    fn of(&self, file: Member, fd: impl AsFd, size: u64, is_sent: bool) -> Vec<Share> {
        let (mut shared, mut left) = (Vec::new(), MAX_EXTENTS);
        let read = extents::read(fd, 0..size, |extent| {
            if extent.is_shared && extent.lies != Lies::Nowhere {
                shared.push(extent);
            }
            left -= 1;
            if left > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if read.is_err() || shared.is_empty() {
            return Vec::new();
        }
        let mut common = Common { file: Arc::new(file), found: Vec::new() };
        let mut met = lock(&self.met);
        shared.iter().for_each(|extent| met.meet(&mut common, extent, is_sent));
        drop(met);
        common.shares()
    }
}

impl Supplier<'_> {
    /// Tells what a file that was sent has in common with those before it.
    pub(crate) fn tell_shared(
        &mut self,
        batch: &Batch,
        file: &Listed,
        opened: &Opened,
    ) -> Result<(), Fault> {
        let size = opened.stat.size;
        if !self.store.sharing.minds(size) {
            return Ok(());
        }
        let Some(member) = Member::of(&batch.node, file) else { return Ok(()) };
        self.tell_all(self.store.sharing.of(member, &opened.fd, size, true))
    }

    /// This supplier has sent all that it will. The last one tells what files that the target has already have in
    /// common with those that were sent.
    pub(crate) fn end_sharing(&mut self, turn: &mut Turn<'_>) -> Result<(), Fault> {
        if self.store.sharing.suppliers.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        for member in self.store.sharing.take_kept() {
            self.store.halt.check()?;
            let Some((fd, stat)) = member.open(&self.store.tree) else { continue };
            self.tell_all(self.store.sharing.of(member, &fd, stat.size, false))?;
            turn.done();
        }
        Ok(())
    }

    fn tell_all(&mut self, shares: Vec<Share>) -> Result<(), Fault> {
        shares.into_iter().try_for_each(|share| self.give(&Frame::Share(share)))
    }
}

/// What lies where, of the files that were sent: no two pieces in one place.
#[derive(Debug, Default)]
struct Met {
    /// By where on the disk they begin.
    plain: BTreeMap<u64, Piece>,
    /// By where on the disk they are packed.
    packed: HashMap<u64, Piece>,
    /// How many there are.
    pieces: usize,
}

/// A part of a file.
#[derive(Debug, Clone)]
struct Piece {
    file: Arc<Member>,
    offset: u64,
    length: u64,
}

impl Met {
    /// Finds what was met in the place of an extent, and remembers the rest of it if it `is_sent`.
    fn meet(&mut self, common: &mut Common, extent: &Extent, is_sent: bool) {
        match extent.lies {
            Lies::At(place) => self.plain(common, place, extent, is_sent),
            Lies::In(place) => self.packed(common, place, extent, is_sent),
            Lies::Nowhere => {}
        }
    }

    fn plain(&mut self, common: &mut Common, place: u64, extent: &Extent, is_sent: bool) {
        let end = place.saturating_add(extent.length);
        let before = self.plain.range(..place).next_back();
        let reaching = before.filter(|(begin, piece)| **begin + piece.length > place);
        let first = reaching.map_or(place, |(begin, _)| *begin);
        let found: Vec<_> =
            self.plain.range(first..end).map(|(begin, piece)| (*begin, piece.clone())).collect();
        let mut next = place;
        for (begin, piece) in found {
            let (from, to) = (begin.max(place), (begin + piece.length).min(end));
            self.remember(common, extent, place, next..from, is_sent);
            let part = Part {
                from: piece.offset + (from - begin),
                to: extent.offset + (from - place),
                length: to - from,
            };
            common.add(&piece.file, part);
            next = to;
        }
        self.remember(common, extent, place, next..end, is_sent);
    }

    /// Remembers the part of an extent, which lies at `place`, that lies in a range of the disk.
    fn remember(
        &mut self,
        common: &Common,
        extent: &Extent,
        place: u64,
        range: Range<u64>,
        is_sent: bool,
    ) {
        if !is_sent || range.is_empty() || self.pieces >= MAX_PIECES {
            return;
        }
        let (offset, length) = (extent.offset + (range.start - place), range.end - range.start);
        self.plain.insert(range.start, Piece { file: Arc::clone(&common.file), offset, length });
        self.pieces += 1;
    }

    /// Of what is packed nobody tells which part an extent is. One that was cloned mostly has the offset that the
    /// other has; else all of both is taken to be the same.
    fn packed(&mut self, common: &mut Common, place: u64, extent: &Extent, is_sent: bool) {
        let is_full = self.pieces >= MAX_PIECES;
        let piece = match self.packed.entry(place) {
            Entry::Occupied(met) => met.into_mut(),
            Entry::Vacant(free) => {
                if is_sent && !is_full {
                    let Extent { offset, length, .. } = *extent;
                    free.insert(Piece { file: Arc::clone(&common.file), offset, length });
                    self.pieces += 1;
                }
                return;
            }
        };
        let from = piece.offset.max(extent.offset);
        let to = (piece.offset + piece.length).min(extent.end());
        if from < to {
            common.add(&piece.file, Part { from, to: from, length: to - from });
        } else if piece.length == extent.length {
            let (from, to, length) = (piece.offset, extent.offset, extent.length);
            common.add(&piece.file, Part { from, to, length });
        }
    }
}

/// What one file has in common with those before it, as it is found.
#[derive(Debug)]
struct Common {
    file: Arc<Member>,
    found: Vec<(Arc<Member>, Vec<Part>)>,
}

impl Common {
    fn add(&mut self, with: &Arc<Member>, part: Part) {
        if with.identity == self.file.identity && part.from == part.to {
            // Another name of it.
            return;
        }
        let goes_on =
            |last: &Part| (last.from + last.length, last.to + last.length) == (part.from, part.to);
        match self.found.last_mut() {
            Some((member, parts)) if Arc::ptr_eq(member, with) => match parts.last_mut() {
                Some(last) if goes_on(last) => last.length += part.length,
                _ => parts.push(part),
            },
            _ => self.found.push((Arc::clone(with), vec![part])),
        }
    }

    /// What of it is worth to be told.
    fn shares(self) -> Vec<Share> {
        let mut shares = Vec::new();
        for (with, mut parts) in self.found {
            parts.retain(|part| part.length >= SMALLEST);
            let share = |parts: &[Part]| Share {
                from: with.path(),
                to: self.file.path(),
                parts: parts.to_vec(),
            };
            shares.extend(parts.chunks(MAX_PARTS).map(share));
        }
        shares
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panics stops the whole pass: nobody goes on with what it left.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = 1024;

    fn member(name: &str, ino: u64) -> Member {
        let identity = Identity { dev: (0, 0), ino };
        Member { node: Node::root().child(b"d"), name: name.as_bytes().into(), identity }
    }

    fn at(place: u64, offset: u64, length: u64) -> Extent {
        Extent { offset, length, lies: Lies::At(place), is_shared: true }
    }

    fn packed(place: u64, offset: u64, length: u64) -> Extent {
        Extent { lies: Lies::In(place), ..at(0, offset, length) }
    }

    /// What a file with these extents is found to share: with whom, and the parts.
    fn meets(met: &mut Met, file: Member, extents: &[Extent], is_sent: bool) -> Vec<Told> {
        let mut common = Common { file: Arc::new(file), found: Vec::new() };
        extents.iter().for_each(|extent| met.meet(&mut common, extent, is_sent));
        let told = |share: Share| {
            let parts = share.parts.iter().map(|p| (p.from / K, p.to / K, p.length / K));
            (String::from_utf8(share.from.join(&b'/')).unwrap(), parts.collect())
        };
        common.shares().into_iter().map(told).collect()
    }

    type Told = (String, Vec<(u64, u64, u64)>);

    fn with(name: &str, parts: &[(u64, u64, u64)]) -> Told {
        (format!("d/{name}"), parts.to_vec())
    }

    #[test]
    fn what_lies_in_one_place_is_told_however_it_is_cut() {
        let mut met = Met::default();
        let whole = [at(1000 * K, 0, 900 * K)];
        assert_eq!(meets(&mut met, member("a", 1), &whole, true), []);
        // Overwritten in its midst, which lies elsewhere.
        let mended = [
            at(1000 * K, 0, 300 * K),
            at(5000 * K, 300 * K, 100 * K),
            at(1400 * K, 400 * K, 500 * K),
        ];
        let found = meets(&mut met, member("b", 2), &mended, true);
        assert_eq!(found, [with("a", &[(0, 0, 300), (400, 400, 500)])]);
        // Of both, and of what neither had; pieces that go on are one.
        let both = [
            at(900 * K, 0, 200 * K),
            at(1100 * K, 200 * K, 100 * K),
            at(4900 * K, 300 * K, 300 * K),
        ];
        let found = meets(&mut met, member("c", 3), &both, true);
        assert_eq!(found, [with("a", &[(0, 100, 200)]), with("b", &[(300, 400, 100)])]);
        let rest = [at(800 * K, 0, 200 * K), at(5100 * K, 200 * K, 50 * K)];
        let found = meets(&mut met, member("d", 4), &rest, true);
        assert_eq!(found, [with("c", &[(0, 100, 100), (500, 200, 50)])]);
        assert_eq!(met.pieces, met.plain.len());
    }

    #[test]
    fn what_was_not_sent_is_found_and_not_remembered() {
        let mut met = Met::default();
        meets(&mut met, member("sent", 1), &[at(0, 0, 64 * K)], true);
        let kept = [at(0, 0, 128 * K)];
        assert_eq!(meets(&mut met, member("kept", 2), &kept, false), [with("sent", &[(0, 0, 64)])]);
        assert_eq!(met.pieces, 1);
    }

    #[test]
    fn what_is_too_short_and_other_names_are_not_told() {
        let mut met = Met::default();
        meets(&mut met, member("a", 1), &[at(0, 0, 64 * K)], true);
        assert_eq!(meets(&mut met, member("b", 2), &[at(0, 0, 15 * K)], true), []);
        assert_eq!(meets(&mut met, member("name", 1), &[at(0, 0, 64 * K)], false), []);
        // A file that has one thing twice.
        let found = meets(&mut met, member("a", 1), &[at(0, 512 * K, 64 * K)], true);
        assert_eq!(found, [with("a", &[(0, 512, 64)])]);
    }

    #[test]
    fn what_is_packed_is_told_where_it_is_likely() {
        let mut met = Met::default();
        let whole = [packed(7, 0, 128 * K), packed(8, 128 * K, 128 * K)];
        meets(&mut met, member("a", 1), &whole, true);
        // A clone whose first extent was overwritten in part.
        let clone =
            [packed(7, 64 * K, 64 * K), packed(8, 128 * K, 128 * K), packed(9, 256 * K, 128 * K)];
        let found = meets(&mut met, member("b", 2), &clone, true);
        assert_eq!(found, [with("a", &[(64, 64, 192)])]);
        // Moved as a whole, and in part: of which nobody knows what it is.
        let moved = [packed(8, 1024 * K, 128 * K), packed(9, 2048 * K, 64 * K)];
        assert_eq!(meets(&mut met, member("c", 3), &moved, true), [with("a", &[(128, 1024, 128)])]);
        // What is packed there is shorter than what it holds: its neighbours are others.
        assert_eq!(meets(&mut met, member("d", 4), &[at(7, 0, 128 * K)], true), []);
    }

    #[test]
    fn nothing_is_remembered_beyond_the_bound() {
        let mut met = Met { pieces: MAX_PIECES, ..Met::default() };
        meets(&mut met, member("a", 1), &[at(0, 0, 64 * K), packed(7, 64 * K, 64 * K)], true);
        assert!(met.plain.is_empty() && met.packed.is_empty());
    }

    #[test]
    fn files_too_deep_or_too_small_are_not_minded() {
        let listed = |size| Listed {
            name: b"f".as_slice().into(),
            identity: member("f", 1).identity,
            ctime: crate::metadata::Time::EPOCH,
            size,
            doubtful: false,
        };
        let deep = (1..MAX_DEPTH).fold(Node::root(), |node, _| node.child(b"d"));
        let sharing = Sharing::new(true, 1);
        sharing.keeps(&deep, &listed(SMALLEST_FILE));
        assert!(lock(&sharing.kept).is_empty(), "nobody has asked");
        sharing.ask();
        sharing.keeps(&deep.child(b"d"), &listed(SMALLEST_FILE));
        sharing.keeps(&deep, &listed(SMALLEST_FILE - 1));
        assert!(lock(&sharing.kept).is_empty());
        sharing.keeps(&deep, &listed(SMALLEST_FILE));
        assert_eq!(lock(&sharing.kept)[0].path().len(), MAX_DEPTH);
        assert!(sharing.take_kept().is_empty(), "nothing was sent that is shared");
    }
}
