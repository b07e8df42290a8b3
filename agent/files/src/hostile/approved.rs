//! A source that knows what is approved, and sends something else.

use std::os::fd::AsFd;
use std::sync::Arc;

use ferry_proto::approval::Sight;

use super::*;
use crate::Streams;
use crate::approvals::{self, Approvals};
use crate::creator;
use crate::digest;
use crate::entries::Link;
use crate::fuzzing::hear_answers;
use crate::halt::Halt;

const CONTENT: &[u8] = b"approved";
const TOOL: &[u8] = b"tool";
/// What the account's number is here, where it is another.
const HERE: u32 = 64_201;

/// A program of root's that is setuid.
fn tool() -> Entry {
    Entry { uid: 0, gid: 0, mode: 0o4755, ..entry(TOOL, What::File(CONTENT.len() as u64)) }
}

fn digest_of(content: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), content).expect("write");
    let fd = std::fs::File::open(file.path()).expect("open").into();
    digest::in_hex(&fd, &Halt::default(), |_| ()).expect("a digest")
}

/// The target, where this is approved.
fn options(entry: &Entry) -> TargetOptions {
    let seen = approvals::seen(entry, &digest_of(CONTENT)).expect("something to see");
    let path = ferry_proto::shown::path(&entry.name);
    let approved = Approvals::of(&[Sight { path, seen }]).expect("a path");
    TargetOptions { approved: Arc::new(approved), ..target_options() }
}

/// A pass that lists `entries`, sends these frames and ends.
fn pass(entries: Vec<Entry>, data: &[Frame<'_>]) -> Said {
    let mut frames = opening(entries);
    frames.extend(closing());
    let data = [data, &[Frame::Done]].concat();
    Said { control: encoded(&frames), data: encoded(&data) }
}

const PLACE: Place = Place { batch: 0, index: 0 };

#[tokio::test]
async fn only_the_content_that_was_approved_comes_to_stand() {
    let place = place();
    let send = |bytes| pass(vec![tool()], &[Frame::Whole(PLACE, Ending::Settled, bytes)]);
    for bytes in [&b"APPROVED"[..], b"approved and more", b""] {
        let report = received_with(&place.root, options(&tool()), send(bytes)).await;
        let report = report.expect("the pass goes on");
        let reason = &report.refused.items[0].reason;
        assert_eq!(reason, "it is not what was approved any more: its content is another");
        assert_eq!(std::fs::read_dir(&place.root).expect("readdir").count(), 0);
    }
    let report = received_with(&place.root, options(&tool()), send(CONTENT)).await;
    assert!(report.expect("the pass").refused.is_empty());
    let meta = place.root.join("tool").metadata().expect("it stands");
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (0, 0, 0o4755));
}

#[tokio::test]
async fn a_content_of_which_only_a_part_has_come_is_plain() {
    let capable = |uid| {
        let name = b"security.capability".to_vec();
        let attributes = vec![Attribute { name, value: vec![1, 0xff] }];
        Entry { uid, mode: 0o755, attributes, ..tool() }
    };
    let ours = |mode| Entry { uid: UID, gid: UID, mode, ..tool() };
    let approved = [tool(), capable(0), capable(UID)].map(|file| (options(&file), file, false));
    // Of what needs no approval, only what will have no rights of its own is the account's before it is whole.
    let allowed = [(ours(0o4755), false), (ours(0o755), true)];
    let allowed = allowed.map(|(file, is_plain)| (target_options(), file, is_plain));
    for (options, file, is_plain) in approved.into_iter().chain(allowed) {
        let place = place();
        let size = CONTENT.len() as u64;
        let range = Range { place: PLACE, size, offset: 0, length: size };
        let data = [Frame::Part(range), Frame::Data(CONTENT)];
        let mut said = pass(vec![file.clone()], &[]);
        said.data = encoded(&data);
        received_with(&place.root, options, said).await.expect_err("it never ends");
        let root = std::fs::File::open(&place.root).expect("open");
        let is_theirs = is_plain && creator::is_possible(root.as_fd());
        let found: Vec<_> = std::fs::read_dir(&place.root).expect("readdir").collect();
        assert_eq!(found.len(), 1);
        for entry in found {
            let meta = entry.expect("entry").metadata().expect("metadata");
            assert_eq!(meta.uid(), if is_theirs { UID } else { 0 }, "{file:?}");
            assert!(is_plain || meta.mode() & 0o7777 == 0o600, "{file:?}: {meta:?}");
        }
    }
}

