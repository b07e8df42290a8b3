//! The blocks of a large file that both ends may have: their digests, and how those are told. It must not
//! know what is done with a block that differs.
//!
//! Digests are the first 16 bytes of BLAKE3: enough that no two blocks of one account are taken for each
//! other by chance; a comparison looks at contents by whole digests.

use std::sync::LazyLock;

use crate::codec::{Malformed, Reader, Writer};
use crate::protocol::RANGE;

/// Length of a block. BLAKE3 is at its fastest from eight of its chunks on.
pub const BLOCK: usize = 8 * 1024;
/// Files smaller than this are sent whole.
pub const SMALLEST: u64 = 1024 * 1024;
/// Most blocks in a range.
pub const MAX_BLOCKS: usize = RANGE as usize / BLOCK;

/// The digest of a block.
pub type Digest = [u8; 16];

/// What a block of zeros has.
pub static ZERO: LazyLock<Digest> = LazyLock::new(|| digest(&ZEROS));
/// A block of zeros.
pub static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// The digest of a block, which may be shorter at the end of a file.
pub fn digest(block: &[u8]) -> Digest {
    let whole = blake3::hash(block);
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] = *whole.as_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// Digests the blocks of a range as its content comes.
#[derive(Debug, Default)]
pub struct Summing {
    digests: Vec<Digest>,
    /// The beginning of a block.
    block: Vec<u8>,
}

impl Summing {
    /// The next bytes.
    pub fn data(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.block.is_empty() && bytes.len() >= BLOCK {
                let (block, rest) = bytes.split_at(BLOCK);
                self.digests.push(digest(block));
                bytes = rest;
                continue;
            }
            let room = BLOCK - self.block.len();
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.block.extend_from_slice(now);
            bytes = rest;
            self.close_if(BLOCK);
        }
    }

    /// So many zeros.
    pub fn hole(&mut self, mut length: u64) {
        while length > 0 {
            if self.block.is_empty() && length >= BLOCK as u64 {
                // No more than a range has: it is a range's content.
                let blocks = length / BLOCK as u64;
                self.digests.resize(self.digests.len() + blocks as usize, *ZERO);
                length %= BLOCK as u64;
                continue;
            }
            let room = (BLOCK - self.block.len()) as u64;
            let now = room.min(length);
            self.data(&ZEROS[..now as usize]);
            length -= now;
        }
    }

    /// The digests; the last block may be a short one.
    pub fn finish(mut self) -> Vec<Digest> {
        self.close_if(1);
        self.digests
    }

    fn close_if(&mut self, length: usize) {
        if self.block.len() >= length {
            self.digests.push(digest(&self.block));
            self.block.clear();
        }
    }
}

/// Appends digests, in runs: how many, then a digest each; or how many times two and one for zeros.
pub fn encode(w: &mut Writer<'_>, digests: &[Digest]) {
    for run in digests.chunk_by(|a, b| (*a == *ZERO) == (*b == *ZERO)) {
        let is_zero = run.first() == Some(&*ZERO);
        w.varint((run.len() as u64) << 1 | u64::from(is_zero));
        if !is_zero {
            run.iter().for_each(|digest| w.raw(digest));
        }
    }
}

/// Reads them; at most as many as a range has blocks.
pub fn decode(r: &mut Reader<'_>) -> Result<Vec<Digest>, Malformed> {
    let mut digests = Vec::new();
    while !r.is_empty() {
        let run = r.varint()?;
        let count = usize::try_from(run >> 1).unwrap_or(usize::MAX);
        if count == 0 || count > MAX_BLOCKS - digests.len() {
            return Err(Malformed("more blocks than a range has"));
        }
        if run & 1 == 1 {
            digests.resize(digests.len() + count, *ZERO);
        } else {
            for _ in 0..count {
                digests.push(r.array()?);
            }
        }
    }
    Ok(digests)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(digests: &[Digest]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut Writer::new(&mut out), digests);
        out
    }

    #[test]
    fn digests_are_told_in_runs() {
        let one = digest(b"one");
        for digests in [vec![], vec![one], vec![*ZERO; 5], vec![one, *ZERO, *ZERO, one, one]] {
            let bytes = told(&digests);
            assert_eq!(decode(&mut Reader::new(&bytes)), Ok(digests));
        }
        assert_eq!(told(&vec![*ZERO; MAX_BLOCKS]).len(), 2);
    }

    #[test]
    fn the_pieces_that_a_content_comes_in_do_not_matter() {
        let mut content = vec![0; 5 * BLOCK + 100];
        for at in [3, 2 * BLOCK, 5 * BLOCK + 99] {
            content[at] = 7;
        }
        let expected: Vec<Digest> = content.chunks(BLOCK).map(digest).collect();
        for piece in [1, 999, BLOCK, BLOCK + 1, content.len()] {
            let mut summing = Summing::default();
            for bytes in content.chunks(piece) {
                if bytes.iter().all(|b| *b == 0) {
                    summing.hole(bytes.len() as u64);
                } else {
                    summing.data(bytes);
                }
            }
            assert_eq!(summing.finish(), expected, "{piece}");
        }
    }

    #[test]
    fn more_than_a_range_holds_is_refused() {
        let mut bytes = Vec::new();
        Writer::new(&mut bytes).varint((MAX_BLOCKS as u64 + 1) << 1 | 1);
        assert!(decode(&mut Reader::new(&bytes)).is_err());
        let twice = told(&vec![*ZERO; MAX_BLOCKS]).repeat(2);
        assert!(decode(&mut Reader::new(&twice)).is_err());
        assert!(decode(&mut Reader::new(&[0])).is_err());
        assert!(decode(&mut Reader::new(&[2, 1])).is_err());
    }
}
