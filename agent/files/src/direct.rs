//! Contents of large new files go to the disk past the page cache. That is one copy of each byte less, what the
//! host's own services have in the cache stays there, and the disk heeds the priority of whoever writes, which it
//! does not know of what the kernel writes back later. It must not know whose contents they are.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};

use crate::metadata::proc_path;

/// Files from this length on are written so.
pub const SMALLEST: u64 = 8 << 20;
/// As much is written at a time.
const GATHERED: usize = 1 << 20;
/// Where in the file, and in memory, it begins, and a multiple of it how long it is: no disk asks for more.
const ALIGNED: usize = 4096;

/// A file, by both ways.
#[derive(Debug)]
pub struct Direct {
    fd: OwnedFd,
    /// The file system or its disk does not take it so after all.
    is_refused: AtomicBool,
}

impl Direct {
    /// Opens the way past the cache to a new file that will be so long, and makes it so long: a file that grows is
    /// written by one thread at a time. None where there is no such way, or no sense in it.
    pub fn open(file: BorrowedFd<'_>, size: u64) -> Option<Self> {
        if size < SMALLEST {
            return None;
        }
        let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        let fd = rustix::fs::open(proc_path(file), flags, Mode::empty()).ok()?;
        // What is too long is told of when it is written.
        rustix::fs::ftruncate(file, size).ok()?;
        Some(Self { fd, is_refused: AtomicBool::new(false) })
    }

    /// Writes what it can of `bytes`. Answers how much that was.
    fn write(&self, bytes: &[u8], at: u64) -> Result<usize> {
        let is_aligned =
            at.is_multiple_of(ALIGNED as u64) && !self.is_refused.load(Ordering::Relaxed);
        let length = if is_aligned { bytes.len() / ALIGNED * ALIGNED } else { 0 };
        match write_all(self.fd.as_fd(), &bytes[..length], at) {
            Ok(()) => Ok(length),
            Err(Errno::INVAL | Errno::NOTSUP) => {
                self.is_refused.store(true, Ordering::Relaxed);
                Ok(0)
            }
            Err(errno) => Err(errno),
        }
    }
}

/// Bytes of one file that follow each other and are not written yet.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Made with the first bytes; some of its beginning is not used, so that what follows is aligned.
    buffer: Vec<u8>,
    /// Where in the file they begin.
    at: u64,
    length: usize,
}

impl Gathered {
    /// Bytes come that go to `at`, where the ones before ended if some are not written yet.
    ///
    /// # Errors
    /// What had been gathered cannot be written.
    pub fn add(
        &mut self,
        file: BorrowedFd<'_>,
        direct: &Direct,
        at: u64,
        mut bytes: &[u8],
    ) -> Result<()> {
        if self.length == 0 {
            self.at = at;
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(GATHERED - self.length));
            let from = self.length;
            self.space()[from..from + now.len()].copy_from_slice(now);
            self.length += now.len();
            bytes = later;
            if self.length == GATHERED {
                self.write(file, direct)?;
                self.at += GATHERED as u64;
            }
        }
        Ok(())
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&mut self, file: BorrowedFd<'_>, direct: &Direct) -> Result<()> {
        let (length, at) = (std::mem::take(&mut self.length), self.at);
        let bytes = &self.space()[..length];
        let done = direct.write(bytes, at)?;
        write_all(file, &bytes[done..], at + done as u64)
    }

    fn space(&mut self) -> &mut [u8] {
        if self.buffer.is_empty() {
            self.buffer = vec![0; GATHERED + ALIGNED];
        }
        let from = self.buffer.as_ptr().align_offset(ALIGNED);
        &mut self.buffer[from..from + GATHERED]
    }
}

/// Writes all of it, there.
///
/// # Errors
/// As pwrite(2).
pub fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8], mut at: u64) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(length) => {
                bytes = &bytes[length..];
                at += length as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;

    use super::*;

    /// Of which no two pages are alike.
    fn content(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at / 7 + at / 4096) as u8).collect()
    }

    /// Writes the content of such a length from `from` on, in pieces of `piece`. Answers what stands there.
    fn written(dir: &Path, length: usize, from: usize, piece: usize, refuses: bool) -> Vec<u8> {
        let (path, content) = (dir.join("file"), content(length));
        let file = File::create(&path).unwrap();
        let direct = Direct::open(file.as_fd(), length as u64).unwrap();
        direct.is_refused.store(refuses, Ordering::Relaxed);
        let mut gathered = Gathered::default();
        let mut at = from;
        for bytes in content[from..].chunks(piece) {
            gathered.add(file.as_fd(), &direct, at as u64, bytes).unwrap();
            at += bytes.len();
        }
        gathered.write(file.as_fd(), &direct).unwrap();
        // There is nothing left of it.
        gathered.write(file.as_fd(), &direct).unwrap();
        assert!(fs::read(&path).unwrap()[from..] == content[from..], "{length} {from} {piece}");
        fs::read(&path).unwrap()
    }

    #[test]
    fn a_file_is_written_whole_however_its_bytes_come() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let length = SMALLEST as usize + 3 * GATHERED / 2 + 17;
        for piece in [128 << 10, 100_001, GATHERED, 3 * GATHERED + 5, length] {
            for from in [0, 4096, 4097, 2 * GATHERED] {
                let there = written(dir.path(), length, from, piece, false);
                assert!(there[..from].iter().all(|byte| *byte == 0));
            }
        }
        written(dir.path(), length, 0, 100_001, true);
    }

    #[test]
    fn a_small_file_has_no_use_for_it() {
        let file = tempfile::tempfile().unwrap();
        assert!(Direct::open(file.as_fd(), SMALLEST - 1).is_none());
    }

    #[test]
    fn where_a_disk_refuses_the_cache_takes_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // The kernel does not take our bytes for such a number: it refuses as a file system does that cannot.
        let refusing = File::options().write(true).open("/proc/self/oom_score_adj").unwrap();
        let direct = Direct { fd: refusing.into(), is_refused: AtomicBool::new(false) };
        let mut gathered = Gathered::default();
        let content = content(10_000);
        gathered.add(file.as_fd(), &direct, 0, &content).unwrap();
        gathered.write(file.as_fd(), &direct).unwrap();
        assert!(direct.is_refused.into_inner());
        assert!(fs::read(file.path()).unwrap() == content);
    }
}
