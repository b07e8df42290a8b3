//! The source's side of a pass and of a comparison: it puts the walker, the reader of contents and the
//! stream together. It must not know what the target does with it all.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use ferry_proto::Fault;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::codec::Malformed;
use crate::confine::{self, Tree};
use crate::content::{self, Part};
use crate::digest::{self, Undigested};
use crate::halt::{Halt, protocol_fault};
use crate::metadata::{Kind, Stat, Time};
use crate::options::SourceOptions;
use crate::progress::Counters;
use crate::protocol::{Ending, Frame, Place, Purpose};
use crate::report::{Bounded, Comparison, FromPeer, Note, PassReport, Progress};
use crate::session::{self, Work};
use crate::walk::{Findings, Owners, Walker};
use crate::window::{Answered, Listed, Window};
use crate::wire::{self, Channels, Outbox};

/// What the source adds to the report.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Its notes.
    pub notes: Bounded<Note>,
    /// When it began.
    pub started: Option<SystemTime>,
    /// The digest of its manifest, when comparing.
    pub manifest: Option<String>,
}

impl FromPeer for Summary {
    fn clean(&mut self) {
        self.notes.clean_notes();
        // 64 digits; whatever else it is, it is not a digest.
        self.manifest = self
            .manifest
            .take()
            .filter(|digest| digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()));
    }
}

/// Sends one pass: the source's side. Answers the same report as the target's side.
///
/// # Errors
/// What ended the pass, at either end. It may be run again as it is.
pub async fn send_pass<S>(
    root: &Path,
    stream: S,
    options: SourceOptions,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
) -> Result<PassReport, Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    run(root, stream, options, Purpose::Pass, progress, cancel).await
}

/// Compares: the source's side. Answers the same comparison as the target's side.
///
/// # Errors
/// What ended the comparison, at either end.
pub async fn verify_source<S>(
    root: &Path,
    stream: S,
    options: SourceOptions,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
) -> Result<Comparison, Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    run(root, stream, options, Purpose::Verify, progress, cancel).await
}

async fn run<S, R>(
    root: &Path,
    stream: S,
    options: SourceOptions,
    purpose: Purpose,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
) -> Result<R, Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    R: FromPeer + Send + 'static,
{
    let root = root.to_owned();
    let bandwidth = options.bandwidth;
    let start = move |work: Work| source(&root, &options, purpose, work);
    session::run(stream, bandwidth, progress, cancel, start).await
}

/// The source's work, on a thread of its own.
fn source<R: FromPeer>(
    root: &Path,
    options: &SourceOptions,
    purpose: Purpose,
    work: Work,
) -> Result<R, Fault> {
    let Work { channels: Channels { outgoing, mut incoming }, halt, counters } = work;
    let mut out = Outbox::new(outgoing.clone(), halt.clone());
    out.put(&Frame::Hello(purpose))?;
    out.flush()?;
    let tree = Arc::new(Tree::open_root(root)?);
    let started = SystemTime::now();
    let flushed = flush(&tree, options)?;
    let findings = Arc::new(Mutex::new(Findings::default()));
    let window = Arc::new(Window::new(halt.clone()));
    let walker = Walker::new(
        Arc::clone(&tree),
        Outbox::new(outgoing.clone(), halt.clone()),
        Arc::clone(&window),
        counters.clone(),
        halt.clone(),
        Arc::clone(&findings),
        purpose,
        options,
    );
    let contents = Contents {
        tree,
        out: Outbox::new(outgoing, halt.clone()),
        window: Arc::clone(&window),
        counters: counters.clone(),
        halt: halt.clone(),
        owners: Owners::of(options),
        purpose,
        flushed,
        buffer: Vec::new(),
        digests: blake3::Hasher::new(),
    };
    std::thread::scope(|scope| {
        let halt = &halt;
        let stopping = move |outcome: Result<(), Fault>| {
            if let Err(fault) = outcome {
                halt.stop(fault);
            }
        };
        scope.spawn(move || stopping(walker.run()));
        let findings = &findings;
        scope.spawn(move || stopping(contents.run(findings, started)));
        let report = await_report(&mut incoming, purpose, &window, &counters, halt);
        match &report {
            Ok(_) => {
                out.put(&Frame::Bye)?;
                out.flush()?;
            }
            Err(fault) => halt.stop(fault.clone()),
        }
        report
    })
}

