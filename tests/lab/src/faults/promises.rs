//! Proof that the matrix finds what it is there to find: a promise is kept, and a case passes; it is broken,
//! and the same case fails, by the very check that is to find it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry_failpoints::{BROKEN, Promise};

use super::ground::Ground;
use super::play::{self, Trial};
use super::report;
use crate::build::{self, Build};
use crate::host::Host;
use crate::lab::Lab;
use crate::progress::say;
use crate::scenarios::restored;
use crate::spec::HostSpec;
use crate::stage::Stage;

/// Without its deadline a fence lasts as long as its controller is away.
pub fn deadline() -> Result<()> {
    let at = "client:ferry-agent:ledger.account.fenced.complete.after#1";
    let case = format!("move.cut-controller-source-long@{at}").parse()?;
    // Longer than a fence with a deadline may last, by far.
    let trial = Trial { case, lasts: Some(Duration::from_secs(75)) };
    proved(Promise::Deadline, &trial, &["was not served for"])
}

/// Without its guard a server that boots serves what was opened behind Ferry's back.
pub fn guard() -> Result<()> {
    let at = "client:ferry-agent:ledger.account.moved.settled.after#1";
    let case = format!("move.reopened-source@{at}").parse()?;
    let found = ["open at both ends", "one end alone to serve"];
    proved(Promise::Guard, &Trial { case, lasts: None }, &found)
}

/// Without a fence what is written while the account goes is lost.
pub fn fence() -> Result<()> {
    let at = "client:ferry-agent:ledger.account.fenced.complete.after#1";
    let case = format!("move.kill-controller@{at}").parse()?;
    proved(
        Promise::Fence,
        &Trial { case, lasts: None },
        &["lost:", "answered by the wrong server:"],
    )
}

/// Without epochs and generations an agent obeys a controller that was restored from an old backup, whose
/// job the world has overtaken.
pub fn epoch() -> Result<()> {
    let build = build::faulty(&Build::run()?)?;
    let mut stage = Stage { lab: Lab::fresh(&HostSpec::standard())?, build };
    restored::run(&mut stage).context("with the promise kept")?;
    break_it([stage.host("client")?, stage.host("transit")?], Promise::Epoch)?;
    let told =
        restored::run(&mut stage).err().map(|error| format!("{error:#}")).unwrap_or_default();
    let found = told.contains("a restored controller: was accepted");
    ensure!(found, "with the epoch broken it says: {told:?}");
    say(format!("as it should, it fails with the epoch broken: {}", report::short(&told)));
    Ok(())
}

fn proved(promise: Promise, trial: &Trial, words: &[&str]) -> Result<()> {
    let build = build::faulty(&Build::run()?)?;
    let mut ground = Ground::raise(&build, false)?;
    let kept = play::play(&mut ground, trial, &mut BTreeSet::new())?;
    ensure!(kept.wrong.is_empty(), "with the promise kept: {}", kept.wrong.join("; "));
    break_it(ground.servers()?, promise)?;
    let told = match play::play(&mut ground, trial, &mut BTreeSet::new()) {
        Ok(seen) => seen.wrong.join("; "),
        Err(error) => format!("{error:#}"),
    };
    let found = words.iter().any(|word| told.contains(word));
    ensure!(found, "with the {} broken the case says: {told:?}", promise.name());
    say(format!("as it should, the case fails with the {} broken: {told}", promise.name()));
    Ok(())
}

/// Breaks a promise on both servers: now, and before the guard at each boot.
fn break_it(servers: [&Host; 2], promise: Promise) -> Result<()> {
    let touch = format!("mkdir -p {BROKEN}; touch {BROKEN}/{}", promise.name());
    let unit = format!("[Service]\nExecStartPre=+/bin/sh -c '{touch}'\n");
    for server in servers {
        let path = "/etc/systemd/system/ferry-guard.service.d/broken.conf";
        server.write_file(path, 0o644, unit.as_bytes())?;
        // A host that loses its power keeps only what was synced.
        server.sh(&format!("{touch}; systemctl daemon-reload; sync")).context("breaking it")?;
    }
    Ok(())
}
