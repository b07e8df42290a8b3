//! What a pass or a comparison found, as plain data that crosses the wire and is shown to people.
//! Lists are bounded and carry the total beside them. It must not know how the data came about.

use std::fmt;
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::fault::clean;
use ferry_proto::shown;
use serde::{Deserialize, Serialize};

/// How many items each list of a report holds at most.
pub const LIST_LIMIT: usize = 200;

/// Longest text of a path in a report, in characters; the middle is left out of longer ones.
const PATH_LIMIT: usize = 300;

/// How far a pass has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Entries of the source walked so far.
    pub entries_scanned: u64,
    /// Whether the walk is over, so that the totals are final.
    pub scan_complete: bool,
    /// Files whose content was sent or received.
    pub files_done: u64,
    /// Files to send altogether; known when the walk is over.
    pub files_total: Option<u64>,
    /// Bytes of content sent or received.
    pub bytes_done: u64,
    /// Bytes of content altogether; known when the walk is over.
    pub bytes_total: Option<u64>,
    /// Bytes that crossed the stream in both directions.
    pub bytes_on_wire: u64,
    /// What took the time.
    #[serde(default)]
    pub spent: Spent,
}

/// What took the time, of all threads and streams of this end together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Reading contents that are sent.
    pub reading: Duration,
    /// Waiting for the limit that is set.
    pub limit: Duration,
    /// Waiting for the network.
    pub network: Duration,
    /// Waiting for the other end.
    pub target: Duration,
}

/// A list that holds no more than [`LIST_LIMIT`] items but counts all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounded<T> {
    /// The first items.
    pub items: Vec<T>,
    /// How many there were altogether.
    pub total: u64,
}

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Self { items: Vec::new(), total: 0 }
    }
}

impl<T> Bounded<T> {
    /// Adds one.
    pub fn push(&mut self, item: T) {
        self.total += 1;
        if self.items.len() < LIST_LIMIT {
            self.items.push(item);
        }
    }

    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Adds another list's items and total.
    pub(crate) fn extend(&mut self, other: Self) {
        self.total = self.total.saturating_add(other.total);
        let room = LIST_LIMIT.saturating_sub(self.items.len());
        self.items.extend(other.items.into_iter().take(room));
    }
}

/// Something that the guard did not let through; the pass went on without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Path below the root as [`shown`], `.` for the root itself.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// What a note is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoteKind {
    /// A socket: it has no content and is not copied.
    Socket,
    /// It was there when listed and gone when read.
    Vanished,
    /// It changed while it was read; the next pass copies it again.
    Changed,
    /// A name that Ferry keeps for its own temporary files.
    Reserved,
    /// A flag or attribute that is not copied (immutable, append-only, a label of the system).
    NotCopied,
}

/// Something worth knowing that stops nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// What it is about.
    pub kind: NoteKind,
    /// Path below the root.
    pub path: String,
    /// One sentence.
    pub text: String,
}

/// What a pass did. Both ends hold the same one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassReport {
    /// Entries of the source, the root not counted.
    pub entries: u64,
    /// Files whose content was copied.
    pub files_sent: u64,
    /// Bytes of content copied.
    pub bytes_sent: u64,
    /// Bytes of the same files that were there already.
    #[serde(default)]
    pub bytes_kept: u64,
    /// Bytes of content that take no space of their own at the target any more: files share them, as they do at the
    /// source.
    #[serde(default)]
    pub bytes_shared: u64,
    /// Entries created at the target that carry no content: directories, links, symlinks, FIFOs.
    pub created: u64,
    /// Entries whose metadata alone was mended.
    pub metadata_changed: u64,
    /// Entries removed at the target.
    pub deleted: u64,
    /// Directories that were given another place, with all that is in them.
    #[serde(default)]
    pub moved: u64,
    /// Entries found equal.
    pub unchanged: u64,
    /// What the guard refused.
    pub refused: Bounded<Refusal>,
    /// What is worth knowing.
    pub notes: Bounded<Note>,
    /// Entries that changed or vanished while the pass read them. Not 0: run another pass.
    pub changed_while_read: u64,
    /// When the source began, in its clock; see [`crate::SourceOptions::changed_since`].
    pub started: Option<std::time::SystemTime>,
    /// How long the pass took at the target.
    pub duration: Duration,
}

/// One thing that is not the same at both ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Path below the root.
    pub path: String,
    /// What differs: `type`, `content`, `mode`, `owner`, `time`, `missing`, `extra`, ...
    pub what: String,
    /// The source's value.
    pub source: String,
    /// The target's value.
    pub target: String,
    /// Which end's file was written to last, by its time; none where both say the same, or it is no file's
    /// content that differs.
    #[serde(default)]
    pub newer: Option<End>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, what, source, target, newer } = self;
        write!(f, "{path}: {what}: {source} at the source, {target} at the target")?;
        match newer {
            Some(End::Source) => write!(f, " (written later at the source)"),
            Some(End::Target) => write!(f, " (written later at the target)"),
            None => Ok(()),
        }
    }
}

