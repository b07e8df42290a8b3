//! The ledger's file: an append-only log of frames, each a length, a checksum and a JSON document.
//! A frame is durable when `append` returns. What was being written when the power went is
//! found by its checksum and cut off at the next opening; damage anywhere else is an error.
//!
//! Space is reserved ahead, so that taking an account back needs no free disk.

use std::convert::identity;
use std::fmt::{Debug, Display};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ferry_failpoints::around;
use ferry_proto::Fault;

const MAGIC: &[u8; 8] = b"ferryL1\n";
/// Length (u32 little-endian) and the first 8 bytes of the BLAKE3 of the document.
const HEADER: usize = 12;
/// No document is longer.
const MAX_FRAME: usize = 16 << 20;
/// Bytes reserved beyond the end.
const RESERVE: u64 = 4 << 20;

/// What the log asks of its file. Tests put a disk in its place that fails and forgets as disks do.
pub trait Disk: Debug + Send {
    /// Everything in it.
    fn read(&mut self) -> io::Result<Vec<u8>>;
    /// Writes all of `bytes` at `at`.
    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Cuts or extends it.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
    /// Waits until what was written is durable. Says once what failed: what was lost then is not
    /// tried again by calling it again.
    fn sync(&mut self) -> io::Result<()>;
    /// Reserves blocks beyond the end without changing the length.
    fn reserve(&mut self, at: u64, len: u64) -> io::Result<()>;
}

impl Disk for File {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.seek(SeekFrom::Start(0))?;
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn reserve(&mut self, at: u64, len: u64) -> io::Result<()> {
        let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&*self, flags, at, len).map_err(io::Error::from)
    }
}

/// An open log.
#[derive(Debug)]
pub struct LogFile {
    file: Box<dyn Disk>,
    path: PathBuf,
    end: u64,
    reserved: u64,
    /// A write failed and it is unknown what reached the disk: reread before going on.
    unsure: bool,
}

