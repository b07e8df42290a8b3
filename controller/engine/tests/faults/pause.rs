//! A pause: what it stops, when, and what it leaves as it was.

use ferry_engine::{JobState, Next, Told};
use proptest::prelude::*;

use super::*;

fn pause_requested() -> Event {
    Event::PauseRequested { by: "the test".into() }
}

fn resumed() -> Event {
    Event::Resumed { by: "the test".into() }
}

fn failed(step: usize, class: FaultClass) -> Event {
    Event::StepFailed { step, fault: Fault::new(class, "it ends") }
}

fn again(attempt: u32) -> Event {
    Event::StepStarted { step: 0, attempt }
}

fn job() -> JobSpec {
    spec(Some(COMMIT), None)
}

/// The state after all of them, or none if one cannot follow.
fn state(events: &[Event]) -> Option<JobState> {
    let entries: Vec<_> = events.iter().map(|e| Entry { at_ms: 0, event: e.clone() }).collect();
    JobState::replay(&job(), &entries).ok()
}

fn next(events: &[Event]) -> Next {
    state(events).unwrap_or_else(|| panic!("{events:?} cannot be")).next(&job())
}

const PAUSED: Next = Next::End(JobPhase::Paused);

async fn until_told(seen: &mut mpsc::Receiver<Told>, event: &Event) {
    loop {
        match seen.recv().await.expect("the job goes on") {
            Told::Event(entry) if entry.event == *event => return,
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_journalled_while_the_step_still_runs_and_stops_it() {
    let long = Long::new(job(), vec![]);
    let pause = Pause::default();
    let (running, mut seen) = long.start_pausing(Abort::default(), pause.clone()).await;
    long.step.begun.notified().await;
    pause.request("the test");
    until_told(&mut seen, &pause_requested()).await;
    assert_eq!(long.events(), [started(0), pause_requested()]);
    long.step.release.notify_one();
    assert_eq!(running.await.unwrap().unwrap(), JobPhase::Paused);
    assert_eq!(*long.step.cancelled.lock().unwrap(), ["step0"]);
}

#[tokio::test(start_paused = true)]
async fn a_pause_survives_the_controller_and_cancels_the_step_again() {
    let long = Long::new(job(), vec![started(0), pause_requested()]);
    let (running, _seen) = long.start_pausing(Abort::default(), Pause::default()).await;
    long.step.release.notify_one();
    assert_eq!(running.await.unwrap().unwrap(), JobPhase::Paused);
    assert_eq!(*long.step.cancelled.lock().unwrap(), ["step0"]);
}

#[tokio::test(start_paused = true)]
async fn a_pause_between_two_attempts_takes_effect_at_once() {
    let events = vec![started(0), failed(0, FaultClass::Transient)];
    let long = Long::new(job(), events.clone());
    let (pause, began) = (Pause::default(), tokio::time::Instant::now());
    let (running, _seen) = long.start_pausing(Abort::default(), pause.clone()).await;
    for _ in 0..10 {
        tokio::task::yield_now().await; // Until it waits for its next attempt.
    }
    pause.request("the test");
    assert_eq!(running.await.unwrap().unwrap(), JobPhase::Paused);
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(long.events(), [events, vec![pause_requested()]].concat());
    // It has failed by itself.
    let mut events = long.events();
    events.push(resumed());
    assert_eq!(next(&events), Next::Start { step: 0, attempt: 2 });
}

/// Lets nobody in.
#[derive(Default)]
struct Closed(Notify);

#[async_trait]
impl Gate for Closed {
    async fn enter(&self, _: &StepSpec) {
        self.0.notify_one();
        std::future::pending().await
    }
    fn done(&self, _: &StepSpec) {}
    fn forced(&self, _: &StepSpec) {}
    fn undoing(&self, _: &StepSpec) {}
    fn undone(&self, _: &StepSpec) {}
}

/// Before its first step, and copied whole, before the first that is not to be paused.
#[tokio::test(start_paused = true)]
async fn a_pause_at_the_gate_takes_effect_at_once() {
    for begun in [0, PAUSABLE] {
        let events: Vec<_> = (0..begun).flat_map(|step| [started(step), done(step)]).collect();
        let long = Long::new(job(), events.clone());
        let (gate, pause) = (Arc::<Closed>::default(), Pause::default());
        let (runner, _seen) = long.runner(Abort::default()).await;
        let running = tokio::spawn(runner.gated(gate.clone()).pausing(pause.clone()).run());
        gate.0.notified().await;
        pause.request("the test");
        assert_eq!(running.await.unwrap().unwrap(), JobPhase::Paused);
        assert_eq!(long.events(), [events, vec![pause_requested()]].concat());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_resumed_before_it_has_stopped_is_tried_again_once_it_has() {
    let long = Long::new(job(), vec![]);
    let (pause, began) = (Pause::default(), tokio::time::Instant::now());
    let (running, mut seen) = long.start_pausing(Abort::default(), pause.clone()).await;
    long.step.begun.notified().await;
    pause.request("the test");
    until_told(&mut seen, &pause_requested()).await;
    pause.end("the test");
    until_told(&mut seen, &resumed()).await;
    long.step.release.notify_one();
    until_told(&mut seen, &again(2)).await;
    assert_eq!(began.elapsed(), Duration::ZERO, "there is nothing to wait for");
    long.step.begun.notified().await;
    long.step.release.notify_one();
    until_told(&mut seen, &done(0)).await;
    assert_eq!(
        *long.step.cancelled.lock().unwrap(),
        ["step0"],
        "the next attempt is not cancelled"
    );
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn an_abort_of_what_is_about_to_pause_undoes_it() {
    let long = Long::new(job(), vec![]);
    let (abort, pause) = (Abort::default(), Pause::default());
    let (running, mut seen) = long.start_pausing(abort.clone(), pause.clone()).await;
    long.step.begun.notified().await;
    let nobody_waits = long.step.abort.lock().unwrap().clone();
    pause.request("the test");
    until_told(&mut seen, &pause_requested()).await;
    assert!(!nobody_waits.is_cancelled(), "a pause waits for who is away");
    abort.request("the test");
    until_told(&mut seen, &Event::AbortRequested { by: "the test".into() }).await;
    assert!(nobody_waits.is_cancelled());
    long.step.release.notify_one();
    assert_eq!(running.await.unwrap().unwrap(), JobPhase::Undone);
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_cannot_be_does_not_hurry_an_undo() {
    let undo = Event::UndoStarted { step: 0, attempt: 1 };
    let fault = Fault::transient("it does not answer");
    let failed_undo = Event::UndoFailed { step: 0, fault };
    let events = vec![started(0), failed(0, FaultClass::Permanent), undo, failed_undo];
    let long = Long::new(job(), events);
    let (pause, began) = (Pause::default(), tokio::time::Instant::now());
    let (running, _seen) = long.start_pausing(Abort::default(), pause.clone()).await;
    for _ in 0..10 {
        tokio::task::yield_now().await; // Until it waits to undo it again.
    }
    pause.request("the test");
    assert_eq!(running.await.unwrap().unwrap(), JobPhase::Undone);
    assert!(began.elapsed() > Duration::ZERO);
}

/// Neither a second pause nor the end of none: the job is as it was, and nothing is remembered for later.
#[tokio::test(start_paused = true)]
async fn a_wish_that_does_not_fit_lapses() {
    let long = Long::new(job(), vec![pause_requested()]);
    let pause = Pause::default();
    pause.request("another");
    let (running, _seen) = long.start_pausing(Abort::default(), pause.clone()).await;
    assert_eq!(running.await.unwrap().unwrap(), JobPhase::Paused);
    assert_eq!(long.events(), [pause_requested()]);
    long.journal.note(resumed());
    let (running, mut seen) = long.start_pausing(Abort::default(), pause.clone()).await;
    until_told(&mut seen, &started(0)).await;
    pause.end("another");
    long.step.begun.notified().await;
    long.step.release.notify_one();
    until_told(&mut seen, &done(0)).await;
    assert_eq!(long.events()[..4], [pause_requested(), resumed(), started(0), done(0)]);
    running.abort();
}

#[test]
fn only_a_job_that_goes_forward_and_has_begun_nothing_else_is_paused() {
    let before: Vec<_> = (0..PAUSABLE).flat_map(|step| [started(step), done(step)]).collect();
    let can = |events: &[Event]| {
        let state = state(events).unwrap();
        let can = state.can_pause(&job());
        let entry = Entry { at_ms: 0, event: pause_requested() };
        assert_eq!(state.clone().apply(&job(), &entry).is_ok(), can, "{events:?}");
        can
    };
    for begun in 0..=before.len() {
        assert!(can(&before[..begun]), "{begun}");
    }
    let fenced = [&before[..], &[started(PAUSABLE)]].concat();
    let retried = [&fenced[..], &[failed(PAUSABLE, FaultClass::Transient)]].concat();
    let aborted = [started(0), Event::AbortRequested { by: String::new() }];
    let refused = [started(0), failed(0, FaultClass::Permanent)];
    let undone = [&refused[..], &[Event::UndoStarted { step: 0, attempt: 1 }]].concat();
    let paused = [started(0), pause_requested()];
    let all: [&[Event]; 6] = [&fenced, &retried, &aborted, &refused, &undone, &paused];
    for events in all {
        assert!(!can(events), "{events:?}");
    }
    assert_eq!(state(&[&before[..], &[pause_requested(), started(PAUSABLE)]].concat()), None);
}

#[test]
fn an_attempt_that_a_pause_has_cut_off_is_no_failure() {
    for class in harness::CLASSES {
        let mut events = vec![started(0)];
        for attempt in 2..20 {
            events.extend([pause_requested(), failed(0, class)]);
            assert_eq!(next(&events), PAUSED);
            events.push(resumed());
            assert_eq!(next(&events), Next::Start { step: 0, attempt }, "{class}");
            events.push(again(attempt));
        }
        // From here on it fails by itself: the fifth time is the last.
        for attempt in 20..24 {
            events.push(failed(0, FaultClass::Transient));
            assert_eq!(next(&events), Next::Start { step: 0, attempt });
            events.push(again(attempt));
        }
        events.push(failed(0, FaultClass::Transient));
        assert_eq!(next(&events), Next::StartUndo { step: 0, attempt: 1 });
    }
    let done_all_the_same = [started(0), pause_requested(), done(0)];
    assert_eq!(next(&done_all_the_same), PAUSED);
}

/// Copied whole and then paused for days, say: what was done is as old as the pause is long.
#[test]
fn what_a_pause_has_made_old_is_done_again_before_the_job_goes_on() {
    let (old, further) = (PAUSABLE - 1, Next::Start { step: PAUSABLE, attempt: 1 });
    let anew = |attempt| Event::StepStarted { step: old, attempt };
    let next_of = |begun: &[Event], then: &[Event]| next(&[begun, then].concat());
    let mut begun: Vec<_> = (0..old).flat_map(|step| [started(step), done(step)]).collect();
    begun.push(started(old));
    // It had not stopped: nothing was left lying.
    assert_eq!(next_of(&begun, &[pause_requested(), resumed(), done(old)]), further);
    let at_its_end = [pause_requested(), done(old), resumed()];
    let after_it = [done(old), pause_requested(), resumed()];
    for events in [at_its_end, after_it] {
        let mut events = [&begun[..], &events[..]].concat();
        for attempt in 2..5 {
            assert_eq!(next(&events), Next::Start { step: old, attempt });
            let again = Event::AbortRequested { by: String::new() };
            assert_eq!(next_of(&events, &[again]), Next::StartUndo { step: old, attempt: 1 });
            // Neither does a second pause change that, nor a restart.
            assert_eq!(next_of(&events, &[pause_requested()]), PAUSED);
            let paused_again = [pause_requested(), resumed()];
            assert_eq!(next_of(&events, &paused_again), Next::Start { step: old, attempt });
            events.push(anew(attempt));
            // Its failures are counted from there.
            let fails = failed(old, FaultClass::Transient);
            let twice = [fails.clone(), anew(attempt + 1), fails];
            assert_eq!(next_of(&events, &twice), Next::Start { step: old, attempt: attempt + 2 });
            assert_eq!(next_of(&events, &[done(old)]), further);
            events.extend([done(old), pause_requested(), resumed()]);
        }
    }
}

/// It has given up what it had, and has not begun anew.
#[test]
fn a_job_is_stopped_from_its_pause_until_a_step_starts() {
    let mut events = Vec::new();
    let mut is_stopped = |event: Event| {
        events.push(event);
        state(&events).unwrap().is_stopped()
    };
    assert!(is_stopped(pause_requested()), "nothing ran");
    assert!(is_stopped(resumed()), "it waits at its gate");
    assert!(!is_stopped(started(0)));
    assert!(!is_stopped(pause_requested()), "it still runs");
    assert!(is_stopped(done(0)));
    assert!(is_stopped(resumed()));
    assert!(!is_stopped(started(1)));
    assert!(!is_stopped(failed(1, FaultClass::Transient)));
    assert!(is_stopped(pause_requested()));
}

/// A job that an older Ferry planned and journalled.
#[test]
fn what_is_not_paused_is_written_as_before() {
    let step = &job().steps[COMMIT];
    let text = serde_json::to_string(step).unwrap();
    assert!(!text.contains("paus"), "{text}");
    assert_eq!(&serde_json::from_str::<StepSpec>(&text).unwrap(), step);
    let text = r#"{"event":"pause_requested","by":"the test"}"#;
    assert_eq!(serde_json::from_str::<Event>(text).unwrap(), pause_requested());
    assert_eq!(serde_json::to_string(&pause_requested()).unwrap(), text);
}

#[derive(Debug, Clone)]
enum Happens {
    Pause,
    Resume,
    Abort,
    /// What is under way, or is next, comes to this.
    Work(Option<FaultClass>),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        3 => Just(Happens::Pause),
        3 => Just(Happens::Resume),
        1 => Just(Happens::Abort),
        9 => Just(Happens::Work(None)),
        4 => prop::sample::select(harness::CLASSES.to_vec()).prop_map(|c| Happens::Work(Some(c))),
    ]
}

/// The event that it is in this state, if any can follow.
fn event(state: &JobState, happens: &Happens) -> Option<Event> {
    let fault = match happens {
        Happens::Pause => return state.can_pause(&job()).then(pause_requested),
        Happens::Resume => return state.pause_requested.then(resumed),
        Happens::Abort => return Some(Event::AbortRequested { by: String::new() }),
        Happens::Work(class) => class.map(|class| Fault::new(class, "it ends")),
    };
    Some(match (state.next(&job()), fault) {
        (Next::End(_), _) => return None,
        (Next::Start { step, attempt }, _) => Event::StepStarted { step, attempt },
        (Next::StartUndo { step, attempt }, _) => Event::UndoStarted { step, attempt },
        (Next::Resume { step, .. }, None) => done(step),
        (Next::Resume { step, .. }, Some(fault)) => Event::StepFailed { step, fault },
        (Next::ResumeUndo { step, .. }, None) => Event::UndoDone { step },
        (Next::ResumeUndo { step, .. }, Some(fault)) => Event::UndoFailed { step, fault },
    })
}

/// What must hold whatever has happened.
fn check(state: &JobState) -> Result<(), TestCaseError> {
    let (job, next) = (job(), state.next(&job()));
    prop_assert_eq!(next == PAUSED || matches!(next, Next::Resume { .. }), true, "{:?}", next);
    for (step, state) in job.steps.iter().zip(&state.steps) {
        let may_wait = step.pausable || *state == ferry_engine::StepState::Waiting;
        prop_assert!(may_wait, "{} is {:?}", step.name, state);
    }
    Ok(())
}

proptest! {
    #[test]
    fn whatever_happens_a_paused_job_has_undone_nothing_begins_nothing_and_ends_as_others(
        all in prop::collection::vec(happens(), 0..120),
    ) {
        let (spec, mut events) = (job(), Vec::new());
        let mut state = JobState::new(&spec);
        let mut tried = [0; STEPS];
        let go_on = std::iter::repeat_n(Happens::Work(None), 4 * STEPS);
        for happens in all.into_iter().chain([Happens::Resume]).chain(go_on) {
            let Some(event) = event(&state, &happens) else { continue };
            if let Event::StepStarted { step, attempt } = event {
                prop_assert!(attempt > tried[step], "each attempt has a number of its own");
                tried[step] = attempt;
            }
            state.apply(&spec, &Entry { at_ms: 0, event: event.clone() }).unwrap();
            events.push(event);
            if state.pause_requested {
                check(&state)?;
            } else {
                prop_assert_ne!(state.next(&spec), PAUSED);
            }
        }
        prop_assert_eq!(self::state(&events), Some(state.clone()), "a restart changes nothing");
        let end = state.next(&spec);
        prop_assert!(
            matches!(end, Next::End(JobPhase::Done | JobPhase::Undone | JobPhase::Stuck)),
            "{:?}: {:?}", end, events
        );
    }
}
