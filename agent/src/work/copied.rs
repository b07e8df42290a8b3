//! What is known of the copy that a move makes: when its last pass began and where that went, and what
//! a comparison has proved. It lies beside the ledger and promises nothing: where it is missing, of
//! another move or another process, or the clock was set since, more is read.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ferry_files::{
    Bounded, Comparison, Directories, Note, NoteKind, SourceOptions, stamps_every_write,
};
use ferry_proto::ids::{AccountName, JobId};
use ferry_proto::{Fault, shown};
use serde::{Deserialize, Serialize};

use crate::agent::{Agent, blocking};
use crate::clock::{Era, boot_id, boottime_ms, era, unix_ms};
use crate::small_file::{self, Lasting};
use crate::work::Job;

/// What is changed so long before a pass began counts as changed after it, in milliseconds.
const MARGIN: i64 = 60_000;
/// By how much the wall clock may have been set before what it stamped proves nothing.
const SET: i64 = 10_000;
/// Differences that leave no doubt about what is below a directory.
const METADATA: [&str; 5] = ["attributes", "group", "mode", "owner", "time"];

/// See the module.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Copied {
    job: JobId,
    /// The last pass.
    pub last: Option<Mark>,
    /// What was proved while the account was live.
    pub proof: Option<Proof>,
}

/// When a walk began, where it went, and what it left.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mark {
    era: Option<Era>,
    boot_id: String,
    boottime_ms: i64,
    unix_ms: i64,
    /// The directories that it met.
    pub directories: Directories,
    /// What it did not copy, or not as it was: it could not be opened, changed, or went away.
    pub unsettled: BTreeSet<PathBuf>,
}

/// Everything was compared and found equal, but for what has changed since `base` and `doubted`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Proof {
    /// The last pass before the comparison; of its directories those that the comparison and the pass
    /// after it have met in the same place.
    pub base: Mark,
    /// Files that differed or were not compared.
    pub doubted: BTreeSet<PathBuf>,
}

/// What a comparison of the live account gave.
#[derive(Debug)]
pub struct Compared {
    /// The last pass before it.
    pub base: Option<Mark>,
    /// The directories that it met.
    pub directories: Directories,
    /// What it leaves in doubt.
    pub doubt: Doubt,
    /// How many entries there were.
    pub entries: u64,
    /// How many bytes were compared.
    pub bytes: u64,
}

/// What a comparison leaves in doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doubt {
    /// These.
    Of(Doubted),
    /// More than it names; every content, if one of those named was one.
    Unnamed {
        /// Whether contents are among it.
        contents: bool,
    },
}

/// Named paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doubted {
    /// Files that differed or were not compared.
    pub files: BTreeSet<PathBuf>,
    /// Where, if it is a directory, nothing below was compared.
    pub below: BTreeSet<PathBuf>,
}

impl Copied {
    /// What is known of the copy that this move makes.
    pub async fn of(job: &Job) -> Self {
        let nothing = Self { job: job.of.job, last: None, proof: None };
        let path = path(&job.agent, &job.of.account);
        let read = blocking(move || match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Self>(&bytes)
                .map(Some)
                .map_err(|e| Fault::permanent("it cannot be understood").caused_by(&e)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Fault::io("it cannot be read", &e)),
        });
        match read.await {
            Ok(known) => known.filter(|k| k.job == nothing.job).unwrap_or(nothing),
            Err(fault) => {
                tracing::warn!(account = %job.of.account, "what is known of the copy is lost: {fault}");
                nothing
            }
        }
    }

    /// Takes what was compared for proved, now that a pass has made up for what differed; false if it is
    /// not known what differed.
    pub fn prove(&mut self, compared: Compared) -> bool {
        let Compared { base: Some(mut base), directories, doubt: Doubt::Of(doubted), .. } =
            compared
        else {
            return false;
        };
        let Some(last) = &self.last else { return false };
        // Where the pass after it was not, the final pass copies anew, whatever was equal before.
        base.directories.keep_common(&directories);
        base.directories.keep_common(&last.directories);
        doubted.below.iter().for_each(|path| base.directories.forget(path));
        self.proof = Some(Proof { base, doubted: doubted.files });
        true
    }

    /// Keeps it for later steps.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn keep(&self, job: &Job) -> Result<(), Fault> {
        let path = path(&job.agent, &job.of.account);
        let json = serde_json::to_vec(self)
            .map_err(|e| Fault::bug("what is known of a copy has no JSON").caused_by(&e))?;
        blocking(move || {
            small_file::replace("copied.kept", &path, &json, Lasting::InTime)
                .map_err(|e| Fault::io(format!("cannot write {}", path.display()), &e))
        })
        .await
    }

    /// Forgets it: the move is over.
    pub async fn forget(agent: &Agent, account: &AccountName) {
        agent.journals.forget(account);
        let path = path(agent, account);
        let removed = blocking(move || {
            small_file::remove("copied.forgotten", &path)
                .map_err(|e| Fault::io(format!("cannot remove {}", path.display()), &e))
        });
        if let Err(fault) = removed.await {
            tracing::warn!(%account, "{fault}");
        }
    }
}

