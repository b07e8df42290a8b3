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

/// An account like the sample: all that is named after it bears this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The account's name, which is its user's too.
    pub name: &'static str,
    /// So many directories of small files are in its home.
    directories: u32,
    /// So many bytes of one large file.
    archive: u32,
}

/// The sample account.
pub const DEMO: Sample = Sample { name: ACCOUNT, directories: 40, archive: 20_000_000 };

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
/// Lists what its databases consist of, but for rows.
const OBJECTS: &str = "
mariadb -N -e \"SELECT TABLE_TYPE, TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'demo_shop'
    UNION ALL SELECT 'TRIGGER', TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = 'demo_shop'
    UNION ALL SELECT ROUTINE_TYPE, ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = 'demo_shop'
    UNION ALL SELECT 'EVENT', EVENT_NAME FROM information_schema.EVENTS WHERE EVENT_SCHEMA = 'demo_shop'
    ORDER BY 1, 2\"
runuser -u postgres -- psql -Atq demo_app -c \"SELECT relkind, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT 'f', proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT 't', tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2\"";
/// Sends a mailbox its first messages.
const SEND: &str = r#"
    for n in $(seq 1 "$2"); do
        printf 'From: customer@outside.example\nTo: %s@demo.example\nSubject: Order %d\nMessage-ID: <first-%d-%s@outside.example>\n\nDear %s, this is order %d.\n' \
            "$1" "$n" "$n" "$1" "$1" "$n" | /usr/sbin/sendmail -f customer@outside.example "$1@demo.example"
    done"#;
/// The account's definition.
pub const DEFINITION: &str = include_str!("files/account.toml");

/// Makes the sample account on a Debian 12 host.
pub fn create(host: &Host) -> Result<()> {
    DEMO.create(host)
}

impl Sample {
    /// A small one of this name.
    pub const fn small(name: &'static str) -> Sample {
        Sample { name, directories: 4, archive: 1_000_000 }
    }

    /// The domain.
    pub fn domain(&self) -> String {
        self.named(DOMAIN)
    }

    /// Something of the sample account's, as it is called for this one.
    pub fn named(&self, text: &str) -> String {
        text.replace(ACCOUNT, self.name)
    }

    /// Makes the account on a Debian 12 host. Its definition comes last: Ferry sees it when it is
    /// whole.
    pub fn create(&self, host: &Host) -> Result<()> {
        host.sh(&self.named(USER)).context("making the user")?;
        self.home(host).context("filling the home")?;
        self.databases(host)?;
        self.site(host)?;
        self.mail(host)?;
        let cron = ["crontab", "-u", self.name, "-"];
        host.exec_with(&cron, self.named(CRONTAB).as_bytes(), EXEC_LIMIT)?
            .ok()
            .context("installing the crontab")?;
        self.define(host)
    }

    /// Writes the account's definition where the agent looks for it.
    pub fn define(&self, host: &Host) -> Result<()> {
        let path = self.named("/etc/ferry/accounts.d/demo.toml");
        host.write_file(&path, 0o644, self.named(DEFINITION).as_bytes())
    }

    /// What its databases on a host consist of: a line for each table, view, trigger, routine and event.
    pub fn objects(&self, host: &Host) -> Result<String> {
        host.sh(&self.named(OBJECTS)).context("listing what its databases consist of")
    }

    /// Visits the site on the host itself; tells what it said.
    pub fn visit(&self, host: &Host) -> Result<String> {
        let read = "http://demo.example/read";
        let curl = "curl -sS --fail-with-body -m 10 --resolve demo.example:80:127.0.0.1";
        host.sh(&self.named(&format!("{curl} {read}")))
    }

    fn home(&self, host: &Host) -> Result<()> {
        let script = self.named(FILES);
        let [directories, archive] = [self.directories.to_string(), self.archive.to_string()];
        let argv = ["runuser", "-u", self.name, "--", "bash", "-euc", &script, "home"];
        host.exec(&[&argv[..], &[&directories, &archive]].concat())?.ok()?;
        Ok(())
    }

