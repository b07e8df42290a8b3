//! A revoked agent is cut off at once, told why, and no target; enrolled anew it is one again.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::refused;
use crate::stage::Stage;
use crate::{fleet, sample, wait};

/// How long a cut may take to show.
const SHOWN: Duration = Duration::from_secs(30);

/// Revokes the transit server, and follows the advice to use it again.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.account()?;
    let transit = stage.host("transit")?;
    fleet.ferry(&["server", "revoke", "transit"])?.ok()?;
    wait::until("the revoked agent to be cut off", SHOWN, || {
        Ok((!fleet.is_connected("transit")?).then_some(()))
    })?;
    transit.sh("systemctl restart ferry-agent")?;
    wait::until("the revoked agent to be told so", SHOWN, || {
        let said = fleet::journal(transit, "ferry-agent", 20).to_lowercase();
        Ok(said.contains("our certificate is revoked").then_some(()))
    })?;
    ensure!(!fleet.is_connected("transit")?, "a revoked agent came back");
    let argv = ["move", sample::ACCOUNT, "--to", "transit", "--yes"];
    let words = ["server transit is cut off", "ferry server add transit"];
    refused("a revoked target", &fleet.ferry(&argv)?, &words)?;
    sample::visit(stage.host("client")?)?;

    fleet.enrol(transit, "transit")?;
    fleet.await_connected(&["transit"])?;
    fleet.ferry(&["move", sample::ACCOUNT, "--to", "transit", "--dry-run"])?.ok()?;
    Ok(())
}
