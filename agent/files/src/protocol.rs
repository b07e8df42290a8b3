//! What crosses the stream: frames and their bytes. Everything here parses what a peer sent, so
//! nothing here trusts a length, and nothing allocates more than the frame that was received. It
//! must not know files or directories.
//!
//! # The conversation
//!
//! The source walks its tree depth first and streams sorted listings; the target answers each batch
//! of a listing with what it wants; the source streams those contents. Nobody waits for an answer
//! per file: up to [`MAX_BATCHES`] batches are under way at once.
//!
//! ```text
//! source                                target
//! Hello                                 Hello
//! Root entry
//! Dir status            (the root)
//!   Batch entries ...                   Wants bitmap        one per batch, in order
//!   DirEnd
//! Dir status            (next directory of the listing, depth first)
//!   ...
//! WalkEnd
//! File, Data, Hole, FileEnd             between the above, in the order wanted
//!   or Skip; or Hash when verifying
//! Summary               (all sent)
//!                                       Report              (all applied and flushed)
//! Bye
//! ```
//!
//! No path crosses the stream. A listing holds names of one component; which directory a `Dir` frame
//! speaks of follows from the listings before it, on both ends alike, so a peer cannot name
//! anything outside the tree. Names rise strictly in a listing.
//!
//! # Frames
//!
//! Length of what follows (u32, little-endian), kind (u8), payload. Integers are little-endian or
//! LEB128 ("varint"); signed ones are zigzag first. `Fault` and `KeepAlive` may come at any time from
//! either end. A frame is at most [`MAX_FRAME`] bytes.

use crate::codec::{Malformed, Reader, Writer};
use crate::entries::{Entry, decode_entry, encode_entry};

/// What `Hello` begins with.
pub const MAGIC: &[u8; 8] = b"FERRYFIL";
/// Version of all this. Both ends must speak the same one.
pub const VERSION: u8 = 1;

/// Longest frame, kind included.
pub const MAX_FRAME: usize = 2 * 1024 * 1024;
/// Longest content in one `Data` frame.
pub const MAX_DATA: usize = 128 * 1024;
/// Most entries in one batch.
pub const MAX_BATCH: usize = 256;
/// Most batches that may be under way.
pub const MAX_BATCHES: usize = 256;
/// Most entries that may be under way, unless one batch alone holds more.
pub const MAX_ENTRIES: usize = 8 * 1024;
/// Length of the header: length and kind.
pub const HEADER: usize = 5;

/// What the stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Make the target equal to the source.
    Pass,
    /// Compare both.
    Verify,
}

