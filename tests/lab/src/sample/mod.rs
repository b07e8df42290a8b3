//! The sample account: what a provider's customer has, set up by hand as a provider would.
//!
//! Its files are beside this module. It knows nothing of Ferry but the account's definition.

mod tree;

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::exec::EXEC_LIMIT;
use crate::host::Host;
use crate::wait;

pub use tree::{Tree, check_kinds};

/// The account's name, which is its user's too.
pub const ACCOUNT: &str = "demo";
/// Its domain, for the web and for mail.
pub const DOMAIN: &str = "demo.example";
/// Its home.
pub const HOME: &str = "/home/demo";
/// Its mailboxes.
pub const MAILBOXES: [&str; 2] = ["info", "sales"];
/// How many messages each mailbox gets at first.
const MESSAGES: usize = 20;
/// A server that takes an account over starts its cron only in the minute after the fence.
const CRON_LIMIT: Duration = Duration::from_secs(90);
/// How long mail may be under way on one machine.
const DELIVERY_LIMIT: Duration = Duration::from_secs(60);

const INDEX: &str = include_str!("files/index.php");
const SETTINGS: &str = include_str!("files/settings.php");
const NGINX: &str = include_str!("files/nginx.conf");
const POOL: &str = include_str!("files/pool.conf");
const MARIADB: &str = include_str!("files/mariadb.sql");
const MARIADB_OBJECTS: &str = include_str!("files/mariadb-objects.sql");
const POSTGRESQL: &str = include_str!("files/postgresql.sql");
const POSTGRESQL_OBJECTS: &str = include_str!("files/postgresql-objects.sql");
const DOVECOT: &str = include_str!("files/dovecot.conf");
const USER: &str = include_str!("files/user.sh");
const FILES: &str = include_str!("files/home.sh");
const MAIL: &str = include_str!("files/mail.sh");
const CRONTAB: &str = include_str!("files/crontab");
/// The account's definition.
pub const DEFINITION: &str = include_str!("files/account.toml");

/// Makes the account on a Debian 12 host. Its definition comes last: Ferry sees it when it is whole.
pub fn create(host: &Host) -> Result<()> {
    host.sh(USER).context("making the user")?;
    as_user(host, FILES).context("filling the home")?;
    databases(host)?;
    site(host)?;
    mail(host)?;
    let cron = ["crontab", "-u", ACCOUNT, "-"];
    host.exec_with(&cron, CRONTAB.as_bytes(), EXEC_LIMIT)?
        .ok()
        .context("installing the crontab")?;
    define(host)
}

/// Waits until the account's crontab is in force on a server that has taken the account over.
pub fn await_crontab(host: &Host) -> Result<()> {
    wait::until(&format!("the crontab to be in force on {}", host.name()), CRON_LIMIT, || {
        let said = host.exec(&["crontab", "-u", ACCOUNT, "-l"])?;
        Ok((said.stdout == CRONTAB.as_bytes()).then_some(()))
    })
}

/// Writes the account's definition where the agent looks for it.
pub fn define(host: &Host) -> Result<()> {
    host.write_file("/etc/ferry/accounts.d/demo.toml", 0o644, DEFINITION.as_bytes())
}

fn as_user(host: &Host, script: &str) -> Result<()> {
    host.exec(&["runuser", "-u", ACCOUNT, "--", "bash", "-euc", script])?.ok()?;
    Ok(())
}

fn databases(host: &Host) -> Result<()> {
    let feed = |argv: &[&str], text: &str| -> Result<()> {
        host.exec_with(argv, text.as_bytes(), EXEC_LIMIT)?.ok()?;
        Ok(())
    };
    feed(&["mariadb"], MARIADB).context("making the MariaDB database")?;
    let shop = [
        "mariadb",
        "--default-character-set=utf8mb4",
        "-udemo_shop",
        "-psample-shop-password",
        "demo_shop",
    ];
    feed(&shop, MARIADB_OBJECTS).context("filling the MariaDB database")?;
    let psql = ["psql", "-q", "-v", "ON_ERROR_STOP=1"];
    feed(&[&["runuser", "-u", "postgres", "--"], &psql[..]].concat(), POSTGRESQL)
        .context("making the PostgreSQL database")?;
    let app = "postgresql://demo_app:sample-app-password@127.0.0.1/demo_app";
    feed(&[&psql[..], &[app]].concat(), POSTGRESQL_OBJECTS)
        .context("filling the PostgreSQL database")
}

