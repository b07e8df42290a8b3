//! Tests with a peer that lies: nothing that it sends makes this end panic, hang, allocate without bound,
//! or touch anything outside its tree.

mod approved;
mod codec;
mod corpus;
mod many;
pub(crate) mod shares;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_proto::approval::Device;
use ferry_proto::{Fault, FaultClass};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::attributes::Attribute;
use crate::entries::{Entry, What, Withheld};
use crate::fuzzing::{Said, feed, pipes};
use crate::journal::MAX_MOVES;
use crate::protocol::{
    Batch, Directory, Ending, Frame, MAX_FRAME, Place, Purpose, Range, Unlisted,
};
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

/// What the target makes of what is said, followed by the end of the streams.
async fn received(root: &Path, said: Said) -> Result<PassReport, Fault> {
    received_with(root, target_options(), said).await
}

/// The same, of a target with these options.
async fn received_with(
    root: &Path,
    options: TargetOptions,
    said: Said,
) -> Result<PassReport, Fault> {
    let (near, far) = pipes();
    let receive = crate::receive_pass(root, far, options, progress(), CancellationToken::new());
    let (outcome, ()) = tokio::join!(tokio::time::timeout(PATIENCE, receive), feed(near, said));
    outcome.expect("the target ends in time")
}

/// What a source says on the control stream alone.
fn control(control: Vec<u8>) -> Said {
    Said { control, ..Said::default() }
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

fn batch(number: u64, directory: Directory, entries: Vec<Entry>, last: bool) -> Frame<'static> {
    Frame::Batch(Batch { number, directory, last, partial: false, entries })
}

/// A greeting, and the first batch of the root's.
fn opening(entries: Vec<Entry>) -> Vec<Frame<'static>> {
    let root = Frame::Root(entry(b"", What::Directory), false);
    vec![Frame::Hello(Purpose::Pass), root, batch(0, None, entries, false)]
}

/// The end of the root's listing, and of all.
fn closing() -> Vec<Frame<'static>> {
    let summary = Frame::Summary(b"{\"notes\":{\"items\":[],\"total\":0}}");
    vec![batch(99, None, Vec::new(), true), Frame::WalkEnd, summary]
}

async fn assert_protocol_fault(said: Said, why: &str) {
    let place = place();
    let fault = received(&place.root, said).await.expect_err(why);
    assert_eq!(fault.class, FaultClass::Permanent, "{why}: {fault}");
    assert!(fault.message.contains("protocol"), "{why}: {fault}");
    place.assert_confined();
}

#[tokio::test]
async fn impossible_names_end_the_pass() {
    let long = [b'x'; 255];
    let lists = |name| control(encoded(&opening(vec![entry(name, What::Fifo)])));
    for name in [b"..".as_slice(), b".", b"a/b", b"/etc", b"a\0b", b""] {
        assert_protocol_fault(lists(name), "a bad name").await;
    }
    let reserved = b".ferry-tmp.0123456789abcdef0123456789abcdef";
    assert_protocol_fault(lists(reserved), "reserved").await;
    let fine = place();
    let mut frames = opening(vec![entry(&long, What::Fifo)]);
    frames.extend(closing());
    let mut said = control(encoded(&frames));
    said.data = encoded(&[Frame::Done]);
    let report = received(&fine.root, said).await.expect("an honest pass");
    assert_eq!((report.entries, report.created), (1, 1));
}

#[tokio::test]
async fn listings_out_of_turn_end_the_pass() {
    let file = || entry(b"f", What::File(3));
    let after = |more: Vec<Frame<'static>>| [opening(vec![file()]), more].concat();
    let directory = |number| {
        let below = Some(Place { batch: 0, index: 1 });
        let root = opening(vec![entry(b"d", What::Directory), entry(b"e", What::Directory)]);
        [root, vec![batch(number, below, vec![entry(b"f", What::Directory)], true)]].concat()
    };
    for (why, frames) in [
        ("no greeting", vec![Frame::WalkEnd]),
        ("the other purpose", vec![Frame::Hello(Purpose::Verify)]),
        ("two greetings", vec![Frame::Hello(Purpose::Pass), Frame::Hello(Purpose::Pass)]),
        ("a root that is a file", vec![Frame::Hello(Purpose::Pass), Frame::Root(file(), false)]),
        ("names that do not rise", opening(vec![entry(b"b", What::Fifo), entry(b"a", What::Fifo)])),
        ("a name twice", opening(vec![entry(b"a", What::Fifo), entry(b"a", What::Fifo)])),
        ("a name again", after(vec![batch(1, None, vec![file()], true)])),
        (
            "a listing of a file",
            after(vec![batch(1, Some(Place { batch: 0, index: 0 }), vec![], true)]),
        ),
        (
            "a directory never named",
            after(vec![batch(1, Some(Place { batch: 9, index: 0 }), vec![], true)]),
        ),
        ("a listing after its end", [closing(), closing()].concat().into_iter().take(4).collect()),
        ("a number twice", directory(0)),
        ("an end too soon", after(vec![Frame::WalkEnd])),
        ("an end with a directory left", [directory(1), closing()].concat()),
        (
            "a content",
            after(vec![Frame::Whole(Place { batch: 0, index: 0 }, Ending::Settled, b"x")]),
        ),
        ("an answer", after(vec![Frame::Wants(0, b"\x01", Vec::new())])),
        ("a summary too soon", after(closing().split_off(2))),
        (
            "a summary of nonsense",
            after(vec![batch(1, None, vec![], true), Frame::WalkEnd, Frame::Summary(b"[")]),
        ),
    ] {
        assert_protocol_fault(control(encoded(&frames)), why).await;
    }
}

