//! Looks into a home, whose content is hostile: below its descriptor only, no symlink followed, no
//! mount crossed, and everything bounded.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::Layout;

/// How many entries of a home are looked at, and how deep.
const ENTRIES: usize = 50_000;
const DEPTH: usize = 6;
/// The largest file of settings, and the most of them.
const FILE_CAP: u64 = 256 << 10;
const FILES: usize = 200;

const CONFINED: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);
const STRICT: ResolveFlags = CONFINED.union(ResolveFlags::NO_SYMLINKS);

/// An open home.
pub(super) struct Home(OwnedFd);

impl Home {
    pub(super) fn open(layout: &Layout, home: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::open(layout.path(home), flags, Mode::empty()).map(Self)
    }

    fn at(&self, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        // A FIFO does not block, a terminal is not taken over. openat2 takes neither for a mere handle.
        let harmless = OFlags::NONBLOCK | OFlags::NOCTTY;
        let flags = if flags.contains(OFlags::PATH) { flags } else { flags | harmless };
        let mut left = 8;
        loop {
            match rustix::fs::openat2(
                self.0.as_fd(),
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            ) {
                // A rename elsewhere disturbed the resolution.
                Err(Errno::AGAIN | Errno::INTR) if left > 0 => left -= 1,
                other => return other,
            }
        }
    }

    /// Whether `path` is a directory that symlinks do not lead out of the home.
    pub(super) fn holds_directory(&self, path: &Path) -> bool {
        self.at(path, OFlags::PATH | OFlags::DIRECTORY, CONFINED).is_ok()
    }

    /// Whether `path` is a regular file reached without symlinks.
    pub(super) fn holds_file(&self, path: &Path) -> bool {
        let handle = self.at(path, OFlags::PATH | OFlags::NOFOLLOW, STRICT);
        let stat = handle.and_then(rustix::fs::fstat);
        stat.is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile)
    }

    /// The names of a directory, those of subdirectories told apart.
    pub(super) fn list(&self, path: &Path) -> Vec<(PathBuf, bool)> {
        self.entries(path, ENTRIES)
    }

    fn entries(&self, path: &Path, most: usize) -> Vec<(PathBuf, bool)> {
        let Ok(directory) = self.at(path, OFlags::RDONLY | OFlags::DIRECTORY, STRICT) else {
            return Vec::new();
        };
        let dots: [&CStr; 2] = [c".", c".."];
        let mut found: Vec<(PathBuf, bool)> = Dir::read_from(&directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| !dots.contains(&entry.file_name()))
            .take(most)
            .map(|entry| {
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                let child = path.join(name);
                // Some file systems do not tell the type in the listing.
                let directory = match entry.file_type() {
                    FileType::Unknown => self
                        .at(&child, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW, STRICT)
                        .is_ok(),
                    kind => kind == FileType::Directory,
                };
                (child, directory)
            })
            .collect();
        found.sort();
        found
    }

    fn read(&self, path: &Path) -> Option<String> {
        let file = File::from(self.at(path, OFlags::RDONLY | OFlags::NOFOLLOW, STRICT).ok()?);
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || metadata.len() > FILE_CAP {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(FILE_CAP).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The files of these names, nearest first and not deep, with what they say. True: there was too
    /// much to look at all.
    pub(super) fn find(&self, names: &[&str]) -> (Vec<(PathBuf, String)>, bool) {
        let mut found = Vec::new();
        let mut level = vec![PathBuf::new()];
        let mut left = ENTRIES;
        for _ in 0..DEPTH {
            let mut next = Vec::new();
            for directory in level {
                let entries = self.entries(&directory, left);
                left -= entries.len();
                for (path, is_directory) in entries {
                    let wanted = path.file_name().is_some_and(|n| names.iter().any(|w| n == *w));
                    if is_directory {
                        next.push(path);
                    } else if wanted && let Some(text) = self.read(&path) {
                        found.push((path, text));
                    }
                }
                if left == 0 || found.len() >= FILES {
                    found.truncate(FILES);
                    return (found, true);
                }
            }
            level = next;
        }
        (found, false)
    }
}
