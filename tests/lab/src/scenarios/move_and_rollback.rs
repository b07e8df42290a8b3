//! The main job: the account moves and comes back while visitors write.

use anyhow::{Context, Result, ensure};

use crate::journey::{self, Cron};
use crate::stage::Stage;

/// Goes there and back, and waits until cron has run at the new server.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.account()?;
    let journey = journey::run(&fleet, "move-and-rollback", Cron::Awaited, |argv| {
        fleet.ferry(argv).and_then(|o| o.ok().map(|_| ()))
    })?;
    ensure!(journey.legs.len() == 2, "not both ways were gone");
    for leg in &journey.legs {
        leg.expect_good().with_context(|| leg.job.direction.to_string())?;
    }
    super::doctor::both_clean("after a rollback", [stage.host("client")?, stage.host("transit")?])
}
