//! What /proc says of mail processes: who works in which directory, since when, and which files it holds.
//! Knows nothing of accounts.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A process, told from a later one with the same id by its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub pid: i32,
    pub started: u64,
    pub name: String,
    /// Whether it waited for something when it was looked at: one that is about to act, or is stopped
    /// before it, does not.
    pub waits: bool,
}

/// The process `pid`, if there is one.
pub(super) fn process(pid: i32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (name) state parent …": the name may hold anything, so split at the last ')'.
    let (head, tail) = stat.rsplit_once(") ")?;
    let name = head.split_once(" (")?.1.to_owned();
    let fields: Vec<&str> = tail.split(' ').collect();
    // A zombie has ended: it holds nothing and does nothing.
    let state = *fields.first()?;
    if state == "Z" {
        return None;
    }
    Some(Process { pid, started: fields.get(19)?.parse().ok()?, name, waits: state == "S" })
}

/// The processes with one of these names that work in the directory `dir`, whoever is their parent.
pub(super) fn at_work(dir: &Path, names: &[&str]) -> Vec<Process> {
    let place = |path: &Path| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let Some(wanted) = place(dir) else {
        return Vec::new();
    };
    let is_there = |p: &Process| place(&link(p.pid, "cwd")) == Some(wanted);
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter_map(process)
        .filter(|p| names.contains(&p.name.as_str()) && is_there(p))
        .collect()
}

/// Whether `p` still runs.
pub(super) fn runs(p: &Process) -> bool {
    process(p.pid).is_some_and(|now| now.started == p.started)
}

/// The files that `pid` holds open; none if that cannot be seen.
pub(super) fn open_files(pid: i32) -> Option<Vec<PathBuf>> {
    let entries = std::fs::read_dir(link(pid, "fd")).ok()?;
    Some(entries.flatten().filter_map(|e| std::fs::read_link(e.path()).ok()).collect())
}

/// The directory that `pid` works in, as it names its open files; none if that cannot be seen.
pub(super) fn directory(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(link(pid, "cwd")).ok()
}

fn link(pid: i32, name: &str) -> PathBuf {
    format!("/proc/{pid}/{name}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found() {
        let own = i32::try_from(std::process::id()).expect("a process id fits");
        let me = process(own).expect("this process runs");
        assert!(runs(&me));
        assert!(!runs(&Process { started: me.started + 1, ..me.clone() }));
        assert!(open_files(own).is_some_and(|files| !files.is_empty()));
        let here = std::env::current_dir().expect("a directory");
        assert_eq!(directory(own).as_ref(), Some(&here));
        let found = |dir: &Path, name: &str| at_work(dir, &[name]).iter().any(|p| p.pid == own);
        assert!(found(&here, &me.name));
        assert!(!found(Path::new("/proc"), &me.name) && !found(&here, "another"));
    }
}
