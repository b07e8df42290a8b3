//! Files at the target that are to share what the source's files share. The source says where to look, as soon
//! as it has sent the later of two; when both stand here, the file system is asked to compare them, and lets them
//! share what is the same. What the source says proves nothing, so that nothing but time is lost if it is wrong;
//! and that is bounded by what has come or was here. It must not know how the source found it.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
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
use crate::options::{Others, TargetOptions};
use crate::shares::{MAX_DEPTH, Part, SMALLEST, SMALLEST_FILE, Share};

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
    /// So many bytes may yet be looked at.
    allowed: AtomicU64,
    neighbour: Neighbour,
    /// Makes keys of paths. If two ever have the same one, something waits for the wrong content.
    hasher: RandomState,
    state: Mutex<State>,
}

/// What stands for the path of a file, which may be long.
type Key = u64;

#[derive(Debug, Default)]
struct State {
    /// Where contents are to come that may share.
    coming: HashSet<Key>,
    /// What waits for them.
    waiting: HashMap<Key, Vec<Share>>,
    /// How much that is.
    count: usize,
}

impl State {
    /// Has it wait if one of its files is to come. Gives it back if none is.
    fn wait(&mut self, share: Share, files: [Key; 2]) -> Option<Share> {
        let Some(key) = files.into_iter().find(|key| self.coming.contains(key)) else {
            return Some(share);
        };
        if self.count < MAX_WAITING {
            self.count += 1;
            self.waiting.entry(key).or_default().push(share);
        }
        None
    }

    /// A content has come, or will not. Gives what has waited for it.
    fn came(&mut self, key: Key) -> Vec<Share> {
        self.coming.remove(&key);
        let waited = self.waiting.remove(&key).unwrap_or_default();
        self.count -= waited.len();
        waited
    }
}

impl Reflinks {
    /// Of a pass to `tree`.
    pub fn new(tree: &Tree, options: &TargetOptions) -> Self {
        let root = tree.root_fd();
        let block = rustix::fs::fstatfs(root).map_or(0, |system| system.f_bsize as u64);
        let can = options.share && extents::may_be_shared(root);
        Self {
            was_told: can,
            can: AtomicBool::new(can),
            block,
            allowed: AtomicU64::new(0),
            neighbour: Neighbour::new(options.calm),
            hasher: RandomState::new(),
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

    /// So many bytes have come, or take space here: so many may be looked at.
    pub fn stand(&self, bytes: u64) {
        let more = |allowed: u64| Some(allowed.saturating_add(bytes));
        let _ = self.allowed.fetch_update(Relaxed, Relaxed, more);
    }

    /// Whether so many bytes may be looked at, which counts. Few count as the fewest that the source tells: looking
    /// at them takes as long.
    fn may_look_at(&self, bytes: u64) -> bool {
        let less = |allowed: u64| allowed.checked_sub(bytes.max(SMALLEST));
        self.allowed.fetch_update(Relaxed, Relaxed, less).is_ok()
    }

    /// The key of a file with a content of so many bytes; none if the source does not tell of such.
    fn key(&self, node: &Node, name: &[u8], size: u64) -> Option<Key> {
        let is_told = size >= SMALLEST_FILE && (node.depth() as usize) < MAX_DEPTH && self.can();
        is_told.then(|| self.hasher.hash_one(node.path_of(name)))
    }

    /// A content of so many bytes is to come to this place.
    pub fn expect(&self, node: &Node, name: &[u8], size: u64) {
        if let Some(key) = self.key(node, name, size) {
            self.state().coming.insert(key);
        }
    }

    /// A content of so many bytes has come to this place, or will not. Gives what has waited for it.
    fn came(&self, node: &Node, name: &[u8], size: u64) -> Vec<Share> {
        let key = self.key(node, name, size);
        key.map(|key| self.state().came(key)).unwrap_or_default()
    }

    /// See [`State::wait`].
    fn wait(&self, share: Share) -> Option<Share> {
        let files = [&share.from, &share.to].map(|path| self.hasher.hash_one(path.join(&b'/')));
        self.state().wait(share, files)
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
        let ready = self.reflinks.wait(share);
        ready.map_or(Ok(()), |share| self.share_now(&share))
    }

    /// A content of so many bytes has come to this place, or will not: for it something may have waited.
    pub(crate) fn share_waited(&self, node: &Node, name: &[u8], size: u64) -> Result<(), Fault> {
        let waited = self.reflinks.came(node, name, size);
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

    /// Shares chunk by chunk what is the same, unless it is shared already; as much of it as may be looked at. What
    /// turns out to be shared, or nothing but a hole, has been looked at as well.
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
            if !self.reflinks.may_look_at(chunk.length) {
                break;
            }
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
        if extents::lie_together((&one.fd, from), (&other.fd, to), length) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn reflinks() -> Reflinks {
        Reflinks {
            was_told: true,
            can: AtomicBool::new(true),
            block: 4096,
            allowed: AtomicU64::new(0),
            neighbour: Neighbour::new(false),
            hasher: RandomState::new(),
            state: Mutex::default(),
        }
    }

    fn share(from: &[&[u8]], to: &[&[u8]]) -> Share {
        let path = |names: &[&[u8]]| names.iter().map(|name| name.to_vec()).collect();
        let part = Part { from: 0, to: 0, length: SMALLEST };
        Share { from: path(from), to: path(to), parts: vec![part] }
    }

    #[test]
    fn what_is_told_too_soon_waits_for_its_files() {
        let reflinks = reflinks();
        let node = Node::root().child(b"d");
        reflinks.expect(&node, b"a", SMALLEST_FILE);
        let early = share(&[b"b"], &[b"d", b"a"]);
        assert_eq!(reflinks.wait(early.clone()), None);
        assert_eq!(reflinks.wait(share(&[b"b"], &[b"c"])), Some(share(&[b"b"], &[b"c"])));
        assert_eq!(reflinks.came(&node, b"other", SMALLEST_FILE), []);
        assert_eq!(reflinks.came(&node, b"a", SMALLEST_FILE), std::slice::from_ref(&early));
        assert_eq!(reflinks.wait(early.clone()), Some(early));
        let state = reflinks.state();
        assert!(state.coming.is_empty() && state.waiting.is_empty() && state.count == 0);
    }

    #[test]
    fn nothing_is_kept_of_contents_that_the_source_does_not_tell_of() {
        let reflinks = reflinks();
        let deepest = (1..MAX_DEPTH).fold(Node::root(), |node, _| node.child(&[b'x'; 255]));
        let deep = deepest.child(b"d");
        reflinks.expect(&deep, b"f", u64::MAX);
        reflinks.expect(&deepest, b"f", SMALLEST_FILE - 1);
        assert!(reflinks.state().coming.is_empty());
        reflinks.expect(&deepest, b"f", SMALLEST_FILE);
        assert_eq!(reflinks.state().coming.len(), 1);
    }

    #[test]
    fn nothing_is_looked_at_for_nothing() {
        let reflinks = reflinks();
        reflinks.stand(3 * SMALLEST);
        assert!(reflinks.may_look_at(1) && reflinks.may_look_at(0));
        assert!(!reflinks.may_look_at(SMALLEST + 1));
        assert!(reflinks.may_look_at(SMALLEST) && !reflinks.may_look_at(0));
        reflinks.stand(u64::MAX);
        reflinks.stand(u64::MAX);
        assert!(reflinks.may_look_at(u64::MAX));
    }
}
