//! One case: visitors come, the journey begins, the fault strikes where it is to, is mended; and then
//! everything is looked at.

use std::collections::BTreeSet;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use ferry_proto::view::JobPhase;

use super::cases::Case;
use super::ears::{Answer, Held};
use super::fault::{Fault, Role};
use super::ground::{ENDS, Ground, set_out, shown};
use super::guests::Guests;
use super::journeys::Journey;
use super::point::Point;
use super::probe::Ends;
use super::strike::Field;
use crate::checker;
use crate::host::Host;
use crate::interrupt;
use crate::journey::{self, Delivery};
use crate::sample::Sample;
use crate::visitors::now_us;
use crate::wait;

/// How long a journey may take to the point where the fault strikes.
const REACHES: Duration = Duration::from_secs(180);
/// How long after a journey's end something of it may still come to a point.
const LATER: Duration = Duration::from_secs(10);
/// How long what comes after a journey's end whoever is there may take.
const SOON: Duration = Duration::from_secs(3);
/// How often the ends are looked at while something is wrong.
const LOOKS: Duration = Duration::from_secs(3);

/// A case, and how it is played.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The case.
    pub case: Case,
    /// How long the fault lasts, if not as long as it usually does.
    pub lasts: Option<Duration>,
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// How long the account was not served at a time.
    pub unserved: Duration,
    /// How long the fault lasted: on a busy machine longer than it was to.
    pub lasted: Duration,
    /// Whether a person had to resume the job.
    pub resumed: bool,
    /// What was wrong.
    pub wrong: Vec<String>,
}

/// The journey came to its end, and not to the point: the fault has not struck, and nothing was tried.
#[derive(Debug)]
pub struct Missed(Point);

impl Missed {
    /// Of the point that it did not come to.
    pub fn of(point: Point) -> Missed {
        Missed(point)
    }

    /// Whether it is why a case could not be played.
    pub fn is_why(error: &Error) -> bool {
        error.chain().any(|cause| cause.is::<Missed>())
    }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the journey came to its end, and not to {}", self.0)
    }
}

impl std::error::Error for Missed {}

/// Plays a case. `known` are complaints of the checker that were told before: what is kept stays wrong.
///
/// # Errors
/// If it could not be played, or its end could not be seen.
pub fn play(ground: &mut Ground, trial: &Trial, known: &mut BTreeSet<String>) -> Result<Seen> {
    let case = &trial.case;
    ground
        .bring(case.journey)
        .and_then(|()| ground.tidy(case.journey))
        .context("before the case")?;
    ground.listen()?;
    let ground = &*ground;
    let field = Field { lab: ground.lab(), journey: case.journey };
    field.prepare(case.fault)?;
    let done = course(ground, &field, trial, known);
    // Whatever came of it: a fault that outlives its case would be everybody's.
    ground.ears.let_go();
    let mended = field.mend(case.fault);
    if matches!(case.fault, Fault::Clocks(_)) {
        // The commit's time is one that the host's files never had, and so Ferry does not erase what it left:
        // the account's next journey leaves it anew.
        mended.and_then(|()| ground.bring(Journey::Rollback)).and(done)
    } else {
        done.and_then(|seen| mended.map(|()| seen))
    }
}

