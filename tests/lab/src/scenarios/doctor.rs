//! Nothing is left behind: after a move, an abort, a rollback and an erasure the doctor finds both servers
//! clean; what is planted by hand it finds, names and removes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{abort, finalize};
use crate::fleet::Fleet;
use crate::host::Host;
use crate::progress::say;
use crate::stage::Stage;
use crate::{sample, wait};

/// How long the last of what stands down may take: visitors who are still on their way, mail that is
/// told, cron's minute.
const LIMIT: Duration = Duration::from_secs(120);

/// What is planted: a script, the kind by which it must be found, and a test that it is gone.
const PLANTED: &[(&str, &str, &str)] = &[
    (
        "nft 'add table inet ferry_redirect'",
        "firewall",
        "! nft list table inet ferry_redirect 2>/dev/null",
    ),
    (
        "ip rule add fwmark 0xfe77e lookup 7480",
        "routing",
        "! ip rule show | grep -q 'fwmark 0xfe77e'",
    ),
    (
        "echo half > /etc/nginx/sites-enabled/.ferry-tmp-ghost.conf",
        "temporary",
        "test ! -e /etc/nginx/sites-enabled/.ferry-tmp-ghost.conf",
    ),
    (
        "printf '# Made by Ferry: this account is fenced\\n' > /etc/nginx/conf.d/ferry-fence-ghost.0.conf",
        "fence_block",
        "test ! -e /etc/nginx/conf.d/ferry-fence-ghost.0.conf",
    ),
    (
        "mkdir -p /etc/ferry/certificates/ghost; echo key > /etc/ferry/certificates/ghost/main.key",
        "certificate",
        "test ! -e /etc/ferry/certificates/ghost",
    ),
    (
        "install -m 600 /dev/null /var/spool/cron/crontabs/.ferry-aside-ghost",
        "crontab",
        "test ! -e /var/spool/cron/crontabs/.ferry-aside-ghost",
    ),
    (
        "mkdir -p /etc/ferry/fenced; touch /etc/ferry/fenced/ghost",
        "flag",
        "test ! -e /etc/ferry/fenced/ghost",
    ),
    (
        "useradd --no-create-home --home-dir /home/spectre --expiredate 74 spectre",
        "closed_login",
        "! getent passwd spectre",
    ),
    (
        "mariadb -e \"CREATE DATABASE ghost COMMENT 'ferry: closed, being received for account ghost'; \
         CREATE USER ferry_load_0123456789abcdef@localhost\"",
        "temporary_database_user",
        "test -z \"$(mariadb -N -e \"SELECT User FROM mysql.user WHERE User LIKE 'ferry%'; \
         SHOW DATABASES LIKE 'ghost'\")\"",
    ),
    (
        "runuser -u postgres -- psql -qc 'CREATE ROLE ferry_load_0123456789abcdef LOGIN' \
         -c 'CREATE DATABASE ferry_new_0123456789abcdef CONNECTION LIMIT 0'",
        "temporary_database",
        "test -z \"$(runuser -u postgres -- psql -Atc \"SELECT datname FROM pg_database WHERE datname LIKE \
         'ferry%' UNION SELECT rolname FROM pg_roles WHERE rolname LIKE 'ferry%'\")\"",
    ),
    (
        "mkdir -p /var/lib/ferry/copies; echo half > /var/lib/ferry/copies/ghost.new",
        "temporary",
        "test ! -e /var/lib/ferry/copies/ghost.new",
    ),
];

/// Goes through every end that a move can come to, then plants.
pub fn run(stage: &mut Stage) -> Result<()> {
    abort::run(stage)?;
    let fleet = stage.account_alone()?;
    let hosts = [stage.host("client")?, stage.host("transit")?];
    fleet.ferry(&["move", sample::ACCOUNT, "--to", "transit", "--yes"])?.ok()?;
    both_clean("after a move", hosts)?;
    finds_what_is_open(hosts[0])?;
    fleet.ferry(&["rollback", sample::ACCOUNT, "--yes"])?.ok()?;
    both_clean("after a rollback", hosts)?;
    finalize::erase(&fleet, hosts[1])?;
    both_clean("after an erasure", hosts)?;
    for host in hosts {
        plant_and_remove(host)?;
    }
    served(&fleet, hosts[0])
}

