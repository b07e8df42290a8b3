//! Tests with a peer that lies: nothing that it sends makes this end panic, hang, allocate without bound,
//! or touch anything outside its tree.

mod codec;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_proto::{Fault, FaultClass};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::attributes::Attribute;
use crate::entries::{Entry, What, Withheld};
use crate::protocol::{DirStatus, Ending, Frame, MAX_FRAME, Place, Purpose};
use crate::{IdMap, PassReport, Progress, SourceOptions, TargetOptions};

const UID: u32 = 64_101;

/// Longer than any of these may take, shorter than a silent peer is given.
const PATIENCE: Duration = Duration::from_secs(30);

struct Spot {
    _dir: tempfile::TempDir,
    root: PathBuf,
}

/// A root of the account in a directory that must stay otherwise empty.
fn place() -> Spot {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = dir.path().canonicalize().expect("a real path").join("root");
    std::fs::create_dir(&root).expect("a root");
    std::os::unix::fs::chown(&root, Some(UID), Some(UID)).expect("chown (run as root)");
    Spot { _dir: dir, root }
}

impl Spot {
    fn assert_confined(&self) {
        let beside = self.root.parent().expect("a parent");
        let names: Vec<_> = std::fs::read_dir(beside).expect("readdir").collect();
        assert_eq!(names.len(), 1, "something was made outside the root: {names:?}");
        assert_owned(&self.root);
    }
}

/// Nothing below is a device, or setuid to anybody else.
fn assert_owned(path: &Path) {
    for entry in std::fs::read_dir(path).expect("readdir") {
        let entry = entry.expect("entry");
        let meta = entry.path().symlink_metadata().expect("metadata");
        let privileged = meta.mode() & 0o6000 != 0 && !meta.is_dir();
        assert!(!privileged || (meta.uid(), meta.gid()) == (UID, UID), "{entry:?}");
        assert_eq!(meta.rdev(), 0, "a device: {entry:?}");
        if meta.is_dir() {
            assert_owned(&entry.path());
        }
    }
}

fn progress() -> watch::Sender<Progress> {
    watch::channel(Progress::default()).0
}

fn target_options() -> TargetOptions {
    let mut options = TargetOptions::new(IdMap::of((UID, UID), (UID, UID)));
    options.durable = false;
    options.allow_emptied = true;
    options
}

fn source_options() -> SourceOptions {
    let mut options = SourceOptions::new([UID]);
    options.settle = false;
    options
}

/// What the target makes of `bytes`, followed by the end of the stream.
async fn received(root: &Path, bytes: Vec<u8>) -> Result<PassReport, Fault> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let receive =
        crate::receive_pass(root, far, target_options(), progress(), CancellationToken::new());
    let (outcome, ()) = tokio::join!(tokio::time::timeout(PATIENCE, receive), feed(near, bytes));
    outcome.expect("the target ends in time")
}

async fn feed(mut near: DuplexStream, bytes: Vec<u8>) {
    // The other end may have had enough before all is written.
    let _ = near.write_all(&bytes).await;
    let _ = near.shutdown().await;
    let mut answer = Vec::new();
    let _ = near.read_to_end(&mut answer).await;
}

fn encoded(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    bytes
}

fn entry(name: &[u8], what: What) -> Entry {
    let mode = 0o644;
    Entry { name: name.to_vec(), uid: UID, gid: UID, mode, ..Entry::of(what) }
}

fn opening(entries: Vec<Entry>) -> Vec<Frame<'static>> {
    vec![
        Frame::Hello(Purpose::Pass),
        Frame::Root(entry(b"", What::Directory)),
        Frame::Dir(DirStatus::Listed),
        Frame::Batch(entries),
    ]
}

