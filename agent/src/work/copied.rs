//! What is known of the copy that a move makes: when its last pass began and where that went, and what
//! a comparison has proved. It lies beside the ledger and promises nothing: where it is missing, of
//! another move, or the clock was set since, more is read.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ferry_files::{Bounded, Difference, Directories, SourceOptions};
use ferry_proto::Fault;
use ferry_proto::ids::{AccountName, JobId};
use serde::{Deserialize, Serialize};

use crate::agent::{Agent, blocking};
use crate::clock::{boot_id, boottime_ms, unix_ms};
use crate::work::Job;

/// What is changed so long before a pass began counts as changed after it, in milliseconds.
const MARGIN: i64 = 60_000;
/// By how much the wall clock may have been set before what it stamped proves nothing.
const SET: i64 = 10_000;

/// See the module.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Copied {
    job: JobId,
    /// The last pass.
    pub last: Option<Mark>,
    /// What was proved while the account was live.
    pub proof: Option<Proof>,
}

/// When a walk began, and where it went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mark {
    boot_id: String,
    boottime_ms: i64,
    unix_ms: i64,
    /// The directories that it met.
    pub directories: Directories,
}

/// Everything was compared and found equal, but for what has changed since `base` and `doubted`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Proof {
    /// The last pass before the comparison.
    pub base: Mark,
    /// Files whose content differed.
    pub doubted: BTreeSet<PathBuf>,
}

/// What a comparison leaves in doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doubt {
    /// These contents.
    Of(BTreeSet<PathBuf>),
    /// More than it names; every content, if one of those named was one.
    Unnamed {
        /// Whether contents are among it.
        contents: bool,
    },
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

    /// Keeps it for later steps.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn keep(&self, job: &Job) -> Result<(), Fault> {
        let path = path(&job.agent, &job.of.account);
        let json = serde_json::to_vec(self)
            .map_err(|e| Fault::bug("what is known of a copy has no JSON").caused_by(&e))?;
        blocking(move || {
            let new = path.with_extension("new");
            path.parent()
                .map_or(Ok(()), std::fs::create_dir_all)
                .and_then(|()| std::fs::write(&new, json))
                .and_then(|()| std::fs::rename(&new, &path))
                .map_err(|e| Fault::io(format!("cannot write {}", path.display()), &e))
        })
        .await
    }

    /// Forgets it: the move is over.
    pub async fn forget(agent: &Agent, account: &AccountName) {
        let path = path(agent, account);
        let removed = blocking(move || match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(Fault::io(format!("cannot remove {}", path.display()), &e))
            }
            _ => Ok(()),
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
            // A boot that cannot be told is never this one.
            boot_id: boot_id().unwrap_or_default(),
            boottime_ms: boottime(),
            unix_ms: unix_ms(),
            directories: Directories::default(),
        }
    }

    /// Has a walk take for changed only what may have changed since; false if that cannot be told.
    pub fn narrow(&self, options: &mut SourceOptions) -> bool {
        let set = (unix_ms() - self.unix_ms) - (boottime() - self.boottime_ms);
        if !boot_id().is_ok_and(|id| id == self.boot_id) || set.abs() > SET {
            return false;
        }
        let since = u64::try_from(self.unix_ms - MARGIN).unwrap_or(0);
        options.changed_since = Some(SystemTime::UNIX_EPOCH + Duration::from_millis(since));
        options.known = Some(Arc::new(self.directories.clone()));
        true
    }

    /// As if it had been so much later: what is there now becomes old.
    #[cfg(test)]
    pub fn later(&mut self, by: Duration) {
        let by = i64::try_from(by.as_millis()).unwrap();
        self.boottime_ms += by;
        self.unix_ms += by;
    }
}

fn boottime() -> i64 {
    i64::try_from(boottime_ms()).unwrap_or(i64::MAX)
}

impl Doubt {
    /// What these differences leave in doubt once another pass has been made: that sees by size, time and
    /// metadata all but contents.
    pub fn of(differences: &Bounded<Difference>) -> Self {
        let contents = differences.items.iter().filter(|d| d.what == "content");
        let paths: BTreeSet<PathBuf> = contents.map(|d| PathBuf::from(&d.path)).collect();
        // A path that is shown shortened or lossily names no file.
        let named =
            paths.iter().all(|p| !p.to_string_lossy().contains([char::REPLACEMENT_CHARACTER, '…']));
        if named && differences.total == differences.items.len() as u64 {
            Self::Of(paths)
        } else {
            Self::Unnamed { contents: !paths.is_empty() }
        }
    }

    /// Has a walk count it as changed.
    pub fn widen(&self, options: &mut SourceOptions) {
        match self {
            Self::Of(paths) => options.doubted.clone_from(paths),
            Self::Unnamed { contents: true } => {
                options.changed_since = Some(SystemTime::UNIX_EPOCH);
            }
            Self::Unnamed { contents: false } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differences(paths: &[(&str, &str)]) -> Bounded<Difference> {
        let mut all = Bounded::default();
        for (path, what) in paths {
            let text = String::new;
            let (path, what) = ((*path).to_owned(), (*what).to_owned());
            all.push(Difference { path, what, source: text(), target: text() });
        }
        all
    }

    #[test]
    fn a_doubt_names_contents_or_covers_everything() {
        let of = |paths: &[&str]| Doubt::Of(paths.iter().map(PathBuf::from).collect());
        assert_eq!(Doubt::of(&differences(&[("a", "content"), ("b", "time")])), of(&["a"]));
        let everything = Doubt::Unnamed { contents: true };
        assert_eq!(Doubt::of(&differences(&[("a\u{fffd}", "content")])), everything);
        let mut more = differences(&[("a", "content")]);
        more.total = 500;
        assert_eq!(Doubt::of(&more), everything);
        let mut more = differences(&[("a", "time")]);
        more.total = 500;
        assert_eq!(Doubt::of(&more), Doubt::Unnamed { contents: false });
    }

    #[test]
    fn a_mark_tells_nothing_after_a_reboot_or_when_the_clock_was_set() {
        let mut options = SourceOptions::new([1]);
        assert!(Mark::now().narrow(&mut options));
        assert!(options.changed_since.is_some() && options.known.is_some());
        let another_boot = Mark { boot_id: "another".to_owned(), ..Mark::now() };
        let clock_set = Mark { unix_ms: unix_ms() + 3_600_000, ..Mark::now() };
        for mark in [another_boot, clock_set] {
            let mut options = SourceOptions::new([1]);
            assert!(!mark.narrow(&mut options));
            assert!(options.changed_since.is_none() && options.known.is_none());
        }
    }
}