/// Flushes the source's file system. See [`content::settle`].
fn flush(tree: &Tree, options: &SourceOptions) -> Result<Option<Time>, Fault> {
    if !options.settle {
        return Ok(None);
    }
    let before = Time::now_coarse();
    rustix::fs::syncfs(tree.root_fd())
        .map_err(|errno| Fault::io("the source's file system cannot be flushed", &errno.into()))?;
    Ok(Some(before))
}

/// Hands answers to the window until the report comes.
fn await_report<R: FromPeer>(
    incoming: &mut tokio::sync::mpsc::Receiver<bytes::Bytes>,
    purpose: Purpose,
    window: &Window,
    counters: &Counters,
    halt: &Halt,
) -> Result<R, Fault> {
    let mut greeted = false;
    let mut report = None;
    while report.is_none() {
        let Some(chunk) = incoming.blocking_recv() else {
            halt.check()?;
            return Err(wire::cut_short());
        };
        wire::for_each_frame(chunk, |frame| match (greeted, frame) {
            (false, Frame::Hello(theirs)) if theirs == purpose => {
                greeted = true;
                Ok(())
            }
            (true, Frame::Wants(batch, bits)) => {
                window.answer(batch, bits)?.into_iter().for_each(|size| counters.wanted(size));
                Ok(())
            }
            (true, Frame::Report(json)) if window.is_all_sent() && report.is_none() => {
                report = Some(wire::from_json(json)?);
                Ok(())
            }
            _ => Err(protocol_fault(&Malformed("a frame out of turn"))),
        })?;
    }
    counters.scan_complete();
    report.ok_or_else(wire::cut_short)
}

/// Sends what is wanted.
struct Contents {
    tree: Arc<Tree>,
    out: Outbox,
    window: Arc<Window>,
    counters: Counters,
    halt: Halt,
    owners: Owners,
    purpose: Purpose,
    flushed: Option<Time>,
    buffer: Vec<u8>,
    /// Of all contents read for a comparison.
    digests: blake3::Hasher,
}

/// What reading one file met.
enum Failure {
    Io(Errno),
    Stop(Fault),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Io(errno)
    }
}

impl Contents {
    fn run(mut self, findings: &Mutex<Findings>, started: SystemTime) -> Result<(), Fault> {
        // Batches whose contents are in the outbox, with the count of flushes at that time.
        let mut unsent = VecDeque::new();
        loop {
            self.credit(&mut unsent);
            let next = match self.window.try_next() {
                Some(next) => next,
                None => {
                    self.out.flush()?;
                    self.credit(&mut unsent);
                    match self.window.next()? {
                        Some(next) => next,
                        None => break,
                    }
                }
            };
            self.batch(&next)?;
            unsent.push_back((self.out.flushes(), next.batch.entries.len()));
        }
        self.counters.scan_complete();
        let mut findings = findings.lock().unwrap_or_else(PoisonError::into_inner);
        let Findings { notes, entries } = std::mem::take(&mut *findings);
        let manifest = entries.map(|entries| digest::manifest(&entries, &self.digests));
        let summary = wire::to_json(&Summary { notes, started: Some(started), manifest });
        self.window.all_sent();
        self.out.put(&Frame::Summary(&summary))?;
        self.out.flush()
    }

    fn credit(&self, unsent: &mut VecDeque<(u64, usize)>) {
        while let Some((_, entries)) = unsent.pop_front_if(|(at, _)| *at < self.out.flushes()) {
            self.window.sent(1, entries);
        }
        if self.out.is_empty() {
            unsent.drain(..).for_each(|(_, entries)| self.window.sent(1, entries));
        }
    }

