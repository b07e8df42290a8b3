//! Watches the fences: takes an account back when its deadline has passed, with a controller or
//! without; sees that every commit is delivered, and that every open goes on; and at start goes on with
//! what a crash cut off. One account never waits for another.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ferry_proto::ids::AccountName;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::clock::boottime_ms;
use crate::ledger::Standing;
use crate::work::copied::Copied;
use crate::work::{arm, commit, open, unfence};

/// How long to wait after something did not open, before it is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// How long to wait when nothing is due: the pulse goes on.
const IDLE: Duration = Duration::from_secs(2);

/// Shows that the watch goes on.
#[derive(Debug)]
pub struct Pulse(AtomicU64);

impl Default for Pulse {
    fn default() -> Self {
        Self(AtomicU64::new(boottime_ms()))
    }
}

impl Pulse {
    fn beat(&self) {
        self.0.store(boottime_ms(), Ordering::Relaxed);
    }

    /// How long ago the watch last looked.
    pub fn age(&self) -> Duration {
        Duration::from_millis(boottime_ms().saturating_sub(self.0.load(Ordering::Relaxed)))
    }
}

/// Watches until `stop` fires.
pub async fn watch(agent: Arc<Agent>, pulse: Arc<Pulse>, stop: CancellationToken) {
    let mut changed = agent.changed.subscribe();
    let started = tokio::spawn(start(agent.clone(), stop.clone()));
    let (mut ends, mut opens) = (Tasks::default(), Tasks::default());
    loop {
        pulse.beat();
        changed.mark_unchanged();
        for name in undelivered(&agent) {
            commit::resume(&agent, &name);
        }
        for name in due(&agent) {
            ends.spawn(name.clone(), end(agent.clone(), name, stop.clone()));
        }
        // Whoever began it, and whatever became of him: it can be opened nowhere else.
        for name in opening(&agent) {
            opens.spawn(name.clone(), go_on(agent.clone(), name, stop.clone()));
        }
        tokio::select! {
            () = tokio::time::sleep(next(&agent, &ends)) => {}
            changed = changed.changed() => if changed.is_err() { break },
            () = ends.one_ended() => {}
            () = opens.one_ended() => {}
            () = stop.cancelled() => break,
        }
    }
    // What is being taken back is taken back, as far as the stop's own limit allows.
    while ends.set.join_next().await.is_some() {}
    started.abort();
}

/// One task at a time for each account.
#[derive(Debug, Default)]
struct Tasks {
    set: JoinSet<()>,
    names: HashMap<Id, AccountName>,
}

impl Tasks {
    fn has(&self, name: &AccountName) -> bool {
        self.names.values().any(|n| n == name)
    }

    fn spawn(&mut self, name: AccountName, work: impl Future<Output = ()> + Send + 'static) {
        if !self.has(&name) {
            let task = self.set.spawn(work);
            self.names.insert(task.id(), name);
        }
    }

    /// Waits for the end of one; for ever if there is none.
    async fn one_ended(&mut self) {
        match self.set.join_next_with_id().await {
            Some(ended) => {
                self.names.remove(&ended.map_or_else(|e| e.id(), |(id, ())| id));
            }
            None => std::future::pending().await,
        }
    }
}

/// What a crash or a reboot cut off: redirects stand again, and what follows an open or a commit goes on.
/// Each is tried until it succeeds, beside the others.
async fn start(agent: Arc<Agent>, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    let names: Vec<AccountName> = agent.look(|l| l.accounts().keys().cloned().collect());
    for name in names {
        tasks.spawn(go_on(agent.clone(), name, stop.clone()));
    }
    while let Err(fault) = arm::reconcile(&agent).await {
        tracing::error!(class = %fault.class, "the redirector is not as the ledger says: {fault}");
        if stopped_within_pause(&stop).await {
            return;
        }
    }
    // A copy may have been given up just before.
    arm::unhook_mail(&agent).await;
    while tasks.join_next().await.is_some() {}
}

/// Goes on with an account's open, or with what follows its commit.
async fn go_on(agent: Arc<Agent>, name: AccountName, stop: CancellationToken) {
    let gone = |standing: &Standing| {
        matches!(standing, Standing::Moved { .. } | Standing::Finalized { .. })
    };
    if agent.account(&name).is_some_and(|account| gone(&account.standing)) {
        // What was known of its copy is of no use any more, and may have outlived a power cut.
        Copied::forget(&agent, &name).await;
    }
    while let Err(fault) = open::resume(&agent, &name).await {
        tracing::error!(account = %name, class = %fault.class, "cannot open the account yet: {fault}");
        if stopped_within_pause(&stop).await {
            return;
        }
    }
}

