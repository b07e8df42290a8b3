//! What must be refused, with a clear error and nothing changed: tokens, certificates, and moves that
//! cannot be.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fleet::{self, Fleet};
use crate::host::Host;
use crate::progress::say;
use crate::run::Output;
use crate::{journey, sample, wait};

/// How long a cut may take to show.
const SHOWN: Duration = Duration::from_secs(30);

/// Someone's certificate that our authority never signed.
const FOREIGN: &str = r"
cd /root
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
    -subj /CN=client -keyout foreign.key -out foreign.pem 2>/dev/null
";

/// Tries everything.
pub fn run() -> Result<()> {
    let (lab, build) = journey::fresh()?;
    let fleet = Fleet::of(&lab)?;
    fleet.install_controller(build.deb("ferry-controller")?)?;
    let [client, transit] = [lab.host("client")?, lab.host("transit")?];
    for host in [client, transit] {
        fleet::install_agent(host, build.deb("ferry-agent")?)?;
    }
    tokens(&fleet, client, transit)?;
    fleet.await_connected(&["client", "transit"])?;
    certificates(client)?;
    journey::prepare(&fleet)?;
    moves(&fleet, client, transit)?;
    revoked(&fleet, transit)
}

/// The refusal must be one, and say why in words that a person can act on.
fn refused(what: &str, output: &Output, words: &[&str]) -> Result<()> {
    let said = format!("{}{}", output.text(), output.error_text());
    let lower = said.to_lowercase();
    ensure!(!output.status.success(), "{what}: was accepted: {said}");
    ensure!(
        words.iter().any(|word| lower.contains(word)),
        "{what}: the error does not say any of {words:?}: {said}"
    );
    ensure!(!lower.contains("panicked") && !lower.contains("bug"), "{what}: {said}");
    say(format!("refused as it should be: {what}"));
    Ok(())
}

fn tokens(fleet: &Fleet<'_>, client: &Host, transit: &Host) -> Result<()> {
    let expect_no_identity = |host: &Host| -> Result<()> {
        let there = host.exec(&["test", "-e", "/var/lib/ferry/identity/identity.pem"])?;
        ensure!(!there.status.success(), "a refused enrolment left an identity on {}", host.name());
        Ok(())
    };
    let nonsense = fleet.enrol_with(client, "this is no token")?;
    refused("a token that is none", &nonsense, &["token"])?;
    let good = fleet.token("client", "client", &[])?;
    let mut wrong = good.clone();
    let last = if wrong.pop() == Some('A') { 'B' } else { 'A' };
    wrong.push(last);
    refused("a wrong token", &fleet.enrol_with(client, &wrong)?, &["token"])?;
    expect_no_identity(client)?;

    let short = fleet.token("transit", "transit", &["--valid", "1s"])?;
    std::thread::sleep(Duration::from_secs(2));
    refused("an expired token", &fleet.enrol_with(transit, &short)?, &["expired", "token"])?;
    expect_no_identity(transit)?;

    fleet.enrol_with(client, &good)?.ok().context("the good token")?;
    refused("a used token", &fleet.enrol_with(transit, &good)?, &["used", "token"])?;
    expect_no_identity(transit)?;
    client.sh("systemctl start ferry-agent")?;
    fleet.enrol(transit, "transit")
}

/// Both doors are closed to certificates of others, and to none at all.
fn certificates(client: &Host) -> Result<()> {
    client.sh(FOREIGN)?;
    let ask = r"printf 'GET / HTTP/1.0\r\n\r\n' | timeout 10 openssl s_client -connect $1 -alpn h2 -ign_eof $2 2>&1";
    let foreign = "-cert /root/foreign.pem -key /root/foreign.key";
    for (door, certificate) in
        [("10.77.0.10:7400", foreign), ("10.77.0.30:7401", foreign), ("10.77.0.30:7401", "")]
    {
        let script = ask.replace("$1", door).replace("$2", certificate);
        let said = client.exec(&["sh", "-c", &script])?.text();
        let what = if certificate.is_empty() { "no certificate" } else { "a foreign certificate" };
        ensure!(said.contains("alert"), "{what} at {door} raised no alert: {said}");
        say(format!("refused as it should be: {what} at {door}"));
    }
    client.sh("rm /root/foreign.*")?;
    Ok(())
}

