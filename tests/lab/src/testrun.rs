//! `cargo lab test`: the checks without hosts, then the scenarios on hosts, and one line that says how
//! many passed.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::checks::{self, Counts};
use crate::progress::say;
use crate::scenarios::{self, Scenario};
use crate::{interrupt, packages};

/// Runs the named scenarios; without names the checks and the ordinary scenarios, or all.
///
/// # Errors
/// If a name is unknown, or anything failed.
pub fn run(names: &[String], all: bool) -> Result<()> {
    packages::check_machine()?;
    packages::ensure_needed()?;
    let mut counts = Counts::default();
    let wanted: Vec<&Scenario> = if names.is_empty() {
        checks::run(&mut counts)?;
        scenarios::ALL.iter().filter(|s| all || s.ordinary).collect()
    } else {
        names.iter().map(|name| find(name)).collect::<Result<_>>()?
    };
    for scenario in wanted {
        say(format!("scenario {}: {}", scenario.name, scenario.shows));
        let started = Instant::now();
        let result = (scenario.run)();
        interrupt::check()?;
        let verdict = if result.is_ok() { "passed" } else { "failed" };
        say(format!(
            "scenario {} {verdict} after {:.0} s",
            scenario.name,
            started.elapsed().as_secs_f64()
        ));
        counts.count(scenario.name, result);
    }
    println!("{} passed, {} failed", counts.passed, counts.failed);
    if counts.failed > 0 { bail!("{} failed", counts.failed) } else { Ok(()) }
}

fn find(name: &str) -> Result<&'static Scenario> {
    if let Some(scenario) = scenarios::ALL.iter().find(|s| s.name == name) {
        return Ok(scenario);
    }
    let known: Vec<_> = scenarios::ALL.iter().map(|s| s.name).collect();
    bail!("no scenario is called {name:?}; there are: {}", known.join(", "))
}
