//! Passes that are cut off, cancelled or disturbed: the next one ends equal.

mod support;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ferry_files::{NoteKind, Rates, Streams};
use ferry_proto::FaultClass;
use support::{Trees, UID, mkdir, own_all, pipes, progress, source_options, target_options, write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

/// A stream that breaks after so many bytes in both directions.
struct Breaking<S> {
    inner: S,
    left: Arc<AtomicU64>,
}

impl<S> Breaking<S> {
    fn spend(&self, bytes: usize) -> std::io::Result<()> {
        let spent = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(bytes as u64)
        });
        spent.map(drop).map_err(|_| std::io::ErrorKind::ConnectionReset.into())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Breaking<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        if polled.is_ready() {
            self.spend(buffer.filled().len() - before)?;
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Breaking<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.spend(bytes.len().min(1000))?;
        Pin::new(&mut self.inner).poll_write(context, &bytes[..bytes.len().min(1000)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

fn some_tree(root: &Path) {
    for d in 0..6 {
        mkdir(&root.join(format!("d{d}/sub")));
        for f in 0..10 {
            let path = root.join(format!("d{d}/f{f}"));
            write(&path, vec![f; 1000 * usize::from(f) * usize::from(f)]);
            let other = root.join(format!("d{}/sub/link{d}-{f}", (d + 3) % 6));
            mkdir(other.parent().expect("a parent"));
            std::fs::hard_link(&path, other).expect("link");
        }
    }
    own_all(root);
}

/// A fixed sequence of numbers that look random.
fn numbers(mut seed: u64) -> impl Iterator<Item = u64> {
    std::iter::repeat_with(move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    })
}

#[tokio::test]
async fn after_a_cut_anywhere_the_next_pass_ends_equal() {
    for (round, number) in numbers(0x0fe4_41e5).take(20).enumerate() {
        let trees = Trees::quick();
        some_tree(&trees.source);
        for limit in [number % 500_000, number % 7_001] {
            let (near, far) = pipes(8 * 1024);
            let left = Arc::new(AtomicU64::new(limit));
            let breaking = |inner| Breaking { inner, left: Arc::clone(&left) };
            let near = Streams {
                control: breaking(near.control),
                data: near.data.into_iter().map(breaking).collect(),
            };
            let cancel = CancellationToken::new();
            let (sent, received) = tokio::join!(
                ferry_files::send_pass(
                    &trees.source,
                    near,
                    source_options(),
                    progress(),
                    cancel.clone()
                ),
                ferry_files::receive_pass(&trees.target, far, target_options(), progress(), cancel),
            );
            let fault = sent.expect_err("the source notices");
            assert_eq!(fault.class, FaultClass::Transient, "round {round}: {fault}");
            assert!(received.is_err());
        }
        trees.pass().await;
        trees.assert_equal();
    }
}

#[tokio::test]
async fn a_pass_dropped_midway_stops_working_and_the_next_ends_equal() {
    for number in numbers(77).take(10) {
        let trees = Trees::quick();
        some_tree(&trees.source);
        let pause = Duration::from_micros(number % 20_000);
        let _ =
            tokio::time::timeout(pause, trees.pass_with(source_options(), target_options())).await;
        trees.pass().await;
        trees.assert_equal();
    }
}

#[tokio::test]
async fn two_passes_do_not_change_one_tree_at_once() {
    let trees = Trees::quick();
    some_tree(&trees.source);
    // The first pass's source says nothing.
    let (silent, far) = pipes(4096);
    let cancel = CancellationToken::new();
    let root = trees.target.clone();
    let first = tokio::spawn({
        let cancel = cancel.clone();
        async move { ferry_files::receive_pass(&root, far, target_options(), progress(), cancel).await }
    });
    let mut greeting = [0; 15];
    let (mut reading, _writing) = tokio::io::split(silent.control);
    tokio::io::AsyncReadExt::read_exact(&mut reading, &mut greeting).await.expect("it begins");
    let mut second = std::pin::pin!(trees.pass());
    let early = tokio::time::timeout(Duration::from_millis(500), &mut second).await;
    assert!(early.is_err(), "the second pass did not wait");
    assert_eq!(std::fs::read_dir(&trees.target).expect("readdir").count(), 0);
    cancel.cancel();
    second.await;
    trees.assert_equal();
    let fault = first.await.expect("the task").expect_err("cancelled");
    assert_eq!(fault.class, FaultClass::Cancelled);
}

#[tokio::test]
async fn cancelling_ends_both_ends_soon() {
    let trees = Trees::quick();
    some_tree(&trees.source);
    let options = source_options();
    options.limits.set(Rates { bandwidth: Some(10_000), io: None });
    let (near, far) = pipes(4096);
    let (here, there) = (CancellationToken::new(), CancellationToken::new());
    let began = Instant::now();
    let (sender, mut receiver) = tokio::sync::watch::channel(ferry_files::Progress::default());
    let (sent, received, ()) = tokio::join!(
        ferry_files::send_pass(&trees.source, near, options, sender, here.clone()),
        ferry_files::receive_pass(&trees.target, far, target_options(), progress(), there),
        async {
            let under_way =
                receiver.wait_for(|p| p.entries_scanned > 0 && p.bytes_on_wire > 0).await;
            under_way.expect("progress is given out");
            here.cancel();
        }
    );
    for fault in [sent.expect_err("source"), received.expect_err("target")] {
        assert_eq!(fault.class, FaultClass::Cancelled, "{fault}");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_stopped_target_tells_the_source_why() {
    let trees = Trees::quick();
    some_tree(&trees.source);
    std::fs::remove_dir(&trees.target).expect("rmdir");
    let (sent, received) = trees.pass_with(source_options(), target_options()).await;
    let (sent, received) = (sent.expect_err("source"), received.expect_err("target"));
    assert_eq!((sent.class, received.class), (FaultClass::Precondition, FaultClass::Precondition));
    assert!(sent.to_string().contains(&received.message), "{sent}");
}

/// Changes files below `root` as fast as it can until told to stop, then ends.
fn writer(root: &Path, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let (root, stop) = (root.to_owned(), Arc::clone(stop));
    std::thread::spawn(move || {
        for number in numbers(5) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let path = root.join(format!("d{}/f{}", number % 6, number / 6 % 10));
            match number / 60 % 4 {
                0 => {
                    let _ = std::fs::remove_file(&path);
                }
                1 => {
                    let new = path.with_extension("new");
                    let _ = std::fs::write(&new, number.to_string());
                    let _ = std::os::unix::fs::chown(&new, Some(UID), Some(UID));
                    let _ = std::fs::rename(new, &path);
                }
                _ => {
                    if let Ok(file) = std::fs::OpenOptions::new().write(true).open(&path) {
                        let _ = file.write_all_at(&number.to_le_bytes(), number % 1000);
                    }
                }
            }
        }
    })
}

#[tokio::test]
async fn what_changes_meanwhile_is_caught_by_the_pass_after() {
    let trees = Trees::quick();
    some_tree(&trees.source);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = writer(&trees.source, &stop);
    let mut disturbed = 0;
    let mut passes = 0;
    let deadline = Instant::now() + Duration::from_secs(20);
    while passes < 8 || (disturbed == 0 && Instant::now() < deadline) {
        passes += 1;
        let (sent, received) = trees.pass_with(source_options(), target_options()).await;
        assert!(sent.is_ok(), "{sent:?}");
        disturbed += received.expect("target").changed_while_read;
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("the writer");
    own_all(&trees.source);
    assert!(disturbed > 0, "the writer disturbed nothing");
    let report = trees.pass().await;
    assert_eq!(report.changed_while_read, 0);
    trees.assert_equal();
}

#[tokio::test]
async fn a_file_that_grows_while_read_is_noted_and_comes_again() {
    let trees = Trees::quick();
    let log = trees.source.join("log");
    write(&log, vec![b'x'; 30_000_000]);
    let stop = Arc::new(AtomicBool::new(false));
    let appender = {
        let (log, stop) = (log.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let file = std::fs::OpenOptions::new().append(true).open(log).expect("open");
            while !stop.load(Ordering::Relaxed) {
                let _ = std::io::Write::write_all(&mut &file, b"line\n");
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    };
    let report = trees.pass().await;
    stop.store(true, Ordering::Relaxed);
    appender.join().expect("the appender");
    assert_eq!(report.changed_while_read, 1, "{report:?}");
    assert_eq!(report.notes.items[0].kind, NoteKind::Changed);
    let report = trees.pass().await;
    assert_eq!((report.changed_while_read, report.files_sent), (0, 1));
    trees.assert_equal();
}

#[tokio::test]
async fn a_torn_read_is_not_trusted_even_if_time_and_size_are_put_back() {
    let trees = Trees::quick();
    let file = trees.source.join("file");
    write(&file, vec![b'x'; 2_000_000]);
    let before = file.metadata().expect("metadata").modified().expect("a time");
    let options = source_options();
    options.limits.set(Rates { bandwidth: Some(2_000_000), io: None });
    let (near, far) = pipes(4096);
    let (sender, mut receiver) = tokio::sync::watch::channel(ferry_files::Progress::default());
    let cancel = CancellationToken::new();
    let (sent, received, ()) = tokio::join!(
        ferry_files::send_pass(&trees.source, near, options, sender, cancel.clone()),
        ferry_files::receive_pass(&trees.target, far, target_options(), progress(), cancel),
        async {
            receiver.wait_for(|p| p.bytes_done > 0).await.expect("it begins to be read");
            let writing = std::fs::OpenOptions::new().write(true).open(&file).expect("open");
            writing.write_all_at(b"y", 0).expect("write");
            writing.set_modified(before).expect("the time put back");
        }
    );
    assert_eq!(sent.expect("source"), received.clone().expect("target"));
    assert_eq!(received.expect("target").changed_while_read, 1);
    let report = trees.pass().await;
    assert_eq!((report.changed_while_read, report.files_sent), (0, 1));
    trees.assert_equal();
}

#[tokio::test]
async fn symlinks_swapped_in_during_the_walk_lead_nowhere() {
    let trees = Trees::quick();
    let outside = trees.dir.path().join("outside");
    mkdir(&outside);
    write(&outside.join("f"), "SECRET");
    write(&outside.join("precious"), "precious");
    for d in 0..40 {
        mkdir(&trees.source.join(format!("d{d}")));
        write(&trees.source.join(format!("d{d}/f")), "plain");
    }
    own_all(trees.dir.path());
    let stop = Arc::new(AtomicBool::new(false));
    let swaps = Arc::new(AtomicU64::new(0));
    let swappers: Vec<_> = [&trees.source, &trees.target]
        .map(|root| {
            let (root, outside) = (root.clone(), outside.clone());
            let (stop, swaps) = (Arc::clone(&stop), Arc::clone(&swaps));
            std::thread::spawn(move || swap_until(&root, &outside, &stop, &swaps))
        })
        .into();
    let mut passes = 0;
    let began = Instant::now();
    let is_little = |passes| passes < 4 || swaps.load(Ordering::Relaxed) < 100;
    while began.elapsed() < Duration::from_secs(3) || is_little(passes) {
        assert!(began.elapsed() < Duration::from_secs(120), "{passes} passes, {swaps:?} swaps");
        let (sent, received) = trees.pass_with(source_options(), target_options()).await;
        assert!(sent.is_ok() && received.is_ok(), "{sent:?} {received:?}");
        passes += 1;
    }
    stop.store(true, Ordering::Relaxed);
    swappers.into_iter().for_each(|swapper| swapper.join().expect("a swapper"));
    // Nothing came from outside, nothing went there.
    let mut names: Vec<_> = std::fs::read_dir(&outside)
        .expect("readdir")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["f", "precious"]);
    assert_eq!(std::fs::read_to_string(outside.join("f")).expect("read"), "SECRET");
    let found = support::run(
        std::process::Command::new("find").arg(&trees.target).args(["-type", "f", "-size", "6c"]),
    );
    assert_eq!(found, "", "the secret was copied");
    std::fs::remove_dir_all(&trees.target).expect("rm");
    mkdir(&trees.target);
    trees.pass().await;
    trees.assert_equal();
}

/// Puts symlinks to `outside` and to its files in the place of directories and files, and back.
fn swap_until(root: &Path, outside: &Path, stop: &AtomicBool, swaps: &AtomicU64) {
    for number in numbers(11) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let directory = root.join(format!("d{}", number % 40));
        let (path, target) = match number / 40 % 2 {
            0 => (directory, outside.to_owned()),
            _ => (directory.join("f"), outside.join("f")),
        };
        let (aside, link) = (path.with_extension("aside"), path.with_extension("link"));
        let swapped = std::os::unix::fs::symlink(target, &link)
            .and_then(|()| std::fs::rename(&path, &aside))
            .and_then(|()| std::fs::rename(&link, &path));
        // A pass may have removed or replaced any of these meanwhile.
        let _ = std::fs::remove_file(&link);
        if swapped.is_ok() {
            swaps.fetch_add(1, Ordering::Relaxed);
            std::thread::yield_now();
            let _ = std::fs::remove_file(&path);
        }
        let _ = std::fs::rename(&aside, &path);
    }
}
