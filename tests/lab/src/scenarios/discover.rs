//! A server that was set up by hand: its accounts are proposed, reviewed as a person would, and moved by
//! what was proposed.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::bad_moves::Untouched;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::progress::say;
use crate::stage::Stage;

const BY_HAND: &str = include_str!("discover/by_hand.sh");
const ANSWERS: &str = include_str!("discover/answers.sh");
/// What paula's page says, from both databases.
const PAGE: &str = "a post by hand and 42 hits";

/// Proposes, reviews, installs and moves.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.fleet(&["client", "transit"])?;
    let (client, transit) = (stage.host("client")?, stage.host("transit")?);
    client.sh(BY_HAND).context("setting the server up by hand")?;
    visit(client, "http", "paula.example", PAGE)?;
    visit(client, "http", "site2.example", "a page by hand")?;

    let before = Untouched::look([client, transit])?;
    let found = proposed(client)?;
    before.expect_same(&Untouched::look([client, transit])?, "discover")?;
    first_look(&found)?;
    say("proposed with doubts; now they are answered");

    client.sh(ANSWERS).context("answering the doubts")?;
    visit(client, "https", "paula.example", PAGE)?;
    let found = proposed(client)?;
    let doubts = reviews(&found, "paula");
    ensure!(
        doubts.len() == 1 && doubts[0].contains("paula-worker.service"),
        "other doubts than the unit are left for paula: {doubts:#?}"
    );
    ensure!(of(&found, "robin")["complete"] == true, "robin is not complete: {found:#}");
    install(client)?;
    for (account, scheme, domain, page) in [
        ("paula", "https", "paula.example", PAGE),
        ("robin", "http", "site2.example", "a page by hand"),
    ] {
        moved(&fleet, account).with_context(|| fleet.journals())?;
        visit(transit, scheme, domain, page)?;
    }
    let owner = transit.sh("doveadm -f tab mailbox status -u info@paula.example messages INBOX")?;
    ensure!(owner.contains("INBOX"), "transit does not know paula's mailbox: {owner}");
    Ok(())
}

/// What `ferry-agent accounts discover` says of the host.
fn proposed(host: &Host) -> Result<Value> {
    let said = host.exec(&["ferry-agent", "accounts", "discover", "--json"])?.ok()?;
    serde_json::from_str(&said).with_context(|| format!("not one document: {said}"))
}

fn of<'a>(found: &'a Value, user: &str) -> &'a Value {
    let mut proposals = found["proposals"].as_array().into_iter().flatten();
    proposals.find(|p| p["user"] == user).unwrap_or(&Value::Null)
}

fn reviews(found: &Value, user: &str) -> Vec<String> {
    let review = of(found, user)["review"].as_array().into_iter().flatten();
    review.filter_map(|doubt| doubt.as_str().map(str::to_owned)).collect()
}

/// What must be found before anybody has done anything for it.
fn first_look(found: &Value) -> Result<()> {
    let paula = &of(found, "paula")["definition"];
    for (pointer, value) in [
        ("/home", "/home/paula"),
        ("/sites/0/domains/1", "www.paula.example"),
        ("/sites/0/root", "public_html"),
        ("/sites/0/config/0", "/etc/nginx/sites-enabled/paula"),
        ("/sites/0/config/1", "/etc/php/8.2/fpm/pool.d/paula.conf"),
        ("/databases/0/name", "paula_wp"),
        ("/databases/1/name", "paula_stats"),
        ("/database_users/0/host", "localhost"),
        ("/mail/0/root", "boxes"),
        ("/mail/0/mailboxes/0", "info"),
    ] {
        let there = paula.pointer(pointer).and_then(Value::as_str);
        ensure!(there == Some(value), "{pointer} is {there:?}, not {value}: {found:#}");
    }
    ensure!(paula["sites"][0]["php"]["max_children"] == 4, "{paula:#}");
    for (user, part) in [
        ("paula", "paula-worker.service of this system runs as the user"),
        ("paula", "ssl-cert-snakeoil.pem"),
        ("paula", "Apache serves it"),
        ("robin", "/var/www/site2 belongs to robin, but is outside the home /home/robin"),
    ] {
        let doubts = reviews(found, user);
        ensure!(doubts.iter().any(|d| d.contains(part)), "{user}: no {part:?} in {doubts:#?}");
    }
    let left = found["unassigned"].to_string();
    ensure!(left.contains("leftover"), "the database of nobody is not listed: {left}");
    ensure!(!found.to_string().contains("-password"), "passwords are shown: {found:#}");
    Ok(())
}

/// Installs the written proposals, and has them accepted.
fn install(client: &Host) -> Result<()> {
    client.sh("mkdir /root/proposed\n\
         ferry-agent accounts discover --output /root/proposed\n\
         ! ferry-agent accounts discover --output /root/proposed paula 2>/root/refused\n\
         grep -q 'already there' /root/refused\n\
         cp /root/proposed/paula.toml /root/proposed/robin.toml /etc/ferry/accounts.d/\n\
         ferry-agent accounts")?;
    Ok(())
}

fn moved(fleet: &Fleet<'_>, account: &str) -> Result<()> {
    fleet.await_account(account)?;
    fleet.ferry(&["move", account, "--to", "transit", "--yes"])?.ok()?;
    let standings = fleet.standings(account)?;
    let serves = standings.iter().any(|(server, how)| server == "transit" && how == "serving");
    ensure!(serves, "{account} stands so: {standings:?}");
    Ok(())
}

/// Visits a site on the host itself.
fn visit(host: &Host, scheme: &str, domain: &str, page: &str) -> Result<()> {
    let script = r#"curl -fsSk -m 20 --retry 10 --retry-all-errors --retry-delay 1 \
        --resolve "$2:80:127.0.0.1" --resolve "$2:443:127.0.0.1" "$1://$2/""#;
    let said = host.exec(&["sh", "-euc", script, "sh", scheme, domain])?.ok()?;
    ensure!(said.trim() == page, "{domain} on {} says {said:?}, not {page:?}", host.name());
    Ok(())
}
