//! Which cases there are: generated from what the programs did without faults, by one table of rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};

use super::fault::{ERRORS, Failing, Fault, Kind};
use super::journeys::Journey;
use super::point::Point;

/// One fault at one point of one journey.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Case {
    /// The journey.
    pub journey: Journey,
    /// What goes wrong.
    pub fault: Fault,
    /// Where.
    pub point: Point,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{}", self.journey, self.fault, self.point)
    }
}

impl FromStr for Case {
    type Err = Error;

    fn from_str(text: &str) -> Result<Case> {
        let strange = || format!("{text:?} is no case: JOURNEY.FAULT@HOST:PROGRAM:POINT#N is");
        let (what, point) = text.split_once('@').with_context(strange)?;
        let (journey, fault) = what.split_once('.').with_context(strange)?;
        Ok(Case { journey: journey.parse()?, fault: fault.parse()?, point: point.parse()? })
    }
}

/// At which points of a journey a kind of fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// Where an account's standing has just been recorded by an agent, each standing once for each agent,
    /// and just before the commit is: [`is_turning`].
    Turning,
    /// At one turning point out of so many: the next fault of the kind at the next of them.
    OneIn(usize),
    /// Just before the write of every second record, the other errors at the others, and of every record
    /// of how an account stands.
    Records,
    /// Where the source has just recorded that the account has moved, in a move: what is closed there and
    /// how it is opened behind Ferry's back depends on the server.
    Moved,
    /// Once a journey: it lasts from its beginning to its end.
    Once,
}

/// The rules. Killing the program that comes to a point is quick, and is done at every point: before and
/// after each record that it writes, and after each other change. (Before one is after the last: what is on
/// the disks is the same.) What strikes from outside or takes long is done at turning points, where the answer
/// to "who serves the account" changes; and of services, which have many ways to fail, each way at a few.
/// In the two journeys that repeat most of a move (an abort, two accounts at once) all but the first are
/// thinned further: see [`Journey::is_variation`].
fn rule(fault: Fault) -> Where {
    match fault {
        Fault::Kill(_) => Where::Turning,
        Fault::Power(_) | Fault::Cut(..) => Where::OneIn(2),
        Fault::Stop(_) | Fault::Reboot(_) | Fault::Full(..) => Where::OneIn(3),
        Fault::Service(_, _, Failing::Restarted | Failing::Killed) => Where::OneIn(5),
        Fault::Service(_, _, Failing::Dead) => Where::OneIn(7),
        Fault::Errno(_) => Where::Records,
        Fault::Reopened => Where::Moved,
        Fault::Clocks(_) => Where::Once,
    }
}

/// In variations a fault strikes at one turning point out of so many.
const VARIED: usize = 6;

/// Whether the answer to "who serves the account" changes here.
fn is_turning(point: &Point) -> bool {
    point.standing().is_some_and(|standing| !point.is_before() || standing == "moved")
        && point.nth == 1
}

/// How often a copy surely comes to what it comes to once a pass: how many passes it takes is for what is
/// written meanwhile to say.
const SURE_PASSES: u32 = 3;

/// Whether the next run of the journey comes here, too.
fn comes_again(point: &Point) -> bool {
    let once_a_pass = ["copied.kept.", "unsynced."];
    point.nth <= SURE_PASSES || !once_a_pass.iter().any(|name| point.name.starts_with(name))
}

/// All cases of a journey that went through these points.
pub fn generate(journey: Journey, trace: &[Point]) -> Vec<Case> {
    let trace: Vec<&Point> = trace.iter().filter(|p| comes_again(p)).collect();
    let turning: Vec<&Point> = trace.iter().copied().filter(|p| is_turning(p)).collect();
    let mut cases = BTreeSet::new();
    let mut add = |fault: Fault, point: &Point| {
        cases.insert(Case { journey, fault, point: point.clone() });
    };
    let own = |p: &&&Point| p.is_record() || !p.is_before();
    for point in trace.iter().filter(own).filter(|p| !journey.is_variation() || is_turning(p)) {
        if let Some(victim) = journey.program_at(point) {
            add(Fault::Kill(victim), point);
        }
    }
    for (index, fault) in Fault::all().into_iter().enumerate() {
        let rule = match rule(fault) {
            Where::Turning | Where::OneIn(_) if journey.is_variation() => Where::OneIn(VARIED),
            other => other,
        };
        match rule {
            Where::Turning => turning.iter().for_each(|p| add(fault, p)),
            Where::OneIn(step) => {
                turning.iter().skip(index % step).step_by(step).for_each(|p| add(fault, p));
            }
            Where::Records => trace
                .iter()
                .filter(|p| p.is_record() && p.is_before())
                .enumerate()
                .filter(|(nth, p)| {
                    let turn =
                        !journey.is_variation() && nth % ERRORS.len() == index % ERRORS.len();
                    turn || p.standing().is_some()
                })
                .for_each(|(_, p)| add(fault, p)),
            Where::Moved => turning
                .iter()
                .filter(|p| journey == Journey::Move && !p.is_before())
                .filter(|p| p.standing().is_some_and(|standing| standing.starts_with("moved")))
                .for_each(|p| add(fault, p)),
            Where::Once => turning.first().into_iter().for_each(|p| add(fault, p)),
        }
    }
    cases.into_iter().collect()
}

