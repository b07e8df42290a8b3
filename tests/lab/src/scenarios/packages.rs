//! The packages' life on every release that is served: upgraded, removed and purged after a real move,
//! each cleanly; and what lintian says.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::finalize;
use crate::exec::EXEC_LIMIT;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::progress::say;
use crate::stage::Stage;
use crate::{build, run, sample, wait};

/// The servers: Debian 12, 13 and 11.
const SERVERS: [&str; 3] = ["client", "transit", "old"];
/// How long a mail may be under way.
const DELIVERY: std::time::Duration = std::time::Duration::from_secs(30);

/// How long what follows an open may take: the minute of the fence, and a bit.
const AFTER_OPEN: std::time::Duration = std::time::Duration::from_secs(90);

/// Goes through both packages' lives.
pub fn run(stage: &mut Stage) -> Result<()> {
    let [agent, controller] = stage.debs()?;
    for deb in [agent, controller] {
        lint(deb)?;
    }
    let fleet = after_a_move(stage)?;
    stage.fleet(&SERVERS)?;
    for name in SERVERS {
        upgrade(stage.host(name)?, agent, "ferry-agent")?;
    }
    upgrade(fleet.controller(), controller, "ferry-controller")?;
    fleet.await_connected(&SERVERS)?;
    let config = stage.host("client")?.sh("cat /etc/ferry/agent.toml")?;
    ensure!(config.contains("\npeer_address"), "the upgrade lost the administrator's changes");

    for name in SERVERS {
        let host = stage.host(name)?;
        leave(
            host,
            "ferry-agent",
            &["ferry-agent", "ferry-redirector"],
            "/var/lib/ferry /var/lib/ferry-redirector /etc/ferry /run/ferry /run/ferry-redirector",
        )
        .with_context(|| format!("on {name}"))?;
        mail_is_clean(host)?;
    }
    delivers(stage.host("client")?)?;
    sample::visit(stage.host("client")?).context("the site after the purge")?;
    leave(
        fleet.controller(),
        "ferry-controller",
        &["ferry-controller"],
        "/var/lib/ferry-controller /etc/ferry",
    )
}

/// The account has been to transit and is home again, and nothing stands of that any more. While it did,
/// the agent there was not to be removed.
fn after_a_move(stage: &Stage) -> Result<Fleet<'_>> {
    let fleet = stage.account()?;
    if fleet.standings(sample::ACCOUNT)?.len() == 1 {
        fleet.ferry(&["move", sample::ACCOUNT, "--to", "transit", "--yes"])?.ok()?;
        fleet.ferry(&["rollback", sample::ACCOUNT, "--yes"])?.ok()?;
    }
    let transit = stage.host("transit")?;
    refuses_to_leave(transit)?;
    finalize::erase(&fleet, transit)?;
    let client = stage.host("client")?;
    sample::await_crontab(client)?;
    wait::until("the units to be let start", AFTER_OPEN, || {
        Ok(client.sh("ls -A /etc/ferry/fenced 2>/dev/null || :")?.is_empty().then_some(()))
    })?;
    Ok(fleet)
}

/// While it passes visitors on, an agent does not let itself be removed.
fn refuses_to_leave(host: &Host) -> Result<()> {
    let argv = ["apt-get", "remove", "-q", "-y", "ferry-agent"];
    let said = host.exec_with(&argv, &[], EXEC_LIMIT)?;
    ensure!(!said.status.success(), "the agent was removed while a move stands: {}", said.text());
    host.sh("systemctl is-active ferry-agent")?;
    host.sh("dpkg --audit; apt-get -q -y -f install")?;
    Ok(())
}

fn lint(deb: &Path) -> Result<()> {
    let mut lintian = Command::new("lintian");
    lintian.args(["--fail-on", "error", "--no-cfg", "--allow-root"]).arg(deb);
    let said = run::check(&mut lintian).context("lintian")?;
    say(format!("lintian finds no error in {}; {} lines", deb.display(), said.lines().count()));
    Ok(())
}

