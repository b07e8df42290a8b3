//! Either end is killed (-9) after so many bytes by chance; the next pass goes on, and the one that is left alone
//! ends equal. The ends are processes of their own: this program, run again.

mod support;

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, UNIX_EPOCH};

use ferry_files::Streams;
use support::{Trees, mkdir, own_all, progress, source_options, target_options, write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// How often an end is killed; all of the 200 times if this variable is set.
const OFTEN: &str = "FERRY_KILLS";
const SAMPLE: u64 = 16;
/// What tells a process that it is an end: which, its root, the port, and after how many bytes it dies.
const END: &str = "FERRY_END";
const SEED: u64 = 11;
/// Control and data streams.
const STREAMS: usize = 3;

/// Numbers that look random and are the same each time (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Writes a file with a time that no other one has: those of one tick and one length look the same.
fn put(path: &Path, content: Vec<u8>) {
    static WRITTEN: AtomicU64 = AtomicU64::new(1 << 60);
    write(path, content);
    let time = UNIX_EPOCH + Duration::from_nanos(WRITTEN.fetch_add(1, Ordering::Relaxed));
    std::fs::File::options()
        .write(true)
        .open(path)
        .and_then(|f| f.set_modified(time))
        .expect("time");
}

/// Small files, a large one that is mended where it is, links.
fn make(root: &Path) {
    for directory in 0..20 {
        let directory = root.join(format!("d{directory}"));
        mkdir(&directory);
        (0..40).for_each(|file| put(&directory.join(format!("f{file}")), vec![file; 3_000]));
        std::fs::hard_link(directory.join("f0"), directory.join("link")).expect("link");
    }
    let noise: Vec<u8> =
        (0..24 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    write(&root.join("large"), noise);
    own_all(root);
}

/// Something changes at the source.
fn change(root: &Path, numbers: &mut Numbers) {
    let large = std::fs::File::options().write(true).open(root.join("large")).expect("open");
    for _ in 0..20 {
        let at = numbers.below(24 << 20);
        large.write_all_at(&[numbers.below(256) as u8; 5_000], at).expect("write");
    }
    for _ in 0..60 {
        let directory = root.join(format!("d{}", numbers.below(20)));
        let path = directory.join(format!("f{}", numbers.below(50)));
        match numbers.below(6) {
            0 => drop(std::fs::remove_file(&path)),
            1 => drop(std::fs::rename(&path, directory.join("renamed"))),
            2 => drop(std::fs::hard_link(directory.join("f1"), &path)),
            _ => {
                let _ = std::fs::remove_file(&path);
                put(&path, vec![numbers.below(256) as u8; numbers.below(9_000) as usize]);
            }
        }
    }
}

/// One end, if this process is to be one.
#[tokio::test]
async fn an_end() {
    let Ok(told) = std::env::var(END) else { return };
    let [which, root, port, last] =
        told.splitn(4, '|').collect::<Vec<_>>().try_into().expect("END");
    let last = Arc::new(AtomicU64::new(last.parse().expect("a number of bytes")));
    let root = PathBuf::from(root);
    let (mut all, cancel) = (Vec::new(), CancellationToken::new());
    if which == "source" {
        let port: u16 = port.parse().expect("a port");
        while all.len() < STREAMS {
            all.push(TcpStream::connect(("127.0.0.1", port)).await.expect("the target listens"));
        }
        let sent = ferry_files::send_pass(
            &root,
            streams(all, &last),
            source_options(),
            progress(),
            cancel,
        );
        sent.await.expect("the source's end");
    } else {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        std::fs::write(root.with_extension("port.new"), port.to_string()).expect("write");
        std::fs::rename(root.with_extension("port.new"), root.with_extension("port"))
            .expect("rename");
        while all.len() < STREAMS {
            let coming = tokio::time::timeout(Duration::from_secs(5), listener.accept());
            all.push(coming.await.expect("a source that lives").expect("the source").0);
        }
        let received = ferry_files::receive_pass(
            &root,
            streams(all, &last),
            target_options(),
            progress(),
            cancel,
        );
        received.await.expect("the target's end");
    }
}

/// A stream of an end that dies when so many bytes have crossed all of its streams.
struct Mortal {
    stream: TcpStream,
    left: Arc<AtomicU64>,
}

impl Mortal {
    fn crossed(&self, bytes: usize) {
        let bytes = bytes as u64;
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            Some(left.saturating_sub(bytes))
        });
        if left.is_ok_and(|left| left <= bytes) {
            let us = rustix::process::getpid();
            rustix::process::kill_process(us, rustix::process::Signal::KILL).expect("kill");
        }
    }
}

impl AsyncRead for Mortal {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.crossed(buffer.filled().len() - before);
        read
    }
}

impl AsyncWrite for Mortal {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(length)) = written {
            self.crossed(length);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn streams(all: Vec<TcpStream>, left: &Arc<AtomicU64>) -> Streams<Mortal> {
    let mut all: Vec<_> =
        all.into_iter().map(|stream| Mortal { stream, left: Arc::clone(left) }).collect();
    Streams { control: all.remove(0), data: all }
}

fn start(which: &str, root: &Path, port: &str, last: u64) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "an_end", "--nocapture"])
        .env(END, format!("{which}|{}|{port}|{last}", root.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("an end")
}

/// No end dies by itself.
const NEVER: u64 = u64::MAX;

/// Both ends of a pass, the first one the target's; each dies after so many bytes.
fn both(trees: &Trees, last: [u64; 2]) -> [Child; 2] {
    let told = trees.target.with_extension("port");
    let _ = std::fs::remove_file(&told);
    let mut target = start("target", &trees.target, "-", last[0]);
    let deadline = Instant::now() + Duration::from_secs(30);
    let port = loop {
        if let Ok(port) = std::fs::read_to_string(&told) {
            break port;
        }
        assert!(Instant::now() < deadline && target.try_wait().expect("wait").is_none(), "no port");
        std::thread::yield_now();
    };
    [target, start("source", &trees.source, &port, last[1])]
}

#[test]
fn whichever_end_is_killed_whenever_the_last_pass_ends_equal() {
    let kills = if std::env::var_os(OFTEN).is_some() { 200 } else { SAMPLE };
    let trees = Trees::new();
    make(&trees.source);
    let mut numbers = Numbers(SEED);
    let mut killed = 0;
    for kill in 0..kills {
        change(&trees.source, &mut numbers);
        // Early and late alike: a pass that copies little has few bytes.
        let most = 1_000 << numbers.below(13);
        let mut last = [NEVER; 2];
        last[numbers.below(2) as usize] = numbers.below(most);
        let [target, source] =
            both(&trees, last).map(|mut end| end.wait().expect("wait").success());
        killed += u32::from(!(target && source));
        if kill % 8 == 7 {
            finish(&trees);
        }
    }
    finish(&trees);
    assert!(u64::from(killed) > kills / 2, "only {killed} of {kills} were killed");
}

fn finish(trees: &Trees) {
    both(trees, [NEVER; 2]).iter_mut().for_each(|end| assert!(end.wait().expect("wait").success()));
    trees.assert_equal();
}
