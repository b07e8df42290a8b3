//! Fake steps in a world that outlives crashes, a journal that crashes where it is told, and the
//! rows of cases that every job has to stand, whatever its plan. The end is always start, target or
//! Stuck, the world agrees, and whoever resumes a stuck job brings it to start or target.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use ferry_engine::{
    Abort, Context, Entry, Event, Force, Gate, JobSpec, Journal, Observation, Pause, Runner, Step,
    Steps,
};
use ferry_proto::command::Refusal;
use ferry_proto::ids::{Epoch, JobId};
use ferry_proto::view::JobPhase;
use ferry_proto::{Fault, FaultClass};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub const CLASSES: [FaultClass; 6] = [
    FaultClass::Transient,
    FaultClass::Precondition,
    FaultClass::Fenced,
    FaultClass::Cancelled,
    FaultClass::Permanent,
    FaultClass::Bug,
];

/// For ever, as far as a test is concerned.
pub const ALWAYS: u32 = u32::MAX;

/// What the fake steps change: outlives every crash.
#[derive(Default)]
pub struct World {
    /// Steps whose effect stands.
    pub standing: BTreeSet<String>,
    /// Attempts that took effect, with their receipts: what an agent's ledger would know.
    ledger: HashMap<(String, u32), serde_json::Value>,
    /// How often each attempt was executed, undone: more than once after a crash.
    pub executed: HashMap<(String, u32), u32>,
    pub undone: HashMap<(String, u32), u32>,
    /// What must never happen.
    pub violations: Vec<String>,
}

/// Which call goes wrong, how, and how often.
#[derive(Clone, Debug)]
pub struct Trouble {
    pub step: String,
    pub action: Action,
    pub class: FaultClass,
    pub times: u32,
    /// Whether the effect happens although the call fails: the answer was lost.
    pub effect: bool,
    /// Whether it is refused for good.
    pub refusal: bool,
}

