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

use crate::attributes::{self, Attribute};
use crate::codec::{Malformed, Reader, Writer};
use crate::metadata::{MODE_BITS, Time};
use crate::names;

/// What `Hello` begins with.
pub const MAGIC: &[u8; 8] = b"FERRYFIL";
/// Version of all this. Both ends must speak the same one.
pub const VERSION: u8 = 1;

/// Longest frame, kind included.
pub const MAX_FRAME: usize = 1024 * 1024;
/// Longest content in one `Data` frame.
pub const MAX_DATA: usize = 128 * 1024;
/// Most entries in one batch.
pub const MAX_BATCH: usize = 256;
/// Most batches that may be under way.
pub const MAX_BATCHES: usize = 256;
/// Most entries that may be under way, unless one batch alone holds more.
pub const MAX_ENTRIES: usize = 8 * 1024;
/// Longest target of a symlink.
pub const MAX_SYMLINK: usize = 4095;
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

/// Why the source does not offer an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withheld {
    /// The caller excluded it.
    Excluded,
    /// Something is mounted there.
    Mount,
    /// Deeper than [`crate::confine::MAX_DEPTH`].
    TooDeep,
    /// It could not be read: errno.
    Unreadable(u32),
    /// Its owner is not the account's: user id.
    Foreign(u32),
    /// It has other names and its owner is shared with other accounts: user id.
    SharedLink(u32),
    /// Its extended attributes are more than what is carried.
    Attributes,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Regular file of so many bytes.
    File(u64),
    /// Directory.
    Directory,
    /// Symlink with its target.
    Symlink(Vec<u8>),
    /// Named pipe.
    Fifo,
    /// Device node.
    Device,
    /// Not offered. The other fields of the entry, but for the name, mean nothing.
    Withheld(Withheld),
}

/// That an entry is one of several names of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Which inode: a number for this pass.
    pub group: u64,
    /// How many names it has.
    pub names: u32,
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name in its directory; empty for the root.
    pub name: Vec<u8>,
    /// What it is.
    pub what: What,
    /// Mode bits.
    pub mode: u16,
    /// Owner, in the source's numbers.
    pub uid: u32,
    /// Group, in the source's numbers.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Other names of the same inode.
    pub link: Option<Link>,
    /// Extended attributes, sorted by name.
    pub attributes: Vec<Attribute>,
    /// Equal size and time prove nothing about this one's content.
    pub doubtful: bool,
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

const HAS_LINK: u8 = 1;
const HAS_ATTRIBUTES: u8 = 2;
const DOUBTFUL: u8 = 4;

/// Appends an entry.
pub fn encode_entry(w: &mut Writer<'_>, entry: &Entry) {
    let kind = match &entry.what {
        What::File(_) => 1,
        What::Directory => 2,
        What::Symlink(_) => 3,
        What::Fifo => 4,
        What::Device => 5,
        What::Withheld(_) => 6,
    };
    w.u8(kind);
    w.short_bytes(&entry.name);
    if let What::Withheld(why) = entry.what {
        let (code, detail) = match why {
            Withheld::Excluded => (0, 0),
            Withheld::Mount => (1, 0),
            Withheld::TooDeep => (2, 0),
            Withheld::Unreadable(errno) => (3, errno),
            Withheld::Foreign(uid) => (4, uid),
            Withheld::SharedLink(uid) => (5, uid),
            Withheld::Attributes => (6, 0),
        };
        w.u8(code);
        w.varint(u64::from(detail));
        return;
    }
    let flag = |on: bool, bit: u8| if on { bit } else { 0 };
    w.u8(flag(entry.link.is_some(), HAS_LINK)
        | flag(!entry.attributes.is_empty(), HAS_ATTRIBUTES)
        | flag(entry.doubtful, DOUBTFUL));
    w.u16(entry.mode);
    w.varint(u64::from(entry.uid));
    w.varint(u64::from(entry.gid));
    w.signed(entry.mtime.sec);
    w.varint(u64::from(entry.mtime.nsec));
    match &entry.what {
        What::File(size) => w.varint(*size),
        What::Symlink(target) => w.bytes(target),
        _ => {}
    }
    if let Some(link) = entry.link {
        w.varint(link.group);
        w.varint(u64::from(link.names));
    }
    if !entry.attributes.is_empty() {
        w.varint(entry.attributes.len() as u64);
        for attribute in &entry.attributes {
            w.short_bytes(&attribute.name);
            w.bytes(&attribute.value);
        }
    }
}

