//! Files at the target that are to share what the source's files share. The source says where to look, as soon
//! as it has sent the later of two; when both stand here, the file system is asked to compare them, and lets them
//! share what is the same. What the source says proves nothing, so that nothing but time is lost if it is wrong;
//! and that is bounded by what has come. It must not know how the source found it.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ferry_proto::Fault;
use rustix::io::{Errno, Result as IoResult};

use crate::apply::Applier;
use crate::confine::{self, Node, Tree};
use crate::dedupe::{self, CHUNK};
use crate::extents;
use crate::metadata::{Kind, Stat};
use crate::neighbour::{Neighbour, Turn};
use crate::options::Others;
use crate::shares::{Part, SMALLEST_FILE, Share};

/// Most that wait for a content to come: they are of files that are being sent, of which there are few. Beyond
/// it files are whole copies.
const MAX_WAITING: usize = 256;

/// See the module.
#[derive(Debug)]
pub struct Reflinks {
    /// The source was told that the file system can.
    pub was_told: bool,
    /// It can, as far as is known.
    can: AtomicBool,
    /// The length of its blocks.
    block: u64,
    /// So many bytes may yet be compared.
    allowed: AtomicU64,
    neighbour: Neighbour,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Where contents are to come that may share.
    coming: HashSet<Vec<u8>>,
    /// What waits for them.
    waiting: HashMap<Vec<u8>, Vec<Share>>,
    /// How much that is.
    count: usize,
}

impl State {
    /// Has it wait if one of its files is to come. Gives it back if none is.
    fn wait(&mut self, share: Share) -> Option<Share> {
        let paths = [&share.from, &share.to].map(|path| path.join(&b'/'));
        let Some(path) = paths.into_iter().find(|path| self.coming.contains(path)) else {
            return Some(share);
        };
        if self.count < MAX_WAITING {
            self.count += 1;
            self.waiting.entry(path).or_default().push(share);
        }
        None
    }

    /// A content has come, or will not. Gives what has waited for it.
    fn came(&mut self, path: &[u8]) -> Vec<Share> {
        self.coming.remove(path);
        let waited = self.waiting.remove(path).unwrap_or_default();
        self.count -= waited.len();
        waited
    }
}

impl Reflinks {
    /// Of a pass to `tree`, which leaves the host to others if it is `calm`.
    pub fn new(tree: &Tree, calm: bool) -> Self {
        let root = tree.root_fd();
        let block = rustix::fs::fstatfs(root).map_or(0, |system| system.f_bsize as u64);
        let can = extents::may_be_shared(root);
        Self {
            was_told: can,
            can: AtomicBool::new(can),
            block,
            allowed: AtomicU64::new(0),
            neighbour: Neighbour::new(calm),
            state: Mutex::default(),
        }
    }

    /// Whether files can share here.
    pub fn can(&self) -> bool {
        self.can.load(Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panics stops the whole pass: nobody goes on with what it left.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes have come, or were here: so many may be compared.
    pub fn stand(&self, bytes: u64) {
        self.allowed.fetch_add(bytes, Relaxed);
    }

    /// Whether so many bytes may be compared, which counts.
    fn may_compare(&self, bytes: u64) -> bool {
        let less = |allowed: u64| allowed.checked_sub(bytes);
        self.allowed.fetch_update(Relaxed, Relaxed, less).is_ok()
    }

    /// A content of so many bytes is to come to where `path` tells.
    pub fn expect(&self, size: u64, path: impl FnOnce() -> Vec<u8>) {
        if size >= SMALLEST_FILE && self.can() {
            self.state().coming.insert(path());
        }
    }
}

/// A file that may share.
struct Opened {
    fd: OwnedFd,
    size: u64,
}

impl Applier {
    /// Has files share what the source says that they have in common: now, or when both have come.
    pub(crate) fn share(&self, share: Share) -> Result<(), Fault> {
        let ready = self.reflinks.state().wait(share);
        ready.map_or(Ok(()), |share| self.share_now(&share))
    }

    /// A content of so many bytes has come to where `path` tells, or will not: for it something may have waited.
    pub(crate) fn share_waited(
        &self,
        size: u64,
        path: impl FnOnce() -> Vec<u8>,
    ) -> Result<(), Fault> {
        if size < SMALLEST_FILE || !self.reflinks.can() {
            return Ok(());
        }
        let waited = self.reflinks.state().came(&path());
        waited.into_iter().try_for_each(|share| self.share(share))
    }

    fn share_now(&self, share: &Share) -> Result<(), Fault> {
        let (Ok(one), Ok(other)) = (self.open_to_share(&share.from), self.open_to_share(&share.to))
        else {
            // Refused, removed or replaced since: it stays as it is.
            return Ok(());
        };
        let mut turn = self.reflinks.neighbour.turn();
        for part in &share.parts {
            let sizes = (one.size, other.size);
            let Some(part) = dedupe::aligned(*part, self.reflinks.block, sizes) else { continue };
            self.share_part(&one, &other, part, &mut turn)?;
        }
        Ok(())
    }

    /// Opens a file of the account's.
    fn open_to_share(&self, path: &[Vec<u8>]) -> IoResult<Opened> {
        let (name, above) = path.split_last().ok_or(Errno::NOENT)?;
        let parent = above.iter().fold(Node::root(), |node, name| node.child(name));
        let fd = confine::open_file(self.tree.open(&parent)?, name)?;
        let stat = Stat::of_fd(&fd)?;
        let ids = &self.options.ids;
        let may_be_anothers =
            stat.nlink > 1 && ids.is_shared_uid(stat.uid) && ids.others == Others::Refused;
        if stat.kind != Kind::File || !ids.has_uid(stat.uid) || may_be_anothers {
            return Err(Errno::PERM);
        }
        Ok(Opened { fd, size: stat.size })
    }

    /// Shares chunk by chunk what is the same, unless it is shared already.
    fn share_part(
        &self,
        one: &Opened,
        other: &Opened,
        mut part: Part,
        turn: &mut Turn<'_>,
    ) -> Result<(), Fault> {
        while part.length > 0 && self.reflinks.can() {
            self.halt.check()?;
            let chunk = Part { length: part.length.min(CHUNK), ..part };
            let done = self.share_chunk(one, other, chunk);
            let Part { from, to, length } = part;
            part = Part { from: from + done, to: to + done, length: length - done };
            turn.done();
        }
        Ok(())
    }

    /// Answers how many bytes are dealt with: at least one, and no more than the chunk has.
    fn share_chunk(&self, one: &Opened, other: &Opened, chunk: Part) -> u64 {
        let Part { from, to, length } = chunk;
        if extents::lie_together((&one.fd, from), (&other.fd, to), length)
            || !self.reflinks.may_compare(length)
        {
            return length;
        }
        // Both are read.
        self.disks.used(2 * length as usize);
        match dedupe::share(&one.fd, &other.fd, chunk) {
            // The same bytes no more.
            Ok(0) => length,
            Ok(shared) => {
                self.tally.bytes_shared.fetch_add(shared, Relaxed);
                shared
            }
            Err(errno) => {
                if matches!(errno, Errno::NOTSUP | Errno::NOTTY | Errno::NOSYS) {
                    self.reflinks.can.store(false, Relaxed);
                }
                // These two cannot: their flags, how they are kept, or the disk keeps them from it.
                length
            }
        }
    }
}
