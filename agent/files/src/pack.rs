//! Compression of what a data stream carries, where that helps: while the connection is what both ends wait for.
//! The sender's pump tells whether it waits to write, the receiver whether it waits for more; then threads have
//! time to spare, and chunks of frames are packed as one. Where an end's processors or disks are the slowest,
//! nothing is spent. It must not know what the frames mean.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferry_proto::Fault;

use crate::codec::{Malformed, Reader, Writer};
use crate::halt::protocol_fault;
use crate::protocol::{FAULT, Frame, HEADER, KEEP_ALIVE, PACKED};
use crate::wire::{self, for_each_payload, split};

/// Longest chunk that is packed.
const MAX_RAW: usize = 512 * 1024;
/// Shorter ones are not worth it.
const MIN_RAW: usize = 4 * 1024;
/// The fastest of zstd's ordinary levels.
const LEVEL: i32 = 1;
/// After a chunk that did not get shorter by a tenth, so many are left alone; twice as many the next time.
const FIRST_PAUSE: u32 = 4;
const LONGEST_PAUSE: u32 = 64;
/// Shares of time are told of so long at once.
const WINDOW: Duration = Duration::from_millis(250);

/// What is known of a data stream's pace at its sender.
#[derive(Debug, Clone, Default)]
pub struct Pace(Arc<Cells>);

#[derive(Debug, Default)]
struct Cells {
    /// The pump waits for the connection most of the time.
    waits_to_write: AtomicBool,
    /// The receiver waits for more most of the time.
    receiver_waits: AtomicBool,
}

impl Pace {
    /// The pump waits for the connection most of the time, or no longer.
    pub fn waits_to_write(&self, waits: bool) {
        self.0.waits_to_write.store(waits, Relaxed);
    }

    /// The receiver waits for more most of the time, or no longer.
    pub fn receiver_waits(&self, waits: bool) {
        self.0.receiver_waits.store(waits, Relaxed);
    }

    /// Whether the receiver waits for more most of the time.
    pub fn does_receiver_wait(&self) -> bool {
        self.0.receiver_waits.load(Relaxed)
    }

    /// Whether the connection is slower than both ends.
    pub fn is_connection_slowest(&self) -> bool {
        self.0.waits_to_write.load(Relaxed) && self.does_receiver_wait()
    }
}

/// Which part of its time somebody waits.
#[derive(Debug)]
pub struct Waiting {
    since: Instant,
    waited: Duration,
    mostly: bool,
}

impl Waiting {
    /// From now on.
    pub fn new() -> Self {
        Self { since: Instant::now(), waited: Duration::ZERO, mostly: false }
    }

    /// It has waited for so long. Answers whether it waits most of the time, when that has changed.
    pub fn add(&mut self, waited: Duration) -> Option<bool> {
        self.waited += waited;
        let time = self.since.elapsed();
        if time < WINDOW {
            return None;
        }
        let mostly = self.waited * 2 > time;
        (self.since, self.waited) = (Instant::now(), Duration::ZERO);
        (std::mem::replace(&mut self.mostly, mostly) != mostly).then_some(mostly)
    }
}

/// Packs chunks of whole frames.
pub struct Packer {
    pace: Pace,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    /// So many chunks are left alone yet, and how many the next time.
    pause: (u32, u32),
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("pace", &self.pace).finish_non_exhaustive()
    }
}

impl Packer {
    /// A packer for a stream of this pace.
    pub fn new(pace: Pace) -> Self {
        Self { pace, compressor: None, pause: (0, FIRST_PAUSE) }
    }

    /// The chunk, packed, if that helps. `must_wait`: it would have to wait for its turn otherwise.
    pub fn pack(&mut self, chunk: &[u8], must_wait: bool) -> Option<Vec<u8>> {
        let fits = (MIN_RAW..=MAX_RAW).contains(&chunk.len());
        if !must_wait || !fits || !self.pace.is_connection_slowest() {
            return None;
        }
        if self.pause.0 > 0 {
            self.pause.0 -= 1;
            return None;
        }
        let packed = self.packed(chunk).filter(|packed| packed.len() < chunk.len() / 10 * 9);
        self.pause = match packed {
            Some(_) => (0, FIRST_PAUSE),
            None => (self.pause.1, (self.pause.1 * 2).min(LONGEST_PAUSE)),
        };
        packed
    }

    fn packed(&mut self, chunk: &[u8]) -> Option<Vec<u8>> {
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            None => self.compressor.insert(zstd::bulk::Compressor::new(LEVEL).ok()?),
        };
        let packed = compressor.compress(chunk).ok()?;
        let mut frame = vec![0; HEADER - 1];
        let mut w = Writer::new(&mut frame);
        w.u8(PACKED);
        w.varint(chunk.len() as u64);
        w.raw(&packed);
        let length = u32::try_from(frame.len() + 1 - HEADER).ok()?;
        frame[..4].copy_from_slice(&length.to_le_bytes());
        Some(frame)
    }
}

