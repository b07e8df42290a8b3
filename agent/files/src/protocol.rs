//! What crosses the streams: frames and their bytes. Everything here parses what a peer sent, so
//! nothing here trusts a length, and nothing allocates more than the frame that was received. It
//! must not know files or directories.
//!
//! # The conversation
//!
//! A pass has one control stream and one or more data streams. On the control stream the source lists its
//! tree, a directory at a time but several directories at once, in batches of sorted entries, and the
//! target answers each batch with what it wants; on the data streams, whichever is free, the source sends
//! those contents. Nobody waits for an answer per file: up to [`MAX_BATCHES`] batches are under way at once.
//!
//! ```text
//! control: source                       control: target
//! Hello                                 Hello
//! Root entry                            CanShare            if its files can share what they hold
//! Moved path                                                one per directory that has another place
//! Batch of a directory, entries ...     Wants bitmap        one per batch
//!   or Unlisted                         Blocks of a range   of a file that is only to be mended
//! WalkEnd
//! Summary               (all sent)
//!                                       Report              (all applied and flushed)
//! Bye
//!
//! data: source                          data: target
//! Whole                                 a small content
//! Part, Data, Hole, Same, PartEnd       all or a range of a larger one
//!   or Skip; or Hash when verifying
//! Share                                                     what a file that was sent has in common with another
//!                                       Waiting             whether it waits for the source
//! Done
//! ```
//!
//! A listing holds names of one component, which rise strictly; a batch says of which entry of an earlier
//! batch it lists the content, so a peer cannot name anything outside the tree. A pass that looks at what has
//! changed lists some of the names of a directory, those that are gone among them, and says first where the
//! directories were that have another place now: a list of names, each one component of a path from the root.
//! So are files told that have something in common; where the target finds it otherwise, nothing happens.
//!
//! # Frames
//!
//! Length of what follows (u32, little-endian), kind (u8), payload. Integers are little-endian or
//! LEB128 ("varint"); signed ones are zigzag first. `Fault` and `KeepAlive` may come at any time from
//! either end, on any stream. A frame is at most [`MAX_FRAME`] bytes.

use crate::blocks::{self, Digest};
use crate::codec::{Malformed, Reader, Writer};
use crate::confine::MAX_DEPTH;
use crate::entries::{Entry, What, decode_entry, encode_entry};
use crate::names;
use crate::shares::{self, Share};

/// What `Hello` begins with.
pub const MAGIC: &[u8; 8] = b"FERRYFIL";
/// Version of all this. Both ends must speak the same one.
pub const VERSION: u8 = 3;

/// Longest frame, kind included.
pub const MAX_FRAME: usize = 2 * 1024 * 1024;
/// Longest content in one `Data` frame.
pub const MAX_DATA: usize = 128 * 1024;
/// Contents that were listed longer than this come in ranges of this length, the last one to the content's
/// end, on several streams at once.
pub const RANGE: u64 = 32 * 1024 * 1024;
/// Most entries in one batch.
pub const MAX_BATCH: usize = 256;
/// Most batches that may be under way.
pub const MAX_BATCHES: usize = 256;
/// Most entries that may be under way, unless one batch alone holds more.
pub const MAX_ENTRIES: usize = 8 * 1024;
/// Length of the header: length and kind.
pub const HEADER: usize = 5;

/// How many ranges a content has that was listed so long.
pub fn ranges_of(listed: u64) -> u64 {
    listed.div_ceil(RANGE).max(1)
}

/// What the stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Make the target equal to the source.
    Pass,
    /// Compare both.
    Verify,
}

/// Why a directory was not listed at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlisted {
    /// It is gone or another one stands there.
    Vanished,
    /// It cannot be read: errno.
    Unreadable(u32),
    /// It is what the pass before left, and so is all below.
    Untouched,
}

/// How reading a content ended at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The content belongs to the metadata listed.
    Settled,
    /// It changed since it was listed or while it was read.
    Changed,
    /// It is gone.
    Vanished,
    /// It cannot be read: errno.
    Unreadable(u32),
}

/// Which entry: the number of its batch and its place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Batches count from 0.
    pub batch: u64,
    /// Place in the batch.
    pub index: u16,
}

/// Which directory: the root, or an entry that was listed.
pub type Directory = Option<Place>;

/// Entries of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its number; no other batch of the pass has it.
    pub number: u64,
    /// Of which directory.
    pub directory: Directory,
    /// No further batch of this directory follows.
    pub last: bool,
    /// The directory may have other names, which are left as they are. The same in all of its batches.
    pub partial: bool,
    /// The entries; none only if it is the last.
    pub entries: Vec<Entry>,
}

