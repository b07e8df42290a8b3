//! Digests: of one content, and of a whole manifest. Both ends compute them the same way; neither must
//! know what they are compared for.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::codec::Writer;
use crate::content::{self, Part};
use crate::entries::{Entry, encode_entry};
use crate::halt::Halt;
use crate::metadata::Stat;

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

/// The digest and the length of an open file's content.
pub fn of_file(
    file: &OwnedFd,
    stat: &Stat,
    buffer: &mut Vec<u8>,
    halt: &Halt,
    mut progress: impl FnMut(u64),
) -> Result<([u8; 32], u64), Undigested> {
    let mut digest = ContentDigest::new();
    let length = content::read(file, stat, buffer, |part| {
        match part {
            Part::Data(bytes) => {
                digest.data(bytes);
                progress(bytes.len() as u64);
            }
            Part::Hole(length) => digest.hole(length),
        }
        if halt.is_stopped() { Err(Undigested::Stopped) } else { Ok(()) }
    })?;
    Ok((digest.finish(length), length))
}

/// BLAKE3 over all that the source says of its tree but for the contents, in the order of the walk.
#[derive(Debug, Default)]
pub struct EntriesDigest {
    entries: blake3::Hasher,
    scratch: Vec<u8>,
}

impl EntriesDigest {
    /// The next entry.
    pub fn entry(&mut self, entry: &Entry) {
        self.scratch.clear();
        encode_entry(&mut Writer::new(&mut self.scratch), entry);
        self.entries.update(&self.scratch);
    }

    /// The directory's entries end.
    pub fn directory_end(&mut self) {
        self.entries.update(&[0]);
    }

    /// The digest.
    pub fn finish(self) -> blake3::Hash {
        self.entries.finalize()
    }
}

/// The digest of a whole manifest, in hex: of its entries, and of its contents in the same order.
pub fn manifest(entries: &blake3::Hash, contents: &blake3::Hasher) -> String {
    let mut both = blake3::Hasher::new();
    both.update(entries.as_bytes());
    both.update(contents.finalize().as_bytes());
    both.finalize().to_hex().to_string()
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
