//! What happens to one account now: who runs, who waits, what was measured. It owns the effects of
//! a change of route on connections; it must not decide whether the change is allowed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::control::{AccountRoute, HoldLimits, RouteState, Stamp, Traffic};

/// The connections that were let through under one route.
#[derive(Debug, Default)]
pub struct Generation {
    running: AtomicU64,
    /// Cancelled when the route changes: what has not begun to send goes back and asks again.
    pub replaced: CancellationToken,
    /// Cancelled when a tunnel that waits for nothing shall end. Not where an account comes back from a
    /// peer, which holds some of them: a handshake that has just ended there waits for its answer.
    pub winding: CancellationToken,
    /// Cancelled when the grace is over: what still runs is ended.
    pub cut: CancellationToken,
}

impl Generation {
    /// Counts one in. Only under the gate's lock, so that nobody enters a generation that was
    /// replaced.
    pub fn enter(&self) {
        self.running.fetch_add(1, Ordering::SeqCst);
    }

    /// Counts one out; true if it was the last.
    pub fn leave(&self) -> bool {
        self.running.fetch_sub(1, Ordering::SeqCst) == 1
    }

    /// How many run.
    pub fn running(&self) -> u64 {
        self.running.load(Ordering::SeqCst)
    }
}

/// A generation that nobody enters any more.
struct Old {
    generation: Arc<Generation>,
    /// When what still runs of it is ended.
    due: Option<Instant>,
}

struct Waiter {
    id: u64,
    bytes: u64,
    released: oneshot::Sender<()>,
}

/// What a change of route asks to be done about connections of earlier generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing.
    Leave,
    /// After this time, end those that are due then.
    After(Duration),
}

/// How many requests of one account burden their target at once: those held are released in order
/// and must not overrun a web server that has just started, nor the number of connections that
/// Debian's web server takes at once.
const PACE: usize = 64;

/// One account.
pub struct Live {
    traffic: Traffic,
    /// From the beginning of a hold to the first answer after it.
    measuring: bool,
    limits: HoldLimits,
    current: Arc<Generation>,
    old: Vec<Old>,
    waiters: VecDeque<Waiter>,
    pace: Arc<Semaphore>,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            traffic: Traffic::default(),
            measuring: false,
            limits: HoldLimits::default(),
            current: Arc::default(),
            old: Vec::new(),
            waiters: VecDeque::new(),
            pace: Arc::new(Semaphore::new(PACE)),
        }
    }
}

impl Live {
    /// The generation that is let through now.
    pub fn current(&self) -> &Arc<Generation> {
        &self.current
    }

    /// How long a request may wait, or look for its target.
    pub fn wait(&self) -> Duration {
        self.limits.wait()
    }

    /// Grants, in order, the right to burden a target.
    pub fn pace(&self) -> &Arc<Semaphore> {
        &self.pace
    }

    /// How many connections of earlier generations run.
    pub fn leftover(&mut self) -> u64 {
        self.old.retain(|old| old.generation.running() > 0);
        self.old.iter().map(|old| old.generation.running()).sum()
    }

    /// Counters and measurements.
    pub fn traffic(&self) -> Traffic {
        let old: u64 = self.old.iter().map(|old| old.generation.running()).sum();
        Traffic {
            running: old + self.current.running(),
            held_now: self.waiters.len() as u64,
            held_bytes: self.held_bytes(),
            ..self.traffic.clone()
        }
    }

    fn held_bytes(&self) -> u64 {
        self.waiters.iter().map(|waiter| waiter.bytes).sum()
    }

    /// Connections that began before the account had a route.
    pub fn adopt(&mut self, generation: Arc<Generation>) {
        self.old.push(Old { generation, due: None });
    }

    /// Lets a request wait; None if that is beyond the limits. `again` tells that it waited before.
    pub fn queue(&mut self, id: u64, bytes: u64, again: bool) -> Option<oneshot::Receiver<()>> {
        let full = self.waiters.len() >= self.limits.requests as usize
            || self.traffic.held_bytes + bytes > self.limits.bytes;
        if full {
            return None;
        }
        let (released, waiting) = oneshot::channel();
        self.waiters.push_back(Waiter { id, bytes, released });
        self.traffic.held_bytes += bytes;
        self.traffic.held_total += u64::from(!again);
        self.note_outage();
        Some(waiting)
    }

    /// A waiting request went away or gave up.
    pub fn unqueue(&mut self, id: u64) {
        if let Some(at) = self.waiters.iter().position(|waiter| waiter.id == id)
            && let Some(waiter) = self.waiters.remove(at)
        {
            self.traffic.held_bytes -= waiter.bytes;
        }
    }

    fn note_outage(&mut self) {
        if self.measuring && self.traffic.first_held_at.is_none() {
            self.traffic.first_held_at = Some(now());
        }
    }

    /// A request was refused.
    pub fn refused(&mut self) {
        self.traffic.refused_total += 1;
        self.note_outage();
    }

    /// A request was passed on.
    pub fn passed(&mut self) {
        self.traffic.passed += 1;
    }