fn upgrade(host: &Host, deb: &Path, name: &str) -> Result<()> {
    let unit = format!("systemctl show -p MainPID --value {name}");
    let before = host.sh(&unit)?;
    host.install_debs(&[build::altered(deb, "later1", |_| Ok(()))?])?;
    let version = host.sh(&format!("dpkg-query -W -f '${{Version}}' {name}"))?;
    ensure!(version.ends_with("+later1"), "{name} was not upgraded: {version}");
    host.sh(&format!("systemctl is-active {name}"))?;
    ensure!(host.sh(&unit)? != before, "{name} was not restarted by its upgrade");
    healthy(host, &format!("after upgrading {name}"))
}

/// Removes, then purges; nothing may stay but what the administrator made.
fn leave(host: &Host, name: &str, units: &[&str], purged: &str) -> Result<()> {
    let apt = |verb: &str| -> Result<()> {
        let argv = ["apt-get", verb, "-q", "-y", name];
        host.exec_with(&argv, &[], EXEC_LIMIT)?.ok().with_context(|| format!("apt-get {verb}"))?;
        Ok(())
    };
    remove(host, name)?;
    for unit in units {
        let active = host.exec(&["systemctl", "is-active", unit])?;
        ensure!(!active.status.success(), "{unit} runs after {name} was removed");
    }
    let config = host.exec(&["test", "-d", "/etc/ferry"])?;
    ensure!(config.status.success(), "remove took configuration");
    healthy(host, &format!("after removing {name}"))?;
    if name == "ferry-agent" {
        // What an administrator made stays until he says so; the definition is the sample's.
        host.sh("rm -f /etc/ferry/accounts.d/demo.toml")?;
    }
    apt("purge")?;
    let left = host.sh(&format!(
        "find {purged} 2>/dev/null || :; ls -d /etc/systemd/system/*/ferry-* /lib/systemd/system/ferry-* \
         /usr/bin/ferry* /etc/dovecot/ferry /etc/dovecot/conf.d/*ferry* /usr/share/doc/{name} 2>/dev/null || :
         dpkg-query -W -f '${{Package}} ${{db:Status-Abbrev}}\n' {name} 2>/dev/null | grep -v ' un' || :
         nft list tables | grep ferry || :"
    ))?;
    ensure!(left.trim().is_empty(), "purging {name} left: {left}");
    healthy(host, &format!("after purging {name}"))
}

/// Removes a package. An agent stays until what follows an open, such as cron, has had its minute.
fn remove(host: &Host, name: &str) -> Result<()> {
    let argv = ["apt-get", "remove", "-q", "-y", name];
    wait::until(&format!("{name} to let itself be removed"), AFTER_OPEN, || {
        let said = host.exec_with(&argv, &[], EXEC_LIMIT)?;
        let text = format!("{}{}", said.text(), said.error_text());
        if said.status.success() {
            return Ok(Some(()));
        }
        ensure!(text.contains("still wait for their time"), "apt-get remove {name}: {text}");
        Ok(None)
    })
}

/// Postfix and Dovecot know nothing of Ferry any more, and are content.
fn mail_is_clean(host: &Host) -> Result<()> {
    let named = host.sh("postconf -n | grep -i ferry || :; postconf -M | grep -i ferry || :")?;
    ensure!(named.trim().is_empty(), "Postfix on {} still names Ferry: {named}", host.name());
    let check = host.exec(&["postfix", "check"])?;
    let said = format!("{}{}", check.text(), check.error_text());
    ensure!(check.status.success() && !said.contains("ferry"), "postfix check: {said}");
    let named = host.sh("doveconf -n 2>&1 | grep -i ferry || :; doveconf -n >/dev/null")?;
    ensure!(named.trim().is_empty(), "Dovecot on {} still names Ferry: {named}", host.name());
    Ok(())
}

/// A mail to the account still arrives.
fn delivers(host: &Host) -> Result<()> {
    let before = sample::mailbox_uids(host, "info")?.len();
    let send = r"printf 'Subject: after the purge\nMessage-ID: <purged@outside.example>\n\nStill here.\n' |
        /usr/sbin/sendmail -f customer@outside.example info@demo.example";
    host.sh(send)?;
    wait::until("a mail after the purge", DELIVERY, || {
        Ok((sample::mailbox_uids(host, "info")?.len() > before).then_some(()))
    })
    .or_else(|error| {
        bail!("{error:#}; {}", host.sh("postqueue -p; journalctl -u 'postfix*' -n 20")?)
    })
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
