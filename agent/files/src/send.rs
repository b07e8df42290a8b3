//! The source's side of a pass and of a comparison: it puts the walkers, the suppliers of contents and the
//! streams together. It must not know what the target does with it all.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::codec::Malformed;
use crate::confine::Tree;
use crate::digest::Manifest;
use crate::extents;
use crate::halt::{Halt, protocol_fault};
use crate::limits::Disks;
use crate::metadata::Time;
use crate::neighbour::Neighbour;
use crate::options::SourceOptions;
use crate::owners::Owners;
use crate::progress::Counters;
use crate::protocol::{Frame, Purpose};
use crate::report::{Bounded, Comparison, FromPeer, Note, PassReport, Progress};
use crate::session::{self, Streams, Work};
use crate::sharing::Sharing;
use crate::supply::{Store, Supplier};
use crate::walk::Walk;
use crate::window::Window;
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
    streams: Streams<S>,
    options: SourceOptions,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
) -> Result<PassReport, Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    run(root, streams, options, Purpose::Pass, progress, cancel).await
}

/// Compares: the source's side. Answers the same comparison as the target's side.
///
/// # Errors
/// What ended the comparison, at either end.
pub async fn verify_source<S>(
    root: &Path,
    streams: Streams<S>,
    options: SourceOptions,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
) -> Result<Comparison, Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    run(root, streams, options, Purpose::Verify, progress, cancel).await
}

async fn run<S, R>(
    root: &Path,
    streams: Streams<S>,
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
    let limits = options.limits.clone();
    let start = move |work: Work| source(&root, &options, purpose, work);
    session::run(streams, limits, progress, cancel, start).await
}

/// The source's work, on a thread of its own.
fn source<R: FromPeer>(
    root: &Path,
    options: &SourceOptions,
    purpose: Purpose,
    work: Work,
) -> Result<R, Fault> {
    let Work { control: Channels { outgoing, mut incoming, .. }, data, halt, counters } = work;
    let outbox = || Outbox::new(outgoing.clone(), halt.clone());
    let mut out = outbox();
    out.put(&Frame::Hello(purpose))?;
    out.flush()?;
    let tree = Arc::new(halt.stopping(Tree::open_root(root))?);
    let started = SystemTime::now();
    let flushed = halt.stopping(flush(&tree, options))?;
    let window = Arc::new(Window::new(halt.clone(), purpose));
    let manifest = Arc::new(Manifest::default());
    let may_share =
        options.share && purpose == Purpose::Pass && extents::may_be_shared(tree.root_fd());
    let store = Store {
        tree: Arc::clone(&tree),
        window: Arc::clone(&window),
        counters: counters.clone(),
        halt: halt.clone(),
        owners: Owners::of(options),
        purpose,
        flushed,
        manifest: Arc::clone(&manifest),
        neighbour: Neighbour::new(options.calm),
        disks: Disks::new(&options.limits, &halt, &counters),
        sharing: Sharing::new(may_share, data.len()),
    };
    let walk = Walk::new(
        tree,
        Arc::clone(&window),
        counters.clone(),
        halt.clone(),
        purpose,
        Arc::clone(&manifest),
        options,
    );
    let heard = Heard {
        purpose,
        window: &window,
        manifest: &manifest,
        counters: &counters,
        sharing: &store.sharing,
    };
    std::thread::scope(|scope| {
        let (halt, outbox, store, walk) = (&halt, &outbox, &store, &walk);
        let walking = scope.spawn(move || halt.watch(|| walk.run(options.walkers, outbox)));
        let supply = |channels: Channels| {
            let Channels { outgoing, incoming, pace } = channels;
            let out = Outbox::new(outgoing, halt.clone()).packing(pace.clone());
            halt.watch(|| Supplier::new(store, out, incoming, pace).run());
        };
        let mut parts: Vec<_> =
            data.into_iter().map(|channels| scope.spawn(move || supply(channels))).collect();
        parts.push(walking);
        let (manifest, counters) = (&manifest, &counters);
        scope.spawn(move || {
            halt.watch(|| {
                // One that panicked has stopped us all.
                parts.into_iter().for_each(|part| drop(part.join()));
                halt.check()?;
                let manifest = (purpose == Purpose::Verify).then(|| manifest.digest());
                let summary = Summary { notes: walk.notes(), started: Some(started), manifest };
                counters.scan_complete();
                store.window.all_sent();
                let mut out = outbox();
                out.put(&Frame::Summary(&wire::to_json(&summary)))?;
                out.flush()
            });
        });
        let report = heard.report(&mut incoming, halt);
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

/// Flushes the source's file system. See [`crate::content::settle`].
fn flush(tree: &Tree, options: &SourceOptions) -> Result<Option<Time>, Fault> {
    if !options.settle {
        return Ok(None);
    }
    let before = Time::now_coarse();
    rustix::fs::syncfs(tree.root_fd())
        .map_err(|errno| Fault::io("the source's file system cannot be flushed", &errno.into()))?;
    Ok(Some(before))
}

/// What is made of what the target says.
struct Heard<'a> {
    purpose: Purpose,
    window: &'a Window,
    manifest: &'a Manifest,
    counters: &'a Counters,
    sharing: &'a Sharing,
}

impl Heard<'_> {
    /// Hands answers to the window until the report comes.
    fn report<R: FromPeer>(
        &self,
        incoming: &mut mpsc::Receiver<bytes::Bytes>,
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
                (false, Frame::Hello(theirs)) if theirs == self.purpose => {
                    greeted = true;
                    Ok(())
                }
                (true, Frame::CanShare) if self.purpose == Purpose::Pass => {
                    self.sharing.ask();
                    Ok(())
                }
                (true, Frame::Wants(batch, bits, mended)) => self.answer(batch, bits, &mended),
                (true, Frame::Blocks(place, range, digests)) => {
                    self.window.blocks(place, range, digests)
                }
                (true, Frame::Report(json)) if self.window.is_all_sent() && report.is_none() => {
                    report = Some(wire::from_json(json)?);
                    Ok(())
                }
                _ => Err(protocol_fault(&Malformed("a frame out of turn"))),
            })?;
        }
        report.ok_or_else(wire::cut_short)
    }

    fn answer(&self, batch: u64, bits: &[u8], mended: &[u16]) -> Result<(), Fault> {
        let keeps = |node: &_, file: &_| self.sharing.keeps(node, file);
        let (sizes, done) = self.window.answer(batch, bits, mended, keeps)?;
        sizes.into_iter().for_each(|size| self.counters.wanted(size));
        if let Some(digest) = done.as_ref().and_then(|batch| batch.digest.as_ref()) {
            self.manifest.batch(digest);
        }
        Ok(())
    }
}
