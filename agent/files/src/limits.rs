//! How fast passes may be: bytes a second on the wire, and bytes a second read from and written to disks. What is
//! set counts at once, for a pass that runs too. All passes that have the same limits share them. It must not
//! know who sets them, or why.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::halt::Halt;
use crate::progress::Counters;

/// Whoever waits looks at the rate again at least so often.
const LOOK: Duration = Duration::from_millis(200);
/// So many seconds that nobody used may be made up for.
const BURST: f64 = 1.0;
/// What is sent at once while the rate is limited: so many pieces a second, within these bounds. Large pieces at a
/// low rate would keep other streams silent for too long.
const PIECES: u64 = 64;
const SMALLEST_PIECE: usize = 512;
const LARGEST_PIECE: usize = 16 * 1024;

/// Bytes a second; none: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Of what is sent to the other end.
    pub bandwidth: Option<u64>,
    /// Of contents read from and written to disks.
    pub io: Option<u64>,
}

/// See the module. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Limits(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    wire: Bucket,
    disks: Bucket,
}

impl Limits {
    /// Limits of these rates.
    pub fn new(rates: Rates) -> Self {
        let limits = Self::default();
        limits.set(rates);
        limits
    }

    /// From now on these.
    pub fn set(&self, rates: Rates) {
        self.0.wire.set(rates.bandwidth);
        self.0.disks.set(rates.io);
    }

    /// What is set.
    pub fn get(&self) -> Rates {
        Rates { bandwidth: self.0.wire.get(), io: self.0.disks.get() }
    }

    /// How many bytes are sent at once at the most.
    pub(crate) fn piece(&self) -> usize {
        self.0.wire.get().map_or(usize::MAX, piece)
    }

    /// Waits until so many bytes may be sent.
    pub(crate) async fn send(&self, bytes: usize) {
        let wire = &self.0.wire;
        let Some(place) = wire.take(bytes, Instant::now()) else { return };
        while let Some(left) = wire.left(place, Instant::now()) {
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }
}

fn piece(rate: u64) -> usize {
    let piece = usize::try_from(rate / PIECES).unwrap_or(usize::MAX);
    piece.clamp(SMALLEST_PIECE, LARGEST_PIECE)
}

/// What the threads of one pass read and write with.
#[derive(Debug, Clone)]
pub struct Disks {
    limits: Limits,
    halt: Halt,
    counters: Counters,
}

impl Disks {
    /// Within these limits, until stopped.
    pub fn new(limits: &Limits, halt: &Halt, counters: &Counters) -> Self {
        Self { limits: limits.clone(), halt: halt.clone(), counters: counters.clone() }
    }

    /// So many bytes are read or written: waits if that is faster than it may be.
    pub fn used(&self, bytes: usize) {
        let disks = &self.limits.0.disks;
        let Some(place) = disks.take(bytes, Instant::now()) else { return };
        while let Some(left) = disks.left(place, Instant::now()) {
            if self.halt.is_stopped() {
                return;
            }
            let since = Instant::now();
            std::thread::sleep(left.min(LOOK));
            self.counters.limited(since.elapsed());
        }
    }
}

/// One limit. Bytes are numbered in the order in which they are asked for; time grants them one after the other.
#[derive(Debug)]
struct Bucket {
    /// Bytes a second; 0: no limit.
    rate: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// So many bytes were asked for.
    taken: u64,
    /// So many were granted at `at`.
    granted: f64,
    at: Instant,
}

impl Default for Bucket {
    fn default() -> Self {
        let state = State { taken: 0, granted: 0.0, at: Instant::now() };
        Self { rate: AtomicU64::new(0), state: Mutex::new(state) }
    }
}

impl Bucket {
    fn set(&self, rate: Option<u64>) {
        // What has passed until now was granted at the rate before.
        self.state().grant(self.rate.load(Relaxed), Instant::now());
        self.rate.store(rate.map_or(0, |rate| rate.max(1)), Relaxed);
    }