fn moves(fleet: &Fleet<'_>, client: &Host, transit: &Host) -> Result<()> {
    let go = |account: &str| fleet.ferry(&["move", account, "--to", "transit", "--yes"]);
    let clean =
        |what: &str| expect_untouched(fleet, client, transit).with_context(|| what.to_owned());

    refused("an unknown account", &go("nobody-knows")?, &["no server", "unknown", "not known"])?;
    let nowhere = fleet.ferry(&["move", sample::ACCOUNT, "--to", "nowhere", "--yes"])?;
    refused("an unknown target", &nowhere, &["nowhere"])?;

    let free = transit.sh("df --output=avail -k /home | tail -1")?;
    let fill = free.trim().parse::<u64>()?.saturating_sub(30_000);
    transit.sh(&format!("fallocate -l {fill}K /home/filler"))?;
    refused("a target without space", &go(sample::ACCOUNT)?, &["space", "free"])?;
    transit.sh("rm /home/filler")?;
    clean("after the target without space")?;

    transit.sh("useradd --no-create-home demo")?;
    refused(
        "a user taken at the target",
        &go(sample::ACCOUNT)?,
        &["user demo", "exists", "taken"],
    )?;
    transit.sh("userdel demo")?;
    clean("after the user taken")?;

    let definition = sample::DEFINITION.replace(
        "name = \"demo_app\"\n\n[[database_users]]",
        "name = \"demo_gone\"\n\n[[database_users]]",
    );
    ensure!(definition != sample::DEFINITION, "the definition could not be changed");
    client.write_file("/etc/ferry/accounts.d/demo.toml", 0o644, definition.as_bytes())?;
    refused("a database missing at the source", &go(sample::ACCOUNT)?, &["demo_gone"])?;
    sample::define(client)?;
    clean("after the missing database")?;

    client.write_file(
        "/etc/ferry/accounts.d/broken.toml",
        0o644,
        b"name = \"broken\"\nhome = 7\n",
    )?;
    let shown = client.exec(&["ferry-agent", "accounts"])?;
    refused("a broken definition", &shown, &["broken.toml"])?;
    ensure!(
        shown.text().contains("demo: user demo"),
        "a broken definition disturbs the others: {}",
        shown.text()
    );
    client.sh("rm /etc/ferry/accounts.d/broken.toml")?;

    fleet.lab().block(client, transit)?;
    refused("no route to the peer", &go(sample::ACCOUNT)?, &["cannot be reached", "no answer"])?;
    fleet.lab().unblock_all()?;
    clean("after the cut")
}

/// The account is where it was, and the target has nothing of it.
fn expect_untouched(fleet: &Fleet<'_>, client: &Host, transit: &Host) -> Result<()> {
    sample::visit(client).context("the site on client")?;
    for (server, standing) in fleet.standings(sample::ACCOUNT)? {
        ensure!(server != "client" || standing == "serving", "demo is {standing} on {server}");
    }
    let left = transit.sh(
        "getent passwd demo || :; ls -d /home/demo /etc/nginx/sites-enabled/*demo* 2>/dev/null || :; \
         mariadb -N -e 'SHOW DATABASES LIKE \"demo%\"'; \
         runuser -u postgres -- psql -Atc \"SELECT datname FROM pg_database WHERE datname LIKE 'demo%'\"",
    )?;
    ensure!(left.trim().is_empty(), "the target has something of the account: {left}");
    Ok(())
}

fn revoked(fleet: &Fleet<'_>, transit: &Host) -> Result<()> {
    fleet.ferry(&["server", "revoke", "transit"])?.ok()?;
    wait::until("the revoked agent to be cut off", SHOWN, || {
        Ok((!fleet.is_connected("transit")?).then_some(()))
    })?;
    transit.sh("systemctl restart ferry-agent")?;
    wait::until("the revoked agent to be told so", SHOWN, || {
        let said = fleet::journal(transit, "ferry-agent", 20).to_lowercase();
        Ok(["revoked", "refused", "not accepted"].iter().any(|w| said.contains(w)).then_some(()))
    })?;
    ensure!(!fleet.is_connected("transit")?, "a revoked agent came back");
    let argv = ["move", sample::ACCOUNT, "--to", "transit", "--yes"];
    refused("a revoked target", &fleet.ferry(&argv)?, &["revoked", "not connected", "transit"])
}
