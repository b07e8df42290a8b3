//! What a failpoint does in the lab's own builds.

use std::cell::RefCell;
use std::fmt::Arguments;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use crate::{BROKEN, CLOCK, DIRECTORY, Promise, SOCKET};

thread_local! {
    /// In tests: what is on this thread instead of [`DIRECTORY`].
    static INSTEAD: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// In tests: what this thread does, and what it awaits, finds the lab in `directory`.
pub(crate) fn look_in(directory: Option<&Path>) {
    INSTEAD.with(|instead| *instead.borrow_mut() = directory.map(Path::to_owned));
}

fn place(of: &str) -> PathBuf {
    let instead = INSTEAD.with(|instead| instead.borrow().clone());
    match (instead, Path::new(of).strip_prefix(DIRECTORY)) {
        (Some(directory), Ok(below)) => directory.join(below),
        _ => PathBuf::from(of),
    }
}

/// Tells the lab of a point, and waits for what it says.
pub(crate) fn told(point: &Arguments<'_>) -> io::Result<()> {
    told_at(&place(SOCKET), &point.to_string())
}

/// What [`crate::around_async`] does.
pub(crate) async fn around<T, E>(
    name: impl FnOnce() -> String,
    failed: impl Fn(io::Error) -> E,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let name = name();
    told_async(format!("{name}.before")).await.map_err(&failed)?;
    let done = work.await?;
    told_async(format!("{name}.after")).await.map_err(&failed)?;
    Ok(done)
}

/// The same as [`told`], on a thread that may wait.
async fn told_async(point: String) -> io::Result<()> {
    let lab = place(SOCKET);
    if !lab.exists() {
        return Ok(());
    }
    // A runtime that is going down asks nobody any more.
    tokio::task::spawn_blocking(move || told_at(&lab, &point)).await.unwrap_or(Ok(()))
}

fn told_at(lab: &Path, point: &str) -> io::Result<()> {
    let Ok(mut lab) = UnixStream::connect(lab) else { return Ok(()) };
    let point: String = point.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let mut answer = String::new();
    let asked = lab
        .write_all(format!("{} {point}\n", program()).as_bytes())
        .and_then(|()| BufReader::new(&lab).read_line(&mut answer));
    let errno = answer.trim_end().strip_prefix("errno ").and_then(|n| n.parse().ok());
    match (asked, errno) {
        (Ok(_), Some(errno)) => Err(io::Error::from_raw_os_error(errno)),
        // The lab has gone, or says `go`.
        _ => Ok(()),
    }
}

/// What the lab says of the clock; nothing said is no offset.
pub(crate) fn clock_offset() -> i64 {
    let said = std::fs::read_to_string(place(CLOCK)).unwrap_or_default();
    said.trim().parse().unwrap_or(0)
}

/// Whether a file says so. Says it aloud, once.
pub(crate) fn is_broken(promise: Promise) -> bool {
    static SAID: AtomicU8 = AtomicU8::new(0);
    let broken = place(BROKEN).join(promise.name()).exists();
    let bit = 1 << promise as u8;
    if broken && SAID.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
        tracing::error!(
            promise = promise.name(),
            "this program breaks a promise, for a test: IT LOSES DATA"
        );
    }
    broken
}

/// The name of this program's file. An upgrade may have removed the file since.
fn program() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.strip_suffix(" (deleted)").map_or(name.clone(), str::to_owned)
}
