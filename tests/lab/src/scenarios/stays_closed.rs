//! An account that this server must not serve stays closed: whatever is reloaded, restarted, upgraded or
//! flushed, whoever comes from the host itself, and whatever was opened behind Ferry's back before a boot.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry_proto::view::JobPhase;

use super::{abort, doctor};
use crate::fleet::{self, Fleet};
use crate::host::Host;
use crate::journey::{self, THERE};
use crate::progress::say;
use crate::stage::Stage;
use crate::{checker, sample, wait};

/// How long the agent may take to find and close what was opened while it runs.
const LOOK: Duration = Duration::from_secs(60);
/// How long the firewall's rules may be gone.
const RULES: Duration = Duration::from_secs(20);
/// How long mail from the host itself may be under way to the server that serves the account.
const PASSED_ON: Duration = Duration::from_secs(60);

/// Root's own services that restart the account's processes: one is there before the fence, one comes
/// later.
const WATCHDOGS: &str = r#"
unit() {
    printf '[Service]\nUser=demo\nRestart=always\nRestartSec=1\nExecStart=/bin/sh -c "touch /var/tmp/demo-ran; exec sleep infinity"\n[Install]\nWantedBy=multi-user.target\n' \
        > /etc/systemd/system/demo-$1.service
}
unit "$1"; rm -f /var/tmp/demo-ran; systemctl daemon-reload; systemctl enable -q --now demo-$1"#;

/// From here on nothing of the account may be written here, nor its site's log grow.
const MARK: &str = "wc -l < /var/log/nginx/demo.access.log > /root/served; touch /root/closed";

/// Tries every door, and says which is open.
const DOORS: &str = r#"
for at in http://127.0.0.1 "http://$1" https://127.0.0.1 "https://$1"; do
    curl -sk -m 2 -o /dev/null -H 'Host: demo.example' "$at/read" || :
done
curl -sk -m 2 -o /dev/null --resolve demo.example:443:127.0.0.1 https://demo.example/read || :
[ "$(wc -l < /var/log/nginx/demo.access.log)" = "$(cat /root/served)" ] || echo "the site was served"
! su - demo -c true >/dev/null 2>&1 || echo "su lets the user in"
! crontab -u demo -l >/dev/null 2>&1 || echo "cron sees a crontab"
! mariadb -udemo_shop -psample-shop-password -e 'SELECT 1' >/dev/null 2>&1 || echo "MariaDB lets the account in"
! psql -c 'SELECT 1' postgresql://demo_app:sample-app-password@127.0.0.1/demo_app >/dev/null 2>&1 \
    || echo "PostgreSQL lets the account in"
! curl -sk -m 5 imaps://127.0.0.1/ -u info@demo.example:sample-info-password >/dev/null 2>&1 \
    || echo "Dovecot lets a mailbox in"
printf 'From: root@client\nTo: info@demo.example\nSubject: from the host itself\n\nhello\n' | /usr/sbin/sendmail -t
! pgrep -l -u demo || echo "a process runs"
find /home/demo -cnewer /root/closed"#;