/// Ends a fence whose deadline has passed.
async fn end(agent: Arc<Agent>, name: AccountName, stop: CancellationToken) {
    let mut ended = unfence::at_deadline(&agent, &name).await;
    while let Err(fault) = ended {
        tracing::error!(account = %name, class = %fault.class, "cannot take the account back yet: {fault}");
        if stopped_within_pause(&stop).await {
            return;
        }
        ended = unfence::at_deadline(&agent, &name).await;
        if ended.is_ok() {
            // What failed before may have been the last part, the redirector's.
            ended = arm::reconcile(&agent).await;
        }
    }
}

async fn stopped_within_pause(stop: &CancellationToken) -> bool {
    stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none()
}

/// Commits that nobody may be delivering: found in the ledger when the agent starts, or when a disk
/// that had failed was read again.
fn undelivered(agent: &Agent) -> Vec<AccountName> {
    agent.look(|l| {
        l.accounts()
            .iter()
            .filter(|(_, a)| matches!(a.standing, Standing::Moved { settled: false, .. }))
            .map(|(name, _)| name.clone())
            .collect()
    })
}

/// Accounts that are being opened.
fn opening(agent: &Agent) -> Vec<AccountName> {
    agent.look(|l| {
        l.accounts()
            .iter()
            .filter(|(_, a)| matches!(a.standing, Standing::Opening { .. }))
            .map(|(name, _)| name.clone())
            .collect()
    })
}

/// Fences whose end has come.
fn due(agent: &Agent) -> Vec<AccountName> {
    agent.look(|l| {
        l.accounts()
            .iter()
            .filter(|(_, a)| matches!(&a.standing, Standing::Fenced { deadline, ending, .. } if *ending || deadline.has_passed()))
            .map(|(name, _)| name.clone())
            .collect()
    })
}

