//! Contents on their way in, from any of the data streams: each into a new file, and into place when all of
//! it has come. It must not know how it was decided that they are wanted.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ferry_proto::Fault;
use rustix::io::Errno;

use crate::apply::{Applier, DirState};
use crate::approvals;
use crate::codec::Malformed;
use crate::creator::Creator;
use crate::digest::{self, Undigested};
use crate::direct::{Direct, Gathered, write_all};
use crate::guard::{self, Wanted};
use crate::halt::{Halt, protocol_fault};
use crate::locks;
use crate::make::{self, Fresh};
use crate::mending;
use crate::metadata::{Handle, Identity, Stat};
use crate::mirror::Here;
use crate::projects;
use crate::protocol::{Ending, Frame, Place, Range, ranges_of};
use crate::report::{NoteKind, show};
use crate::session::MAX_STREAMS;
use crate::tally::one;
use crate::trouble::judge;

/// Contents that have come in part. A source begins another one only when no range of the ones before is
/// left to begin.
const MAX_FLIGHTS: usize = 4 * MAX_STREAMS;

/// Waiting threads look so often whether all was stopped.
const LOOK: Duration = Duration::from_millis(100);

/// A file whose content is to come.
#[derive(Debug)]
pub struct Awaited {
    /// Its directory.
    pub dir: Arc<DirState>,
    /// Its name there.
    pub name: Vec<u8>,
    /// Its metadata.
    pub wanted: Wanted,
    /// The group of its other names.
    pub group: Option<u64>,
    /// How long the source said that it is.
    pub listed: u64,
    /// Nothing has its name here.
    pub is_new: bool,
    /// The file here that is only to be mended.
    pub mended: Option<Identity>,
}

impl Awaited {
    fn path(&self) -> Vec<u8> {
        self.dir.node.path_of(&self.name)
    }
}

/// A file of whose content at least a range has begun to come, or that is being mended.
#[derive(Debug)]
pub struct Flight {
    awaited: Awaited,
    /// None if it was refused: what comes of it is passed over.
    pub fresh: Option<Fresh>,
    /// The way past the cache.
    direct: Option<Direct>,
    /// It is the file that was there, which was so long.
    found: Option<u64>,
    /// How long the source says that it is now.
    size: OnceLock<u64>,
    state: Mutex<FlightState>,
    /// Rung when a range has ended.
    changed: Condvar,
}

#[derive(Debug)]
struct FlightState {
    /// Ranges that have begun: no more than it has, so that nobody writes when as many have ended.
    begun: u64,
    /// Ranges that have ended.
    ended: u64,
    /// How long the file is without a hole at its end.
    written: u64,
    /// The worst of its ranges'.
    ending: Ending,
    /// Writing failed, which is written down.
    is_broken: bool,
}

impl Flight {
    fn new(awaited: Awaited, fresh: Option<Fresh>, found: Option<u64>) -> Arc<Self> {
        let (is_broken, ending) = (fresh.is_none(), Ending::Settled);
        let state = Mutex::new(FlightState { begun: 0, ended: 0, written: 0, ending, is_broken });
        let (size, changed) = (OnceLock::new(), Condvar::new());
        let fresh_one = fresh.as_ref().filter(|_| found.is_none());
        let direct = fresh_one.and_then(|fresh| Direct::open(fresh.fd.as_fd(), awaited.listed));
        Arc::new(Self { awaited, fresh, direct, found, size, state, changed })
    }

    /// Another of its ranges begins.
    fn begin_range(&self) -> Result<(), Fault> {
        let mut state = lock(&self.state);
        state.begun += 1;
        if state.begun > ranges_of(self.awaited.listed) {
            return Err(protocol_fault(&Malformed("more ranges of a content than it has")));
        }
        Ok(())
    }

