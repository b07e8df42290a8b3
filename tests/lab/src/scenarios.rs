//! The scenarios: what must hold on real hosts.

use anyhow::{Context, Result, ensure};

use crate::fleet::Fleet;
use crate::journey;
use crate::lab::Lab;
use crate::selfcheck;
use crate::spec::HostSpec;

/// One scenario.
#[derive(Debug)]
pub struct Scenario {
    /// As `cargo lab test NAME` takes it.
    pub name: &'static str,
    /// What it shows, for people.
    pub shows: &'static str,
    /// Whether it belongs to the ordinary run.
    pub ordinary: bool,
    /// Runs it.
    pub run: fn() -> Result<()>,
}

/// All of them, in the order in which they run.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "lab",
        shows: "the lab's own promises, a Debian 11 host among them",
        ordinary: false,
        run: lab,
    },
    Scenario {
        name: "move-and-rollback",
        shows: "an account moves and comes back under visitors; nothing is lost or doubled",
        ordinary: true,
        run: move_and_rollback,
    },
];

fn lab() -> Result<()> {
    let mut wanted = HostSpec::standard();
    wanted.push(HostSpec::old());
    selfcheck::run(&Lab::up(&wanted)?)
}

fn move_and_rollback() -> Result<()> {
    let (lab, build) = journey::fresh()?;
    let fleet = Fleet::install(&lab, &build)?;
    journey::prepare(&fleet)?;
    let journey = journey::run(&fleet, "move-and-rollback", |argv| {
        fleet.ferry(argv).and_then(|o| o.ok().map(|_| ()))
    })?;
    ensure!(journey.legs.len() == 2, "not both ways were gone");
    for leg in &journey.legs {
        leg.verdict.expect_clean().with_context(|| leg.job.direction.to_string())?;
    }
    Ok(())
}
