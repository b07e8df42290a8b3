//! What the fuzzers of the streams begin with (`fuzz/corpus`), written with today's frames: inputs of another version of
//! the protocol would all end at the greeting.

use ferry_proto::approval::Device;

use super::*;
use crate::entries::Link;
use crate::locks::Locks;
use crate::pack::{Pace, Packer};
use crate::projects::Project;
use crate::shares::{Part, SMALLEST, Share};

/// Set, the files are written instead of compared.
const WRITE: &str = "FERRY_WRITE_CORPUS";

type Inputs = Vec<(&'static str, Vec<u8>)>;

const fn at(batch: u64, index: u16) -> Place {
    Place { batch, index }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus")
}

/// An input of a whole pass: see [`Said`].
fn whole(control: &[Frame<'_>], data: Vec<u8>) -> Vec<u8> {
    let control = encoded(control);
    let length = u16::try_from(control.len()).expect("a short one");
    [&length.to_le_bytes()[..], &control, &data].concat()
}

/// A pass that lists these in the root, and then all of these frames.
fn listed(entries: Vec<Entry>, more: Vec<Frame<'_>>, data: &[Frame<'_>]) -> Vec<u8> {
    let control = [opening(entries), more, closing()].concat();
    whole(&control, encoded(&[data, &[Frame::Done]].concat()))
}

fn file(name: &[u8], size: u64) -> Entry {
    entry(name, What::File(size))
}

/// All that a tree may hold in one listing, and a directory below.
fn everything() -> Vec<Entry> {
    let named =
        |name: &[u8], value: &[u8]| Attribute { name: name.to_vec(), value: value.to_vec() };
    let link = Some(Link { group: 1, names: 2 });
    let acl = [
        &[2, 0, 0, 0][..],
        &[
            1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255,
            255, 255,
        ],
    ];
    vec![
        Entry { attributes: vec![named(b"user.note", b"x")], ..file(b"a", 3) },
        Entry {
            attributes: vec![named(b"system.posix_acl_access", &acl.concat())],
            ..file(b"b", 0)
        },
        entry(b"c", What::Device(Device { block: false, major: 1, minor: 3 })),
        entry(b"d", What::Directory),
        entry(b"e", What::Symlink(b"a".to_vec())),
        entry(b"f", What::Fifo),
        Entry { link, ..file(b"g", 3) },
        Entry { link, ..file(b"h", 3) },
        Entry {
            doubtful: true,
            project: Some(Project { id: 7, inherits: false }),
            ..file(b"i", 8192)
        },
        file(b"j", 0),
        Entry { mode: 0o4755, uid: 0, ..file(b"k", 3) },
        entry(b"l", What::Withheld(Withheld::Mount)),
    ]
}

fn share() -> Frame<'static> {
    let path = |name: &[u8]| vec![name.to_vec()];
    let parts = vec![Part { from: 0, to: 0, length: SMALLEST }];
    Frame::Share(Share { from: path(b"a"), to: path(b"b"), parts })
}

