//! What the scenarios play on: the hosts, booted once, and Ferry on them as far as a scenario needs it.
//!
//! Each asks for what it needs and finds it made, by an earlier scenario or now: so all of them run in
//! their order on one stage, and each runs by name. What is there is asked of the hosts, not remembered.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::build::Build;
use crate::exec::EXEC_LIMIT;
use crate::fleet::{self, Fleet};
use crate::host::Host;
use crate::lab::Lab;
use crate::progress::say;
use crate::spec::HostSpec;
use crate::{journey, sample};

/// The hosts and the packages for them.
#[derive(Debug)]
pub struct Stage {
    /// The four hosts.
    pub lab: Lab,
    /// Our packages.
    pub build: Build,
}

impl Stage {
    /// Boots all four hosts beside the build: afresh, or as they are if the lab is kept.
    pub fn set(keep: bool) -> Result<Stage> {
        let mut hosts = HostSpec::standard();
        hosts.push(HostSpec::old());
        let raise = if keep { Lab::up } else { Lab::fresh };
        let (build, mut lab) = Build::beside(|| raise(&hosts))?;
        if keep {
            lab.keep();
        }
        Ok(Stage { lab, build })
    }

    /// One of the hosts.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.lab.host(name)
    }

    /// The packages of the agent and the controller.
    pub fn debs(&self) -> Result<[&Path; 2]> {
        Ok([self.build.deb("ferry-agent")?, self.build.deb("ferry-controller")?])
    }

    /// The controller, installed.
    pub fn controller(&self) -> Result<Fleet<'_>> {
        let fleet = Fleet::of(&self.lab)?;
        if !has(fleet.controller(), "ferry-controller")? {
            fleet.install_controller(self.build.deb("ferry-controller")?)?;
        }
        Ok(fleet)
    }

    /// A host with the agent installed, which need not be enrolled.
    pub fn agent(&self, name: &str) -> Result<&Host> {
        let host = self.host(name)?;
        if !has(host, "ferry-agent")? {
            fleet::install_agent(host, self.build.deb("ferry-agent")?)?;
        }
        Ok(host)
    }

    /// The controller with these agents enrolled and connected.
    pub fn fleet(&self, names: &[&str]) -> Result<Fleet<'_>> {
        let fleet = self.controller()?;
        for name in names {
            let host = self.agent(name)?;
            if !fleet.is_connected(name)? {
                let role = if *name == "transit" { "transit" } else { "client" };
                fleet.enrol(host, role)?;
            }
        }
        fleet.await_connected(names)?;
        Ok(fleet)
    }

    /// The usual fleet, with the sample account served by the client server.
    pub fn account(&self) -> Result<Fleet<'_>> {
        let fleet = self.fleet(&["client", "transit"])?;
        if fleet.standings(sample::ACCOUNT)?.is_empty() {
            journey::prepare(&fleet)?;
        }
        let standings = fleet.standings(sample::ACCOUNT)?;
        let serves =
            |server: &str| standings.iter().any(|(s, how)| s == server && how == "serving");
        if serves("transit") {
            say("an earlier scenario left the account on transit: it goes back first");
            let back = fleet.ferry(&["rollback", sample::ACCOUNT, "--yes"])?;
            if !back.status.success() {
                // A finalized move is none to roll back.
                fleet.ferry(&["move", sample::ACCOUNT, "--to", "client", "--yes"])?.ok()?;
            }
        }
        ensure!(
            fleet.standings(sample::ACCOUNT)?.contains(&("client".into(), "serving".into())),
            "the account is not served by client: {standings:?}"
        );
        Ok(fleet)
    }

    /// The same, and nothing of the account on the transit server.
    pub fn account_alone(&self) -> Result<Fleet<'_>> {
        let fleet = self.account()?;
        if fleet.standings(sample::ACCOUNT)?.len() > 1 {
            say("an earlier scenario left a copy of the account on transit: it is erased first");
            fleet.ferry(&["finalize", sample::ACCOUNT, "--erase", "--yes"])?.ok()?;
        }
        Ok(fleet)
    }
}

/// Whether a host has one of our packages.
fn has(host: &Host, package: &str) -> Result<bool> {
    let argv = ["dpkg-query", "-W", "-f", "${db:Status-Abbrev}", package];
    let said = host.exec_with(&argv, &[], EXEC_LIMIT).context("asking dpkg")?;
    Ok(said.text().starts_with("ii"))
}
