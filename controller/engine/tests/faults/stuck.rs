//! When a job that cannot go on is stuck: by how long it was tried, whatever an attempt takes, across
//! restarts of the controller, whatever its clock does.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ferry_engine::{
    Abort, Context, Entry, Event, JobSpec, JobState, Journal, Next, Observation, Runner, Step,
    StepSpec,
};
use ferry_proto::Fault;
use ferry_proto::ids::JobId;
use ferry_proto::view::JobPhase;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::harness::Memory;

const HALF_A_DAY: Duration = Duration::from_secs(12 * 3600);
/// The engine's longest pause between two attempts.
const PAUSE: Duration = Duration::from_secs(30);

/// A server that is gone for good: whatever is asked of it, no answer comes.
struct Gone;

#[async_trait]
impl Step for Gone {
    async fn observe(&self, _: &Context) -> Result<Observation, Fault> {
        std::future::pending().await
    }

    async fn execute(&self, _: &Context) -> Result<serde_json::Value, Fault> {
        std::future::pending().await
    }

    async fn verify(&self, _: &Context, _: &serde_json::Value) -> Result<(), Fault> {
        std::future::pending().await
    }

    async fn undo(&self, _: &Context, _: Option<&serde_json::Value>) -> Result<(), Fault> {
        std::future::pending().await
    }
}

/// A job of one step, done by that server.
fn job(timeout_seconds: u32, forward_only: bool, commit_point: bool) -> JobSpec {
    let step = StepSpec {
        name: "only".into(),
        kind: "gone".into(),
        intent: serde_json::json!({}),
        timeout_seconds,
        commit_point,
        forward_only,
        may_void_commit: false,
        pausable: false,
        again_after_pause: false,
    };
    JobSpec { job: JobId::new_now(), steps: vec![step] }
}

/// From one start of the controller to the job's end.
async fn run(spec: &JobSpec, journal: &Arc<Memory>, abort: Abort) -> JobPhase {
    let (told, mut seen) = mpsc::channel(64);
    tokio::spawn(async move { while seen.recv().await.is_some() {} });
    let step: Arc<dyn Step> = Arc::new(Gone);
    let steps = Arc::new([("gone".to_owned(), step)].into_iter().collect());
    let journal: Arc<dyn Journal> = journal.clone();
    let runner = Runner::recover(spec.clone(), steps, journal, told, abort).await.unwrap();
    runner.run().await.unwrap()
}

/// The end of a move (`finalize`), a commit, and an undo (`deprovision`).
#[tokio::test(start_paused = true)]
async fn what_nobody_answers_is_stuck_after_half_a_day_however_long_an_attempt_takes() {
    for timeout in [5, 60, 600, 3600] {
        for (what, forward_only, commit) in
            [("forward only", true, false), ("commit", false, true), ("undo", false, false)]
        {
            let (spec, journal) = (job(timeout, forward_only, commit), Arc::<Memory>::default());
            let abort = Abort::default();
            if what == "undo" {
                journal.note(started(1));
                abort.request("the test");
            }
            let began = Instant::now();
            assert_eq!(run(&spec, &journal, abort).await, JobPhase::Stuck, "{what}, {timeout} s");
            // The first failure and the last come at the end of an attempt each; what is undone was tried before.
            let longest = HALF_A_DAY + 3 * (Duration::from_secs(timeout.into()) + PAUSE);
            let took = began.elapsed();
            assert!((HALF_A_DAY..longest).contains(&took), "{what}, {timeout} s: {took:?}");
        }
    }
}

fn started(attempt: u32) -> Event {
    Event::StepStarted { step: 0, attempt }
}

fn failed(fault: Fault) -> Event {
    Event::StepFailed { step: 0, fault }
}

/// A journal of attempts, each of which failed so many seconds after the one before.
fn attempts(spec: &JobSpec, after_seconds: &[i64], fault: &Fault) -> Vec<Entry> {
    let mut at_ms = 1_700_000_000_000;
    let mut entries = Vec::new();
    for (attempt, after) in (1..).zip(after_seconds) {
        entries.push(Entry { at_ms, event: started(attempt) });
        at_ms += after * 1000;
        entries.push(Entry { at_ms, event: failed(fault.clone()) });
    }
    JobState::replay(spec, &entries).unwrap();
    entries
}

fn next(spec: &JobSpec, entries: &[Entry]) -> Next {
    JobState::replay(spec, entries).unwrap().next(spec)
}

const STUCK: Next = Next::End(JobPhase::Stuck);

