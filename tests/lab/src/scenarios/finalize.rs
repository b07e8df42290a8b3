//! The end of a move: the old server no longer passes visitors on, and what Ferry made is erased when
//! that is asked, and only then.

use anyhow::{Context, Result, ensure};

use super::refused;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::sample;
use crate::stage::Stage;

/// Moves and finalizes, moves home and finalizes with `--erase`.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.account_alone()?;
    let [client, transit] = [stage.host("client")?, stage.host("transit")?];
    fleet.ferry(&["move", sample::ACCOUNT, "--to", "transit", "--yes"])?.ok()?;
    passes_on(client)?;
    let argv = ["finalize", sample::ACCOUNT, "--erase", "--yes"];
    refused("erasing what Ferry did not make", &fleet.ferry(&argv)?, &["does not erase"])?;
    fleet.ferry(&["finalize", sample::ACCOUNT, "--yes"])?.ok().context("finalizing")?;
    ensure!(passes_on(client).is_err(), "client passes visitors on after finalize");
    sample::visit(transit).context("the site on transit after finalize")?;
    let argv = ["rollback", sample::ACCOUNT, "--yes"];
    refused(
        "a rollback after finalize",
        &fleet.ferry(&argv)?,
        &["was finalized", "ferry move demo --to client"],
    )?;

    fleet.ferry(&["move", sample::ACCOUNT, "--to", "client", "--yes"])?.ok().context("home")?;
    erase(&fleet, transit)?;
    sample::visit(client).context("the site on client in the end")?;
    super::doctor::both_clean("after an erasure", [client, transit])
}

/// Finalizes with `--erase`, after which the server has nothing of the account.
pub(super) fn erase(fleet: &Fleet<'_>, made: &Host) -> Result<()> {
    fleet.ferry(&["finalize", sample::ACCOUNT, "--erase", "--yes"])?.ok().context("erasing")?;
    let left = made.sh("getent passwd demo || :; ls -d /home/demo 2>/dev/null || :")?;
    ensure!(left.trim().is_empty(), "erasing left on {}: {left}", made.name());
    Ok(())
}

/// Whether a visitor who comes to this server's service address is answered, by whomever.
fn passes_on(host: &Host) -> Result<()> {
    let address = host.spec().service_address.context("no service address")?;
    let visit =
        format!("curl -fsS -m 10 --resolve demo.example:80:{address} http://demo.example/read");
    host.sh(&visit).map(|_| ())
}
