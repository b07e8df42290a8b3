//! What must be refused at the doors, with a clear error and nothing changed: tokens and certificates.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry_proto::channel::token::Token;

use super::refused;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::progress::say;
use crate::stage::Stage;
use crate::wait;

/// How long the shortest token may take to expire.
const EXPIRY: Duration = Duration::from_secs(20);

/// A certificate with the names of this very server, signed by an authority that is not ours.
const FOREIGN: &str = r#"
cd /root
key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
names=$(openssl x509 -in /var/lib/ferry/identity/identity.pem -noout -ext subjectAltName | tail -n +2 | tr -d ' ')
openssl req -x509 $key -days 2 -subj "/CN=Another authority" -keyout foreign-ca.key -out foreign-ca.pem
openssl req $key -subj /CN=client -keyout foreign.key -out foreign.csr
printf 'basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth,serverAuth\nsubjectAltName=%s\n' "$names" > foreign.ext
openssl x509 -req -in foreign.csr -CA foreign-ca.pem -CAkey foreign-ca.key -CAcreateserial -days 2 \
    -extfile foreign.ext -out foreign.pem
"#;

/// Tries everything on two servers, which are enrolled in the end.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.controller()?;
    let [client, transit] = [stage.agent("client")?, stage.agent("transit")?];
    if fleet.is_connected("client")? || fleet.is_connected("transit")? {
        say("the servers are enrolled already: only certificates are tried");
    } else {
        tokens(&fleet, client, transit)?;
    }
    fleet.await_connected(&["client", "transit"])?;
    certificates(client)
}

fn tokens(fleet: &Fleet<'_>, client: &Host, transit: &Host) -> Result<()> {
    let try_it = |what: &str, host: &Host, token: &str, words: &[&str]| -> Result<()> {
        refused(what, &fleet.enrol_with(host, token)?, words)?;
        let there = host.exec(&["test", "-e", "/var/lib/ferry/identity/identity.pem"])?;
        ensure!(!there.status.success(), "{what} left an identity on {}", host.name());
        Ok(())
    };
    try_it("a token that is none", client, "this is no token", &["token", "begin with"])?;
    let good = fleet.token("client", "client", &[])?;
    let mut mistyped = good.clone();
    let last = if mistyped.pop() == Some('A') { 'B' } else { 'A' };
    mistyped.push(last);
    try_it("a mistyped token", client, &mistyped, &["token", "mistyped"])?;
    let parsed = Token::parse(&good)?;
    let forged = Token::new(parsed.ca, parsed.server, [7; 32]).to_text();
    try_it("a forged token", client, &forged, &["token", "not the one issued"])?;
    expired(fleet, transit, try_it)?;

    fleet.enrol_with(client, &good)?.ok().context("the good token")?;
    try_it("a used token", transit, &good, &["token", "used already"])?;
    client.sh("systemctl start ferry-agent")?;
    fleet.enrol(transit, "transit")
}

/// A token that is good for a second, shown when the controller's clock says that it was.
fn expired(
    fleet: &Fleet<'_>,
    host: &Host,
    try_it: impl Fn(&str, &Host, &str, &[&str]) -> Result<()>,
) -> Result<()> {
    let argv = ["server", "add", host.name(), "--role", "transit", "--valid", "1s"];
    let added = fleet.json(&argv)?;
    let expires = added["expires_unix"].as_i64().context("the token has no end")?;
    wait::until("the token to expire", EXPIRY, || {
        let now: i64 = fleet.controller().sh("date +%s")?.trim().parse()?;
        Ok((now > expires).then_some(()))
    })?;
    let token = added["token"].as_str().context("no token")?;
    try_it("an expired token", host, token, &["token", "expired"])
}

/// Both doors are closed to certificates of others, and the agents' to none at all: with the alert that
/// says so.
fn certificates(client: &Host) -> Result<()> {
    client.sh(FOREIGN)?;
    let foreign = "-cert /root/foreign.pem -key /root/foreign.key";
    for (door, protocol, certificate, alert) in [
        ("10.77.0.10:7400", "h2", foreign, "alert unknown ca"),
        ("10.77.0.30:7401", "ferry-peer/1", foreign, "alert unknown ca"),
        ("10.77.0.30:7401", "ferry-peer/1", "", "alert certificate required"),
    ] {
        let script = format!(
            r"printf 'GET / HTTP/1.0\r\n\r\n' | timeout 10 openssl s_client -connect {door} \
              -alpn {protocol} -ign_eof {certificate} 2>&1"
        );
        let said = client.exec(&["sh", "-c", &script])?.text();
        let what = if certificate.is_empty() { "no certificate" } else { "a foreign certificate" };
        ensure!(said.contains(alert), "{what} at {door} did not raise {alert:?}: {said}");
        say(format!("refused as it should be: {what} at {door}: {alert}"));
    }
    client.sh("rm /root/foreign.*")?;
    Ok(())
}
