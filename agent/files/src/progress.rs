//! Counters that threads raise and the caller's view of them. It must not know what is counted for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::report::{Progress, Spent};

/// Counters of one end.
#[derive(Debug, Clone, Default)]
pub struct Counters(Arc<Cells>);

#[derive(Debug, Default)]
struct Cells {
    scanned: AtomicU64,
    scan_complete: AtomicBool,
    files_done: AtomicU64,
    files_wanted: AtomicU64,
    bytes_done: AtomicU64,
    bytes_wanted: AtomicU64,
    wire: AtomicU64,
    /// Microseconds.
    reading: AtomicU64,
    limited: AtomicU64,
    network: AtomicU64,
    target: AtomicU64,
}

impl Counters {
    /// So many entries were walked.
    pub fn scanned(&self, entries: u64) {
        self.0.scanned.fetch_add(entries, Relaxed);
    }

    /// The walk is over and everything wanted is known.
    pub fn scan_complete(&self) {
        self.0.scan_complete.store(true, Relaxed);
    }

    /// A file of so many bytes is wanted.
    pub fn wanted(&self, bytes: u64) {
        self.0.files_wanted.fetch_add(1, Relaxed);
        self.0.bytes_wanted.fetch_add(bytes, Relaxed);
    }

    /// A file is done.
    pub fn file_done(&self) {
        self.0.files_done.fetch_add(1, Relaxed);
    }

    /// So many bytes of content are done.
    pub fn bytes_done(&self, bytes: u64) {
        self.0.bytes_done.fetch_add(bytes, Relaxed);
    }

    /// So many bytes crossed the stream.
    pub fn wire(&self, bytes: usize) {
        self.0.wire.fetch_add(bytes as u64, Relaxed);
    }

    /// A content was read for so long.
    pub fn reading(&self, time: Duration) {
        add(&self.0.reading, time);
    }

    /// A limit was waited for so long.
    pub fn limited(&self, time: Duration) {
        add(&self.0.limited, time);
    }

    /// A stream took nothing for so long; if its receiver waits for more, it is not his fault.
    pub fn waited_to_send(&self, time: Duration, does_receiver_wait: bool) {
        let cells = &self.0;
        add(if does_receiver_wait { &cells.network } else { &cells.target }, time);
    }

    /// What the caller sees.
    pub fn snapshot(&self) -> Progress {
        let cells = &self.0;
        let complete = cells.scan_complete.load(Relaxed);
        let total = |cell: &AtomicU64| complete.then(|| cell.load(Relaxed));
        Progress {
            entries_scanned: cells.scanned.load(Relaxed),
            scan_complete: complete,
            files_done: cells.files_done.load(Relaxed),
            files_total: total(&cells.files_wanted),
            bytes_done: cells.bytes_done.load(Relaxed),
            bytes_total: total(&cells.bytes_wanted),
            bytes_on_wire: cells.wire.load(Relaxed),
            spent: Spent {
                reading: time(&cells.reading),
                limit: time(&cells.limited),
                network: time(&cells.network),
                target: time(&cells.target),
            },
        }
    }
}

fn add(cell: &AtomicU64, time: Duration) {
    cell.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
}

fn time(cell: &AtomicU64) -> Duration {
    Duration::from_micros(cell.load(Relaxed))
}
