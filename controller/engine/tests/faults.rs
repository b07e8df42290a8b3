//! A job with a point of no return, one without, and one without a way back, against every row of
//! cases of the harness; and what a single case shows best. The plans that Ferry really makes stand
//! the same rows in `ferry-api`, which knows planning.

mod harness;
#[path = "faults/pause.rs"]
mod pause;
#[path = "faults/stuck.rs"]
mod stuck;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use ferry_engine::{
    Abort, Context, Entry, Event, Force, Gate, JobSpec, Journal, Observation, Pause, Runner, Step,
    StepSpec,
};
use ferry_proto::ids::JobId;
use ferry_proto::view::JobPhase;
use ferry_proto::{Fault, FaultClass};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use harness::{ALWAYS, Action, Case, Memory};

const STEPS: usize = 6;
const COMMIT: usize = 3;
/// How many of the first steps may be paused, if there is a commit.
const PAUSABLE: usize = 2;

fn spec(commit: Option<usize>, forward_only: Option<usize>) -> JobSpec {
    JobSpec {
        job: JobId::new_now(),
        steps: (0..STEPS)
            .map(|i| StepSpec {
                name: format!("step{i}"),
                kind: format!("kind{i}"),
                intent: serde_json::json!({}),
                timeout_seconds: 5,
                commit_point: commit == Some(i),
                forward_only: forward_only == Some(i),
                may_void_commit: commit.is_some_and(|at| i == at + 1),
                pausable: commit.is_some() && i < PAUSABLE,
                again_after_pause: commit.is_some() && i + 1 == PAUSABLE,
            })
            .collect(),
    }
}

/// With a point of no return, without one, without a way back from the start or from a later step.
fn specs() -> [JobSpec; 4] {
    [spec(Some(COMMIT), None), spec(None, None), spec(None, Some(0)), spec(None, Some(2))]
}

#[tokio::test(start_paused = true)]
async fn each_step_failing_in_each_way_ends_at_start_target_or_stuck() {
    for spec in specs() {
        harness::each_step_fails_in_each_way(&spec).await;
    }
}