/// The account is as it was.
fn served(fleet: &Fleet<'_>, client: &Host) -> Result<()> {
    sample::visit(client).context("the site on client in the end")?;
    ensure!(fleet.standings(sample::ACCOUNT)?.len() == 1, "the account is known twice");
    Ok(())
}

/// Waits until the doctor finds the host clean.
pub(super) fn clean(when: &str, host: &Host) -> Result<()> {
    let mut last = String::new();
    let clean = wait::until("the doctor to find nothing", LIMIT, || {
        let output = host.exec(&["ferry-agent", "doctor"])?;
        last = format!("{}{}", output.text(), output.error_text());
        Ok((output.status.code() == Some(0)).then_some(()))
    });
    clean.with_context(|| format!("{} is not clean {when}:\n{last}", host.name()))?;
    say(format!("{} is clean {when}: {}", host.name(), last.trim()));
    Ok(())
}

/// Both of them.
pub(super) fn both_clean(when: &str, hosts: [&Host; 2]) -> Result<()> {
    hosts.iter().try_for_each(|host| clean(when, host))
}

fn examine(host: &Host, options: &[&str]) -> Result<(Option<i32>, Value)> {
    let argv: Vec<&str> =
        ["ferry-agent", "doctor", "--json"].into_iter().chain(options.iter().copied()).collect();
    let output = host.exec(&argv)?;
    let report = serde_json::from_str(&output.text())
        .with_context(|| format!("{}{}", output.text(), output.error_text()))?;
    Ok((output.status.code(), report))
}

fn kinds(report: &Value) -> BTreeSet<&str> {
    let findings = report["findings"].as_array().into_iter().flatten();
    findings.filter_map(|finding| finding["kind"].as_str()).collect()
}

/// A closed account that somebody opens by hand is told, and closed again it is told no more.
fn finds_what_is_open(moved: &Host) -> Result<()> {
    let user = moved.sh("getent passwd demo | cut -d: -f1")?;
    ensure!(user.trim() == "demo", "the sample account has another user: {user}");
    // A running agent would close it again by itself.
    moved.sh("systemctl stop ferry-agent; usermod --expiredate '' demo")?;
    let (code, report) = examine(moved, &[])?;
    let open = report["findings"].as_array().into_iter().flatten().any(|f| f["verdict"] == "open");
    ensure!(code == Some(1) && open, "an open login of a moved account is not told: {report}");
    moved.sh("systemctl start ferry-agent")?;
    clean("after the agent has closed the login again", moved)
}

fn plant_and_remove(host: &Host) -> Result<()> {
    // A running agent takes rules away that it knows nothing of whenever it looks at its own.
    host.sh("systemctl stop ferry-agent")?;
    for (plant, ..) in PLANTED {
        host.sh(plant)?;
    }
    let (code, report) = examine(host, &[])?;
    let found = kinds(&report);
    let missing: Vec<_> =
        PLANTED.iter().map(|(_, kind, _)| *kind).filter(|kind| !found.contains(kind)).collect();
    ensure!(
        code == Some(1) && missing.is_empty(),
        "{} has exit code {code:?} and not found {missing:?}: {report}",
        host.name()
    );
    let (code, report) = examine(host, &["--remove"])?;
    if code != Some(0) {
        bail!("{} is not clean after --remove: {report}", host.name());
    }
    for (_, kind, gone) in PLANTED {
        host.sh(gone).with_context(|| format!("{kind} is still there"))?;
    }
    host.sh("systemctl start ferry-agent")?;
    clean("after --remove", host)
}
