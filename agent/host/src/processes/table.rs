//! Reads the process table. A process may end at any moment: what is gone is left out.

use std::fs;
use std::path::PathBuf;

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};

use crate::run::printable;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// The user that it acts as.
    pub uid: u32,
    /// Its name.
    pub comm: String,
    /// Its command line, at most 200 characters.
    pub command: String,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {}, user {})", self.comm, self.pid, self.uid)
    }
}

/// What `/proc/PID/status` says that matters here.
#[derive(Debug)]
pub(super) struct Status {
    comm: String,
    zombie: bool,
    /// Real, effective and saved user id.
    uids: [u32; 3],
}

impl Status {
    pub(super) fn read(pid: u32) -> Option<Self> {
        let bytes = fs::read(format!("/proc/{pid}/status")).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        let mut uids = field("Uid")?.split_whitespace().map_while(|id| id.parse().ok());
        // One whose first thread has ended looks like a zombie while its other threads work on.
        let alone = field("Threads").is_none_or(|n| n.parse::<u32>().is_ok_and(|n| n <= 1));
        Some(Self {
            comm: printable(field("Name")?.as_bytes(), 32),
            zombie: field("State")?.starts_with(['Z', 'X']) && alone,
            uids: [uids.next()?, uids.next()?, uids.next()?],
        })
    }

    /// Whether it acts, or can come to act, as one of `uids`.
    pub(super) fn is_of(&self, uids: &[u32]) -> bool {
        !self.zombie && self.uids.iter().any(|uid| uids.contains(uid))
    }

    pub(super) fn describe(&self, pid: u32) -> Process {
        // The first thread has no command line any more once it has ended.
        let lines = |task: u32| fs::read(format!("/proc/{pid}/task/{task}/cmdline")).ok();
        let command = tasks(pid).into_iter().filter_map(lines).find(|line| !line.is_empty());
        let command = command.unwrap_or_default();
        Process {
            pid,
            uid: self.uids[1],
            comm: self.comm.clone(),
            command: printable(&command, 200),
        }
    }
}

/// The ids of all processes.
pub(crate) fn pids() -> Result<Vec<u32>, Fault> {
    let failed = |e: std::io::Error| Fault::io("the process table could not be read", &e);
    let mut pids = Vec::new();
    for entry in fs::read_dir(PathBuf::from("/proc")).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// The threads of a process, the first one first; none if it is gone.
pub(super) fn tasks(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut tasks: Vec<u32> =
        entries.filter_map(|e| e.file_name().to_str().and_then(|name| name.parse().ok())).collect();
    tasks.sort_unstable_by_key(|task| (*task != pid, *task));
    tasks
}

/// The title of a process: its command line, or what it has put in its place. A process may call
/// itself as it likes, so look at its parent too.
pub(crate) fn title(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim_end_matches(['\0', ' ']).to_owned())
}

/// The parent of a process.
pub(crate) fn parent(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// Clock ticks a second, as the kernel counts them for programs on all that Ferry runs on.
const USER_HZ: u64 = 100;

/// When a process was started, in clock ticks since the boot.
pub(crate) fn started(pid: u32) -> Option<u64> {
    started_by(&format!("/proc/{pid}/stat"))
}

/// The same of one of its threads.
pub(super) fn thread_started(pid: u32, thread: u32) -> Option<u64> {
    // Not as if it were a process: the kernel then adds up what all its threads have used.
    started_by(&format!("/proc/{pid}/task/{thread}/stat"))
}

/// Field 22 of a stat file.
fn started_by(stat: &str) -> Option<u64> {
    let text = fs::read_to_string(stat).ok()?;
    // The name before may hold anything.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Now, as [`started`] counts.
pub(crate) fn now_in_ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let part = |n: i64, of: u64| u64::try_from(n).unwrap_or(0) / of;
    part(now.tv_sec, 1) * USER_HZ + part(now.tv_nsec, 1_000_000_000 / USER_HZ)
}

/// Whether a process is root's.
pub(crate) fn is_roots(pid: u32) -> bool {
    Status::read(pid).is_some_and(|s| s.uids == [0; 3])
}

/// The processes whose real, effective or saved user is one of `uids`, `exclude` left out.
///
/// # Errors
/// If the process table cannot be read.
pub fn of_users(uids: &[u32], exclude: &[u32]) -> Result<Vec<Process>, Fault> {
    let mut found = Vec::new();
    for pid in pids()? {
        if exclude.contains(&pid) {
            continue;
        }
        if let Some(status) = Status::read(pid).filter(|s| s.is_of(uids)) {
            found.push(status.describe(pid));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_process_was_started_is_told_by_one_clock() {
        let before = now_in_ticks();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let at = started(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!((before..=now_in_ticks()).contains(&at), "{before} {at}");
        assert!(started(1).unwrap() < at);
        assert_eq!(started(child.id()), None);
    }
}
