//! Doors for the fuzz targets (`fuzz/`): each reads bytes as this crate reads them from a peer, and
//! panics if what was read breaks a promise. Not part of the crate's interface.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use ferry_proto::fuzzing::Target;
use ferry_proto::{Fault, FaultClass};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::entries::{Entry, What};
use crate::protocol::Frame;
use crate::report::FromPeer;
use crate::shares::{self, Share};
use crate::{
    Comparison, IdMap, PassReport, SourceOptions, Streams, TargetOptions, acl, names, wire,
};

/// The targets by name.
pub const TARGETS: &[Target] =
    &[("frames", frames), ("acl", acl), ("receive", receive), ("send", send)];

/// Whose files they are: a user that no server has.
const UID: u32 = 64_101;

/// Frames: what is decoded is written as what is decoded alike, and names nothing outside.
pub fn frames(bytes: &[u8]) {
    let _ = wire::for_each_frame(Bytes::copy_from_slice(bytes), |frame| {
        let mut written = Vec::new();
        frame.encode(&mut written);
        assert_eq!(Frame::decode(written[4], &written[5..]).as_ref(), Ok(&frame));
        match frame {
            Frame::Batch(batch) => batch.entries.iter().for_each(|entry| sound(entry, false)),
            Frame::Root(entry, _) => sound(&entry, true),
            Frame::Share(share) => shared(&share),
            Frame::Blocks(_, _, digests) => assert!(digests.len() <= crate::blocks::MAX_BLOCKS),
            Frame::Summary(json) | Frame::Report(json) | Frame::Fault(json) => report(json),
            _ => {}
        }
        Ok(())
    });
}

fn sound(entry: &Entry, is_root: bool) {
    assert!(if is_root { entry.name.is_empty() } else { names::is_valid(&entry.name) });
    assert!(entry.mode & !0o7777 == 0);
    assert!(entry.attributes.is_sorted_by(|a, b| a.name < b.name));
    if let What::Symlink(target) = &entry.what {
        assert!(!target.is_empty() && !target.contains(&0));
    }
}

/// What is said to be shared lies below the root, at offsets that a file can have.
fn shared(share: &Share) {
    for path in [&share.from, &share.to] {
        assert!((1..=shares::MAX_DEPTH).contains(&path.len()));
        assert!(path.iter().all(|name| names::is_valid(name) && !names::is_reserved(name)));
    }
    assert!((1..=shares::MAX_PARTS).contains(&share.parts.len()));
    for part in &share.parts {
        assert!(part.length >= shares::SMALLEST);
        assert!(part.from.max(part.to).checked_add(part.length).is_some_and(|end| end >> 63 == 0));
    }
}

/// Nothing that a peer says of a pass moves a terminal, and a fault of its is no bug of ours.
fn report(json: &[u8]) {
    let plain = |text: &str| assert!(!text.chars().any(char::is_control), "{text:?}");
    if let Ok(report) = wire::from_json::<PassReport>(json) {
        for refusal in &report.refused.items {
            plain(&refusal.path);
            plain(&refusal.reason);
        }
        report.notes.items.iter().for_each(|n| plain(&n.text));
    }
    if let Ok(comparison) = wire::from_json::<Comparison>(json) {
        plain(&comparison.manifest);
        comparison.differences.items.iter().for_each(|d| plain(&d.source));
    }
    if let Ok(mut fault) = serde_json::from_slice::<Fault>(json) {
        fault.clean();
        assert_ne!(fault.class, FaultClass::Bug);
        plain(&fault.message);
        fault.causes.iter().for_each(|cause| plain(cause));
    }
}

/// ACLs: what is taken names only the account's own numbers, in the one order that we write.
pub fn acl(bytes: &[u8]) {
    let mut ids = IdMap::of((1000, 2000), (1000, 3000));
    ids.uids.insert(33, 34);
    assert_eq!(acl::canonical(&acl::canonical(bytes)), acl::canonical(bytes));
    let Ok(value) = acl::translated(bytes, &ids) else { return };
    assert_eq!(value.len(), bytes.len());
    assert_eq!(acl::canonical(&value), value);
    let here = |map: &BTreeMap<u32, u32>| map.values().map(|id| (*id, *id)).collect();
    let target = IdMap { uids: here(&ids.uids), gids: here(&ids.gids), ..IdMap::default() };
    assert_eq!(acl::translated(&value, &target).as_ref(), Ok(&value));
}

/// What one end says on the control stream and on a data stream, for a pass in which the other one is ours.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said {
    pub(crate) control: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

impl Said {
    /// The first two bytes tell how many of the rest are the control stream's.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let Some((length, rest)) = bytes.split_first_chunk() else { return Self::default() };
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (control, data) = rest.split_at(length);
        Self { control: control.to_vec(), data: data.to_vec() }
    }

    /// How many batches it lists, as far as it can be read: so many answers there will be.
    fn batches(&self) -> usize {
        let mut count = 0;
        let _ = wire::for_each_frame(Bytes::copy_from_slice(&self.control), |frame| {
            count += usize::from(matches!(frame, Frame::Batch(_)));
            Ok(())
        });
        count
    }
}

