//! What two files have in common, as the source tells it, and its bytes on the stream. It comes from a peer: it
//! is a hint of where to look, and proves nothing. It must not know what is done with it.

use crate::codec::{Malformed, Reader, Writer};
use crate::protocol::{decode_path, encode_path};

/// Smaller files are not looked at: what they could share is less than what looking costs.
pub const SMALLEST_FILE: u64 = 128 * 1024;
/// Shorter parts are not told, the end of a file neither.
pub const SMALLEST: u64 = 16 * 1024;
/// Most parts in one frame.
pub const MAX_PARTS: usize = 1024;
/// Files deeper than this are not told of, so that a frame holds two paths.
pub const MAX_DEPTH: usize = 256;

/// A part that two files have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Where it begins in the one.
    pub from: u64,
    /// Where it begins in the other.
    pub to: u64,
    /// How long it is: at least [`SMALLEST`].
    pub length: u64,
}

/// Parts that two files have in common, or one file with itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Where the one is, name by name from the root; it keeps what it has.
    pub from: Vec<Vec<u8>>,
    /// Where the other is, which is to have the same.
    pub to: Vec<Vec<u8>>,
    /// The parts: at least one, at most [`MAX_PARTS`].
    pub parts: Vec<Part>,
}

/// Appends it.
pub fn encode(w: &mut Writer<'_>, share: &Share) {
    encode_path(w, &share.from);
    encode_path(w, &share.to);
    w.varint(share.parts.len() as u64);
    for part in &share.parts {
        w.varint(part.from);
        w.varint(part.to);
        w.varint(part.length);
    }
}

/// Reads it.
pub fn decode(r: &mut Reader<'_>) -> Result<Share, Malformed> {
    let (from, to) = (decode_path(r, MAX_DEPTH)?, decode_path(r, MAX_DEPTH)?);
    let parts = (0..r.count(MAX_PARTS)?).map(|_| decode_part(r)).collect::<Result<Vec<_>, _>>()?;
    if parts.is_empty() {
        return Err(Malformed("files that have nothing in common"));
    }
    Ok(Share { from, to, parts })
}

fn decode_part(r: &mut Reader<'_>) -> Result<Part, Malformed> {
    let part = Part { from: r.varint()?, to: r.varint()?, length: r.varint()? };
    let ends = |at: u64| at.checked_add(part.length).is_some_and(|end| i64::try_from(end).is_ok());
    if part.length < SMALLEST || !ends(part.from) || !ends(part.to) {
        return Err(Malformed("a part of a file that cannot be"));
    }
    Ok(part)
}
