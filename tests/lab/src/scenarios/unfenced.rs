//! The checker's own proof: the same visitors and the same account, moved by hand as people do it
//! without a fence. The checker must find what that costs; if it does not, its silence after a real
//! move says nothing.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::checker::{self, World};
use crate::exec::EXEC_LIMIT;
use crate::host::Host;
use crate::journey::RATE;
use crate::lab::Lab;
use crate::progress::say;
use crate::spec::HostSpec;
use crate::visitors::Visitors;
use crate::{journey, run, sample};

/// Answers before, between and after.
const ANSWERS: usize = 150;

/// What the target needs of the account besides its data, and to be the only one it has.
const PROVISION: &str = r#"
groupadd demo-team
useradd --no-create-home --home-dir /home/demo --shell /bin/bash --groups demo-team -u "$1" demo
cat > /etc/nginx/sites-enabled/demo.conf
cat > /etc/php/8.4/fpm/pool.d/demo.conf <<'POOL'
[demo]
user = demo
group = demo
listen = /run/php/demo.sock
listen.owner = www-data
listen.group = www-data
pm = static
pm.max_children = 8
POOL
"#;

/// Sends new connections of visitors on. Those that are open stay where they are, as with any change
/// of address.
const REDIRECT: &str = r"
sysctl -q -w net.ipv4.ip_forward=1
nft -f - <<'END'
table ip byhand {
    chain pre {
        type nat hook prerouting priority dstnat
        ip daddr 10.77.0.21 tcp dport { 80, 443 } dnat to 10.77.0.31
    }
    chain post {
        type nat hook postrouting priority srcnat
        ip daddr 10.77.0.31 masquerade
    }
}
END";

/// Moves by hand without a fence, and asks the checker.
pub fn run() -> Result<()> {
    let hosts = [HostSpec::client(), HostSpec::transit()];
    let lab = Lab::fresh(&hosts)?;
    let [client, transit] = [lab.host("client")?, lab.host("transit")?];
    sample::create(client)?;
    let mut visitors = Visitors::start(&lab, client, &journey::place()?, "unfenced", RATE)?;
    visitors.await_answers(ANSWERS)?;
    say("copying files and databases while visitors write, then redirecting them");
    copy_files(client, transit)?;
    copy_databases(client, transit)?;
    visitors.await_answers(ANSWERS)?;
    client.sh(REDIRECT)?;
    visitors.await_server("transit")?;
    visitors.await_answers(ANSWERS)?;
    let log = visitors.stop()?;
    let verdict = checker::check(&log, &World::read(transit)?, &["client", "transit"]);
    say(format!("as it should, the checker says: {verdict}"));
    ensure!(verdict.acknowledged >= 3 * ANSWERS, "too few visitors were answered: {verdict}");
    ensure!(!verdict.lost.is_empty(), "the checker found no loss without a fence: {verdict}");
    ensure!(verdict.expect_clean().is_err(), "the checker accepts losses: {verdict}");
    Ok(())
}

fn copy_files(client: &Host, transit: &Host) -> Result<()> {
    let uid = client.sh("id -u demo")?;
    let site = client.read_file("/etc/nginx/sites-enabled/demo.conf")?;
    let argv = ["sh", "-euc", PROVISION, "sh", uid.trim()];
    transit.exec_with(&argv, &site, EXEC_LIMIT)?.ok().context("making the account by hand")?;
    // The hosts' disks, seen from outside.
    let mut copy = Command::new("cp");
    copy.args(["-a", "--no-target-directory"]);
    copy.arg(client.rootfs().join("home/demo")).arg(transit.rootfs().join("home/demo"));
    run::check(&mut copy)?;
    transit.sh(
        "chown -R demo:demo /home/demo; systemctl restart php8.4-fpm; systemctl reload nginx",
    )?;
    Ok(())
}

fn copy_databases(client: &Host, transit: &Host) -> Result<()> {
    let shop = ["mariadb-dump", "--single-transaction", "--routines", "--databases", "demo_shop"];
    let shop = client.exec(&shop)?.ok()?;
    transit.exec_with(&["mariadb"], shop.as_bytes(), EXEC_LIMIT)?.ok()?;
    let user = "CREATE USER demo_shop@localhost IDENTIFIED BY 'sample-shop-password';
                GRANT ALL ON demo_shop.* TO demo_shop@localhost";
    transit.exec(&["mariadb", "-e", user])?.ok()?;
    let as_postgres = ["runuser", "-u", "postgres", "--"];
    let roles = "CREATE ROLE demo_app LOGIN PASSWORD 'sample-app-password'";
    transit.exec(&[&as_postgres[..], &["psql", "-qc", roles]].concat())?.ok()?;
    let app =
        client.exec(&[&as_postgres[..], &["pg_dump", "--create", "demo_app"]].concat())?.ok()?;
    let load = [&as_postgres[..], &["psql", "-q"]].concat();
    transit.exec_with(&load, app.as_bytes(), EXEC_LIMIT)?.ok()?;
    Ok(())
}