    fn get(&self) -> Option<u64> {
        Some(self.rate.load(Relaxed)).filter(|rate| *rate > 0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one step, so a panic elsewhere cannot have left it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for so many bytes: the number of the first; none if there is no limit.
    fn take(&self, bytes: usize, now: Instant) -> Option<u64> {
        let rate = self.get()?;
        let mut state = self.state();
        state.grant(rate, now);
        let place = state.taken;
        state.taken += bytes as u64;
        Some(place)
    }

    /// How long it is until that byte is granted; none if it is.
    fn left(&self, place: u64, now: Instant) -> Option<Duration> {
        let Some(rate) = self.get() else {
            self.state().forgive();
            return None;
        };
        let mut state = self.state();
        state.grant(rate, now);
        let missing = place as f64 - state.granted;
        (missing > 0.0).then(|| Duration::from_secs_f64(missing / rate as f64))
    }
}

impl State {
    /// Time has passed.
    fn grant(&mut self, rate: u64, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let most = self.taken as f64 + rate as f64 * BURST;
        self.granted = (self.granted + seconds * rate as f64).min(most);
    }

    /// There is no limit any more: what was asked for is granted.
    fn forgive(&mut self) {
        self.granted = self.granted.max(self.taken as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bucket of that rate, and when it began.
    fn bucket(rate: u64) -> (Bucket, Instant) {
        let bucket = Bucket::default();
        bucket.set(Some(rate));
        let began = bucket.state().at;
        (bucket, began)
    }

    fn after(began: Instant, millis: u64) -> Instant {
        began + Duration::from_millis(millis)
    }

    /// How long, in milliseconds, as exact as it must be.
    fn millis(left: Option<Duration>) -> u128 {
        left.map_or(0, |left| (left + Duration::from_micros(500)).as_millis())
    }

    #[test]
    fn bytes_are_granted_one_after_the_other() {
        let (bucket, began) = bucket(1_000);
        let places: Vec<_> = (0..3).map(|_| bucket.take(500, began).unwrap()).collect();
        assert_eq!(places, [0, 500, 1_000]);
        let all = |at: u64| -> Vec<u128> {
            let now = after(began, at);
            places.iter().map(|place| millis(bucket.left(*place, now))).collect()
        };
        assert_eq!(all(0), [0, 500, 1_000]);
        assert_eq!(all(250), [0, 250, 750]);
        assert_eq!(all(1_000), [0, 0, 0]);
    }

    #[test]
    fn what_nobody_used_is_made_up_for_by_a_second_at_the_most() {
        let (bucket, began) = bucket(1_000);
        let now = after(began, 60_000);
        let first = bucket.take(1_000, now).unwrap();
        let second = bucket.take(1_000, now).unwrap();
        let third = bucket.take(1_000, now).unwrap();
        let waits = [first, second, third].map(|place| millis(bucket.left(place, now)));
        assert_eq!(waits, [0, 0, 1_000]);
    }

    #[test]
    fn another_rate_counts_at_once_for_whoever_waits() {
        let (bucket, began) = bucket(1_000);
        bucket.take(10_000, began);
        let place = bucket.take(10_000, began).unwrap();
        assert_eq!(millis(bucket.left(place, began)), 10_000);
        bucket.rate.store(100_000, Relaxed);
        assert_eq!(millis(bucket.left(place, began)), 100);
        bucket.rate.store(10, Relaxed);
        assert_eq!(millis(bucket.left(place, began)), 1_000_000);
        bucket.set(None);
        assert_eq!(bucket.left(place, began), None);
        assert_eq!(bucket.take(10_000, began), None);
        // Nothing is owed for what was let go.
        bucket.rate.store(1_000, Relaxed);
        let place = bucket.take(1, began).unwrap();
        assert_eq!(bucket.left(place, began), None);
    }

    #[test]
    fn clones_are_one_and_say_what_is_set() {
        let limits = Limits::default();
        assert_eq!((limits.get(), limits.piece()), (Rates::default(), usize::MAX));
        let rates = Rates { bandwidth: Some(640_000), io: Some(5) };
        limits.clone().set(rates);
        assert_eq!((limits.get(), limits.piece()), (rates, 10_000));
        assert_eq!((piece(1), piece(u64::MAX)), (SMALLEST_PIECE, LARGEST_PIECE));
        assert_eq!(Limits::new(rates).get(), rates);
    }

    #[tokio::test]
    async fn nothing_is_waited_for_without_a_limit() {
        Limits::default().send(usize::MAX).await;
        let limits = Limits::new(Rates { bandwidth: Some(1), io: None });
        // The first is not waited for; the second would be.
        limits.send(1_000_000).await;
        limits.set(Rates::default());
        limits.send(1_000_000).await;
    }

    #[test]
    fn whoever_waits_for_disks_is_let_go_when_all_is_stopped() {
        let limits = Limits::new(Rates { bandwidth: None, io: Some(1) });
        let halt = Halt::default();
        let disks = Disks::new(&limits, &halt, &Counters::default());
        halt.stop(ferry_proto::Fault::transient("as a test"));
        disks.used(1_000_000);
        disks.used(1_000_000);
    }
}
