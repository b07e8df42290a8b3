//! Buffers that go round: what one side of a queue has filled, the other has emptied, and gives back. Made anew for
//! each chunk, each would be pages that the kernel clears first. It must not know what is in them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::protocol::MAX_DATA;
use crate::wire::{CHUNK, QUEUE};

/// So much fits into a buffer: a chunk that is not quite full, and the longest content in one frame.
const ROOM: usize = CHUNK + MAX_DATA + 4096;
/// So many wait: as many as a queue holds, one that is filled and one that is emptied.
const MOST: usize = QUEUE + 2;

/// Empty buffers of one stream, one way.
#[derive(Debug, Clone, Default)]
pub struct Spare(Arc<Mutex<Vec<Vec<u8>>>>);

impl Spare {
    /// An empty buffer.
    pub fn take(&self) -> Vec<u8> {
        let spare = self.lock().pop();
        spare.unwrap_or_else(|| Vec::with_capacity(ROOM))
    }

    /// A buffer that nobody needs any more. One that is shorter than most is not kept, nor one that a single long
    /// frame has made longer: they would stay so.
    pub fn give(&self, mut buffer: Vec<u8>) {
        let mut spare = self.lock();
        if (ROOM..2 * ROOM).contains(&buffer.capacity()) && spare.len() < MOST {
            buffer.clear();
            spare.push(buffer);
        }
    }

    /// What is in the buffer, which comes back when nobody holds it any more.
    pub fn lend(&self, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { buffer, spare: self.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        // Each change is one step, so a panic elsewhere cannot have left it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Lent {
    buffer: Vec<u8>,
    spare: Spare,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.spare.give(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty_when_nobody_reads_it() {
        let spare = Spare::default();
        let mut buffer = spare.take();
        buffer.extend_from_slice(b"frames");
        let place = buffer.as_ptr();
        let mut lent = spare.lend(buffer);
        let half = lent.split_off(3);
        drop(lent);
        assert_eq!(&half[..], b"mes");
        assert!(spare.lock().is_empty());
        drop(half);
        let again = spare.take();
        assert!(again.is_empty());
        assert_eq!(again.as_ptr(), place);
    }

    #[test]
    fn only_so_many_and_none_of_another_length_are_kept() {
        let spare = Spare::default();
        spare.give(Vec::with_capacity(1000));
        spare.give(Vec::with_capacity(2 * ROOM));
        assert!(spare.lock().is_empty());
        (0..2 * MOST).for_each(|_| spare.give(Vec::with_capacity(ROOM)));
        assert_eq!(spare.lock().len(), MOST);
    }
}
