//! Reading a queue of the kernel's: a thread takes the events out of it as they come and has them noted. It must not
//! know what they are about.
//!
//! It lets them gather for a moment. Whoever waited for each would be woken for each, by the one whose file it is; and in
//! the queue what happens to a file one thing after another becomes one event.

use std::fmt::Debug;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferry_proto::Fault;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The thread looks so often whether it is to end, in milliseconds.
const LOOK: u16 = 200;
/// Events gather for so long after a read that gave few. It is a pace and nobody waits for it ([`Reading::drained`]
/// reads itself); short enough for the shortest queue that a kernel allows by itself (16,384 events).
const GATHERING: Duration = Duration::from_millis(20);
/// After a read that gave so many (it may give some two thousand) the next one follows at once.
const MANY: u64 = 1024;
/// No event is told to be shorter than this: an inotify event without a name. (Of a fanotify event the kernel
/// counts only the beginning, 24 bytes.)
const SHORTEST: u64 = 16;

/// Takes events and notes what they are about.
pub trait Noting: Debug + Send + 'static {
    /// What they come out of.
    type Queue: AsFd + Debug + Send + Sync + 'static;

    /// Takes what one read gives. Answers how many events that were.
    fn batch(&mut self, queue: &Self::Queue) -> u64;

    /// Whether events cannot be read any more.
    fn has_failed(&self) -> bool;
}

/// See the module.
#[derive(Debug)]
pub struct Reading<N: Noting> {
    shared: Arc<Shared<N>>,
}

#[derive(Debug)]
struct Shared<N: Noting> {
    queue: N::Queue,
    noting: Mutex<N>,
    is_over: AtomicBool,
}

impl<N: Noting> Reading<N> {
    /// From now on until it is dropped.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(queue: N::Queue, noting: N) -> Result<Self, Fault> {
        let (noting, is_over) = (Mutex::new(noting), AtomicBool::new(false));
        let shared = Arc::new(Shared { queue, noting, is_over });
        let reading = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("file-journal".to_owned())
            .spawn(move || reading.read())
            .map_err(|e| Fault::io("the thread of the change journal cannot be started", &e))?;
        Ok(Self { shared })
    }

    /// What is noted, while the thread waits.
    pub fn noting(&self) -> MutexGuard<'_, N> {
        self.shared.noting()
    }

    /// What is noted: all that was done before this call is.
    pub fn drained(&self) -> MutexGuard<'_, N> {
        let mut noting = self.noting();
        drain(&mut *noting, &self.shared.queue);
        noting
    }
}

impl<N: Noting> Drop for Reading<N> {
    fn drop(&mut self) {
        // The thread ends soon, with the queue. Whoever has no use for it any more does not wait for that: it may
        // be looking through a whole tree.
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}

impl<N: Noting> Shared<N> {
    fn noting(&self) -> MutexGuard<'_, N> {
        // A panic in the middle of a batch leaves the rest of it unnoted, and the thread is gone: see `read`.
        self.noting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread.
    fn read(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            let mut queue = [PollFd::new(self.queue.as_fd(), PollFlags::POLLIN)];
            // Interrupted it is just an early look.
            let _ = poll(&mut queue, PollTimeout::from(LOOK));
            let mut noting = self.noting();
            let taken = noting.batch(&self.queue);
            if noting.has_failed() {
                break;
            }
            drop(noting);
            if taken < MANY {
                std::thread::sleep(GATHERING);
            }
        }
    }
}

/// Notes all that is in the queue by now.
pub fn drain<N: Noting>(noting: &mut N, queue: &N::Queue) {
    // An event is in the queue before whoever caused it goes on.
    let length = rustix::io::ioctl_fionread(queue);
    let mut left = length.map_or(u64::MAX, |bytes| bytes / SHORTEST);
    while left > 0 && !noting.has_failed() {
        match noting.batch(queue) {
            0 => break,
            events => left = left.saturating_sub(events),
        }
    }
}
