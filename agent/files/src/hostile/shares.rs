//! What a peer says of files that share: none of it changes a content or a time, or reaches anything that is not
//! the account's.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use ferry_proto::Fault;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::{
    PATIENCE, UID, assert_protocol_fault, closing, encoded, entry, frame_of, opening, progress,
    received_with, target_options,
};
use crate::entries::What;
use crate::extents::lie_together;
use crate::fuzzing::{Said, pipes};
use crate::protocol::{Ending, Frame, MAX_DATA, Place, RANGE, Range};
use crate::shares::{Part, Share};
use crate::{PassReport, TargetOptions};

const LENGTH: u64 = MAX_DATA as u64;

/// Runs `test` with a new directory of btrfs, mounted for it alone.
pub(crate) fn on_btrfs(test: impl AsyncFnOnce(&Path) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("unshare (run as root)");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (image, top) = (dir.path().join("image"), dir.path().join("top"));
        std::fs::create_dir(&top).expect("mkdir");
        let make = "truncate -s 400M $0; mkfs.btrfs -q $0; mount -o loop $0 $1";
        let made = Command::new("sh").args(["-euc", make]).args([&image, &top]).status();
        assert!(made.expect("sh").success());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test(&top));
        umount2(&top, MntFlags::MNT_DETACH).expect("umount");
    });
    thread.join().expect("the test in its own mounts");
}

fn path(path: &str) -> Vec<Vec<u8>> {
    path.split('/').map(|name| name.as_bytes().to_vec()).collect()
}

fn share(from: &str, to: &str, parts: &[(u64, u64, u64)]) -> Frame<'static> {
    let part = |&(from, to, length): &(u64, u64, u64)| Part { from, to, length };
    let parts = parts.iter().map(part).collect();
    Frame::Share(Share { from: path(from), to: path(to), parts })
}

const ALL: &[(u64, u64, u64)] = &[(0, 0, LENGTH)];

/// Bytes that are nowhere the same.
fn noise() -> Vec<u8> {
    let bytes = (0..LENGTH / 32).flat_map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes());
    bytes.collect()
}

/// A root with files of the account's and others, as old as an entry is that says nothing of its time.
fn filled(top: &Path) -> PathBuf {
    let root = top.join("root");
    std::fs::create_dir(&root).expect("mkdir");
    std::fs::create_dir(root.join("d")).expect("mkdir");
    let content = noise();
    let mut other = content.clone();
    other[70_000] ^= 1;
    for (name, content) in [
        ("root/a", &content),
        ("root/b", &content),
        ("root/d/in", &content),
        ("root/other", &other),
        ("root/theirs", &content),
        ("root/ballast", &content.repeat(64)),
        ("outside", &content),
    ] {
        std::fs::write(top.join(name), content).expect("write");
        let file = std::fs::File::open(top.join(name)).expect("open");
        file.set_modified(SystemTime::UNIX_EPOCH).expect("utimens");
    }
    symlink("a", root.join("link")).expect("symlink");
    symlink("..", root.join("up")).expect("symlink");
    let own = Command::new("chown").args(["-Rh", &format!("{UID}:{UID}")]).arg(&root).status();
    assert!(own.expect("chown").success());
    chown(root.join("theirs"), Some(0), Some(0)).expect("chown");
    root
}

/// Contents and times of all files.
fn contents(top: &Path) -> BTreeMap<PathBuf, (Vec<u8>, i64, i64)> {
    let names = ["a", "b", "d/in", "other", "theirs", "ballast", "../outside"];
    let all = names.iter().map(|name| top.join("root").join(name)).map(|path| {
        let meta = path.symlink_metadata().expect("metadata");
        let content = std::fs::read(&path).expect("read");
        (path, (content, meta.mtime(), meta.mtime_nsec()))
    });
    all.collect()
}

/// Whether two files lie in one place.
fn are_one(root: &Path, one: &str, other: &str) -> bool {
    let open = |name: &str| std::fs::File::open(root.join(name)).expect("open");
    lie_together((open(one), 0), (open(other), 0), LENGTH)
}