/// A greeting and the root of a pass that lists only what has changed, and the first batch of the root's.
fn changes(moves: &[&[&[u8]]], entries: Vec<Entry>) -> Vec<Frame<'static>> {
    let root = Frame::Root(entry(b"", What::Directory), true);
    let path = |names: &&[&[u8]]| Frame::Moved(names.iter().map(|name| name.to_vec()).collect());
    let greeting = [Frame::Hello(Purpose::Pass), root].into_iter();
    greeting.chain(moves.iter().map(path)).chain([some(0, None, entries, true)]).collect()
}

fn some(number: u64, directory: Directory, entries: Vec<Entry>, last: bool) -> Frame<'static> {
    Frame::Batch(Batch { number, directory, last, partial: true, entries })
}

fn moved(name: &[u8], number: u32) -> Entry {
    Entry { moved: Some(number), ..entry(name, What::Directory) }
}

#[tokio::test]
async fn changes_out_of_turn_end_the_pass() {
    let directory = || vec![entry(b"d", What::Directory)];
    let place = Some(Place { batch: 0, index: 0 });
    let untouched = || Frame::Unlisted(place, Unlisted::Untouched);
    let path = || Frame::Moved(vec![b"d".to_vec()]);
    let after = |first: Vec<Frame<'static>>, more| [first, vec![more]].concat();
    for (why, frames) in [
        (
            "some names where all are to come",
            after(opening(directory()), some(1, place, vec![], true)),
        ),
        ("nothing where all is to come", after(opening(directory()), untouched())),
        ("something gone where all are", opening(vec![Entry::gone(b"d")])),
        ("a move where all is to come", after(opening(directory()), path())),
        ("a move after a listing", after(changes(&[], directory()), path())),
        ("a move that was not told", changes(&[&[b"a"]], vec![moved(b"d", 1)])),
        ("a place outside", changes(&[&[b"..", b"a"]], vec![])),
        ("a place of several names", changes(&[&[b"a/b"]], vec![])),
        ("the root itself", changes(&[&[]], vec![])),
        (
            "both some and all",
            [
                changes(&[], directory()),
                vec![some(1, place, vec![], false), batch(2, place, vec![], true)],
            ]
            .concat(),
        ),
    ] {
        assert_protocol_fault(control(encoded(&frames)), why).await;
    }
    let one = [b"a".as_slice()];
    let many = vec![one.as_slice(); MAX_MOVES + 1];
    assert_protocol_fault(control(encoded(&changes(&many, vec![]))), "too many moves").await;
}

#[tokio::test]
async fn nothing_is_moved_from_outside_or_through_a_symlink() {
    let outside = place();
    std::fs::create_dir(outside.root.join("theirs")).expect("mkdir");
    let place = place();
    std::os::unix::fs::symlink(&outside.root, place.root.join("link")).expect("symlink");
    std::fs::write(place.root.join("file"), "a file").expect("write");
    for from in [[b"link".as_slice(), b"theirs"].as_slice(), &[b"file"], &[b"nowhere", b"x"]] {
        let mut frames = changes(&[from], vec![moved(b"d", 0)]);
        frames.push(some(1, Some(Place { batch: 0, index: 0 }), vec![], true));
        let said = Said { control: encoded(&frames), data: encoded(&[Frame::Done]) };
        let fault = received(&place.root, said).await.expect_err("there is nothing to move");
        assert_eq!(fault.class, FaultClass::Transient, "{fault}");
        assert!(outside.root.join("theirs").is_dir() && !place.root.join("d").exists());
        assert!(place.root.join("file").is_file());
    }
}

