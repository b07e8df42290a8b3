//! Large files that are mended where they are: the source is told the digests of their blocks, a range at a
//! time, and what it sends of them is written into the file itself. It must not know how the source compares.
//!
//! A file that is being mended is neither what it was nor what it shall be. Before the first byte its time is
//! made another than the source's, on the disk: whoever finds it so does not take it for equal.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use ferry_proto::Fault;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, Result as IoResult};

use crate::apply::Applier;
use crate::blocks::{Digest, Summing};
use crate::confine;
use crate::content::{self, Part};
use crate::creator::Creator;
use crate::halt::Halt;
use crate::incoming::{Awaited, Flight};
use crate::make::Fresh;
use crate::metadata::{Handle, Stat};
use crate::protocol::{Frame, Place, RANGE, ranges_of};
use crate::wire::Outbox;

/// So many ranges of a file are told ahead of what has come of it.
const AHEAD: u64 = 8;
/// Waiting threads look so often whether all was stopped.
const LOOK: Duration = Duration::from_millis(100);

/// Files that are to be mended.
#[derive(Debug, Default)]
pub struct Mending {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    places: VecDeque<Place>,
    is_closed: bool,
}

impl Mending {
    /// The source knows that it is only to be mended.
    pub fn add(&self, places: impl Iterator<Item = Place>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).places.extend(places);
        self.changed.notify_all();
    }

    /// There will be no more.
    pub fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
        self.changed.notify_all();
    }

    fn next(&self, halt: &Halt) -> Result<Option<Place>, Fault> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(place) = state.places.pop_front() {
                return Ok(Some(place));
            }
            if state.is_closed {
                return Ok(None);
            }
            halt.check()?;
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Applier {
    /// Tells the blocks of file after file, until there are no more.
    pub(crate) fn tell_blocks(&self, mut out: Outbox) -> Result<(), Fault> {
        let (mut buffer, mut creator) = (Vec::new(), Creator::default());
        while let Some(place) = self.mending.next(&self.halt)? {
            let awaited = self.incoming.take(place)?;
            let ranges = ranges_of(awaited.listed);
            let (fresh, found) = match self.open_to_mend(&awaited) {
                Ok((fresh, stat)) => {
                    // Now, and not when the source says what is the same: it may say so of holes, and again and again.
                    self.reflinks.stand(stat.blocks.saturating_mul(512));
                    (Some(fresh), Some(stat.size))
                }
                // It is no longer what it was: made anew, of all that the source has.
                Err(_) => (self.open_fresh(&awaited, &mut creator)?, None),
            };
            let flight = self.incoming.take_off(place, awaited, fresh, found);
            for range in 0..ranges {
                flight.wait_until_ended(range.saturating_sub(AHEAD), &self.halt)?;
                let digests = match (&flight.fresh, found) {
                    (Some(fresh), Some(found)) => {
                        self.digests(&fresh.fd, found, range, &mut buffer)?
                    }
                    _ => Vec::new(),
                };
                out.put(&Frame::Blocks(place, range, digests))?;
                out.flush()?;
            }
        }
        Ok(())
    }

    /// Opens the file that was found, and says on the disk that it is not what the source has.
    fn open_to_mend(&self, awaited: &Awaited) -> IoResult<(Fresh, Stat)> {
        let dir = self.tree.open(&awaited.dir.node)?;
        let fd = match confine::open_to_write(dir.as_fd(), &awaited.name) {
            Err(Errno::PERM) if self.unlock(dir.as_fd(), &awaited.name)? => {
                confine::open_to_write(dir.as_fd(), &awaited.name)?
            }
            opened => opened?,
        };
        let stat = Stat::of_fd(&fd)?;
        if Some(stat.identity()) != awaited.mended || stat.nlink != 1 {
            return Err(Errno::STALE);
        }
        Handle::Open(fd.as_fd()).set_mtime(awaited.wanted.mtime.disturbed())?;
        rustix::fs::fsync(&fd)?;
        Ok((Fresh { fd, name: awaited.name.clone() }, stat))
    }

    /// The digests of a range of what we have, of the length that was `found`: what it has grown by since is not its
    /// own. What cannot be read, the source is asked for.
    fn digests(
        &self,
        fd: &OwnedFd,
        found: u64,
        range: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<Vec<Digest>, Fault> {
        let Ok(stat) = Stat::of_fd(fd) else { return Ok(Vec::new()) };
        let size = stat.size.min(found);
        let offset = range.saturating_mul(RANGE).min(size);
        let end = offset.saturating_add(RANGE).min(size);
        let mut summing = Summing::default();
        let read = content::read(fd, &stat, offset..end, buffer, |part| {
            match part {
                Part::Data(bytes) => {
                    summing.data(bytes);
                    self.disks.used(bytes.len());
                }
                Part::Hole(length) => summing.hole(length),
            }
            if self.halt.is_stopped() { Err(Errno::CANCELED) } else { Ok(()) }
        });
        self.halt.check()?;
        Ok(read.map(|_| summing.finish()).unwrap_or_default())
    }
}

/// Makes a part of a file that is mended a hole.
pub fn clear(flight: &Flight, at: u64, length: u64) -> IoResult<()> {
    let Some(fresh) = &flight.fresh else { return Ok(()) };
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(&fresh.fd, flags, at, length) {
        Err(Errno::NOTSUP) => write_zeros(&fresh.fd, at, length),
        other => other,
    }
}

fn write_zeros(fd: &OwnedFd, mut at: u64, length: u64) -> IoResult<()> {
    let end = at + length;
    while at < end {
        let room = (end - at).min(crate::blocks::BLOCK as u64);
        match rustix::io::pwrite(fd, &crate::blocks::ZEROS[..room as usize], at) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => at += written as u64,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