/// Unpacks what a packer has packed.
#[derive(Default)]
pub struct Unpacker(Option<zstd::bulk::Decompressor<'static>>);

impl Unpacker {
    /// Calls `each` with the frames of a chunk, those that are packed among them.
    pub fn for_each_frame(
        &mut self,
        chunk: Bytes,
        mut each: impl FnMut(Frame<'_>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        for_each_payload(chunk, |kind, payload| {
            if kind != PACKED {
                return each(wire::decode(kind, payload)?);
            }
            let inside = self.unpacked(payload).map_err(|what| protocol_fault(&what))?;
            let mut left = inside.as_slice();
            while let Some((kind, payload, length)) = split(left)? {
                if matches!(kind, PACKED | FAULT | KEEP_ALIVE) {
                    return Err(protocol_fault(&Malformed("something packed that must not be")));
                }
                each(wire::decode(kind, payload)?)?;
                left = &left[length..];
            }
            if left.is_empty() {
                Ok(())
            } else {
                Err(protocol_fault(&Malformed("half a frame, packed")))
            }
        })
    }

    fn unpacked(&mut self, payload: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut r = Reader::new(payload);
        let length = usize::try_from(r.varint()?).unwrap_or(usize::MAX);
        if length > MAX_RAW {
            return Err(Malformed("more packed than may be"));
        }
        let broken = |_| Malformed("a packed frame that is broken");
        let unpacker = match &mut self.0 {
            Some(unpacker) => unpacker,
            None => self.0.insert(zstd::bulk::Decompressor::new().map_err(broken)?),
        };
        // Never writes more than it may.
        let bytes = unpacker.decompress(r.rest(), length).map_err(broken)?;
        if bytes.len() == length {
            Ok(bytes)
        } else {
            Err(broken(std::io::ErrorKind::InvalidData.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Ending, Place};

    fn slow() -> Pace {
        let pace = Pace::default();
        pace.waits_to_write(true);
        pace.receiver_waits(true);
        pace
    }

    fn chunk(content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for index in 0..4 {
            Frame::Whole(Place { batch: 1, index }, Ending::Settled, content).encode(&mut bytes);
        }
        bytes
    }

    fn contents(chunk: Vec<u8>) -> Result<usize, Fault> {
        let mut count = 0;
        Unpacker::default().for_each_frame(chunk.into(), |frame| {
            assert!(matches!(frame, Frame::Whole(..)), "{frame:?}");
            count += 1;
            Ok(())
        })?;
        Ok(count)
    }

    fn noise(length: usize) -> Vec<u8> {
        (0..length).map(|_| rand::random()).collect()
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let plain = chunk(&b"what compresses ".repeat(500));
        let packed = Packer::new(slow()).pack(&plain, true).unwrap();
        assert!(packed.len() * 4 < plain.len(), "{}", packed.len());
        assert_eq!((contents(packed).unwrap(), contents(plain).unwrap()), (4, 4));
    }

    #[test]
    fn nothing_is_spent_where_it_does_not_help() {
        let text = chunk(&b"what compresses ".repeat(500));
        for (pace, must_wait) in [(Pace::default(), true), (slow(), false)] {
            assert!(Packer::new(pace).pack(&text, must_wait).is_none());
        }
        let mut packer = Packer::new(slow());
        let noise = noise(30_000);
        assert!(packer.pack(&noise, true).is_none());
        // Some are left alone after that, and then it is tried again.
        for _ in 0..FIRST_PAUSE {
            assert!(packer.pack(&text, true).is_none());
        }
        assert!(packer.pack(&text, true).is_some());
        let short = chunk(b"short");
        assert!(packer.pack(&short, true).is_none());
    }

    #[test]
    fn what_lies_about_itself_is_refused() {
        let packed = Packer::new(slow()).pack(&chunk(&[7; 8_000]), true).unwrap();
        let length = chunk(&[7; 8_000]).len() as u64;
        let told = |length: u64, inside: &[u8]| {
            let mut payload = Vec::new();
            let mut w = Writer::new(&mut payload);
            w.varint(length);
            w.raw(inside);
            Unpacker::default().unpacked(&payload)
        };
        let mut r = Reader::new(&packed[HEADER..]);
        r.varint().unwrap();
        let inside = r.rest();
        assert_eq!(told(length, inside).unwrap().len() as u64, length);
        for wrong in [0, length - 1, length + 1, MAX_RAW as u64 + 1, u64::MAX] {
            assert!(told(wrong, inside).is_err(), "{wrong}");
        }
        assert!(told(length, &inside[..inside.len() / 2]).is_err());
        // Packed twice, and half a frame.
        for inside in [packed.clone(), chunk(&[7; 3_000])[..7_000].to_vec()] {
            let mut packer = Packer::new(slow());
            let twice = packer.packed(&inside).unwrap();
            assert!(contents(twice).unwrap_err().message.contains("protocol"));
        }
    }

    #[test]
    fn waiting_is_told_when_it_changes() {
        let mut waiting = Waiting::new();
        assert_eq!(waiting.add(Duration::from_secs(9)), None);
        waiting.since = Instant::now().checked_sub(WINDOW * 2).unwrap();
        assert_eq!(waiting.add(Duration::ZERO), Some(true));
        waiting.since = Instant::now().checked_sub(WINDOW * 2).unwrap();
        assert_eq!(waiting.add(WINDOW * 2), None);
        waiting.since = Instant::now().checked_sub(WINDOW * 2).unwrap();
        assert_eq!(waiting.add(Duration::ZERO), Some(false));
    }
}