impl LogFile {
    /// Opens or makes the file, and gives every document in it, oldest first.
    ///
    /// # Errors
    /// If it cannot be read, or is damaged before its end.
    pub fn open(path: &Path) -> Result<(Self, Vec<Vec<u8>>), Fault> {
        let failed =
            |e: &io::Error| Fault::io(format!("cannot open the ledger {}", path.display()), e);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|e| failed(&e))?;
        sync_parent(path).map_err(|e| failed(&e))?;
        Self::on(Box::new(file), path)
    }

    /// [`Self::open`], on an open file.
    pub(super) fn on(file: Box<dyn Disk>, path: &Path) -> Result<(Self, Vec<Vec<u8>>), Fault> {
        let mut log = Self { file, path: path.to_owned(), end: 0, reserved: 0, unsure: true };
        let documents = log.reread()?;
        Ok((log, documents))
    }

    /// Appends a document and waits until it is durable. `point` is what fault tests know it by.
    ///
    /// # Errors
    /// If it is not known to be durable. [`Self::reread`] finds out.
    pub fn append(&mut self, document: &[u8], point: &dyn Display) -> Result<(), Fault> {
        if self.unsure {
            return Err(Fault::transient("the ledger's last write failed and has not been reread"));
        }
        let frame = frame(document)?;
        self.unsure = true;
        self.write(&frame, self.end, point).map_err(|e| self.failed("write to", &e))?;
        self.end += frame.len() as u64;
        self.unsure = false;
        self.reserve();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], at: u64, point: &dyn Display) -> io::Result<()> {
        around(
            || format!("ledger.{point}"),
            identity,
            || {
                self.file.write(bytes, at)?;
                self.file.sync()
            },
        )
    }

    /// Whether a write failed since the last reading.
    pub fn is_unsure(&self) -> bool {
        self.unsure
    }

    /// Bytes of documents and frames.
    pub fn len(&self) -> u64 {
        self.end
    }

    /// Reads everything again: what is there is what counts, once it is known to be durable.
    ///
    /// # Errors
    /// If it cannot be read or made durable, or is damaged before its end.
    pub fn reread(&mut self) -> Result<Vec<Vec<u8>>, Fault> {
        self.unsure = true;
        let bytes = self.read().map_err(|e| self.failed("read", &e))?;
        let (documents, end) = parse(&bytes, &self.path)?;
        // Cut a frame that never became whole.
        self.file.set_len(end as u64).map_err(|e| self.failed("cut", &e))?;
        // What was read may be the kernel's memory alone: a sync that failed is reported once, and
        // the next one has nothing to write. So what the failure may have lost, the last frame at
        // most, is written again; with it the cut becomes durable.
        let last = documents.last().map_or(MAGIC.len(), |d| HEADER + d.len());
        self.write(&bytes[end - last..end], (end - last) as u64, &"reread")
            .map_err(|e| self.failed("write to", &e))?;
        self.end = end as u64;
        self.reserved = self.end;
        self.unsure = false;
        self.reserve();
        Ok(documents)
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let bytes = self.file.read()?;
        if bytes.len() >= MAGIC.len() {
            return Ok(bytes);
        }
        // New, or made by a start that was cut off before anything was recorded.
        self.file.write(MAGIC, 0)?;
        self.file.set_len(MAGIC.len() as u64)?;
        Ok(MAGIC.to_vec())
    }

    fn failed(&self, what: &str, error: &io::Error) -> Fault {
        // Whatever the error: it says nothing of what is recorded.
        Fault::transient(format!("cannot {what} the ledger {}", self.path.display()))
            .caused_by(error)
            .remedy("free space on its file system, and look at the kernel's log for disk errors")
    }

    /// Reserves blocks beyond the end. Best effort: a full disk is what it is for.
    fn reserve(&mut self) {
        if self.reserved >= self.end + RESERVE / 2 {
            return;
        }
        if self.file.reserve(self.end, RESERVE).is_ok() {
            self.reserved = self.end + RESERVE;
        }
    }

    /// Replaces the log by `documents`, in one step: a crash leaves the old one or the new one. If there is
    /// no room for the new one, the old one stays: it is only longer, and a full disk must not keep
    /// whoever opens it from what is promised in it.
    ///
    /// # Errors
    /// If it is not known that the new one stands durably where the old one stood.
    pub fn replace(&mut self, documents: &[Vec<u8>]) -> Result<(), Fault> {
        let failed = |e: &io::Error| {
            Fault::io(format!("cannot compact the ledger {}", self.path.display()), e)
        };
        let next = self.path.with_extension("next");
        let mut bytes = MAGIC.to_vec();
        for document in documents {
            bytes.extend(frame(document)?);
        }
        let file =
            match around(|| "ledger.compacted".to_owned(), identity, || write_new(&next, &bytes)) {
                Ok(file) => file,
                Err(e) => {
                    give_up(&next, &failed(&e));
                    return Ok(());
                }
            };
        let rename = || std::fs::rename(&next, &self.path);
        match around(|| "ledger.replaced".to_owned(), identity, rename) {
            Ok(()) => {}
            // While it has its own name still, it has not taken the old one's place.
            Err(e) if next.exists() => {
                give_up(&next, &failed(&e));
                return Ok(());
            }
            Err(e) => return Err(failed(&e)),
        }
        // From here on the old one has no name: what is recorded in it would be lost.
        self.file = Box::new(file);
        self.end = bytes.len() as u64;
        self.reserved = self.end;
        self.unsure = false;
        sync_parent(&self.path).map_err(|e| failed(&e))?;
        self.reserve();
        Ok(())
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(file)
}

/// Gives the room back that a new file has taken which does not take the old one's place.
fn give_up(next: &Path, fault: &Fault) {
    // Whatever is left of it is written over at the next opening.
    let _ = std::fs::remove_file(next);
    tracing::warn!("the ledger stays as long as it is: {fault}");
}