/// What administrators and packages do to the services.
const BLOWS: [(&str, &str); 5] = [
    ("the services are reloaded", "systemctl reload nginx php8.2-fpm postfix dovecot cron || :"),
    (
        "the services are restarted",
        "systemctl restart nginx php8.2-fpm postfix dovecot cron mariadb postgresql",
    ),
    ("the watchdog starts its worker", "systemctl daemon-reload; systemctl start demo-worker"),
    ("the firewall is flushed", "nft flush ruleset"),
    (
        "the packages' scripts run as in an upgrade",
        r#"export DEBIAN_FRONTEND=noninteractive
        for package in nginx-common nginx cron postfix dovecot-core mariadb-server php8.2-fpm; do
            version=$(dpkg-query -W -f '${Version}' $package) || continue
            for step in "prerm upgrade" "preinst upgrade" "postinst configure"; do
                script=/var/lib/dpkg/info/$package.${step% *}
                [ ! -x $script ] || DPKG_MAINTSCRIPT_PACKAGE=$package DPKG_MAINTSCRIPT_NAME=${step% *} \
                    $script ${step#* } "$version" </dev/null >/dev/null 2>&1 || :
            done
        done
        systemctl start nginx php8.2-fpm postfix dovecot cron mariadb"#,
    ),
];

/// As a backup that is restored into /etc and /var would do it.
pub(crate) const REOPEN: &str = r"
cp /etc/ferry/aside/demo/00-demo.conf /etc/nginx/sites-enabled/demo.conf
cp /etc/ferry/aside/demo/01-demo.conf /etc/php/8.2/fpm/pool.d/demo.conf
rm -f /etc/nginx/sites-enabled/ferry-fence-demo.*
spool=/var/spool/cron/crontabs
cp -p $spool/.ferry-aside-demo $spool/demo
echo '@reboot touch /var/tmp/demo-cron-ran' >> $spool/demo
chage -E -1 demo
touch /var/lib/systemd/linger/demo
rm -f /etc/ferry/fenced/demo
rm -f /etc/systemd/system/demo-*.service.d/zzz-ferry-fence.conf
postconf -e transport_maps=
rm -f /etc/ferry/mail/accounts/demo.json
: > /etc/ferry/mail/held_transport
sync";

/// What the agent makes of it.
const CLOSED: &str = r#"
[ -z "$(pgrep -u demo)$(crontab -u demo -l 2>/dev/null)" ]
[ ! -e /var/lib/systemd/linger/demo ]; [ -e /etc/ferry/fenced/demo ]
[ ! -e /etc/php/8.2/fpm/pool.d/demo.conf ]; [ -e /etc/nginx/sites-enabled/ferry-fence-demo.0.conf ]
grep -q ferry-relay /etc/ferry/mail/held_transport
postconf -h transport_maps | grep -q held_transport
if su - demo -c true; then exit 1; fi"#;

/// Whoever asks the web server first when it starts is answered before any agent runs.
const FIRST: &str = r#"
mkdir -p /etc/systemd/system/nginx.service.d
printf '[Service]\nExecStartPost=-/bin/sh -c "curl -s -m 5 -o /dev/null -w %%%%{http_code} -H Host:demo.example http://127.0.0.1/read > /root/first"\n' \
    > /etc/systemd/system/nginx.service.d/first.conf"#;

/// Switches the guard, and the agent's own look, off or on at the next boot.
const UNGUARDED: &str = r"
for unit in ferry-guard ferry-agent; do
    mkdir -p /etc/systemd/system/$unit.service.d
    printf '[Unit]\nConditionPathExists=/nowhere\n' > /etc/systemd/system/$unit.service.d/off.conf
done";
const GUARDED: &str = "rm -r /etc/systemd/system/ferry-*.service.d; systemctl stop cron";

/// What this scenario has put there.
const TIDY: &str = r"
systemctl disable -q --now demo-worker demo-new
rm -rf /etc/systemd/system/demo-* /etc/systemd/system/nginx.service.d /root/first /root/closed /root/served
systemctl daemon-reload";

/// Goes through all of it.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.account_alone()?;
    let [client, transit] = [stage.host("client")?, stage.host("transit")?];
    script(client, WATCHDOGS, "worker")?;
    let mut visitors = journey::few_come(&fleet, "stays-closed")?;
    while_fenced(&fleet, client, transit)?;
    fleet.ferry(THERE.argv)?.ok()?;
    visitors.await_server("transit")?;
    let log = visitors.stop()?;
    client.sh(MARK)?;
    for (what, blow) in BLOWS {
        suffer(client, what, blow)?;
    }
    wait::until("the firewall's rules to be back", RULES, || {
        Ok(client
            .exec(&["nft", "list", "table", "inet", "ferry_redirect"])?
            .status
            .success()
            .then_some(()))
    })?;
    opened_while_it_runs(client)?;
    opened_before_a_boot(&fleet, client)?;
    let back = journey::BACK;
    fleet.ferry(back.argv)?.ok()?;
    client.sh(TIDY)?;
    sample::visit(client)?;
    checker::check(&log, &journey::settled(&fleet, client, &log)?, back.owners).expect_clean()?;
    told_and_removed(client)?;
    doctor::both_clean("after all of it", [client, transit])
}

/// What was set aside as somebody's own is named; it goes when that is asked, for the same is in its place.
fn told_and_removed(client: &Host) -> Result<()> {
    let aside = "/etc/ferry/aside/demo/00-demo.conf.found";
    let told = client.exec(&["ferry-agent", "doctor"])?.text();
    ensure!(told.contains(aside), "the doctor does not name {aside}: {told}");
    client.sh(&format!("test -e {aside}; ferry-agent doctor --remove || :; test ! -e {aside}"))?;
    Ok(())
}

