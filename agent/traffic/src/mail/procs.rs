//! What /proc says of mail processes: who is a child of Postfix's master, since when, and which files
//! it holds. Knows nothing of accounts.

use std::path::PathBuf;

/// A process, told from a later one with the same id by its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub pid: i32,
    pub parent: i32,
    pub started: u64,
    pub name: String,
}

/// The process `pid`, if there is one.
pub(super) fn process(pid: i32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (name) state parent …": the name may hold anything, so split at the last ')'.
    let (head, tail) = stat.rsplit_once(") ")?;
    let name = head.split_once(" (")?.1.to_owned();
    let fields: Vec<&str> = tail.split(' ').collect();
    // A zombie has ended: it holds nothing and does nothing.
    if *fields.first()? == "Z" {
        return None;
    }
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
        name,
    })
}

/// The children of `parent`.
pub(super) fn children(parent: i32) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter_map(process)
        .filter(|p| p.parent == parent)
        .collect()
}

/// Whether `p` still runs.
pub(super) fn runs(p: &Process) -> bool {
    process(p.pid).is_some_and(|now| now.started == p.started)
}

/// The files that `pid` holds open.
pub(super) fn open_files(pid: i32) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    entries.flatten().filter_map(|e| std::fs::read_link(e.path()).ok()).collect()
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
        assert!(process(me.parent).is_none_or(|p| p.pid == me.parent));
        assert!(!open_files(own).is_empty());
    }
}
