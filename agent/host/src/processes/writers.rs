//! Who can still write below an account's roots: every process of any user that holds a writable
//! descriptor or a shared mapping that may be written. Web servers, mail delivery and FTP daemons
//! write as users of their own, so users are not looked at.
//!
//! Not seen: files registered with io_uring and descriptors in flight on a socket. Neither is used
//! by a Debian daemon for accounts' files, and the account's own processes are ended before.

use std::cell::LazyCell;
use std::collections::HashSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};

use super::file_table::FileTable;
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

/// Whether to stop looking: asked again and again, so that no number of processes, threads or open files
/// keeps anybody waiting.
pub type Stop<'a> = &'a dyn Fn() -> bool;

/// After how many descriptors it is asked again.
const ASKED_EVERY: usize = 256;

/// The processes, `exclude` left out, that can write below one of `roots`; one entry a process. The
/// roots must be given without symlinks.
///
/// # Errors
/// If the process table cannot be read. Transient, if it was stopped before it had seen all.
pub fn writers_below(
    roots: &[PathBuf],
    exclude: &[u32],
    stop: Stop<'_>,
) -> Result<Vec<Writer>, Fault> {
    let search = Search::below(roots, stop)?;
    let own = std::process::id();
    let mut found = Vec::new();
    for pid in pids()? {
        if pid != own && !exclude.contains(&pid) {
            found.extend(search.process(pid, &mut Looked::default())?);
        }
    }
    Ok(found)
}

/// Waits until nobody can write below `roots`: `timeout` for those that can to let go, and for looking as
/// long as that takes, unless it is stopped.
///
/// # Errors
/// Transient, naming those that still can, if `timeout` passes; or if it is stopped.
pub fn wait_no_writers(
    roots: &[PathBuf],
    exclude: &[u32],
    timeout: Duration,
    stop: Stop<'_>,
) -> Result<(), Fault> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(5);
    loop {
        let writers = writers_below(roots, exclude, stop)?;
        if writers.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let names: Vec<String> = writers.iter().take(5).map(Writer::to_string).collect();
            return Err(Fault::transient(format!(
                "{} processes can still write below the account's roots: {}",
                writers.len(),
                names.join(", ")
            ))
            .remedy("stop these processes, or let them close the files"));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

struct Search<'a> {
    roots: &'a [PathBuf],
    places: Vec<Place>,
    namespace: Option<PathBuf>,
    here: Mounts,
    stop: Stop<'a>,
}

/// What of a process has been looked at, each for the mounts that it was looked at with.
#[derive(Debug, Default)]
struct Looked {
    files: Vec<(FileTable, Option<PathBuf>)>,
    memory: Vec<Option<PathBuf>>,
}

impl<'a> Search<'a> {
    fn below(roots: &'a [PathBuf], stop: Stop<'a>) -> Result<Self, Fault> {
        let here = Mounts::parse(
            &fs::read_to_string("/proc/self/mountinfo")
                .map_err(|e| Fault::io("the mounts of this host could not be read", &e))?,
        );
        Ok(Self {
            roots,
            places: roots.iter().flat_map(|root| here.places_of(root)).collect(),
            namespace: fs::read_link("/proc/self/ns/mnt").ok(),
            here,
            stop,
        })
    }

    /// Looks at every thread: each may have descriptors and mounts of its own, and those of the first
    /// one are gone once it has ended, though the others work on. What they share is looked at once.
    fn process(&self, pid: u32, looked: &mut Looked) -> Result<Option<Writer>, Fault> {
        for task in tasks(pid) {
            self.go_on()?;
            if let Some((path, how)) = self.thread(pid, task, looked)? {
                return Ok(Status::read(pid).map(|status| {
                    let process = status.describe(pid);
                    Writer { pid, uid: process.uid, comm: process.comm, path, how }
                }));
            }
        }
        Ok(None)
    }

    fn go_on(&self) -> Result<(), Fault> {
        if !(self.stop)() {
            return Ok(());
        }
        Err(Fault::transient(
            "there was no time to look at every process that may write below the account's roots",
        )
        .remedy(
            "find who has very many processes, threads or open files on this server (ls /proc/PID/task, \
             /proc/PID/fd), end that, and move again",
        ))
    }