fn site(host: &Host) -> Result<()> {
    let own = ["chown", "-R", "demo:demo", "/home/demo/site"];
    host.write_file("/home/demo/site/public/index.php", 0o644, INDEX.as_bytes())?;
    host.write_file("/home/demo/site/settings.php", 0o600, SETTINGS.as_bytes())?;
    host.exec(&own)?.ok()?;
    host.write_file("/etc/nginx/sites-enabled/demo.conf", 0o644, NGINX.as_bytes())?;
    host.write_file("/etc/php/8.2/fpm/pool.d/demo.conf", 0o644, POOL.as_bytes())?;
    host.sh("nginx -t -q; systemctl restart php8.2-fpm; systemctl reload nginx")
        .context("starting the site")?;
    wait::until("the site to answer", DELIVERY_LIMIT, || Ok(visit(host).is_ok().then_some(())))
}

/// Visits the site on the host itself; tells what it said.
pub fn visit(host: &Host) -> Result<String> {
    host.sh("curl -fsS -m 10 --resolve demo.example:80:127.0.0.1 http://demo.example/read")
}

fn mail(host: &Host) -> Result<()> {
    host.write_file("/etc/dovecot/conf.d/auth-hosted.conf", 0o644, DOVECOT.as_bytes())?;
    host.sh(MAIL).context("setting mail up")?;
    let send = r#"
        for n in $(seq 1 "$2"); do
            printf 'From: customer@outside.example\nTo: %s@demo.example\nSubject: Order %d\nMessage-ID: <first-%d-%s@outside.example>\n\nDear %s, this is order %d.\n' \
                "$1" "$n" "$n" "$1" "$1" "$n" | /usr/sbin/sendmail -f customer@outside.example "$1@demo.example"
        done"#;
    for mailbox in MAILBOXES {
        host.exec(&["sh", "-euc", send, "sh", mailbox, &MESSAGES.to_string()])?.ok()?;
    }
    for mailbox in MAILBOXES {
        let what = format!("the first messages of {mailbox}");
        wait::until(&what, DELIVERY_LIMIT, || {
            // Looking makes Dovecot give each message the id that must never change.
            Ok((mailbox_uids(host, mailbox)?.len() == MESSAGES).then_some(()))
        })?;
    }
    as_user(host, "ls /home/demo/mail/info/dovecot-uidlist >/dev/null")
        .context("no dovecot-uidlist")
}

/// What mail programs know the mailbox's messages by: each one's UID, with the Message-ID that it must
/// go on meaning. Looked at by Dovecot's own tool, whose output no mail program limits.
pub fn mailbox_uids(host: &Host, mailbox: &str) -> Result<Vec<String>> {
    let owner = format!("{mailbox}@{DOMAIN}");
    let argv =
        ["doveadm", "-f", "tab", "fetch", "-u", &owner, "uid hdr.message-id", "mailbox", "INBOX"];
    let said = host.exec(&argv)?.ok();
    let said = said.with_context(|| format!("reading mailbox {mailbox} on {}", host.name()))?;
    // The first line names the columns.
    Ok(said.lines().skip(1).map(str::to_owned).collect())
}

/// The mailbox's UIDVALIDITY, as a mail program sees it: by IMAP over TLS with the owner's password. One
/// that sees another validity fetches everything anew.
pub fn uid_validity(host: &Host, mailbox: &str) -> Result<String> {
    let script = r#"curl -sSk -m 20 -v --url 'imaps://127.0.0.1/' -u "$1@demo.example:sample-$1-password" \
        -X 'STATUS INBOX (UIDVALIDITY)' 2>/dev/null"#;
    let said = host.exec(&["sh", "-euc", script, "sh", mailbox])?.ok()?;
    let number: String = said
        .split("UIDVALIDITY ")
        .nth(1)
        .unwrap_or_default()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    ensure!(!number.is_empty(), "mailbox {mailbox} on {} has no validity: {said}", host.name());
    Ok(number)
}
