//! The scenarios: what must hold on real hosts.

mod abort;
mod approved;
mod bad_moves;
mod bullseye;
mod discover;
mod doctor;
mod enrolment;
mod finalize;
mod hostile;
mod leaves_nothing;
mod move_and_rollback;
mod open_refused;
mod packages;
pub(crate) mod restored;
mod revoked;
mod several;
mod stays_closed;
mod unfenced;
mod upgrade;

pub(crate) use stays_closed::REOPEN;

use anyhow::{Result, ensure};

use crate::faults;
use crate::progress::say;
use crate::run::Output;
use crate::selfcheck;
use crate::stage::Stage;

/// How a scenario is run.
#[derive(Debug, Clone, Copy)]
pub enum Play {
    /// On the stage, which has what an earlier one left.
    On(fn(&mut Stage) -> Result<()>),
    /// On a stage of its own, for it leaves one that is of no use to others.
    Afresh(fn(&mut Stage) -> Result<()>),
    /// Without a lab: it makes its own.
    Alone(fn() -> Result<()>),
}

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
    pub play: Play,
}

const fn on(
    name: &'static str,
    shows: &'static str,
    run: fn(&mut Stage) -> Result<()>,
) -> Scenario {
    Scenario { name, shows, ordinary: true, play: Play::On(run) }
}

const fn afresh(
    name: &'static str,
    shows: &'static str,
    run: fn(&mut Stage) -> Result<()>,
) -> Scenario {
    Scenario { name, shows, ordinary: true, play: Play::Afresh(run) }
}

const fn alone(name: &'static str, shows: &'static str, run: fn() -> Result<()>) -> Scenario {
    Scenario { name, shows, ordinary: true, play: Play::Alone(run) }
}

/// Not in the ordinary run.
const fn by_name(scenario: Scenario) -> Scenario {
    Scenario { ordinary: false, ..scenario }
}

/// A test of the tests.
const fn proof(name: &'static str, shows: &'static str, run: fn() -> Result<()>) -> Scenario {
    by_name(alone(name, shows, run))
}

/// All of them, in the order in which they run: each may leave more of Ferry on the hosts, none less,
/// until the packages go.
pub const ALL: &[Scenario] = &[
    by_name(on("lab", "the lab's own promises; hosts are rebooted and cut off", lab)),
    on(
        "enrolment",
        "bad tokens and certificates are refused with a clear error, and change nothing",
        enrolment::run,
    ),
    on("bullseye", "the packages install and the agent enrols on Debian 11", bullseye::run),
    on(
        "bad-moves",
        "moves that cannot be are refused with a clear error, and change nothing",
        bad_moves::run,
    ),
    on("abort", "a move is aborted while it is fenced; every visitor is served", abort::run),
    on(
        "open-refused",
        "a target that cannot open after the commit refuses, and the source serves the account again",
        open_refused::run,
    ),
    on(
        "approved",
        "what an account may not have moves where support approved it, and nothing else in its place",
        approved::run,
    ),
    on(
        "move-and-rollback",
        "an account moves and comes back under visitors; nothing is lost or doubled",
        move_and_rollback::run,
    ),
    on(
        "stays-closed",
        "nothing that happens on a host opens an account that it must not serve",
        stays_closed::run,
    ),
    on(
        "several",
        "three accounts move at once in both directions, within the limits; nothing is lost or doubled",
        several::run,
    ),
    on(
        "upgrade",
        "everything is upgraded during a precopy, a redirect and a fence; nobody is refused",
        upgrade::run,
    ),
    on(
        "hostile",
        "an account whose owner is an attacker moves and comes back: nothing outside it is read, changed or run",
        hostile::run,
    ),
    on(
        "finalize",
        "a move is finalized at both ends, and what Ferry made is erased on request",
        finalize::run,
    ),
    on(
        "doctor",
        "the doctor finds nothing after a move, an abort, a rollback and an erasure, and all that is planted",
        doctor::run,
    ),
    on(
        "restored",
        "agents refuse a controller whose store came from an older backup, until it is adopted",
        restored::run,
    ),
    on("revoked", "a revoked agent is cut off at once, and told why", revoked::run),
    on(
        "packages",
        "upgrade, remove and purge are clean on 11, 12 and 13; lintian finds no error",
        packages::run,
    ),
    afresh(
        "discover",
        "accounts of a server set up by hand are proposed, reviewed, and moved as proposed",
        discover::run,
    ),
    afresh(
        "fence-disabled-is-found",
        "the checker finds what a move with an agent that does not fence loses",
        unfenced::run,
    ),
    alone(
        "faults",
        "whatever dies at whatever point, the account is served by one end with all that was acknowledged",
        faults::short,
    ),
    alone(
        "force-open",
        "a source is lost with the only word on its commit; the target is opened by force, and the source closes itself when it is back",
        faults::lost_source::run,
    ),
    proof(
        "without-fence",
        "a case of the fault matrix passes, and fails when fences close nothing",
        faults::promises::fence,
    ),
    proof(
        "without-deadline",
        "a case of the fault matrix passes, and fails when fences have no deadline",
        faults::promises::deadline,
    ),
    proof(
        "without-guard",
        "a case of the fault matrix passes, and fails when nothing guards the boot",
        faults::promises::guard,
    ),
    proof(
        "without-epoch",
        "the scenario restored passes, and fails when agents obey older epochs and generations",
        faults::promises::epoch,
    ),
    alone(
        "leaves-nothing",
        "neither a lab that goes down nor an interrupted or killed run leaves anything",
        leaves_nothing::run,
    ),
];

fn lab(stage: &mut Stage) -> Result<()> {
    selfcheck::run(&stage.lab)
}

/// The refusal must be one, and say why in words that a person can act on: all of `words`.
fn refused(what: &str, output: &Output, words: &[&str]) -> Result<()> {
    let said = format!("{}{}", output.text(), output.error_text());
    let lower = said.to_lowercase();
    ensure!(!output.status.success(), "{what}: was accepted: {said}");
    let missing: Vec<_> = words.iter().filter(|word| !lower.contains(**word)).collect();
    ensure!(missing.is_empty(), "{what}: the error does not say {missing:?}: {said}");
    ensure!(!lower.contains("panicked") && !lower.contains("bug"), "{what}: {said}");
    say(format!("refused as it should be: {what}"));
    Ok(())
}
