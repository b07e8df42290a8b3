//! What is under way at the source: batches that were listed and are not answered yet, and contents that
//! are wanted and not sent yet. It bounds both together, and cuts what is wanted into pieces of work. It
//! must not know how a content is read or sent.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferry_proto::Fault;

use crate::blocks::Digest;
use crate::codec::Malformed;
use crate::confine::Node;
use crate::digest::BatchDigest;
use crate::halt::{Halt, protocol_fault};
use crate::metadata::{Identity, Time};
use crate::protocol::{Ending, MAX_BATCHES, MAX_ENTRIES, Place, Purpose, ranges_of};

/// Waiting threads look so often whether all was stopped.
const LOOK: Duration = Duration::from_millis(100);
/// Small files are handed out together, up to so many bytes.
const GROUP_BYTES: u64 = 512 * 1024;
/// And up to so many.
const GROUP_FILES: usize = 64;

/// A file as it was listed; none for what has no content.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: Box<[u8]>,
    /// Which inode it was.
    pub identity: Identity,
    /// When that inode last changed.
    pub ctime: Time,
    /// Its length.
    pub size: u64,
    /// It is to be read even if size and time are the same.
    pub doubtful: bool,
}

/// A batch on its way.
#[derive(Debug)]
pub struct Batch {
    /// The directory.
    pub node: Arc<Node>,
    /// Its entries.
    pub entries: Vec<Option<Listed>>,
    /// For a comparison.
    pub digest: Option<BatchDigest>,
}

impl Batch {
    /// The file at `place`, which is in this batch.
    pub fn file(&self, place: Place) -> Option<&Listed> {
        self.entries.get(usize::from(place.index)).and_then(Option::as_ref)
    }
}

/// A file to be dealt with.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// Which.
    pub place: Place,
    /// The target wants it; else only our digest of it is needed.
    pub wanted: bool,
    /// The target has one that is only to be mended.
    pub mended: bool,
}

/// A piece of work.
#[derive(Debug)]
pub enum Piece {
    /// Files of a batch, one after the other.
    Files(Arc<Batch>, Vec<Wish>),
    /// A range of a large file; with the digests of the blocks that the target has, if it is only to be
    /// mended.
    Range(Arc<Large>, u64, Option<Vec<Digest>>),
}

/// A large file that is sent in ranges.
#[derive(Debug)]
pub struct Large {
    /// Its batch.
    pub batch: Arc<Batch>,
    /// Which file.
    pub place: Place,
    /// How many ranges it has.
    pub ranges: u64,
    /// What whoever is first finds when he opens it, and how many ranges are not sent yet.
    pub state: Mutex<LargeState>,
}

/// See [`Large`].
#[derive(Debug)]
pub struct LargeState {
    /// The open file; none before and after.
    pub opened: Option<crate::supply::Opened>,
    /// Why it could not be opened.
    pub failed: Option<Ending>,
    /// Ranges that were not dealt with yet.
    pub left: u64,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    listed: HashMap<u64, Batch>,
    listed_entries: usize,
    pieces: VecDeque<Piece>,
    /// Files to be mended, each with which of its ranges the target has told the blocks of.
    mended: HashMap<Place, (Arc<Large>, HashSet<u64>)>,
    /// Files in `pieces`, or handed out and not sent yet.
    owed: usize,
    all_listed: bool,
    all_sent: bool,
}

impl State {
    fn has_room(&self) -> bool {
        let entries = self.listed_entries + self.owed;
        entries == 0 || (self.listed.len() < MAX_BATCHES && entries < MAX_ENTRIES)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Window {
    state: Mutex<State>,
    changed: Condvar,
    halt: Halt,
    purpose: Purpose,
}

impl Window {
    /// An empty one.
    pub fn new(halt: Halt, purpose: Purpose) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), halt, purpose }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another batch may be listed now.
    pub fn has_room(&self) -> bool {
        self.state().has_room()
    }