/// Numbers by chance, the same for the same seed on every machine (splitmix64).
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    /// From a seed.
    pub fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Brings things into another order.
    pub fn shuffle<T>(&mut self, things: &mut [T]) {
        for end in (1..things.len()).rev() {
            let other = usize::try_from(self.next() % (end as u64 + 1)).unwrap_or(0);
            things.swap(end, other);
        }
    }
}

/// Some of the cases, by chance, for about this time: each kind of fault and each journey at least once,
/// whatever time that takes, and then as many different faults as there is time for.
pub fn sample(cases: &[Case], seed: u64, time: Duration) -> Vec<Case> {
    let mut left: Vec<&Case> = cases.iter().collect();
    Chance::new(seed).shuffle(&mut left);
    let mut chosen: Vec<Case> = Vec::new();
    let take = |left: &mut Vec<&Case>, chosen: &mut Vec<Case>, index: usize| {
        chosen.push(left.remove(index).clone());
    };
    let kinds: BTreeSet<Kind> = cases.iter().map(|c| c.fault.kind()).collect();
    let journeys: BTreeSet<Journey> = cases.iter().map(|c| c.journey).collect();
    for kind in kinds {
        if let Some(index) = left.iter().position(|c| c.fault.kind() == kind) {
            take(&mut left, &mut chosen, index);
        }
    }
    for journey in journeys {
        let seen = chosen.iter().any(|c| c.journey == journey);
        if let Some(index) = left.iter().position(|c| !seen && c.journey == journey) {
            take(&mut left, &mut chosen, index);
        }
    }
    let cost = |chosen: &[Case]| chosen.iter().map(|c| c.fault.costs()).sum::<Duration>();
    while !left.is_empty() && cost(&chosen) < time {
        let mut often: BTreeMap<Fault, usize> = BTreeMap::new();
        chosen.iter().for_each(|c| *often.entry(c.fault).or_default() += 1);
        // Of those whose fault came least often the first: a stable minimum.
        let count = |case: &Case| often.get(&case.fault).copied().unwrap_or(0);
        let least = left.iter().map(|c| count(c)).min().unwrap_or(0);
        let index = left.iter().position(|c| count(c) == least).unwrap_or(0);
        take(&mut left, &mut chosen, index);
    }
    chosen
}

/// One part of several that together are all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which, from 1.
    pub index: usize,
    /// Of how many.
    pub of: usize,
}

impl Part {
    /// The cases of this part: neighbours go to different ones, so that all take about as long.
    pub fn of(self, cases: Vec<Case>) -> Vec<Case> {
        let mine = |index: usize| index % self.of == self.index - 1;
        cases.into_iter().enumerate().filter(|(i, _)| mine(*i)).map(|(_, case)| case).collect()
    }
}

impl FromStr for Part {
    type Err = Error;

    fn from_str(text: &str) -> Result<Part> {
        let (index, of) = text.split_once('/').context("a part is I/N, as in 1/4")?;
        let part = Part { index: index.parse()?, of: of.parse()? };
        ensure!(part.index >= 1 && part.index <= part.of, "there is no part {text}");
        Ok(part)
    }
}

/// How long these cases take, about.
pub fn cost(cases: &[Case]) -> Duration {
    cases.iter().map(|c| c.fault.costs()).sum()
}

#[cfg(test)]
mod tests {
    use super::super::fault::{DEADLINE, Role, Victim};
    use super::*;

    fn points(names: &[&str]) -> Vec<Point> {
        names.iter().map(|name| format!("{name}#1").parse().unwrap()).collect()
    }

    fn trace() -> Vec<Point> {
        points(&[
            "controller:ferry-controller:journal.step_started.fence.before",
            "controller:ferry-controller:journal.step_started.fence.after",
            "client:ferry-agent:ledger.account.fenced.before",
            "client:ferry-agent:ledger.account.fenced.after",
            "client:ferry-redirector:routes.save.before",
            "client:ferry-redirector:routes.save.after",
            "client:ferry-agent:ledger.account.moved.before",
            "client:ferry-agent:ledger.account.moved.after",
            "transit:ferry-agent:ledger.account.opening.before",
            "transit:ferry-agent:ledger.account.opening.after",
        ])
    }