fn course(
    ground: &Ground,
    field: &Field<'_>,
    trial: &Trial,
    known: &mut BTreeSet<String>,
) -> Result<Seen> {
    let case = &trial.case;
    let mut seen = Seen::default();
    let before = ground.jobs(case.journey);
    let mut guests = Guests::come(ground, case.journey)?;
    ground.ears.aim(aims(case));
    let since = now_us();
    let fleet = ground.fleet()?;
    let (struck, refused) = thread::scope(|scope| {
        let told = scope.spawn(|| set_out(&fleet, case.journey));
        let struck = reach(ground, case, &mut guests).and_then(|held| {
            let began = Instant::now();
            let done = held.map_or(Ok(()), |held| field.strike(case.fault, held));
            done.map(|()| (began, began.elapsed()))
        });
        // With a fault under way the operator may not be answered: the journey goes on all the same.
        match told.join() {
            Ok(Err(told)) => (struck.with_context(|| format!("{told:#}")), true),
            _ => (struck, false),
        }
    });
    let began;
    (began, seen.lasted) = struck.context("striking")?;
    guests.iter_mut().try_for_each(|guests| guests.come_back(ground))?;
    if let Some(lasts) = trial.lasts.or(case.fault.lasts()) {
        watch(ground, case, lasts, &mut seen)?;
        field.mend(case.fault).context("mending")?;
        seen.lasted = began.elapsed();
    }
    for account in case.journey.accounts() {
        let before = before.get(account.name);
        if refused && ground.never_began(account, before)? {
            let serves = ground.served(account)?;
            ensure!(
                serves == case.journey.host(Role::Source),
                "{serves} serves, and nothing began"
            );
        } else {
            end(ground, case, account, before, &mut seen)?;
        }
    }
    field.outlast(case.fault)?;
    for guests in &mut guests {
        guests.are_answered().with_context(|| format!("visitors of {}", guests.account.name))?;
    }
    for guests in guests {
        judge(ground, case, guests, since, known, &mut seen)?;
    }
    for server in ground.servers()? {
        examine(server, &mut seen)?;
    }
    Ok(seen)
}

/// What the ears listen for.
fn aims(case: &Case) -> Vec<(Point, Answer)> {
    let answer = match case.fault {
        Fault::Errno("EIO") => Answer::Errno(rustix::io::Errno::IO.raw_os_error()),
        Fault::Errno(_) => Answer::Errno(rustix::io::Errno::NOSPC.raw_os_error()),
        _ => Answer::Wait,
    };
    let abort = case.journey.abort_at().map(|point| (point, Answer::Wait));
    abort.into_iter().chain([(case.point.clone(), answer)]).collect()
}

/// Waits until a program waits at the case's point, or got its error there; asks for the abort on the
/// way, if the journey has one. What Ferry does after a journey's end only once nobody is on his way
/// through its redirector, it does when the visitors rest.
fn reach(ground: &Ground, case: &Case, guests: &mut [Guests]) -> Result<Option<Held>> {
    let mut deadline = Instant::now() + REACHES;
    let (mut ended, mut rests) = (false, None);
    loop {
        match ground.ears.held(Duration::from_millis(200)) {
            Some(held) if held.point == case.point => return Ok(Some(held)),
            Some(held) => {
                ground.ask_for_abort()?;
                held.go();
            }
            None if ground.ears.has_failed_one() => return Ok(None),
            None => {}
        }
        interrupt::check()?;
        let trace = ground.ears.trace();
        if !ended && ends(&trace) == case.journey.accounts().len() {
            ended = true;
            deadline = deadline.min(Instant::now() + LATER);
            rests = Some(Instant::now() + SOON);
        }
        if rests.is_some_and(|at| Instant::now() > at) {
            guests.iter_mut().try_for_each(Guests::rest)?;
            rests = None;
        }
        if Instant::now() > deadline {
            let last: Vec<String> = trace.iter().rev().take(5).map(|p| p.to_string()).collect();
            let last = format!("the last points: {}", last.join(", "));
            ensure!(ended, "neither {} was reached nor the journey's end; {last}", case.point);
            return Err(Missed::of(case.point.clone())).context(last);
        }
    }
}

/// How many jobs have ended.
fn ends(trace: &[Point]) -> usize {
    trace.iter().filter(|point| point.name == "journal.job_ended.after").count()
}

/// Looks at both ends while the fault lasts: never are both open.
fn watch(ground: &Ground, case: &Case, lasts: Duration, seen: &mut Seen) -> Result<()> {
    let end = Instant::now() + lasts;
    while Instant::now() < end {
        for account in case.journey.accounts() {
            never_both(ground, account, seen);
        }
        let next = end.min(Instant::now() + LOOKS);
        wait::until("time to pass", LOOKS * 2, || Ok((Instant::now() >= next).then_some(())))?;
    }
    Ok(())
}