fn decode_entry(r: &mut Reader<'_>, is_root: bool) -> Result<Entry, Malformed> {
    let kind = r.u8()?;
    let name = r.short_bytes()?.to_vec();
    if is_root != name.is_empty() || !(is_root || names::is_valid(&name)) {
        return Err(Malformed("a name that is not one component"));
    }
    if names::is_reserved(&name) {
        return Err(Malformed("a name of Ferry's own temporary files"));
    }
    if kind == 6 {
        let what = What::Withheld(decode_withheld(r)?);
        return Ok(Entry { name, ..Entry::of(what) });
    }
    let flags = r.u8()?;
    let mode = r.u16()?;
    let (uid, gid) = (r.varint32()?, r.varint32()?);
    let mtime = Time { sec: r.signed()?, nsec: r.varint32()? };
    if mode & !MODE_BITS != 0 || mtime.nsec >= 1_000_000_000 || flags > 7 {
        return Err(Malformed("metadata out of range"));
    }
    let what = match kind {
        1 => What::File(r.varint()?),
        2 => What::Directory,
        3 => What::Symlink(decode_symlink(r)?),
        4 => What::Fifo,
        5 => What::Device,
        _ => return Err(Malformed("an entry of an unknown kind")),
    };
    let link = match flags & HAS_LINK {
        0 => None,
        _ => Some(Link { group: r.varint()?, names: r.varint32()? }),
    };
    let attributes = match flags & HAS_ATTRIBUTES {
        0 => Vec::new(),
        _ => decode_attributes(r)?,
    };
    if (is_root && what != What::Directory) || (what == What::Directory && link.is_some()) {
        return Err(Malformed("a directory that is none, or has other names"));
    }
    let doubtful = flags & DOUBTFUL != 0;
    Ok(Entry { name, what, mode, uid, gid, mtime, link, attributes, doubtful })
}

fn decode_withheld(r: &mut Reader<'_>) -> Result<Withheld, Malformed> {
    match (r.u8()?, r.varint32()?) {
        (0, _) => Ok(Withheld::Excluded),
        (1, _) => Ok(Withheld::Mount),
        (2, _) => Ok(Withheld::TooDeep),
        (3, errno) => Ok(Withheld::Unreadable(errno)),
        (4, uid) => Ok(Withheld::Foreign(uid)),
        (5, uid) => Ok(Withheld::SharedLink(uid)),
        (6, _) => Ok(Withheld::Attributes),
        _ => Err(Malformed("an unknown reason to withhold")),
    }
}

fn decode_symlink(r: &mut Reader<'_>) -> Result<Vec<u8>, Malformed> {
    let target = r.bytes(MAX_SYMLINK)?;
    if target.is_empty() || target.contains(&0) {
        return Err(Malformed("a symlink to an impossible path"));
    }
    Ok(target.to_vec())
}

fn decode_attributes(r: &mut Reader<'_>) -> Result<Vec<Attribute>, Malformed> {
    let count = r.count(attributes::MAX_COUNT)?;
    let mut all: Vec<Attribute> = Vec::with_capacity(count);
    let mut total = 0;
    for _ in 0..count {
        let name = r.short_bytes()?;
        let value = r.bytes(attributes::MAX_VALUE)?;
        total += name.len() + value.len();
        let rises = all.last().is_none_or(|last| last.name.as_slice() < name);
        if name.is_empty() || name.contains(&0) || !rises || total > attributes::MAX_TOTAL {
            return Err(Malformed("impossible extended attributes"));
        }
        all.push(Attribute { name: name.to_vec(), value: value.to_vec() });
    }
    Ok(all)
}

impl Entry {
    /// An entry of nothing but what it is.
    pub fn of(what: What) -> Self {
        Self {
            name: Vec::new(),
            what,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            link: None,
            attributes: Vec::new(),
            doubtful: false,
        }
    }
}
