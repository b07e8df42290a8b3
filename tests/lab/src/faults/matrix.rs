//! The cases as they are played: on one lab, or on several side by side that take them from one queue.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

use super::cases::{self, Case};
use super::fault::Role;
use super::ground::Ground;
use super::journeys::{self, Journey};
use super::passed::{self, Passed};
use super::play::{self, Missed, Seen, Trial};
use super::point::Point;
use super::report::{self, Table};
use crate::build::{self, Build};
use crate::progress::{Task, say};
use crate::visitors::now_us;
use crate::{interrupt, lab, sample};

/// How often a case is played again whose journey did not come to its point.
const MISSES: usize = 2;

/// The labs, and the packages on them.
#[derive(Debug)]
pub struct Matrix {
    build: Build,
    lanes: Vec<Lane>,
    passed: Option<Passed>,
}

/// One of the labs.
#[derive(Debug)]
struct Lane {
    number: usize,
    ground: Option<Ground>,
    /// Complaints of the checker that were told before: what is kept on the hosts stays wrong.
    known: BTreeSet<String>,
}

/// What is left to do, and what came of the rest.
#[derive(Debug)]
struct Work<'a> {
    left: Vec<Case>,
    count: usize,
    seed: u64,
    table: Table,
    passed: &'a mut Option<Passed>,
}

impl Matrix {
    /// So many labs; the first of them stands now, the others when cases are played.
    pub fn raise(labs: usize, keep: bool) -> Result<Matrix> {
        let build = build::faulty(&Build::run()?)?;
        let lane = |number| Lane { number, ground: None, known: BTreeSet::new() };
        let mut lanes: Vec<Lane> = lab::NUMBERS.take(labs).map(lane).collect();
        let first = lanes.first_mut().context("there is no lab to play on")?;
        first.ground = Some(Ground::raise(&build, keep)?);
        Ok(Matrix { build, lanes, passed: None })
    }

    /// All cases: each journey is made without faults first, unless an earlier run with these packages has
    /// and is gone on with.
    pub fn generate(&mut self, resume: bool) -> Result<Vec<Case>> {
        let mut all = Vec::new();
        let ground = self.lanes.first_mut().and_then(|lane| lane.ground.as_mut());
        let ground = ground.context("there are no hosts")?;
        let (place, programs) = (report::place()?, passed::programs(&self.build)?);
        fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
        for journey in journeys::ALL {
            let path = place.join(format!("{journey}.points"));
            let known = if resume { recorded(&path, &programs) } else { None };
            let trace = match known {
                Some(trace) => trace,
                None => record(ground, journey, &path, &programs)?,
            };
            all.extend(cases::generate(journey, &trace));
        }
        Ok(all)
    }

    /// From now on notes what passes. Of these cases, tells those that have not: all, or what an earlier
    /// run with these packages has left if that is gone on with.
    pub fn remember(&mut self, cases: Vec<Case>, resume: bool) -> Result<Vec<Case>> {
        let passed = Passed::open(&report::place()?, &self.build, resume)?;
        let left = cases.into_iter().filter(|case| !passed.contains(case)).collect();
        self.passed = Some(passed);
        Ok(left)
    }

    /// Plays cases on all labs.
    pub fn play(&mut self, left: Vec<Case>, seed: u64) -> Table {
        let (count, table) = (left.len(), Table::default());
        let work = Mutex::new(Work { left, count, seed, table, passed: &mut self.passed });
        let (build, shared) = (&self.build, &work);
        thread::scope(|scope| {
            let lanes: Vec<_> = self
                .lanes
                .iter_mut()
                .map(|lane| scope.spawn(move || lane.go(build, shared)))
                .collect();
            for lane in lanes {
                let ended = lane.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")));
                if let Err(error) = ended {
                    lock(shared).table.cut_short(error);
                }
            }
        });
        work.into_inner().unwrap_or_else(PoisonError::into_inner).table
    }
}

impl Work<'_> {
    /// The next case: one that begins where the account is, if there is one.
    fn next(&mut self, at: &str) -> Option<(Case, usize)> {
        let next = self.left.iter().position(|case| case.journey.host(Role::Source) == at);
        let index = next.or((!self.left.is_empty()).then_some(0))?;
        let case = self.left.remove(index);
        Some((case, self.count - self.left.len()))
    }

    fn count(&mut self, case: &Case, result: &Result<Seen>) -> Result<()> {
        self.table.count(case, result);
        match &mut self.passed {
            Some(passed) if is_passed(result) => passed.note(case),
            _ => Ok(()),
        }
    }
}

