//! Where a file's content lies on the disk, as its file system tells (FIEMAP): what lies in one place is one
//! content. It must not know what is concluded from that.

use std::ops::{ControlFlow, Range};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Result;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use crate::holding::{BTRFS, XFS};

/// So many are asked for at once.
const ROOM: usize = 64;
/// What lies in more pieces is not compared piece by piece.
const MAX_PIECES: usize = 4096;

/// Of linux/fiemap.h: there is no extent behind.
const LAST: u32 = 0x1;
/// It is packed: its place is that of all that is packed with it.
const ENCODED: u32 = 0x8;
/// Another file, or another part of this one, has it too.
const SHARED: u32 = 0x2000;
/// Its place is not told or does not last (UNKNOWN, DELALLOC, NOT_ALIGNED, DATA_INLINE, DATA_TAIL), says nothing
/// of its content (DATA_ENCRYPTED), or nothing was written there (UNWRITTEN).
const NOWHERE: u32 = 0x2 | 0x4 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800;

/// Where an extent lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lies {
    /// From this byte of the disk on, byte by byte.
    At(u64),
    /// Somewhere in what is packed at this byte of the disk.
    In(u64),
    /// In no place that could be compared.
    Nowhere,
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file.
    pub offset: u64,
    /// How long it is there.
    pub length: u64,
    /// Where it lies.
    pub lies: Lies,
    /// The file system says that something else has it too.
    pub is_shared: bool,
}

impl Extent {
    fn of(told: &Told) -> Self {
        let lies = match told.flags {
            flags if flags & NOWHERE != 0 => Lies::Nowhere,
            flags if flags & ENCODED != 0 => Lies::In(told.physical),
            _ => Lies::At(told.physical),
        };
        let Told { logical: offset, length, flags, .. } = *told;
        Self { offset, length, lies, is_shared: flags & SHARED != 0 }
    }

    /// Where it ends in the file.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// What of it is in a range of the file.
    fn within(self, range: &Range<u64>) -> Option<Self> {
        let (offset, end) = (self.offset.max(range.start), self.end().min(range.end));
        let lies = match self.lies {
            Lies::At(place) => Lies::At(place.saturating_add(offset - self.offset)),
            other => other,
        };
        (offset < end).then(|| Self { offset, length: end - offset, lies, ..self })
    }

    /// Whether `next` goes on where it ends, in the file and on the disk.
    fn is_continued_by(&self, next: &Self) -> bool {
        match (self.lies, next.lies) {
            (Lies::At(one), Lies::At(other)) => {
                self.end() == next.offset && one.checked_add(self.length) == Some(other)
            }
            _ => false,
        }
    }
}

/// struct fiemap_extent of linux/fiemap.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    logical: u64,
    physical: u64,
    length: u64,
    unused: [u64; 2],
    flags: u32,
    unused_too: [u32; 3],
}

/// struct fiemap, without the extents behind it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Header {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    unused: u32,
}

/// All of it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Asked {
    header: Header,
    extents: [Told; ROOM],
}

const FIEMAP: Opcode = opcode::read_write::<Header>(b'f', 11);

fn ask(file: BorrowedFd<'_>, range: &Range<u64>) -> Result<Asked> {
    let (length, room) = (range.end - range.start, ROOM as u32);
    let header = Header { start: range.start, length, room, ..Header::default() };
    let mut asked = Asked { header, extents: [Told::default(); ROOM] };
    #[allow(unsafe_code)]
    // SAFETY: FS_IOC_FIEMAP reads and writes one struct fiemap and, behind it, at most as many struct
    // fiemap_extent as that says there is room for: all of them numbers.
    unsafe {
        ioctl(file, Updater::<FIEMAP, Asked>::new(&mut asked))?;
    }
    Ok(asked)
}

/// Whether files below `root` may share what they hold: on btrfs, and on XFS unless it was made without.
pub fn may_be_shared(root: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(root).is_ok_and(|system| [BTRFS, XFS].contains(&(system.f_type as u64)))
}

