//! The target's web server breaks after the commit, before anything is opened there: the target refuses,
//! the source serves the account again without copying, and a second move succeeds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry_proto::view::JobPhase;

use crate::host::Host;
use crate::progress::say;
use crate::stage::Stage;
use crate::{answered, checker, journey, sample};

/// Breaks the web server's configuration while the target looks whether it can open: the second time
/// that the sites are rehearsed, the first being before the commit. Mends it once the refusal is recorded:
/// what was made for the account could not be removed else.
const SABOTAGE: &str = r#"
    rehearsal() { compgen -G '/etc/nginx/sites-enabled/*.rehearsal.conf' >/dev/null; }
    broken=/etc/nginx/sites-enabled/zz-broken.conf
    until rehearsal; do sleep 0.002; done
    while rehearsal; do sleep 0.002; done
    until rehearsal; do sleep 0.002; done
    echo 'no directive at all' > "$broken"
    until grep -aq '"is":"refused"' /var/lib/ferry/ledger; do sleep 0.02; done
    rm "$broken"
"#;
/// Its unit.
const UNIT: &str = "ferry-lab-sabotage";

/// Is refused, asks the checker, moves again, and asks it again.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.account_alone()?;
    let [client, transit] = [stage.host("client")?, stage.host("transit")?];
    let before = epoch(&fleet, "client")?;
    sabotage(transit)?;
    let mut visitors = journey::few_come(&fleet, "open-refused")?;
    let said = fleet.ferry(journey::THERE.argv)?;
    let job = fleet.last_job(sample::ACCOUNT)?;
    let told = || format!("{}; {}; {}", job.advice, said.error_text(), fleet.journals());
    ensure!(job.phase == JobPhase::Undone, "the refused move is {}: {}", job.phase, told());
    let refusal = job.refused.clone().with_context(told)?;
    ensure!(said.status.code() == Some(5), "ferry ended with {:?}", said.status);
    say(format!("as it should be: {}", job.advice));
    ensure!(refusal.epoch.0 == before + 1, "{refusal:?}, and it was at epoch {before}");
    ensure!(epoch(&fleet, "client")? == before + 2, "client is not at epoch {}", before + 2);
    let standings = fleet.standings(sample::ACCOUNT)?;
    ensure!(standings == [("client".to_owned(), "serving".to_owned())], "{standings:?}");
    visitors.await_answers(200)?;
    let log = visitors.log()?;
    let verdict = checker::check(&log, &journey::settled(&fleet, client, &log)?, &["client"]);
    verdict.expect_clean()?;
    answered::expect(&log, &[&job])?;
    say(format!("refused, and checked on client: {verdict}"));

    fleet.ferry(journey::THERE.argv)?.ok().with_context(|| fleet.journals())?;
    visitors.await_server("transit")?;
    visitors.await_answers(200)?;
    let log = visitors.stop()?;
    let world = journey::settled(&fleet, transit, &log)?;
    checker::check(&log, &world, journey::THERE.owners).expect_clean()
}

/// Starts the sabotage, and returns when it watches.
fn sabotage(transit: &Host) -> Result<()> {
    let limit = format!("RuntimeMaxSec={}", Duration::from_secs(600).as_secs());
    let argv = ["systemd-run", "--collect", "--unit", UNIT, "-p", &limit, "bash", "-c", SABOTAGE];
    transit.exec(&argv).map(drop)
}

/// The epoch at which a server says that it has the account.
fn epoch(fleet: &crate::fleet::Fleet<'_>, server: &str) -> Result<u64> {
    let document = fleet.json(&["account", "list"])?;
    let rows = document["accounts"].as_array().cloned().unwrap_or_default();
    let row = rows.iter().find(|r| r["name"] == sample::ACCOUNT && r["server"] == server);
    row.and_then(|r| r["epoch"].as_u64()).context("no epoch is told")
}
