//! The checker's own proof: the same journey with an agent that does not fence. The checker must find what
//! that costs; if it does not, its silence after a real move says nothing. Two servers then serve the account:
//! these hosts are of no further use.

use anyhow::{Context, Result, ensure};

use ferry_failpoints::{BROKEN, Promise};

use crate::build;
use crate::checker::{self, Verdict, World};
use crate::fleet::Fleet;
use crate::host::Host;
use crate::journey::{self, THERE};
use crate::progress::say;
use crate::stage::Stage;

/// Moves without a fence, and asks the checker.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.account()?;
    let [client, transit] = [stage.host("client")?, stage.host("transit")?];
    let faulty = build::faulty(&stage.build)?;
    client.install_debs(&[faulty.deb("ferry-agent")?.to_owned()])?;
    let broken = format!("{BROKEN}/{}", Promise::Fence.name());
    client.sh(&format!("mkdir -p {BROKEN} && touch {broken}"))?;
    fleet.await_connected(&["client"])?;
    let verdict = judged(&fleet, transit).with_context(|| fleet.journals())?;
    say(format!("as it should, the checker says: {verdict}"));
    ensure!(verdict.acknowledged > 400, "too few visitors were answered: {verdict}");
    let of_the_site = verdict.lost.iter().filter(|lost| !lost.ends_with("the mailboxes")).count();
    let found = of_the_site + verdict.doubled.len() + verdict.misanswered.len();
    ensure!(found > 0, "the checker finds nothing wrong without a fence: {verdict}");
    ensure!(verdict.expect_clean().is_err(), "the checker accepts what it found: {verdict}");
    Ok(())
}

/// Moves the account while visitors come, and asks the checker what is there then.
fn judged(fleet: &Fleet<'_>, transit: &Host) -> Result<Verdict> {
    let mut visitors = journey::come(fleet, "unfenced")?;
    fleet.ferry(THERE.argv)?.ok()?;
    visitors.await_server(THERE.ends[1])?;
    visitors.await_answers(200)?;
    let log = visitors.stop()?;
    // Mail that is lost would be waited for; what visitors of the site lost is there at once.
    Ok(checker::check(&log, &World::read(transit)?, THERE.owners))
}
