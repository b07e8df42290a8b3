//! `cargo lab test`: the checks without hosts, then the scenarios on hosts, and one line that says how
//! many passed.

use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};

use crate::checks::{self, Counts};
use crate::image::{self, Image};
use crate::progress::say;
use crate::scenarios::{self, Play, Scenario};
use crate::stage::Stage;
use crate::{faults, interrupt, packages};

/// Every image that a scenario's hosts are made of.
const IMAGES: &[Image] = &[Image::Controller, Image::Debian11, Image::Debian12, Image::Debian13];

/// Runs the named scenarios; without names the checks and the ordinary scenarios, or all.
///
/// # Errors
/// If a name is unknown, or anything failed.
pub fn run(names: &[String], all: bool, keep: bool, options: &faults::Options) -> Result<()> {
    faults::only_with_faults(options, names)?;
    let mut wanted: Vec<&Scenario> = names.iter().map(|n| find(n)).collect::<Result<_>>()?;
    packages::check_machine()?;
    packages::ensure_needed()?;
    let mut counts = Counts::default();
    if names == ["faults"] {
        // Each case counts.
        return told(faults::run(options, all, keep)?);
    }
    if names.is_empty() {
        wanted = scenarios::ALL.iter().filter(|s| all || s.ordinary).collect();
        checks_beside_images(&mut counts)?;
    }
    let mut stage = None;
    for scenario in wanted {
        play(scenario, &mut stage, keep, &mut counts)?;
    }
    drop(stage);
    told(counts)
}

/// What failed, and the closing line.
fn told(counts: Counts) -> Result<()> {
    for failure in &counts.failures {
        println!("{failure}");
    }
    println!("{} passed, {} failed", counts.passed, counts.failed);
    if counts.failed > 0 { bail!("{} failed", counts.failed) } else { Ok(()) }
}

/// The checks keep the processors busy, the images the network.
fn checks_beside_images(counts: &mut Counts) -> Result<()> {
    thread::scope(|scope| {
        let images = scope.spawn(|| image::ensure(IMAGES));
        let checked = checks::run(counts);
        let made = images.join().map_err(|_| anyhow!("the thread that made images panicked"));
        checked?;
        // Those that are missing are tried again with the hosts, and fail there.
        if let Err(error) = made.and_then(|made| made) {
            say(format!("the images could not be made: {error:#}"));
        }
        interrupt::check()
    })
}

/// Runs one scenario, on the stage if it plays there.
fn play(
    scenario: &Scenario,
    stage: &mut Option<Stage>,
    keep: bool,
    counts: &mut Counts,
) -> Result<()> {
    say(format!("scenario {}: {}", scenario.name, scenario.shows));
    let started = Instant::now();
    let result = match scenario.play {
        Play::On(run) => on_stage(stage, keep, run),
        Play::Afresh(run) => {
            drop(stage.take());
            let done = on_stage(stage, keep, run);
            drop(stage.take());
            done
        }
        Play::Alone(run) => {
            drop(stage.take());
            run()
        }
    };
    interrupt::check()?;
    let has_failed = result.is_err();
    let verdict = if result.is_ok() { "passed" } else { "failed" };
    let seconds = started.elapsed().as_secs_f64();
    say(format!("scenario {} {verdict} after {seconds:.0} s", scenario.name));
    counts.count(scenario.name, result);
    if has_failed && !keep {
        // What a failed scenario leaves is no stage for the next, whose failure would say nothing.
        drop(stage.take());
    }
    Ok(())
}

fn on_stage(
    stage: &mut Option<Stage>,
    keep: bool,
    run: fn(&mut Stage) -> Result<()>,
) -> Result<()> {
    match stage {
        Some(stage) => run(stage),
        empty => run(empty.insert(Stage::set(keep)?)),
    }
}

fn find(name: &str) -> Result<&'static Scenario> {
    if let Some(scenario) = scenarios::ALL.iter().find(|s| s.name == name) {
        return Ok(scenario);
    }
    let known: Vec<_> = scenarios::ALL.iter().map(|s| s.name).collect();
    bail!("no scenario is called {name:?}; there are: {}", known.join(", "))
}
