//! The source's side of a data stream: takes piece after piece of what is wanted, reads it and sends it, or
//! its digest. Several work at once, each on a stream of its own. It must not know how files are listed.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use ferry_proto::Fault;
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::blocks::Digest;
use crate::codec::Malformed;
use crate::confine::{self, Tree};
use crate::content::{self, Part};
use crate::digest::{self, Manifest, Undigested};
use crate::halt::{Halt, protocol_fault};
use crate::limits::Disks;
use crate::metadata::{Kind, Stat, Time};
use crate::neighbour::Neighbour;
use crate::owners::Owners;
use crate::pack::Pace;
use crate::progress::Counters;
use crate::protocol::{Ending, Frame, MAX_DATA, Place, Purpose, RANGE, Range};
use crate::sharing::Sharing;
use crate::window::{Batch, Large, LargeState, Listed, Piece, Window, Wish};
use crate::wire::{self, Outbox};

/// What all data streams of a pass share at the source.
#[derive(Debug)]
pub struct Store {
    /// Where contents are.
    pub tree: Arc<Tree>,
    /// What is wanted.
    pub window: Arc<Window>,
    /// Progress.
    pub counters: Counters,
    /// Stops us.
    pub halt: Halt,
    /// Whose files are given out.
    pub owners: Owners,
    /// What the streams are for.
    pub purpose: Purpose,
    /// When the file system was flushed, if it was.
    pub flushed: Option<Time>,
    /// What is known of the whole tree, when comparing.
    pub manifest: Arc<Manifest>,
    /// Who else is on the host.
    pub neighbour: Neighbour,
    /// How fast contents may be read.
    pub disks: Disks,
    /// Which files share what they hold.
    pub sharing: Sharing,
}

/// A file that was opened and is the one that was listed.
#[derive(Debug, Clone)]
pub struct Opened {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) stat: Stat,
}

/// One data stream's supplier.
#[derive(Debug)]
pub struct Supplier<'a> {
    pub(crate) store: &'a Store,
    pub(crate) out: Outbox,
    pub(crate) buffer: Vec<u8>,
    /// Files in the outbox, with the count of flushes at that time.
    unsent: VecDeque<(u64, usize)>,
    /// What the target says on the stream.
    incoming: mpsc::Receiver<Bytes>,
    pace: Pace,
    /// Since when it reads.
    since: Instant,
}

/// What reading one file met.
pub(crate) enum Failure {
    Io(Errno),
    Stop(Fault),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Io(errno)
    }
}

impl<'a> Supplier<'a> {
    /// A supplier that sends by `out`, on a stream of this pace.
    pub fn new(store: &'a Store, out: Outbox, incoming: mpsc::Receiver<Bytes>, pace: Pace) -> Self {
        let (buffer, unsent, since) = (Vec::new(), VecDeque::new(), Instant::now());
        Self { store, out, buffer, unsent, incoming, pace, since }
    }

    /// Sends until nothing more is wanted.
    ///
    /// # Errors
    /// The pass was stopped.
    pub fn run(mut self) -> Result<(), Fault> {
        let neighbour = self.store.neighbour.clone();
        let mut turn = neighbour.turn();
        loop {
            self.credit();
            self.listen()?;
            let next = match self.store.window.try_next() {
                Some(next) => next,
                None => {
                    self.out.flush()?;
                    self.credit();
                    match self.store.window.next()? {
                        Some(next) => next,
                        None => break,
                    }
                }
            };
            turn.waited();
            self.since = Instant::now();
            match next {
                Piece::Files(batch, wishes) => self.files(&batch, &wishes)?,
                Piece::Range(large, number, digests) => {
                    self.range(&large, number, digests.as_deref())?;
                }
            }
            turn.done();
        }
        turn.waited();
        self.since = Instant::now();
        self.end_sharing(&mut turn)?;
        self.out.put(&Frame::Done)?;
        self.out.flush()
    }

    /// Hears what the target has said meanwhile.
    fn listen(&mut self) -> Result<(), Fault> {
        while let Ok(chunk) = self.incoming.try_recv() {
            wire::for_each_frame(chunk, |frame| match frame {
                Frame::Waiting(waits) => {
                    self.pace.receiver_waits(waits);
                    Ok(())
                }
                _ => Err(protocol_fault(&Malformed("a frame out of turn"))),
            })?;
        }
        Ok(())
    }