/// A range of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Of which entry.
    pub place: Place,
    /// Length of the whole content, holes included. The same in all ranges of one content.
    pub size: u64,
    /// Where the range begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// First frame of either end.
    Hello(Purpose),
    /// The root's own metadata; and whether only what has changed since the pass before is listed.
    Root(Entry, bool),
    /// Where a directory was in the pass before that has another place now. The first is number 0.
    Moved(Vec<Vec<u8>>),
    /// There is no listing of this directory.
    Unlisted(Directory, Unlisted),
    /// Entries of a directory.
    Batch(Batch),
    /// No more batches.
    WalkEnd,
    /// A whole content, of at most [`MAX_DATA`] bytes.
    Whole(Place, Ending, &'a [u8]),
    /// A range of a content begins.
    Part(Range),
    /// Its next bytes.
    Data(&'a [u8]),
    /// So many zero bytes.
    Hole(u64),
    /// So many bytes that the target has already, of a file that is only to be mended.
    Same(u64),
    /// The range ends.
    PartEnd(Ending),
    /// There is no content.
    Skip(Place, Ending),
    /// The digest of a content.
    Hash(Place, Ending, u64, [u8; 32]),
    /// What a file whose content was sent, or is there already, has in common with another.
    Share(Share),
    /// Nothing more on this data stream.
    Done,
    /// All is sent; JSON of the source's part of the report.
    Summary(&'a [u8]),
    /// What is wanted of a batch: a bit per entry, lowest first; and those of them, by their places, that are
    /// only to be mended.
    Wants(u64, &'a [u8], Vec<u16>),
    /// What the target has of a range of a file that is only to be mended: of which entry, the range's number,
    /// and the digests of its blocks.
    Blocks(Place, u64, Vec<Digest>),
    /// All is done; JSON of the report.
    Report(&'a [u8]),
    /// The sender ends it; JSON of a fault.
    Fault(&'a [u8]),
    /// The sender is alive.
    KeepAlive,
    /// The report was received.
    Bye,
    /// The target's files can share what they hold: the source may tell which do.
    CanShare,
    /// On a data stream: whether its receiver waits for more most of the time.
    Waiting(bool),
}

const fn kind_of(frame: &Frame<'_>) -> u8 {
    match frame {
        Frame::Hello(_) => 1,
        Frame::Root(..) => 2,
        Frame::Unlisted(..) => 3,
        Frame::Batch(_) => 4,
        Frame::WalkEnd => 5,
        Frame::Whole(..) => 6,
        Frame::Part(_) => 7,
        Frame::Data(_) => DATA,
        Frame::Hole(_) => 9,
        Frame::PartEnd(_) => 10,
        Frame::Skip(..) => 11,
        Frame::Hash(..) => 12,
        Frame::Done => 13,
        Frame::Summary(_) => 14,
        Frame::Same(_) => 15,
        Frame::Moved(_) => 16,
        Frame::Share(_) => 17,
        Frame::Wants(..) => 20,
        Frame::Report(_) => 21,
        Frame::Fault(_) => FAULT,
        Frame::KeepAlive => KEEP_ALIVE,
        Frame::Bye => 24,
        Frame::Blocks(..) => 25,
        Frame::Waiting(_) => 26,
        Frame::CanShare => 28,
    }
}

const DATA: u8 = 8;
/// Kind of [`Frame::Fault`], which the stream's pump handles itself.
pub const FAULT: u8 = 22;
/// Kind of [`Frame::KeepAlive`], which the stream's pump handles itself.
pub const KEEP_ALIVE: u8 = 23;
/// Kind of the frame that holds others, on data streams: the length of those (varint) and the zstd frame that
/// they are packed in. See [`crate::pack`].
pub const PACKED: u8 = 27;

impl<'a> Frame<'a> {
    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        let mut w = Writer::new(out);
        w.u8(kind_of(self));
        match self {
            Self::Hello(purpose) => {
                w.raw(MAGIC);
                w.u8(VERSION);
                w.u8(u8::from(*purpose == Purpose::Verify));
            }
            Self::Root(entry, partial) => {
                w.u8(u8::from(*partial));
                encode_entry(&mut w, entry);
            }
            Self::Moved(path) => encode_path(&mut w, path),
            Self::Unlisted(directory, why) => {
                encode_directory(&mut w, *directory);
                encode_unlisted(&mut w, *why);
            }
            Self::Batch(batch) => encode_batch(&mut w, batch),
            Self::WalkEnd | Self::Done | Self::KeepAlive | Self::Bye | Self::CanShare => {}
            Self::Whole(place, ending, bytes) => {
                encode_place(&mut w, *place);
                encode_ending(&mut w, *ending);
                w.raw(bytes);
            }
            Self::Part(range) => {
                encode_place(&mut w, range.place);
                w.varint(range.size);
                w.varint(range.offset);
                w.varint(range.length);
            }
            Self::Data(bytes) | Self::Summary(bytes) | Self::Report(bytes) | Self::Fault(bytes) => {
                w.raw(bytes);
            }
            Self::Waiting(waits) => w.u8(u8::from(*waits)),
            Self::Hole(length) | Self::Same(length) => w.varint(*length),
            Self::PartEnd(ending) => encode_ending(&mut w, *ending),
            Self::Skip(place, ending) => {
                encode_place(&mut w, *place);
                encode_ending(&mut w, *ending);
            }
            Self::Hash(place, ending, size, digest) => {
                encode_place(&mut w, *place);
                encode_ending(&mut w, *ending);
                w.varint(*size);
                w.raw(digest);
            }
            Self::Share(share) => shares::encode(&mut w, share),
            Self::Wants(batch, bits, mended) => {
                w.varint(*batch);
                w.bytes(bits);
                mended.iter().for_each(|index| w.u16(*index));
            }
            Self::Blocks(place, range, digests) => {
                encode_place(&mut w, *place);
                w.varint(*range);
                blocks::encode(&mut w, digests);
            }
        }
        let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// Reads the payload of a frame of `kind`.
    pub fn decode(kind: u8, payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(payload);
        let frame = match kind {
            1 => decode_hello(&mut r)?,
            2 => {
                let partial = decode_flag(&mut r)?;
                Self::Root(decode_entry(&mut r, true)?, partial)
            }
            3 => Self::Unlisted(decode_directory(&mut r)?, decode_unlisted(&mut r)?),
            4 => Self::Batch(decode_batch(&mut r)?),
            5 => Self::WalkEnd,
            6 => Self::Whole(decode_place(&mut r)?, decode_ending(&mut r)?, decode_data(&mut r)?),
            7 => Self::Part(decode_range(&mut r)?),
            DATA => Self::Data(decode_data(&mut r)?),
            9 => Self::Hole(r.varint()?),
            10 => Self::PartEnd(decode_ending(&mut r)?),
            11 => Self::Skip(decode_place(&mut r)?, decode_ending(&mut r)?),
            12 => {
                Self::Hash(decode_place(&mut r)?, decode_ending(&mut r)?, r.varint()?, r.array()?)
            }
            13 => Self::Done,
            14 => Self::Summary(r.rest()),
            15 => Self::Same(r.varint()?),
            16 => Self::Moved(decode_path(&mut r, MAX_DEPTH as usize)?),
            17 => Self::Share(shares::decode(&mut r)?),
            20 => decode_wants(&mut r)?,
            21 => Self::Report(r.rest()),
            FAULT => Self::Fault(r.rest()),
            KEEP_ALIVE => Self::KeepAlive,
            24 => Self::Bye,
            25 => Self::Blocks(decode_place(&mut r)?, r.varint()?, blocks::decode(&mut r)?),
            26 => Self::Waiting(decode_flag(&mut r)?),
            28 => Self::CanShare,
            _ => return Err(Malformed("a frame of an unknown kind")),
        };
        r.end()?;
        Ok(frame)
    }
}

fn decode_hello<'a>(r: &mut Reader<'a>) -> Result<Frame<'a>, Malformed> {
    if r.raw(MAGIC.len())? != MAGIC {
        return Err(Malformed("a greeting of another protocol"));
    }
    if r.u8()? != VERSION {
        return Err(Malformed("a greeting of another version"));
    }
    match r.u8()? {
        0 => Ok(Frame::Hello(Purpose::Pass)),
        1 => Ok(Frame::Hello(Purpose::Verify)),
        _ => Err(Malformed("a greeting for an unknown purpose")),
    }
}

fn decode_data<'a>(r: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let bytes = r.rest();
    if bytes.len() > MAX_DATA {
        return Err(Malformed("a content block too long"));
    }
    Ok(bytes)
}

fn encode_batch(w: &mut Writer<'_>, batch: &Batch) {
    w.varint(batch.number);
    encode_directory(w, batch.directory);
    w.u8(u8::from(batch.last) | u8::from(batch.partial) << 1);
    w.varint(batch.entries.len() as u64);
    batch.entries.iter().for_each(|entry| encode_entry(w, entry));
}

fn decode_batch(r: &mut Reader<'_>) -> Result<Batch, Malformed> {
    let (number, directory) = (r.varint()?, decode_directory(r)?);
    let flags = r.u8()?;
    let (last, partial) = (flags & 1 != 0, flags & 2 != 0);
    if flags > 3 {
        return Err(Malformed("a batch of an unknown kind"));
    }
    let count = r.count(MAX_BATCH)?;
    if count == 0 && !last {
        return Err(Malformed("an empty batch"));
    }
    let entries = (0..count).map(|_| decode_entry(r, false)).collect::<Result<Vec<_>, _>>()?;
    if !entries.is_sorted_by(|a, b| a.name < b.name) {
        return Err(Malformed("names out of order"));
    }
    if !partial && entries.iter().any(|entry| entry.what == What::Gone) {
        return Err(Malformed("something gone in a listing of all"));
    }
    Ok(Batch { number, directory, last, partial, entries })
}

/// Appends a path from the root, name by name.
pub fn encode_path(w: &mut Writer<'_>, path: &[Vec<u8>]) {
    w.varint(path.len() as u64);
    path.iter().for_each(|name| w.short_bytes(name));
}

/// Reads a path of at most so many names, each of which may name an entry.
pub fn decode_path(r: &mut Reader<'_>, deepest: usize) -> Result<Vec<Vec<u8>>, Malformed> {
    let count = r.count(deepest)?;
    let names = (0..count).map(|_| r.short_bytes().map(<[u8]>::to_vec));
    let path = names.collect::<Result<Vec<_>, _>>()?;
    let is_name = |name: &Vec<u8>| names::is_valid(name) && !names::is_reserved(name);
    if path.is_empty() || !path.iter().all(is_name) {
        return Err(Malformed("a place that is none"));
    }
    Ok(path)
}

fn decode_wants<'a>(r: &mut Reader<'a>) -> Result<Frame<'a>, Malformed> {
    let (batch, bits) = (r.varint()?, r.bytes(MAX_BATCH.div_ceil(8))?);
    let mut mended = Vec::new();
    while !r.is_empty() {
        mended.push(r.u16()?);
    }
    if mended.len() > MAX_BATCH {
        return Err(Malformed("more wishes than entries"));
    }
    Ok(Frame::Wants(batch, bits, mended))
}