/// Makes a journey without faults, and writes down its points below the programs that came to them.
fn record(
    ground: &mut Ground,
    journey: Journey,
    path: &Path,
    programs: &str,
) -> Result<Vec<Point>> {
    let task = Task::start(format!("journey {journey} without faults, twice"));
    // How often a program comes to a point may depend on what happens at the same time: what it does
    // each time is what cases can count on.
    let before: BTreeSet<Point> = ground.record(journey)?.into_iter().collect();
    let mut trace = ground.record(journey)?;
    trace.retain(|point| before.contains(point));
    task.done();
    let mut text = vec![programs.to_owned()];
    text.extend(trace.iter().map(|point| point.to_string()));
    fs::write(path, text.join("\n")).with_context(|| format!("writing {}", path.display()))?;
    Ok(trace)
}

/// What [`record`] wrote down of the same programs.
fn recorded(path: &Path, programs: &str) -> Option<Vec<Point>> {
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.lines();
    let same = lines.next() == Some(programs);
    lines.map(|line| line.parse().ok()).collect::<Option<_>>().filter(|_| same)
}

fn lock<'a, 'b>(work: &'a Mutex<Work<'b>>) -> MutexGuard<'a, Work<'b>> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Plays a case; again where its journey did not come to its point: the other account may have been where it was
/// not when the journey was recorded, and so is brought home first.
fn strike(ground: &mut Ground, trial: &Trial, known: &mut BTreeSet<String>) -> Result<Seen> {
    let mut misses = 0;
    loop {
        let result = play::play(ground, trial, known);
        if misses == MISSES || !result.as_ref().is_err_and(Missed::is_why) {
            return result;
        }
        misses += 1;
        ground.bring(Journey::Two)?;
    }
}

fn is_passed(result: &Result<Seen>) -> bool {
    result.as_ref().is_ok_and(|seen| seen.wrong.is_empty())
}

impl Lane {
    fn go(&mut self, build: &Build, work: &Mutex<Work<'_>>) -> Result<()> {
        let mut at = Journey::Move.host(Role::Source);
        loop {
            // In a statement of its own: the lock is held no longer.
            let next = lock(work).next(at);
            let Some((case, number)) = next else { return Ok(()) };
            at = self.play_one(build, work, &case, number)?;
        }
    }

    /// Plays a case. Tells where the sample account is then.
    fn play_one(
        &mut self,
        build: &Build,
        work: &Mutex<Work<'_>>,
        case: &Case,
        number: usize,
    ) -> Result<&'static str> {
        let (began, since) = (Instant::now(), now_us());
        let ground = match self.ground.take() {
            Some(ground) => ground,
            None => Ground::raise_beside(build, self.number)?,
        };
        let ground = self.ground.insert(ground);
        let trial = Trial { case: case.clone(), lasts: None };
        let result = strike(ground, &trial, &mut self.known);
        interrupt::check()?;
        let verdict = match &result {
            _ if is_passed(&result) => "passed",
            Err(error) if Missed::is_why(error) => "missed its point",
            _ => "FAILED",
        };
        let unserved = result.as_ref().map_or(0.0, |seen| seen.unserved.as_secs_f64());
        let seconds = began.elapsed().as_secs();
        let (count, seed) = {
            let mut work = lock(work);
            work.count(case, &result)?;
            (work.count, work.seed)
        };
        say(format!(
            "{number}/{count} {case} {verdict} after {seconds} s; unserved {unserved:.1} s"
        ));
        if is_passed(&result) {
            // Where that cannot be told the next case finds out why.
            let at = ground.served(&sample::DEMO).unwrap_or_default();
            return Ok(if at == "transit" { "transit" } else { "client" });
        }
        report::failed(ground, case, &result, seed, since);
        if let Err(error) = ground.bring(Journey::Two) {
            let why = report::short(&format!("{error:#}"));
            say(format!("    these hosts are of no further use: {why}"));
            self.ground = None;
        }
        Ok(Journey::Move.host(Role::Source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_taken_from_an_earlier_run_of_the_same_programs_alone() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("move.points");
        let points = ["client:ferry-agent:a.after#1", "transit:ferry-agent:b.before#2"];
        fs::write(&path, format!("abc\n{}", points.join("\n"))).unwrap();
        let read: Vec<String> =
            recorded(&path, "abc").unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(read, points);
        assert_eq!(recorded(&path, "def"), None);
        fs::write(&path, "abc\nhalf").unwrap();
        assert_eq!(recorded(&path, "abc"), None);
        assert_eq!(recorded(&place.path().join("two.points"), "abc"), None);
    }
}
