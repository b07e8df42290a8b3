//! Three accounts move at once, in both directions, under visitors, within the limits of each server.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry_proto::view::{JobPhase, JobView, StepView};

use crate::fleet::Fleet;
use crate::host::Host;
use crate::journey::{self, Delivery};
use crate::progress::say;
use crate::sample::{DEMO, Sample};
use crate::stage::Stage;
use crate::visitors::{Log, Tour, Visitors, certificate};
use crate::{answered, checker, wait};

/// The two that are there for this only.
const OTHERS: [Sample; 2] = [Sample::small("alpha"), Sample::small("beta")];
/// How long all of them may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Visitors' requests a second, each.
const RATE: u32 = 10;
/// Moves from a server, to it, and inside their fence there.
const AT_ONCE: usize = 2;

/// An account on its way: what is commanded, and its owners so far.
struct Way {
    account: Sample,
    argv: &'static [&'static str],
    owners: [&'static str; 2],
}

const WAYS: [Way; 3] = [
    Way {
        account: DEMO,
        argv: &["move", "demo", "--to", "transit"],
        owners: ["client", "transit"],
    },
    Way {
        account: OTHERS[0],
        argv: &["move", "alpha", "--to", "transit"],
        owners: ["client", "transit"],
    },
    Way { account: OTHERS[1], argv: &["rollback", "beta"], owners: ["transit", "client"] },
];

/// Moves them, and asks the checker about each.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.account_alone()?;
    let client = stage.host("client")?;
    limit(&fleet)?;
    make(&fleet, client)?;
    fleet.ferry(&["move", "beta", "--to", "transit", "--yes"])?.ok()?;
    let went = all_go(&fleet, client);
    // Whether they went well or not: later scenarios expect nothing of them.
    let left = leave(&fleet, client);
    went.and(left)
}

fn all_go(fleet: &Fleet<'_>, client: &Host) -> Result<()> {
    let mut all = Vec::new();
    for way in &WAYS {
        all.push(come(fleet, client, &way.account)?);
    }
    for way in &WAYS {
        // The forecast is of a fence alone.
        let options = ["--yes", "--detach", "--deadline", "2m"];
        fleet.ferry(&[way.argv, &options].concat())?.ok()?;
    }
    let jobs = ended(fleet)?;
    for visitors in &mut all {
        visitors.await_answers(50)?;
    }
    for ((way, job), visitors) in WAYS.iter().zip(&jobs).zip(all) {
        check(fleet, way, job, &visitors.stop()?)
            .with_context(|| format!("account {}", way.account.name))
            .with_context(|| fleet.journals())?;
    }
    together(&jobs)
}

/// Two of everything, as an operator would set it.
fn limit(fleet: &Fleet<'_>) -> Result<()> {
    fleet.controller().sh(&format!(
        "sed -i 's/^\\(source\\|target\\|fence\\) = .*/\\1 = {AT_ONCE}/' /etc/ferry/controller.toml
         test \"$(grep -c ' = {AT_ONCE}$' /etc/ferry/controller.toml)\" = 3
         systemctl restart ferry-controller"
    ))?;
    fleet.await_connected(&["client", "transit"])
}

fn make(fleet: &Fleet<'_>, client: &Host) -> Result<()> {
    for account in OTHERS {
        // An earlier run has left its user and all that is the user's, and no definition.
        if client.exec(&["id", account.name])?.status.success() {
            account.define(client)?;
        } else {
            say(format!("making account {} on client", account.name));
            account.create(client)?;
        }
        fleet.await_account(account.name)?;
    }
    fleet.await_account(DEMO.name)
}

/// Visitors come to where the account was at first, whoever serves it now.
fn come(fleet: &Fleet<'_>, client: &Host, account: &Sample) -> Result<Visitors> {
    let certificate = certificate(client, account)?;
    let address = client.spec().service_address.context("the host has no service address")?;
    let tour = Tour { account, certificate: &certificate, address, rate: RATE };
    let name = format!("several-{}", account.name);
    let mut visitors = Visitors::send(fleet.lab(), &journey::place()?, &name, tour)?;
    visitors.await_answers(50)?;
    Ok(visitors)
}

fn ended(fleet: &Fleet<'_>) -> Result<Vec<JobView>> {
    let mut waited = Vec::new();
    wait::until("all moves to end", LIMIT, || {
        let jobs = WAYS.iter().map(|way| fleet.last_job(way.account.name));
        let jobs: Vec<JobView> = jobs.collect::<Result<_>>()?;
        for job in &jobs {
            let line = job.waiting_for.as_ref().map(|p| format!("{} waits for {p}", job.account));
            if let Some(line) = line.filter(|line| !waited.contains(line)) {
                say(&line);
                waited.push(line);
            }
        }
        Ok(jobs.iter().all(|job| job.phase.has_ended()).then_some(jobs))
    })
}

fn check(fleet: &Fleet<'_>, way: &Way, job: &JobView, log: &Log) -> Result<()> {
    ensure!(job.phase == JobPhase::Done, "the job is {}: {}", job.phase, job.advice);
    let there = fleet.lab().host(way.owners[1])?;
    let world = journey::settled_of(fleet, there, &way.account, log, Delivery::Whole)?;
    let verdict = checker::check(log, &world, &way.owners);
    say(format!("{}: {verdict}", way.account.name));
    verdict.expect_clean()?;
    answered::expect(log, &[job])?;
    ensure!(verdict.mails > 0, "no mail was accepted, so none was checked");
    Ok(())
}

/// They were under way at once, and no more than there may be inside their fence.
fn together(jobs: &[JobView]) -> Result<()> {
    let began = jobs.iter().map(|job| job.started_unix_ms).max();
    let first = jobs.iter().filter_map(|job| job.ended_unix_ms).min();
    ensure!(began < first, "the moves were not at once");
    let at = |job: &JobView, name: &str| -> Option<StepView> {
        job.steps.iter().find(|step| step.name == name).cloned()
    };
    // Both servers are the ends of all: so this is each one's count.
    let inside: Vec<(i64, i64)> = jobs
        .iter()
        .filter_map(|job| {
            let from = at(job, "arm")?.started_unix_ms?;
            Some((from, at(job, "commit")?.ended_unix_ms?))
        })
        .collect();
    ensure!(inside.len() == jobs.len(), "not all were inside their fence");
    for (moment, _) in &inside {
        let count = inside.iter().filter(|(from, to)| from <= moment && moment < to).count();
        ensure!(count <= AT_ONCE, "{count} were inside their fence at once: {inside:?}");
    }
    Ok(())
}

/// Home again, and nothing left of what others do not expect.
fn leave(fleet: &Fleet<'_>, client: &Host) -> Result<()> {
    for way in &WAYS[..2] {
        fleet.ferry(&["rollback", way.account.name, "--yes"])?.ok()?;
    }
    for account in OTHERS {
        fleet.ferry(&["finalize", account.name, "--erase", "--yes"])?.ok()?;
        client.sh(&format!("rm /etc/ferry/accounts.d/{}.toml", account.name))?;
    }
    Ok(())
}
