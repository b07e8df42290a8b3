//! An account's crontab: moved aside so that cron does not see it, put back, and installed closed
//! at the target. To Ferry its content is bytes; what it means is cron's business. Jobs that run already are
//! processes of the account and end with them.
//!
//! Aside is a hidden name in cron's own directory: cron passes over it, and the rename there and back
//! needs no free disk.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ferry_proto::Fault;
use ferry_proto::ids::UnixName;
use serde::{Deserialize, Serialize};

use crate::durable::{self, Ownership};
use crate::run::Run;
use crate::users::passwd::Database;
use crate::{Finding, Layout};

pub(crate) const SPOOL: &str = "/var/spool/cron/crontabs";
/// Begins the name of a crontab that is aside; the user follows.
pub(crate) const ASIDE: &str = ".ferry-aside-";
/// Begins the name of a crontab that no longer counts and is kept.
pub(crate) const FOUND: &str = ".ferry-found-";
const AT_SPOOL: &str = "/var/spool/cron/atjobs";
/// The largest crontab that moves.
const CAP: u64 = 1 << 20;
/// The most files of a directory that are looked at for findings.
const ENTRIES_CAP: usize = 10_000;

/// What an account has of cron.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronRecord {
    /// The user.
    pub user: UnixName,
    /// The crontab, visible or aside; none: the user has none.
    pub content: Option<Vec<u8>>,
    /// What does not move: at jobs, lines of the system's crontabs.
    pub findings: Vec<Finding>,
}

pub(crate) fn crontab(layout: &Layout, user: &UnixName) -> PathBuf {
    layout.path(SPOOL).join(user.as_str())
}

fn aside(layout: &Layout, user: &UnixName) -> PathBuf {
    layout.path(SPOOL).join(format!("{ASIDE}{user}"))
}

fn found(layout: &Layout, user: &UnixName) -> PathBuf {
    layout.path(SPOOL).join(format!("{FOUND}{user}"))
}

/// Reads the user's crontab, also while it is aside, and what else would run by the clock.
///
/// # Errors
/// Precondition if it is larger than 1 MiB; otherwise what reading failed of.
pub fn describe(layout: &Layout, user: &UnixName) -> Result<CronRecord, Fault> {
    let visible = durable::read(&crontab(layout, user), CAP)?;
    let content = match visible {
        Some(content) => Some(content),
        None => durable::read(&aside(layout, user), CAP)?,
    };
    let mut findings = at_jobs(layout, user)?;
    findings.extend(system_lines(layout, user));
    Ok(CronRecord { user: user.clone(), content, findings })
}

/// Hides the user's crontab from cron. No crontab is fine. Holds across reboots.
///
/// # Errors
/// What reading or renaming failed of.
pub fn disable(layout: &Layout, user: &UnixName) -> Result<(), Fault> {
    let (visible, aside) = (crontab(layout, user), aside(layout, user));
    if !keep_replaced(layout, user)? {
        return Ok(());
    }
    change(layout, || durable::rename(&visible, &aside))
}

/// Whether cron sees a crontab of the user.
///
/// # Errors
/// What looking failed of.
pub fn is_visible(layout: &Layout, user: &UnixName) -> Result<bool, Fault> {
    durable::exists(&crontab(layout, user))
}

/// Shows cron the user's crontab again. One that was never hidden, or that is not there, is fine; so is
/// one that the user has replaced meanwhile: the new one stays.
///
/// # Errors
/// What reading or renaming failed of.
pub fn enable(layout: &Layout, user: &UnixName) -> Result<(), Fault> {
    let (visible, aside) = (crontab(layout, user), aside(layout, user));
    if keep_replaced(layout, user)? || !durable::exists(&aside)? {
        return Ok(());
    }
    // One that is installed in this instant is not lost either: then this fails, and is tried again.
    change(layout, || durable::rename_to_free(&aside, &visible))
}

/// A crontab that was installed while the former was aside is what counts: `crontab` has told its user
/// so. The former is kept under another name that cron passes over. True if a crontab is visible.
fn keep_replaced(layout: &Layout, user: &UnixName) -> Result<bool, Fault> {
    let (visible, aside) = (crontab(layout, user), aside(layout, user));
    if !durable::exists(&visible)? || !durable::exists(&aside)? {
        return durable::exists(&visible);
    }
    if durable::read(&visible, CAP)? == durable::read(&aside, CAP)? {
        durable::remove(&aside)?;
    } else {
        keep_found(layout, user, &aside)?;
    }
    Ok(true)
}

/// Keeps a crontab that no longer counts.
fn keep_found(layout: &Layout, user: &UnixName, file: &Path) -> Result<(), Fault> {
    let found = found(layout, user);
    durable::rename(file, &found)?;
    tracing::warn!(%user, kept = %found.display(), "another crontab took the place of this one");
    Ok(())
}

