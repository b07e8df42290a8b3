//! Which files of the source share what they hold (`cp --reflink`), found by where their contents lie on the disk.
//! Of each file that is sent the file system is asked, and what it says that something else has too is
//! remembered; what is met again is told to the target. Files that the target has already are looked at only if
//! such a one was sent, so a pass that sends nothing asks nothing. An account may cut its files into as many pieces as
//! it likes: all of it has a bound, and what is beyond is a whole copy. It must not know what the target makes of it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, Range};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_proto::Fault;

use crate::confine::{self, Node, Tree};
use crate::extents::{self, Extent, Lies};
use crate::halt::Halt;
use crate::metadata::{Identity, Kind, Stat};
use crate::neighbour::Turn;
use crate::protocol::Frame;
use crate::shares::{MAX_DEPTH, MAX_PARTS, Part, SMALLEST, SMALLEST_FILE, Share};
use crate::supply::{Opened, Supplier};
use crate::window::{Batch, Listed};

/// A bound on what is remembered; beyond it files are whole copies. So much takes some 20 MiB.
const MAX_PIECES: usize = 256 * 1024;
/// A bound on the extents of one file that are looked at, with the pieces that are met there: two seconds' work.
const MAX_LOOKS: usize = 512 * 1024;
/// The same of all files together that the target has already.
const MAX_KEPT_LOOKS: usize = 8 * MAX_LOOKS;
/// A bound on the parts of one file that are told.
const MAX_TOLD: usize = 16 * MAX_PARTS;
/// A bound on the others that it has them in common with: each is told by its path, which may be long.
const MAX_OTHERS: usize = 256;
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

    /// Finds what a file has in common with those that were sent before it.
    fn find(&self, common: &mut Common, fd: impl AsFd, size: u64, halt: &Halt) {
        // Where it cannot be told any more, what was found till then is.
        let _ = extents::read(fd, 0..size, |extent| {
            common.look()?;
            if halt.is_stopped() {
                ControlFlow::Break(())
            } else if extent.is_shared {
                lock(&self.met).meet(common, &extent)
            } else {
                ControlFlow::Continue(())
            }
        });
    }

    /// Gives what each file that the target has already has in common with those that were sent, until so much was
    /// looked at.
    fn each_kept(
        &self,
        tree: &Tree,
        halt: &Halt,
        mut looks: usize,
        mut tell: impl FnMut(&mut Common) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        for member in self.take_kept() {
            halt.check()?;
            if looks == 0 {
                break;
            }
            let Some((fd, stat)) = member.open(tree) else { continue };
            let mut common = Common::of(member, false, looks);
            self.find(&mut common, &fd, stat.size, halt);
            looks = common.looks;
            tell(&mut common)?;
        }
        Ok(())
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
        let mut common = Common::of(member, true, MAX_LOOKS);
        self.store.sharing.find(&mut common, &opened.fd, size, &self.store.halt);
        self.tell_all(&mut common)
    }

    /// This supplier has sent all that it will. The last one tells what files that the target has already have in
    /// common with those that were sent.
    pub(crate) fn end_sharing(&mut self, turn: &mut Turn<'_>) -> Result<(), Fault> {
        let store = self.store;
        if store.sharing.suppliers.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        store.sharing.each_kept(&store.tree, &store.halt, MAX_KEPT_LOOKS, |common| {
            self.tell_all(common)?;
            turn.done();
            Ok(())
        })
    }

    fn tell_all(&mut self, common: &mut Common) -> Result<(), Fault> {
        common.shares().try_for_each(|share| self.give(&Frame::Share(share)))
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
    /// Finds what was met in the place of an extent, and remembers the rest of it if the file was sent.
    fn meet(&mut self, common: &mut Common, extent: &Extent) -> ControlFlow<()> {
        match extent.lies {
            Lies::At(place) => self.plain(common, place, extent),
            Lies::In(place) => self.packed(common, place, extent),
            Lies::Nowhere => ControlFlow::Continue(()),
        }
    }

    fn plain(&mut self, common: &mut Common, place: u64, extent: &Extent) -> ControlFlow<()> {
        let end = place.saturating_add(extent.length);
        let mut next = place;
        while let Some((begin, piece)) = self.first_in(next..end) {
            common.look()?;
            let (from, to) = (begin.max(next), (begin + piece.length).min(end));
            self.remember(common, extent, place, next..from);
            let part = Part {
                from: piece.offset + (from - begin),
                to: extent.offset + (from - place),
                length: to - from,
            };
            common.add(&piece.file, part)?;
            next = to;
        }
        self.remember(common, extent, place, next..end);
        ControlFlow::Continue(())
    }

    /// The first piece that lies in a range of the disk, and where it begins.
    fn first_in(&self, range: Range<u64>) -> Option<(u64, Piece)> {
        if range.is_empty() {
            return None;
        }
        let before = self.plain.range(..range.start).next_back();
        let reaching = before.filter(|(begin, piece)| **begin + piece.length > range.start);
        let first = reaching.or_else(|| self.plain.range(range).next());
        first.map(|(begin, piece)| (*begin, piece.clone()))
    }

    /// Remembers the part of an extent, which lies at `place`, that lies in a range of the disk.
    fn remember(&mut self, common: &Common, extent: &Extent, place: u64, range: Range<u64>) {
        if !common.is_sent || range.is_empty() || self.pieces >= MAX_PIECES {
            return;
        }
        let (offset, length) = (extent.offset + (range.start - place), range.end - range.start);
        self.plain.insert(range.start, Piece { file: Arc::clone(&common.file), offset, length });
        self.pieces += 1;
    }

    /// Of what is packed nobody tells which part an extent is. One that was cloned mostly has the offset that the
    /// other has; else all of both is taken to be the same.
    fn packed(&mut self, common: &mut Common, place: u64, extent: &Extent) -> ControlFlow<()> {
        let is_full = self.pieces >= MAX_PIECES;
        let piece = match self.packed.entry(place) {
            Entry::Occupied(met) => met.into_mut(),
            Entry::Vacant(free) => {
                if common.is_sent && !is_full {
                    let Extent { offset, length, .. } = *extent;
                    free.insert(Piece { file: Arc::clone(&common.file), offset, length });
                    self.pieces += 1;
                }
                return ControlFlow::Continue(());
            }
        };
        let from = piece.offset.max(extent.offset);
        let to = (piece.offset + piece.length).min(extent.end());
        if from < to {
            common.add(&piece.file, Part { from, to: from, length: to - from })
        } else if piece.length == extent.length {
            let (from, to, length) = (piece.offset, extent.offset, extent.length);
            common.add(&piece.file, Part { from, to, length })
        } else {
            ControlFlow::Continue(())
        }
    }
}

