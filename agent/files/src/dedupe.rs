//! Having two files share what they both hold (FIDEDUPERANGE): the file system compares the bytes, and lets the
//! one have those of the other only if they are the same. Neither file's content or time changes. It must not
//! know why they should be the same.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::{Errno, Result};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use crate::shares::Part;

/// The most that file systems take at once.
pub const CHUNK: u64 = 16 * 1024 * 1024;

/// Of linux/fs.h: the bytes are not the same.
const DIFFERS: i32 = 1;

/// struct file_dedupe_range, without what is behind it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Header {
    from: u64,
    length: u64,
    count: u16,
    unused: [u16; 3],
}

/// struct file_dedupe_range with one struct file_dedupe_range_info.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Asked {
    header: Header,
    fd: i64,
    to: u64,
    shared: u64,
    status: i32,
    unused: u32,
}

const DEDUPE: Opcode = opcode::read_write::<Header>(0x94, 54);

/// Has `other` share with `one` a part of at most [`CHUNK`] bytes. Answers how many of them it shares now; none if
/// they are not the same. Both are open for reading.
pub fn share(one: impl AsFd, other: impl AsFd, part: Part) -> Result<u64> {
    let header = Header { from: part.from, length: part.length, count: 1, unused: [0; 3] };
    let fd = i64::from(other.as_fd().as_raw_fd());
    let mut asked = Asked { header, fd, to: part.to, shared: 0, status: 0, unused: 0 };
    #[allow(unsafe_code)]
    // SAFETY: FIDEDUPERANGE reads and writes one struct file_dedupe_range and, behind it, as many struct
    // file_dedupe_range_info as that counts: one. Their fields are numbers, and the descriptor is open.
    unsafe {
        ioctl(one.as_fd(), Updater::<DEDUPE, Asked>::new(&mut asked))?;
    }
    match asked.status {
        DIFFERS => Ok(0),
        status if status < 0 => Err(Errno::from_raw_os_error(status.saturating_neg())),
        _ => Ok(asked.shared.min(part.length)),
    }
}

/// What of a part can be shared by files of these lengths: whole blocks, or what reaches to the end of both. None
/// if there is nothing.
pub fn aligned(part: Part, block: u64, sizes: (u64, u64)) -> Option<Part> {
    if block == 0 || part.from % block != part.to % block {
        return None;
    }
    let skipped = part.from.next_multiple_of(block) - part.from;
    let (from, to) = (part.from + skipped, part.to + skipped);
    let left = (sizes.0.checked_sub(from)?, sizes.1.checked_sub(to)?);
    let length = part.length.checked_sub(skipped)?.min(left.0).min(left.1);
    let ends_both = (length, length) == left;
    let length = if ends_both { length } else { length - length % block };
    (length > 0).then_some(Part { from, to, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_are_shared_but_for_the_end_of_both() {
        let part = |from, to, length| Part { from, to, length };
        let of = |p, sizes| aligned(p, 4096, sizes).map(|p| (p.from, p.to, p.length));
        let large = (1 << 40, 1 << 40);
        assert_eq!(of(part(0, 8192, 4096), large), Some((0, 8192, 4096)));
        assert_eq!(of(part(1, 4097, 20_000), large), Some((4096, 8192, 12_288)));
        assert_eq!(of(part(1, 2, 20_000), large), None);
        assert_eq!(of(part(0, 0, 4095), large), None);
        assert_eq!(of(part(4095, 4095, 2), large), None);
        // To the end of both, of one, and beyond.
        assert_eq!(of(part(0, 4096, 10_000), (9_000, 13_096)), Some((0, 4096, 9_000)));
        assert_eq!(of(part(0, 4096, 10_000), (9_000, 13_097)), Some((0, 4096, 8192)));
        assert_eq!(of(part(8192, 0, 10_000), (8192, 10_000)), None);
        assert_eq!(of(part(8192, 0, 10_000), (8191, 10_000)), None);
        assert_eq!(aligned(part(0, 0, 4096), 0, large), None);
        let last = i64::MAX as u64 - 20_000;
        assert_eq!(of(part(last, last, 20_000), large), None);
    }

    #[test]
    fn the_structs_are_those_of_the_kernel() {
        assert_eq!((size_of::<Header>(), size_of::<Asked>()), (24, 56));
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        let outcome = share(&file, &file, Part { from: 0, to: 0, length: 4096 });
        assert!(outcome.is_err(), "{outcome:?}");
    }
}
