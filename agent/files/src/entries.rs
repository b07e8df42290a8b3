//! Entries of a listing and their bytes on the stream. Like the frames around them they come from a peer, so
//! no length and no value is trusted. It must not know what is done with an entry.

use ferry_proto::approval::Device;

use crate::attributes::{self, Attribute};
use crate::codec::{Malformed, Reader, Writer};
use crate::locks::Locks;
use crate::metadata::{MODE_BITS, Time};
use crate::names;
use crate::projects::Project;

/// Longest target of a symlink.
const MAX_SYMLINK: usize = 4095;

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
    /// Device node with its numbers.
    Device(Device),
    /// Not offered. The other fields of the entry, but for the name, mean nothing.
    Withheld(Withheld),
    /// There is nothing of this name; the other fields mean nothing. Only where a listing is not of all names.
    Gone,
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
    /// A directory that the pass before knew in another place: the number of its move.
    pub moved: Option<u32>,
    /// Flags that keep it as it is: only a file or a directory has one.
    pub locks: Locks,
    /// The project that it is counted for, where projects are counted: only a file or a directory has one.
    pub project: Option<Project>,
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
            moved: None,
            locks: Locks::NONE,
            project: None,
        }
    }

    /// That nothing has this name.
    pub fn gone(name: &[u8]) -> Self {
        Self { name: name.to_vec(), ..Self::of(What::Gone) }
    }
}

const HAS_LINK: u8 = 1;
const HAS_ATTRIBUTES: u8 = 2;
const DOUBTFUL: u8 = 4;
const HAS_MOVED: u8 = 8;
const IMMUTABLE: u8 = 16;
const APPEND_ONLY: u8 = 32;
const HAS_PROJECT: u8 = 64;
const ALL_FLAGS: u8 =
    HAS_LINK | HAS_ATTRIBUTES | DOUBTFUL | HAS_MOVED | IMMUTABLE | APPEND_ONLY | HAS_PROJECT;

/// Appends an entry.
pub fn encode_entry(w: &mut Writer<'_>, entry: &Entry) {
    let kind = match &entry.what {
        What::File(_) => 1,
        What::Directory => 2,
        What::Symlink(_) => 3,
        What::Fifo => 4,
        What::Device(_) => 5,
        What::Withheld(_) => 6,
        What::Gone => 7,
    };
    w.u8(kind);
    w.short_bytes(&entry.name);
    if entry.what == What::Gone {
        return;
    }
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
        | flag(entry.doubtful, DOUBTFUL)
        | flag(entry.moved.is_some(), HAS_MOVED)
        | flag(entry.locks.immutable, IMMUTABLE)
        | flag(entry.locks.append_only, APPEND_ONLY)
        | flag(entry.project.is_some(), HAS_PROJECT));
    w.u16(entry.mode);
    w.varint(u64::from(entry.uid));
    w.varint(u64::from(entry.gid));
    w.signed(entry.mtime.sec);
    w.varint(u64::from(entry.mtime.nsec));
    match &entry.what {
        What::File(size) => w.varint(*size),
        What::Symlink(target) => w.bytes(target),
        What::Device(device) => {
            w.u8(u8::from(device.block));
            w.varint(u64::from(device.major));
            w.varint(u64::from(device.minor));
        }
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
    if let Some(number) = entry.moved {
        w.varint(u64::from(number));
    }
    if let Some(project) = entry.project {
        w.varint(u64::from(project.id));
        w.u8(u8::from(project.inherits));
    }
}

/// Reads an entry; only the root's has no name.
pub fn decode_entry(r: &mut Reader<'_>, is_root: bool) -> Result<Entry, Malformed> {
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
    if kind == 7 && !is_root {
        return Ok(Entry { name, ..Entry::of(What::Gone) });
    }
    let flags = r.u8()?;
    let mode = r.u16()?;
    let (uid, gid) = (r.varint32()?, r.varint32()?);
    let mtime = Time { sec: r.signed()?, nsec: r.varint32()? };
    if mode & !MODE_BITS != 0 || mtime.nsec >= 1_000_000_000 || flags & !ALL_FLAGS != 0 {
        return Err(Malformed("metadata out of range"));
    }
    let what = match kind {
        1 => What::File(r.varint()?),
        2 => What::Directory,
        3 => What::Symlink(decode_symlink(r)?),
        4 => What::Fifo,
        5 => What::Device(decode_device(r)?),
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
    let moved = (flags & HAS_MOVED != 0).then(|| r.varint32()).transpose()?;
    if (is_root && what != What::Directory) || (what == What::Directory && link.is_some()) {
        return Err(Malformed("a directory that is none, or has other names"));
    }
    if moved.is_some() && (is_root || what != What::Directory) {
        return Err(Malformed("a move of what is no directory"));
    }
    let doubtful = flags & DOUBTFUL != 0;
    let project = (flags & HAS_PROJECT != 0).then(|| decode_project(r)).transpose()?;
    let locks = Locks { immutable: flags & IMMUTABLE != 0, append_only: flags & APPEND_ONLY != 0 };
    let may_have = matches!(what, What::File(_) | What::Directory);
    if !may_have && (project.is_some() || !locks.is_none()) {
        return Err(Malformed("flags of what is neither a file nor a directory"));
    }
    let inode =
        Entry { mode, uid, gid, mtime, link, attributes, locks, project, ..Entry::of(what) };
    Ok(Entry { name, doubtful, moved, ..inode })
}

fn decode_device(r: &mut Reader<'_>) -> Result<Device, Malformed> {
    let block = match r.u8()? {
        block @ 0..=1 => block == 1,
        _ => return Err(Malformed("a device of an unknown kind")),
    };
    Ok(Device { block, major: r.varint32()?, minor: r.varint32()? })
}

fn decode_project(r: &mut Reader<'_>) -> Result<Project, Malformed> {
    let id = r.varint32()?;
    match r.u8()? {
        inherits @ 0..=1 => Ok(Project { id, inherits: inherits == 1 }),
        _ => Err(Malformed("a project of an unknown kind")),
    }
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
