//! Every plan against fake steps: fail at each step, crash after each journal write, repeat each
//! execute and undo. The end is always start, target or Stuck, and the world agrees.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use ferry_engine::{Context, Event, JobSpec, Journal, Observation, Runner, Step, StepSpec, Steps};
use ferry_proto::ids::JobId;
use ferry_proto::view::JobPhase;
use ferry_proto::{Fault, FaultClass};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const STEPS: usize = 6;
const COMMIT: usize = 3;

/// What the fake steps change: outlives every crash.
#[derive(Default)]
struct World {
    /// Steps whose effect stands.
    standing: BTreeSet<String>,
    /// Attempts that took effect, with their receipts: what an agent's ledger would know.
    ledger: HashMap<(String, u32), serde_json::Value>,
    executed: u32,
    undone: u32,
}

/// Which call goes wrong, how, and how often.
#[derive(Clone)]
struct Trouble {
    step: usize,
    action: Action,
    class: FaultClass,
    times: u32,
    /// Whether the effect happens although the call fails: the answer was lost.
    effect: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Action {
    Execute,
    Verify,
    Undo,
}

struct Fake {
    world: Arc<Mutex<World>>,
    trouble: Mutex<Option<Trouble>>,
}

impl Fake {
    fn fails(&self, context: &Context, action: Action) -> Option<Trouble> {
        let mut slot = self.trouble.lock().unwrap();
        let trouble = slot.as_mut()?;
        if context.spec.name != name(trouble.step) || trouble.action != action || trouble.times == 0
        {
            return None;
        }
        trouble.times -= 1;
        Some(trouble.clone())
    }
}

fn name(step: usize) -> String {
    format!("step{step}")
}

#[async_trait]
impl Step for Fake {
    async fn observe(&self, context: &Context) -> Result<Observation, Fault> {
        let world = self.world.lock().unwrap();
        let key = (context.spec.name.clone(), context.attempt);
        Ok(world.ledger.get(&key).map_or(Observation::NotDone, |r| Observation::Done(r.clone())))
    }

    async fn execute(&self, context: &Context) -> Result<serde_json::Value, Fault> {
        let failure = self.fails(context, Action::Execute);
        let mut world = self.world.lock().unwrap();
        world.executed += 1;
        if failure.as_ref().is_none_or(|t| t.effect) {
            world.standing.insert(context.spec.name.clone());
            let receipt = serde_json::json!({ "of": context.spec.name });
            world.ledger.insert((context.spec.name.clone(), context.attempt), receipt.clone());
            if failure.is_none() {
                return Ok(receipt);
            }
        }
        Err(Fault::new(failure.unwrap().class, "execute fails"))
    }

    async fn verify(&self, context: &Context, _: &serde_json::Value) -> Result<(), Fault> {
        match self.fails(context, Action::Verify) {
            Some(t) => Err(Fault::new(t.class, "verify fails")),
            None => Ok(()),
        }
    }

    async fn undo(&self, context: &Context, _: Option<&serde_json::Value>) -> Result<(), Fault> {
        let failure = self.fails(context, Action::Undo);
        let mut world = self.world.lock().unwrap();
        world.undone += 1;
        if failure.as_ref().is_none_or(|t| t.effect) {
            world.standing.remove(&context.spec.name);
        }
        failure.map_or(Ok(()), |t| Err(Fault::new(t.class, "undo fails")))
    }
}

/// A journal that stops the process, as it were, at the nth write: before it is durable or after.
#[derive(Default)]
struct Memory {
    events: Mutex<Vec<Event>>,
    crash_at: Mutex<Option<(usize, bool)>>,
    writes: Mutex<usize>,
}

#[async_trait]
impl Journal for Memory {
    async fn append(&self, _: JobId, event: &Event) -> Result<(), Fault> {
        let write = {
            let mut writes = self.writes.lock().unwrap();
            *writes += 1;
            *writes
        };
        let crash = *self.crash_at.lock().unwrap();
        match crash {
            Some((at, false)) if at == write => Err(Fault::bug("crashed before the write")),
            Some((at, true)) if at == write => {
                self.events.lock().unwrap().push(event.clone());
                Err(Fault::bug("crashed after the write"))
            }
            _ => {
                self.events.lock().unwrap().push(event.clone());
                Ok(())
            }
        }
    }

    async fn load(&self, _: JobId) -> Result<Vec<Event>, Fault> {
        Ok(self.events.lock().unwrap().clone())
    }
}

fn spec() -> JobSpec {
    JobSpec {
        job: JobId::new_now(),
        steps: (0..STEPS)
            .map(|i| StepSpec {
                name: name(i),
                kind: "fake".into(),
                intent: serde_json::json!({}),
                timeout_seconds: 5,
                commit_point: i == COMMIT,
            })
            .collect(),
    }
}

struct Case {
    world: Arc<Mutex<World>>,
    journal: Arc<Memory>,
    steps: Arc<Steps>,
    spec: JobSpec,
}

impl Case {
    fn new(trouble: Option<Trouble>, crash_at: Option<(usize, bool)>) -> Self {
        let world = Arc::new(Mutex::new(World::default()));
        let fake = Fake { world: world.clone(), trouble: Mutex::new(trouble) };
        let mut steps = Steps::new();
        steps.insert("fake".into(), Arc::new(fake));
        let journal = Memory { crash_at: Mutex::new(crash_at), ..Memory::default() };
        Self { world, journal: Arc::new(journal), steps: Arc::new(steps), spec: spec() }
    }