/// The whole documents of the log at `path`, which is not changed.
///
/// # Errors
/// If it cannot be read, or is damaged before its end.
pub fn documents_at(path: &Path) -> Result<Vec<Vec<u8>>, Fault> {
    let bytes = std::fs::read(path)
        .map_err(|e| Fault::io(format!("cannot read the ledger {}", path.display()), &e))?;
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    Ok(parse(&bytes, path)?.0)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn frame(document: &[u8]) -> Result<Vec<u8>, Fault> {
    let length = u32::try_from(document.len())
        .ok()
        .filter(|l| *l as usize <= MAX_FRAME)
        .ok_or_else(|| Fault::bug("a ledger entry is too long"))?;
    let mut frame = Vec::with_capacity(HEADER + document.len());
    frame.extend(length.to_le_bytes());
    frame.extend(&checksum(document));
    frame.extend(document);
    Ok(frame)
}

fn checksum(document: &[u8]) -> [u8; 8] {
    let hash = blake3::hash(document);
    let mut sum = [0; 8];
    sum.copy_from_slice(&hash.as_bytes()[..8]);
    sum
}

/// The documents, and where the last whole frame ends.
fn parse(bytes: &[u8], path: &Path) -> Result<(Vec<Vec<u8>>, usize), Fault> {
    if !bytes.starts_with(MAGIC) {
        return Err(Fault::permanent(format!(
            "{} is not a ledger of this version",
            path.display()
        ))
        .remedy("restore it, or install the version of Ferry that wrote it"));
    }
    let mut documents = Vec::new();
    let mut at = MAGIC.len();
    while let Some(document) = whole_frame(&bytes[at..]) {
        documents.push(document.to_vec());
        at += HEADER + document.len();
    }
    // A torn frame is the last thing in the file. If whole frames follow the bad one, it was not
    // torn but damaged, and cutting there would forget what was acknowledged.
    let torn = &bytes[at..];
    let whole_follows = (1..torn.len()).any(|skip| {
        whole_frame(&torn[skip..]).is_some_and(|d| !d.is_empty() && d.first() == Some(&b'{'))
    });
    if whole_follows {
        return Err(Fault::permanent(format!("the ledger {} is damaged at byte {at}", path.display()))
            .remedy("restore it from a backup; do not delete it: it says which accounts this server must not serve"));
    }
    Ok((documents, at))
}

/// For the fuzz target `ledger`: what is kept of a log is its beginning, frame by frame, and what was cut
/// off held no whole entry. Bytes that are no log are the lines that one is made of.
pub(super) fn fuzz(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    if !bytes.starts_with(MAGIC) {
        let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let lines: Vec<Vec<u8>> = lines.map(<[u8]>::to_vec).collect();
        let frames = lines.iter().flat_map(|line| frame(line).ok()).flatten();
        let log: Vec<u8> = MAGIC.iter().copied().chain(frames).collect();
        assert_eq!(fuzz(&log).as_ref(), Some(&lines));
        return Some(lines);
    }
    let (documents, end) = parse(bytes, Path::new("ledger")).ok()?;
    let mut again = MAGIC.to_vec();
    for document in &documents {
        again.extend(frame(document).expect("it was a frame before"));
    }
    assert_eq!(&bytes[..end], again);
    assert!(whole_frame(&bytes[end..]).is_none());
    Some(documents)
}

fn whole_frame(bytes: &[u8]) -> Option<&[u8]> {
    let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    if length == 0 || length > MAX_FRAME {
        return None;
    }
    let document = bytes.get(HEADER..HEADER + length)?;
    (bytes[4..HEADER] == checksum(document)).then_some(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(n: usize) -> Vec<Vec<u8>> {
        (0..n).map(|i| format!("{{\"n\":{i}}}").into_bytes()).collect()
    }

    #[test]
    fn what_was_appended_is_there_after_reopening_and_compaction() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let (mut log, found) = LogFile::open(&path).unwrap();
        assert!(found.is_empty());
        for document in documents(5) {
            log.append(&document, &"test").unwrap();
        }
        assert_eq!(LogFile::open(&path).unwrap().1, documents(5));
        log.replace(&documents(2)).unwrap();
        log.append(b"{\"later\":1}", &"test").unwrap();
        let mut expected = documents(2);
        expected.push(b"{\"later\":1}".to_vec());
        assert_eq!(LogFile::open(&path).unwrap().1, expected);
    }

    #[test]
    fn a_torn_last_frame_is_cut_at_every_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let (mut log, _) = LogFile::open(&path).unwrap();
        for document in documents(2) {
            log.append(&document, &"test").unwrap();
        }
        let whole = std::fs::read(&path).unwrap();
        let last = HEADER + documents(2)[1].len();
        for cut in 1..last {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let (mut log, found) = LogFile::open(&path).unwrap();
            assert_eq!(found, documents(1), "cut {cut}");
            log.append(b"{\"after\":1}", &"test").unwrap();
            assert_eq!(LogFile::open(&path).unwrap().1.len(), 2, "cut {cut}");
        }
    }

    #[test]
    fn damage_before_the_end_is_refused_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let (mut log, _) = LogFile::open(&path).unwrap();
        for document in documents(3) {
            log.append(&document, &"test").unwrap();
        }
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[MAGIC.len() + HEADER + 2] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let fault = LogFile::open(&path).unwrap_err();
        assert!(fault.message.contains("damaged at byte 8"), "{fault}");
    }
}