    /// Makes room in the window for what has left.
    fn credit(&mut self) {
        let left = if self.out.is_empty() { u64::MAX } else { self.out.flushes() };
        let mut files = 0;
        while let Some((_, count)) = self.unsent.pop_front_if(|(at, _)| *at < left) {
            files += count;
        }
        if files > 0 {
            self.store.window.sent(files);
        }
    }

    /// So many files were put into the outbox.
    fn put(&mut self, files: usize) {
        self.unsent.push_back((self.out.flushes(), files));
    }

    /// So many bytes were read until now: waits if that is faster than it may be.
    pub(crate) fn has_read(&mut self, bytes: usize) {
        self.store.counters.reading(self.since.elapsed());
        self.store.disks.used(bytes);
        self.since = Instant::now();
    }

    /// Puts a frame into the outbox, which may have to wait for room.
    pub(crate) fn give(&mut self, frame: &Frame<'_>) -> Result<(), Fault> {
        self.store.counters.reading(self.since.elapsed());
        let given = self.out.put(frame).map(drop);
        self.since = Instant::now();
        given
    }

    fn files(&mut self, batch: &Batch, wishes: &[Wish]) -> Result<(), Fault> {
        for Wish { place, wanted, .. } in wishes.iter().copied() {
            self.store.halt.check()?;
            let Some(file) = batch.file(place) else { continue };
            let opened = self.open(batch, file);
            match self.store.purpose {
                Purpose::Pass => match opened {
                    Ok(opened) => {
                        self.send(place, file, &opened)?;
                        self.tell_shared(batch, file, &opened)?;
                    }
                    Err(ending) => self.give(&Frame::Skip(place, ending))?,
                },
                Purpose::Verify => {
                    let (frame, digest) = self.digest(place, file, opened)?;
                    self.store.manifest.content(batch, place, digest);
                    if wanted {
                        self.give(&frame)?;
                    }
                }
            }
            self.store.counters.file_done();
        }
        self.put(wishes.len());
        Ok(())
    }

    /// Opens a file, if it is still the one that was listed, and still the account's.
    fn open(&self, batch: &Batch, file: &Listed) -> Result<Opened, Ending> {
        let opened = self.store.tree.open(&batch.node).and_then(|dir| {
            let fd = confine::open_file(&dir, &file.name)?;
            let stat = Stat::of_fd(&fd)?;
            Ok((fd, stat))
        });
        let (fd, stat) = opened.map_err(ending_of)?;
        let is_listed = stat.kind == Kind::File
            && stat.identity() == file.identity
            && self.store.owners.withhold(&stat, || batch.node.path_of(&file.name)).is_none();
        if !is_listed {
            return Err(Ending::Changed);
        }
        let stat = content::settle(&fd, &stat, self.store.flushed).map_err(ending_of)?;
        Ok(Opened { fd: Arc::new(fd), stat })
    }

    fn send(&mut self, place: Place, file: &Listed, opened: &Opened) -> Result<(), Fault> {
        let size = opened.stat.size;
        if size <= MAX_DATA as u64 && !content::is_sparse(&opened.stat) {
            return self.send_whole(place, file, opened);
        }
        self.send_range(Range { place, size, offset: 0, length: size }, file, opened)
    }

