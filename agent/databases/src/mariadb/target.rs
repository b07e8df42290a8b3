//! What stands in the way of receiving an account on this MariaDB server.

use std::collections::BTreeSet;

use ferry_proto::Fault;

use super::inspect::NEW_TYPES;
use super::record::MariadbRecord;
use super::session::{Session, text};
use super::{MariadbConfig, load, strangers, users};
use crate::model::{Existing, Finding, Level, Spec, host_of, user_label};

const WHAT: &str = "the target's MariaDB server cannot be inspected";

/// What is here under the account's names.
pub(super) struct Present {
    /// Databases that bear the account's mark.
    pub(super) marked_databases: BTreeSet<String>,
    /// Databases that do not.
    pub(super) other_databases: BTreeSet<String>,
    /// Users that bear the account's mark.
    pub(super) marked_users: BTreeSet<String>,
    /// Users that do not but are locked.
    pub(super) locked_users: BTreeSet<String>,
    /// Users that can log in.
    pub(super) open_users: BTreeSet<String>,
}

pub(super) async fn present(session: &mut Session, spec: &Spec) -> Result<Present, Fault> {
    let mut found = Present {
        marked_databases: BTreeSet::new(),
        other_databases: BTreeSet::new(),
        marked_users: BTreeSet::new(),
        locked_users: BTreeSet::new(),
        open_users: BTreeSet::new(),
    };
    for database in &spec.databases {
        match comment(session, database.as_str()).await? {
            Some(comment) if comment == spec.mark() => {
                found.marked_databases.insert(database.to_string());
            }
            Some(_) => {
                found.other_databases.insert(database.to_string());
            }
            None => {}
        }
    }
    for user in &spec.users {
        let Some(login) = users::find(session, user.name.as_str(), host_of(user)).await? else {
            continue;
        };
        let set = if login.bears_mark(spec) {
            &mut found.marked_users
        } else if login.locked() {
            &mut found.locked_users
        } else {
            &mut found.open_users
        };
        set.insert(user_label(user));
    }
    Ok(found)
}

/// The comment of a database; none: there is no such database.
pub(super) async fn comment(
    session: &mut Session,
    database: &str,
) -> Result<Option<String>, Fault> {
    let sql = format!(
        "SELECT SCHEMA_COMMENT FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {}",
        text(database)
    );
    Ok(session.rows(WHAT, &sql).await?.first().map(|r| r.text(0)))
}

/// What of it is in the way.
pub(super) fn taken(present: &Present, existing: Existing) -> Vec<Finding> {
    let blocker = |subject: String, what: &str, remedy: &str| {
        let message = format!("{subject} {what}");
        Finding::new(Level::Blocker, subject, message, remedy)
    };
    let users = |set: &BTreeSet<String>, what: &str, remedy: &str| {
        set.iter().map(|u| blocker(format!("MariaDB user {u}"), what, remedy)).collect::<Vec<_>>()
    };
    match existing {
        Existing::Refuse => {
            let what = "exists at the target already";
            let remedy = "rename or remove it at the target, if it is not needed there";
            let names = present.other_databases.iter();
            let mut found: Vec<Finding> =
                names.map(|d| blocker(format!("database {d}"), what, remedy)).collect();
            found.extend(users(&present.locked_users, what, remedy));
            found.extend(users(&present.open_users, what, remedy));
            found
        }
        Existing::Replace => users(
            &present.open_users,
            "can log in at the target, so the account's copy there is not closed",
            "find out which server serves the account before going on",
        ),
    }
}

pub(super) async fn check(
    config: &MariadbConfig,
    session: &mut Session,
    spec: &Spec,
    record: &MariadbRecord,
    existing: Existing,
) -> Result<Vec<Finding>, Fault> {
    record.check(spec)?;
    let present = present(session, spec).await?;
    let mut findings = taken(&present, existing);
    // Whoever could write to the account's databases here would stand in the way of moving it back.
    findings.extend(strangers::findings(session, spec).await?);
    if let Err(fault) = load::client(config).await {
        findings.push(Finding::new(Level::Blocker, "mariadb", fault.message, fault.remedy));
    }
    findings.extend(plugins(session, record).await?);
    findings.extend(features(session, record).await?);
    findings.extend(time_zones(session, record).await?);
    findings.extend(settings(session, record).await?);
    Ok(findings)
}

async fn plugins(session: &mut Session, record: &MariadbRecord) -> Result<Vec<Finding>, Fault> {
    let sql = "SELECT LOWER(PLUGIN_NAME) FROM information_schema.PLUGINS \
               WHERE PLUGIN_TYPE = 'AUTHENTICATION' AND PLUGIN_STATUS = 'ACTIVE'";
    let known: BTreeSet<String> =
        session.rows(WHAT, sql).await?.iter().map(|r| r.text(0)).collect();
    let mut findings = Vec::new();
    for user in &record.users {
        for auth in &user.auth {
            if !known.contains(&auth.plugin.to_ascii_lowercase()) {
                let subject = format!("MariaDB user {}@{}", user.name, user.host);
                findings.push(Finding::new(
                    Level::Blocker,
                    &subject,
                    format!(
                        "{subject} logs in by {}, which the target's server does not have loaded",
                        auth.plugin
                    ),
                    format!("load it at the target: INSTALL SONAME 'auth_{}'", auth.plugin),
                ));
            }
        }
    }
    Ok(findings)
}

