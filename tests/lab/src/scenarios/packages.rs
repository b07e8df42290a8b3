//! The packages' life: installed, upgraded, removed and purged, each cleanly, and what lintian says.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::build::Build;
use crate::exec::EXEC_LIMIT;
use crate::fleet::{self, Fleet};
use crate::host::Host;
use crate::lab::Lab;
use crate::progress::say;
use crate::spec::HostSpec;
use crate::{build, run};

/// Goes through both packages' lives.
pub fn run() -> Result<()> {
    let hosts = [HostSpec::controller(), HostSpec::client()];
    let (build, lab) = Build::beside(|| Lab::fresh(&hosts))?;
    let [agent, controller] = [build.deb("ferry-agent")?, build.deb("ferry-controller")?];
    for deb in [agent, controller] {
        lint(deb)?;
    }
    let [server, client] = [lab.host("controller")?, lab.host("client")?];
    let fleet = Fleet::of(&lab)?;
    fleet.install_controller(controller)?;
    fleet::install_agent(client, agent)?;
    fleet.enrol(client, "client")?;
    fleet.await_connected(&["client"])?;

    upgrade(client, agent, "ferry-agent")?;
    upgrade(server, controller, "ferry-controller")?;
    fleet.await_connected(&["client"])?;
    let config = String::from_utf8(client.read_file("/etc/ferry/agent.toml")?)?;
    ensure!(config.contains("\npeer_address"), "the upgrade lost the administrator's changes");

    leave(
        client,
        "ferry-agent",
        "ferry-agent ferry-redirector",
        "/var/lib/ferry /etc/ferry /run/ferry",
    )?;
    leave(server, "ferry-controller", "ferry-controller", "/var/lib/ferry-controller /etc/ferry")
}

fn lint(deb: &Path) -> Result<()> {
    let mut lintian = Command::new("lintian");
    lintian.args(["--fail-on", "error", "--no-cfg", "--allow-root"]).arg(deb);
    let said = run::check(&mut lintian).context("lintian")?;
    say(format!("lintian finds no error in {}; {} lines", deb.display(), said.lines().count()));
    Ok(())
}

/// The same package under a later version.
fn later(deb: &Path, name: &str) -> Result<PathBuf> {
    let place = build::target_dir()?.join("lab-build/later");
    let tree = place.join(name);
    if tree.exists() {
        std::fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))?;
    }
    std::fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    run::check(Command::new("dpkg-deb").arg("-R").arg(deb).arg(&tree))?;
    let control = tree.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control)?;
    let version = text.lines().find_map(|l| l.strip_prefix("Version: ")).context("no version")?;
    let text = text.replace(&format!("Version: {version}"), &format!("Version: {version}+later1"));
    std::fs::write(&control, text)?;
    let path = place.join(format!("{name}_later.deb"));
    run::check(Command::new("dpkg-deb").args(["--root-owner-group", "-Zgzip", "-b"]).arg(&tree).arg(&path))?;
    Ok(path)
}

fn upgrade(host: &Host, deb: &Path, name: &str) -> Result<()> {
    let unit = format!("systemctl show -p MainPID --value {name}");
    let before = host.sh(&unit)?;
    host.install_debs(&[later(deb, name)?])?;
    let version = host.sh(&format!("dpkg-query -W -f '${{Version}}' {name}"))?;
    ensure!(version.ends_with("+later1"), "{name} was not upgraded: {version}");
    host.sh(&format!("systemctl is-active {name}"))?;
    ensure!(host.sh(&unit)? != before, "{name} was not restarted by its upgrade");
    healthy(host, &format!("after upgrading {name}"))
}

/// Removes, then purges; nothing may stay but what the administrator made.
fn leave(host: &Host, name: &str, units: &str, purged: &str) -> Result<()> {
    let apt = |verb: &str| -> Result<()> {
        let argv = ["apt-get", verb, "-q", "-y", name];
        host.exec_with(&argv, &[], EXEC_LIMIT)?.ok().with_context(|| format!("apt-get {verb}"))?;
        Ok(())
    };
    apt("remove")?;
    for unit in units.split(' ') {
        let active = host.exec(&["systemctl", "is-active", unit])?;
        ensure!(!active.status.success(), "{unit} runs after {name} was removed");
    }
    ensure!(
        host.exec(&["test", "-d", "/etc/ferry"])?.status.success(),
        "remove took configuration"
    );
    healthy(host, &format!("after removing {name}"))?;
    apt("purge")?;
    let left = host.sh(&format!(
        "ls -d {purged} 2>/dev/null || :; ls -d /etc/systemd/system/*/ferry-* /lib/systemd/system/ferry-* \
         /usr/bin/ferry* 2>/dev/null || :; dpkg-query -W -f '${{Package}} ${{db:Status-Abbrev}}\n' 'ferry*' 2>/dev/null | grep -v ' un' || :"
    ))?;
    ensure!(left.trim().is_empty(), "purging {name} left: {left}");
    healthy(host, &format!("after purging {name}"))
}

fn healthy(host: &Host, when: &str) -> Result<()> {
    host.sh("systemctl daemon-reload")?;
    let health = host.health();
    ensure!(
        health.state == "running",
        "{} is {} {when}: {:?}",
        host.name(),
        health.state,
        health.failed
    );
    Ok(())
}
