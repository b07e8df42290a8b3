//! Files that share what they hold at the source share it at the target, where both file systems can.

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ferry_files::journal::{Backend, Plan, Watch, Whose};
use ferry_files::{PassReport, SourceOptions, TargetOptions};
use support::{Trees, UID, in_own_mounts, mount_new, own_all, run, source_options, target_options};

const MIB: u64 = 1024 * 1024;

/// How to make and mount file systems whose files can share.
const SHARING: [(&str, &str); 3] =
    [("mkfs.xfs", "loop"), ("mkfs.btrfs", "loop"), ("mkfs.btrfs", "loop,compress-force=zstd")];

/// An image, a copy of it, one that was overwritten in part, one that ends within a block with its copy, and a
/// sparse one with its copy: 14 MiB that look like 32. And one that is equal, but shares nothing.
const IMAGES: &str = "
    seq 1000000 | head -c 6M > image
    cp --reflink=always image copy
    cp --reflink=always image part
    seq 7000000 8000000 | head -c 1M | dd status=none of=part bs=1M seek=2 conv=notrunc
    seq 2000000 3000000 | head -c 6000001 > odd
    cp --reflink=always odd odd-copy
    truncate -s 20M sparse
    seq 4000000 5000000 | head -c 1M | dd status=none of=sparse bs=1M seek=10 conv=notrunc
    mkdir below
    cp --reflink=always sparse below/sparse
    seq 1000000 | head -c 6M > other; echo small > small; cp --reflink=always small small-copy";

/// Two trees on such file systems.
fn trees((make, options): (&str, &str)) -> Trees {
    let trees = Trees::new();
    [&trees.source, &trees.target].into_iter().for_each(|root| mount_new(make, options, root));
    trees
}

/// Changes the source.
fn does(trees: &Trees, script: &str) {
    run(Command::new("sh").args(["-euc", script]).current_dir(&trees.source));
    own_all(&trees.source);
    run(Command::new("sync").arg("-f").arg(&trees.source));
}

/// A pass after which both are equal.
async fn pass(trees: &Trees) -> PassReport {
    let report = trees.pass().await;
    trees.assert_equal();
    assert!(report.refused.is_empty(), "{report:?}");
    report
}

/// How many bytes of a file at the target lie where another has them too.
fn shared(trees: &Trees, name: &str) -> u64 {
    run(Command::new("sync").arg("-f").arg(&trees.target));
    let said = run(Command::new("filefrag").args(["-v", "-b1"]).arg(trees.target.join(name)));
    let shared = said.lines().filter(|line| line.contains("shared"));
    shared.map(|line| line.split(':').nth(3).unwrap().trim().parse::<u64>().unwrap()).sum()
}

/// How many bytes of the target are in use.
fn used(trees: &Trees) -> u64 {
    run(Command::new("sync").arg("-f").arg(&trees.target));
    let said = run(Command::new("stat").args(["-f", "-c", "%b %f %S"]).arg(&trees.target));
    let numbers: Vec<u64> = said.split_whitespace().map(|n| n.parse().unwrap()).collect();
    (numbers[0] - numbers[1]) * numbers[2]
}

#[test]
fn what_shares_at_the_source_shares_at_the_target() {
    for on in SHARING {
        in_own_mounts(async move || {
            let trees = trees(on);
            does(&trees, IMAGES);
            let before = used(&trees);
            let report = pass(&trees).await;
            let wanted = 6 * MIB + 5 * MIB + MIB + 6_000_001;
            assert!((wanted - 4096..=wanted).contains(&report.bytes_shared), "{on:?}: {report:?}");
            for (name, least) in [
                ("image", 6 * MIB),
                ("copy", 6 * MIB),
                ("part", 5 * MIB),
                ("odd-copy", 5 * MIB),
                ("below/sparse", MIB),
            ] {
                assert!(shared(&trees, name) >= least, "{on:?}: {name}");
            }
            assert_eq!(shared(&trees, "other"), 0, "{on:?}: it is equal, and shares nothing");
            // Another 6 MiB are `other`, and on btrfs those of which `part` shares all but one: an extent is kept whole.
            assert!(used(&trees) - before < 28 * MIB, "{on:?}: {before}, {}", used(&trees));
            let again = pass(&trees).await;
            let done = (again.files_sent, again.metadata_changed, again.bytes_shared);
            assert_eq!(done, (0, 0, 0), "{on:?}: {again:?}");
            assert!(trees.compare().await.is_equal());
        });
    }
}