    /// Sends a small file in one frame.
    fn send_whole(&mut self, place: Place, file: &Listed, opened: &Opened) -> Result<(), Fault> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let frame = match content::read_whole(&opened.fd, &opened.stat, &mut buffer) {
            Ok(bytes) => {
                self.store.counters.bytes_done(bytes.len() as u64);
                let ending = held_still(file, opened, bytes.len() as u64 == opened.stat.size);
                self.has_read(bytes.len());
                Frame::Whole(place, ending, bytes)
            }
            Err(errno) => Frame::Skip(place, ending_of(errno)),
        };
        let given = self.give(&frame);
        self.buffer = buffer;
        given
    }

    /// Sends a range of a file.
    fn send_range(&mut self, range: Range, file: &Listed, opened: &Opened) -> Result<(), Fault> {
        self.out.put(&Frame::Part(range))?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let end = range.offset + range.length;
        let read =
            content::read(&opened.fd, &opened.stat, range.offset..end, &mut buffer, |part| {
                self.store.halt.check().map_err(Failure::Stop)?;
                let frame = match part {
                    Part::Data(bytes) => {
                        self.store.counters.bytes_done(bytes.len() as u64);
                        self.has_read(bytes.len());
                        Frame::Data(bytes)
                    }
                    Part::Hole(length) => Frame::Hole(length),
                };
                self.give(&frame).map_err(Failure::Stop)
            });
        self.buffer = buffer;
        let ending = match read {
            Ok(at) => held_still(file, opened, at == end),
            Err(Failure::Io(errno)) => ending_of(errno),
            Err(Failure::Stop(fault)) => return Err(fault),
        };
        self.out.put(&Frame::PartEnd(ending)).map(drop)
    }

    /// Sends one of the ranges of a large file; only what differs of it, if the target has told the digests
    /// of its blocks.
    fn range(
        &mut self,
        large: &Large,
        number: u64,
        digests: Option<&[Digest]>,
    ) -> Result<(), Fault> {
        let Some(file) = large.batch.file(large.place) else { return Ok(()) };
        let range = |size: u64| {
            let offset = (number * RANGE).min(size);
            // What it has grown by since it was listed is in its last range.
            let end = if number + 1 == large.ranges { size } else { (offset + RANGE).min(size) };
            Range { place: large.place, size, offset, length: end - offset }
        };
        match (self.opened(large, file), digests) {
            (Ok(opened), None) => self.send_range(range(opened.stat.size), file, &opened)?,
            (Ok(opened), Some(digests)) => {
                self.mend_range(range(opened.stat.size), file, &opened, digests)?;
            }
            // The target waits for the end of each.
            (Err((ending, _)), Some(_)) => {
                self.out.put(&Frame::Part(range(file.size)))?;
                self.out.put(&Frame::PartEnd(ending))?;
            }
            (Err((ending, true)), None) => drop(self.out.put(&Frame::Skip(large.place, ending))?),
            (Err((_, false)), None) => {}
        }
        let mut state = lock(large);
        state.left = state.left.saturating_sub(1);
        if state.left > 0 {
            return Ok(());
        }
        let opened = state.opened.take();
        drop(state);
        if let Some(opened) = opened {
            self.tell_shared(&large.batch, file, &opened)?;
        }
        self.store.counters.file_done();
        self.put(1);
        Ok(())
    }

    /// The open large file; or why it cannot be opened, and whether nobody has met that before.
    fn opened(&self, large: &Large, file: &Listed) -> Result<Opened, (Ending, bool)> {
        let mut state = lock(large);
        if let Some(ending) = state.failed {
            return Err((ending, false));
        }
        if let Some(opened) = &state.opened {
            return Ok(opened.clone());
        }
        match self.open(&large.batch, file) {
            Ok(opened) => Ok(state.opened.insert(opened).clone()),
            Err(ending) => {
                state.failed = Some(ending);
                Err((ending, true))
            }
        }
    }

    /// Digests a content. Answers what the target is told, and the digest for the manifest.
    fn digest(
        &mut self,
        place: Place,
        file: &Listed,
        opened: Result<Opened, Ending>,
    ) -> Result<(Frame<'static>, [u8; 32]), Fault> {
        let skip = |ending| (Frame::Skip(place, ending), [0; 32]);
        let opened = match opened {
            Ok(opened) => opened,
            Err(ending) => return Ok(skip(ending)),
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let store = self.store;
        let has_read = |bytes: usize| {
            store.counters.bytes_done(bytes as u64);
            self.has_read(bytes);
        };
        let digested =
            digest::of_file(&opened.fd, &opened.stat, &mut buffer, &store.halt, has_read);
        self.buffer = buffer;
        match digested {
            Ok((digest, length)) => {
                let ending = held_still(file, &opened, length == opened.stat.size);
                Ok((Frame::Hash(place, ending, length, digest), digest))
            }
            Err(Undigested::Failed(errno)) => Ok(skip(ending_of(errno))),
            Err(Undigested::Stopped) => Err(self.store.halt.ended()),
        }
    }
}

fn lock(large: &Large) -> MutexGuard<'_, LargeState> {
    large.state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the content belongs to the metadata that were listed; `complete`: as long as they say.
pub(crate) fn held_still(file: &Listed, opened: &Opened, complete: bool) -> Ending {
    let before = &opened.stat;
    let still = complete
        && before.ctime == file.ctime
        && before.size == file.size
        && Stat::of_fd(&opened.fd).is_ok_and(|after| after.ctime == before.ctime);
    if still { Ending::Settled } else { Ending::Changed }
}

pub(crate) fn ending_of(errno: Errno) -> Ending {
    match errno {
        Errno::NOENT => Ending::Vanished,
        // EAGAIN: somebody holds a lease on it, which our opening breaks.
        Errno::STALE | Errno::LOOP | Errno::NOTDIR | Errno::XDEV | Errno::NXIO | Errno::AGAIN => {
            Ending::Changed
        }
        other => Ending::Unreadable(other.raw_os_error().unsigned_abs()),
    }
}