    /// A request was ended.
    pub fn ended(&mut self) {
        self.traffic.ended_total += 1;
    }

    /// The first byte of an answer came to a request of `generation`.
    pub fn answered(&mut self, generation: &Arc<Generation>) {
        // While holding, nobody is let into the current generation: one that answers was released.
        if self.measuring && Arc::ptr_eq(generation, &self.current) {
            self.traffic.first_answered_at = Some(now());
            self.measuring = false;
        }
    }

    /// Applies a route. `before` is the one that stood, if any.
    pub fn apply(&mut self, before: Option<&AccountRoute>, after: &AccountRoute) -> Cut {
        let was = before.map(|route| &route.state);
        match (was, &after.state) {
            (Some(RouteState::Hold { .. }), RouteState::Hold { limits }) => {
                self.limits = *limits;
                self.cut_leftover(limits.grace())
            }
            (_, RouteState::Hold { limits }) => {
                self.limits = *limits;
                self.begin_measuring();
                self.rotate();
                self.cut_leftover(limits.grace())
            }
            (Some(RouteState::Hold { .. }), RouteState::Local) => {
                // The hold was given up: what survived it may go on.
                self.old.iter_mut().for_each(|old| old.due = None);
                self.release();
                Cut::Leave
            }
            (Some(RouteState::Hold { .. }), RouteState::Remote { .. }) => {
                self.release();
                self.cut_leftover(Duration::ZERO)
            }
            (Some(RouteState::Local), RouteState::Local) | (None, RouteState::Local) => Cut::Leave,
            (was, now) if was == Some(now) => Cut::Leave,
            (Some(RouteState::Remote { .. }), RouteState::Local | RouteState::Remote { .. }) => {
                // They are with the peer, which may hold them until the account is open here and
                // then brings them to us: they are not ours to end before they could be answered.
                self.replace();
                self.cut_leftover(2 * HoldLimits::default().wait())
            }
            _ => {
                self.rotate();
                self.cut_leftover(HoldLimits::default().grace())
            }
        }
    }

    /// A move's figures are its own, not those of the moves before it.
    fn begin_measuring(&mut self) {
        self.measuring = true;
        self.traffic.first_held_at = None;
        self.traffic.first_answered_at = None;
        self.traffic.held_total = 0;
        self.traffic.refused_total = 0;
        self.traffic.ended_total = 0;
    }

    /// What runs now becomes the past, and what of it waits for nothing ends.
    fn rotate(&mut self) {
        self.replace();
        for old in &self.old {
            old.generation.winding.cancel();
        }
    }

    /// What runs now becomes the past; what has not begun to send goes back and waits.
    fn replace(&mut self) {
        let generation = std::mem::take(&mut self.current);
        self.old.push(Old { generation, due: None });
        for old in &self.old {
            old.generation.replaced.cancel();
        }
    }

    fn release(&mut self) {
        self.traffic.held_bytes = 0;
        for waiter in self.waiters.drain(..) {
            // One that went away in this moment needs no word.
            let _ = waiter.released.send(());
        }
    }

    /// Old generations are due after `grace`, unless they are sooner.
    fn cut_leftover(&mut self, grace: Duration) -> Cut {
        let due = Instant::now() + grace;
        let mut cut = Cut::Leave;
        self.old.retain(|old| old.generation.running() > 0);
        for old in self.old.iter_mut().filter(|old| old.due.is_none_or(|sooner| due < sooner)) {
            old.due = Some(due);
            cut = Cut::After(grace);
        }
        cut
    }

    /// Ends what runs of the generations that are due.
    pub fn cut(&mut self, now: Instant) {
        for old in self.old.iter().filter(|old| old.due.is_some_and(|due| due <= now)) {
            old.generation.cut.cancel();
        }
    }

    /// The account is forgotten. What was to end, ends now; who waits learns it by the drop.
    pub fn forget(self, state: &RouteState) {
        if !matches!(state, RouteState::Local) {
            self.old.iter().for_each(|old| old.generation.cut.cancel());
        }
    }
}