/// One end of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Where it comes from.
    Source,
    /// Where it goes to.
    Target,
}

/// The outcome of comparing both ends. Both ends hold the same one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// Entries of the source, the root not counted.
    pub entries: u64,
    /// Files whose content was read on both ends.
    pub files: u64,
    /// Bytes of content read at the source.
    pub bytes: u64,
    /// BLAKE3 over the source's canonical manifest (entries with metadata, and contents), in hex.
    pub manifest: String,
    /// What differs.
    pub differences: Bounded<Difference>,
    /// What the guard refuses, and so cannot be equal.
    pub refused: Bounded<Refusal>,
    /// What is worth knowing.
    pub notes: Bounded<Note>,
    /// Files that changed while they were read: nothing is proved about them.
    pub unsettled: u64,
    /// How long it took at the target.
    pub duration: Duration,
}

impl Comparison {
    /// Whether both ends were proved to hold the same, what was refused aside.
    pub fn is_equal(&self) -> bool {
        self.differences.is_empty() && self.unsettled == 0
    }
}

/// The text of a path for people, as [`shown`], and bounded.
pub(crate) fn show(path: &[u8]) -> String {
    let text = shown::path(path);
    let count = text.chars().count();
    if count <= PATH_LIMIT {
        return text;
    }
    let head: String = text.chars().take(PATH_LIMIT / 2).collect();
    let tail: String = text.chars().skip(count - PATH_LIMIT / 2).collect();
    format!("{head}{}{tail}", shown::CUT)
}

/// What a peer says and people are shown.
pub(crate) trait FromPeer: serde::de::DeserializeOwned {
    /// Bounds its lists and texts, and takes out what a terminal would obey.
    fn clean(&mut self);
}

impl<T> Bounded<T> {
    fn clean(&mut self, mut each: impl FnMut(&mut T)) {
        self.items.truncate(LIST_LIMIT);
        self.items.iter_mut().for_each(&mut each);
    }
}

impl Bounded<Note> {
    /// As [`FromPeer::clean`].
    pub(crate) fn clean_notes(&mut self) {
        self.clean(|note| {
            clean(&mut note.path);
            clean(&mut note.text);
        });
    }
}

impl Bounded<Refusal> {
    fn clean_refusals(&mut self) {
        self.clean(|refusal| {
            clean(&mut refusal.path);
            clean(&mut refusal.reason);
        });
    }
}

impl FromPeer for PassReport {
    fn clean(&mut self) {
        self.refused.clean_refusals();
        self.notes.clean_notes();
    }
}

impl FromPeer for Comparison {
    fn clean(&mut self) {
        clean(&mut self.manifest);
        self.refused.clean_refusals();
        self.notes.clean_notes();
        self.differences.clean(|difference| {
            clean(&mut difference.path);
            clean(&mut difference.what);
            clean(&mut difference.source);
            clean(&mut difference.target);
        });
    }
}

impl FromPeer for Fault {
    fn clean(&mut self) {
        let told = std::mem::replace(self, Self::bug(""));
        *self = told.told_by_another();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As long in JSON as `show` can make it.
    fn longest() -> String {
        let text = show("\u{10ffff}".repeat(5000).as_bytes());
        assert!(text.chars().count() <= PATH_LIMIT + 1);
        text
    }

    fn full<T: Clone>(item: &T) -> Bounded<T> {
        let mut list = Bounded::default();
        (0..LIST_LIMIT + 5).for_each(|_| list.push(item.clone()));
        list
    }

    #[test]
    fn the_longest_report_fits_a_frame() {
        let (path, text) = (longest(), longest());
        let comparison = Comparison {
            differences: full(&Difference {
                path: path.clone(),
                what: "hard link".to_owned(),
                source: text.clone(),
                target: text.clone(),
                newer: Some(End::Source),
            }),
            refused: full(&Refusal { path: path.clone(), reason: text.clone() }),
            notes: full(&Note { kind: NoteKind::NotCopied, path, text }),
            ..Comparison::default()
        };
        let json = crate::wire::to_json(&comparison);
        assert!(json.len() < crate::protocol::MAX_FRAME, "{}", json.len());
        let mut back: Comparison = serde_json::from_slice(&json).expect("JSON");
        back.clean();
        assert_eq!(back, comparison);
        assert_eq!(back.notes.total, LIST_LIMIT as u64 + 5);
    }

    #[test]
    fn a_peer_cannot_speak_to_the_terminal() {
        let mut fault = Fault::bug("\x1b[2Jgone").caused_by(&std::io::Error::other("a\nb"));
        fault.remedy = "x".repeat(1_000_000);
        fault.clean();
        assert_eq!(fault.message, "\u{fffd}[2Jgone");
        assert_eq!(fault.causes, ["a\u{fffd}b"]);
        assert_eq!(fault.remedy.len(), 1000);
        assert_eq!(fault.class, ferry_proto::FaultClass::Permanent);
        assert_eq!(show(b"a\x1bb\xffc"), "a\\x1bb\\xffc");
        assert_eq!(show(b""), ".");
    }
}
