//! Names in one directory: which are valid, which are Ferry's own, and a compact sorted list of
//! them. It must not know what the names stand for.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, RawDir, RawDirEntry};
use rustix::io::Result;

/// What Ferry's temporary names begin with; 32 hexadecimal digits follow.
const RESERVED: &[u8] = b".ferry-tmp.";

/// Length of the random part.
const DIGITS: usize = 32;

/// Longest name that Linux file systems take.
pub const MAX_NAME: usize = 255;

/// Whether `name` may name an entry: one component, not `.` or `..`.
pub fn is_valid(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name != b"."
        && name != b".."
        && !name.iter().any(|&b| b == b'/' || b == 0)
}

/// Whether `name` is exactly one that Ferry makes for a temporary file.
pub fn is_reserved(name: &[u8]) -> bool {
    name.strip_prefix(RESERVED).is_some_and(|rest| {
        rest.len() == DIGITS && rest.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// A fresh temporary name that nobody can guess.
pub fn temporary() -> Vec<u8> {
    let mut name = RESERVED.to_vec();
    name.extend_from_slice(format!("{:032x}", rand::random::<u128>()).as_bytes());
    name
}

/// The names of a directory, sorted bytewise, in one allocation.
#[derive(Debug, Default)]
pub struct Names {
    bytes: Vec<u8>,
    spans: Vec<(u32, u16)>,
}

impl Names {
    /// Reads the names in `dir`, without `.` and `..`.
    pub fn read(dir: impl AsFd) -> Result<Self> {
        let mut names = Self::default();
        for_each_name(dir.as_fd(), |entry| names.push(entry.file_name().to_bytes()))?;
        let Self { bytes, spans } = &mut names;
        let bytes: &[u8] = bytes;
        spans.sort_unstable_by(|a, b| slice(bytes, *a).cmp(slice(bytes, *b)));
        // A name that was renamed while the directory was read can come twice.
        spans.dedup_by(|a, b| slice(bytes, *a) == slice(bytes, *b));
        Ok(names)
    }

    fn push(&mut self, name: &[u8]) -> Result<()> {
        // 4 GiB of names in one directory: more than any file system that we know holds.
        let start = u32::try_from(self.bytes.len()).map_err(|_| rustix::io::Errno::OVERFLOW)?;
        let length = u16::try_from(name.len()).map_err(|_| rustix::io::Errno::NAMETOOLONG)?;
        self.bytes.extend_from_slice(name);
        self.spans.push((start, length));
        Ok(())
    }

    /// The name at `index`, in order.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        self.spans.get(index).map(|&span| slice(&self.bytes, span))
    }

    /// All in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.spans.iter().map(|&span| slice(&self.bytes, span))
    }
}

impl Names {
    /// These, which are sorted.
    pub fn of<'a>(sorted: impl Iterator<Item = &'a [u8]>) -> Result<Self> {
        let mut names = Self::default();
        sorted.into_iter().try_for_each(|name| names.push(name))?;
        Ok(names)
    }
}

/// The names of a directory with their inodes' numbers, as the directory tells them, unsorted.
#[derive(Debug, Default)]
pub struct Numbered {
    names: Names,
    /// The number of each, and what it is, if the file system says.
    numbers: Vec<(u64, FileType)>,
}

impl Numbered {
    /// Reads the names in `dir`, without `.` and `..`.
    pub fn read(dir: impl AsFd) -> Result<Self> {
        let mut numbered = Self::default();
        for_each_name(dir.as_fd(), |entry| {
            numbered.numbers.push((entry.ino(), entry.file_type()));
            numbered.names.push(entry.file_name().to_bytes())
        })?;
        Ok(numbered)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.names.iter().zip(&self.numbers).map(|(name, (ino, _))| (name, *ino))
    }

    /// Those that may be directories: not every file system says.
    pub fn directories(&self) -> impl Iterator<Item = &[u8]> {
        self.of(|kind| matches!(kind, FileType::Directory | FileType::Unknown))
    }

    /// Those that may be something else.
    pub fn others(&self) -> impl Iterator<Item = &[u8]> {
        self.of(|kind| kind != FileType::Directory)
    }

    fn of(&self, is: impl Fn(FileType) -> bool) -> impl Iterator<Item = &[u8]> {
        let all = self.names.iter().zip(&self.numbers);
        all.filter(move |(_, (_, kind))| is(*kind)).map(|(name, _)| name)
    }
}

/// What is in a directory, without `.` and `..`.
fn for_each_name(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(&RawDirEntry<'_>) -> Result<()>,
) -> Result<()> {
    // A descriptor that was read before stands at its end.
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = [MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if is_valid(entry.file_name().to_bytes()) {
            each(&entry)?;
        }
    }
    Ok(())
}

fn slice(bytes: &[u8], (start, length): (u32, u16)) -> &[u8] {
    // Spans are made by `push` alone, beside the bytes that they cover.
    &bytes[start as usize..start as usize + usize::from(length)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_invalid() {
        for bad in [b"".as_slice(), b".", b"..", b"a/b", b"/", b"a\0b", &[b'x'; 256]] {
            assert!(!is_valid(bad), "{bad:?}");
        }
        for good in [b"...".as_slice(), b"a b", b"\xff\xfe", b"a\nb", &[b'x'; 255]] {
            assert!(is_valid(good), "{good:?}");
        }
    }

    #[test]
    fn what_a_file_system_does_not_say_may_be_either() {
        let mut numbered = Numbered::default();
        let kinds = [FileType::Directory, FileType::Unknown, FileType::RegularFile];
        for (name, kind) in [b"d".as_slice(), b"u", b"f"].into_iter().zip(kinds) {
            numbered.names.push(name).unwrap();
            numbered.numbers.push((1, kind));
        }
        assert_eq!(numbered.directories().collect::<Vec<_>>(), [b"d", b"u"]);
        assert_eq!(numbered.others().collect::<Vec<_>>(), [b"u", b"f"]);
    }

    #[test]
    fn only_the_exact_pattern_is_reserved() {
        let fresh = temporary();
        assert!(is_reserved(&fresh) && is_valid(&fresh));
        assert_ne!(fresh, temporary());
        for other in [
            &b".ferry-tmp."[..],
            b".ferry-tmp.0123",
            b".ferry-tmp.0123456789ABCDEF0123456789ABCDEF",
            b"ferry-tmp.0123456789abcdef0123456789abcdef",
        ] {
            assert!(!is_reserved(other));
        }
    }
}