/// This instant.
pub fn now() -> Stamp {
    use nix::time::{ClockId, clock_gettime};
    let nanoseconds = |clock| {
        // Both clocks exist on every Linux; zero would only spoil a measurement.
        let time = clock_gettime(clock).map(Duration::from).unwrap_or_default();
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
    };
    Stamp {
        unix_ns: nanoseconds(ClockId::CLOCK_REALTIME),
        monotonic_ns: nanoseconds(ClockId::CLOCK_MONOTONIC),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferry_proto::ids::Epoch;

    fn route(state: RouteState) -> AccountRoute {
        AccountRoute {
            account: "alice".parse().unwrap(),
            epoch: Epoch(1),
            domains: [].into(),
            state,
            upstream: crate::control::LocalUpstream::default(),
        }
    }

    fn hold(requests: u32, bytes: u64) -> AccountRoute {
        let limits = HoldLimits { requests, bytes, ..HoldLimits::default() };
        route(RouteState::Hold { limits })
    }

    #[test]
    fn the_limits_of_waiting_hold() {
        let mut live = Live::default();
        live.apply(None, &hold(2, 100));
        let first = live.queue(1, 60, false).unwrap();
        assert!(live.queue(2, 50, false).is_none(), "beyond the bytes");
        let second = live.queue(3, 40, false).unwrap();
        assert!(live.queue(4, 0, false).is_none(), "beyond the number");
        live.unqueue(1);
        live.unqueue(1);
        assert!(live.queue(5, 60, true).is_some());
        assert_eq!(live.traffic().held_total, 2);
        drop((first, second));
    }

    #[test]
    fn the_outage_is_from_the_first_held_to_the_first_answered_after_release() {
        let mut live = Live::default();
        live.apply(None, &route(RouteState::Local));
        let before = Arc::clone(live.current());
        live.apply(Some(&route(RouteState::Local)), &hold(2, 100));
        assert_eq!(live.traffic().first_held_at, None);
        let waiting = live.queue(1, 1, false).unwrap();
        let first = live.traffic().first_held_at.unwrap();
        live.refused();
        live.answered(&before);
        assert_eq!(live.traffic().first_answered_at, None, "an answer of before the hold");
        live.apply(Some(&hold(2, 100)), &route(RouteState::Local));
        let after = Arc::clone(live.current());
        live.answered(&after);
        let traffic = live.traffic();
        assert_eq!(traffic.first_held_at, Some(first));
        assert!(traffic.outage().is_some());
        live.answered(&after);
        assert_eq!(live.traffic(), traffic, "only the first counts");
        drop(waiting);
    }

    #[test]
    fn those_held_at_the_peer_are_left_when_the_account_comes_back() {
        let mut live = Live::default();
        let remote = RouteState::Remote { peer: ([192, 0, 2, 1], 7481).into() };
        live.apply(None, &route(remote.clone()));
        let with_peer = Arc::clone(live.current());
        with_peer.enter();
        let cut = live.apply(Some(&route(remote)), &route(RouteState::Local));
        assert_eq!(cut, Cut::After(2 * HoldLimits::default().wait()));
        assert!(with_peer.replaced.is_cancelled() && !with_peer.cut.is_cancelled());
        assert!(!with_peer.winding.is_cancelled(), "a tunnel held there waits for its answer");
        assert!(with_peer.leave());
    }

    #[test]
    fn each_generation_has_its_own_end() {
        let mut live = Live::default();
        let remote = RouteState::Remote { peer: ([192, 0, 2, 1], 7481).into() };
        live.apply(None, &route(remote.clone()));
        let with_peer = Arc::clone(live.current());
        with_peer.enter();
        live.apply(Some(&route(remote)), &route(RouteState::Local));
        let here = Arc::clone(live.current());
        here.enter();
        // Fenced again while those with the peer still have their time: none of them outlives the
        // grace of this fence.
        let cut = live.apply(Some(&route(RouteState::Local)), &hold(2, 100));
        assert_eq!(cut, Cut::After(HoldLimits::default().grace()));
        live.cut(Instant::now());
        assert!(!here.cut.is_cancelled() && !with_peer.cut.is_cancelled());
        // Holding on does not prolong it.
        assert_eq!(live.apply(Some(&hold(2, 100)), &hold(3, 100)), Cut::Leave);
        live.cut(Instant::now() + HoldLimits::default().grace());
        assert!(here.cut.is_cancelled() && with_peer.cut.is_cancelled());
    }

    #[test]
    fn an_earlier_end_does_not_come_over_a_hold_that_was_given_up() {
        let mut live = Live::default();
        live.apply(None, &route(RouteState::Local));
        let running = Arc::clone(live.current());
        running.enter();
        live.apply(Some(&route(RouteState::Local)), &hold(2, 100));
        live.apply(Some(&hold(2, 100)), &route(RouteState::Local));
        live.cut(Instant::now() + HoldLimits::default().grace());
        assert!(!running.cut.is_cancelled());
        // The figures of the next hold begin with it.
        live.ended();
        live.refused();
        live.apply(Some(&route(RouteState::Local)), &hold(2, 100));
        let traffic = live.traffic();
        assert_eq!((traffic.held_total, traffic.refused_total, traffic.ended_total), (0, 0, 0));
    }

    #[test]
    fn holding_sends_back_and_later_ends_what_ran() {
        let mut live = Live::default();
        live.apply(None, &route(RouteState::Local));
        let running = Arc::clone(live.current());
        running.enter();
        let cut = live.apply(Some(&route(RouteState::Local)), &hold(2, 100));
        assert_eq!(cut, Cut::After(HoldLimits::default().grace()));
        assert!(running.replaced.is_cancelled() && !running.cut.is_cancelled());
        assert!(running.winding.is_cancelled());
        assert_eq!(live.leftover(), 1);
        live.cut(Instant::now());
        assert!(!running.cut.is_cancelled(), "it has its grace");
        live.cut(Instant::now() + HoldLimits::default().grace());
        assert!(running.cut.is_cancelled());
        assert!(running.leave());
        assert_eq!(live.leftover(), 0);
        assert!(!live.current().replaced.is_cancelled());
    }
}