fn path(agent: &Agent, account: &AccountName) -> PathBuf {
    agent.config.state_directory.join("copies").join(format!("{account}.json"))
}

impl Mark {
    /// Of a walk that begins now.
    pub fn now() -> Self {
        Self {
            era: era(),
            // A boot that cannot be told is never this one.
            boot_id: boot_id().unwrap_or_default(),
            boottime_ms: boottime(),
            unix_ms: unix_ms(),
            directories: Directories::default(),
            unsettled: BTreeSet::new(),
        }
    }

    /// Notes what the walk left.
    pub fn left(&mut self, notes: &Bounded<Note>) {
        let kinds = [NoteKind::Changed, NoteKind::Vanished];
        let left = notes.items.iter().filter(|note| kinds.contains(&note.kind));
        self.unsettled = left.filter_map(|note| as_shown(&note.path)).collect();
    }

    /// Has a pass copy what may have changed since, also if size and time look the same. As far as
    /// can be told: what it does not copy is proved equal elsewhere. Whether the directories are
    /// known: after a reboot devices may have other numbers.
    pub fn widen(&self, options: &mut SourceOptions) -> bool {
        let is_known = self.is_of_this_boot();
        // What was stamped after the clock was set back looks older than the mark.
        let back = if is_known { self.clock_set().min(0) } else { 0 };
        self.count_since(self.unix_ms.saturating_add(back), options);
        options.doubted.extend(self.unsettled.iter().cloned());
        if is_known {
            options.known = Some(Arc::new(self.directories.clone()));
        }
        is_known
    }

    /// Has a comparison of `root` read only what may have changed since; false if that is not certain.
    pub fn narrow(&self, root: &Path, options: &mut SourceOptions) -> bool {
        let is_in_order = self.era.is_some_and(|of| era() == Some(of))
            && self.is_of_this_boot()
            && self.clock_set().abs() <= SET;
        if !is_in_order || !stamps_every_write(root) {
            return false;
        }
        self.count_since(self.unix_ms, options);
        options.known = Some(Arc::new(self.directories.clone()));
        true
    }

    fn is_of_this_boot(&self) -> bool {
        boot_id().is_ok_and(|id| id == self.boot_id)
    }

    /// By how much the wall clock was set in all since, within one boot.
    fn clock_set(&self) -> i64 {
        (unix_ms() - self.unix_ms) - (boottime() - self.boottime_ms)
    }

    fn count_since(&self, unix_ms: i64, options: &mut SourceOptions) {
        let since = u64::try_from(unix_ms - MARGIN).unwrap_or(0);
        options.changed_since = Some(SystemTime::UNIX_EPOCH + Duration::from_millis(since));
    }

    /// As if it had been so much later: what is there now becomes old.
    #[cfg(test)]
    pub fn later(&mut self, by: Duration) {
        self.boottime_ms += i64::try_from(by.as_millis()).unwrap();
        self.before_clock_was_set_back(by);
    }

    /// As if the wall clock had been set back by so much since.
    #[cfg(test)]
    pub fn before_clock_was_set_back(&mut self, by: Duration) {
        self.unix_ms += i64::try_from(by.as_millis()).unwrap();
    }
}

fn boottime() -> i64 {
    i64::try_from(boottime_ms()).unwrap_or(i64::MAX)
}

impl Doubt {
    /// None.
    pub const NONE: Self = Self::Of(Doubted { files: BTreeSet::new(), below: BTreeSet::new() });

    /// What a comparison leaves in doubt: what differed, since the next pass copies it, and what changed
    /// or could not be opened meanwhile.
    pub fn of(found: &Comparison) -> Self {
        let differing = &found.differences;
        let contents = differing.items.iter().any(|d| d.what == "content");
        let changed = found.notes.items.iter().filter(|note| note.kind == NoteKind::Changed);
        let is_named = differing.total == differing.items.len() as u64
            && found.unsettled == changed.clone().count() as u64;
        let all = differing.items.iter().map(|d| (d.path.as_str(), d.what.as_str()));
        let all = all.chain(changed.map(|note| (note.path.as_str(), "changed")));
        let mut doubted = Doubted::default();
        if is_named && all.into_iter().all(|(path, what)| doubted.add(path, what)) {
            Self::Of(doubted)
        } else {
            Self::Unnamed { contents }
        }
    }

    /// Whether all that is in doubt is named.
    pub fn is_named(&self) -> bool {
        matches!(self, Self::Of(_))
    }

    /// Has a walk count it as changed.
    pub fn widen(&self, options: &mut SourceOptions) {
        match self {
            Self::Of(doubted) => options.doubted.extend(doubted.files.iter().cloned()),
            Self::Unnamed { contents: true } => {
                options.changed_since = Some(SystemTime::UNIX_EPOCH);
            }
            Self::Unnamed { contents: false } => {}
        }
    }
}

