//! A controller whose store came from an older backup is refused by the agents, whose world has gone on;
//! and the page that says what to do then is right.

use anyhow::{Context, Result, ensure};
use ferry_proto::view::JobPhase;

use super::refused;
use crate::exec::EXEC_LIMIT;
use crate::fleet::Fleet;
use crate::sample;
use crate::stage::Stage;
use crate::wait;

const STORE: &str = "/var/lib/ferry-controller";
/// As docs/what-if/controller-restored.md says.
const ADOPT: &[&str] = &["runuser", "-u", "ferry-controller", "--", "ferry-controller", "adopt"];
const LIMIT: std::time::Duration = std::time::Duration::from_secs(180);

/// Keeps a store with a move under way, lets the world go on without it, sees it refused, and adopts it.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.account_alone()?;
    let controller = fleet.controller();
    // The backup: a move has begun, and is at its precopy or a little further.
    fleet.ferry(&["move", sample::ACCOUNT, "--to", "transit", "--yes", "--detach"])?.ok()?;
    controller.sh(&format!("systemctl stop ferry-controller; cp -a {STORE} {STORE}.old"))?;
    controller.sh("systemctl start ferry-controller")?;
    let job = fleet.last_job(sample::ACCOUNT)?.job;
    // The world goes on: the move ends and is rolled back, and a later generation is obeyed.
    wait::until("the move to end", LIMIT, || {
        Ok(fleet.last_job(sample::ACCOUNT)?.phase.has_ended().then_some(()))
    })?;
    fleet.ferry(&["rollback", sample::ACCOUNT, "--yes"])?.ok()?;
    adopted(&fleet)?;
    plan(&fleet)?.ok().context("the adopted controller")?;

    controller.sh("systemctl stop ferry-controller")?;
    controller
        .sh(&format!("rm -r {STORE}; mv {STORE}.old {STORE}; systemctl start ferry-controller"))?;
    fleet.await_connected(&["client", "transit"])?;
    refused("a restored controller", &plan(&fleet)?, &["overtaken", "generation", "has obeyed"])?;
    let status = fleet.ferry(&["status"])?;
    let said = format!("{}{}", status.text(), status.error_text());
    ensure!(said.contains("overtaken") && said.contains("does not go on"), "ferry status: {said}");
    sample::visit(stage.host("client")?)?;

    adopted(&fleet)?;
    let old = fleet.json(&["status", &job.to_string()])?;
    let phase = serde_json::to_value(JobPhase::Overtaken)?;
    ensure!(old["phase"] == phase, "the old store's job is not overtaken: {old}");
    plan(&fleet)?.ok().context("the restored controller, adopted as the page says")?;
    Ok(())
}

/// A command that the agents must obey.
fn plan(fleet: &Fleet<'_>) -> Result<crate::run::Output> {
    fleet.ferry(&["move", sample::ACCOUNT, "--to", "transit", "--dry-run"])
}

/// Makes the controller the one that agents obey.
fn adopted(fleet: &Fleet<'_>) -> Result<()> {
    let controller = fleet.controller();
    controller.sh("systemctl stop ferry-controller")?;
    let said = controller.exec_with(ADOPT, b"no other controller runs\n", EXEC_LIMIT)?.ok()?;
    ensure!(said.contains("This controller is of generation"), "adopt said: {said}");
    controller.sh("systemctl start ferry-controller")?;
    fleet.await_connected(&["client", "transit"])?;
    fleet.await_account(sample::ACCOUNT)
}
