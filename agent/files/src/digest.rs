//! Digests: of one content, and of a whole manifest. Both ends compute them the same way; neither must
//! know what they are compared for.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::codec::Writer;
use crate::content::{self, Part};
use crate::entries::{Entry, Link, encode_entry};
use crate::halt::Halt;
use crate::metadata::Stat;
use crate::protocol::Place;
use crate::window::Batch;

/// Contents are digested in blocks of this length.
const BLOCK: usize = 64 * 1024;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// BLAKE3 over a content in a form in which zero blocks cost nothing, so that a hole of many terabytes
/// does not either: each block that is not all zero with its number before it, then the length.
#[derive(Debug)]
struct ContentDigest {
    hasher: blake3::Hasher,
    block: Vec<u8>,
    number: u64,
}

impl ContentDigest {
    fn new() -> Self {
        Self { hasher: blake3::Hasher::new(), block: Vec::with_capacity(BLOCK), number: 0 }
    }

    fn data(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = BLOCK - self.block.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == BLOCK {
                self.close_block();
            }
        }
    }

    fn hole(&mut self, mut length: u64) {
        if !self.block.is_empty() {
            let room = (BLOCK - self.block.len()) as u64;
            let now = room.min(length);
            // At most a block, so it fits.
            self.data(&ZEROS[..now as usize]);
            length -= now;
        }
        self.number += length / BLOCK as u64;
        self.data(&ZEROS[..(length % BLOCK as u64) as usize]);
    }

    fn close_block(&mut self) {
        if self.block != ZEROS[..self.block.len()] {
            self.hasher.update(&self.number.to_le_bytes());
            self.hasher.update(&self.block);
        }
        self.number += 1;
        self.block.clear();
    }

    fn finish(mut self, length: u64) -> [u8; 32] {
        self.close_block();
        self.hasher.update(&length.to_le_bytes());
        *self.hasher.finalize().as_bytes()
    }
}

/// Why a digest was not made.
#[derive(Debug)]
pub enum Undigested {
    /// Reading failed.
    Failed(Errno),
    /// All was stopped.
    Stopped,
}

impl From<Errno> for Undigested {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

/// The digest and the length of an open file's content. `has_read` is told of each piece of it.
pub fn of_file(
    file: &OwnedFd,
    stat: &Stat,
    buffer: &mut Vec<u8>,
    halt: &Halt,
    mut has_read: impl FnMut(usize),
) -> Result<([u8; 32], u64), Undigested> {
    let mut digest = ContentDigest::new();
    let length = content::read(file, stat, 0..stat.size, buffer, |part| {
        match part {
            Part::Data(bytes) => {
                digest.data(bytes);
                has_read(bytes.len());
            }
            Part::Hole(length) => digest.hole(length),
        }
        if halt.is_stopped() { Err(Undigested::Stopped) } else { Ok(()) }
    })?;
    Ok((digest.finish(length), length))
}

/// The digest of an open file's content as it is now, in hex. `has_read` is told of each piece of it.
pub fn in_hex(
    file: &OwnedFd,
    halt: &Halt,
    has_read: impl FnMut(usize),
) -> Result<String, Undigested> {
    let stat = Stat::of_fd(file)?;
    let (digest, _) = of_file(file, &stat, &mut Vec::new(), halt, has_read)?;
    Ok(hex(digest))
}

/// A digest for people, and for comparison with one that was written down.
pub fn hex(digest: [u8; 32]) -> String {
    blake3::Hash::from_bytes(digest).to_hex().to_string()
}

/// Digests of the parts of a manifest: of one batch each, contents and all.
///
/// Directories are walked several at once, so that batches come about in any order: the manifest's digest
/// is one of them all, sorted.
#[derive(Debug, Default)]
pub struct Manifest(Mutex<Vec<[u8; 32]>>);

/// What is known of one batch while its contents are digested.
#[derive(Debug)]
pub struct BatchDigest {
    /// Of its directory's path, and all that the source says of its entries but for the contents.
    entries: [u8; 32],
    contents: Mutex<Contents>,
}

#[derive(Debug, Default)]
struct Contents {
    digests: Vec<(u16, [u8; 32])>,
    /// How many are to come.
    left: usize,
}

impl BatchDigest {
    /// Of entries of the directory at `path`, of which so many contents are to be digested.
    pub fn new(path: &[u8], entries: &mut [Entry], contents: usize) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut scratch = Vec::new();
        Writer::new(&mut scratch).bytes(path);
        for entry in entries {
            // The number of a group is only this pass's.
            let link = entry.link;
            entry.link = link.map(|link| Link { group: 0, ..link });
            encode_entry(&mut Writer::new(&mut scratch), entry);
            entry.link = link;
        }
        hasher.update(&scratch);
        let left = Contents { digests: Vec::new(), left: contents };
        Self { entries: *hasher.finalize().as_bytes(), contents: Mutex::new(left) }
    }