impl Doubted {
    /// Adds what differs at `path` as a report shows it; false if that does not tell where it is.
    fn add(&mut self, path: &str, what: &str) -> bool {
        let whole = as_shown(path);
        let is_whole = whole.is_some();
        let named = whole.unwrap_or_else(|| named(path));
        if is_whole {
            self.files.insert(named.clone());
        }
        if is_whole && METADATA.contains(&what) {
            return true;
        }
        // A pass copies below a directory only what it takes for changed: a content it must be told.
        let is_told = is_whole || what != "content";
        let is_root = named.as_os_str().is_empty() || named == Path::new(".");
        self.below.insert(named);
        is_told && !is_root
    }
}

/// The path that is shown so; none if it is shown shortened, or was harmed on its way. The root stays `.`.
pub(super) fn as_shown(path: &str) -> Option<PathBuf> {
    match path {
        "." => Some(PathBuf::from(path)),
        _ => shown::read(path).map(|bytes| PathBuf::from(OsString::from_vec(bytes))),
    }
}

/// As much of a shown path as is surely a path.
fn named(path: &str) -> PathBuf {
    path.split('/').map_while(as_shown).collect()
}

#[cfg(test)]
mod tests {
    use ferry_files::Difference;

    use super::*;

    fn found(differing: &[(&str, &str)], changed: &[&str]) -> Comparison {
        let mut found = Comparison::default();
        for (path, what) in differing {
            let text = String::new;
            let (path, what) = ((*path).to_owned(), (*what).to_owned());
            found.differences.push(Difference {
                path,
                what,
                source: text(),
                target: text(),
                newer: None,
            });
        }
        for path in changed {
            let (path, text) = ((*path).to_owned(), String::new());
            found.notes.push(Note { kind: NoteKind::Changed, path, text });
            found.unsettled += 1;
        }
        found
    }

    fn doubt(files: &[&str], below: &[&str]) -> Doubt {
        let of = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        Doubt::Of(Doubted { files: of(files), below: of(below) })
    }

    #[test]
    fn a_doubt_names_what_differs_and_what_was_not_compared() {
        let content = found(&[("a", "content"), ("b", "time"), ("c/d", "missing")], &["e"]);
        assert_eq!(Doubt::of(&content), doubt(&["a", "b", "c/d", "e"], &["a", "c/d", "e"]));
        assert_eq!(Doubt::of(&found(&[(".", "time")], &[])), doubt(&["."], &[]));
        // The directory that holds it can be named.
        let lossy = found(&[], &["a/b\u{fffd}/c"]);
        assert_eq!(Doubt::of(&lossy), doubt(&[], &["a"]));
    }

    #[test]
    fn a_doubt_that_cannot_be_named_proves_nothing() {
        let everything = Doubt::Unnamed { contents: true };
        assert_eq!(Doubt::of(&found(&[("a/\u{fffd}", "content")], &[])), everything);
        let mut more = found(&[("a", "content")], &[]);
        more.differences.total = 500;
        assert_eq!(Doubt::of(&more), everything);
        let metadata = Doubt::Unnamed { contents: false };
        let mut more = found(&[("a", "time")], &[]);
        more.differences.total = 500;
        assert_eq!(Doubt::of(&more), metadata);
        let mut more = found(&[], &["a"]);
        more.unsettled = 500;
        assert_eq!(Doubt::of(&more), metadata);
        for at_root in [found(&[], &["."]), found(&[], &["…"]), found(&[(".", "directory")], &[])]
        {
            assert_eq!(Doubt::of(&at_root), metadata);
        }
    }

    #[test]
    fn a_mark_narrows_nothing_after_a_restart_a_reboot_or_when_the_clock_was_set() {
        let dir = tempfile::tempdir().unwrap();
        let narrows = |mark: &Mark, root: &Path| {
            let mut options = SourceOptions::new([1]);
            let narrows = mark.narrow(root, &mut options);
            assert_eq!(options.changed_since.is_some() && options.known.is_some(), narrows);
            narrows
        };
        assert_eq!(narrows(&Mark::now(), dir.path()), stamps_every_write(dir.path()));
        assert!(!narrows(&Mark::now(), Path::new("/dev/shm")));
        let another_boot = Mark { boot_id: "another".to_owned(), ..Mark::now() };
        let clock_set = Mark { unix_ms: unix_ms() + 3_600_000, ..Mark::now() };
        let of_another = serde_json::from_str(r#"{"process": 1, "sets": 0}"#).unwrap();
        let another_process = Mark { era: Some(of_another), ..Mark::now() };
        let untold = Mark { era: None, ..Mark::now() };
        for mark in [another_boot, clock_set, another_process, untold] {
            assert!(!narrows(&mark, dir.path()));
        }
    }

    #[test]
    fn a_mark_always_widens_a_pass() {
        let mut set_back = Mark::now();
        set_back.before_clock_was_set_back(Duration::from_secs(3600));
        let now = SystemTime::now();
        let another_boot = Mark { boot_id: "another".to_owned(), ..Mark::now() };
        for (mark, is_known) in [(Mark::now(), true), (set_back, true), (another_boot, false)] {
            let mut options = SourceOptions::new([1]);
            assert_eq!(mark.widen(&mut options), is_known);
            assert_eq!(options.known.is_some(), is_known);
            assert!(options.changed_since.is_some_and(|since| since < now));
        }
    }
}
