//! The cases as they are played: on one lab, or on several side by side that take them from one queue.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

use super::cases::{self, Case};
use super::fault::Role;
use super::ground::Ground;
use super::journeys::{self, Journey};
use super::passed::Passed;
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

    /// All cases: each journey is made without faults first.
    pub fn generate(&mut self) -> Result<Vec<Case>> {
        let mut all = Vec::new();
        let ground = self.lanes.first_mut().and_then(|lane| lane.ground.as_mut());
        let ground = ground.context("there are no hosts")?;
        let place = report::place()?;
        fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
        for journey in journeys::ALL {
            let task = Task::start(format!("journey {journey} without faults, twice"));
            // How often a program comes to a point may depend on what happens at the same time: what it does
            // each time is what cases can count on.
            let before: BTreeSet<Point> = ground.record(journey)?.into_iter().collect();
            let mut trace = ground.record(journey)?;
            trace.retain(|point| before.contains(point));
            task.done();
            let text: Vec<String> = trace.iter().map(|point| point.to_string()).collect();
            fs::write(place.join(format!("{journey}.points")), text.join("\n"))?;
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

fn lock<'a, 'b>(work: &'a Mutex<Work<'b>>) -> MutexGuard<'a, Work<'b>> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Plays a case; again where its journey did not come to its point.
fn strike(ground: &mut Ground, trial: &Trial, known: &mut BTreeSet<String>) -> Result<Seen> {
    let mut misses = 0;
    loop {
        let result = play::play(ground, trial, known);
        if misses == MISSES || !result.as_ref().is_err_and(Missed::is_why) {
            return result;
        }
        misses += 1;
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
