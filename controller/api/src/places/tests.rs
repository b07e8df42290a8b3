use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn place(server: &str, kind: PlaceKind) -> Place {
    Place { server: server.parse().unwrap(), kind }
}

/// The n-th job that was started.
fn ticket(n: u8) -> Ticket {
    (i64::from(n), JobId(uuid::Uuid::from_u128(u128::from(n))))
}

fn of_move(source: &str, target: &str) -> Vec<Place> {
    vec![place(source, PlaceKind::Source), place(target, PlaceKind::Target)]
}

fn of_fence(source: &str, target: &str) -> Vec<Place> {
    vec![place(source, PlaceKind::Fence), place(target, PlaceKind::Fence)]
}

#[test]
fn a_job_beyond_the_limit_waits_for_the_place_that_is_full_and_takes_nothing_meanwhile() {
    let limits = MoveLimits { source: 2, target: 1, fence: 1 };
    let mut queue = Queue::default();
    queue.waiting.insert(ticket(1), of_move("web1", "transit"));
    queue.waiting.insert(ticket(2), of_move("web1", "transit"));
    queue.waiting.insert(ticket(3), of_move("web1", "other"));
    assert_eq!(queue.take(&limits, &ticket(1)), None);
    assert_eq!(queue.take(&limits, &ticket(2)), Some(place("transit", PlaceKind::Target)));
    assert!(!queue.held.contains_key(&ticket(2).1));
    // The second place on web1 is the second job's, which is the earlier one.
    assert_eq!(queue.take(&limits, &ticket(3)), Some(place("web1", PlaceKind::Source)));
    queue.held.remove(&ticket(1).1);
    assert_eq!(queue.take(&limits, &ticket(3)), None);
    assert_eq!(queue.take(&limits, &ticket(2)), None);
}

#[test]
fn two_jobs_in_opposite_directions_do_not_wait_for_each_other() {
    let limits = MoveLimits { source: 1, target: 1, fence: 1 };
    let mut queue = Queue::default();
    for (n, [from, to]) in [(1, ["a", "b"]), (2, ["b", "a"])] {
        queue.waiting.insert(ticket(n), of_move(from, to));
        assert_eq!(queue.take(&limits, &ticket(n)), None, "each is the only one of its kind");
    }
    queue.waiting.insert(ticket(2), of_fence("b", "a"));
    queue.waiting.insert(ticket(1), of_fence("a", "b"));
    assert!(queue.take(&limits, &ticket(2)).is_some(), "the earlier one wants it too");
    assert_eq!(queue.take(&limits, &ticket(1)), None);
    queue.held.remove(&ticket(1).1);
    assert_eq!(queue.take(&limits, &ticket(2)), None);
}

/// A job of the simulation: waits to begin, copies, waits for its fence, is inside, is over.
#[derive(Clone, Copy, PartialEq, Debug)]
enum At {
    ToBegin,
    Copying,
    ToFence,
    Fenced,
    Over,
}

struct Sim {
    limits: MoveLimits,
    queue: Queue,
    jobs: Vec<(Ticket, [String; 2], At)>,
}

impl Sim {
    fn within_limits(&self) -> bool {
        let places: BTreeSet<&Place> = self.queue.held.values().flatten().collect();
        places.iter().all(|p| self.queue.holders(p) <= self.limits.of(p.kind))
    }

    /// Everybody who waits tries, the latest first: the order of trying must not matter.
    fn try_all(&mut self) {
        for (ticket, _, at) in self.jobs.iter_mut().rev() {
            let next = match at {
                At::ToBegin => At::Copying,
                At::ToFence => At::Fenced,
                _ => continue,
            };
            if self.queue.take(&self.limits, ticket).is_none() {
                *at = next;
            }
        }
    }

    /// One of those that work goes on; false if none works.
    fn step(&mut self, choice: usize) -> bool {
        let at_work =
            |job: &&mut (Ticket, [String; 2], At)| matches!(job.2, At::Copying | At::Fenced);
        let count = self.jobs.iter_mut().filter(at_work).count();
        if count == 0 {
            return false;
        }
        let job = self.jobs.iter_mut().filter(at_work).nth(choice % count);
        let Some((ticket, [from, to], at)) = job else { return false };
        if *at == At::Copying {
            *at = At::ToFence;
            self.queue.waiting.insert(*ticket, of_fence(from, to));
        } else {
            *at = At::Over;
            self.queue.held.remove(&ticket.1);
        }
        true
    }
}

proptest! {
    #[test]
    fn whatever_the_moves_and_the_limits_none_is_exceeded_and_all_end(
        moves in prop::collection::vec((0..4u8, 1..4u8), 1..12),
        limits in (1..3usize, 1..3usize, 1..3usize),
        choices in prop::collection::vec(any::<usize>(), 24),
    ) {
        let limits = MoveLimits { source: limits.0, target: limits.1, fence: limits.2 };
        let mut sim = Sim { limits, queue: Queue::default(), jobs: Vec::new() };
        for (n, (from, step)) in (0..).zip(moves) {
            let ends = [format!("s{from}"), format!("s{}", (from + step) % 4)];
            sim.queue.waiting.insert(ticket(n), of_move(&ends[0], &ends[1]));
            sim.jobs.push((ticket(n), ends, At::ToBegin));
        }
        let mut choices = choices.into_iter().cycle();
        loop {
            sim.try_all();
            prop_assert!(sim.within_limits());
            if sim.jobs.iter().all(|job| job.2 == At::Over) {
                break;
            }
            prop_assert!(sim.step(choices.next().unwrap()), "all wait: {:?}", sim.jobs);
        }
    }

    /// However many come later for one of its two places, the earliest gets both as soon as those who
    /// had them before have left.
    #[test]
    fn none_waits_for_those_that_were_started_later(later in 1..40u8) {
        let limits = MoveLimits { source: 2, target: 2, fence: 1 };
        let mut queue = Queue::default();
        for n in [0, 1] {
            queue.waiting.insert(ticket(n), of_move(&format!("x{n}"), "transit"));
            prop_assert_eq!(queue.take(&limits, &ticket(n)), None);
        }
        queue.waiting.insert(ticket(2), of_move("web1", "transit"));
        for n in 3..3 + later {
            queue.waiting.insert(ticket(n), of_move("web1", &format!("y{n}")));
            queue.take(&limits, &ticket(n));
        }
        queue.held.remove(&ticket(0).1);
        prop_assert_eq!(queue.take(&limits, &ticket(2)), None);
    }
}

#[tokio::test]
async fn who_no_longer_waits_makes_room_for_those_behind() {
    let places = Places::new(MoveLimits { source: 2, target: 1, fence: 1 });
    let lacking = || watch::channel(None).0;
    let first = lacking();
    places.take(ticket(1), of_move("web1", "transit"), &first).await;
    let second = lacking();
    let mut seen = second.subscribe();
    let at = places.clone();
    let waits = tokio::spawn(async move {
        at.take(ticket(2), of_move("web1", "transit"), &second).await;
    });
    seen.wait_for(|place| *place == Some(self::place("transit", PlaceKind::Target))).await.unwrap();
    let (third, at) = (lacking(), places.clone());
    let mut behind = third.subscribe();
    let waits_behind = tokio::spawn(async move {
        at.take(ticket(3), of_move("web1", "other"), &third).await;
    });
    behind.wait_for(Option::is_some).await.unwrap();
    waits.abort();
    assert!(waits.await.unwrap_err().is_cancelled());
    waits_behind.await.unwrap();
    assert!(places.queue().waiting.is_empty());
}