    fn count(cases: &[Case], is: impl Fn(&Case) -> bool) -> usize {
        cases.iter().filter(|c| is(c)).count()
    }

    #[test]
    fn the_program_at_every_point_is_killed_there_and_the_others_at_turning_points() {
        let cases = generate(Journey::Move, &trace());
        for point in trace().into_iter().filter(|p| p.is_record() || !p.is_before()) {
            let victim = Journey::Move.program_at(&point).unwrap();
            let own = Case { journey: Journey::Move, fault: Fault::Kill(victim), point };
            assert!(cases.contains(&own), "{own}");
        }
        // Fenced, before and after moved, opening: four, and five programs to kill at each.
        let turning = |c: &Case| is_turning(&c.point) && c.fault.kind() == Kind::Kill;
        assert_eq!(count(&cases, turning), 4 * 5);
        assert_eq!(count(&cases, |c| c.fault == Fault::Power(Role::Source)), 2);
        // Before a change that is no record the disks are as they were after the last one.
        assert_eq!(count(&cases, |c| c.point.name == "routes.save.before"), 0);
    }

    #[test]
    fn every_record_fails_to_be_written_and_each_standing_with_each_error() {
        let cases = generate(Journey::Move, &trace());
        // Three standings with two errors, and one line of the journal with one.
        assert_eq!(count(&cases, |c| c.fault.kind() == Kind::Errno), 3 * 2 + 1);
        assert!(cases.iter().all(|c| c.fault.kind() != Kind::Errno || c.point.is_before()));
    }

    #[test]
    fn a_case_is_found_by_its_id() {
        for case in generate(Journey::Rollback, &trace()) {
            assert_eq!(case.to_string().parse::<Case>().unwrap(), case);
        }
        assert!("move.kill-controller".parse::<Case>().is_err());
    }

    #[test]
    fn a_new_write_is_a_new_case() {
        let mut longer = trace();
        longer.extend(points(&["client:ferry-agent:file./etc/new.after"]));
        let before = generate(Journey::Move, &trace()).len();
        assert_eq!(generate(Journey::Move, &longer).len(), before + 1);
    }

    #[test]
    fn a_point_that_another_run_may_not_come_to_is_no_case() {
        let kept = |nth| format!("client:ferry-agent:copied.kept.after#{nth}").parse().unwrap();
        let trace: Vec<Point> = (1..9).map(kept).collect();
        assert_eq!(generate(Journey::Move, &trace), generate(Journey::Move, &trace[..3]));
        assert_eq!(generate(Journey::Move, &trace).len(), 3);
    }

    #[test]
    fn a_sample_has_each_kind_and_each_journey_and_depends_on_the_seed_alone() {
        let mut cases = generate(Journey::Move, &trace());
        cases.extend(generate(Journey::Rollback, &trace()));
        let time = Duration::from_secs(600);
        let chosen = sample(&cases, 7, time);
        assert_eq!(chosen, sample(&cases, 7, time));
        assert_ne!(chosen, sample(&cases, 8, time));
        let kinds: BTreeSet<Kind> = chosen.iter().map(|c| c.fault.kind()).collect();
        assert_eq!(kinds, cases.iter().map(|c| c.fault.kind()).collect());
        assert_eq!(chosen.iter().map(|c| c.journey).collect::<BTreeSet<_>>().len(), 2);
        assert!(cost(&chosen) >= time && cost(&chosen) < time + DEADLINE * 4);
        // None is chosen twice, and all are, given the time.
        let all = sample(&cases, 7, Duration::MAX);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), cases.len());
    }

    #[test]
    fn the_parts_together_are_all() {
        let cases = generate(Journey::Move, &trace());
        let parts = (1..=3).map(|index| Part { index, of: 3 }.of(cases.clone()));
        let together: BTreeSet<Case> = parts.flatten().collect();
        assert_eq!(together.into_iter().collect::<Vec<_>>(), cases);
        assert!("0/3".parse::<Part>().is_err() && "4/3".parse::<Part>().is_err());
        assert_eq!("2/3".parse::<Part>().unwrap(), Part { index: 2, of: 3 });
    }

    #[test]
    fn variations_of_a_move_are_thinned() {
        let [all, thinned] = [Journey::Move, Journey::Two].map(|j| generate(j, &trace()).len());
        assert!(thinned * 3 < all * 2, "{thinned} of {all}");
        let roles = generate(Journey::Two, &trace());
        assert!(roles.iter().any(|c| matches!(c.fault, Fault::Kill(Victim::Controller))));
    }
}
