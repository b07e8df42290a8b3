//! The one window that no protocol closes: the source loses its power between its commit record and the
//! first word of it. The target is opened by force; then the source comes back after all. First one that has
//! committed; then one that has not, and takes the account back before it is told.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry_proto::command::Receipt;
use ferry_proto::view::{JobPhase, JobView};

use super::ears::Answer;
use super::fault::Role;
use super::ground::{ENDS, Ground, set_out, shown};
use super::guests::Guests;
use super::journeys::Journey;
use crate::build::{self, Build};
use crate::checker;
use crate::host::Host;
use crate::journey::{self, Delivery};
use crate::progress::say;
use crate::sample;
use crate::visitors::now_us;
use crate::wait;

/// Where the source's commit is recorded.
const RECORD: &str = "client:ferry-agent:ledger.account.moved";
/// How long a move may take until then.
const REACHES: Duration = Duration::from_secs(180);
const JOURNEY: Journey = Journey::Move;

/// Loses the source behind its record, and before it.
pub fn run() -> Result<()> {
    let build = build::faulty(&Build::run()?)?;
    let mut ground = Ground::raise(&build, false)?;
    // What was installed a moment ago is not what is to be lost.
    ground.host(JOURNEY.host(Role::Source))?.sh("sync")?;
    committed(&mut ground).context("a source that has committed")?;
    taken_back(&mut ground).context("a source that has not")
}

/// Under visitors: the target serves all that was acknowledged, and the source stays closed.
fn committed(ground: &mut Ground) -> Result<()> {
    ground.bring(JOURNEY)?;
    ground.listen()?;
    let mut guests = Guests::come(ground, JOURNEY)?;
    let since = now_us();
    lose_source(ground, "after")?;
    force(ground)?;
    let job = comes_back(ground)?;
    let found = given_up(&job)?;
    ensure!(found.contains("had committed"), "the source says: {found}");
    for guests in &mut guests {
        guests.are_answered()?;
    }
    for guests in guests {
        let account = guests.account;
        let (log, _) = guests.leave(since)?;
        let fleet = ground.fleet()?;
        let transit = ground.host("transit")?;
        let world = journey::settled_of(&fleet, transit, account, &log, Delivery::Whole)?;
        let verdict = checker::check(&log, &world, &["client", "transit"]);
        verdict.expect_clean()?;
        say(format!("opened by force, and checked on transit: {verdict}"));
    }
    examined(ground)
}

/// Without visitors: what the source would take before it is told is lost by design, and named.
fn taken_back(ground: &mut Ground) -> Result<()> {
    ground.bring(JOURNEY)?;
    ground.listen()?;
    lose_source(ground, "before")?;
    force(ground)?;
    let job = comes_back(ground)?;
    let found = given_up(&job)?;
    ensure!(!found.contains("had committed"), "the source says: {found}");
    say(format!("a source that had not committed: {found}"));
    examined(ground)
}

/// The source loses its power at its commit record, before anybody has heard of it.
fn lose_source(ground: &Ground, when: &str) -> Result<()> {
    let point = format!("{RECORD}.{when}#1").parse()?;
    ground.ears.aim(vec![(point, Answer::Wait)]);
    set_out(&ground.fleet()?, JOURNEY)?;
    let held = ground.ears.held(REACHES).context("the commit was not reached")?;
    ground.lab().lose_power(ground.host(JOURNEY.host(Role::Source))?)?;
    drop(held);
    ground.ears.aim(Vec::new());
    wait::until("the commit to be unheard", ENDS, || {
        Ok(ground.job(&sample::DEMO).is_some_and(|job| job.commit_unheard).then_some(()))
    })?;
    let standings = ground.fleet()?.standings(sample::ACCOUNT)?;
    let at_client = standings.iter().find(|(server, _)| server == "client");
    ensure!(
        at_client.is_some_and(|(_, standing)| standing == "committed, unheard"),
        "{standings:?}"
    );
    Ok(())
}

/// Says that it is off: refused for another server's name, and then done.
fn force(ground: &Ground) -> Result<()> {
    let fleet = ground.fleet()?;
    let order = |off| fleet.ferry(&["force-open", sample::ACCOUNT, "--source-is-off", off]);
    let wrong = order("transit")?;
    ensure!(!wrong.status.success(), "it was opened on the word that transit is off");
    ensure!(wrong.error_text().contains("is client, not transit"), "{}", wrong.error_text());
    order("client")?.ok().with_context(|| fleet.journals())?;
    let standings = fleet.standings(sample::ACCOUNT)?;
    let serves = ("transit".to_owned(), "serving".to_owned());
    let lost = ("client".to_owned(), "lost; opened by force on transit".to_owned());
    ensure!(standings.contains(&serves) && standings.contains(&lost), "{standings:?}");
    Ok(())
}

/// The source boots after all, and closes itself.
fn comes_back(ground: &mut Ground) -> Result<JobView> {
    ground.lab().power_on(ground.host("client")?)?;
    ground.listen()?;
    let job = ground.ended(&sample::DEMO, None, ENDS)?;
    ensure!(job.phase == JobPhase::Done && job.forced.is_some(), "{}", shown(&job));
    let serves = ground.served(&sample::DEMO)?;
    ensure!(serves == "transit", "{serves} serves");
    Ok(job)
}

/// What the source says that it had done.
fn given_up(job: &JobView) -> Result<String> {
    let receipts = job.steps.iter().rev().filter_map(|step| step.receipt.as_ref());
    let mut found = receipts.filter(|receipt| matches!(receipt, Receipt::GivenUp { .. }));
    found.next().map(Receipt::in_words).with_context(|| shown(job))
}

/// Ferry's own doctor finds nothing on either server.
fn examined(ground: &Ground) -> Result<()> {
    let clean = |server: &Host| -> Result<()> {
        let said = server.exec(&["ferry-agent", "doctor"])?;
        let text = format!("{}{}", said.text(), said.error_text());
        ensure!(said.status.success(), "the doctor on {}: {}", server.name(), text.trim());
        Ok(())
    };
    ground.servers()?.into_iter().try_for_each(clean)
}