/// Calls `each` with what the file has in `range`, in order, holes left out, until it has enough.
pub fn read(
    file: impl AsFd,
    range: Range<u64>,
    mut each: impl FnMut(Extent) -> ControlFlow<()>,
) -> Result<()> {
    let mut left = range.clone();
    while left.start < left.end {
        let asked = ask(file.as_fd(), &left)?;
        let told = &asked.extents[..ROOM.min(asked.header.mapped as usize)];
        for extent in told.iter().map(Extent::of).filter_map(|extent| extent.within(&left)) {
            if each(extent).is_break() {
                return Ok(());
            }
        }
        let is_all = |last: &&Told| last.flags & LAST != 0 || told.len() < ROOM;
        match told.last() {
            Some(last) if !is_all(&last) && Extent::of(last).end() > left.start => {
                left.start = Extent::of(last).end();
            }
            _ => break,
        }
    }
    Ok(())
}

/// Whether so many bytes of two files, from an offset in each on, lie in the same place.
pub fn lie_together(one: (impl AsFd, u64), other: (impl AsFd, u64), length: u64) -> bool {
    let (one, other) = (places(one.0, one.1, length), places(other.0, other.1, length));
    one.is_some() && one == other
}

/// Where so many bytes of a file lie; none if that cannot be told.
fn places(file: impl AsFd, offset: u64, length: u64) -> Option<Vec<Extent>> {
    let mut places: Vec<Extent> = Vec::new();
    let mut is_known = true;
    let read = read(file, offset..offset.checked_add(length)?, |extent| {
        let extent = Extent { offset: extent.offset - offset, is_shared: false, ..extent };
        is_known = extent.lies != Lies::Nowhere && places.len() < MAX_PIECES;
        match places.last_mut() {
            Some(last) if last.is_continued_by(&extent) => last.length += extent.length,
            _ => places.push(extent),
        }
        if is_known { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    read.ok().filter(|()| is_known).map(|()| places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_an_extent_lies_where_it_lies() {
        let extent = |offset, length, lies| Extent { offset, length, lies, is_shared: true };
        let whole = extent(100, 50, Lies::At(1000));
        assert_eq!(whole.within(&(0..500)), Some(whole));
        assert_eq!(whole.within(&(110..120)), Some(extent(110, 10, Lies::At(1010))));
        assert_eq!((whole.within(&(0..100)), whole.within(&(150..160))), (None, None));
        let packed = extent(100, 50, Lies::In(1000));
        assert_eq!(packed.within(&(110..120)), Some(extent(110, 10, Lies::In(1000))));
        assert!(whole.is_continued_by(&extent(150, 9, Lies::At(1050))));
        assert!(!whole.is_continued_by(&extent(150, 9, Lies::At(1051))));
        assert!(!whole.is_continued_by(&extent(151, 9, Lies::At(1050))));
        assert!(!packed.is_continued_by(&extent(150, 9, Lies::In(1050))));
    }

    #[test]
    fn what_the_kernel_tells_is_read() {
        let told = |flags| Extent::of(&Told { physical: 7, flags, ..Told::default() });
        assert_eq!((told(LAST).lies, told(LAST).is_shared), (Lies::At(7), false));
        assert_eq!((told(SHARED).lies, told(SHARED).is_shared), (Lies::At(7), true));
        assert_eq!(told(ENCODED | SHARED).lies, Lies::In(7));
        for nowhere in [0x2, 0x2 | 0x4, 0x8 | 0x80, 0x100, 0x200 | 0x100, 0x400, 0x800] {
            assert_eq!(told(nowhere).lies, Lies::Nowhere);
        }
        assert_eq!((size_of::<Header>(), size_of::<Told>()), (32, 56));
        assert!(!may_be_shared(std::fs::File::open("/dev/shm").unwrap().as_fd()), "memory");
    }
}
