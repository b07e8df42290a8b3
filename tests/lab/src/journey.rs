//! The account's journey: moved to the transit server and rolled back while visitors come, checked
//! after each. The demonstration shows it, a scenario asserts it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferry_proto::command::Receipt;
use ferry_proto::view::{JobPhase, JobView};

use crate::answered;
use crate::build::{self, Build};
use crate::checker::{self, Outage, Verdict, World};
use crate::fleet::Fleet;
use crate::host::Host;
use crate::interrupt;
use crate::lab::Lab;
use crate::progress::{Task, say};
use crate::sample::{self, Sample, Tree};
use crate::spec::HostSpec;
use crate::visitors::{Log, Visitors};
use crate::wait;

/// Visitors' requests a second: a slow machine, which does what three hosts do, serves so many without falling behind.
pub const RATE: u32 = 25;
/// So few that hosts serve them all although this machine is upgrading or restarting everything on them.
const FEW: u32 = 15;
/// Answers before and after each move.
const ANSWERS: usize = 400;

/// One move that was made and checked.
#[derive(Debug, Clone)]
pub struct Leg {
    /// The job, as the controller tells it.
    pub job: JobView,
    /// The outage as visitors saw it.
    pub outage: Outage,
    /// What the checker found after it.
    pub verdict: Verdict,
    /// Requests that failed since the leg before, each with its time and the step under way; not those that the grace
    /// of the fence cut off.
    pub failures: Vec<String>,
    /// What the old server did after the commit.
    pub stale: Vec<String>,
}

impl Leg {
    /// What the agents say that visitors felt.
    pub fn released(&self) -> Option<&Receipt> {
        let receipts = self.job.steps.iter().rev().filter_map(|step| step.receipt.as_ref());
        receipts.into_iter().find(|receipt| matches!(receipt, Receipt::Released { .. }))
    }

    /// Fails unless this leg cost nobody anything, and was seen to be a move under load.
    pub fn expect_good(&self) -> Result<()> {
        self.verdict.expect_clean()?;
        ensure!(self.stale.is_empty(), "{} went on: {:#?}", self.job.source, self.stale);
        ensure!(self.verdict.mails > 0, "no mail was accepted, so none was checked");
        let Some(Receipt::Released { outage_ms, held, .. }) = self.released() else {
            bail!("the job does not say what visitors felt");
        };
        ensure!(*held > 0, "nobody was held, so holding was not tried");
        ensure!(outage_ms.is_some(), "the agents measured no outage, and yet visitors were held");
        ensure!(
            self.failures.is_empty(),
            "{} requests failed for their visitors:\n{}",
            self.failures.len(),
            self.failures.iter().take(20).cloned().collect::<Vec<_>>().join("\n")
        );
        Ok(())
    }
}

/// What was seen on the way.
#[derive(Debug, Clone)]
pub struct Journey {
    /// There and back.
    pub legs: Vec<Leg>,
    /// How many facts about the home were compared at each end.
    pub facts: usize,
    /// Where the visitors' log is.
    pub log: PathBuf,
}

/// Where logs are kept that outlive the lab.
pub fn place() -> Result<PathBuf> {
    Ok(build::target_dir()?.join("lab/visitors"))
}

/// Makes the sample account and waits until the controller knows it.
pub fn prepare(fleet: &Fleet<'_>) -> Result<()> {
    let task = Task::start("making the sample account on client");
    let client = fleet.lab().host("client")?;
    sample::create(client)?;
    // The agent looks for definitions once a minute, and when it starts.
    client.sh("systemctl restart ferry-agent")?;
    fleet.await_account(sample::ACCOUNT)?;
    fleet.await_connected(&["client"])?;
    task.done();
    Ok(())
}

/// Whether to wait until cron has run at the new server, which takes a minute or two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cron {
    /// Until the crontab is in force.
    InForce,
    /// Until it has run.
    Awaited,
}

/// One way, as an operator commands it.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// What `ferry` is told.
    pub argv: &'static [&'static str],
    /// The server that serves before and after.
    pub ends: [&'static str; 2],
    /// All owners so far.
    pub owners: &'static [&'static str],
}

/// To the transit server.
pub const THERE: Way = Way {
    argv: &["move", sample::ACCOUNT, "--to", "transit", "--yes"],
    ends: ["client", "transit"],
    owners: &["client", "transit"],
};

/// Back to the client server.
pub const BACK: Way = Way {
    argv: &["rollback", sample::ACCOUNT, "--yes"],
    ends: ["transit", "client"],
    owners: &["client", "transit", "client"],
};