impl Trouble {
    fn fault(&self, what: &str) -> Fault {
        if !self.refusal {
            return Fault::new(self.class, what);
        }
        Fault::refused(Refusal {
            job: JobId::new_now(),
            account: "demo".parse().unwrap(),
            source: "client".parse().unwrap(),
            target: "transit".parse().unwrap(),
            epoch: Epoch(5),
            reason: "the disk is full".into(),
            at_unix_ms: 0,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Action {
    Observe,
    Execute,
    Verify,
    Undo,
}

/// How the steps of a case behave.
#[derive(Clone, Copy, Default)]
struct Manner {
    /// Observing finds nothing: executes are repeated after a crash.
    ignorant: bool,
    /// They stop when they are cancelled; else they are done before they hear it.
    obedient: bool,
}

struct Fake {
    world: Arc<Mutex<World>>,
    trouble: Arc<Mutex<Vec<Trouble>>>,
    manner: Manner,
    /// The commit's name: while it stands nothing before it may be undone, and it itself only if it is
    /// void.
    commit: Option<String>,
    /// What comes before it.
    before_commit: BTreeSet<String>,
}

impl Fake {
    fn fails(&self, context: &Context, action: Action) -> Option<Trouble> {
        let mut all = self.trouble.lock().unwrap();
        let trouble = all
            .iter_mut()
            .find(|t| t.step == context.spec.name && t.action == action && t.times > 0)?;
        trouble.times -= 1;
        Some(trouble.clone())
    }
}

fn key(context: &Context) -> (String, u32) {
    (context.spec.name.clone(), context.attempt)
}

#[async_trait]
impl Step for Fake {
    async fn observe(&self, context: &Context) -> Result<Observation, Fault> {
        if let Some(t) = self.fails(context, Action::Observe) {
            return Err(t.fault("observe fails"));
        }
        let world = self.world.lock().unwrap();
        let seen = world.ledger.get(&key(context)).filter(|_| !self.manner.ignorant);
        Ok(seen.map_or(Observation::NotDone, |r| Observation::Done(r.clone())))
    }

    async fn execute(&self, context: &Context) -> Result<serde_json::Value, Fault> {
        if self.manner.obedient && context.cancel.is_cancelled() {
            return Err(Fault::new(FaultClass::Cancelled, "cancelled"));
        }
        let failure = self.fails(context, Action::Execute);
        let mut world = self.world.lock().unwrap();
        *world.executed.entry(key(context)).or_default() += 1;
        if failure.as_ref().is_none_or(|t| t.effect) {
            world.standing.insert(context.spec.name.clone());
            let receipt = serde_json::json!({ "of": context.spec.name });
            world.ledger.insert(key(context), receipt.clone());
            if failure.is_none() {
                return Ok(receipt);
            }
        }
        Err(failure.unwrap().fault("execute fails"))
    }

    async fn verify(&self, context: &Context, _: &serde_json::Value) -> Result<(), Fault> {
        match self.fails(context, Action::Verify) {
            Some(t) => Err(t.fault("verify fails")),
            None => Ok(()),
        }
    }

    async fn undo(&self, context: &Context, _: Option<&serde_json::Value>) -> Result<(), Fault> {
        let failure = self.fails(context, Action::Undo);
        let mut world = self.world.lock().unwrap();
        *world.undone.entry(key(context)).or_default() += 1;
        let name = &context.spec.name;
        let committed = self.commit.as_ref().is_some_and(|commit| world.standing.contains(commit));
        if committed && (context.void.is_none() || self.before_commit.contains(name)) {
            world.violations.push(format!("{} undone after the commit", context.spec.name));
        }
        if failure.as_ref().is_none_or(|t| t.effect) {
            world.standing.remove(&context.spec.name);
        }
        failure.map_or(Ok(()), |t| Err(t.fault("undo fails")))
    }
}

/// A journal that stops the process, as it were, at the nth write, before it is durable or after;
/// and at whose nth write somebody may wish an abort or a pause.
#[derive(Default)]
pub struct Memory {
    pub entries: Mutex<Vec<Entry>>,
    /// What it dates its entries by.
    pub clock: Clock,
    pub crash_at: Mutex<Option<(usize, bool)>>,
    pub abort_at: Mutex<Option<(usize, Abort)>>,
    pub pause_at: Mutex<Option<(usize, Pause)>>,
    pub writes: Mutex<usize>,
}

/// The engine's clock.
pub struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock {
    fn now_ms(&self) -> i64 {
        1_700_000_000_000 + i64::try_from(self.0.elapsed().as_millis()).unwrap()
    }
}

impl Memory {
    pub fn note(&self, event: Event) -> i64 {
        let at_ms = self.clock.now_ms();
        self.entries.lock().unwrap().push(Entry { at_ms, event });
        at_ms
    }

    pub fn events(&self) -> Vec<Event> {
        self.entries.lock().unwrap().iter().map(|entry| entry.event.clone()).collect()
    }
}

#[async_trait]
impl Journal for Memory {
    async fn append(&self, _: JobId, event: &Event) -> Result<i64, Fault> {
        let write = {
            let mut writes = self.writes.lock().unwrap();
            *writes += 1;
            *writes
        };
        if let Some((at, abort)) = &*self.abort_at.lock().unwrap()
            && *at == write
        {
            abort.request("the test");
        }
        if let Some((at, pause)) = &*self.pause_at.lock().unwrap()
            && *at == write
        {
            pause.request("the test");
        }
        let crash = *self.crash_at.lock().unwrap();
        let (lost, crashes) = match crash {
            Some((at, durable)) if at == write => (!durable, true),
            _ => (false, false),
        };
        let at_ms = if lost { 0 } else { self.note(event.clone()) };
        if crashes { Err(Fault::bug("crashed at the write")) } else { Ok(at_ms) }
    }

    async fn load(&self, _: JobId) -> Result<Vec<Entry>, Fault> {
        Ok(self.entries.lock().unwrap().clone())
    }
}

/// A job among fakes.
pub struct Case {
    pub world: Arc<Mutex<World>>,
    pub journal: Arc<Memory>,
    pub trouble: Arc<Mutex<Vec<Trouble>>>,
    steps: Arc<Steps>,
    /// Outlives crashes: whoever gave his word gives it again.
    pub force: Force,
    pub gate: Option<Arc<dyn Gate>>,
    pub spec: JobSpec,
    /// Said by every assertion.
    pub what: String,
}

impl Case {
    pub fn new(spec: &JobSpec, what: impl Into<String>) -> Self {
        Self::of(spec, what, Manner::default())
    }

    /// Its steps do not know afterwards what they did.
    pub fn ignorant(spec: &JobSpec, what: impl Into<String>) -> Self {
        Self::of(spec, what, Manner { ignorant: true, ..Manner::default() })
    }

    /// Its steps stop when they are cancelled.
    pub fn obedient(spec: &JobSpec, what: impl Into<String>) -> Self {
        Self::of(spec, what, Manner { obedient: true, ..Manner::default() })
    }

    fn of(spec: &JobSpec, what: impl Into<String>, manner: Manner) -> Self {
        let (world, trouble) = (Arc::<Mutex<World>>::default(), Arc::<Mutex<_>>::default());
        let commit = spec.commit_point().map(|at| spec.steps[at].name.clone());
        let before = &spec.steps[..spec.commit_point().unwrap_or(0)];
        let before_commit = before.iter().map(|s| s.name.clone()).collect();
        let (seen, planned) = (world.clone(), trouble.clone());
        let fake: Arc<dyn Step> =
            Arc::new(Fake { world: seen, trouble: planned, manner, commit, before_commit });
        let steps = spec.steps.iter().map(|s| (s.kind.clone(), fake.clone())).collect();
        Self {
            world,
            journal: Arc::default(),
            trouble,
            steps: Arc::new(steps),
            force: Force::default(),
            gate: None,
            spec: spec.clone(),
            what: what.into(),
        }
    }

    #[must_use]
    pub fn with(
        self,
        step: usize,
        action: Action,
        class: FaultClass,
        times: u32,
        effect: bool,
    ) -> Self {
        let step = self.spec.steps[step].name.clone();
        let trouble = Trouble { step, action, class, times, effect, refusal: false };
        self.trouble.lock().unwrap().push(trouble);
        self
    }

    /// The step refuses for good, so often.
    #[must_use]
    pub fn refusing(self, step: usize, times: u32) -> Self {
        let case = self.with(step, Action::Execute, FaultClass::Fenced, times, false);
        if let Some(last) = case.trouble.lock().unwrap().last_mut() {
            last.refusal = true;
        }
        case
    }

    #[must_use]
    pub fn crashing(self, write: usize, durable: bool) -> Self {
        *self.journal.crash_at.lock().unwrap() = Some((write, durable));
        self
    }

    /// From one start of the controller to its end or crash.
    pub async fn once(&self, abort: Abort) -> Result<JobPhase, Fault> {
        let (told, mut seen) = mpsc::channel(64);
        tokio::spawn(async move { while seen.recv().await.is_some() {} });
        let (steps, journal) = (self.steps.clone(), self.journal.clone());
        let runner = Runner::recover(self.spec.clone(), steps, journal, told, abort).await?;
        let pause = self.journal.pause_at.lock().unwrap().as_ref().map(|(_, pause)| pause.clone());
        let runner = runner.heeding(self.force.clone()).pausing(pause.unwrap_or_default());
        match self.gate.clone() {
            Some(gate) => runner.gated(gate).run().await,
            None => runner.run().await,
        }
    }

    /// Runs to the end, restarting after a crash as a service manager would.
    pub async fn run(&self) -> JobPhase {
        let mut abort = match &*self.journal.abort_at.lock().unwrap() {
            Some((_, abort)) => abort.clone(),
            None => Abort::default(),
        };
        for _ in 0..3 {
            match self.once(abort).await {
                Ok(phase) => return self.checked(phase),
                Err(_) => *self.journal.crash_at.lock().unwrap() = None,
            }
            // A wish that was not journalled dies with the controller.
            abort = Abort::default();
            *self.journal.pause_at.lock().unwrap() = None;
        }
        panic!("{}: did not end after a restart", self.what);
    }

    /// Somebody mends what is wrong and resumes the job.
    pub async fn mended_and_resumed(&self) -> JobPhase {
        self.trouble.lock().unwrap().clear();
        self.resumed().await
    }

    pub async fn resumed(&self) -> JobPhase {
        self.journal.note(Event::Resumed { by: "the test".into() });
        self.run().await
    }

    /// The world agrees with how it ended.
    fn checked(&self, phase: JobPhase) -> JobPhase {
        let world = self.world.lock().unwrap();
        let what = &self.what;
        assert_eq!(world.violations, [] as [&str; 0], "{what}");
        match phase {
            JobPhase::Done => {
                // What a person vouched for may stand or not: its agent was not heard.
                let events = self.journal.events();
                let vouched = events.iter().find_map(|e| match e {
                    Event::CommitForced { step, .. } => Some(&self.spec.steps[*step].name),
                    _ => None,
                });
                let steps = self.spec.steps.iter().map(|s| &s.name);
                let missing = steps.filter(|s| Some(*s) != vouched && !world.standing.contains(*s));
                assert_eq!(missing.collect::<Vec<_>>(), [] as [&String; 0], "{what}");
            }
            JobPhase::Undone => assert_eq!(world.standing, BTreeSet::new(), "{what}"),
            JobPhase::Paused => {
                let stands = |name: &String| self.spec.steps.iter().find(|s| &s.name == name);
                let pausable = |name: &String| stands(name).is_some_and(|s| s.pausable);
                assert!(world.standing.iter().all(pausable), "{what}: {:?}", world.standing);
                assert!(world.undone.is_empty(), "{what}");
            }
            JobPhase::Stuck => {}
            other => panic!("{what}: ended as {other}"),
        }
        phase
    }

    /// How many attempts were executed, and undone, more than once.
    fn repeated(&self) -> (usize, usize) {
        let world = self.world.lock().unwrap();
        let more = |times: &HashMap<_, u32>| times.values().filter(|times| **times > 1).count();
        (more(&world.executed), more(&world.undone))
    }

    /// The effects that stand, by index.
    pub fn standing(&self) -> Vec<usize> {
        let world = self.world.lock().unwrap();
        let names = self.spec.steps.iter().enumerate();
        names.filter(|(_, s)| world.standing.contains(&s.name)).map(|(i, _)| i).collect()
    }
}

/// Where a step is, seen from the commit.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Place {
    Before,
    Commit,
    After,
}

fn place(spec: &JobSpec, step: usize) -> Place {
    match spec.commit_point() {
        _ if spec.steps.iter().take(step + 1).any(|s| s.forward_only) => Place::After,
        None => Place::Before,
        Some(at) if step < at => Place::Before,
        Some(at) if step == at => Place::Commit,
        Some(_) => Place::After,
    }
}

/// Each step fails in each way, execute and verify, a few times and always, with effect and
/// without.
pub async fn each_step_fails_in_each_way(spec: &JobSpec) {
    for step in 0..spec.steps.len() {
        for class in CLASSES {
            for (effect, action) in
                [(false, Action::Execute), (true, Action::Execute), (false, Action::Verify)]
            {
                for times in [1, 2, ALWAYS] {
                    let place = place(spec, step);
                    // A source that refuses the commit, by epoch, deadline or state, has not committed.
                    let commits = effect || action == Action::Verify;
                    if place == Place::Commit && class == FaultClass::Fenced && commits {
                        continue;
                    }
                    let what = format!(
                        "{action:?} of step {step} fails {times} times, {class}, effect {effect}"
                    );
                    let case = Case::new(spec, what).with(step, action, class, times, effect);
                    fails(&case, step, place, class, times).await;
                }
            }
        }
    }
}

async fn fails(case: &Case, step: usize, place: Place, class: FaultClass, times: u32) {
    use FaultClass::{Fenced, Transient};
    let transient = class == Transient;
    let expected = match place {
        Place::Before if transient && times < 5 => JobPhase::Done,
        Place::Before => JobPhase::Undone,
        Place::Commit if class == Fenced => JobPhase::Undone,
        Place::Commit | Place::After if times == ALWAYS => JobPhase::Stuck,
        Place::Commit | Place::After => JobPhase::Done,
    };
    let phase = case.run().await;
    assert_eq!(phase, expected, "{}", case.what);
    if phase == JobPhase::Stuck {
        let left = case.standing();
        assert!(left.len() >= step, "{}: what was done stays: {left:?}", case.what);
        assert!(left.len() <= step + 1, "{}: nothing was done past it: {left:?}", case.what);
        assert_eq!(case.mended_and_resumed().await, JobPhase::Done, "{}", case.what);
    }
}

/// Each undo fails in each way, after each step that can make a job turn back.
pub async fn each_undo_fails_in_each_way(spec: &JobSpec) {
    let turning = (0..spec.steps.len()).filter(|s| place(spec, *s) != Place::After);
    for failing in turning {
        for undoing in 0..=failing {
            for class in CLASSES {
                for (times, effect) in [(1, false), (1, true), (2, false), (9, true)] {
                    let what = format!(
                        "step {failing} is refused, undo of {undoing} fails {times} times, {class}, effect {effect}"
                    );
                    let case = Case::new(spec, what)
                        .with(failing, Action::Execute, FaultClass::Fenced, ALWAYS, false)
                        .with(undoing, Action::Undo, class, times, effect);
                    undo_fails(&case, undoing, class, times, effect).await;
                }
            }
        }
    }
}

async fn undo_fails(case: &Case, undoing: usize, class: FaultClass, times: u32, effect: bool) {
    let mut phase = case.run().await;
    if class == FaultClass::Transient {
        assert_eq!(phase, JobPhase::Undone, "{}", case.what);
        return;
    }
    for resumed in 1..=times {
        assert_eq!(phase, JobPhase::Stuck, "{}", case.what);
        let left = case.standing();
        let last = left.last().copied();
        // Those before it still stand; those after it are gone; it itself as the fault says.
        let own = (!effect && case.standing().contains(&undoing)).then_some(undoing);
        assert_eq!(last, own.or(undoing.checked_sub(1)), "{}: {left:?}", case.what);
        if resumed < times {
            // Resumed, and not mended.
            phase = case.resumed().await;
        }
    }
    assert_eq!(case.mended_and_resumed().await, JobPhase::Undone, "{}", case.what);
}

/// What was committed is refused for good: alone, after faults that were not final, while answers of any
/// undo are lost, while the controller crashes or an abort is wished at each write.
pub async fn refused_for_good_after_the_commit(spec: &JobSpec) {
    let Some(refusing) = spec.steps.iter().position(|s| s.may_void_commit) else { return };
    let commit = spec.commit_point().expect("without a commit there is none to make void");
    for ignorant in [false, true] {
        let case = |what: String| {
            let case = if ignorant { Case::ignorant(spec, what) } else { Case::new(spec, what) };
            case.with(refusing, Action::Execute, FaultClass::Transient, 2, false)
                .refusing(refusing, ALWAYS)
        };
        let plain = case("refused for good".into());
        assert_eq!(plain.run().await, JobPhase::Undone);
        let writes = plain.journal.events().len();
        for write in 1..=writes {
            for durable in [false, true] {
                let what = format!("refused for good, crash at write {write}, durable {durable}");
                let case = case(what).crashing(write, durable);
                assert_eq!(case.run().await, JobPhase::Undone, "{}", case.what);
            }
            let case = case(format!("refused for good, abort at write {write}"));
            *case.journal.abort_at.lock().unwrap() = Some((write, Abort::default()));
            assert_eq!(case.run().await, JobPhase::Undone, "{}", case.what);
        }
        for undoing in 0..=commit {
            for effect in [false, true] {
                let what = format!("refused for good, undo of {undoing} lost, effect {effect}");
                let case = case(what).with(undoing, Action::Undo, FaultClass::Transient, 3, effect);
                assert_eq!(case.run().await, JobPhase::Undone, "{}", case.what);
            }
            let case = case(format!("refused for good, undo of {undoing} cannot be"));
            let case = case.with(undoing, Action::Undo, FaultClass::Permanent, 1, false);
            assert_eq!(case.run().await, JobPhase::Stuck, "{}", case.what);
            assert_eq!(case.resumed().await, JobPhase::Undone, "{}", case.what);
        }
    }
}

/// The controller crashes at each write of the journal: alone, while a step is tried again, while
/// one is refused, with steps that know what they did and with steps that do not.
pub async fn crashes_at_each_write(spec: &JobSpec) {
    for ignorant in [false, true] {
        let mut repeated = (0, 0);
        for failing in std::iter::once(None).chain((0..spec.steps.len()).map(Some)) {
            for class in [FaultClass::Transient, FaultClass::Fenced, FaultClass::Permanent] {
                if failing.is_none() && class != FaultClass::Transient {
                    continue;
                }
                let (executes, undos) = crashes(spec, failing, class, ignorant).await;
                repeated = (repeated.0 + executes, repeated.1 + undos);
            }
        }
        assert!(repeated.0 > 0 || !ignorant, "executes are truly repeated");
        assert!(repeated.1 > 0 || spec.steps[0].forward_only, "undos are truly repeated");
    }
}

async fn crashes(
    spec: &JobSpec,
    failing: Option<usize>,
    class: FaultClass,
    ignorant: bool,
) -> (usize, usize) {
    let case = |what: String| {
        let case = if ignorant { Case::ignorant(spec, what) } else { Case::new(spec, what) };
        let times = if class == FaultClass::Transient { 2 } else { ALWAYS };
        match failing {
            Some(step) => case.with(step, Action::Execute, class, times, false),
            None => case,
        }
    };
    let plain = case("without a crash".into());
    let expected = plain.run().await;
    let writes = plain.journal.events().len();
    let mut repeated = (0, 0);
    for write in 1..=writes {
        for durable in [false, true] {
            let what = format!(
                "crash at write {write}, durable {durable}; step {failing:?} fails, {class}; ignorant {ignorant}"
            );
            let case = case(what).crashing(write, durable);
            let phase = case.run().await;
            assert_eq!(phase, expected, "{}", case.what);
            let (executes, undos) = case.repeated();
            repeated = (repeated.0 + executes, repeated.1 + undos);
            if phase == JobPhase::Stuck {
                assert_eq!(case.mended_and_resumed().await, JobPhase::Done, "{}", case.what);
            }
        }
    }
    repeated
}

/// The controller crashes while a step runs, and looking what became of it fails in each way.
pub async fn observing_fails_after_a_crash(spec: &JobSpec) {
    for step in 0..spec.steps.len() {
        // Two writes a step: the second says that it is done, and is lost.
        let done = 2 * step + 2;
        for class in CLASSES {
            let place = place(spec, step);
            // Its own recorded refusal means that it did not commit; here it did.
            if place == Place::Commit && class == FaultClass::Fenced {
                continue;
            }
            let what = format!("crash while step {step} runs, then observing it fails, {class}");
            let case = Case::new(spec, what).crashing(done, false).with(
                step,
                Action::Observe,
                class,
                1,
                false,
            );
            let expected = match place {
                Place::Before if class != FaultClass::Transient => JobPhase::Undone,
                _ => JobPhase::Done,
            };
            assert_eq!(case.run().await, expected, "{}", case.what);
        }
    }
}

/// Somebody aborts at each write, and the controller may crash at any later one.
pub async fn aborts_at_each_write(spec: &JobSpec) {
    let writes = 2 * spec.steps.len();
    let commit = spec.commit_point();
    for at in 1..=writes {
        for crash in (at..=writes).map(Some).chain([None]) {
            for durable in [false, true] {
                let what = format!("abort at write {at}, crash at {crash:?}, durable {durable}");
                let case = Case::new(spec, what);
                *case.journal.abort_at.lock().unwrap() = Some((at, Abort::default()));
                let case = match crash {
                    Some(write) => case.crashing(write, durable),
                    None => case,
                };
                let phase = case.run().await;
                let events = case.journal.events();
                let wished = events.iter().position(|e| matches!(e, Event::AbortRequested { .. }));
                let begun = |step| move |e: &Event| matches!(e, Event::StepStarted { step: s, .. } if *s == step);
                let last = commit.or(spec.steps.iter().position(|s| s.forward_only));
                let no_return = last.and_then(|step| events.iter().position(begun(step)));
                let all_done = (0..spec.steps.len()).all(|step| {
                    events
                        .iter()
                        .any(|e| matches!(e, Event::StepDone { step: s, .. } if *s == step))
                });
                let expected = match (wished, no_return) {
                    (None, _) => JobPhase::Done,
                    (Some(wished), Some(gone)) if gone < wished => JobPhase::Done,
                    (Some(_), None) if all_done => JobPhase::Done,
                    (Some(_), _) => JobPhase::Undone,
                };
                assert_eq!(phase, expected, "{}: {events:?}", case.what);
            }
        }
    }
}

/// Somebody pauses at each write, and the controller may crash at any later one. What is paused stays so
/// across restarts; resumed it ends as ever, aborted at the start.
pub async fn pauses_at_each_write(spec: &JobSpec) {
    let pausable = spec.steps.iter().take_while(|s| s.pausable).count();
    // Two a step, and the pause itself.
    let writes = 2 * spec.steps.len() + 1;
    for at in 1..=writes {
        for crash in (at..=writes).map(Some).chain([None]) {
            for (durable, obedient, aborted) in WAYS {
                let what = format!(
                    "pause at write {at}, crash at {crash:?}, durable {durable}, obedient {obedient}, aborted {aborted}"
                );
                let case = match obedient {
                    true => Case::obedient(spec, what),
                    false => Case::new(spec, what),
                };
                *case.journal.pause_at.lock().unwrap() = Some((at, Pause::default()));
                let case = match crash {
                    Some(write) => case.crashing(write, durable),
                    None => case,
                };
                let was_paused = paused_or_done(&case, aborted).await;
                // The last of these is that it is done.
                let expected = at <= 2 * pausable;
                assert!(was_paused == expected || crash.is_some(), "{}", case.what);
                assert!(!was_paused || expected, "{}", case.what);
            }
        }
    }
}

/// Whether a crashing write is durable, the steps are obedient, and the paused job is aborted.
const WAYS: [(bool, bool, bool); 6] = [
    (false, false, false),
    (true, false, false),
    (false, true, false),
    (true, true, false),
    (false, true, true),
    (true, false, true),
];

/// Whether it was paused: then it is also seen to the end.
async fn paused_or_done(case: &Case, aborted: bool) -> bool {
    let phase = case.run().await;
    let events = case.journal.events();
    if !events.iter().any(|e| matches!(e, Event::PauseRequested { .. })) {
        assert_eq!(phase, JobPhase::Done, "{}", case.what);
        return false;
    }
    assert_eq!(phase, JobPhase::Paused, "{}: {events:?}", case.what);
    *case.journal.pause_at.lock().unwrap() = None;
    assert_eq!(case.run().await, JobPhase::Paused, "{}, restarted", case.what);
    assert_eq!(case.journal.events(), events, "{}: nothing happened", case.what);
    if aborted {
        *case.journal.crash_at.lock().unwrap() = None;
        let abort = Abort::default();
        abort.request("the test");
        let phase = case.once(abort).await.unwrap();
        assert_eq!(case.checked(phase), JobPhase::Undone, "{}", case.what);
    } else {
        assert_eq!(case.resumed().await, JobPhase::Done, "{}", case.what);
        let events = case.journal.events();
        let resumed = events.iter().position(|e| matches!(e, Event::Resumed { .. }));
        let begun =
            |step| move |e: &Event| matches!(e, Event::StepStarted { step: s, .. } if *s == step);
        for (step, spec) in case.spec.steps.iter().enumerate().filter(|(_, s)| s.again_after_pause)
        {
            let last = events.iter().rposition(begun(step));
            assert!(last > resumed, "{}: {} is old: {events:?}", case.what, spec.name);
        }
    }
    true
}
