//! What differs of a large file: its blocks are compared with the digests of those that the target has, and
//! only the others are sent. It must not know where the digests came from.

use ferry_proto::Fault;

use crate::blocks::{self, BLOCK, Digest, ZEROS};
use crate::content;
use crate::protocol::{Frame, Range};
use crate::supply::{Failure, Opened, Supplier, ending_of, held_still};
use crate::window::Listed;

/// What a block is to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It has it.
    Same,
    /// Zeros, which it has not.
    Zero,
    /// Bytes that it has not.
    New,
}

/// A range as it is compared.
struct Comparing<'a> {
    range: Range,
    digests: &'a [Digest],
    /// Bytes that the target has and has not been told of.
    same: u64,
}

impl Comparing<'_> {
    fn kind(&self, at: u64, block: &[u8]) -> Kind {
        if self.has(at, &blocks::digest(block)) {
            Kind::Same
        } else if *block == ZEROS[..block.len()] {
            Kind::Zero
        } else {
            Kind::New
        }
    }

    /// Whether the target's block there has this digest.
    fn has(&self, at: u64, digest: &Digest) -> bool {
        let number = usize::try_from((at - self.range.offset) / BLOCK as u64);
        number.is_ok_and(|number| self.digests.get(number) == Some(digest))
    }
}

impl Supplier<'_> {
    /// Sends what differs of a range, of which the target has blocks of these digests.
    pub(crate) fn mend_range(
        &mut self,
        range: Range,
        file: &Listed,
        opened: &Opened,
        digests: &[Digest],
    ) -> Result<(), Fault> {
        self.out.put(&Frame::Part(range))?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut comparing = Comparing { range, digests, same: 0 };
        let read = self.compare(&mut comparing, opened, &mut buffer);
        self.buffer = buffer;
        let ending = match read {
            Ok(at) => held_still(file, opened, at == range.offset + range.length),
            Err(Failure::Io(errno)) => ending_of(errno),
            Err(Failure::Stop(fault)) => return Err(fault),
        };
        self.tell_same(&mut comparing)?;
        self.out.put(&Frame::PartEnd(ending)).map(drop)
    }

    /// Reads the range piece by piece and sends what differs. Answers where its bytes ended.
    fn compare(
        &mut self,
        comparing: &mut Comparing<'_>,
        opened: &Opened,
        buffer: &mut Vec<u8>,
    ) -> Result<u64, Failure> {
        let Range { offset, length, .. } = comparing.range;
        let end = offset + length;
        let is_sparse = content::is_sparse(&opened.stat);
        let (mut at, mut known_until) = (offset, offset);
        while at < end {
            self.store.halt.check().map_err(Failure::Stop)?;
            if is_sparse && at >= known_until {
                let (data, until) = content::data_range(&*opened.fd, at, end)?;
                known_until = until.max(at + 1);
                // Blocks that are nothing but a hole need not be read.
                while data - at >= BLOCK as u64 {
                    let is_same = comparing.has(at, &blocks::ZERO);
                    let kind = if is_same { Kind::Same } else { Kind::Zero };
                    self.tell(comparing, kind, &ZEROS)?;
                    at += BLOCK as u64;
                }
                if at == end {
                    break;
                }
            }
            let piece = content::read_piece(&opened.fd, at, end - at, buffer)?;
            if piece.is_empty() {
                break;
            }
            self.has_read(piece.len());
            let mut rest = piece;
            while !rest.is_empty() {
                let (kind, run) = run(rest, |offset, block| comparing.kind(at + offset, block));
                self.tell(comparing, kind, &rest[..run])?;
                (at, rest) = (at + run as u64, &rest[run..]);
            }
        }
        Ok(at)
    }

    fn tell(
        &mut self,
        comparing: &mut Comparing<'_>,
        kind: Kind,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let length = bytes.len() as u64;
        self.store.counters.bytes_done(length);
        if kind == Kind::Same {
            comparing.same += length;
            return Ok(());
        }
        self.tell_same(comparing).map_err(Failure::Stop)?;
        let frame = if kind == Kind::Zero { Frame::Hole(length) } else { Frame::Data(bytes) };
        self.give(&frame).map_err(Failure::Stop)
    }

    fn tell_same(&mut self, comparing: &mut Comparing<'_>) -> Result<(), Fault> {
        match std::mem::take(&mut comparing.same) {
            0 => Ok(()),
            same => self.give(&Frame::Same(same)),
        }
    }
}

/// What the first block of `bytes` is, and how many bytes from there are the same.
fn run(bytes: &[u8], kind: impl Fn(u64, &[u8]) -> Kind) -> (Kind, usize) {
    let mut blocks = bytes.chunks(BLOCK);
    let first = blocks.next().unwrap_or_default();
    let (of, mut length) = (kind(0, first), first.len());
    for block in blocks {
        if kind(length as u64, block) != of {
            break;
        }
        length += block.len();
    }
    (of, length)
}
