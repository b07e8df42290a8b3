//! What visitors of a busy site on the source notice of a precopy: requests a second with a first copy under way
//! and without. Source and target have a core each; whoever visits shares the target's.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::pair::Pair;
use super::rows::Row;
use super::trees::{self, Scale};
use super::who::Who;
use super::{Measured, circumstances};
use crate::fleet::{self, Fleet};
use crate::lab::Lab;
use crate::progress::{Task, say};
use crate::{interrupt, journey, packages, run, sample, wait};

/// How often the site is visited with a copy and without.
const ROUNDS: u64 = 5;
/// How long it is visited each time.
const WINDOW: Duration = Duration::from_secs(20);
/// A copy is under way when it has made so many entries, within this time.
const UNDER_WAY: u64 = 200;
const AHEAD: Duration = Duration::from_secs(60);
/// With a copy it shall answer this part of the requests.
const GOAL: f64 = 0.9;
/// Visitors at a time: more than one core serves without delay.
const VISITORS: &str = "4";
/// File systems of trees: so many MiB, used as they are filled.
const IMAGE_MIB: u32 = 24 * 1024;
/// What is copied.
const TREE: &str = "mail";
/// The core of the source, and the one of the target and of visitors.
const CORES: [&str; 2] = ["0", "1"];
/// What copies.
const UNIT: &str = "bench-copies";

/// See the module.
pub fn measure(quick: bool) -> Result<Measured> {
    ensure!(thread::available_parallelism()?.get() >= 2, "this needs two cores");
    packages::ensure(&["wrk"])?;
    let (scale, window, rounds) = if quick {
        (Scale::QUICK, Duration::from_secs(5), 1)
    } else {
        (Scale::FULL, WINDOW, ROUNDS)
    };
    let (lab, build) = journey::fresh()?;
    let fleet = Fleet::install(&lab, &build)?;
    journey::prepare(&fleet)?;
    let pair = Pair::prepare(&lab, IMAGE_MIB)?;
    let task = Task::start(format!("making the tree {TREE}"));
    trees::mail(&pair.tree(TREE), scale)?;
    task.done();
    for (host, core) in [pair.source, pair.target].into_iter().zip(CORES) {
        host.pin(core)?;
    }
    let visit = visitors(&pair, window)?;
    // What the first ones wait for is not the copy's doing.
    requests(&lab, &visit, window)?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Each begins a round in turn.
        if round % 2 == 0 {
            without.push(alone(&pair, &lab, &visit, window)?);
        }
        with.push(copying(&pair, &lab, &visit, window)?);
        if round % 2 == 1 {
            without.push(alone(&pair, &lab, &visit, window)?);
        }
    }
    let row = Row::of("busy site during precopy".to_owned(), "requests", "1/s", &with);
    let row = row.no_less_than("no copy", &without, GOAL);
    let commands = [copy(), visit.join(" ")];
    let commands = commands.each_ref().map(String::as_str);
    Ok((vec![row], circumstances(&lab, &commands, quick)?))
}

/// As a precopy: calm, and with a change journal from the beginning.
fn copy() -> String {
    Who::Ferry.command(TREE).replacen(" --json ", " --json --calm --again ", 1)
}

/// The command of those who visit the site. They come first on their core: it is the site that is to be slow.
fn visitors(pair: &Pair<'_>, window: Duration) -> Result<Vec<String>> {
    let address = pair.source.spec().service_address.context("the source serves nothing")?;
    let (seconds, name) = (window.as_secs(), sample::DOMAIN);
    let first = ["taskset", "-c", CORES[1], "nice", "-n", "-10", "wrk", "-t", "1", "-c", VISITORS];
    let mut command = Vec::from(first.map(str::to_owned));
    command.extend(["-d".to_owned(), format!("{seconds}s")]);
    command.extend(["--timeout", "30s", "-H"].map(str::to_owned));
    command.extend([format!("Host: {name}"), format!("http://{address}/read")]);
    Ok(command)
}

/// Visits the site while nothing is copied.
fn alone(pair: &Pair<'_>, lab: &Lab, visit: &[String], window: Duration) -> Result<f64> {
    pair.fresh_target(&[TREE])?;
    pair.sync()?;
    let rate = requests(lab, visit, window)?;
    say(format!("without a copy: {rate:.1} requests a second"));
    Ok(rate)
}

/// Visits the site while a first copy is under way; if it ends before, there is another.
fn copying(pair: &Pair<'_>, lab: &Lab, visit: &[String], window: Duration) -> Result<f64> {
    pair.fresh_target(&[TREE])?;
    pair.sync()?;
    let (copy, empty) = (copy(), entries(pair)?);
    let copies = format!(
        "while :; do {copy} < /dev/null; ssh root@transit find /srv/target/{TREE} -mindepth 1 -delete; done"
    );
    let unit = format!("systemd-run -q --collect --unit {UNIT} bash -euc '{copies}'");
    pair.source.sh(&unit)?;
    let before = wait::until("the copy to be under way", AHEAD, || {
        let now = entries(pair)?;
        Ok((now >= empty + UNDER_WAY).then_some(now))
    })?;
    let rate = requests(lab, visit, window)?;
    let after = entries(pair)?;
    let is_on = pair.source.sh(&format!("systemctl is-active {UNIT}; systemctl stop {UNIT}"));
    is_on.with_context(|| format!("{copy} ended:\n{}", fleet::journal(pair.source, UNIT, 5)))?;
    ensure!(before != after, "nothing was copied while the site was visited");
    say(format!(
        "with a copy: {rate:.1} requests a second, from {before} to {after} entries copied meanwhile"
    ));
    Ok(rate)
}

/// How many entries the target's file system has.
fn entries(pair: &Pair<'_>) -> Result<u64> {
    let said = pair.target.sh("stat -f -c '%c %d' /srv/target")?;
    let (all, free) = said.trim().split_once(' ').context("no numbers of entries")?;
    Ok(all.parse::<u64>()?.saturating_sub(free.parse::<u64>()?))
}

/// Requests a second that the site answers.
fn requests(lab: &Lab, visit: &[String], window: Duration) -> Result<f64> {
    interrupt::check()?;
    let (program, arguments) = visit.split_first().context("nobody visits")?;
    let mut command = lab.netns_command(program);
    command.args(arguments);
    let said = run::capture(&mut command, &[], window + run::LIMIT)?.ok()?;
    rate(&said)
}

/// The rate that wrk tells. All must have been answered.
fn rate(said: &str) -> Result<f64> {
    for trouble in ["Non-2xx", "Socket errors"] {
        ensure!(!said.contains(trouble), "the site did not answer all:\n{said}");
    }
    let rate = said.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    let rate = rate.with_context(|| format!("no rate:\n{said}"))?.trim();
    rate.parse().with_context(|| format!("not a rate: {rate:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_counts_if_all_were_answered() {
        let said = "  2 threads\n  1202 requests in 10.01s, 1.00MB read\nRequests/sec:    120.08\n";
        assert!((rate(said).unwrap() - 120.08).abs() < 1e-9);
        let refused = format!("{said}  Non-2xx or 3xx responses: 3\n");
        assert!(rate(&refused).is_err());
        assert!(rate("").is_err());
    }
}