/// How opening a directory went at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirStatus {
    /// Its listing follows.
    Listed,
    /// It is gone or another one stands there.
    Vanished,
    /// It cannot be read: errno.
    Unreadable(u32),
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

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// First frame of either end.
    Hello(Purpose),
    /// The root's own metadata.
    Root(Entry),
    /// The next directory.
    Dir(DirStatus),
    /// More of its entries.
    Batch(Vec<Entry>),
    /// No more of its entries.
    DirEnd,
    /// No more directories.
    WalkEnd,
    /// A content begins; so many bytes, holes included.
    File(Place, u64),
    /// The next bytes of the content.
    Data(&'a [u8]),
    /// So many zero bytes.
    Hole(u64),
    /// The content ends.
    FileEnd(Ending),
    /// There is no content.
    Skip(Place, Ending),
    /// The digest of a content.
    Hash(Place, Ending, u64, [u8; 32]),
    /// All is sent; JSON of the source's part of the report.
    Summary(&'a [u8]),
    /// What is wanted of a batch, a bit per entry, lowest first.
    Wants(u64, &'a [u8]),
    /// All is done; JSON of the report.
    Report(&'a [u8]),
    /// The sender ends it; JSON of a fault.
    Fault(&'a [u8]),
    /// The sender is alive.
    KeepAlive,
    /// The report was received.
    Bye,
}

const fn kind_of(frame: &Frame<'_>) -> u8 {
    match frame {
        Frame::Hello(_) => 1,
        Frame::Root(_) => 2,
        Frame::Dir(_) => 3,
        Frame::Batch(_) => 4,
        Frame::DirEnd => 5,
        Frame::WalkEnd => 6,
        Frame::File(..) => 7,
        Frame::Data(_) => 8,
        Frame::Hole(_) => 9,
        Frame::FileEnd(_) => 10,
        Frame::Skip(..) => 11,
        Frame::Hash(..) => 12,
        Frame::Summary(_) => 13,
        Frame::Wants(..) => 20,
        Frame::Report(_) => 21,
        Frame::Fault(_) => FAULT,
        Frame::KeepAlive => KEEP_ALIVE,
        Frame::Bye => 24,
    }
}

/// Kind of [`Frame::Fault`], which the stream's pump handles itself.
pub const FAULT: u8 = 22;
/// Kind of [`Frame::KeepAlive`], which the stream's pump handles itself.
pub const KEEP_ALIVE: u8 = 23;

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
            Self::Root(entry) => encode_entry(&mut w, entry),
            Self::Dir(status) => encode_dir_status(&mut w, *status),
            Self::Batch(entries) => {
                w.varint(entries.len() as u64);
                entries.iter().for_each(|entry| encode_entry(&mut w, entry));
            }
            Self::DirEnd | Self::WalkEnd | Self::KeepAlive | Self::Bye => {}
            Self::File(place, size) => {
                encode_place(&mut w, *place);
                w.varint(*size);
            }
            Self::Data(bytes) | Self::Summary(bytes) | Self::Report(bytes) | Self::Fault(bytes) => {
                w.raw(bytes);
            }
            Self::Hole(length) => w.varint(*length),
            Self::FileEnd(ending) => encode_ending(&mut w, *ending),
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
            Self::Wants(batch, bits) => {
                w.varint(*batch);
                w.raw(bits);
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
            2 => Self::Root(decode_entry(&mut r, true)?),
            3 => Self::Dir(decode_dir_status(&mut r)?),
            4 => Self::Batch(decode_batch(&mut r)?),
            5 => Self::DirEnd,
            6 => Self::WalkEnd,
            7 => Self::File(decode_place(&mut r)?, r.varint()?),
            8 if payload.len() > MAX_DATA => return Err(Malformed("a content block too long")),
            8 => Self::Data(r.rest()),
            9 => Self::Hole(r.varint()?),
            10 => Self::FileEnd(decode_ending(&mut r)?),
            11 => Self::Skip(decode_place(&mut r)?, decode_ending(&mut r)?),
            12 => {
                Self::Hash(decode_place(&mut r)?, decode_ending(&mut r)?, r.varint()?, r.array()?)
            }
            13 => Self::Summary(r.rest()),
            20 => Self::Wants(r.varint()?, r.rest()),
            21 => Self::Report(r.rest()),
            FAULT => Self::Fault(r.rest()),
            KEEP_ALIVE => Self::KeepAlive,
            24 => Self::Bye,
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

fn decode_batch(r: &mut Reader<'_>) -> Result<Vec<Entry>, Malformed> {
    let count = r.count(MAX_BATCH)?;
    if count == 0 {
        return Err(Malformed("an empty batch"));
    }
    (0..count).map(|_| decode_entry(r, false)).collect()
}

fn encode_place(w: &mut Writer<'_>, place: Place) {
    w.varint(place.batch);
    w.u16(place.index);
}

fn decode_place(r: &mut Reader<'_>) -> Result<Place, Malformed> {
    Ok(Place { batch: r.varint()?, index: r.u16()? })
}

fn encode_dir_status(w: &mut Writer<'_>, status: DirStatus) {
    let (code, errno) = match status {
        DirStatus::Listed => (0, 0),
        DirStatus::Vanished => (1, 0),
        DirStatus::Unreadable(errno) => (2, errno),
    };
    w.u8(code);
    w.varint(u64::from(errno));
}

fn decode_dir_status(r: &mut Reader<'_>) -> Result<DirStatus, Malformed> {
    match (r.u8()?, r.varint32()?) {
        (0, _) => Ok(DirStatus::Listed),
        (1, _) => Ok(DirStatus::Vanished),
        (2, errno) => Ok(DirStatus::Unreadable(errno)),
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
