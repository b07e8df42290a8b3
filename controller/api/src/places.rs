//! Places: how many moves there may be at one server at once, and how many of them inside their
//! fence. A job beyond that waits, in the order in which jobs were started.
//!
//! A job takes all that it needs at once or nothing, and no job that holds a place inside the fence
//! waits for another: so no two jobs wait for each other. A place that a job waits for is kept for it
//! from all that were started later: so none waits for ever. A paused job has no place, and waits for one
//! when it goes on. Nothing of this is stored: jobs, their order and what they have begun are in the store
//! already.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use ferry_engine::{Gate, JobState, StepSpec, StepState};
use ferry_fleet::Fleet;
use ferry_plan::Plan;
use ferry_proto::command::Direction;
use ferry_proto::ids::{JobId, ServerName};
use ferry_proto::view::{Place, PlaceKind};
use serde::Deserialize;
use tokio::sync::watch;

/// How many of what a server has room for at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MoveLimits {
    /// Moves away from it.
    pub source: usize,
    /// Moves to it.
    pub target: usize,
    /// Accounts inside their fence, at either end.
    pub fence: usize,
}

impl Default for MoveLimits {
    /// Two moves, so that one copies while the other is inside its fence: more would read and write
    /// the same disks, and none would be there sooner. One fence: each account's forecast, and the
    /// deadline that rests on it, is of a fence that has the servers' databases and disks to itself.
    fn default() -> Self {
        Self { source: 2, target: 2, fence: 1 }
    }
}

impl MoveLimits {
    fn of(&self, kind: PlaceKind) -> usize {
        match kind {
            PlaceKind::Source => self.source,
            PlaceKind::Target => self.target,
            PlaceKind::Fence => self.fence,
        }
    }
}

/// A job's place in the order: when it was started, and which it is.
pub(crate) type Ticket = (i64, JobId);

/// Who has which places, and who waits for which.
#[derive(Debug, Default)]
struct Queue {
    held: HashMap<JobId, BTreeSet<Place>>,
    waiting: BTreeMap<Ticket, Vec<Place>>,
}

impl Queue {
    fn holders(&self, place: &Place) -> usize {
        self.held.values().filter(|held| held.contains(place)).count()
    }

    /// Those that were started before, and wait for it.
    fn before(&self, ticket: &Ticket, place: &Place) -> usize {
        self.waiting.range(..*ticket).filter(|(_, wanted)| wanted.contains(place)).count()
    }

    /// Gives a waiting job all that it waits for, or tells the first place that is not free for it.
    fn take(&mut self, limits: &MoveLimits, ticket: &Ticket) -> Option<Place> {
        let wanted = self.waiting.get(ticket)?;
        let is_free = |p: &Place| self.holders(p) + self.before(ticket, p) < limits.of(p.kind);
        if let Some(lacking) = wanted.iter().find(|p| !is_free(p)) {
            return Some(lacking.clone());
        }
        let wanted = self.waiting.remove(ticket).unwrap_or_default();
        self.held.entry(ticket.1).or_default().extend(wanted);
        None
    }
}

/// All servers' places.
#[derive(Debug)]
pub(crate) struct Places {
    limits: MoveLimits,
    queue: Mutex<Queue>,
    /// Rung whenever a place or an earlier wish for one is given up.
    changed: watch::Sender<()>,
}

impl Places {
    pub(crate) fn new(limits: MoveLimits) -> Arc<Self> {
        Arc::new(Self { limits, queue: Mutex::default(), changed: watch::channel(()).0 })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Each change is one insert or remove: a panic leaves the state before or after it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for its turn, telling `lacking` what it waits for.
    async fn take(
        &self,
        ticket: Ticket,
        places: Vec<Place>,
        lacking: &watch::Sender<Option<Place>>,
    ) {
        let mut changed = self.changed.subscribe();
        let _waiting = self.wait(ticket, places, lacking);
        loop {
            changed.mark_unchanged();
            let place = self.queue().take(&self.limits, &ticket);
            if place.is_none() {
                return;
            }
            lacking.send_if_modified(|was| std::mem::replace(was, place.clone()) != place);
            // Its sender is ours, and lives as long.
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Notes what a job waits for, until this is dropped.
    fn wait<'a>(
        &'a self,
        ticket: Ticket,
        places: Vec<Place>,
        lacking: &'a watch::Sender<Option<Place>>,
    ) -> Waiting<'a> {
        let mut queue = self.queue();
        let held = queue.held.get(&ticket.1).cloned().unwrap_or_default();
        let wanted = places.into_iter().filter(|place| !held.contains(place)).collect();
        queue.waiting.insert(ticket, wanted);
        Waiting { places: self, ticket, lacking }
    }

    /// Takes places although there may be no room: for what is there already.
    fn hold(&self, job: JobId, places: Vec<Place>) {
        self.queue().held.entry(job).or_default().extend(places);
    }

    fn give_up(&self, job: JobId, is_given_up: impl Fn(&Place) -> bool) {
        if let Some(held) = self.queue().held.get_mut(&job) {
            held.retain(|place| !is_given_up(place));
        }
        self.changed.send_replace(());
    }
}

/// A job that waits.
struct Waiting<'a> {
    places: &'a Places,
    ticket: Ticket,
    lacking: &'a watch::Sender<Option<Place>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.lacking.send_if_modified(|was| was.take().is_some());
        let gave_up = self.places.queue().waiting.remove(&self.ticket).is_some();
        if gave_up {
            self.places.changed.send_replace(());
        }
    }
}

/// What one job takes up, and when. It gives up everything when it is dropped.
pub(crate) struct Turn {
    places: Arc<Places>,
    fleet: Arc<Fleet>,
    ticket: Ticket,
    needs: Needs,
    /// Whether its target was opened by force: its source is lost, and may come back after weeks.
    forced: AtomicBool,
    lacking: watch::Sender<Option<Place>>,
}