    fn finish(&self, contents: &mut Contents) -> [u8; 32] {
        contents.digests.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.entries);
        for (index, digest) in &contents.digests {
            hasher.update(&index.to_le_bytes());
            hasher.update(digest);
        }
        *hasher.finalize().as_bytes()
    }
}

impl Manifest {
    /// A batch without a content to digest.
    pub fn batch(&self, digest: &BatchDigest) {
        let mut contents = lock(&digest.contents);
        let digest = digest.finish(&mut contents);
        drop(contents);
        lock(&self.0).push(digest);
    }

    /// A content of `batch` was digested.
    pub fn content(&self, batch: &Batch, place: Place, content: [u8; 32]) {
        let Some(digest) = &batch.digest else { return };
        let mut contents = lock(&digest.contents);
        contents.digests.push((place.index, content));
        contents.left = contents.left.saturating_sub(1);
        if contents.left == 0 {
            let whole = digest.finish(&mut contents);
            drop(contents);
            lock(&self.0).push(whole);
        }
    }

    /// The digest of the whole, in hex.
    pub fn digest(&self) -> String {
        let mut parts = std::mem::take(&mut *lock(&self.0));
        parts.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        for part in &parts {
            hasher.update(part);
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in it is pushed to or counted down, never left half done.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(parts: &[Part<'_>]) -> [u8; 32] {
        let mut digest = ContentDigest::new();
        let mut length = 0;
        for part in parts {
            match part {
                Part::Data(bytes) => {
                    digest.data(bytes);
                    length += bytes.len() as u64;
                }
                Part::Hole(hole) => {
                    digest.hole(*hole);
                    length += hole;
                }
            }
        }
        digest.finish(length)
    }

    #[test]
    fn layout_does_not_matter_and_content_does() {
        let zeros = vec![0; 3 * BLOCK + 100];
        let mut data = zeros.clone();
        data[BLOCK + 5] = 7;
        let plain = digest(&[Part::Data(&data)]);
        let pieces: Vec<_> = data.chunks(999).map(Part::Data).collect();
        assert_eq!(digest(&pieces), plain);
        let tail = 2 * BLOCK as u64 + 100 - 6;
        let sparse = [Part::Hole(BLOCK as u64 + 5), Part::Data(&[7]), Part::Hole(tail)];
        assert_eq!(digest(&sparse), plain);
        assert_ne!(digest(&[Part::Data(&zeros)]), plain);
        assert_eq!(digest(&[Part::Data(&zeros)]), digest(&[Part::Hole(zeros.len() as u64)]));
        assert_ne!(digest(&[Part::Hole(1)]), digest(&[Part::Hole(2)]));
        assert_ne!(digest(&[Part::Hole(1)]), digest(&[]));
    }

    #[test]
    fn a_hole_of_exabytes_costs_nothing() {
        digest(&[Part::Hole(u64::MAX / 2), Part::Data(b"x")]);
    }
}
