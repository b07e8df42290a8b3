//! Who can still write below an account's roots: every process of any user that holds a writable
//! descriptor or a shared mapping that may be written. Web servers, mail delivery and FTP daemons
//! write as users of their own, so users are not looked at.
//!
//! Not seen: files registered with io_uring and descriptors in flight on a socket. Neither is used
//! by a Debian daemon for accounts' files, and the account's own processes are ended before.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferry_proto::{Fault, FaultClass};
use serde::{Deserialize, Serialize};

use super::mounts::{Mounts, Place, unescape};
use super::table::{Status, pids, tasks};

/// How a process can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// By an open descriptor.
    Descriptor,
    /// By a shared mapping.
    Mapping,
}

/// A process that can write below a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// The process.
    pub pid: u32,
    /// The user that it acts as.
    pub uid: u32,
    /// Its name.
    pub comm: String,
    /// The file.
    pub path: PathBuf,
    /// How it can write it.
    pub how: How,
}

impl std::fmt::Display for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {}, user {}) writes {:?}", self.comm, self.pid, self.uid, self.path)
    }
}

/// The processes, `exclude` left out, that can write below one of `roots`; one entry a process. The
/// roots must be given without symlinks.
///
/// # Errors
/// If the process table cannot be read.
pub fn writers_below(roots: &[PathBuf], exclude: &[u32]) -> Result<Vec<Writer>, Fault> {
    let here = Mounts::parse(
        &fs::read_to_string("/proc/self/mountinfo")
            .map_err(|e| Fault::io("the mounts of this host could not be read", &e))?,
    );
    let search = Search {
        roots,
        places: roots.iter().flat_map(|root| here.places_of(root)).collect(),
        namespace: fs::read_link("/proc/self/ns/mnt").unwrap_or_default(),
        here,
    };
    let own = std::process::id();
    let mut found = Vec::new();
    for pid in pids()? {
        if pid != own && !exclude.contains(&pid) {
            found.extend(search.process(pid));
        }
    }
    Ok(found)
}

/// Waits until nobody can write below `roots`.
///
/// # Errors
/// Transient, naming those that still can, if `timeout` passes.
pub fn wait_no_writers(roots: &[PathBuf], exclude: &[u32], timeout: Duration) -> Result<(), Fault> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(5);
    loop {
        let writers = writers_below(roots, exclude)?;
        if writers.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let names: Vec<String> = writers.iter().take(5).map(Writer::to_string).collect();
            return Err(Fault::new(
                FaultClass::Transient,
                format!(
                    "{} processes can still write below the account's roots: {}",
                    writers.len(),
                    names.join(", ")
                ),
            )
            .remedy("stop these processes, or let them close the files"));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

struct Search<'a> {
    roots: &'a [PathBuf],
    places: Vec<Place>,
    namespace: PathBuf,
    here: Mounts,
}

impl Search<'_> {
    /// Looks at every thread: each may have descriptors and mounts of its own, and those of the first
    /// one are gone once it has ended, though the others work on.
    fn process(&self, pid: u32) -> Option<Writer> {
        let mut threads = tasks(pid).into_iter().map(|task| format!("/proc/{pid}/task/{task}"));
        let (path, how) = threads.find_map(|thread| self.thread(&thread))?;
        let process = Status::read(pid)?.describe(pid);
        Some(Writer { pid, uid: process.uid, comm: process.comm, path, how })
    }

    fn thread(&self, thread: &str) -> Option<(PathBuf, How)> {
        // Read only for the few that live among other mounts than ours.
        let foreign = fs::read_link(format!("{thread}/ns/mnt"))
            .ok()
            .filter(|namespace| *namespace != self.namespace)
            .and_then(|_| fs::read_to_string(format!("{thread}/mountinfo")).ok())
            .map(|text| Mounts::parse(&text));
        let mounts = foreign.as_ref().unwrap_or(&self.here);
        self.descriptor(thread, mounts)
            .map(|path| (path, How::Descriptor))
            .or_else(|| self.mapping(thread, mounts).map(|path| (path, How::Mapping)))
    }

    fn is_below(&self, path: &Path, mount: Option<u64>, mounts: &Mounts) -> bool {
        match mounts.place(path, mount) {
            Some(place) => self.places.iter().any(|root| place.is_below(root)),
            None => self.roots.iter().any(|root| path.starts_with(root)),
        }
    }

    fn descriptor(&self, thread: &str, mounts: &Mounts) -> Option<PathBuf> {
        let directory = format!("{thread}/fd");
        for entry in fs::read_dir(&directory).ok()?.flatten() {
            // The kernel shows in the link's own mode how the file was opened.
            if !entry.metadata().is_ok_and(|m| m.mode() & 0o200 != 0) {
                continue;
            }
            let Ok(link) = fs::read_link(entry.path()) else {
                continue;
            };
            if !link.as_os_str().as_bytes().starts_with(b"/") {
                continue;
            }
            let info = PathBuf::from(format!("{thread}/fdinfo")).join(entry.file_name());
            let Ok(info) = fs::read_to_string(info) else {
                continue;
            };
            let mount = info.lines().find_map(|l| l.strip_prefix("mnt_id:")?.trim().parse().ok());
            if self.is_below(&without_deleted(&link), mount, mounts) {
                return Some(link);
            }
        }
        None
    }

    fn mapping(&self, thread: &str, mounts: &Mounts) -> Option<PathBuf> {
        let maps = fs::read(format!("{thread}/maps")).ok()?;
        let maps = String::from_utf8_lossy(&maps);
        for line in maps.lines() {
            let mut fields = line.splitn(6, ' ');
            let range = fields.next()?;
            let permissions = fields.next()?;
            let path = fields.nth(3).map(str::trim_start).unwrap_or_default();
            if !permissions.ends_with('s') || !path.starts_with('/') {
                continue;
            }
            let path = unescape(path);
            if self.is_below(&without_deleted(&path), None, mounts)
                && (permissions.contains('w') || may_write(thread, range))
            {
                return Some(path);
            }
        }
        None
    }
}

/// Whether a shared mapping that is not writable now may be made so: `mw` in its flags.
fn may_write(thread: &str, range: &str) -> bool {
    let Ok(smaps) = fs::read(format!("{thread}/smaps")) else {
        return false;
    };
    let smaps = String::from_utf8_lossy(&smaps);
    smaps
        .lines()
        .skip_while(|line| !line.starts_with(range))
        .find_map(|line| line.strip_prefix("VmFlags:"))
        .is_none_or(|flags| flags.split_whitespace().any(|flag| flag == "mw"))
}

/// A deleted file's name without the kernel's mark: it can be linked in again.
fn without_deleted(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    let plain = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    PathBuf::from(std::ffi::OsStr::from_bytes(plain))
}
