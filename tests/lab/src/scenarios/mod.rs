//! The scenarios: what must hold on real hosts.

mod bad_input;
mod bullseye;
mod leaves_nothing;
mod packages;
mod unfenced;

use anyhow::{Context, Result, ensure};

use crate::fleet::Fleet;
use crate::journey::{self, Cron};
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
    Scenario {
        name: "fence-disabled-is-found",
        shows: "the checker finds what a move by hand, without a fence, loses",
        ordinary: false,
        run: unfenced::run,
    },
    Scenario {
        name: "bad-input",
        shows: "bad tokens, certificates and moves are refused with a clear error, and change nothing",
        ordinary: false,
        run: bad_input::run,
    },
    Scenario {
        name: "bullseye",
        shows: "the packages install and the agent enrols on Debian 11",
        ordinary: false,
        run: bullseye::run,
    },
    Scenario {
        name: "packages",
        shows: "install, upgrade, remove and purge are clean; lintian finds no error",
        ordinary: false,
        run: packages::run,
    },
    Scenario {
        name: "leaves-nothing",
        shows: "neither a lab that goes down nor an interrupted run leaves anything",
        ordinary: false,
        run: leaves_nothing::run,
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
    let journey = journey::run(&fleet, "move-and-rollback", Cron::Awaited, |argv| {
        fleet.ferry(argv).and_then(|o| o.ok().map(|_| ()))
    })?;
    ensure!(journey.legs.len() == 2, "not both ways were gone");
    for leg in &journey.legs {
        leg.verdict.expect_clean().with_context(|| leg.job.direction.to_string())?;
    }
    Ok(())
}