fn decode_flag(r: &mut Reader<'_>) -> Result<bool, Malformed> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed("a flag that is neither set nor not")),
    }
}

fn decode_range(r: &mut Reader<'_>) -> Result<Range, Malformed> {
    let (place, size) = (decode_place(r)?, r.varint()?);
    let (offset, length) = (r.varint()?, r.varint()?);
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(Range { place, size, offset, length }),
        _ => Err(Malformed("a range beyond the end of its content")),
    }
}

fn encode_place(w: &mut Writer<'_>, place: Place) {
    w.varint(place.batch);
    w.u16(place.index);
}

fn decode_place(r: &mut Reader<'_>) -> Result<Place, Malformed> {
    Ok(Place { batch: r.varint()?, index: r.u16()? })
}

fn encode_directory(w: &mut Writer<'_>, directory: Directory) {
    w.u8(u8::from(directory.is_some()));
    if let Some(place) = directory {
        encode_place(w, place);
    }
}

fn decode_directory(r: &mut Reader<'_>) -> Result<Directory, Malformed> {
    decode_flag(r)?.then(|| decode_place(r)).transpose()
}

fn encode_unlisted(w: &mut Writer<'_>, why: Unlisted) {
    let (code, errno) = match why {
        Unlisted::Vanished => (1, 0),
        Unlisted::Unreadable(errno) => (2, errno),
        Unlisted::Untouched => (3, 0),
    };
    w.u8(code);
    w.varint(u64::from(errno));
}

fn decode_unlisted(r: &mut Reader<'_>) -> Result<Unlisted, Malformed> {
    match (r.u8()?, r.varint32()?) {
        (1, _) => Ok(Unlisted::Vanished),
        (2, errno) => Ok(Unlisted::Unreadable(errno)),
        (3, _) => Ok(Unlisted::Untouched),
        _ => Err(Malformed("an unknown status of a directory")),
    }
}

fn encode_ending(w: &mut Writer<'_>, ending: Ending) {
    let (code, errno) = match ending {
        Ending::Settled => (0, 0),
        Ending::Changed => (1, 0),
        Ending::Vanished => (2, 0),
        Ending::Unreadable(errno) => (3, errno),
    };
    w.u8(code);
    w.varint(u64::from(errno));
}

fn decode_ending(r: &mut Reader<'_>) -> Result<Ending, Malformed> {
    match (r.u8()?, r.varint32()?) {
        (0, _) => Ok(Ending::Settled),
        (1, _) => Ok(Ending::Changed),
        (2, _) => Ok(Ending::Vanished),
        (3, errno) => Ok(Ending::Unreadable(errno)),
        _ => Err(Malformed("an unknown ending of a content")),
    }
}