#[test]
fn what_is_new_shares_with_what_is_there() {
    for on in SHARING {
        in_own_mounts(async move || {
            let trees = trees(on);
            does(&trees, IMAGES);
            pass(&trees).await;
            does(&trees, "cp --reflink=always image new");
            let report = pass(&trees).await;
            assert_eq!(report.files_sent, 1, "{on:?}: {report:?}");
            assert!(report.bytes_shared >= 6 * MIB, "{on:?}: {report:?}");
            assert!(shared(&trees, "new") >= 6 * MIB, "{on:?}");
            // What is only mended goes on to share the rest, which is not compared again.
            does(
                &trees,
                "seq 9000000 9900000 | head -c 1M | dd status=none of=new bs=1M seek=4 conv=notrunc",
            );
            let mended = pass(&trees).await;
            assert!(mended.bytes_kept >= 4 * MIB, "{on:?}: {mended:?}");
            assert!(mended.bytes_shared < MIB, "{on:?}: {mended:?}");
            assert!((4 * MIB..=5 * MIB).contains(&shared(&trees, "new")), "{on:?}");
        });
    }
}

#[test]
fn a_pass_over_what_has_changed_shares_what_it_sends() {
    in_own_mounts(async || {
        let trees = trees(SHARING[1]);
        does(&trees, IMAGES);
        let root = std::fs::File::open(&trees.source).expect("open");
        let watch = Watch::start(root.into(), Backend::Renames, Whose::Others).expect("fanotify");
        let watched = Arc::new(watch).tree(&trees.source).expect("watched");
        pass(&trees).await;
        // Nothing else is touched.
        let script = format!(
            "for n in one two; do cp --reflink=always image $n; chown {UID}:{UID} $n; done"
        );
        run(Command::new("sh").args(["-euc", &script]).current_dir(&trees.source));
        let plan = Plan::of(&watched.take(), &trees.source, []).expect("the root").expect("known");
        let options = SourceOptions { plan: Some(Arc::new(plan)), ..source_options() };
        let (sent, received) = trees.pass_with(options, target_options()).await;
        let report = received.expect("the target's end");
        assert_eq!(sent.expect("the source's end"), report);
        trees.assert_equal();
        // With each other; what was not listed is not looked at.
        assert_eq!((report.files_sent, report.bytes_shared), (2, 6 * MIB), "{report:?}");
    });
}

#[test]
fn a_pass_that_has_no_time_for_it_shares_nothing() {
    in_own_mounts(async || {
        let trees = trees(SHARING[0]);
        does(&trees, IMAGES);
        for is_source in [true, false] {
            let source = SourceOptions { share: !is_source, ..source_options() };
            let target = TargetOptions { share: is_source, ..target_options() };
            let (_, received) = trees.pass_with(source, target).await;
            let report = received.expect("the target's end");
            assert_eq!((report.files_sent > 0, report.bytes_shared), (true, 0), "{report:?}");
            trees.assert_equal();
            run(Command::new("sh").args(["-euc", "rm -r *"]).current_dir(&trees.target));
        }
    });
}

#[test]
fn where_one_end_cannot_share_all_is_copied() {
    for (source, target) in [("mkfs.btrfs", "mkfs.ext4"), ("mkfs.ext4", "mkfs.xfs")] {
        in_own_mounts(async move || {
            let trees = Trees::new();
            mount_new(source, "loop", &trees.source);
            mount_new(target, "loop", &trees.target);
            let images = match source {
                "mkfs.ext4" => IMAGES.replace("--reflink=always", "--reflink=auto"),
                _ => IMAGES.to_owned(),
            };
            does(&trees, &format!("rm -rf lost+found; {images}"));
            let report = pass(&trees).await;
            assert_eq!(report.bytes_shared, 0, "{report:?}");
            assert!(report.notes.is_empty(), "{report:?}");
        });
    }
}

#[test]
fn what_is_shared_and_written_to_meanwhile_is_not_corrupted() {
    for on in [SHARING[0], SHARING[1]] {
        in_own_mounts(async move || {
            let trees = trees(on);
            does(&trees, IMAGES);
            let (root, is_over) = (trees.source.clone(), Arc::new(AtomicBool::new(false)));
            let over = Arc::clone(&is_over);
            let writing = std::thread::spawn(move || write_until(&root, &over));
            for _ in 0..3 {
                let report = trees.pass().await;
                assert!(report.refused.is_empty(), "{on:?}: {report:?}");
            }
            is_over.store(true, Ordering::Relaxed);
            writing.join().expect("the writer");
            does(&trees, "cp --reflink=always copy last");
            pass(&trees).await;
            assert!(trees.compare().await.is_equal());
        });
    }
}

/// Clones an image again and again, and overwrites a part of the clone.
fn write_until(root: &Path, is_over: &AtomicBool) {
    let script = "
        cp --reflink=always image copy
        seq $0 9999999 | head -c 1M | dd status=none of=copy bs=1M seek=$(($0 % 6)) conv=notrunc
        cp --reflink=always copy part";
    let mut round = 0;
    while !is_over.load(Ordering::Relaxed) {
        round += 1;
        run(Command::new("sh").args(["-euc", script, &round.to_string()]).current_dir(root));
    }
}
