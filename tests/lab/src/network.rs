//! The lab's network: one bridge in a network namespace that belongs to the lab alone.
//!
//! The namespace is kept by a file in the lab's own directory, not by a name that is known to
//! the whole machine. The bridge and everything plugged into it go with it. It is entered with
//! `nsenter`: `ip netns exec` would remount /sys, and systemd does not boot without its cgroups.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{mounts, run};

/// The bridge's name, within the namespace.
pub const BRIDGE: &str = "lab0";
/// The bridge's own hardware address. Without one it would take a port's, change it whenever
/// hosts come and go, and every host would remember a wrong one.
const BRIDGE_MAC: &str = "02:00:0a:4d:00:01";
/// Where visitors and checkers are.
pub const LAB_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The length of the network's prefix.
pub const PREFIX: u8 = 24;
/// The nftables table, on the bridge, that cuts hosts from each other.
const CUTS: &str = "cuts";

/// The namespace.
#[derive(Debug, Clone)]
pub struct Network {
    file: PathBuf,
}

impl Network {
    /// The namespace that is, or will be, kept by `file`.
    pub fn at(file: PathBuf) -> Network {
        Network { file }
    }

    /// The file that keeps the namespace, for `nsenter --net=FILE`.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Makes the namespace and the bridge, if they are not there.
    pub fn create(&self) -> Result<()> {
        if mounts::is_mounted(&self.file)? {
            return Ok(());
        }
        fs::write(&self.file, "").with_context(|| format!("making {}", self.file.display()))?;
        let script = format!(
            "ip link set lo up
             ip link add {BRIDGE} address {BRIDGE_MAC} type bridge
             ip addr add {LAB_ADDRESS}/{PREFIX} dev {BRIDGE}
             ip link set {BRIDGE} up
             nft add table bridge {CUTS}
             nft 'add chain bridge {CUTS} forward {{ type filter hook forward priority 0; }}'"
        );
        let mut command = Command::new("unshare");
        command.arg(format!("--net={}", self.file.display())).args(["sh", "-euc", &script]);
        run::check(&mut command).context("making the lab's network")?;
        Ok(())
    }

    /// A command that will run in the namespace, with this machine's own files.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.file.display())).arg("--").arg(program);
        command
    }

    /// Pulls a host's cable, or plugs it in again.
    pub fn set_link(&self, port: &str, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        run::check(self.command("ip").args(["link", "set", "dev", port, state]))?;
        Ok(())
    }

    /// The bridge's port that a machine of systemd-nspawn's is plugged into. nspawn shortens the
    /// name as it must, and keeps the full one as an alternative.
    pub fn port(&self, machine: &str) -> Result<String> {
        let full = format!("vb-{machine}");
        let shown = run::check(self.command("ip").args(["-br", "link", "show", "dev", &full]))
            .with_context(|| format!("{machine} is not plugged in"))?;
        let name = shown.split(['@', ' ']).next().unwrap_or_default();
        Ok(name.to_owned())
    }

    /// Removes a port that a dead machine's network namespace, which the kernel takes apart in
    /// its own time, still has.
    pub fn unplug(&self, machine: &str) -> Result<()> {
        if let Ok(port) = self.port(machine) {
            let removed = run::check(self.command("ip").args(["link", "delete", "dev", &port]));
            if self.port(machine).is_ok() {
                removed?;
            }
        }
        Ok(())
    }

    /// Drops everything between two ports, in both directions, whatever addresses they use.
    pub fn block(&self, one: &str, other: &str) -> Result<()> {
        for (from, to) in [(one, other), (other, one)] {
            let rule = format!("add rule bridge {CUTS} forward iifname {from} oifname {to} drop");
            run::check(self.command("nft").arg(rule))?;
        }
        Ok(())
    }

    /// Takes back every [`block`](Network::block).
    pub fn unblock_all(&self) -> Result<()> {
        run::check(self.command("nft").arg(format!("flush chain bridge {CUTS} forward")))?;
        Ok(())
    }
}
