//! What the threads of a pass count at the target, until it is reported. It must not know what is counted for.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::report::{Bounded, Note, NoteKind, PassReport, Refusal, show};

/// See the module; the fields are those of [`PassReport`].
#[derive(Debug, Default)]
pub struct Tally {
    pub entries: AtomicU64,
    pub files_sent: AtomicU64,
    pub bytes_sent: AtomicU64,
    pub bytes_kept: AtomicU64,
    pub bytes_shared: AtomicU64,
    pub created: AtomicU64,
    pub metadata_changed: AtomicU64,
    pub deleted: AtomicU64,
    pub moved: AtomicU64,
    pub unchanged: AtomicU64,
    pub changed_while_read: AtomicU64,
    refused: Mutex<Bounded<Refusal>>,
    notes: Mutex<Bounded<Note>>,
}

/// Counts one more.
pub fn one(count: &AtomicU64) {
    count.fetch_add(1, Relaxed);
}

impl Tally {
    /// An entry is refused.
    pub fn refuse(&self, path: &[u8], reason: impl Into<String>) {
        let refusal = Refusal { path: show(path), reason: reason.into() };
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).push(refusal);
    }

    /// Something is worth knowing.
    pub fn note(&self, kind: NoteKind, path: &[u8], text: &str) {
        let note = Note { kind, path: show(path), text: text.to_owned() };
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
    }

    /// An entry changed or vanished while the pass read it.
    pub fn disturbed(&self, kind: NoteKind, path: &[u8], text: &str) {
        self.note(kind, path, text);
        one(&self.changed_while_read);
    }

    /// All of it.
    pub fn report(self) -> PassReport {
        let into = |bounded: Mutex<_>| bounded.into_inner().unwrap_or_else(PoisonError::into_inner);
        PassReport {
            entries: self.entries.into_inner(),
            files_sent: self.files_sent.into_inner(),
            bytes_sent: self.bytes_sent.into_inner(),
            bytes_kept: self.bytes_kept.into_inner(),
            bytes_shared: self.bytes_shared.into_inner(),
            created: self.created.into_inner(),
            metadata_changed: self.metadata_changed.into_inner(),
            deleted: self.deleted.into_inner(),
            moved: self.moved.into_inner(),
            unchanged: self.unchanged.into_inner(),
            changed_while_read: self.changed_while_read.into_inner(),
            refused: into(self.refused),
            notes: self.notes.into_inner().unwrap_or_else(PoisonError::into_inner),
            ..PassReport::default()
        }
    }
}