/// The controller is stopped again and again: what was tried before counts, as the journal dates it.
#[tokio::test(start_paused = true)]
async fn the_time_before_a_restart_of_the_controller_counts() {
    let (spec, journal) = (job(3600, true, false), Arc::<Memory>::default());
    let began = Instant::now();
    let mut restarts = 0;
    let phase = loop {
        // Longer than an attempt, or none would ever end.
        let some_time = Duration::from_secs(2 * 3600);
        match tokio::time::timeout(some_time, run(&spec, &journal, Abort::default())).await {
            Ok(phase) => break phase,
            Err(_) => restarts += 1,
        }
    };
    assert_eq!(phase, JobPhase::Stuck);
    assert!(restarts > 3, "{restarts}");
    let most = HALF_A_DAY + Duration::from_secs(3 * 3600);
    assert!((HALF_A_DAY..most).contains(&began.elapsed()), "{:?}", began.elapsed());
}

/// Nobody tried while no controller ran, while the job waited at its gate for a source, or in the hours by
/// which a clock was set forward: such a job is not given up at its next fault.
#[test]
fn time_in_which_nobody_tried_does_not_count() {
    let (spec, lost, month) = (job(60, true, false), Fault::transient("lost"), 30 * 86_400);
    let again = |attempt| Next::Start { step: 0, attempt };
    assert_eq!(next(&spec, &attempts(&spec, &[60, month], &lost)), again(3));
    assert_eq!(next(&spec, &attempts(&spec, &[60, month, 5, month], &lost)), again(5));
    // Each counts as what an attempt may take, and its pause, and no more.
    let tried = usize::try_from(HALF_A_DAY.as_secs() / (2 * 60 + PAUSE.as_secs())).unwrap();
    let many = |times| attempts(&spec, &vec![month; times], &lost);
    assert!(matches!(next(&spec, &many(tried)), Next::Start { .. }));
    assert_eq!(next(&spec, &many(tried + 1)), STUCK);
}

/// A clock that is set back takes nothing away of what was tried, and nothing is tried for ever.
#[test]
fn a_clock_that_is_set_back_takes_nothing_away() {
    let (spec, lost) = (job(3600, true, false), Fault::transient("lost"));
    let mut seconds = vec![3600; 7];
    seconds.push(-30 * 86_400);
    seconds.extend([3600; 6]);
    assert_eq!(
        next(&spec, &attempts(&spec, &seconds[..13], &lost)),
        Next::Start { step: 0, attempt: 14 }
    );
    assert_eq!(next(&spec, &attempts(&spec, &seconds, &lost)), STUCK);
}

/// A person who resumes it gives it as long again, and so does a step that was done.
#[test]
fn what_is_resumed_is_tried_for_as_long_again() {
    let (spec, lost) = (job(3600, true, false), Fault::transient("lost"));
    let mut entries = attempts(&spec, &[3600; 13], &lost);
    assert_eq!(next(&spec, &entries), STUCK);
    let now = |entries: &[Entry]| entries.last().unwrap().at_ms;
    let at_ms = now(&entries) + 1;
    entries.push(Entry { at_ms, event: Event::Resumed { by: "the test".into() } });
    for attempt in 14..=26 {
        assert_eq!(next(&spec, &entries), Next::Start { step: 0, attempt });
        entries.push(Entry { at_ms: now(&entries), event: started(attempt) });
        let at_ms = now(&entries) + 3_600_000;
        entries.push(Entry { at_ms, event: failed(lost.clone()) });
    }
    assert_eq!(next(&spec, &entries), STUCK);
}

/// A source that answers, but neither yes nor no, is asked until its fence is over for sure; what was
/// transient in between is not held against it.
#[test]
fn a_source_in_doubt_is_asked_beyond_its_fence() {
    let disk = Fault::permanent("the disk does not answer");
    for deadline in [30, 1800] {
        let spec = job(deadline, false, true);
        let most = usize::try_from(deadline.max(300) / 30).unwrap();
        let asked = attempts(&spec, &vec![30; most + 1], &disk);
        assert!(matches!(next(&spec, &asked), Next::Start { .. }), "{deadline} s");
        assert_eq!(
            next(&spec, &attempts(&spec, &vec![30; most + 2], &disk)),
            STUCK,
            "{deadline} s"
        );
        let mut entries = asked;
        let at_ms = entries.last().unwrap().at_ms;
        for attempt in 100..200 {
            entries.push(Entry { at_ms, event: started(attempt) });
            let at_ms = at_ms + 30_000 * i64::from(attempt);
            entries.push(Entry { at_ms, event: failed(Fault::transient("away")) });
        }
        assert!(matches!(next(&spec, &entries), Next::Start { .. }), "{deadline} s, away");
    }
}