/// What one file has in common with those before it, as it is found.
#[derive(Debug)]
struct Common {
    file: Arc<Member>,
    /// It was sent, and is remembered itself.
    is_sent: bool,
    /// So much may yet be looked at.
    looks: usize,
    /// With which others, and which parts. Only the last of each one's may be too short to be told.
    found: Vec<(Arc<Member>, Vec<Part>)>,
    /// How many parts there are.
    parts: usize,
}

impl Common {
    fn of(file: Member, is_sent: bool, looks: usize) -> Self {
        Self { file: Arc::new(file), is_sent, looks, found: Vec::new(), parts: 0 }
    }

    /// Goes on if more may be looked at.
    fn look(&mut self) -> ControlFlow<()> {
        let Some(looks) = self.looks.checked_sub(1) else { return ControlFlow::Break(()) };
        self.looks = looks;
        ControlFlow::Continue(())
    }

    /// Goes on if there may be more.
    fn add(&mut self, with: &Arc<Member>, part: Part) -> ControlFlow<()> {
        if with.identity == self.file.identity && part.from == part.to {
            // Another name of it.
            return ControlFlow::Continue(());
        }
        let known = self.found.iter().rposition(|(other, _)| Arc::ptr_eq(other, with));
        if known.is_none() && self.found.len() == MAX_OTHERS {
            return ControlFlow::Continue(());
        }
        let index = known.unwrap_or_else(|| {
            self.found.push((Arc::clone(with), Vec::new()));
            self.found.len() - 1
        });
        let goes_on =
            |last: &Part| (last.from + last.length, last.to + last.length) == (part.from, part.to);
        let parts = &mut self.found[index].1;
        match parts.last_mut() {
            Some(last) if goes_on(last) => last.length += part.length,
            Some(last) if last.length < SMALLEST => *last = part,
            _ if self.parts == MAX_TOLD => return ControlFlow::Break(()),
            _ => {
                parts.push(part);
                self.parts += 1;
            }
        }
        ControlFlow::Continue(())
    }

    /// What of it is worth to be told. Each is made when it is asked for, since all their paths would take much room.
    fn shares(&mut self) -> impl Iterator<Item = Share> {
        for (_, parts) in &mut self.found {
            parts.retain(|part| part.length >= SMALLEST);
        }
        let file = &self.file;
        self.found.iter().flat_map(move |(with, parts)| {
            let share = |parts: &[Part]| Share {
                from: with.path(),
                to: file.path(),
                parts: parts.to_vec(),
            };
            parts.chunks(MAX_PARTS).map(share)
        })
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panics stops the whole pass: nobody goes on with what it left.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::shares::on_btrfs;

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
        let mut common = Common::of(file, is_sent, MAX_LOOKS);
        let _ = extents.iter().try_for_each(|extent| met.meet(&mut common, extent));
        told(&mut common)
    }