async fn assert_protocol_fault(frames: &[Frame<'_>], why: &str) {
    let place = place();
    let fault = received(&place.root, encoded(frames)).await.expect_err(why);
    assert_eq!(fault.class, FaultClass::Permanent, "{why}: {fault}");
    assert!(fault.message.contains("protocol"), "{why}: {fault}");
    place.assert_confined();
}

#[tokio::test]
async fn impossible_names_end_the_pass() {
    let long = [b'x'; 255];
    for name in [b"..".as_slice(), b".", b"a/b", b"/etc", b"a\0b", b""] {
        assert_protocol_fault(&opening(vec![entry(name, What::Fifo)]), "a bad name").await;
    }
    let reserved = b".ferry-tmp.0123456789abcdef0123456789abcdef";
    assert_protocol_fault(&opening(vec![entry(reserved, What::Fifo)]), "reserved").await;
    let fine = place();
    let mut frames = opening(vec![entry(&long, What::Fifo)]);
    frames.extend([
        Frame::DirEnd,
        Frame::WalkEnd,
        Frame::Summary(b"{\"notes\":{\"items\":[],\"total\":0}}"),
    ]);
    let report = received(&fine.root, encoded(&frames)).await.expect("an honest pass");
    assert_eq!((report.entries, report.created), (1, 1));
}

#[tokio::test]
async fn frames_out_of_turn_end_the_pass() {
    let file = || entry(b"f", What::File(3));
    let first = Place { batch: 0, index: 0 };
    let after = |more: Vec<Frame<'static>>| [opening(vec![file()]), more].concat();
    for (why, frames) in [
        ("no greeting", vec![Frame::DirEnd]),
        ("the other purpose", vec![Frame::Hello(Purpose::Verify)]),
        ("two greetings", vec![Frame::Hello(Purpose::Pass), Frame::Hello(Purpose::Pass)]),
        ("a root that is a file", vec![Frame::Hello(Purpose::Pass), Frame::Root(file())]),
        ("names that do not rise", opening(vec![entry(b"b", What::Fifo), entry(b"a", What::Fifo)])),
        ("a name twice", opening(vec![entry(b"a", What::Fifo), entry(b"a", What::Fifo)])),
        ("a directory within a listing", after(vec![Frame::Dir(DirStatus::Listed)])),
        ("a directory never named", after(vec![Frame::DirEnd, Frame::Dir(DirStatus::Listed)])),
        ("data without a file", after(vec![Frame::Data(b"x")])),
        ("a file not wanted", after(vec![Frame::File(Place { batch: 0, index: 1 }, 3)])),
        ("a file of a batch to come", after(vec![Frame::File(Place { batch: 1, index: 0 }, 3)])),
        ("too much data", after(vec![Frame::File(first, 3), Frame::Data(b"four")])),
        ("too large a hole", after(vec![Frame::File(first, 3), Frame::Hole(u64::MAX)])),
        (
            "holes that overflow",
            after(vec![Frame::File(first, u64::MAX), Frame::Hole(u64::MAX), Frame::Hole(1)]),
        ),
        ("too little data", after(vec![Frame::File(first, 3), Frame::FileEnd(Ending::Settled)])),
        ("a file in a file", after(vec![Frame::File(first, 3), Frame::File(first, 3)])),
        ("a digest", after(vec![Frame::Hash(first, Ending::Settled, 3, [0; 32])])),
        ("an answer", after(vec![Frame::Wants(0, b"\x01")])),
        (
            "a summary too soon",
            after(vec![
                Frame::DirEnd,
                Frame::WalkEnd,
                Frame::Summary(b"{\"notes\":{\"items\":[],\"total\":0}}"),
            ]),
        ),
        ("a summary of nonsense", after(vec![Frame::Summary(b"[")])),
    ] {
        assert_protocol_fault(&frames, why).await;
    }
}

#[tokio::test]
async fn an_end_in_the_middle_is_transient() {
    let place = place();
    let bytes = encoded(&opening(vec![entry(b"f", What::File(3))]));
    for cut in 0..=bytes.len() {
        let fault = received(&place.root, bytes[..cut].to_vec()).await.expect_err("cut short");
        assert_eq!(fault.class, FaultClass::Transient, "{fault}");
    }
}

#[tokio::test]
async fn frames_too_long_end_the_pass_before_they_are_kept() {
    let place = place();
    for length in [0, MAX_FRAME as u32 + 1, u32::MAX] {
        let fault = received(&place.root, length.to_le_bytes().to_vec()).await.expect_err("length");
        assert!(fault.message.contains("protocol"), "{fault}");
    }
}

#[tokio::test]
async fn privileges_that_a_source_claims_are_refused_and_not_made() {
    let place = place();
    let attribute = |name: &[u8]| vec![Attribute { name: name.to_vec(), value: vec![1] }];
    let entries = vec![
        Entry { uid: 0, ..entry(b"a", What::Symlink(b"x".to_vec())) },
        Entry { gid: 0, ..entry(b"b", What::Fifo) },
        entry(b"c", What::Device),
        Entry { attributes: attribute(b"trusted.x"), ..entry(b"d", What::Fifo) },
        Entry { attributes: attribute(b"security.capability"), ..entry(b"e", What::File(0)) },
        Entry { attributes: attribute(b"system.posix_acl_access"), ..entry(b"f", What::File(0)) },
        entry(b"g", What::Withheld(Withheld::Mount)),
        Entry { uid: 0, ..entry(b"h", What::Directory) },
    ];
    let mut frames = opening(entries);
    let below = vec![entry(b"inside", What::Fifo)];
    frames.extend([Frame::DirEnd, Frame::Dir(DirStatus::Listed), Frame::Batch(below)]);
    frames.extend([Frame::DirEnd, Frame::WalkEnd]);
    frames.push(Frame::Summary(b"{\"notes\":{\"items\":[],\"total\":0}}"));
    let report = received(&place.root, encoded(&frames)).await.expect("the pass goes on");
    assert_eq!(report.refused.total, 8, "{:?}", report.refused);
    assert_eq!(std::fs::read_dir(&place.root).expect("readdir").count(), 0);
}

#[tokio::test]
async fn a_hostile_target_is_given_nothing_that_was_not_offered() {
    let place = place();
    std::fs::write(place.root.join("secret"), "root's").expect("write");
    std::fs::create_dir(place.root.join("directory")).expect("mkdir");
    std::os::unix::fs::chown(place.root.join("directory"), Some(UID), Some(UID)).expect("chown");
    // Two entries: 0 is the directory, 1 is root's file.
    for answer in [
        encoded(&[Frame::Wants(0, b"\x01")]),
        encoded(&[Frame::Wants(0, b"\x02")]),
        encoded(&[Frame::Wants(0, b"\x04")]),
        encoded(&[Frame::Wants(0, b"")]),
        encoded(&[Frame::Wants(0, b"\x00\x00")]),
        encoded(&[Frame::Wants(7, b"\x00")]),
        encoded(&[Frame::Wants(0, b"\x00"), Frame::Wants(0, b"\x00")]),
        encoded(&[Frame::Report(&crate::wire::to_json(&PassReport::default()))]),
        encoded(&[Frame::Data(b"x")]),
        vec![255; 100],
    ] {
        let mut bytes = encoded(&[Frame::Hello(Purpose::Pass)]);
        bytes.extend(answer);
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let cancel = CancellationToken::new();
        let send = crate::send_pass(&place.root, near, source_options(), progress(), cancel);
        let hostile = async {
            // Answers only after the listing, as a real one would.
            let mut seen = vec![0; 64];
            let _ = far.read_exact(&mut seen).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            feed(far, bytes).await;
        };
        let (outcome, ()) = tokio::join!(tokio::time::timeout(PATIENCE, send), hostile);
        let fault = outcome.expect("the source ends in time").expect_err("a hostile target");
        assert_eq!(fault.class, FaultClass::Permanent, "{fault}");
    }
}

/// All that an honest source sends to an honest target.
async fn honest_stream(source: &Path) -> Vec<u8> {
    let target = place();
    let (near, mut relay_near) = tokio::io::duplex(64 * 1024);
    let (mut relay_far, far) = tokio::io::duplex(64 * 1024);
    let cancel = CancellationToken::new();
    let mut sent = Vec::new();
    let relay = async {
        let (mut from_source, mut to_source) = tokio::io::split(&mut relay_near);
        let (mut from_target, mut to_target) = tokio::io::split(&mut relay_far);
        let forward = async {
            let mut buffer = vec![0; 10_000];
            while let Ok(length @ 1..) = from_source.read(&mut buffer).await {
                sent.extend_from_slice(&buffer[..length]);
                to_target.write_all(&buffer[..length]).await.expect("relay");
            }
            to_target.shutdown().await.expect("relay");
        };
        let back = async {
            let _ = tokio::io::copy(&mut from_target, &mut to_source).await;
            let _ = to_source.shutdown().await;
        };
        tokio::join!(forward, back);
    };
    let (one, other, ()) = tokio::join!(
        crate::send_pass(source, near, source_options(), progress(), cancel.clone()),
        crate::receive_pass(&target.root, far, target_options(), progress(), cancel),
        relay
    );
    assert_eq!(one.expect("source"), other.expect("target"));
    sent
}

/// A small tree with something of each kind.
fn sample() -> Spot {
    let place = place();
    let at = |name: &str| place.root.join(name);
    std::fs::create_dir(at("d")).expect("mkdir");
    std::fs::create_dir(at("d/e")).expect("mkdir");
    for name in ["a", "d/b", "d/e/c"] {
        std::fs::write(at(name), name.repeat(50)).expect("write");
    }
    std::fs::hard_link(at("a"), at("d/linked")).expect("link");
    std::os::unix::fs::symlink("a", at("z")).expect("symlink");
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    let file = std::fs::File::create(at("sparse")).expect("create");
    file.set_len(300_000).expect("length");
    let chown = std::process::Command::new("chown")
        .args(["-Rh", &format!("{UID}:{UID}")])
        .arg(&place.root)
        .status();
    assert!(chown.expect("chown").success());
    place
}

/// A harm to a stream: where, and what.
#[derive(Debug, Clone)]
enum Harm {
    Set(usize, u8),
    Flip(usize, u8),
    Remove(usize, usize),
    Repeat(usize, usize),
    Insert(usize, Vec<u8>),
    Cut(usize),
}

fn harms() -> impl Strategy<Value = Vec<Harm>> {
    let at = || any::<prop::sample::Index>().prop_map(|index| index.index(1 << 20));
    let harm = prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, to)| Harm::Set(at, to)),
        4 => (at(), 0..8_u8).prop_map(|(at, bit)| Harm::Flip(at, bit)),
        1 => (at(), 1..40_usize).prop_map(|(at, n)| Harm::Remove(at, n)),
        1 => (at(), 1..40_usize).prop_map(|(at, n)| Harm::Repeat(at, n)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, b)| Harm::Insert(at, b)),
        1 => at().prop_map(Harm::Cut),
    ];
    prop::collection::vec(harm, 1..4)
}

