//! Counters that threads raise and the caller's view of them. It must not know what is counted for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::report::Progress;

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
        }
    }
}