    async fn once(&self, abort: CancellationToken) -> Result<JobPhase, Fault> {
        let (told, mut seen) = mpsc::channel(64);
        tokio::spawn(async move { while seen.recv().await.is_some() {} });
        let runner = Runner::recover(
            self.spec.clone(),
            self.steps.clone(),
            self.journal.clone(),
            told,
            abort,
        )
        .await?;
        runner.run().await
    }

    /// Runs to the end, restarting after a crash as a service manager would.
    async fn run(&self) -> JobPhase {
        for _ in 0..3 {
            match self.once(CancellationToken::new()).await {
                Ok(phase) => return phase,
                Err(_) => *self.journal.crash_at.lock().unwrap() = None,
            }
        }
        panic!("did not end after a restart");
    }

    fn check(&self, phase: JobPhase, what: &str) {
        let world = self.world.lock().unwrap();
        match phase {
            JobPhase::Done => assert_eq!(world.standing.len(), STEPS, "{what}: target"),
            JobPhase::Undone => {
                assert!(world.standing.is_empty(), "{what}: start: {:?}", world.standing)
            }
            JobPhase::Stuck => {}
            other => panic!("{what}: ended as {other}"),
        }
    }
}

const CLASSES: [FaultClass; 6] = [
    FaultClass::Transient,
    FaultClass::Precondition,
    FaultClass::Fenced,
    FaultClass::Cancelled,
    FaultClass::Permanent,
    FaultClass::Bug,
];

#[tokio::test(start_paused = true)]
async fn each_step_failing_in_each_way_ends_at_start_target_or_stuck() {
    for step in 0..STEPS {
        for class in CLASSES {
            for effect in [false, true] {
                for times in [1, 9] {
                    for action in [Action::Execute, Action::Verify] {
                        // The agent answers a refusal of the commit only if it did not commit.
                        let lie = step == COMMIT && effect && class != FaultClass::Transient;
                        if lie || (action == Action::Verify && (step == COMMIT || effect)) {
                            continue;
                        }
                        let case =
                            Case::new(Some(Trouble { step, action, class, times, effect }), None);
                        let phase = case.run().await;
                        let what = format!(
                            "{action:?} of step {step}, {class}, {times} times, effect {effect}"
                        );
                        case.check(phase, &what);
                        let expected = match (step, class, times) {
                            (_, FaultClass::Transient, 1) => JobPhase::Done,
                            (s, FaultClass::Transient, _) if s >= COMMIT => JobPhase::Done,
                            (s, FaultClass::Bug, _) if s == COMMIT => JobPhase::Stuck,
                            (s, _, _) if s <= COMMIT => JobPhase::Undone,
                            _ => JobPhase::Stuck,
                        };
                        assert_eq!(phase, expected, "{what}");
                    }
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_each_journal_write_changes_nothing_of_the_end() {
    for failing in [None, Some(2), Some(4)] {
        for durable in [false, true] {
            for write in 1..40 {
                let trouble = failing.map(|step| Trouble {
                    step,
                    action: Action::Execute,
                    class: FaultClass::Precondition,
                    times: 99,
                    effect: false,
                });
                let case = Case::new(trouble, Some((write, durable)));
                let phase = case.run().await;
                let what =
                    format!("crash at write {write}, durable {durable}, failing {failing:?}");
                case.check(phase, &what);
                let expected = match failing {
                    None => JobPhase::Done,
                    Some(step) if step < COMMIT => JobPhase::Undone,
                    Some(_) => JobPhase::Stuck,
                };
                assert_eq!(phase, expected, "{what}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_abort_before_the_commit_ends_at_the_start_and_after_it_at_the_target() {
    let case = Case::new(None, None);
    let abort = CancellationToken::new();
    abort.cancel();
    let phase = case.once(abort).await.unwrap();
    assert_eq!(phase, JobPhase::Undone);
    case.check(phase, "abort before anything");

    // A job that has committed and is taken up again with an abort: it goes on to the target.
    let case = Case::new(None, Some((2 * COMMIT + 3, true)));
    assert!(case.once(CancellationToken::new()).await.is_err(), "the crash stops it");
    *case.journal.crash_at.lock().unwrap() = None;
    let abort = CancellationToken::new();
    abort.cancel();
    let phase = case.once(abort).await.unwrap();
    assert_eq!(phase, JobPhase::Done);
    case.check(phase, "abort after the commit");
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_fails_for_good_is_stuck_and_goes_on_when_resumed() {
    let case = Case::new(
        Some(Trouble {
            step: 1,
            action: Action::Undo,
            class: FaultClass::Permanent,
            times: 1,
            effect: false,
        }),
        None,
    );
    let abort = CancellationToken::new();
    // Fail step 2 by planning nothing: abort while step 2 would start.
    case.journal.events.lock().unwrap().extend([
        Event::StepStarted { step: 0, attempt: 1 },
        Event::StepDone { step: 0, receipt: serde_json::json!({}) },
        Event::StepStarted { step: 1, attempt: 1 },
        Event::StepDone { step: 1, receipt: serde_json::json!({}) },
    ]);
    case.world.lock().unwrap().standing.extend([name(0), name(1)]);
    abort.cancel();
    assert_eq!(case.once(abort.clone()).await.unwrap(), JobPhase::Stuck);
    case.journal.events.lock().unwrap().push(Event::Resumed);
    let phase = case.once(abort).await.unwrap();
    assert_eq!(phase, JobPhase::Undone);
    case.check(phase, "resumed");
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_does_not_fit_is_refused() {
    let case = Case::new(None, None);
    case.journal
        .events
        .lock()
        .unwrap()
        .push(Event::StepDone { step: 2, receipt: serde_json::json!({}) });
    let fault = case.once(CancellationToken::new()).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Bug);
    assert!(fault.to_string().contains("damaged"), "{fault}");
}
