//! The demonstration: an account moves and comes back while visitors write, and a summary says what
//! that cost them.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use ferry_proto::command::Receipt;
use ferry_proto::view::StepView;

use crate::build::Build;
use crate::fleet::Fleet;
use crate::journey::{self, Cron, Journey, Leg};
use crate::lab::Lab;
use crate::progress::say;
use crate::sample;

/// Runs the demonstration. Fails if anything was lost, doubled or answered by the wrong server.
pub fn run(keep: bool) -> Result<()> {
    say("three Debian hosts, a real account, visitors; a move to the transit server and back");
    let (mut lab, build) = journey::fresh()?;
    let shown = show(&lab, &build);
    if keep {
        lab.keep();
        say("the lab stays up: `cargo lab shell client` (or transit, controller) enters a host, \
             `cargo lab down` takes it down");
    }
    shown
}

/// Runs the demonstration once more on the lab that is up, with what is installed and made there.
pub fn again() -> Result<()> {
    let lab = Lab::open()?;
    let fleet = Fleet::of(&lab)?;
    if !fleet.is_connected("client").unwrap_or(false) {
        let build = Build::run()?;
        Fleet::install(&lab, &build)?;
    }
    if lab.host("client")?.exec(&["id", sample::ACCOUNT])?.status.success() {
        fleet.await_account(sample::ACCOUNT)?;
    } else {
        journey::prepare(&fleet)?;
    }
    go(&fleet)
}

fn show(lab: &Lab, build: &Build) -> Result<()> {
    let fleet = Fleet::install(lab, build)?;
    journey::prepare(&fleet)?;
    go(&fleet)
}

fn go(fleet: &Fleet<'_>) -> Result<()> {
    let journey = journey::run(fleet, "demo", Cron::InForce, |argv| watched(fleet, argv))?;
    summarise(&journey);
    journey.legs.iter().try_for_each(Leg::expect_good)
}

/// Runs a command of the operator's with its output before our eyes.
fn watched(fleet: &Fleet<'_>, argv: &[&str]) -> Result<()> {
    let mut command = fleet.ferry_command(argv)?;
    let status = command.stdin(Stdio::null()).status().context("running ferry")?;
    ensure!(status.success(), "ferry {}: {status}", argv.join(" "));
    Ok(())
}

fn summarise(journey: &Journey) {
    println!();
    for leg in &journey.legs {
        println!(
            "{} of {}, {} to {}",
            leg.job.direction, leg.job.account, leg.job.source, leg.job.target
        );
        for step in &leg.job.steps {
            println!("    {:15} {:>9}  {}", step.name, took(step), did(step));
        }
        println!(
            "    {:15} {:>9}",
            "in all",
            seconds(leg.job.ended_unix_ms.map(|e| e - leg.job.started_unix_ms))
        );
        println!("    outage, agents:   {}", as_agents_saw(leg));
        println!(
            "    outage, visitors: {} ms ({} waited, {} failed; {} ms without any answer; slowest \
             answer {} ms)",
            leg.outage.outage_ms,
            leg.outage.waited,
            leg.outage.failed,
            leg.outage.gap_ms,
            leg.outage.slowest_ms
        );
        println!("    checked:          {}\n", leg.verdict);
    }
    let Some(last) = journey.legs.last() else { return };
    let (failed, retried) = (&last.verdict.failed, &last.verdict.retried);
    for (what, reasons) in
        [("failed", failed), ("asked again", retried), ("mail deferred", &last.verdict.deferred)]
    {
        for (why, n) in reasons {
            println!("    {what:14} {n:4} {why}");
        }
    }
    println!(
        "{} facts about the home were the same at both ends; visitors' log: {}",
        journey.facts,
        journey.log.display()
    );
    println!(
        "lost {}, doubled {}, answered by a server that did not own the account {}",
        last.verdict.lost.len(),
        last.verdict.doubled.len(),
        last.verdict.misanswered.len()
    );
}

fn took(step: &StepView) -> String {
    seconds(step.started_unix_ms.zip(step.ended_unix_ms).map(|(from, to)| to - from))
}

fn seconds(ms: Option<i64>) -> String {
    ms.map_or_else(|| "-".to_owned(), |ms| format!("{:.2} s", ms as f64 / 1000.0))
}

fn did(step: &StepView) -> String {
    match &step.receipt {
        Some(Receipt::Done { summary, .. }) => summary.clone(),
        Some(Receipt::Committed(record)) => format!("epoch {}", record.epoch),
        Some(Receipt::Released { held, .. }) => format!("{held} held connections passed on"),
        _ => String::new(),
    }
}

fn as_agents_saw(leg: &Leg) -> String {
    match leg.released() {
        Some(Receipt::Released { outage_ms, fenced_ms, held, refused, ended }) => {
            let outage =
                outage_ms.map_or_else(|| "nobody came".to_owned(), |ms| format!("{ms:.0} ms"));
            format!(
                "{outage} ({held} held, {refused} refused, {ended} ended; fenced for {fenced_ms:.0} ms)"
            )
        }
        _ => "not measured".to_owned(),
    }
}
