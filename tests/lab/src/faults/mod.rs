//! The fault matrix: whatever dies at whatever point, the account survives.
//!
//! The programs are built with failpoints, before and after each record that they write and each change
//! that they make. A journey without faults is recorded; from the points that it came to, cases are
//! generated ([`cases`]): a fault at a point. Each is played ([`play`]) on hosts that can lose their power
//! and their network while visitors come, and then everything is looked at: by the independent checker,
//! and by asking both ends directly who is open.

pub mod cases;
mod ears;
pub mod fault;
mod ground;
mod guests;
pub mod journeys;
pub mod lost_source;
mod play;
pub mod point;
mod probe;
pub mod promises;
mod report;
mod strike;

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::build::{self, Build};
use crate::checks::Counts;
use crate::progress::{Task, say};
use crate::visitors::now_us;
use crate::{interrupt, sample};
use cases::{Case, Part};
use fault::Role;
use ground::Ground;
use journeys::Journey;
use play::Trial;
use report::Table;

/// How long the sample of `cargo lab test faults` takes, about.
const SAMPLE: Duration = Duration::from_secs(15 * 60);
/// How long that in the ordinary run takes.
const SHORT: Duration = Duration::from_secs(6 * 60);
/// The seed, unless another is given: the same cases each time.
const SEED: u64 = 1;

/// Which cases are played.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// Of the scenario faults: the seed of the sample
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Of the scenario faults: only this part of the cases, as in 1/4
    #[arg(long, value_name = "I/N")]
    pub part: Option<Part>,
    /// Of the scenario faults: only this case; may be given several times
    #[arg(long = "case", value_name = "ID")]
    pub cases: Vec<Case>,
    /// Of the scenario faults: print the cases, and play none
    #[arg(long)]
    pub list: bool,
}

impl Options {
    /// Whether anything was said.
    pub fn is_given(&self) -> bool {
        self.seed.is_some() || self.part.is_some() || !self.cases.is_empty() || self.list
    }
}

/// The smaller sample, as a scenario.
pub fn short() -> Result<()> {
    let mut matrix = Matrix::raise(SEED, false)?;
    let all = matrix.generate()?;
    let played = matrix.play(cases::sample(&all, SEED, SHORT));
    matrix.table.print(all.len());
    played?;
    let counts = matrix.table.counts();
    ensure!(
        counts.failed == 0,
        "{} of {} cases failed",
        counts.failed,
        counts.failed + counts.passed
    );
    Ok(())
}

/// `cargo lab test faults`. Tells how many cases passed and failed.
pub fn run(options: &Options, all: bool, keep: bool) -> Result<Counts> {
    let seed = options.seed.unwrap_or(SEED);
    let mut matrix = Matrix::raise(seed, keep)?;
    if !options.cases.is_empty() {
        let played = matrix.play(options.cases.clone());
        matrix.table.print(0);
        return played.map(|()| matrix.table.counts());
    }
    let generated = matrix.generate()?;
    let count = generated.len();
    let mut chosen = if all { generated } else { cases::sample(&generated, seed, SAMPLE) };
    if let Some(part) = options.part {
        chosen = part.of(chosen);
    }
    let minutes = cases::cost(&chosen).as_secs() / 60;
    say(format!("{} of {count} cases, about {minutes} minutes; seed {seed}", chosen.len()));
    if options.list {
        chosen.iter().for_each(|case| println!("{case}"));
        return Ok(Counts::default());
    }
    // What was played is told also where the rest cannot be.
    let played = matrix.play(chosen);
    matrix.table.print(count);
    played.map(|()| matrix.table.counts())
}

/// The cases as they are played.
#[derive(Debug)]
struct Matrix {
    build: Build,
    ground: Option<Ground>,
    seed: u64,
    known: BTreeSet<String>,
    table: Table,
}

impl Matrix {
    fn raise(seed: u64, keep: bool) -> Result<Matrix> {
        let build = build::faulty(&Build::run()?)?;
        let ground = Some(Ground::raise(&build, keep)?);
        Ok(Matrix { build, ground, seed, known: BTreeSet::new(), table: Table::default() })
    }

    fn ground(&mut self) -> Result<&mut Ground> {
        if self.ground.is_none() {
            self.ground = Some(Ground::raise(&self.build, false)?);
        }
        self.ground.as_mut().context("there is none")
    }

    /// All cases: each journey is made without faults first.
    fn generate(&mut self) -> Result<Vec<Case>> {
        let mut all = Vec::new();
        for journey in journeys::ALL {
            let task = Task::start(format!("journey {journey} without faults"));
            let trace = self.ground()?.record(journey)?;
            task.done();
            let text: Vec<String> = trace.iter().map(|point| point.to_string()).collect();
            let place = report::place()?;
            fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
            fs::write(place.join(format!("{journey}.points")), text.join("\n"))?;
            all.extend(cases::generate(journey, &trace));
        }
        Ok(all)
    }

    /// Plays cases, in an order in which the account is where the next one begins as often as can be.
    fn play(&mut self, mut left: Vec<Case>) -> Result<()> {
        let (count, mut number) = (left.len(), 0);
        let mut at = Journey::Move.host(Role::Source);
        while !left.is_empty() {
            let next = left.iter().position(|case| case.journey.host(Role::Source) == at);
            let case = left.remove(next.unwrap_or(0));
            number += 1;
            at = self.play_one(case, &format!("{number}/{count}"))?;
        }
        Ok(())
    }

    /// Plays a case. Tells where the sample account is then.
    fn play_one(&mut self, case: Case, number: &str) -> Result<&'static str> {
        let (began, since) = (Instant::now(), now_us());
        let ground = match self.ground.take() {
            Some(ground) => ground,
            None => Ground::raise(&self.build, false)?,
        };
        let ground = self.ground.insert(ground);
        let trial = Trial { case, lasts: None };
        let result = play::play(ground, &trial, &mut self.known);
        interrupt::check()?;
        let passed = result.as_ref().is_ok_and(|seen| seen.wrong.is_empty());
        let unserved = result.as_ref().map_or(0.0, |seen| seen.unserved.as_secs_f64());
        let (verdict, seconds) =
            (if passed { "passed" } else { "FAILED" }, began.elapsed().as_secs());
        say(format!(
            "{number} {} {verdict} after {seconds} s; unserved {unserved:.1} s",
            trial.case
        ));
        self.table.count(&trial.case, &result);
        if !passed {
            report::failed(ground, &trial.case, &result, self.seed, since);
            if let Err(error) = ground.bring(Journey::Two) {
                let why = report::short(&format!("{error:#}"));
                say(format!("    these hosts are of no further use: {why}"));
                self.ground = None;
            }
            return Ok(Journey::Move.host(Role::Source));
        }
        // Where that cannot be told the next case finds out why.
        let at = ground.served(&sample::DEMO).unwrap_or_default();
        Ok(if at == "transit" { "transit" } else { "client" })
    }
}

/// Refuses options that belong to the scenario `faults` where it is not what runs.
pub fn only_with_faults(options: &Options, names: &[String]) -> Result<()> {
    if options.is_given() && names != ["faults"] {
        bail!("--seed, --part, --case and --list belong to `cargo lab test faults`");
    }
    Ok(())
}