    /// Waits until another batch may be listed.
    pub fn wait_for_room(&self) -> Result<(), Fault> {
        let mut state = self.state();
        while !state.has_room() {
            state = self.wait(state)?;
        }
        Ok(())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>, Fault> {
        self.halt.check()?;
        let waited = self.changed.wait_timeout(state, LOOK);
        Ok(waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// A batch is about to be sent. Answers its number.
    pub fn list(
        &self,
        node: Arc<Node>,
        entries: Vec<Option<Listed>>,
        digest: Option<BatchDigest>,
    ) -> u64 {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.listed_entries += entries.len();
        state.listed.insert(number, Batch { node, entries, digest });
        number
    }

    /// No batch follows.
    pub fn all_listed(&self) {
        self.state().all_listed = true;
        self.changed.notify_all();
    }

    /// All contents and the summary are about to be sent.
    pub fn all_sent(&self) {
        self.state().all_sent = true;
    }

    /// Whether a report may come.
    pub fn is_all_sent(&self) -> bool {
        self.state().all_sent
    }

    /// The target answered a batch. Gives the sizes of the files wanted, and the batch if nothing of it is
    /// left to do. Tells `keeps` of the files that are not wanted.
    pub fn answer(
        &self,
        number: u64,
        bits: &[u8],
        mended: &[u16],
        keeps: impl Fn(&Arc<Node>, &Listed),
    ) -> Result<(Vec<u64>, Option<Batch>), Fault> {
        let refuse = |what| Err(protocol_fault(&Malformed(what)));
        let mut state = self.state();
        let Some(batch) = state.listed.remove(&number) else {
            return refuse("an answer to nothing asked");
        };
        state.listed_entries -= batch.entries.len();
        if bits.len() != batch.entries.len().div_ceil(8) {
            return refuse("an answer of another length than the question");
        }
        let wanted = |index: usize| wanted_in(bits, index);
        if (0..bits.len() * 8).any(|i| wanted(i) && !matches!(batch.entries.get(i), Some(Some(_))))
        {
            return refuse("a wish for what has no content");
        }
        let is_bad = |index: &u16| !wanted_in(bits, usize::from(*index));
        if mended.iter().any(is_bad) || (!mended.is_empty() && self.purpose == Purpose::Verify) {
            return refuse("something to be mended that is not wanted");
        }
        // A digest is made of each file, wanted or not: the manifest is of the whole tree.
        let digested = |file: &Listed| self.purpose == Purpose::Verify && file.doubtful;
        let mut sizes = Vec::new();
        let mut wishes = Vec::new();
        for (index, file) in (0_u16..).zip(&batch.entries) {
            let Some(file) = file else { continue };
            let wanted = wanted(usize::from(index));
            if wanted {
                sizes.push(file.size);
            } else {
                keeps(&batch.node, file);
            }
            if wanted || digested(file) {
                let mended = mended.contains(&index);
                wishes.push(Wish { place: Place { batch: number, index }, wanted, mended });
            }
        }
        let done = if wishes.is_empty() {
            Some(batch)
        } else {
            state.owed += wishes.len();
            self.cut(Arc::new(batch), wishes, &mut state);
            None
        };
        drop(state);
        self.changed.notify_all();
        Ok((sizes, done))
    }

    /// The target has told the blocks of a range of a file that is to be mended.
    pub fn blocks(&self, place: Place, range: u64, digests: Vec<Digest>) -> Result<(), Fault> {
        let refuse = |what| Err(protocol_fault(&Malformed(what)));
        let mut state = self.state();
        let Some((large, told)) = state.mended.get_mut(&place) else {
            return refuse("blocks of what is not to be mended");
        };
        if range >= large.ranges || !told.insert(range) {
            return refuse("blocks of a range that there is not, or again");
        }
        let (large, is_last) = (Arc::clone(large), told.len() as u64 == large.ranges);
        if is_last {
            state.mended.remove(&place);
        }
        state.pieces.push_back(Piece::Range(large, range, Some(digests)));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Cuts what is wanted of a batch into pieces.
    fn cut(&self, batch: Arc<Batch>, wishes: Vec<Wish>, state: &mut State) {
        let (mut group, mut bytes) = (Vec::new(), 0_u64);
        let pieces = &mut state.pieces;
        for wish in wishes {
            let size = batch.file(wish.place).map_or(0, |file| file.size);
            let ranges = ranges_of(size);
            if wish.mended || (ranges > 1 && self.purpose == Purpose::Pass) {
                let state_of = LargeState { opened: None, failed: None, left: ranges };
                let large = Arc::new(Large {
                    batch: Arc::clone(&batch),
                    place: wish.place,
                    ranges,
                    state: Mutex::new(state_of),
                });
                if wish.mended {
                    state.mended.insert(wish.place, (large, HashSet::new()));
                } else {
                    let range = |range| Piece::Range(Arc::clone(&large), range, None);
                    pieces.extend((0..ranges).map(range));
                }
                continue;
            }
            group.push(wish);
            bytes = bytes.saturating_add(size);
            if group.len() == GROUP_FILES || bytes >= GROUP_BYTES {
                pieces.push_back(Piece::Files(Arc::clone(&batch), std::mem::take(&mut group)));
                bytes = 0;
            }
        }
        if !group.is_empty() {
            pieces.push_back(Piece::Files(batch, group));
        }
    }

    /// The next piece, if there is one already.
    pub fn try_next(&self) -> Option<Piece> {
        self.state().pieces.pop_front()
    }

    /// The next piece; none when all was listed and answered.
    pub fn next(&self) -> Result<Option<Piece>, Fault> {
        let mut state = self.state();
        loop {
            if let Some(next) = state.pieces.pop_front() {
                return Ok(Some(next));
            }
            if state.all_listed && state.listed.is_empty() && state.mended.is_empty() {
                return Ok(None);
            }
            state = self.wait(state)?;
        }
    }

    /// So many files are on a stream for good.
    pub fn sent(&self, files: usize) {
        let mut state = self.state();
        state.owed = state.owed.saturating_sub(files);
        drop(state);
        self.changed.notify_all();
    }
}

fn wanted_in(bits: &[u8], index: usize) -> bool {
    bits.get(index / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0)
}
