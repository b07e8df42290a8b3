//! A controller whose store came from an older backup is refused by the agents, whose world has gone on;
//! and the page that says what to do then is right.

use anyhow::{Context, Result};

use super::refused;
use crate::fleet::Fleet;
use crate::sample;
use crate::stage::Stage;

const STORE: &str = "/var/lib/ferry-controller";

/// As docs/what-if/controller-restored.md says.
const RAISE: &str = r#"sqlite3 /var/lib/ferry-controller/ferry.db \
    "UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE name = 'generation'""#;

/// Restores an old store, sees it refused, and raises it.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.account()?;
    with_stopped(&fleet, &format!("cp -a {STORE} {STORE}.old; {RAISE}"))?;
    plan(&fleet)?.ok().context("the raised controller")?;
    with_stopped(&fleet, &format!("rm -r {STORE}; mv {STORE}.old {STORE}"))?;
    refused("a restored controller", &plan(&fleet)?, &["generation", "has obeyed"])?;
    sample::visit(stage.host("client")?)?;
    with_stopped(&fleet, RAISE)?;
    plan(&fleet)?.ok().context("the restored controller, raised as the page says")?;
    Ok(())
}

/// A command that the agents must obey.
fn plan(fleet: &Fleet<'_>) -> Result<crate::run::Output> {
    fleet.ferry(&["move", sample::ACCOUNT, "--to", "transit", "--dry-run"])
}

/// Changes the store while the controller is stopped.
fn with_stopped(fleet: &Fleet<'_>, change: &str) -> Result<()> {
    let script =
        format!("systemctl stop ferry-controller\n{change}\nsystemctl start ferry-controller");
    fleet.controller().sh(&script)?;
    fleet.await_connected(&["client", "transit"])?;
    fleet.await_account(sample::ACCOUNT)
}