/// The fence is held by a target that cannot be reached; then the move is undone.
fn while_fenced(fleet: &Fleet<'_>, client: &Host, transit: &Host) -> Result<()> {
    fleet.ferry(&[THERE.argv, &["--detach", "--deadline", "10m"]].concat())?.ok()?;
    abort::await_fence(fleet)?;
    transit.cut_network()?;
    client.sh(MARK)?;
    for (what, blow) in &BLOWS[..4] {
        suffer(client, &format!("fenced: {what}"), blow)?;
    }
    transit.heal_network()?;
    fleet.ferry(&["abort", sample::ACCOUNT])?;
    let job = abort::ended(fleet)?;
    ensure!(
        job.phase == JobPhase::Undone && !job.committed,
        "the move whose target was not there is {}: {}",
        job.phase,
        job.advice
    );
    sample::visit(client).with_context(|| fleet.journals()).map(drop)
}

/// Deals a blow, and sees that no door has opened.
fn suffer(client: &Host, what: &str, blow: &str) -> Result<()> {
    client.sh(blow)?;
    let open = doors(client)?;
    ensure!(open.is_empty(), "{what}: {open}\n{}", fleet::journal(client, "ferry-agent", 40));
    await_passed_on(client)?;
    say(format!("stays closed: {what}"));
    Ok(())
}

/// Nothing of what the doors were tried with is under way. A Postfix that is restarted before it hears that
/// its mail was taken sends it once more: SMTP has no way to tell (RFC 1047), with Ferry or without.
fn await_passed_on(client: &Host) -> Result<()> {
    wait::until("mail from the host itself to be passed on or deferred", PASSED_ON, || {
        let queued = client.exec(&["postqueue", "-j"])?.ok()?;
        let waits =
            |mail: &str| ["deferred", "hold"].iter().any(|q| mail.contains(&names_queue(q)));
        Ok(queued.lines().all(waits).then_some(()))
    })
}

/// What a line of `postqueue -j` has if its message is in this queue.
fn names_queue(queue: &str) -> String {
    format!("\"queue_name\": \"{queue}\"")
}

/// What is open.
fn doors(client: &Host) -> Result<String> {
    let service = client.spec().service_address.map(|a| a.to_string()).unwrap_or_default();
    Ok(script(client, DOORS, &service)?.trim().to_owned())
}

fn script(host: &Host, script: &str, argument: &str) -> Result<String> {
    host.exec(&["sh", "-euc", script, "sh", argument])?.ok()
}

/// The agent finds what was opened while it runs: a service that it does not know, and everything else.
fn opened_while_it_runs(client: &Host) -> Result<()> {
    script(client, WATCHDOGS, "new")?;
    client.sh(REOPEN)?;
    client.sh("systemctl reload nginx php8.2-fpm; systemctl restart cron; systemctl start demo-new demo-worker")?;
    wait::until("the agent to close what was opened", LOOK, || {
        Ok(client.exec(&["sh", "-euc", CLOSED])?.status.success().then_some(()))
    })?;
    client.sh(MARK)?;
    suffer(client, "closed again by the agent", "systemctl start demo-new demo-worker")?;
    let metrics = client.sh("curl -s http://127.0.0.1:9464/metrics")?;
    ensure!(
        metrics.contains("ferry_closed_again_total{account=\"demo\"}"),
        "not counted: {metrics}"
    );
    Ok(())
}

/// Opened while Ferry does not look: without the guard the account is served at boot, with it nothing is.
fn opened_before_a_boot(fleet: &Fleet<'_>, client: &Host) -> Result<()> {
    client.sh("systemctl stop ferry-agent")?;
    for part in [FIRST, REOPEN, UNGUARDED, "rm -f /var/tmp/demo-*"] {
        client.sh(part)?;
    }
    client.reboot()?;
    let unguarded = client.sh("cat /root/first; ls /var/tmp/demo-*")?;
    ensure!(
        !unguarded.contains("503") && unguarded.contains("demo-ran"),
        "what was opened was not, so nothing would be shown: {unguarded}"
    );
    say("without the guard the account is served at boot");
    for part in [GUARDED, "rm -f /var/tmp/demo-* /root/first", MARK] {
        client.sh(part)?;
    }
    client.reboot()?;
    let journal = fleet::journal(client, "ferry-guard", 40);
    let first = client.sh("cat /root/first; ls /var/tmp/demo-* 2>/dev/null || :")?;
    ensure!(first.trim() == "503", "served at boot: {first}\n{journal}");
    ensure!(journal.contains("is closed again"), "the guard does not tell: {journal}");
    client.sh("systemctl is-active ferry-guard")?;
    suffer(client, "booted after it was opened", "systemctl start demo-new demo-worker")?;
    fleet.await_connected(&["client"])
}
