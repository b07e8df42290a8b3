//! Changes as bytes, for the process that comes after this one.

use super::{Changes, Lost, MAX_BYTES, Names};
use crate::codec::{Malformed, Reader, Writer};

/// The first byte. It changes with what any of the others means.
const VERSION: u8 = 1;
/// Why more may have changed than was noted, by number; 0 if not.
const LOST: [Lost; 5] =
    [Lost::Overflow, Lost::TooMany, Lost::Unplaced, Lost::Unreadable, Lost::Unwatched];

impl Changes {
    /// All of it.
    pub fn save(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes);
        let mut to = Writer::new(&mut bytes);
        to.u8(VERSION);
        let lost = LOST.iter().position(|why| Some(*why) == self.lost);
        to.u8(lost.map_or(0, |position| position as u8 + 1));
        for is in [self.without_moves, self.has_left, self.has_links] {
            to.u8(is.into());
        }
        to.varint(self.directories.len() as u64);
        for (directory, names) in &self.directories {
            to.bytes(directory);
            match names {
                Names::All => to.varint(0),
                Names::Some(some) => {
                    to.varint(some.len() as u64 + 1);
                    some.iter().for_each(|name| to.bytes(name));
                }
            }
        }
        to.varint(self.moved.len() as u64);
        for (own, place) in &self.moved {
            [own, &place.parent, &place.name].iter().for_each(|part| to.bytes(part));
        }
        for handles in [&self.fresh, &self.files] {
            to.varint(handles.len() as u64);
            handles.iter().for_each(|own| to.bytes(own));
        }
        bytes
    }

    /// What was saved; none if it is not that.
    pub fn saved(bytes: &[u8]) -> Option<Self> {
        Self::read(bytes).ok()
    }

    fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let (mut from, mut changes) = (Reader::new(bytes), Self::default());
        if from.u8()? != VERSION {
            return Err(UNKNOWN);
        }
        let lost = match from.u8()? {
            0 => None,
            number => Some(LOST.get(usize::from(number) - 1).ok_or(UNKNOWN)?),
        };
        let without_moves = from.u8()? != 0;
        let (has_left, has_links) = (from.u8()? != 0, from.u8()? != 0);
        for _ in 0..from.count(MAX_BYTES)? {
            let directory = from.bytes(MAX_BYTES)?;
            match from.count(MAX_BYTES)?.checked_sub(1) {
                None => changes.note_all(directory),
                // One of which nothing is noted any more.
                Some(0) => {}
                Some(names) => {
                    for _ in 0..names {
                        changes.note(directory, from.bytes(MAX_BYTES)?);
                    }
                }
            }
        }
        for _ in 0..from.count(MAX_BYTES)? {
            let own = from.bytes(MAX_BYTES)?;
            changes.note_moved(own, from.bytes(MAX_BYTES)?, from.bytes(MAX_BYTES)?);
        }
        for _ in 0..from.count(MAX_BYTES)? {
            changes.note_fresh(from.bytes(MAX_BYTES)?);
        }
        for _ in 0..from.count(MAX_BYTES)? {
            changes.note_file(from.bytes(MAX_BYTES)?);
        }
        from.end()?;
        changes.without_moves |= without_moves;
        (changes.has_left, changes.has_links) = (has_left, has_links);
        lost.into_iter().for_each(|why| changes.lose(*why));
        Ok(changes)
    }
}

const UNKNOWN: Malformed = Malformed("changes of another version");

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Changes {
        let mut changes = Changes::default();
        for name in [b"a".as_slice(), b"b", b"x\xff\ny"] {
            changes.note(b"dir", name);
        }
        changes.note_all(b"whole");
        changes.note_moved(b"own", b"dir", b"was");
        changes.note_fresh(b"made");
        changes.note_file(b"file");
        changes.note_links();
        changes
    }

    #[test]
    fn what_is_saved_is_what_was_noted() {
        let mut lost = some();
        lost.lose(Lost::Unwatched);
        let without_moves = Changes { without_moves: true, ..some() };
        let has_left = Changes { has_left: true, has_links: false, ..some() };
        for changes in [Changes::default(), some(), lost, without_moves, has_left] {
            assert_eq!(Changes::saved(&changes.save()), Some(changes));
        }
    }

    #[test]
    fn what_is_cut_off_or_too_long_is_not_believed() {
        let whole = some().save();
        for length in 0..whole.len() {
            assert_eq!(Changes::saved(&whole[..length]), None, "{length}");
        }
        assert_eq!(Changes::saved(&[whole.as_slice(), b"x"].concat()), None);
        assert_eq!(Changes::saved(&[VERSION, 9, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        let later = [&[VERSION + 1], &whole[1..]].concat();
        assert_eq!(Changes::saved(&later), None);
    }
}