/// Installs a crontab that cron does not see yet, for the user's id here; one that is visible is hidden
/// and kept, for it is not the account's. Returns what `crontab` says against the new one; cron would
/// then run none of its jobs.
///
/// # Errors
/// Precondition if cron is missing or the crontab is too large; otherwise what writing failed of.
pub fn install_disabled(
    layout: &Layout,
    user: &UnixName,
    uid: u32,
    content: &[u8],
) -> Result<Vec<Finding>, Fault> {
    if content.len() as u64 > CAP {
        return Err(Fault::precondition(format!(
            "the crontab of user {user} is larger than {CAP} bytes"
        ))
        .remedy("make it smaller"));
    }
    if !layout.path(SPOOL).is_dir() {
        return Err(Fault::precondition(format!("there is no {SPOOL} on this server"))
            .remedy("install the Debian package cron"));
    }
    let gid = Database::read(layout)?.group("crontab").map_or(0, |g| g.gid);
    let (visible, aside) = (crontab(layout, user), aside(layout, user));
    if durable::exists(&visible)? {
        change(layout, || keep_found(layout, user, &visible))?;
    }
    // The mode is what cron insists on.
    durable::write_if_changed(&aside, content, Ownership { uid, gid, mode: 0o600 })?;
    Ok(complaint(user, &aside).into_iter().collect())
}

/// Takes away the user's crontab, visible, aside or kept: the undo of `install_disabled`.
///
/// # Errors
/// What removing failed of.
pub fn remove(layout: &Layout, user: &UnixName) -> Result<(), Fault> {
    let (visible, aside) = (crontab(layout, user), aside(layout, user));
    durable::remove(&found(layout, user))?;
    if !durable::exists(&visible)? && !durable::exists(&aside)? {
        return Ok(());
    }
    change(layout, || {
        durable::remove(&visible)?;
        durable::remove(&aside).map(|_| ())
    })
}

/// Does `act` and sees to it that cron notices: it compares its directory's time in whole seconds, so
/// two changes within one second could look like one.
fn change(layout: &Layout, act: impl FnOnce() -> Result<(), Fault>) -> Result<(), Fault> {
    let spool = layout.path(SPOOL);
    let failed = |e: &std::io::Error| {
        Fault::io(format!("{} could not be marked as changed", spool.display()), e)
    };
    let before = fs::metadata(&spool).map_err(|e| failed(&e))?.mtime();
    act()?;
    let after = fs::metadata(&spool).map_err(|e| failed(&e))?.mtime();
    if after > before {
        return Ok(());
    }
    let next = u64::try_from(before).unwrap_or(0) + 1;
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(next);
    File::open(&spool)
        .and_then(|d| d.set_times(FileTimes::new().set_modified(time)))
        .map_err(|e| failed(&e))
}

/// What Debian's `crontab -n` (a dry run) says against the file; nothing where it does not know `-n`.
fn complaint(user: &UnixName, file: &Path) -> Option<Finding> {
    let output =
        Run::new("/usr/bin/crontab").argument("-n").argument(file).looking().output().ok()?;
    let said = output.said();
    if output.status.success() || !said.contains("errors in") && !said.contains("bad ") {
        return None;
    }
    Some(Finding::new(
        format!("cron will not accept the crontab of user {user}: {said}"),
        "mend it at the source with crontab -e",
    ))
}

fn at_jobs(layout: &Layout, user: &UnixName) -> Result<Vec<Finding>, Fault> {
    let Some(uid) = Database::read(layout)?.user(user.as_str()).map(|u| u.uid) else {
        return Ok(Vec::new());
    };
    let Ok(entries) = fs::read_dir(layout.path(AT_SPOOL)) else {
        return Ok(Vec::new());
    };
    let jobs = entries
        .flatten()
        .take(ENTRIES_CAP)
        .filter(|e| e.metadata().is_ok_and(|m| m.is_file() && m.uid() == uid))
        .count();
    Ok((jobs > 0)
        .then(|| {
            Finding::new(
                format!("user {user} has {jobs} at jobs, which do not move"),
                "run or remove them before the move (atq, atrm)",
            )
        })
        .into_iter()
        .collect())
}

/// Lines of `/etc/crontab` and `/etc/cron.d` that run as the user.
fn system_lines(layout: &Layout, user: &UnixName) -> Vec<Finding> {
    let directory = fs::read_dir(layout.path("/etc/cron.d")).into_iter().flatten().flatten();
    let files = directory.take(ENTRIES_CAP).map(|e| e.path()).chain([layout.path("/etc/crontab")]);
    let mut findings = Vec::new();
    for file in files {
        let Ok(Some(bytes)) = durable::read(&file, CAP) else {
            continue;
        };
        let text = String::from_utf8_lossy(&bytes);
        if text.lines().any(|line| runs_as(line, user.as_str())) {
            findings.push(Finding::new(
                format!("{} has a job that runs as user {user} and does not move", file.display()),
                "move the job to the user's own crontab",
            ));
        }
    }
    findings
}

/// Whether a line of a system crontab runs as `user`: the field after the times.
pub(crate) fn runs_as(line: &str, user: &str) -> bool {
    let line = line.trim_start();
    let times = if line.starts_with('@') { 1 } else { 5 };
    !line.starts_with('#') && line.split_whitespace().nth(times) == Some(user)
}

#[cfg(test)]
mod tests;