#[tokio::test]
async fn nobody_writes_on_when_the_content_has_been_looked_at() {
    let size = CONTENT.len() as u64;
    let range = Range { place: PLACE, size, offset: 0, length: size };
    let sends = |bytes| [Frame::Part(range), Frame::Data(bytes), Frame::PartEnd(Ending::Settled)];
    for _ in 0..20 {
        let place = place();
        let (control, far) = tokio::io::duplex(1 << 20);
        let (data, data_far): (Vec<_>, _) = (0..2).map(|_| tokio::io::duplex(1 << 20)).unzip();
        let target = Streams { control: far, data: data_far };
        let cancel = CancellationToken::new();
        let receive =
            crate::receive_pass(&place.root, target, options(&tool()), progress(), cancel);
        let said = pass(vec![tool()], &[]).control;
        let send = async {
            let (mut hear, mut say) = tokio::io::split(control);
            say.write_all(&said).await.expect("the control stream");
            // Only when it is asked for may it come.
            hear_answers(&mut hear, 2).await;
            let mut data = data;
            for (stream, bytes) in data.iter_mut().zip([CONTENT, &b"APPROVED"[..]]) {
                let _ = stream.write_all(&encoded(&sends(bytes))).await;
            }
            let mut rest = Vec::new();
            let _ = hear.read_to_end(&mut rest).await;
        };
        let (received, ()) = tokio::join!(tokio::time::timeout(PATIENCE, receive), send);
        received.expect("it ends in time").expect_err("two ranges of one");
        if let Ok(content) = std::fs::read(place.root.join("tool")) {
            let mode = place.root.join("tool").metadata().expect("metadata").mode();
            assert!(mode & 0o4000 == 0 || content == CONTENT, "{mode:o} {content:?}");
        }
    }
}

#[tokio::test]
async fn what_is_claimed_otherwise_than_it_was_approved_is_refused() {
    let capable = Attribute { name: b"security.capability".to_vec(), value: vec![1] };
    let null = |minor| What::Device(Device { block: false, major: 1, minor });
    let device = Entry { mode: 0o666, uid: 0, ..entry(TOOL, null(3)) };
    for (approved, claimed) in [
        (tool(), Entry { mode: 0o6755, ..tool() }),
        (tool(), Entry { uid: 1, ..tool() }),
        (tool(), Entry { what: What::File(9), ..tool() }),
        (tool(), Entry { attributes: vec![capable], ..tool() }),
        (tool(), Entry { link: Some(Link { group: 1, names: 2 }), ..tool() }),
        (tool(), entry(TOOL, What::Symlink(b"/bin/sh".to_vec()))),
        (tool(), device.clone()),
        (device.clone(), Entry { what: null(1), ..device.clone() }),
        (device.clone(), Entry { uid: UID, ..device }),
    ] {
        let place = place();
        let said = pass(vec![claimed], &[]);
        let report = received_with(&place.root, options(&approved), said).await;
        let report = report.expect("the pass goes on");
        assert!(report.refused.items[0].reason.contains("approved any more"), "{report:?}");
        assert_eq!(std::fs::read_dir(&place.root).expect("readdir").count(), 0);
    }
}

#[tokio::test]
async fn what_means_somebody_else_here_is_refused_though_it_is_approved() {
    let device = |major, minor| What::Device(Device { block: true, major, minor });
    // Another customer's number; the account's own here, which is nobody's there; a disk of this server.
    for claimed in [
        Entry { uid: 1001, ..tool() },
        Entry { gid: HERE, ..tool() },
        Entry { mode: 0o600, uid: 0, ..entry(TOOL, device(253, 3)) },
    ] {
        let place = place();
        std::os::unix::fs::chown(&place.root, Some(HERE), Some(HERE)).expect("chown");
        let ids = IdMap::of((UID, HERE), (UID, HERE));
        let options = TargetOptions { ids, ..options(&claimed) };
        let said = pass(vec![claimed], &[]);
        let report = received_with(&place.root, options, said).await.expect("the pass goes on");
        assert!(report.refused.items[0].reason.contains("another server"), "{report:?}");
        assert_eq!(std::fs::read_dir(&place.root).expect("readdir").count(), 0);
    }
}

#[tokio::test]
async fn an_approval_is_for_its_path_alone() {
    let place = place();
    let elsewhere = Entry { name: b"other".to_vec(), ..tool() };
    let report = received_with(&place.root, options(&tool()), pass(vec![elsewhere], &[])).await;
    assert_eq!(report.expect("the pass goes on").refused.total, 1);
    assert_eq!(std::fs::read_dir(&place.root).expect("readdir").count(), 0);
}

#[tokio::test]
async fn what_is_approved_does_not_come_along_with_a_directory_that_moves() {
    let place = place();
    let mut frames = changes(&[&[b"bin"]], vec![entry(b"bin2", What::Directory)]);
    frames.extend(closing());
    let inside = Entry { name: b"bin/tool".to_vec(), ..tool() };
    std::fs::create_dir(place.root.join("bin")).expect("mkdir");
    let said = control(encoded(&frames));
    let fault = received_with(&place.root, options(&inside), said).await.expect_err("a move");
    assert_eq!(fault.class, FaultClass::Transient, "{fault}");
    assert!(fault.message.contains("below bin is approved"), "{fault}");
    assert!(place.root.join("bin").exists());
}