    fn told(common: &mut Common) -> Vec<Told> {
        let told = |share: Share| {
            let parts = share.parts.iter().map(|p| (p.from / K, p.to / K, p.length / K));
            (String::from_utf8(share.from.join(&b'/')).unwrap(), parts.collect())
        };
        common.shares().map(told).collect()
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

    /// So many pieces of 16 KiB, one from each of some files in turn.
    fn in_turn(files: u64, pieces: u64) -> Vec<Extent> {
        (0..pieces).map(|n| at((n % files) * 32 * K, n * 16 * K, 16 * K)).collect()
    }

    /// So many files of 16 KiB were sent, which lie apart.
    fn sent(files: u64) -> Met {
        let mut met = Met::default();
        for n in 0..files {
            let name = n.to_string();
            meets(&mut met, member(&name, n), &[at(n * 32 * K, 0, 16 * K)], true);
        }
        met
    }

    #[test]
    fn pieces_of_others_in_turn_are_told_other_by_other_and_up_to_the_bounds() {
        let clone = || member("clone", 1 << 20);
        let told = meets(&mut sent(2), clone(), &in_turn(2, 100), true);
        assert_eq!((told.len(), told[0].1.len(), told[1].1.len()), (2, 50, 50));
        let told = meets(&mut sent(2), clone(), &in_turn(2, 100_000), true);
        let parts: usize = told.iter().map(|(_, parts)| parts.len()).sum();
        assert_eq!((told.len(), parts), (16, MAX_TOLD));
        let others = MAX_OTHERS as u64 + 5;
        let told = meets(&mut sent(others), clone(), &in_turn(others, 2 * others), true);
        assert_eq!((told.len(), told[0].1.len()), (MAX_OTHERS, 2));
        // Too short to be told, however many.
        let mut short = in_turn(2, 100_000).into_iter().map(|e| Extent { length: K, ..e });
        let (mut met, mut common) = (sent(2), Common::of(clone(), true, MAX_LOOKS));
        assert!(short.try_for_each(|extent| met.meet(&mut common, &extent)).is_continue());
        assert_eq!(common.parts, 2);
        assert_eq!(common.shares().count(), 0);
    }

    #[test]
    fn what_was_met_in_many_pieces_is_looked_at_up_to_the_bound() {
        let mut met = sent(1000);
        let mut common = Common::of(member("clone", 1 << 20), true, 10);
        assert!(met.meet(&mut common, &at(0, 0, 32_000 * K)).is_break());
        assert_eq!((common.looks, common.found.len()), (0, 10));
        common.looks = 2000;
        assert!(met.meet(&mut common, &at(0, 0, 32_000 * K)).is_continue());
    }

    fn listed(name: &[u8], identity: Identity, size: u64) -> Listed {
        let ctime = crate::metadata::Time::EPOCH;
        Listed { name: name.into(), identity, ctime, size, doubtful: false }
    }

    /// How many of two files that the target has are looked at.
    fn looked_at(top: &std::path::Path, halt: &Halt, looks: usize) -> Result<usize, Fault> {
        let tree = Tree::open_root(top).unwrap();
        let sharing = Sharing::new(true, 1);
        sharing.ask();
        meets(&mut lock(&sharing.met), member("sent", 1), &[at(0, 0, 64 * K)], true);
        for name in [b"a", b"b"] {
            let identity = Stat::of(tree.root_fd(), name).unwrap().identity();
            sharing.keeps(&Node::root(), &listed(name, identity, SMALLEST_FILE));
        }
        let mut count = 0;
        let tell = |_: &mut Common| {
            count += 1;
            Ok(())
        };
        sharing.each_kept(&tree, halt, looks, tell).map(|()| count)
    }

    #[test]
    fn what_the_target_has_is_looked_at_up_to_the_bound_and_until_it_is_stopped() {
        on_btrfs(async |top| {
            for name in ["a", "b"] {
                std::fs::write(top.join(name), [1; SMALLEST_FILE as usize]).unwrap();
            }
            let halt = Halt::default();
            for looks in 0..=2 {
                assert_eq!(looked_at(top, &halt, looks).unwrap(), looks);
            }
            halt.stop(Fault::transient("enough"));
            assert!(looked_at(top, &halt, 2).is_err());
            // Also within one file.
            let mut common = Common::of(member("a", 1), true, 5);
            let file = std::fs::File::open(top.join("a")).unwrap();
            Sharing::new(true, 1).find(&mut common, &file, SMALLEST_FILE, &halt);
            assert_eq!(common.looks, 4);
        });
    }

    #[test]
    fn files_too_deep_or_too_small_are_not_minded() {
        let listed = |size| listed(b"f", member("f", 1).identity, size);
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
