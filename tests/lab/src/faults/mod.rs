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
mod matrix;
mod passed;
mod play;
pub mod point;
mod probe;
pub mod promises;
mod report;
mod strike;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::Args;

use crate::checks::Counts;
use crate::lab;
use crate::progress::say;
use cases::{Case, Part};
use matrix::Matrix;

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
    /// Of the scenario faults: with --all, leave out what has passed since the last run without --resume
    #[arg(long)]
    pub resume: bool,
    /// Of the scenario faults: leave out the cases that this file lists, as passed.txt of another run does
    #[arg(long, value_name = "FILE", conflicts_with = "cases")]
    pub without: Option<PathBuf>,
    /// Of the scenario faults: play on so many labs side by side
    #[arg(long, value_name = "N", value_parser = labs)]
    pub labs: Option<usize>,
    /// Of the scenario faults: print the cases, and play none
    #[arg(long)]
    pub list: bool,
}

impl Options {
    /// Whether anything was said.
    pub fn is_given(&self) -> bool {
        let Options { seed, part, cases, resume, without, labs, list } = self;
        let said = seed.is_some() || part.is_some() || !cases.is_empty() || labs.is_some();
        said || without.is_some() || *resume || *list
    }
}

fn labs(text: &str) -> Result<usize> {
    let number = text.parse()?;
    ensure!(lab::NUMBERS.contains(&number), "from 1 to {} labs can be", lab::NUMBERS.end());
    Ok(number)
}

/// The smaller sample, as a scenario.
pub fn short() -> Result<()> {
    let mut matrix = Matrix::raise(1, false)?;
    let all = matrix.generate(false)?;
    let table = matrix.play(cases::sample(&all, SEED, SHORT), SEED);
    table.print(all.len());
    let Counts { passed, failed, .. } = table.counts();
    ensure!(failed == 0, "{failed} of {} cases failed", failed + passed);
    table.ended()
}

/// `cargo lab test faults`. Tells how many cases passed and failed.
pub fn run(options: &Options, all: bool, keep: bool) -> Result<Counts> {
    let seed = options.seed.unwrap_or(SEED);
    let labs = options.labs.unwrap_or(1);
    ensure!(all || !options.resume, "--resume goes on with a run of --all: add that");
    ensure!(!keep || labs == 1, "with --keep one lab alone is played on: leave out --labs");
    let without = options.without.as_deref().map(passed::listed).transpose()?.unwrap_or_default();
    let mut matrix = Matrix::raise(labs, keep)?;
    let (mut chosen, mut count) = (options.cases.clone(), 0);
    if chosen.is_empty() {
        let generated = matrix.generate(options.resume)?;
        count = generated.len();
        // All of them in an order by chance: a run that is ended early has tried some of everything.
        let time = if all { Duration::MAX } else { SAMPLE };
        chosen = cases::sample(&generated, seed, time);
        if let Some(part) = options.part {
            chosen = part.of(chosen);
        }
        chosen.retain(|case| !without.contains(&case.to_string()));
        if all && !options.list {
            chosen = matrix.remember(chosen, options.resume)?;
        }
        let minutes = cases::cost(&chosen).as_secs() / 60 / labs as u64;
        say(format!("{} of {count} cases, about {minutes} minutes; seed {seed}", chosen.len()));
    }
    if options.list {
        chosen.iter().for_each(|case| println!("{case}"));
        return Ok(Counts::default());
    }
    let table = matrix.play(chosen, seed);
    table.print(count);
    // What was played is told also where the rest could not be.
    let counts = table.counts();
    table.ended().map(|()| counts)
}

/// Refuses options that belong to the scenario `faults` where it is not what runs.
pub fn only_with_faults(options: &Options, names: &[String]) -> Result<()> {
    if options.is_given() && names != ["faults"] {
        bail!(
            "--seed, --part, --case, --resume, --without, --labs and --list belong to `cargo lab test faults`"
        );
    }
    Ok(())
}