/// Whether an account is open at both ends. One look is not enough: the two are not looked at in the same
/// instant, and the account may pass from one to the other in between.
fn never_both(ground: &Ground, account: &Sample, seen: &mut Seen) {
    // A host that is down, or whose services are, cannot be looked at: that is not what is asked here.
    let look = || ground.servers().and_then(|servers| Ends::look(servers, account)).ok();
    let both =
        |ends: &Ends| -> BTreeSet<String> { ends.both().into_iter().map(str::to_owned).collect() };
    let Some(first) = look().filter(|ends| !ends.both().is_empty()) else { return };
    if let Some(second) = look().filter(|ends| !both(ends).is_disjoint(&both(&first))) {
        seen.wrong.push(format!("{} is open at both ends: {second}", account.name));
    }
}

/// The journey ends for one account, and one end alone serves it.
fn end(
    ground: &Ground,
    case: &Case,
    account: &Sample,
    before: Option<&ferry_proto::ids::JobId>,
    seen: &mut Seen,
) -> Result<()> {
    never_both(ground, account, seen);
    let mut job = ground.ended(account, before, ENDS)?;
    if job.phase == JobPhase::Stuck {
        if !case.fault.may_stick() {
            seen.wrong.push(format!("stuck, for no reason that the design knows: {}", shown(&job)));
        }
        seen.resumed = true;
        job = ground.resume(account)?;
    }
    let serves = ground.served(account)?;
    let should = match job.phase {
        JobPhase::Done => case.journey.host(Role::Target),
        _ => case.journey.host(Role::Source),
    };
    if serves != should {
        seen.wrong.push(format!("{serves} serves {}, and yet {}", account.name, shown(&job)));
    }
    Ok(())
}

/// What Ferry's own doctor finds on a server.
fn examine(server: &Host, seen: &mut Seen) -> Result<()> {
    let said = server.exec(&["ferry-agent", "doctor"])?;
    if !said.status.success() {
        let text = format!("{}{}", said.text(), said.error_text());
        seen.wrong.push(format!("the doctor on {}: {}", server.name(), text.trim()));
    }
    Ok(())
}

/// What the checker says in the end, which believes nobody.
fn judge(
    ground: &Ground,
    case: &Case,
    guests: Guests,
    since: i64,
    known: &mut BTreeSet<String>,
    seen: &mut Seen,
) -> Result<()> {
    let (account, objects) = (guests.account, guests.objects.clone());
    let (log, outage) = guests.leave(since)?;
    let unserved = Duration::from_millis(u64::try_from(outage.gap_ms).unwrap_or(0));
    seen.unserved = seen.unserved.max(unserved);
    let most = case.fault.unserved_at_most(seen.lasted);
    if unserved > most {
        let most = most.as_secs();
        seen.wrong.push(format!(
            "{} was not served for {:.1} s; at most {most} s are allowed",
            account.name,
            unserved.as_secs_f64()
        ));
    }
    let serves = ground.served(account)?;
    let source = case.journey.host(Role::Source);
    let owners: Vec<&str> =
        if serves == source { vec![source] } else { vec![source, serves.as_str()] };
    let now = account.objects(ground.host(&serves)?)?;
    if now != objects {
        seen.wrong.push(format!(
            "the databases of {} on {serves} were {objects}, and are {now}",
            account.name
        ));
    }
    let delivery = match case.fault {
        Fault::Power(_) | Fault::Reopened => Delivery::OrCutShort,
        _ => Delivery::Whole,
    };
    let there = ground.host(&serves)?;
    let world = journey::settled_of(&ground.fleet()?, there, account, &log, delivery)?;
    let verdict = checker::check(&log, &world, &owners);
    ensure!(verdict.acknowledged > 0, "no visitor was answered, so nothing was checked");
    let complaints = [
        ("lost", &verdict.lost),
        ("doubled", &verdict.doubled),
        ("answered by the wrong server", &verdict.misanswered),
        ("cron ran twice in", &verdict.cron_doubled),
    ];
    for (what, list) in complaints {
        let new: Vec<&String> =
            list.iter().filter(|one| known.insert(format!("{what} {one}"))).collect();
        if let Some(first) = new.first() {
            seen.wrong.push(format!("{what}: {first}, and {} more", new.len() - 1));
        }
    }
    Ok(())
}