    /// Waits until so many of its ranges have ended.
    pub fn wait_until_ended(&self, ranges: u64, halt: &Halt) -> Result<(), Fault> {
        let mut state = lock(&self.state);
        while state.ended < ranges {
            halt.check()?;
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

/// A data stream's content that is coming.
#[derive(Debug, Default)]
pub struct Arriving {
    current: Option<Current>,
    gathered: Gathered,
    creator: Creator,
}

#[derive(Debug)]
struct Current {
    place: Place,
    flight: Arc<Flight>,
    at: u64,
    end: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Incoming {
    awaited: Mutex<HashMap<Place, Awaited>>,
    flights: Mutex<HashMap<Place, Arc<Flight>>>,
}

impl Incoming {
    /// A content was wanted.
    pub fn expect(&self, place: Place, awaited: Awaited) -> Result<(), Fault> {
        match lock(&self.awaited).insert(place, awaited) {
            None => Ok(()),
            Some(_) => Err(protocol_fault(&Malformed("two batches of one number"))),
        }
    }

    /// What is known of a content that comes now.
    pub fn take(&self, place: Place) -> Result<Awaited, Fault> {
        lock(&self.awaited).remove(&place).ok_or_else(out_of_turn)
    }

    /// The ranges of a content will come, of a file that was `found` to be so long if it is only mended.
    pub fn take_off(
        &self,
        place: Place,
        awaited: Awaited,
        fresh: Option<Fresh>,
        found: Option<u64>,
    ) -> Arc<Flight> {
        let flight = Flight::new(awaited, fresh, found);
        lock(&self.flights).insert(place, Arc::clone(&flight));
        flight
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one step, so a panic elsewhere cannot have left it half done.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

fn out_of_turn() -> Fault {
    protocol_fault(&Malformed("a content out of turn"))
}

impl Applier {
    /// A frame of a data stream. Answers whether a content is dealt with.
    pub(crate) fn receive(
        &self,
        Arriving { current, gathered, creator }: &mut Arriving,
        frame: Frame<'_>,
    ) -> Result<bool, Fault> {
        match (current.as_mut(), frame) {
            (None, Frame::Whole(place, ending, bytes)) => {
                let awaited = self.incoming.take(place)?;
                self.whole(awaited, ending, bytes, creator).map(|()| true)
            }
            (None, Frame::Part(range)) => {
                *current = Some(self.begin(range, creator)?);
                Ok(false)
            }
            (Some(current), Frame::Data(bytes)) => {
                self.data(current, gathered, bytes).map(|()| false)
            }
            (Some(current), Frame::Hole(length)) => {
                self.write_gathered(current, gathered)?;
                self.hole(current, length).map(|()| false)
            }
            (Some(current), Frame::Same(length)) => self.same(current, length).map(|()| false),
            (Some(_), Frame::PartEnd(ending)) => match current.take() {
                Some(current) => {
                    self.write_gathered(&current, gathered)?;
                    self.end(current, ending)
                }
                None => Err(out_of_turn()),
            },
            (None, Frame::Skip(place, ending)) => {
                let awaited = self.incoming.take(place)?;
                self.came_not(&awaited, ending);
                self.came(&awaited, None).map(|()| true)
            }
            (None, Frame::Share(share)) if self.reflinks.was_told => {
                self.share(share).map(|()| false)
            }
            _ => Err(out_of_turn()),
        }
    }

    /// A small content, all at once.
    fn whole(
        &self,
        awaited: Awaited,
        ending: Ending,
        bytes: &[u8],
        creator: &mut Creator,
    ) -> Result<(), Fault> {
        if matches!(ending, Ending::Vanished | Ending::Unreadable(_)) {
            return Err(out_of_turn());
        }
        let Some(fresh) = self.open_fresh(&awaited, creator)? else {
            return self.came(&awaited, None);
        };
        self.received(bytes);
        self.cached(bytes);
        if let Err(errno) = write_all(fresh.fd.as_fd(), bytes, 0) {
            self.discard(&awaited.dir, &fresh);
            self.trouble(&awaited.path(), "written", errno)?;
            return self.came(&awaited, None);
        }
        self.complete(&awaited, &fresh, false, ending)
    }

    /// A range begins; the first of a content makes the file.
    fn begin(&self, range: Range, creator: &mut Creator) -> Result<Current, Fault> {
        let Range { place, size, offset, length } = range;
        let mut flights = lock(&self.incoming.flights);
        let flight = match flights.get(&place) {
            Some(flight) => Arc::clone(flight),
            None => {
                let awaited = self.incoming.take(place)?;
                let fresh = self.open_fresh(&awaited, creator)?;
                let flight = Flight::new(awaited, fresh, None);
                flights.insert(place, Arc::clone(&flight));
                flight
            }
        };
        if flights.len() > MAX_FLIGHTS {
            return Err(protocol_fault(&Malformed("more contents at once than it may")));
        }
        drop(flights);
        flight.begin_range()?;
        if *flight.size.get_or_init(|| size) != size {
            return Err(protocol_fault(&Malformed("a content of two sizes")));
        }
        Ok(Current { place, flight, at: offset, end: offset + length })
    }

    /// A new empty file. It may be whose it will be in the end; but root's for as long as it is not known to be what was
    /// approved, and where it will have rights of its own, which whoever opened it before would have as well.
    pub(crate) fn open_fresh(
        &self,
        awaited: &Awaited,
        creator: &mut Creator,
    ) -> Result<Option<Fresh>, Fault> {
        let Wanted { uid, gid, mode, approved, .. } = &awaited.wanted;
        if self.creates_as_owner && approved.is_none() && mode & 0o6000 == 0 {
            creator.be(*uid, *gid);
        } else {
            creator.be_root();
        }
        let made = self.tree.open(&awaited.dir.node).and_then(|dir| {
            if awaited.is_new {
                match make::file_named(dir.as_fd(), &awaited.name, &awaited.wanted) {
                    // Somebody has made one since.
                    Err(Errno::EXIST) => {}
                    made => return made,
                }
            }
            make::file(dir.as_fd(), &awaited.wanted)
        });
        match made {
            Ok(fresh) => Ok(Some(fresh)),
            Err(errno) => {
                self.trouble(&awaited.path(), "created", errno)?;
                Ok(None)
            }
        }
    }

    /// Bytes go to the page cache.
    fn cached(&self, bytes: &[u8]) {
        if let Some(flushing) = &self.flushing {
            flushing.written(bytes.len());
        }
    }

    /// Bytes have come that are written now, when they may be.
    fn received(&self, bytes: &[u8]) {
        self.disks.used(bytes.len());
        self.counters.bytes_done(bytes.len() as u64);
        self.tally.bytes_sent.fetch_add(bytes.len() as u64, Relaxed);
        self.reflinks.stand(bytes.len() as u64);
    }

    fn data(
        &self,
        current: &mut Current,
        gathered: &mut Gathered,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        let end = advance(current, bytes.len() as u64)?;
        self.received(bytes);
        let at = std::mem::replace(&mut current.at, end);
        let flight = &current.flight;
        let Some(fresh) = &flight.fresh else { return Ok(()) };
        let done = match &flight.direct {
            Some(direct) => gathered.add(fresh.fd.as_fd(), direct, at, bytes),
            None => {
                self.cached(bytes);
                write_all(fresh.fd.as_fd(), bytes, at)
            }
        };
        self.written(flight, end, done)
    }

    /// Writes what has come of a content and was not written yet.
    fn write_gathered(&self, current: &Current, gathered: &mut Gathered) -> Result<(), Fault> {
        match (&current.flight.fresh, &current.flight.direct) {
            (Some(fresh), Some(direct)) => {
                let done = gathered.write(fresh.fd.as_fd(), direct);
                self.written(&current.flight, current.at, done)
            }
            _ => Ok(()),
        }
    }

    /// So many bytes are those that the file had when it was found: it had no others.
    fn same(&self, current: &mut Current, length: u64) -> Result<(), Fault> {
        let end = advance(current, length)?;
        if current.flight.found.is_none_or(|found| end > found) {
            return Err(out_of_turn());
        }
        current.at = end;
        self.counters.bytes_done(length);
        self.tally.bytes_kept.fetch_add(length, Relaxed);
        self.written(&current.flight, end, Ok(()))
    }

    fn hole(&self, current: &mut Current, length: u64) -> Result<(), Fault> {
        let end = advance(current, length)?;
        let at = std::mem::replace(&mut current.at, end);
        let flight = &current.flight;
        if flight.found.is_none() {
            // A new file has nothing there yet.
            return Ok(());
        }
        self.written(flight, end, mending::clear(flight, at, length))
    }

    /// Something was written up to `end`, or was not.
    fn written(&self, flight: &Flight, end: u64, done: Result<(), Errno>) -> Result<(), Fault> {
        let mut state = lock(&flight.state);
        let Err(errno) = done else {
            state.written = state.written.max(end);
            return Ok(());
        };
        if std::mem::replace(&mut state.is_broken, true) {
            return Ok(());
        }
        drop(state);
        self.trouble(&flight.awaited.path(), "written", errno)
    }

    fn discard(&self, dir: &DirState, fresh: &Fresh) {
        if let Ok(fd) = self.tree.open(&dir.node) {
            make::discard(fd.as_fd(), &fresh.name);
        }
    }

    /// A range ended; the last one to do so ends the content.
    fn end(&self, current: Current, ending: Ending) -> Result<bool, Fault> {
        let Current { place, flight, at, end } = current;
        if ending == Ending::Settled && at != end {
            return Err(protocol_fault(&Malformed("a content of another length than announced")));
        }
        let is_last = {
            let mut state = lock(&flight.state);
            state.ending = worse(state.ending, ending);
            state.ended += 1;
            state.ended == ranges_of(flight.awaited.listed)
        };
        flight.changed.notify_all();
        if !is_last {
            return Ok(false);
        }
        lock(&self.incoming.flights).remove(&place);
        self.land(&flight).map(|()| true)
    }

    /// All ranges of a content have ended.
    fn land(&self, flight: &Flight) -> Result<(), Fault> {
        let Flight { awaited, fresh, direct, found, size, .. } = flight;
        let is_in_place = found.is_some();
        let (written, ending, is_broken) = {
            let state = lock(&flight.state);
            (state.written, state.ending, state.is_broken)
        };
        let Some(fresh) = fresh else { return self.came(awaited, None) };
        let is_gone = matches!(ending, Ending::Vanished | Ending::Unreadable(_));
        if is_broken || is_gone {
            // One that was mended stays as it is, and says so by its time: the next pass mends it.
            if !is_in_place {
                self.discard(&awaited.dir, fresh);
            }
            if is_gone && !is_broken {
                self.came_not(awaited, ending);
            }
            return self.came(awaited, None);
        }
        let size = size.get().copied().unwrap_or_default();
        if (is_in_place || direct.is_some() || size > written)
            && let Err(errno) = rustix::fs::ftruncate(&fresh.fd, size)
        {
            if !is_in_place {
                self.discard(&awaited.dir, fresh);
            }
            self.trouble(&awaited.path(), "written", errno)?;
            return self.came(awaited, None);
        }
        self.complete(awaited, fresh, is_in_place, ending)
    }

    /// The content is there: now the metadata, and its place.
    fn complete(
        &self,
        awaited: &Awaited,
        fresh: &Fresh,
        is_in_place: bool,
        ending: Ending,
    ) -> Result<(), Fault> {
        if let Some(reason) = self.is_another(awaited, fresh)? {
            self.discard(&awaited.dir, fresh);
            self.tally.refuse(&awaited.path(), reason);
            return self.came(awaited, None);
        }
        let Awaited { dir, name, wanted, group, .. } = awaited;
        let mut mtime = wanted.mtime;
        if ending == Ending::Changed {
            // The next pass must not take it for equal, whatever time the source's file has.
            mtime = mtime.disturbed();
            let text = "it changed while it was read";
            self.tally.disturbed(NoteKind::Changed, &awaited.path(), text);
        }
        let dressed = self.tree.open(&dir.node).and_then(|fd| {
            if is_in_place {
                let wanted = Wanted { mtime, ..wanted.clone() };
                make::dress(Handle::Open(fresh.fd.as_fd()), &wanted)?;
            } else {
                make::clothed(fresh.fd.as_fd(), wanted, mtime, dir.bequeaths(fd.as_fd()))?;
            }
            let identity = group.map(|_| Stat::of_fd(&fresh.fd).map(|stat| stat.identity()));
            Ok((fd, identity.transpose()?))
        });
        let identity = match dressed {
            Ok((fd, identity)) => {
                let here = Here { node: &dir.node, fd: &fd };
                let stands = fresh.name == *name || self.put(here, &fresh.name, name)?;
                if stands {
                    one(&self.tally.files_sent);
                    self.lock_up(awaited, fresh)?;
                }
                identity.filter(|_| stands)
            }
            Err(errno) => {
                if !is_in_place {
                    self.discard(dir, fresh);
                }
                self.trouble(&awaited.path(), "given its metadata", errno)?;
                None
            }
        };
        self.came(awaited, identity)
    }

    /// Why a content is not the one that was approved, if one was. So far it is ours alone, and plain.
    fn is_another(&self, awaited: &Awaited, fresh: &Fresh) -> Result<Option<String>, Fault> {
        let Some(approved) = awaited.wanted.digest() else { return Ok(None) };
        let digest = Stat::of_fd(&fresh.fd).map_err(Undigested::from).and_then(|stat| {
            // What has another length is not read: it may be as long as the disk has room.
            let has_length = stat.size == awaited.listed;
            let digest = || digest::in_hex(&fresh.fd, &self.halt, |bytes| self.disks.used(bytes));
            has_length.then(digest).transpose()
        });
        match digest {
            Ok(Some(digest)) if digest == approved => Ok(None),
            Ok(_) => Ok(Some(approvals::another_content())),
            Err(Undigested::Stopped) => Err(self.halt.ended()),
            Err(Undigested::Failed(errno)) => {
                judge(&show(&awaited.path()), "read again", errno).map(Some)
            }
        }
    }

    /// Gives what stands in its place its project, and the flags that keep it there. Neither may be had
    /// before: a directory of another project does not let it in.
    fn lock_up(&self, awaited: &Awaited, fresh: &Fresh) -> Result<(), Fault> {
        let Wanted { project, locks, .. } = awaited.wanted;
        let inode = fresh.fd.as_fd();
        let counted = project.map_or(Ok(false), |project| projects::put(inode, project));
        let locked = counted.and_then(|_| match locks.is_none() {
            true => Ok(()),
            false => locks::put(inode, locks),
        });
        match locked {
            Ok(()) => Ok(()),
            Err(errno) => self.trouble(&awaited.path(), "given its flags", errno),
        }
    }

    /// Writes down why a content did not come.
    fn came_not(&self, awaited: &Awaited, ending: Ending) {
        let path = awaited.path();
        match ending {
            Ending::Unreadable(errno) => {
                let why = guard::errno_text(errno);
                self.tally.refuse(&path, format!("it cannot be read at the source: {why}"));
            }
            Ending::Vanished => {
                let text = "it was gone when it was to be read";
                self.tally.disturbed(NoteKind::Vanished, &path, text);
            }
            Ending::Changed | Ending::Settled => {
                self.tally.disturbed(NoteKind::Changed, &path, "another file took its place");
            }
        }
    }

    /// A content came, or will not.
    fn came(&self, awaited: &Awaited, identity: Option<Identity>) -> Result<(), Fault> {
        self.counters.file_done();
        let dir = &awaited.dir;
        let stands = identity.map(|identity| (identity, awaited.wanted.locks));
        self.first_done(awaited.group, &dir.node, &awaited.name, stands)?;
        self.one_done(dir)?;
        self.share_waited(&dir.node, &awaited.name, awaited.listed)
    }
}

fn worse(one: Ending, other: Ending) -> Ending {
    let badness = |ending| match ending {
        Ending::Settled => 0,
        Ending::Changed => 1,
        Ending::Vanished => 2,
        Ending::Unreadable(_) => 3,
    };
    if badness(other) > badness(one) { other } else { one }
}

fn advance(current: &Current, length: u64) -> Result<u64, Fault> {
    let end = current.at.checked_add(length).filter(|end| *end <= current.end);
    end.ok_or_else(|| protocol_fault(&Malformed("a content longer than announced")))
}