/// How long until the next fence's end, but for those that are being ended.
fn next(agent: &Agent, ends: &Tasks) -> Duration {
    agent.look(|l| {
        l.accounts()
            .iter()
            .filter(|(name, _)| !ends.has(name))
            .filter_map(|(_, a)| match &a.standing {
                Standing::Fenced { deadline, .. } => Some(deadline.left()),
                _ => None,
            })
            .min()
            .map_or(IDLE, |left| left.min(IDLE))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Deadline;
    use crate::ledger::failing::{EIO, on_failing};
    use crate::testing::authority::Authority;
    use crate::testing::{
        a_move, account, agent, agent_with, before_the_reboot, fenced, grant, moved, opening, until,
    };
    use ferry_proto::ids::Epoch;

    fn watched(agent: &Arc<Agent>) -> (CancellationToken, tokio::task::JoinHandle<()>) {
        let stop = CancellationToken::new();
        (stop.clone(), tokio::spawn(watch(agent.clone(), Arc::default(), stop)))
    }

    async fn put(agent: &Agent, name: &str, standing: &Standing) {
        agent.set_account(&name.parse().unwrap(), Some(account(name, standing))).await.unwrap();
    }

    fn taken_back(standing: &Standing) -> bool {
        matches!(standing, Standing::Armed { .. })
    }

    #[tokio::test]
    async fn a_fence_found_after_a_reboot_ends_and_one_that_runs_does_not() {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let agent = agent(&authority, dir.path());
        put(&agent, "shop", &fenced(&a_move(), &before_the_reboot())).await;
        let runs = Deadline::after(Duration::from_secs(600)).unwrap();
        put(&agent, "other", &fenced(&a_move(), &runs)).await;
        let (stop, watch) = watched(&agent);
        until(&agent, "shop", taken_back).await;
        assert!(agent.account(&"other".parse().unwrap()).is_some_and(|a| !taken_back(&a.standing)));
        stop.cancel();
        watch.await.unwrap();
        // The reopened ledger says so too.
        let ledger = crate::ledger::Ledger::open(&dir.path().join("ledger")).unwrap();
        assert!(taken_back(&ledger.account(&"shop".parse().unwrap()).unwrap().standing));
    }

    #[tokio::test]
    async fn a_fence_ends_at_its_deadline_also_when_it_began_while_watched() {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let agent = agent(&authority, dir.path());
        let (_stop, _watch) = watched(&agent);
        let deadline = Deadline::after(Duration::from_millis(50)).unwrap();
        put(&agent, "shop", &fenced(&a_move(), &deadline)).await;
        until(&agent, "shop", taken_back).await;
        assert!(deadline.has_passed());
    }

    #[tokio::test]
    async fn no_account_waits_for_another_one_that_hangs() {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let agent = agent(&authority, dir.path());
        let of = a_move();
        put(&agent, "opening", &opening(&of)).await;
        // An open that waits for an order or a database, and a fence's end that does.
        let _open_hangs = agent.order(&"opening".parse().unwrap()).await;
        let end_hangs = agent.order(&"aaa".parse().unwrap()).await;
        for name in ["aaa", "shop", "zzz"] {
            put(&agent, name, &fenced(&a_move(), &before_the_reboot())).await;
        }
        let (_stop, _watch) = watched(&agent);
        until(&agent, "shop", taken_back).await;
        until(&agent, "zzz", taken_back).await;
        // A later one does not wait either.
        put(&agent, "late", &fenced(&a_move(), &before_the_reboot())).await;
        until(&agent, "late", taken_back).await;
        drop(end_hangs);
        until(&agent, "aaa", taken_back).await;
        assert_eq!(agent.account(&"opening".parse().unwrap()).unwrap().epoch, Epoch(3));
    }

    #[tokio::test]
    async fn an_open_goes_on_although_nobody_asks_for_it_again() {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let agent = agent(&authority, dir.path());
        let (_stop, _watch) = watched(&agent);
        // Recorded after the start, and whoever asked is gone.
        put(&agent, "shop", &opening(&a_move())).await;
        until(&agent, "shop", |s| !matches!(s, Standing::Opening { .. })).await;
    }

    #[tokio::test]
    async fn a_ledger_that_cannot_be_written_is_not_tried_in_a_hot_loop() {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let (ledger, kernel) = on_failing();
        let agent = agent_with(&authority, dir.path(), ledger);
        put(&agent, "shop", &fenced(&a_move(), &before_the_reboot())).await;
        let rung = *agent.changed.borrow();
        kernel.lock().unwrap().broken = Some(EIO);
        let name = "shop".parse().unwrap();
        for _ in 0..3 {
            let fault = unfence::at_deadline(&agent, &name).await.unwrap_err();
            assert_eq!(fault.class, ferry_proto::FaultClass::Transient, "{fault}");
        }
        assert_eq!(*agent.changed.borrow(), rung, "what changed nothing rings");
        let (_stop, _watch) = watched(&agent);
        kernel.lock().unwrap().broken = None;
        until(&agent, "shop", taken_back).await;
        assert!(*agent.changed.borrow() > rung);
    }

    #[tokio::test]
    async fn a_commit_that_is_found_when_the_disk_is_read_again_is_delivered() {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let (ledger, kernel) = on_failing();
        let agent = agent_with(&authority, dir.path(), ledger);
        let (of, name) = (a_move(), "shop".parse().unwrap());
        put(&agent, "shop", &fenced(&of, &before_the_reboot())).await;
        // The commit is written, but neither the sync nor reading it again succeeds.
        kernel.lock().unwrap().syncs = [Err(EIO), Err(EIO)].into();
        let mut committed = moved(&of);
        let Standing::Moved { grant: means, .. } = &mut committed else { unreachable!() };
        *means = Some(grant(&authority, &of));
        agent.set_account(&name, Some(account("shop", &committed))).await.unwrap_err();
        assert!(matches!(agent.account(&name).unwrap().standing, Standing::Fenced { .. }));
        let (_stop, _watch) = watched(&agent);
        until(&agent, "shop", |s| matches!(s, Standing::Moved { .. })).await;
        let delivered = async {
            while agent.delivery(&name).is_some() {
                tokio::task::yield_now().await;
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(20), delivered).await;
        assert!(told.is_ok(), "nobody tells the target");
    }

    #[tokio::test]
    async fn what_was_known_of_a_copy_goes_when_the_agent_finds_the_account_moved() {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let agent = agent(&authority, dir.path());
        let mut settled = moved(&a_move());
        let Standing::Moved { settled: is_settled, .. } = &mut settled else { unreachable!() };
        *is_settled = true;
        put(&agent, "shop", &settled).await;
        put(&agent, "other", &Standing::Serving).await;
        let copy = |name: &str| agent.config.state_directory.join(format!("copies/{name}.json"));
        std::fs::create_dir_all(copy("shop").parent().unwrap()).unwrap();
        for name in ["shop", "other"] {
            std::fs::write(copy(name), "{}").unwrap();
        }
        let stop = CancellationToken::new();
        for name in ["shop", "other"] {
            go_on(agent.clone(), name.parse().unwrap(), stop.clone()).await;
        }
        // A copy that is under way goes on.
        assert!(!copy("shop").exists() && copy("other").exists());
    }

    #[tokio::test]
    async fn the_pulse_goes_on_while_nothing_happens_and_shows_when_it_stops() {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let agent = agent(&authority, dir.path());
        let pulse = Arc::new(Pulse(AtomicU64::new(0)));
        assert!(pulse.age() > IDLE);
        let stop = CancellationToken::new();
        let watch = tokio::spawn(watch(agent, pulse.clone(), stop.clone()));
        let beats = async {
            for _ in 0..2 {
                pulse.0.store(0, Ordering::Relaxed);
                while pulse.age() > IDLE * 2 {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), beats).await.unwrap();
        stop.cancel();
        watch.await.unwrap();
    }
}