/// Goes there and back. `ferry` runs a command of the operator's, and fails if that does.
pub fn run(
    fleet: &Fleet<'_>,
    name: &str,
    cron: Cron,
    ferry: impl Fn(&[&str]) -> Result<()>,
) -> Result<Journey> {
    let before = Snapshot::take(fleet.lab().host("client")?)?;
    let mut visitors = come(fleet, name)?;
    let mut legs = Vec::new();
    for way in [THERE, BACK] {
        let [from, there] = [fleet.lab().host(way.ends[0])?, fleet.lab().host(way.ends[1])?];
        let seen = visitors.log()?.visits.len();
        say(format!("ferry {}", way.argv.join(" ")));
        ferry(way.argv).with_context(|| fleet.journals())?;
        visitors.await_server(there.name()).with_context(|| fleet.journals())?;
        let left = World::read(from)?;
        visitors.await_answers(ANSWERS)?;
        let mut leg = check_leg(fleet, &visitors, there, way.owners, seen)?;
        before.expect_same(there)?;
        if cron == Cron::Awaited && there.name() == "transit" {
            await_cron(there)?;
        }
        leg.stale = stale(from, &left, &leg.job)?;
        legs.push(leg);
    }
    let client = fleet.lab().host("client")?;
    let log = visitors.stop()?;
    let verdict = checker::check(&log, &settled(fleet, client, &log)?, BACK.owners);
    say(format!("in the end: {verdict}"));
    if let Some(last) = legs.last_mut() {
        last.verdict = verdict;
    }
    Ok(Journey { legs, facts: before.tree.len(), log: place()?.join(format!("{name}.jsonl")) })
}

/// The same without the comparisons on the way, for measurements: the checker looks once, in the end.
pub fn there_and_back(
    fleet: &Fleet<'_>,
    name: &str,
    ferry: impl Fn(&[&str]) -> Result<()>,
) -> Result<Journey> {
    let mut visitors = come(fleet, name)?;
    let mut jobs = Vec::new();
    for way in [THERE, BACK] {
        ferry(way.argv).with_context(|| fleet.journals())?;
        visitors.await_server(way.ends[1])?;
        jobs.push(fleet.last_job(sample::ACCOUNT)?);
    }
    let log = visitors.stop()?;
    let world = settled(fleet, fleet.lab().host("client")?, &log)?;
    let verdict = checker::check(&log, &world, BACK.owners);
    let leg = |job: JobView| {
        let to = job.ended_unix_ms.unwrap_or(job.started_unix_ms) * 1000 + 1_000_000;
        let outage = checker::outage(&log, job.started_unix_ms * 1000, to);
        let failures = failures(&log, 0, &job);
        Leg { job, outage, verdict: verdict.clone(), failures, stale: Vec::new() }
    };
    let legs = jobs.into_iter().map(leg).collect();
    Ok(Journey { legs, facts: 0, log: place()?.join(format!("{name}.jsonl")) })
}

/// Visitors who have begun to come, all answered by the client server.
pub fn come(fleet: &Fleet<'_>, name: &str) -> Result<Visitors> {
    come_at(fleet, name, RATE, ANSWERS)
}

/// The same, but few: for what is no measure of how many a site can bear.
pub fn few_come(fleet: &Fleet<'_>, name: &str) -> Result<Visitors> {
    come_at(fleet, name, FEW, 100)
}

fn come_at(fleet: &Fleet<'_>, name: &str, rate: u32, answers: usize) -> Result<Visitors> {
    say(format!("visitors come to {} at {rate} requests a second", sample::DOMAIN));
    let client = fleet.lab().host("client")?;
    let mut visitors = Visitors::start(fleet.lab(), client, &place()?, name, rate)?;
    visitors.await_answers(answers)?;
    Ok(visitors)
}

/// What the server that stopped serving did after the commit, since it was looked at first.
fn stale(from: &Host, left: &World, job: &JobView) -> Result<Vec<String>> {
    let commit = job.steps.iter().find_map(|step| match &step.receipt {
        Some(Receipt::Committed(record)) => Some(record.committed_at_unix_ms),
        _ => None,
    });
    let commit = commit.context("the job does not say when it committed")?;
    let minute = from.sh(&format!("date -d @{} +%FT%H:%M", commit / 1000))?;
    Ok(World::read(from)?.since(left, commit * 1000, minute.trim()))
}

/// Requests that failed, after so many visits, and what was under way then.
fn failures(log: &Log, seen: usize, job: &JobView) -> Vec<String> {
    let since = log.visits.get(seen..).unwrap_or_default();
    answered::failed(since, job)
        .map(|v| {
            let ms = |us: i64| us / 1000 - job.started_unix_ms;
            format!(
                "    {:?} {:?}: from {} to {} ms of the job ({} to {})",
                v.kind,
                v.outcome,
                ms(v.began_us),
                ms(v.ended_us),
                step_at(job, v.began_us / 1000),
                step_at(job, v.ended_us / 1000)
            )
        })
        .collect()
}

/// The step under way at a time.
fn step_at(job: &JobView, at_unix_ms: i64) -> &str {
    let started = |step: &&ferry_proto::view::StepView| {
        step.started_unix_ms.is_some_and(|from| from <= at_unix_ms)
    };
    if job.ended_unix_ms.is_some_and(|end| end < at_unix_ms) {
        return "after it";
    }
    job.steps.iter().rfind(started).map_or("before it", |step| &step.name)
}

/// The world once all mail that was accepted has arrived, or could have.
///
/// What was accepted by the one server may wait there for the other's; a sender is not told, so it may
/// not be lost either. Postfix would try again in some minutes: it is asked to try now.
pub fn settled(fleet: &Fleet<'_>, host: &Host, log: &Log) -> Result<World> {
    settled_of(fleet, host, &sample::DEMO, log, Delivery::Whole)
}