#[tokio::test]
async fn contents_out_of_turn_end_the_pass() {
    let at = |batch, index| Place { batch, index };
    let first = at(0, 0);
    let part = |place, size, offset, length| Frame::Part(Range { place, size, offset, length });
    let whole = part(first, 3, 0, 3);
    for (why, frames) in [
        ("data without a file", vec![Frame::Data(b"x")]),
        ("a file not wanted", vec![part(at(0, 1), 3, 0, 3)]),
        ("a file of a batch to come", vec![Frame::Whole(at(1, 0), Ending::Settled, b"new")]),
        ("too much data", vec![whole.clone(), Frame::Data(b"four")]),
        ("too large a hole", vec![whole.clone(), Frame::Hole(u64::MAX)]),
        (
            "holes that overflow",
            vec![part(first, u64::MAX, 0, u64::MAX), Frame::Hole(u64::MAX), Frame::Hole(1)],
        ),
        ("too little data", vec![whole.clone(), Frame::PartEnd(Ending::Settled)]),
        ("a file in a file", vec![whole.clone(), whole.clone()]),
        ("a range beyond the end", vec![part(first, 3, 2, 2)]),
        (
            "two sizes",
            vec![
                part(first, 3, 0, 1),
                Frame::Data(b"x"),
                Frame::PartEnd(Ending::Settled),
                part(first, 4, 1, 2),
            ],
        ),
        (
            "a range too many",
            vec![
                part(first, 3, 0, 2),
                Frame::Data(b"xx"),
                Frame::PartEnd(Ending::Settled),
                part(first, 3, 0, 2),
                Frame::Data(b"xx"),
                Frame::PartEnd(Ending::Settled),
            ],
        ),
        ("bytes that we have", vec![whole.clone(), Frame::Same(3)]),
        ("a digest", vec![Frame::Hash(first, Ending::Settled, 3, [0; 32])]),
        ("a content that is gone", vec![Frame::Whole(first, Ending::Vanished, b"")]),
        ("a listing", vec![batch(1, None, vec![], true)]),
        ("nothing", vec![Frame::Done]),
        ("more after its end", vec![Frame::Done, Frame::Done]),
    ] {
        let listed = [opening(vec![entry(b"f", What::File(3))]), closing()].concat();
        let said = Said { control: encoded(&listed), data: encoded(&frames) };
        assert_protocol_fault(said, why).await;
    }
}

#[tokio::test]
async fn an_end_in_the_middle_is_transient() {
    let place = place();
    let bytes = encoded(&opening(vec![entry(b"f", What::File(3))]));
    for cut in 0..=bytes.len() {
        let fault =
            received(&place.root, control(bytes[..cut].to_vec())).await.expect_err("cut short");
        assert_eq!(fault.class, FaultClass::Transient, "{fault}");
    }
}

