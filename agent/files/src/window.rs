//! What is under way at the source: batches that were listed and are not answered yet, and batches that
//! were answered and are not sent yet. It bounds both together. It must not know what a batch is
//! read from.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferry_proto::Fault;

use crate::codec::Malformed;
use crate::confine::Node;
use crate::halt::{Halt, protocol_fault};
use crate::metadata::{Identity, Time};
use crate::protocol::{MAX_BATCHES, MAX_ENTRIES};

/// Waiting threads look so often whether all was stopped.
const LOOK: Duration = Duration::from_millis(100);

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
    /// Its number.
    pub number: u64,
    /// The directory.
    pub node: Arc<Node>,
    /// Its entries.
    pub entries: Vec<Option<Listed>>,
}

/// A batch and what is wanted of it: places, rising.
#[derive(Debug)]
pub struct Answered {
    /// The batch.
    pub batch: Batch,
    /// Places of the files that are wanted.
    pub wanted: Vec<u16>,
}

#[derive(Debug, Default)]
struct State {
    listed: VecDeque<Batch>,
    answered: VecDeque<Answered>,
    batches: usize,
    entries: usize,
    all_listed: bool,
    all_sent: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Window {
    state: Mutex<State>,
    changed: Condvar,
    halt: Halt,
}

impl Window {
    /// An empty one.
    pub fn new(halt: Halt) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), halt }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another batch may be listed now.
    pub fn has_room(&self) -> bool {
        let state = self.state();
        state.batches == 0 || (state.batches < MAX_BATCHES && state.entries < MAX_ENTRIES)
    }

    /// Waits until another batch may be listed.
    pub fn wait_for_room(&self) -> Result<(), Fault> {
        let mut state = self.state();
        while state.batches > 0 && (state.batches >= MAX_BATCHES || state.entries >= MAX_ENTRIES) {
            state = self.wait(state)?;
        }
        Ok(())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>, Fault> {
        self.halt.check()?;
        let waited = self.changed.wait_timeout(state, LOOK);
        Ok(waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// A batch is about to be sent.
    pub fn list(&self, batch: Batch) {
        let mut state = self.state();
        state.batches += 1;
        state.entries += batch.entries.len();
        state.listed.push_back(batch);
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

    /// The target answered the oldest batch. Gives the sizes of the files wanted.
    pub fn answer(&self, number: u64, bits: &[u8]) -> Result<Vec<u64>, Fault> {
        let refuse = |what| Err(protocol_fault(&Malformed(what)));
        let mut state = self.state();
        let Some(batch) = state.listed.pop_front().filter(|b| b.number == number) else {
            return refuse("an answer to nothing asked");
        };
        if bits.len() != batch.entries.len().div_ceil(8) {
            return refuse("an answer of another length than the question");
        }
        let mut wanted = Vec::new();
        let mut sizes = Vec::new();
        for (place, byte) in bits.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                let place = place * 8 + bit;
                match (batch.entries.get(place), u16::try_from(place)) {
                    (Some(Some(file)), Ok(place)) => {
                        wanted.push(place);
                        sizes.push(file.size);
                    }
                    _ => return refuse("a wish for what has no content"),
                }
            }
        }
        state.answered.push_back(Answered { batch, wanted });
        self.changed.notify_all();
        Ok(sizes)
    }

    /// The next answered batch, if there is one already.
    pub fn try_next(&self) -> Option<Answered> {
        self.state().answered.pop_front()
    }

    /// The next answered batch; none when all was listed and answered.
    pub fn next(&self) -> Result<Option<Answered>, Fault> {
        let mut state = self.state();
        loop {
            if let Some(next) = state.answered.pop_front() {
                return Ok(Some(next));
            }
            if state.all_listed && state.listed.is_empty() {
                return Ok(None);
            }
            state = self.wait(state)?;
        }
    }

    /// So many batches of so many entries altogether are on the stream for good.
    pub fn sent(&self, batches: usize, entries: usize) {
        let mut state = self.state();
        state.batches = state.batches.saturating_sub(batches);
        state.entries = state.entries.saturating_sub(entries);
        self.changed.notify_all();
    }
}