/// What a job needs, of its plan.
#[derive(Debug)]
struct Needs {
    source: ServerName,
    target: ServerName,
    /// Whether it need not wait for them: whoever goes back has an account that is not well.
    at_once: bool,
}

impl Needs {
    fn of(plan: &Plan) -> Self {
        Self {
            source: plan.source.clone(),
            target: plan.target.clone(),
            at_once: plan.direction == Direction::Rollback,
        }
    }

    fn of_move(&self) -> Vec<Place> {
        let at = |server: &ServerName, kind| Place { server: server.clone(), kind };
        vec![at(&self.source, PlaceKind::Source), at(&self.target, PlaceKind::Target)]
    }

    fn of_fence(&self) -> Vec<Place> {
        let at = |server: &ServerName| Place { server: server.clone(), kind: PlaceKind::Fence };
        vec![at(&self.source), at(&self.target)]
    }
}

impl Turn {
    pub(crate) fn new(
        places: &Arc<Places>,
        fleet: &Arc<Fleet>,
        ticket: Ticket,
        plan: &Plan,
    ) -> Arc<Self> {
        let (places, fleet, needs) = (places.clone(), fleet.clone(), Needs::of(plan));
        let (forced, lacking) = (AtomicBool::default(), watch::channel(None).0);
        Arc::new(Self { places, fleet, ticket, needs, forced, lacking })
    }

    /// What it waits for, as it changes.
    pub(crate) fn lacking(&self) -> watch::Receiver<Option<Place>> {
        self.lacking.subscribe()
    }

    /// Takes what the job has begun already, whoever else has it: after a restart. What a pause has stopped
    /// had left its places to others, also if it was to go on since and waits for some.
    pub(crate) fn take_up(&self, steps: &[StepSpec], state: &JobState) {
        if state.is_stopped() {
            return;
        }
        self.forced.store(state.forced, Ordering::Relaxed);
        for (step, state) in steps.iter().zip(&state.steps) {
            if matches!(state, StepState::Waiting | StepState::Undone) {
                continue;
            }
            self.places.hold(self.ticket.1, self.needed_before(step));
            if matches!(state, StepState::Done { .. }) {
                self.done(step);
            }
        }
        let is_undone = |state: &StepState| {
            use StepState::{UndoFailed, Undoing, Undone};
            matches!(state, Undoing { .. } | UndoFailed { .. } | Undone)
        };
        if let Some((step, _)) = steps.iter().zip(&state.steps).find(|(_, s)| is_undone(s)) {
            self.undoing(step);
        }
    }

    /// What it must have before the step, whether it has it already or not. The end of a move needs nothing.
    fn needed_before(&self, step: &StepSpec) -> Vec<Place> {
        let mut places = Vec::new();
        // Before its first step; and, if it was paused since, before any that may follow that.
        if step.pausable || step.kind == "arm" {
            places.extend(self.needs.of_move());
        }
        // Not before the fence itself: what is armed has its kept-alive connections wound down.
        if step.kind == "arm" {
            places.extend(self.needs.of_fence());
        }
        places
    }

    /// The job has stopped for now: others may have its places.
    pub(crate) fn paused(&self) {
        self.places.give_up(self.ticket.1, |_| true);
    }

    /// A step that nobody but a source that is away can do, once the commit was asked for: until it is
    /// back nothing of the job goes on, and nothing of it keeps others from these servers. It takes its
    /// places up no more: what is left to do is short.
    async fn await_a_lost_source(&self, step: &StepSpec) {
        let of_source = matches!(step.kind.as_str(), "commit" | "release");
        if !of_source || self.fleet.is_connected(&self.needs.source) {
            return;
        }
        self.places.give_up(self.ticket.1, |_| true);
        if step.kind == "release" && self.forced.load(Ordering::Relaxed) {
            self.fleet.until_back_or_revoked(&self.needs.source).await;
        }
    }

    fn leaves_the_fence_at(&self, server: &ServerName) {
        self.places.give_up(self.ticket.1, |place| {
            place.kind == PlaceKind::Fence && place.server == *server
        });
    }
}

#[async_trait]
impl Gate for Turn {
    async fn enter(&self, step: &StepSpec) {
        self.await_a_lost_source(step).await;
        let mut places = self.needed_before(step);
        if self.needs.at_once {
            let of_move;
            (places, of_move) = places.into_iter().partition(|p| p.kind == PlaceKind::Fence);
            self.places.hold(self.ticket.1, of_move);
        }
        if !places.is_empty() {
            self.places.take(self.ticket, places, &self.lacking).await;
        }
    }

    /// The source is done with the fence when it has committed, the target when it is open.
    fn done(&self, step: &StepSpec) {
        match step.kind.as_str() {
            "commit" => self.leaves_the_fence_at(&self.needs.source),
            "open" => self.leaves_the_fence_at(&self.needs.target),
            _ => {}
        }
    }

    /// To go back needs nothing of the target's that another fence would be in the way of: it is free, however
    /// long the source takes, which may be lost.
    fn undoing(&self, _: &StepSpec) {
        self.leaves_the_fence_at(&self.needs.target);
    }

    fn forced(&self, step: &StepSpec) {
        self.forced.store(true, Ordering::Relaxed);
        self.done(step);
    }

    fn undone(&self, step: &StepSpec) {
        if step.kind == "arm" {
            self.leaves_the_fence_at(&self.needs.source);
            self.leaves_the_fence_at(&self.needs.target);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.places.queue().held.remove(&self.ticket.1);
        self.places.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests;