fn harmed(mut bytes: Vec<u8>, harms: &[Harm]) -> Vec<u8> {
    for harm in harms {
        let length = bytes.len().max(1);
        match harm {
            Harm::Set(at, to) => bytes.iter_mut().skip(at % length).take(1).for_each(|b| *b = *to),
            Harm::Flip(at, bit) => {
                bytes.iter_mut().skip(at % length).take(1).for_each(|b| *b ^= 1 << bit);
            }
            Harm::Remove(at, count) => {
                let at = at % length;
                bytes.drain(at.min(bytes.len())..(at + count).min(bytes.len()));
            }
            Harm::Repeat(at, count) => {
                let at = (at % length).min(bytes.len());
                let part = bytes[at..(at + count).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            Harm::Insert(at, part) => {
                let at = (at % length).min(bytes.len());
                bytes.splice(at..at, part.iter().copied());
            }
            Harm::Cut(at) => bytes.truncate(at % length),
        }
    }
    bytes
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn a_harmed_stream_does_no_harm(all in prop::collection::vec(harms(), 1..3)) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let sample = sample();
        let stream = runtime.block_on(honest_stream(&sample.root));
        let place = place();
        for harms in all {
            let outcome = runtime.block_on(received(&place.root, harmed(stream.clone(), &harms)));
            if let Err(fault) = outcome {
                prop_assert_ne!(fault.class, FaultClass::Bug, "{}", fault);
            }
            place.assert_confined();
        }
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let place = place();
        let fault = runtime.block_on(received(&place.root, bytes)).expect_err("nonsense");
        prop_assert_ne!(fault.class, FaultClass::Bug, "{}", fault);
        place.assert_confined();
    }
}