async fn features(session: &mut Session, record: &MariadbRecord) -> Result<Vec<Finding>, Fault> {
    let known = collations(session).await?;
    let sql =
        "SELECT UPPER(ENGINE) FROM information_schema.ENGINES WHERE SUPPORT IN ('YES', 'DEFAULT')";
    let engines: BTreeSet<String> =
        session.rows(WHAT, sql).await?.iter().map(|r| r.text(0)).collect();
    let number = session.number();
    let mut findings = Vec::new();
    for database in &record.databases {
        let mut lacks = |what: String, remedy: &str| {
            findings.push(Finding::new(
                Level::Blocker,
                format!("database {}", database.name),
                format!(
                    "database {} uses {what}, which the target's MariaDB {} does not know",
                    database.name,
                    session.version()
                ),
                remedy,
            ));
        };
        for name in &database.collations {
            if !known.contains(&name.to_ascii_lowercase()) {
                lacks(
                    format!("the collation {name}"),
                    "convert to a collation that both servers know, or choose a newer target",
                );
            }
        }
        for engine in &database.storage_engines {
            if !engines.contains(&engine.to_ascii_uppercase()) {
                lacks(
                    format!("the storage engine {engine}"),
                    "install the engine at the target, or convert the tables",
                );
            }
        }
        for name in &database.types {
            if NEW_TYPES.iter().any(|(n, since)| n == name && number < *since) {
                lacks(format!("the column type {name}"), "choose a newer target");
            }
        }
    }
    Ok(findings)
}

/// The collations that the server knows, the names of other releases for the same ones included.
async fn collations(session: &mut Session) -> Result<BTreeSet<String>, Fault> {
    let mut known = BTreeSet::new();
    let rows =
        session.rows(WHAT, "SELECT COLLATION_NAME FROM information_schema.COLLATIONS").await?;
    known.extend(rows.iter().map(|r| r.text(0).to_ascii_lowercase()));
    if session.number() >= 101_001 {
        let sql = "SELECT FULL_COLLATION_NAME FROM information_schema.COLLATION_CHARACTER_SET_APPLICABILITY";
        known.extend(session.rows(WHAT, sql).await?.iter().map(|r| r.text(0).to_ascii_lowercase()));
    }
    let aliases: Vec<String> = known
        .iter()
        .filter_map(|name| match name.strip_prefix("utf8mb3_") {
            Some(rest) => Some(format!("utf8_{rest}")),
            None => name.strip_prefix("utf8_").map(|rest| format!("utf8mb3_{rest}")),
        })
        .collect();
    known.extend(aliases);
    Ok(known)
}

/// Time zones with a name are known only to servers that were given a table of them.
async fn time_zones(session: &mut Session, record: &MariadbRecord) -> Result<Vec<Finding>, Fault> {
    let mut findings = Vec::new();
    for database in &record.databases {
        for zone in database.time_zones.iter().filter(|zone| *zone != "SYSTEM") {
            let sql = format!("SELECT CONVERT_TZ('2000-01-01', '+00:00', {}) IS NULL", text(zone));
            if session.value(WHAT, &sql).await? == "1" {
                findings.push(Finding::new(
                    Level::Blocker,
                    format!("database {}", database.name),
                    format!("database {} has events in the time zone {zone:?}, which the target's server does not know", database.name),
                    "load the time zones at the target: mariadb-tzinfo-to-sql /usr/share/zoneinfo | mariadb mysql",
                ));
            }
        }
    }
    Ok(findings)
}

async fn settings(session: &mut Session, record: &MariadbRecord) -> Result<Vec<Finding>, Fault> {
    let rows = session
        .rows(WHAT, "SELECT @@GLOBAL.max_allowed_packet, @@GLOBAL.event_scheduler, @@GLOBAL.lower_case_table_names")
        .await?;
    let Some(row) = rows.first() else {
        return Err(Fault::bug("MariaDB does not say its settings"));
    };
    let mut findings = Vec::new();
    let packet = row.number(0);
    // A dump writes a binary value as twice as many characters.
    let largest = record.databases.iter().map(|d| d.largest_blob_table).max().unwrap_or(0);
    let needed = largest.min(record.max_allowed_packet).saturating_mul(2).min(1 << 30);
    if needed > packet {
        findings.push(Finding::new(
            Level::Warning,
            "max_allowed_packet",
            format!("the target takes statements of {packet} bytes at most, and a row of the account could need up to {needed}"),
            format!("SET GLOBAL max_allowed_packet = {} at the target, and in its configuration", needed.next_multiple_of(1 << 20)),
        ));
    }
    if record.event_scheduler && !record.running_events.is_empty() && row.text(1) != "ON" {
        findings.push(Finding::new(
            Level::Blocker,
            "event_scheduler",
            "the account has events that run, and the target's server does not run events",
            "SET GLOBAL event_scheduler = ON at the target, and in its configuration (if it is DISABLED there: only in the configuration, and restart)",
        ));
    }
    if !record.event_scheduler && !record.running_events.is_empty() && row.text(1) == "ON" {
        findings.push(Finding::new(
            Level::Warning,
            "event_scheduler",
            "the account has events that are enabled but never ran, because the source's server runs no events; the target's does",
            "disable the events at the source, if they are not to run",
        ));
    }
    if row.number(2) != 0
        && record.databases.iter().any(|d| d.name.bytes().any(|b| b.is_ascii_uppercase()))
    {
        findings.push(Finding::new(
            Level::Blocker,
            "lower_case_table_names",
            "the target's server does not keep the case of database names",
            "choose a target with lower_case_table_names = 0",
        ));
    }
    Ok(findings)
}