/// Streams in memory: two of each end, one of them for data.
pub(crate) fn pipes() -> (Streams<DuplexStream>, Streams<DuplexStream>) {
    let (control, far) = tokio::io::duplex(64 * 1024);
    let (data, data_far) = tokio::io::duplex(64 * 1024);
    (Streams { control, data: vec![data] }, Streams { control: far, data: vec![data_far] })
}

/// Says it all. Contents are sent only when they may have been asked for, as a source does.
pub(crate) async fn feed(near: Streams<DuplexStream>, said: Said) {
    let Streams { control, data } = near;
    let (mut hear, mut say) = tokio::io::split(control);
    let asked = tokio::sync::Notify::new();
    // Without any it is the other end that ends it: we would only seem to have gone away.
    let batches = said.batches().max(1);
    let speak = async {
        // The other end may have had enough before all is written.
        let _ = say.write_all(&said.control).await;
        let _ = say.shutdown().await;
    };
    let listen = async {
        hear_answers(&mut hear, batches).await;
        asked.notify_one();
        let _ = tokio::io::copy(&mut hear, &mut tokio::io::sink()).await;
    };
    let send = async {
        asked.notified().await;
        for mut stream in data {
            let _ = stream.write_all(&said.data).await;
            let _ = stream.shutdown().await;
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    };
    tokio::join!(speak, listen, send);
}

/// Hears until so many batches are answered.
pub(crate) async fn hear_answers(hear: &mut (impl AsyncRead + Unpin), batches: usize) {
    let (mut buffer, mut seen) = (BytesMut::new(), 0);
    while seen < batches && matches!(hear.read_buf(&mut buffer).await, Ok(1..)) {
        let (whole, _) = wire::whole_frames(&buffer).unwrap_or((0, false));
        let _ = wire::for_each_frame(buffer.split_to(whole).freeze(), |frame| {
            seen += usize::from(matches!(frame, Frame::Wants(..)));
            Ok(())
        });
    }
}

/// A whole pass from a source that says anything: nothing appears outside the root, and nothing below it
/// has a privilege.
pub fn receive(bytes: &[u8]) {
    let place = Place::make("receive");
    let (root, said) = (place.root.clone(), Said::of(bytes));
    run(async move {
        let mut options = TargetOptions::new(IdMap::of((UID, UID), (UID, UID)));
        (options.durable, options.allow_emptied) = (false, true);
        let (near, far) = pipes();
        let progress = watch::channel(crate::Progress::default()).0;
        let pass = crate::receive_pass(&root, far, options, progress, CancellationToken::new());
        let (outcome, ()) = tokio::join!(pass, feed(near, said));
        if let Err(fault) = outcome {
            assert_ne!(fault.class, FaultClass::Bug, "{fault}");
        }
    });
    place.check();
}

/// A whole pass to a target that says anything.
pub fn send(bytes: &[u8]) {
    let place = Place::make("send");
    std::fs::write(place.root.join("file"), b"content").expect("a file");
    std::os::unix::fs::chown(place.root.join("file"), Some(UID), Some(UID)).expect("as root");
    let (root, said) = (place.root.clone(), Said::of(bytes));
    run(async move {
        let mut options = SourceOptions::new([UID]);
        options.settle = false;
        let (near, far) = pipes();
        let progress = watch::channel(crate::Progress::default()).0;
        let pass = crate::send_pass(&root, far, options, progress, CancellationToken::new());
        let (outcome, ()) = tokio::join!(pass, feed(near, said));
        if let Err(fault) = outcome {
            assert_ne!(fault.class, FaultClass::Bug, "{fault}");
        }
    });
    place.check();
}

fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work);
}

/// A root of the account in a directory that must stay otherwise empty.
struct Place {
    directory: PathBuf,
    root: PathBuf,
}

impl Place {
    fn make(what: &str) -> Self {
        let name = format!("ferry-fuzz-{what}-{:032x}", rand::random::<u128>());
        let base = std::env::temp_dir().canonicalize().expect("a directory for temporary files");
        let directory = base.join(name);
        let root = directory.join("root");
        std::fs::create_dir_all(&root).expect("a root");
        std::os::unix::fs::chown(&root, Some(UID), Some(UID)).expect("run as root");
        Self { directory, root }
    }

    fn check(&self) {
        let beside = std::fs::read_dir(&self.directory).expect("it is there");
        assert_eq!(beside.count(), 1, "something was made outside the root");
        unprivileged(&self.root);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn unprivileged(path: &Path) {
    for entry in std::fs::read_dir(path).expect("it is there") {
        let path = entry.expect("an entry").path();
        let meta = path.symlink_metadata().expect("it is there");
        // What a pass that was cut off had not finished is still root's, and closed.
        let is_ours = (meta.uid(), meta.gid()) == (UID, UID);
        assert!(is_ours || (meta.uid() == 0 && meta.mode() & 0o7077 == 0), "{path:?}: {meta:?}");
        assert_eq!(meta.rdev(), 0, "a device: {path:?}");
        if meta.is_dir() {
            unprivileged(&path);
        }
    }
}
