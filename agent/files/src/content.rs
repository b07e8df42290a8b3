//! Reading a file's content part by part, holes apart, and telling whether it held still meanwhile. It
//! must not know where the parts go.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::SeekFrom;
use rustix::io::{Errno, Result};

use crate::metadata::{Stat, Time};
use crate::protocol::MAX_DATA;

/// File systems stamp with a clock that ticks this coarsely at worst (100 Hz, twice over).
const TICK_MILLIS: i64 = 20;

/// A part of a content.
#[derive(Debug)]
pub enum Part<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// So many zero bytes that take no space.
    Hole(u64),
}

/// Makes sure that a later write to `file` shows in its times: then a content that was read between two
/// equal stamps belongs to that stamp. Answers the stamps to read under.
///
/// A write within the same tick of the clock would not show, so a fresh stamp is left to age. A
/// write through a shared mapping shows only when the page was clean, so a file stamped after
/// `flushed` (when its file system was last flushed) is flushed.
pub fn settle(file: &OwnedFd, found: &Stat, flushed: Option<Time>) -> Result<Stat> {
    let mut stat = *found;
    if flushed.is_some_and(|flushed| flushed.millis_since(stat.ctime) < TICK_MILLIS) {
        rustix::fs::fdatasync(file)?;
        stat = Stat::of_fd(file)?;
    }
    // Time cannot be polled for more cleverly than by letting it pass; at most one tick.
    let age = Time::now_coarse().millis_since(stat.ctime);
    if (0..TICK_MILLIS).contains(&age) {
        std::thread::sleep(Duration::from_millis((TICK_MILLIS - age).unsigned_abs()));
        stat = Stat::of_fd(file)?;
    }
    Ok(stat)
}

/// Whether some of the content takes no space.
pub fn is_sparse(stat: &Stat) -> bool {
    stat.blocks.saturating_mul(512) < stat.size
}

/// Reads a content of at most [`MAX_DATA`] bytes; fewer than `stat` says if it was cut short meanwhile.
pub fn read_whole<'a>(file: &OwnedFd, stat: &Stat, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
    read_piece(file, 0, stat.size, buffer)
}

/// Reads up to so many bytes at `at`, and up to [`MAX_DATA`]; fewer if the file ends before.
pub fn read_piece<'a>(
    file: &OwnedFd,
    at: u64,
    length: u64,
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8]> {
    buffer.resize(MAX_DATA, 0);
    let size = usize::try_from(length).unwrap_or(MAX_DATA).min(MAX_DATA);
    let mut length = 0;
    while length < size {
        match rustix::io::pread(file, &mut buffer[length..size], at + length as u64) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(&buffer[..length])
}

/// Reads the bytes of `file` in `range`. Answers where they ended.
pub fn read<E: From<Errno>>(
    file: &OwnedFd,
    stat: &Stat,
    range: Range<u64>,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(Part<'_>) -> std::result::Result<(), E>,
) -> std::result::Result<u64, E> {
    buffer.resize(MAX_DATA, 0);
    let Range { start: mut at, end: size } = range;
    let is_sparse = is_sparse(stat);
    while at < size {
        let (data, end) = if is_sparse { data_range(file, at, size)? } else { (at, size) };
        if data > at {
            each(Part::Hole(data - at))?;
            at = data;
        }
        while at < end {
            let room = usize::try_from(end - at).unwrap_or(MAX_DATA).min(MAX_DATA);
            let length = match rustix::io::pread(file, &mut buffer[..room], at) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            if length == 0 {
                return Ok(at);
            }
            each(Part::Data(&buffer[..length]))?;
            at += length as u64;
        }
    }
    Ok(at)
}

/// Where the next data begin and end, within `size`.
pub fn data_range(file: impl AsFd, at: u64, size: u64) -> Result<(u64, u64)> {
    let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
        Ok(data) => data.clamp(at, size),
        // No data behind: the rest is a hole.
        Err(Errno::NXIO) => return Ok((size, size)),
        // The file system does not know holes.
        Err(Errno::INVAL | Errno::NOTSUP) => return Ok((at, size)),
        Err(errno) => return Err(errno),
    };
    match rustix::fs::seek(&file, SeekFrom::Hole(data)) {
        // A hole at once would not get us on; it appeared this moment, so read it as data.
        Ok(hole) if hole > data => Ok((data, hole.min(size))),
        Ok(_) | Err(Errno::NXIO) => Ok((data, size)),
        Err(errno) => Err(errno),
    }
}
