//! Doors for the fuzz targets (`fuzz/`): each reads bytes as this crate reads them from a peer, and
//! panics if what was read breaks a promise. Not part of the crate's interface.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ferry_proto::fuzzing::Target;
use ferry_proto::{Fault, FaultClass};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::entries::{Entry, What};
use crate::protocol::Frame;
use crate::report::FromPeer;
use crate::{Comparison, IdMap, PassReport, SourceOptions, TargetOptions, acl, names, wire};

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
            Frame::Batch(entries) => entries.iter().for_each(|entry| sound(entry, false)),
            Frame::Root(entry) => sound(&entry, true),
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

/// A whole pass from a source that says anything: nothing appears outside the root, and nothing below it
/// has a privilege.
pub fn receive(bytes: &[u8]) {
    let place = Place::make("receive");
    let (root, bytes) = (place.root.clone(), bytes.to_vec());
    run(async move {
        let mut options = TargetOptions::new(IdMap::of((UID, UID), (UID, UID)));
        (options.durable, options.allow_emptied) = (false, true);
        let (near, far) = tokio::io::duplex(64 * 1024);
        let progress = watch::channel(crate::Progress::default()).0;
        let pass = crate::receive_pass(&root, far, options, progress, CancellationToken::new());
        let (outcome, ()) = tokio::join!(pass, feed(near, bytes));
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
    let (root, bytes) = (place.root.clone(), bytes.to_vec());
    run(async move {
        let mut options = SourceOptions::new([UID]);
        options.settle = false;
        let (near, far) = tokio::io::duplex(64 * 1024);
        let progress = watch::channel(crate::Progress::default()).0;
        let pass = crate::send_pass(&root, far, options, progress, CancellationToken::new());
        let (outcome, ()) = tokio::join!(pass, feed(near, bytes));
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

async fn feed(mut near: tokio::io::DuplexStream, bytes: Vec<u8>) {
    // The other end may have had enough before all is written.
    let _ = near.write_all(&bytes).await;
    let _ = near.shutdown().await;
    let mut answer = Vec::new();
    let _ = near.read_to_end(&mut answer).await;
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