/// A pass that keeps the ballast if it is `listed`, and sends `n`; with what is said before and after its content.
async fn told(
    root: &Path,
    listed: bool,
    before: &[Frame<'static>],
    after: &[Frame<'static>],
) -> PassReport {
    let ballast = listed.then(|| entry(b"ballast", What::File(64 * LENGTH)));
    let new = entry(b"n", What::File(LENGTH));
    let place = Place { batch: 0, index: u16::from(listed) };
    let content = noise();
    let listing = [opening(ballast.into_iter().chain([new]).collect()), closing()].concat();
    let data = [
        encoded(before),
        encoded(&[Frame::Whole(place, Ending::Settled, &content)]),
        encoded(after),
        encoded(&[Frame::Done]),
    ];
    let said = Said { control: encoded(&listing), data: data.concat() };
    let options = TargetOptions { delete: false, ..target_options() };
    received_with(root, options, said).await.expect("the pass goes on")
}

#[test]
fn lies_about_what_files_share_change_nothing() {
    on_btrfs(async |top| {
        let root = filled(top);
        let before = contents(top);
        let far = i64::MAX as u64 - LENGTH;
        let lies = [
            share("a", "other", ALL),
            share("other", "a", &[(0, 0, far), (0, 0, 64 * 1024 + 1), (4096, 4096, LENGTH)]),
            share("a", "theirs", ALL),
            share("theirs", "b", ALL),
            share("link", "b", ALL),
            share("b", "link", ALL),
            share("up/outside", "b", ALL),
            share("a", "up/outside", ALL),
            share("a", "up/root/b", ALL),
            share("a", "d", ALL),
            share("a", "nowhere/at/all", ALL),
            share("a", "a", &[(0, 0, LENGTH), (0, 65_536, LENGTH), (far, far, LENGTH)]),
            share("a", "b", &[(far, 0, LENGTH), (0, LENGTH, LENGTH), (1, 2, LENGTH)]),
            share("a", "b/c", ALL),
        ];
        let report = told(&root, true, &[], &lies).await;
        let shared = 64 * 1024;
        // The first blocks of `other` are those of `a`, which may well be shared.
        assert_eq!(report.bytes_shared, shared, "{report:?}");
        assert_eq!(contents(top), before);
        for (one, other) in [("a", "b"), ("a", "theirs"), ("a", "../outside"), ("b", "../outside")]
        {
            assert!(!are_one(&root, one, other), "{one}, {other}");
        }
    });
}

#[test]
fn the_truth_is_taken_when_both_stand() {
    on_btrfs(async |top| {
        let root = filled(top);
        let before = contents(top);
        // Of one that is still to come, and of one that came.
        let early = [share("a", "n", ALL), share("n", "d/in", ALL)];
        let report = told(&root, true, &early, &[share("a", "b", ALL)]).await;
        assert_eq!(report.bytes_shared, 3 * LENGTH, "{report:?}");
        assert_eq!(contents(top), before);
        assert!(["b", "n", "d/in"].iter().all(|name| are_one(&root, "a", name)));
        // Again: they lie in one place.
        std::fs::remove_file(root.join("n")).expect("remove");
        let report = told(&root, true, &[], &[share("a", "b", ALL)]).await;
        assert_eq!(report.bytes_shared, 0, "{report:?}");
    });
}

#[test]
fn what_is_shared_already_or_a_hole_has_been_looked_at() {
    on_btrfs(async |top| {
        let root = filled(top);
        told(&root, true, &[], &[share("a", "b", ALL)]).await;
        assert!(are_one(&root, "a", "b"));
        std::fs::remove_file(root.join("n")).expect("remove");
        let lies = [share("a", "b", ALL), share("a", "d/in", ALL)];
        let report = told(&root, false, &[], &lies).await;
        assert_eq!(report.bytes_shared, 0, "that they share has used it up: {report:?}");
        // It would take for ever.
        let size = 1 << 62;
        for name in ["hole", "another"] {
            std::fs::File::create(root.join(name)).expect("create").set_len(size).expect("length");
            chown(root.join(name), Some(UID), Some(UID)).expect("chown");
        }
        std::fs::remove_file(root.join("n")).expect("remove");
        let lies = [share("hole", "another", &[(0, 0, size); 1000])];
        told(&root, true, &[], &lies).await;
    });
}

const MENDED: Place = Place { batch: 0, index: 0 };

/// A pass in which the file `m` is to be mended, and what is said when the target has told what it has of it.
async fn mended(root: &Path, size: u64, said: &[Frame<'static>]) -> Result<PassReport, Fault> {
    let (mut near, far) = pipes();
    let listed = [opening(vec![entry(b"m", What::File(size))]), closing()].concat();
    let options = TargetOptions { delete: false, ..target_options() };
    let receive = crate::receive_pass(root, far, options, progress(), CancellationToken::new());
    let lie = async {
        near.control.write_all(&encoded(&listed)).await.expect("the listing is heard");
        near.control.shutdown().await.expect("its end is heard");
        let blocks = encoded(&[Frame::Blocks(MENDED, 0, Vec::new())])[4];
        while frame_of(&mut near.control).await.0 != blocks {}
        near.data[0].write_all(&encoded(said)).await.expect("the contents are heard");
        near.data[0].shutdown().await.expect("their end is heard");
        let _ = near.control.read_to_end(&mut Vec::new()).await;
    };
    let (outcome, ()) = tokio::join!(tokio::time::timeout(PATIENCE, receive), lie);
    outcome.expect("the target ends in time")
}

#[test]
fn what_is_said_to_be_the_same_was_there_and_allows_nothing() {
    on_btrfs(async |top| {
        let root = filled(top);
        let file = std::fs::File::create(root.join("m")).expect("create");
        file.set_len(2 * RANGE).expect("length");
        chown(root.join("m"), Some(UID), Some(UID)).expect("chown");
        let part =
            |size, offset, length| Frame::Part(Range { place: MENDED, size, offset, length });
        let same = |range| {
            let end = Frame::PartEnd(Ending::Settled);
            vec![part(2 * RANGE, range * RANGE, RANGE), Frame::Same(RANGE), end]
        };
        let said = [same(0), same(1), vec![share("a", "b", ALL), Frame::Done]].concat();
        let report = mended(&root, 2 * RANGE, &said).await.expect("the pass goes on");
        assert_eq!((report.bytes_kept, report.bytes_shared), (2 * RANGE, 0), "{report:?}");
        // More than it had.
        for (offset, length) in [(0, 2 * RANGE + 1), (1, 2 * RANGE), (1 << 59, 1), (0, 1 << 60)] {
            let end = [Frame::PartEnd(Ending::Changed), Frame::Done];
            let lies = [part(1 << 60, offset, length), Frame::Same(length)];
            let said = [lies, end].concat();
            let fault = mended(&root, 1 + RANGE, &said).await.expect_err("more than there was");
            assert!(fault.message.contains("protocol"), "{fault}");
        }
    });
}

#[test]
fn no_more_is_compared_than_has_come() {
    on_btrfs(async |top| {
        let root = filled(top);
        let many = vec![share("a", "other", ALL); 1000];
        let report = told(&root, false, &[], &[many, vec![share("a", "b", ALL)]].concat()).await;
        assert_eq!(report.bytes_shared, 0, "the lies have used it up: {report:?}");
        assert!(!are_one(&root, "a", "b"));
    });
}

#[tokio::test]
async fn nobody_tells_what_is_shared_who_was_not_asked() {
    // In memory nothing is.
    let root = tempfile::tempdir_in("/dev/shm").expect("a temporary directory in /dev/shm");
    let listed = [opening(vec![entry(b"f", What::File(3))]), closing()].concat();
    let data = encoded(&[share("f", "g", ALL), Frame::Done]);
    let said = Said { control: encoded(&listed), data };
    let fault = received_with(root.path(), target_options(), said).await.expect_err("not asked");
    assert!(fault.message.contains("protocol"), "{fault}");
    // On the control stream nobody is.
    let listed = [opening(vec![]), vec![share("f", "g", ALL)]].concat();
    let said = Said { control: encoded(&listed), ..Said::default() };
    assert_protocol_fault(said, "a share on the control stream").await;
}