    fn batch(&mut self, answered: &Answered) -> Result<(), Fault> {
        let Answered { batch, wanted } = answered;
        // A digest is made of each file, wanted or not: the manifest is of the whole tree.
        let digested = |file: &Listed| self.purpose == Purpose::Verify && file.doubtful;
        let files = (0..).zip(&batch.entries).filter_map(|(index, file): (u16, _)| {
            let wanted = wanted.binary_search(&index).is_ok();
            let file = file.as_ref().filter(|file| wanted || digested(file))?;
            Some((Place { batch: batch.number, index }, file, wanted))
        });
        for (place, file, wanted) in files.collect::<Vec<_>>() {
            self.halt.check()?;
            let opened = self.tree.open(&batch.node).and_then(|dir| {
                let fd = confine::open_file(&dir, &file.name)?;
                let stat = Stat::of_fd(&fd)?;
                Ok((fd, stat))
            });
            let opened = match opened {
                Ok((fd, stat)) if self.is_listed(file, &stat) => Ok(fd),
                Ok(_) => Err(Ending::Changed),
                Err(errno) => Err(ending_of(errno)),
            };
            match (opened, self.purpose) {
                (Ok(fd), Purpose::Pass) => self.send(place, file, &fd)?,
                (Err(ending), Purpose::Pass) => {
                    self.out.put(&Frame::Skip(place, ending)).map(drop)?;
                }
                (opened, Purpose::Verify) => {
                    let frame = self.digest(place, file, opened)?;
                    if wanted {
                        self.out.put(&frame).map(drop)?;
                    }
                }
            }
            self.counters.file_done();
        }
        Ok(())
    }

    /// Whether what was opened is the file that was listed, and still the account's.
    fn is_listed(&self, file: &Listed, stat: &Stat) -> bool {
        stat.kind == Kind::File
            && stat.identity() == file.identity
            && self.owners.withhold(stat).is_none()
    }

    fn send(&mut self, place: Place, file: &Listed, fd: &OwnedFd) -> Result<(), Fault> {
        let stat = match content::settle(fd, self.flushed) {
            Ok(stat) => stat,
            Err(errno) => {
                return self.out.put(&Frame::Skip(place, ending_of(errno))).map(drop);
            }
        };
        self.out.put(&Frame::File(place, stat.size))?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = content::read(fd, &stat, &mut buffer, |part| {
            self.halt.check().map_err(Failure::Stop)?;
            let frame = match part {
                Part::Data(bytes) => {
                    self.counters.bytes_done(bytes.len() as u64);
                    Frame::Data(bytes)
                }
                Part::Hole(length) => Frame::Hole(length),
            };
            self.out.put(&frame).map(drop).map_err(Failure::Stop)
        });
        self.buffer = buffer;
        let ending = match read {
            Ok(length) => held_still(file, &stat, fd, length),
            Err(Failure::Io(errno)) => ending_of(errno),
            Err(Failure::Stop(fault)) => return Err(fault),
        };
        self.out.put(&Frame::FileEnd(ending)).map(drop)
    }

    /// Digests a content, adds it to the manifest, and answers what the target is told.
    fn digest(
        &mut self,
        place: Place,
        file: &Listed,
        opened: Result<OwnedFd, Ending>,
    ) -> Result<Frame<'static>, Fault> {
        let fd = match opened {
            Ok(fd) => fd,
            Err(ending) => return Ok(self.undigested(place, ending)),
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let digested =
            content::settle(&fd, self.flushed).map_err(Undigested::from).and_then(|stat| {
                let progress = |bytes| self.counters.bytes_done(bytes);
                let (digest, length) =
                    digest::of_file(&fd, &stat, &mut buffer, &self.halt, progress)?;
                Ok((held_still(file, &stat, &fd, length), length, digest))
            });
        self.buffer = buffer;
        match digested {
            Ok((ending, length, digest)) => {
                self.digests.update(&digest);
                Ok(Frame::Hash(place, ending, length, digest))
            }
            Err(Undigested::Failed(errno)) => Ok(self.undigested(place, ending_of(errno))),
            Err(Undigested::Stopped) => Err(self.halt.ended()),
        }
    }

    fn undigested(&mut self, place: Place, ending: Ending) -> Frame<'static> {
        self.digests.update(&[0; 32]);
        Frame::Skip(place, ending)
    }
}

/// Whether the content belongs to the metadata that were listed.
fn held_still(file: &Listed, before: &Stat, fd: &OwnedFd, length: u64) -> Ending {
    let still = before.ctime == file.ctime
        && before.size == file.size
        && length == file.size
        && Stat::of_fd(fd).is_ok_and(|after| after.ctime == before.ctime);
    if still { Ending::Settled } else { Ending::Changed }
}

fn ending_of(errno: Errno) -> Ending {
    match errno {
        Errno::NOENT => Ending::Vanished,
        // EAGAIN: somebody holds a lease on it, which our opening breaks.
        Errno::STALE | Errno::LOOP | Errno::NOTDIR | Errno::XDEV | Errno::NXIO | Errno::AGAIN => {
            Ending::Changed
        }
        other => Ending::Unreadable(other.raw_os_error().unsigned_abs()),
    }
}