    fn databases(&self, host: &Host) -> Result<()> {
        let feed = |argv: &[&str], text: &str| -> Result<()> {
            let argv: Vec<String> = argv.iter().map(|word| self.named(word)).collect();
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            host.exec_with(&argv, self.named(text).as_bytes(), EXEC_LIMIT)?.ok()?;
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

    fn site(&self, host: &Host) -> Result<()> {
        let files = [
            ("/home/demo/site/public/index.php", 0o644, INDEX),
            ("/home/demo/site/settings.php", 0o600, SETTINGS),
            ("/etc/nginx/sites-enabled/demo.conf", 0o644, NGINX),
            ("/etc/php/8.2/fpm/pool.d/demo.conf", 0o644, POOL),
        ];
        for (path, mode, content) in files {
            host.write_file(&self.named(path), mode, self.named(content).as_bytes())?;
        }
        host.sh(&self.named("chown -R demo:demo /home/demo/site"))?;
        host.sh("nginx -t -q; systemctl restart php8.2-fpm; systemctl reload nginx")
            .context("starting the site")?;
        wait::until("the site to answer", DELIVERY_LIMIT, || {
            Ok(self.visit(host).is_ok().then_some(()))
        })
    }

    fn mail(&self, host: &Host) -> Result<()> {
        host.write_file("/etc/dovecot/conf.d/auth-hosted.conf", 0o644, DOVECOT.as_bytes())?;
        host.sh(&self.named(MAIL)).context("setting mail up")?;
        let send = self.named(SEND);
        for mailbox in MAILBOXES {
            host.exec(&["sh", "-euc", &send, "sh", mailbox, &MESSAGES.to_string()])?.ok()?;
        }
        for mailbox in MAILBOXES {
            let what = format!("the first messages of {mailbox}");
            wait::until(&what, DELIVERY_LIMIT, || {
                // Looking makes Dovecot give each message the id that must never change.
                Ok((self.uids(host, mailbox)?.len() == MESSAGES).then_some(()))
            })?;
        }
        host.sh(&self.named("ls /home/demo/mail/info/dovecot-uidlist >/dev/null"))
            .context("no dovecot-uidlist")?;
        Ok(())
    }

    /// What mail programs know the mailbox's messages by: each one's UID, with the Message-ID that it
    /// must go on meaning. Looked at by Dovecot's own tool, whose output no mail program limits.
    pub fn uids(&self, host: &Host, mailbox: &str) -> Result<Vec<String>> {
        let owner = format!("{mailbox}@{}", self.domain());
        let query = ["-u", &owner, "uid hdr.message-id", "mailbox", "INBOX"];
        let said = host.exec(&[&["doveadm", "-f", "tab", "fetch"], &query[..]].concat())?.ok();
        let said = said.with_context(|| format!("reading mailbox {mailbox} on {}", host.name()))?;
        // The first line names the columns.
        Ok(said.lines().skip(1).map(str::to_owned).collect())
    }
}

/// Waits until the account's crontab is in force on a server that has taken the account over.
pub fn await_crontab(host: &Host) -> Result<()> {
    wait::until(&format!("the crontab to be in force on {}", host.name()), CRON_LIMIT, || {
        let said = host.exec(&["crontab", "-u", ACCOUNT, "-l"])?;
        Ok((said.stdout == CRONTAB.as_bytes()).then_some(()))
    })
}

/// Writes the sample account's definition where the agent looks for it.
pub fn define(host: &Host) -> Result<()> {
    DEMO.define(host)
}

/// Visits the sample account's site on the host itself; tells what it said.
pub fn visit(host: &Host) -> Result<String> {
    DEMO.visit(host)
}

/// The sample account's messages: see [`Sample::uids`].
pub fn mailbox_uids(host: &Host, mailbox: &str) -> Result<Vec<String>> {
    DEMO.uids(host, mailbox)
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