fn packed(frames: &[Frame<'_>]) -> Vec<u8> {
    let pace = Pace::default();
    pace.waits_to_write(true);
    pace.receiver_waits(true);
    Packer::new(pace).pack(&encoded(frames), true).expect("what compresses")
}

/// From a source.
fn receive() -> Inputs {
    const SETTLED: Ending = Ending::Settled;
    let zeros = [0; 8192];
    let below = |entries| batch(1, Some(at(0, 3)), entries, true);
    let part = |index, size, offset, length| {
        Frame::Part(Range { place: at(0, index), size, offset, length })
    };
    let contents = [
        Frame::Whole(at(0, 0), SETTLED, b"abc"),
        Frame::Whole(at(0, 1), SETTLED, b""),
        part(6, 3, 0, 3),
        Frame::Data(b"ab"),
        Frame::Data(b"c"),
        Frame::PartEnd(SETTLED),
        part(8, 8192, 0, 8192),
        Frame::Hole(4096),
        Frame::Data(&zeros[..4096]),
        Frame::PartEnd(Ending::Changed),
        Frame::Skip(at(0, 9), Ending::Vanished),
        Frame::Whole(at(1, 0), SETTLED, b"in"),
    ];
    let one = || vec![file(b"f", 8192)];
    let moves: &[&[&[u8]]] = &[&[b"old", b"place"], &[b"other"]];
    let changed = vec![Entry::gone(b"a"), moved(b"b", 0), file(b"c", 3)];
    let mut some_frames = changes(moves, changed);
    some_frames.push(Frame::Unlisted(Some(at(0, 1)), Unlisted::Untouched));
    some_frames.extend([Frame::WalkEnd, closing().remove(2)]);
    let link = vec![entry(b"d", What::Symlink(b"/etc".to_vec())), entry(b"e", What::Directory)];
    let through = batch(1, Some(at(0, 0)), vec![file(b"passwd", 1)], true);
    let root = || vec![entry(b"d", What::Directory), file(b"f", 1)];
    let open = [opening(root()), vec![batch(1, Some(at(0, 0)), vec![file(b"g", 5)], false)]];
    let verify = [Frame::Hello(Purpose::Verify), Frame::Root(entry(b"", What::Directory), false)];
    vec![
        ("everything", listed(everything(), vec![below(vec![file(b"x", 2)])], &contents)),
        ("small", listed(vec![file(b"f", 1)], vec![], &[Frame::Whole(at(0, 0), SETTLED, b"x")])),
        (
            "changes",
            whole(&some_frames, encoded(&[Frame::Whole(at(0, 2), SETTLED, b"abc"), Frame::Done])),
        ),
        ("shared", listed(one(), vec![], &[Frame::Whole(at(0, 0), SETTLED, &zeros), share()])),
        ("same", listed(one(), vec![], &[part(0, 8192, 0, 8192), Frame::Same(8192)])),
        (
            "packed",
            whole(
                &[opening(one()), closing()].concat(),
                packed(&[Frame::Whole(at(0, 0), SETTLED, &zeros), Frame::Done]),
            ),
        ),
        (
            "skip",
            listed(vec![file(b"f", 1)], vec![], &[Frame::Skip(at(0, 0), Ending::Unreadable(13))]),
        ),
        ("dotdot", listed(vec![file(b"..", 1)], vec![], &[])),
        ("through-link", listed(link, vec![through], &[])),
        (
            "setuid-root",
            listed(
                vec![Entry { mode: 0o4755, uid: 0, ..file(b"f", 1) }],
                vec![],
                &[Frame::Whole(at(0, 0), SETTLED, b"x")],
            ),
        ),
        (
            "cut-off-with-an-open-directory",
            whole(
                &open.concat(),
                encoded(&[
                    Frame::Whole(at(0, 1), SETTLED, b"x"),
                    Frame::Whole(at(1, 0), SETTLED, b"hello"),
                ]),
            ),
        ),
        (
            "verify",
            whole(
                &[&verify[..], &closing()].concat(),
                encoded(&[Frame::Hash(at(0, 0), SETTLED, 1, [7; 32]), Frame::Done]),
            ),
        ),
    ]
}

/// From a target, of a tree with one file.
fn send() -> Inputs {
    let report = crate::wire::to_json(&PassReport::default());
    let fault = crate::wire::to_json(&Fault::transient("the disk is full"));
    let hello = || vec![Frame::Hello(Purpose::Pass)];
    let said = |more: &[Frame<'_>]| {
        whole(&[&hello()[..], more].concat(), encoded(&[Frame::Waiting(true)]))
    };
    vec![
        (
            "wants-one",
            said(&[Frame::CanShare, Frame::Wants(0, b"\x01", vec![]), Frame::Report(&report)]),
        ),
        ("wants-none", said(&[Frame::Wants(0, b"\x00", vec![]), Frame::Report(&report)])),
        ("wants-too-much", said(&[Frame::Wants(0, b"\xff", vec![0])])),
        ("mends", said(&[Frame::Wants(0, b"\x01", vec![0]), Frame::Blocks(at(0, 0), 0, vec![])])),
        ("fault", said(&[Frame::Fault(&fault)])),
        ("verify", whole(&[Frame::Hello(Purpose::Verify)], vec![])),
    ]
}

/// One frame of each kind at least.
fn frames() -> Inputs {
    let report = crate::wire::to_json(&PassReport::default());
    let comparison = crate::wire::to_json(&crate::Comparison::default());
    let fault = crate::wire::to_json(&Fault::transient("\x1b[2Jthe disk is full"));
    let place = at(1, 2);
    let moves: &[&[&[u8]]] = &[&[b"a", b"b"]];
    let locked = Locks { immutable: false, append_only: true };
    let locked = vec![Entry { locks: locked, ..file(b"f", 0) }];
    vec![
        ("listing", encoded(&[opening(everything()), closing()].concat())),
        ("locked", encoded(&opening(locked))),
        ("changes", encoded(&changes(moves, vec![Entry::gone(b"a"), moved(b"b", 0)]))),
        (
            "unlisted",
            encoded(&[
                Frame::Unlisted(None, Unlisted::Vanished),
                Frame::Unlisted(Some(place), Unlisted::Unreadable(5)),
            ]),
        ),
        (
            "contents",
            encoded(&[
                Frame::Whole(place, Ending::Changed, b"x"),
                Frame::Part(Range { place, size: 9, offset: 3, length: 6 }),
                Frame::Data(b"y"),
                Frame::Hole(3),
                Frame::Same(2),
                Frame::PartEnd(Ending::Settled),
                Frame::Skip(place, Ending::Unreadable(5)),
                Frame::Done,
            ]),
        ),
        ("hash", encoded(&[Frame::Hash(place, Ending::Settled, 1, [7; 32])])),
        ("share", encoded(&[share()])),
        (
            "wants",
            encoded(&[Frame::CanShare, Frame::Wants(3, b"\x05", vec![0, 2]), Frame::Waiting(true)]),
        ),
        ("blocks", encoded(&[Frame::Blocks(place, 4, vec![[7; 16]; 2])])),
        ("report", encoded(&[Frame::Report(&report), Frame::Bye])),
        ("comparison", encoded(&[Frame::Report(&comparison)])),
        ("fault", encoded(&[Frame::Fault(&fault)])),
        ("alive", encoded(&[Frame::KeepAlive])),
        ("packed", packed(&[Frame::Data(&[7; 8192])])),
    ]
}

#[test]
fn the_fuzzers_begin_with_todays_frames() {
    let writes = std::env::var_os(WRITE).is_some();
    for (target, inputs) in [("receive", receive()), ("send", send()), ("frames", frames())] {
        let directory = directory().join(target);
        for (name, bytes) in &inputs {
            let path = directory.join(name);
            if writes {
                std::fs::write(&path, bytes).expect("an input");
            }
            let same = std::fs::read(&path).is_ok_and(|found| found == *bytes);
            assert!(same, "{}: set {WRITE}=1 and run this test to write it anew", path.display());
        }
        for found in std::fs::read_dir(&directory).expect("a corpus") {
            let name = found.expect("an input").file_name();
            let is_known = inputs.iter().any(|(known, _)| name == **known);
            assert!(is_known, "{target}/{}: from which frames?", name.display());
        }
    }
}

/// What begins with them gets far: an input that is refused at once shows a fuzzer nothing.
#[tokio::test]
async fn what_the_fuzzers_begin_with_is_taken() {
    let honest = ["everything", "small", "packed", "skip"];
    for (name, bytes) in receive().into_iter().filter(|(name, _)| honest.contains(name)) {
        let place = place();
        let report = received(&place.root, Said::of(&bytes)).await.expect(name);
        assert!(report.entries > 0, "{name}");
        place.assert_confined();
    }
}