#[tokio::test]
async fn frames_too_long_end_the_pass_before_they_are_kept() {
    let place = place();
    for length in [0, MAX_FRAME as u32 + 1, u32::MAX] {
        let said = control(length.to_le_bytes().to_vec());
        let fault = received(&place.root, said).await.expect_err("length");
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
        entry(b"c", What::Device(Device { block: false, major: 1, minor: 3 })),
        Entry { attributes: attribute(b"trusted.x"), ..entry(b"d", What::Fifo) },
        Entry { attributes: attribute(b"security.capability"), ..entry(b"e", What::File(0)) },
        Entry { attributes: attribute(b"system.posix_acl_access"), ..entry(b"f", What::File(0)) },
        entry(b"g", What::Withheld(Withheld::Mount)),
        Entry { uid: 0, ..entry(b"h", What::Directory) },
    ];
    let mut frames = opening(entries);
    let below = Some(Place { batch: 0, index: 7 });
    frames.push(batch(1, below, vec![entry(b"inside", What::Fifo)], true));
    frames.extend(closing());
    let said = Said { control: encoded(&frames), data: encoded(&[Frame::Done]) };
    let report = received(&place.root, said).await.expect("the pass goes on");
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
        encoded(&[Frame::Wants(0, b"\x01", Vec::new())]),
        encoded(&[Frame::Wants(0, b"\x02", Vec::new())]),
        encoded(&[Frame::Wants(0, b"\x04", Vec::new())]),
        encoded(&[Frame::Wants(0, b"", Vec::new())]),
        encoded(&[Frame::Wants(0, b"\x00\x00", Vec::new())]),
        encoded(&[Frame::Wants(7, b"\x00", Vec::new())]),
        encoded(&[Frame::Wants(0, b"\x00", Vec::new()), Frame::Wants(0, b"\x00", Vec::new())]),
        encoded(&[Frame::Wants(0, b"\x00", vec![0])]),
        encoded(&[Frame::Wants(0, b"\x00", vec![9])]),
        encoded(&[Frame::Blocks(Place { batch: 0, index: 0 }, 0, Vec::new())]),
        encoded(&[Frame::Report(&crate::wire::to_json(&PassReport::default()))]),
        encoded(&[Frame::Data(b"x")]),
        vec![255; 100],
    ] {
        let mut bytes = encoded(&[Frame::Hello(Purpose::Pass)]);
        bytes.extend(answer);
        let (near, mut far) = pipes();
        let cancel = CancellationToken::new();
        let send = crate::send_pass(&place.root, near, source_options(), progress(), cancel);
        let hostile = async {
            // Answers only after the listing, as a real one would.
            let mut listed = false;
            while !listed {
                let (kind, _) = frame_of(&mut far.control).await;
                listed = kind == encoded(&[batch(0, None, Vec::new(), true)])[4];
            }
            feed(far, control(bytes)).await;
        };
        let (outcome, ()) = tokio::join!(tokio::time::timeout(PATIENCE, send), hostile);
        let fault = outcome.expect("the source ends in time").expect_err("a hostile target");
        assert_eq!(fault.class, FaultClass::Permanent, "{fault}");
    }
}

/// The next frame of a stream.
async fn frame_of(stream: &mut tokio::io::DuplexStream) -> (u8, Vec<u8>) {
    let length = stream.read_u32_le().await.expect("a frame");
    let kind = stream.read_u8().await.expect("a kind");
    let mut payload = vec![0; length as usize - 1];
    stream.read_exact(&mut payload).await.expect("a payload");
    (kind, payload)
}

/// All that an honest source sends to an honest target.
async fn honest(source: &Path) -> Said {
    let target = place();
    let (near, relay_near) = pipes();
    let (relay_far, far) = pipes();
    let cancel = CancellationToken::new();
    let mut said = Said::default();
    let relay = async {
        let [data] = <[_; 1]>::try_from(relay_near.data).expect("one data stream");
        let [data_far] = <[_; 1]>::try_from(relay_far.data).expect("one data stream");
        tokio::join!(
            tap(relay_near.control, relay_far.control, &mut said.control),
            tap(data, data_far, &mut said.data),
        );
    };
    let (one, other, ()) = tokio::join!(
        crate::send_pass(source, near, source_options(), progress(), cancel.clone()),
        crate::receive_pass(&target.root, far, target_options(), progress(), cancel),
        relay
    );
    assert_eq!(one.expect("source"), other.expect("target"));
    said
}

/// Connects a stream of the source's with the target's, and keeps what the source says.
async fn tap(
    mut near: tokio::io::DuplexStream,
    mut far: tokio::io::DuplexStream,
    said: &mut Vec<u8>,
) {
    let (mut from_source, mut to_source) = tokio::io::split(&mut near);
    let (mut from_target, mut to_target) = tokio::io::split(&mut far);
    let forward = async {
        let mut buffer = vec![0; 10_000];
        while let Ok(length @ 1..) = from_source.read(&mut buffer).await {
            said.extend_from_slice(&buffer[..length]);
            to_target.write_all(&buffer[..length]).await.expect("relay");
        }
        to_target.shutdown().await.expect("relay");
    };
    let back = async {
        let _ = tokio::io::copy(&mut from_target, &mut to_source).await;
        let _ = to_source.shutdown().await;
    };
    tokio::join!(forward, back);
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
    fn a_harmed_stream_does_no_harm(
        all in prop::collection::vec((harms(), prop::option::of(harms())), 1..3),
    ) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let sample = sample();
        let said = runtime.block_on(honest(&sample.root));
        let place = place();
        for (data, control) in all {
            let harmed = Said {
                control: control.map_or_else(|| said.control.clone(), |harms| harmed(said.control.clone(), &harms)),
                data: harmed(said.data.clone(), &data),
            };
            let outcome = runtime.block_on(received(&place.root, harmed));
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
        let fault = runtime.block_on(received(&place.root, control(bytes))).expect_err("nonsense");
        prop_assert_ne!(fault.class, FaultClass::Bug, "{}", fault);
        place.assert_confined();
    }
}
