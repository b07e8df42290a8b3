//! Trees that are wide, deep or large.

mod support;

use std::os::fd::AsFd;

use ferry_files::Rates;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use support::{
    Trees, UID, mkdir, own, own_all, pipes, progress, source_options, target_options, write,
};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_wide_directory_goes_through_the_window() {
    let trees = Trees::quick();
    mkdir(&trees.source.join("wide"));
    for number in 0..9_000 {
        let path = trees.source.join(format!("wide/{number:05}-with-a-name-of-some-length"));
        std::fs::write(path, number.to_string()).expect("write");
    }
    own_all(&trees.source);
    let report = trees.pass().await;
    assert_eq!((report.entries, report.files_sent), (9_001, 9_000));
    let again = trees.pass().await;
    assert_eq!(again.unchanged, 9_001);
    let stats = ferry_files::scan(&trees.target, &CancellationToken::new()).expect("statistics");
    assert_eq!((stats.files, stats.directories), (9_000, 2));
}

#[tokio::test]
async fn many_small_directories_go_through_the_window() {
    let trees = Trees::quick();
    for number in 0..400 {
        let path = trees.source.join(format!("{}/{number}", number % 40));
        std::fs::create_dir_all(&path).expect("mkdir");
        for file in 0..3 {
            std::fs::write(path.join(file.to_string()), vec![1; file * 700]).expect("write");
        }
    }
    own_all(&trees.source);
    let report = trees.pass().await;
    assert_eq!(report.files_sent, 1200);
    trees.assert_equal();
}

/// Makes `depth` directories, one in the other, longer than any path may be.
fn deep(root: &std::path::Path, depth: usize) {
    let mut at: std::os::fd::OwnedFd = std::fs::File::open(root).expect("open").into();
    for level in 0..depth {
        nix::sys::stat::mkdirat(at.as_fd(), "directory", Mode::S_IRWXU).expect("mkdir");
        let owner = (Some(UID.into()), Some(UID.into()));
        nix::unistd::fchownat(
            at.as_fd(),
            "directory",
            owner.0,
            owner.1,
            nix::fcntl::AtFlags::empty(),
        )
        .expect("chown");
        if level % 100 == 0 {
            let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
            let file =
                nix::fcntl::openat(at.as_fd(), "z-file", flags, Mode::S_IRUSR).expect("file");
            nix::unistd::fchown(file.as_fd(), owner.0, owner.1).expect("chown");
        }
        at = nix::fcntl::openat(at.as_fd(), "directory", OFlag::O_DIRECTORY, Mode::empty())
            .expect("open");
    }
}

#[tokio::test]
async fn a_tree_deeper_than_any_path_is_walked_and_removed() {
    let trees = Trees::quick();
    write(&trees.source.join("kept"), "x");
    deep(&trees.source, 1500);
    let report = trees.pass().await;
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    assert_eq!(report.entries, 1500 + 15 + 1);
    assert!(trees.compare().await.is_equal());
    support::run(std::process::Command::new("rm").arg("-rf").arg(trees.source.join("directory")));
    let report = trees.pass().await;
    assert_eq!(report.deleted, 1500 + 14, "{report:?}");
    trees.pass().await;
    trees.assert_equal();
}

#[tokio::test]
async fn what_is_too_deep_is_refused_and_said() {
    let trees = Trees::quick();
    deep(&trees.source, 4200);
    let report = trees.pass().await;
    assert_eq!(report.refused.total, 1);
    let reason = &report.refused.items[0].reason;
    assert!(reason.contains("deeper than 4096"), "{reason}");
    assert!(report.refused.items[0].path.chars().count() < 500);
    for root in [&trees.source, &trees.target] {
        support::run(std::process::Command::new("rm").arg("-rf").arg(root.join("directory")));
    }
}

#[tokio::test]
async fn the_rate_limit_holds_and_progress_adds_up() {
    let trees = Trees::quick();
    write(&trees.source.join("file"), vec![3; 1_000_000]);
    let options = source_options();
    options.limits.set(Rates { bandwidth: Some(1_000_000), io: None });
    let (near, far) = pipes(64 * 1024);
    let (sender, receiver) = tokio::sync::watch::channel(ferry_files::Progress::default());
    let cancel = CancellationToken::new();
    let began = std::time::Instant::now();
    let (sent, received) = tokio::join!(
        ferry_files::send_pass(&trees.source, near, options, sender, cancel.clone()),
        ferry_files::receive_pass(&trees.target, far, target_options(), progress(), cancel),
    );
    assert_eq!(sent.expect("source"), received.expect("target"));
    let took = began.elapsed().as_secs_f64();
    assert!((0.8..8.0).contains(&took), "{took}");
    let last = receiver.borrow();
    assert_eq!((last.files_done, last.files_total), (1, Some(1)));
    assert_eq!((last.bytes_done, last.bytes_total), (1_000_000, Some(1_000_000)));
    assert!(last.scan_complete && last.bytes_on_wire > 1_000_000);
    assert_eq!(last.entries_scanned, 1);
}

#[tokio::test]
async fn flushing_both_ends_works() {
    let trees = Trees::new();
    write(&trees.source.join("file"), "x");
    let mut source = source_options();
    source.settle = true;
    let mut target = target_options();
    target.durable = true;
    let (sent, received) = trees.pass_with(source, target).await;
    assert_eq!(sent.expect("source"), received.expect("target"));
    trees.assert_equal();
}

#[test]
fn statistics_count_what_is_there() {
    let trees = Trees::quick();
    write(&trees.source.join("big"), vec![1; 100_000]);
    write(&trees.source.join("small"), "12345");
    std::fs::hard_link(trees.source.join("big"), trees.source.join("big-too")).expect("link");
    std::os::unix::fs::symlink("x", trees.source.join("link")).expect("symlink");
    own(&trees.source.join("link"));
    mkdir(&trees.source.join("d"));
    let cancel = CancellationToken::new();
    let stats = ferry_files::scan(&trees.source, &cancel).expect("statistics");
    assert_eq!((stats.files, stats.directories, stats.others), (2, 2, 1));
    assert_eq!(stats.bytes, 100_005);
    assert_eq!(stats.biggest[0].1, 100_000);
    assert!(stats.allocated >= 100_005, "{stats:?}");
    cancel.cancel();
    assert!(ferry_files::scan(&trees.source, &cancel).is_err());
}