/// Which mail counts as kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// What has been delivered.
    Whole,
    /// Also what lies in a Maildir's `tmp`. A server has lost its power: Postfix's virtual(8) syncs a message
    /// that it delivers, but not the directory to whose `new` it then links it, so that ext4 may have
    /// forgotten the link. The message is there, and with Ferry or without nobody sees it.
    OrCutShort,
}

/// The same of any account.
pub fn settled_of(
    fleet: &Fleet<'_>,
    host: &Host,
    account: &Sample,
    log: &Log,
    delivery: Delivery,
) -> Result<World> {
    const DELIVERY: Duration = Duration::from_secs(240);
    let accepted = log.visits.iter().filter(|v| !v.is_web() && v.is_acknowledged());
    let accepted: Vec<String> = accepted.map(|v| format!("{}@outside.example", v.id)).collect();
    let deadline = Instant::now() + DELIVERY;
    loop {
        for server in ["client", "transit"] {
            fleet.lab().host(server)?.exec(&["postqueue", "-f"])?;
        }
        let mut world = World::of(host, account)?;
        if delivery == Delivery::OrCutShort {
            let delivered: BTreeSet<String> = world.mail.iter().cloned().collect();
            let half = std::mem::take(&mut world.half_delivered);
            world.mail.extend(half.into_iter().filter(|id| !delivered.contains(id)));
        }
        // If they do not come, the checker says which.
        if accepted.iter().all(|id| world.mail.contains(id)) || Instant::now() > deadline {
            return Ok(world);
        }
        interrupt::check()?;
        thread::sleep(Duration::from_secs(1));
    }
}

/// Waits until cron has written a line on this host.
fn await_cron(host: &Host) -> Result<()> {
    const TWO_MINUTES_AND_A_BIT: Duration = Duration::from_secs(150);
    let task = Task::start(format!("waiting for cron on {}", host.name()));
    wait::until(&format!("cron to run on {}", host.name()), TWO_MINUTES_AND_A_BIT, || {
        let ran = World::read(host)?.cron.iter().any(|(_, server)| server == host.name());
        Ok(ran.then_some(()))
    })?;
    task.done();
    Ok(())
}

fn check_leg(
    fleet: &Fleet<'_>,
    visitors: &Visitors,
    there: &Host,
    owners: &[&str],
    seen: usize,
) -> Result<Leg> {
    let job = fleet.last_job(sample::ACCOUNT)?;
    ensure!(job.phase == JobPhase::Done, "the job is {}: {}", job.phase, job.advice);
    // First what was told, then what is kept: not the other way round while visitors write.
    let log = visitors.log()?;
    let verdict = checker::check(&log, &settled(fleet, there, &log)?, owners);
    let to = job.ended_unix_ms.unwrap_or(i64::MAX / 2000) * 1000;
    let outage = checker::outage(&log, job.started_unix_ms * 1000, to + 1_000_000);
    let failures = failures(&log, seen, &job);
    say(format!("checked on {}: {verdict}", there.name()));
    failures.iter().for_each(say);
    Ok(Leg { job, outage, verdict, failures, stale: Vec::new() })
}

/// What must be the same wherever the account is.
#[derive(Debug)]
struct Snapshot {
    tree: Tree,
    mailboxes: Vec<Mailbox>,
}

#[derive(Debug, PartialEq, Eq)]
struct Mailbox {
    name: &'static str,
    validity: String,
    uids: Vec<String>,
}

impl Mailbox {
    fn all(host: &Host) -> Result<Vec<Mailbox>> {
        let look = |name| {
            let validity = sample::uid_validity(host, name)?;
            Ok(Mailbox { name, validity, uids: sample::mailbox_uids(host, name)? })
        };
        sample::MAILBOXES.into_iter().map(look).collect()
    }
}

impl Snapshot {
    fn take(host: &Host) -> Result<Snapshot> {
        sample::check_kinds(host)?;
        Ok(Snapshot { tree: Tree::of(host)?, mailboxes: Mailbox::all(host)? })
    }

    fn expect_same(&self, there: &Host) -> Result<()> {
        let task = Task::start(format!("comparing files and mailboxes on {}", there.name()));
        sample::check_kinds(there)?;
        sample::await_crontab(there)?;
        self.tree.expect_same(&Tree::of(there)?, &format!("on {}", there.name()))?;
        for (before, now) in self.mailboxes.iter().zip(Mailbox::all(there)?) {
            // Mail has come since: what was there must be there, under the same numbers.
            ensure!(
                before.validity == now.validity && now.uids.starts_with(&before.uids),
                "mailbox {} on {} has other numbers: {before:?}, {now:?}",
                before.name,
                there.name()
            );
        }
        task.done();
        Ok(())
    }
}

/// Brings up the three hosts afresh with Ferry on them.
pub fn fresh() -> Result<(Lab, Build)> {
    let (build, lab) = Build::beside(|| Lab::fresh(&HostSpec::standard()))?;
    Ok((lab, build))
}