#[tokio::test(start_paused = true)]
async fn each_undo_failing_in_each_way_ends_at_the_start_once_resumed() {
    for spec in specs() {
        harness::each_undo_fails_in_each_way(&spec).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_each_journal_write_changes_nothing_of_the_end() {
    for spec in specs() {
        harness::crashes_at_each_write(&spec).await;
    }
}

#[tokio::test(start_paused = true)]
async fn looking_that_fails_after_a_crash_is_a_failure_of_the_step() {
    for spec in specs() {
        harness::observing_fails_after_a_crash(&spec).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_abort_at_each_write_ends_at_the_start_or_after_the_commit_at_the_target() {
    for spec in specs() {
        harness::aborts_at_each_write(&spec).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_at_each_write_stops_the_job_or_lapses_and_survives_the_controller() {
    for spec in specs() {
        harness::pauses_at_each_write(&spec).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_is_refused_for_good_is_undone_whatever_is_lost_on_the_way() {
    for spec in specs() {
        harness::refused_for_good_after_the_commit(&spec).await;
    }
}

/// A commit whose source is gone: it has committed or not, and says nothing.
fn lost(what: String, committed: bool) -> Case {
    Case::new(&spec(Some(COMMIT), None), what)
        .with(COMMIT, Action::Execute, FaultClass::Transient, ALWAYS, committed)
        .with(COMMIT, Action::Observe, FaultClass::Transient, ALWAYS, false)
}

fn forced_by(events: &[Event]) -> Vec<&str> {
    let mut all = Vec::new();
    for event in events {
        if let Event::CommitForced { by, .. } = event {
            all.push(by.as_str());
        }
    }
    all
}

/// A person vouches for it: the job goes on without the source, wherever the controller crashes.
#[tokio::test(start_paused = true)]
async fn a_commit_that_nobody_can_be_asked_about_is_taken_on_a_persons_word() {
    let word = || serde_json::json!({ "of": "a person" });
    let plain = lost("forced".into(), true);
    plain.force.say("the test", word());
    plain.force.say("a second operator", serde_json::json!({}));
    assert_eq!(plain.run().await, JobPhase::Done);
    let events = plain.journal.events();
    assert_eq!(forced_by(&events), ["the test"], "the first word counts: {events:?}");
    let cases = (1..=events.len()).flat_map(|w| [(w, false), (w, true)]);
    for (write, durable) in cases {
        for committed in [false, true] {
            let what = format!("forced, {committed}, crash at write {write}, durable {durable}");
            let case = lost(what, committed).crashing(write, durable);
            case.force.say("the test", word());
            assert_eq!(case.run().await, JobPhase::Done, "{}", case.what);
            let events = case.journal.events();
            assert_eq!(forced_by(&events), ["the test"], "{}: {events:?}", case.what);
        }
    }
}

/// Whoever waits on a source that does not answer is heard at once, and so is who finds the job stuck.
#[tokio::test(start_paused = true)]
async fn a_persons_word_ends_every_wait_for_the_source() {
    let mut begun: Vec<_> = (0..COMMIT).flat_map(|step| [started(step), done(step)]).collect();
    begun.push(started(COMMIT));
    let mut between = begun.clone();
    between.push(Event::StepFailed { step: COMMIT, fault: Fault::transient("lost") });
    for (waiting, events) in [("for its answer", begun), ("to ask again", between)] {
        let long = Long::new(spec(Some(COMMIT), None), events);
        let (force, began) = (Force::default(), tokio::time::Instant::now());
        let (job, mut seen) = long.start_heeding(Abort::default(), force.clone()).await;
        if waiting == "for its answer" {
            long.step.begun.notified().await;
        }
        force.say("the test", serde_json::json!({}));
        loop {
            let told = seen.recv().await.expect("the job goes on");
            if let ferry_engine::Told::Event(Entry {
                event: Event::CommitForced { step, .. },
                ..
            }) = told
            {
                assert_eq!(step, COMMIT);
                break;
            }
        }
        assert_eq!(began.elapsed(), Duration::ZERO, "waits {waiting}");
        job.abort();
    }
}

/// A word that comes when the outcome is known is none.
#[tokio::test(start_paused = true)]
async fn a_persons_word_counts_only_while_the_commit_is_unknown() {
    let refused = Case::new(&spec(Some(COMMIT), None), "refused before the commit").with(
        COMMIT - 1,
        Action::Execute,
        FaultClass::Fenced,
        ALWAYS,
        false,
    );
    refused.force.say("the test", serde_json::json!({}));
    assert_eq!(refused.run().await, JobPhase::Undone);
    let answers = Case::new(&spec(Some(COMMIT), None), "the source answers");
    answers.force.say("the test", serde_json::json!({}));
    assert_eq!(answers.run().await, JobPhase::Done);
    for case in [refused, answers] {
        let events = case.journal.events();
        assert!(forced_by(&events).is_empty(), "{}: {events:?}", case.what);
    }
    let refusal = Event::StepFailed { step: 0, fault: Fault::fenced("past its deadline") };
    let state = |events: &[Event]| {
        let only_commit = JobSpec { steps: spec(Some(0), None).steps, job: JobId::new_now() };
        let entries: Vec<_> =
            events.iter().map(|event| Entry { at_ms: 0, event: event.clone() }).collect();
        ferry_engine::JobState::replay(&only_commit, &entries).map(|s| s.forced)
    };
    let word = Event::CommitForced { step: 0, by: "x".into(), receipt: serde_json::json!({}) };
    assert!(state(&[started(0), word.clone()]).unwrap());
    state(&[started(0), refusal, word.clone()]).expect_err("the source has refused");
    state(&[started(0), done(0), word.clone()]).expect_err("the source has committed");
    state(&[word]).expect_err("nobody has asked it");
}

/// The target had heard of the real commit before, and refused it for good: then the source has
/// committed, and takes the account back when it returns.
#[tokio::test(start_paused = true)]
async fn a_target_that_had_refused_makes_a_forced_commit_void_too() {
    let case = lost("forced, and refused before".into(), true).refusing(COMMIT + 1, ALWAYS);
    case.force.say("the test", serde_json::json!({}));
    assert_eq!(case.run().await, JobPhase::Undone);
}

/// Who waits at a gate for a source holds nothing up; the gate hears that its commit was vouched for.
#[tokio::test(start_paused = true)]
async fn the_gate_hears_that_a_commit_was_forced() {
    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);
    #[async_trait]
    impl Gate for Heard {
        async fn enter(&self, _: &StepSpec) {}
        fn done(&self, step: &StepSpec) {
            self.0.lock().unwrap().push(format!("{} done", step.name));
        }
        fn forced(&self, step: &StepSpec) {
            self.0.lock().unwrap().push(format!("{} forced", step.name));
        }
        fn undoing(&self, _: &StepSpec) {}
        fn undone(&self, _: &StepSpec) {}
    }
    let mut case = lost("gated".into(), true);
    case.force.say("the test", serde_json::json!({}));
    let heard = Arc::new(Heard::default());
    case.gate = Some(heard.clone());
    assert_eq!(case.run().await, JobPhase::Done);
    let heard = heard.0.lock().unwrap();
    assert_eq!(heard[COMMIT], format!("step{COMMIT} forced"), "{heard:?}");
}

/// Only a step that may say so makes a commit void.
#[tokio::test(start_paused = true)]
async fn another_steps_refusal_undoes_no_commit() {
    let case = Case::new(&spec(Some(COMMIT), None), "the last step refuses for good")
        .refusing(STEPS - 1, ALWAYS);
    assert_eq!(case.run().await, JobPhase::Stuck);
    assert!(case.world.lock().unwrap().undone.is_empty());
    assert_eq!(case.mended_and_resumed().await, JobPhase::Done);
}

#[tokio::test(start_paused = true)]
async fn an_abort_before_anything_ends_at_the_start() {
    for spec in specs() {
        let case = Case::new(&spec, "abort before anything");
        let abort = Abort::default();
        abort.request("the test");
        assert_eq!(case.once(abort).await.unwrap(), JobPhase::Undone);
        assert_eq!(case.standing(), [] as [usize; 0]);
        let wish = Event::AbortRequested { by: "the test".into() };
        assert_eq!(case.journal.events(), [wish]);
    }
}

/// The agent committed and said something else than a refusal: whatever it was, it may not be undone.
#[tokio::test(start_paused = true)]
async fn a_commit_whose_answer_is_no_refusal_is_never_undone() {
    for class in harness::CLASSES.into_iter().filter(|c| *c != FaultClass::Fenced) {
        let case = Case::new(&spec(Some(COMMIT), None), format!("committed, told {class}")).with(
            COMMIT,
            Action::Execute,
            class,
            ALWAYS,
            true,
        );
        assert_eq!(case.run().await, JobPhase::Stuck, "{}", case.what);
        assert_eq!(case.standing(), [0, 1, 2, COMMIT], "{}", case.what);
        assert!(case.world.lock().unwrap().undone.is_empty(), "{}", case.what);
        assert_eq!(case.mended_and_resumed().await, JobPhase::Done, "{}", case.what);
    }
}

/// While nobody knows whether it committed, the source is asked for longer than most fences last.
#[tokio::test(start_paused = true)]
async fn a_commit_that_is_not_known_is_asked_for_beyond_the_fence() {
    let case = Case::new(&spec(Some(COMMIT), None), "unknown").with(
        COMMIT,
        Action::Execute,
        FaultClass::Permanent,
        ALWAYS,
        false,
    );
    let began = tokio::time::Instant::now();
    assert_eq!(case.run().await, JobPhase::Stuck);
    assert!(began.elapsed() > Duration::from_secs(120), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_does_not_fit_is_refused() {
    let case = Case::new(&spec(Some(COMMIT), None), "damaged");
    let impossible = Event::StepDone { step: 2, receipt: serde_json::json!({}) };
    case.journal.note(impossible);
    let fault = case.once(Abort::default()).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Bug);
    assert!(fault.to_string().contains("damaged"), "{fault}");
}

/// Events that an older Ferry journalled, before they said who.
#[test]
fn an_older_journal_is_read() {
    for (text, event) in [
        (r#"{"event":"abort_requested"}"#, Event::AbortRequested { by: String::new() }),
        (r#"{"event":"resumed"}"#, Event::Resumed { by: String::new() }),
    ] {
        assert_eq!(serde_json::from_str::<Event>(text).unwrap(), event);
        assert_eq!(serde_json::to_string(&event).unwrap(), text);
    }
}

/// A step that goes on until it is cancelled or let go, and whose observation does not come back
/// either.
#[derive(Default)]
struct Endless {
    begun: Notify,
    release: Notify,
    cancelled: Mutex<Vec<String>>,
    /// Of the last attempt.
    abort: Mutex<CancellationToken>,
}

#[async_trait]
impl Step for Endless {
    async fn observe(&self, _: &Context) -> Result<Observation, Fault> {
        self.begun.notify_one();
        std::future::pending().await
    }

    async fn execute(&self, context: &Context) -> Result<serde_json::Value, Fault> {
        *self.abort.lock().unwrap() = context.abort.clone();
        self.begun.notify_one();
        tokio::select! {
            biased;
            () = context.cancel.cancelled() => {
                self.cancelled.lock().unwrap().push(context.spec.name.clone());
                // The agent takes its time to stop.
                self.release.notified().await;
                Err(Fault::new(FaultClass::Cancelled, "cancelled"))
            }
            () = self.release.notified() => Ok(serde_json::json!({})),
        }
    }

    async fn verify(&self, _: &Context, _: &serde_json::Value) -> Result<(), Fault> {
        Ok(())
    }

    async fn undo(&self, _: &Context, _: Option<&serde_json::Value>) -> Result<(), Fault> {
        Ok(())
    }
}

/// A job of one endless step, whose time limit is not what ends it.
struct Long {
    step: Arc<Endless>,
    journal: Arc<Memory>,
    spec: JobSpec,
}

impl Long {
    fn new(mut spec: JobSpec, events: Vec<Event>) -> Self {
        spec.steps.iter_mut().for_each(|s| s.timeout_seconds = 1_000_000);
        let journal = Memory::default();
        events.into_iter().for_each(|event| _ = journal.note(event));
        Self { step: Arc::default(), journal: Arc::new(journal), spec }
    }

    /// Starts the controller, as it were; what is journalled is told to the receiver.
    async fn start(
        &self,
        abort: Abort,
    ) -> (tokio::task::JoinHandle<Result<JobPhase, Fault>>, mpsc::Receiver<ferry_engine::Told>)
    {
        self.start_heeding(abort, Force::default()).await
    }

    async fn start_pausing(
        &self,
        abort: Abort,
        pause: Pause,
    ) -> (tokio::task::JoinHandle<Result<JobPhase, Fault>>, mpsc::Receiver<ferry_engine::Told>)
    {
        let (runner, seen) = self.runner(abort).await;
        (tokio::spawn(runner.pausing(pause).run()), seen)
    }

    async fn start_heeding(
        &self,
        abort: Abort,
        force: Force,
    ) -> (tokio::task::JoinHandle<Result<JobPhase, Fault>>, mpsc::Receiver<ferry_engine::Told>)
    {
        let (runner, seen) = self.runner(abort).await;
        (tokio::spawn(runner.heeding(force).run()), seen)
    }

    async fn runner(&self, abort: Abort) -> (Runner, mpsc::Receiver<ferry_engine::Told>) {
        let (told, seen) = mpsc::channel(64);
        let steps = self.spec.steps.iter().map(|s| {
            let step: Arc<dyn Step> = self.step.clone();
            (s.kind.clone(), step)
        });
        let steps = Arc::new(steps.collect());
        let journal: Arc<dyn Journal> = self.journal.clone();
        (Runner::recover(self.spec.clone(), steps, journal, told, abort).await.unwrap(), seen)
    }

    fn events(&self) -> Vec<Event> {
        self.journal.events()
    }
}

fn started(step: usize) -> Event {
    Event::StepStarted { step, attempt: 1 }
}

fn done(step: usize) -> Event {
    Event::StepDone { step, receipt: serde_json::json!({}) }
}

#[tokio::test(start_paused = true)]
async fn an_abort_is_journalled_while_the_step_still_runs() {
    let long = Long::new(spec(Some(COMMIT), None), vec![]);
    let abort = Abort::default();
    let (job, mut seen) = long.start(abort.clone()).await;
    long.step.begun.notified().await;
    abort.request("the operator");
    let wish = Event::AbortRequested { by: "the operator".into() };
    loop {
        match seen.recv().await.expect("the job goes on until its step ends") {
            ferry_engine::Told::Event(entry) if entry.event == wish => break,
            _ => {}
        }
    }
    assert_eq!(long.events(), [started(0), wish]);
    seen.close();
    long.step.release.notify_one();
    assert_eq!(job.await.unwrap().unwrap(), JobPhase::Undone);
}

#[tokio::test(start_paused = true)]
async fn an_abort_survives_the_controller_and_cancels_the_step_again() {
    let wish = Event::AbortRequested { by: String::new() };
    let long = Long::new(spec(Some(COMMIT), None), vec![started(0), wish]);
    let (job, mut seen) = long.start(Abort::default()).await;
    seen.close();
    long.step.release.notify_one();
    assert_eq!(job.await.unwrap().unwrap(), JobPhase::Undone);
    assert_eq!(*long.step.cancelled.lock().unwrap(), ["step0"]);
}

#[tokio::test(start_paused = true)]
async fn an_abort_ends_looking_at_an_agent_that_does_not_answer() {
    let long = Long::new(spec(Some(COMMIT), None), vec![started(0)]);
    let abort = Abort::default();
    let (job, mut seen) = long.start(abort.clone()).await;
    seen.close();
    long.step.begun.notified().await;
    abort.request("");
    long.step.release.notify_one();
    assert_eq!(job.await.unwrap().unwrap(), JobPhase::Undone);
    assert_eq!(*long.step.cancelled.lock().unwrap(), ["step0"]);
}

/// An abort that comes while the commit is under way is too late: neither the commit nor what
/// comes after it is cancelled.
#[tokio::test(start_paused = true)]
async fn an_abort_cancels_nothing_after_the_commit_began() {
    let mut events: Vec<_> = (0..COMMIT).flat_map(|step| [started(step), done(step)]).collect();
    events.push(Event::StepFailed { step: COMMIT, fault: Fault::transient("lost") });
    events.insert(2 * COMMIT, started(COMMIT));
    let long = Long::new(spec(Some(COMMIT), None), events);
    let abort = Abort::default();
    abort.request("");
    let (job, mut seen) = long.start(abort).await;
    seen.close();
    for _ in COMMIT..STEPS {
        long.step.begun.notified().await;
        long.step.release.notify_one();
    }
    assert_eq!(job.await.unwrap().unwrap(), JobPhase::Done);
    assert_eq!(*long.step.cancelled.lock().unwrap(), [] as [&str; 0]);
}

#[tokio::test]
async fn each_journal_write_is_between_two_points_that_say_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    // One write is said to have failed though it is there: the job goes on from the journal.
    let mut fails = vec!["journal.step_done.step1.after"];
    let lab = ferry_failpoints::FakeLab::listen(dir.path(), move |point| {
        let fail = fails.pop_if(|fails| point == *fails).is_some();
        if fail { "errno 5".to_owned() } else { "go".to_owned() }
    })
    .unwrap();
    let case = Case::new(&spec(Some(COMMIT), None), "points");
    case.once(Abort::default()).await.unwrap_err();
    assert_eq!(case.once(Abort::default()).await.unwrap(), JobPhase::Done);
    let both =
        |what, step| ["before", "after"].map(|when| format!("journal.{what}.step{step}.{when}"));
    let steps = (0..STEPS).flat_map(|i| [both("step_started", i), both("step_done", i)].concat());
    assert_eq!(lab.heard(), steps.collect::<Vec<_>>());
}