    fn thread(
        &self,
        pid: u32,
        task: u32,
        looked: &mut Looked,
    ) -> Result<Option<(PathBuf, How)>, Fault> {
        let thread = format!("/proc/{pid}/task/{task}");
        let namespace = fs::read_link(format!("{thread}/ns/mnt")).ok();
        let new_files = !looked.files.iter().any(|(f, n)| *n == namespace && f.is_of(pid, task));
        let new_memory = !looked.memory.contains(&namespace);
        if !new_files && !new_memory {
            return Ok(None);
        }
        // Read only for the few that live among other mounts than ours.
        let foreign = namespace
            .as_ref()
            .filter(|_| namespace != self.namespace)
            .and_then(|_| fs::read_to_string(format!("{thread}/mountinfo")).ok())
            .map(|text| Mounts::parse(&text));
        let mounts = foreign.as_ref().unwrap_or(&self.here);
        if new_files {
            // Known before it is looked at: the thread's number may pass to another one meanwhile.
            let table = FileTable::of(pid, task);
            if let Some(path) = self.descriptor(&thread, mounts)? {
                return Ok(Some((path, How::Descriptor)));
            }
            looked.files.extend(table.map(|table| (table, namespace.clone())));
        }
        let maps = if new_memory { fs::read(format!("{thread}/maps")) } else { return Ok(None) };
        // A thread that has ended has no memory any more.
        let Some(maps) = maps.ok().filter(|maps| !maps.is_empty()) else { return Ok(None) };
        looked.memory.push(namespace);
        let maps = String::from_utf8_lossy(&maps);
        Ok(self.mapping(&thread, &maps, mounts).map(|path| (path, How::Mapping)))
    }

    fn is_below(&self, path: &Path, mount: Option<u64>, mounts: &Mounts) -> bool {
        match mounts.place(path, mount) {
            Some(place) => self.places.iter().any(|root| place.is_below(root)),
            None => self.roots.iter().any(|root| path.starts_with(root)),
        }
    }

    fn descriptor(&self, thread: &str, mounts: &Mounts) -> Result<Option<PathBuf>, Fault> {
        let Ok(entries) = fs::read_dir(format!("{thread}/fd")) else { return Ok(None) };
        for (count, entry) in entries.flatten().enumerate() {
            if count.is_multiple_of(ASKED_EVERY) {
                self.go_on()?;
            }
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
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    fn mapping(&self, thread: &str, maps: &str, mounts: &Mounts) -> Option<PathBuf> {
        let read_only = LazyCell::new(|| never_written(thread));
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
                && (permissions.contains('w') || !read_only.contains(range))
            {
                return Some(path);
            }
        }
        None
    }
}

/// The mappings that cannot be made writable: no `mw` in their flags.
fn never_written(thread: &str) -> HashSet<String> {
    let smaps = fs::read(format!("{thread}/smaps")).unwrap_or_default();
    let smaps = String::from_utf8_lossy(&smaps);
    let mut range = "";
    let mut found = HashSet::new();
    for line in smaps.lines() {
        match line.strip_prefix("VmFlags:") {
            Some(flags) if flags.split_whitespace().all(|flag| flag != "mw") => {
                found.insert(range.to_owned());
            }
            Some(_) => {}
            // `RANGE PERMISSIONS ...` begins a mapping, `NAME: VALUE` tells of it.
            None => {
                let word = line.split(' ').next().unwrap_or_default();
                if !word.ends_with(':') {
                    range = word;
                }
            }
        }
    }
    found
}

/// A deleted file's name without the kernel's mark: it can be linked in again.
fn without_deleted(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    let plain = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    PathBuf::from(std::ffi::OsStr::from_bytes(plain))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::File;
    use std::sync::Barrier;

    use ferry_proto::FaultClass;
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// What is found in this process, and in how many tables of files and memories.
    fn looked_at(roots: &[PathBuf]) -> Result<(Option<PathBuf>, usize, usize), Fault> {
        let mut looked = Looked::default();
        let found = Search::below(roots, &|| false)?.process(std::process::id(), &mut looked)?;
        Ok((found.map(|writer| writer.path), looked.files.len(), looked.memory.len()))
    }

    #[test]
    fn what_threads_share_is_looked_at_once_and_what_one_has_alone_too() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let file = root.join("written");
        let (turn, roots) = (Barrier::new(9), [root]);
        let (shared, alone) = std::thread::scope(|scope| {
            for _ in 0..7 {
                scope.spawn(|| {
                    for _ in 0..4 {
                        turn.wait();
                    }
                });
            }
            scope.spawn(|| {
                turn.wait();
                turn.wait();
                let own = unshare(CloneFlags::CLONE_FILES).map(|()| File::create(&file));
                turn.wait();
                turn.wait();
                own.unwrap().unwrap();
            });
            turn.wait();
            let shared = looked_at(&roots);
            turn.wait();
            // Now one has its own.
            turn.wait();
            let alone = looked_at(&roots);
            turn.wait();
            (shared, alone)
        });
        assert_eq!(shared, Ok((None, 1, 1)));
        assert_eq!(alone, Ok((Some(file), 1, 1)));
    }

    #[test]
    fn a_look_is_stopped_between_processes_and_within_one() {
        let roots = [PathBuf::from("/nowhere")];
        let fault = writers_below(&roots, &[], &|| true).unwrap_err();
        assert_eq!(fault.class, FaultClass::Transient, "{fault}");
        let open: Vec<File> = (0..2 * ASKED_EVERY).map(|_| File::open("/").unwrap()).collect();
        let asked = Cell::new(0);
        let stop = || asked.replace(asked.get() + 1) == 2;
        let search = Search::below(&roots, &stop).unwrap();
        let fault = search.descriptor("/proc/self", &search.here).unwrap_err();
        assert_eq!(fault.class, FaultClass::Transient, "{fault}");
        drop(open);
    }
}
