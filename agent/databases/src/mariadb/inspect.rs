//! What an account has on a MariaDB server, what is recorded of it, and what stands in the way of
//! moving it away.

use std::collections::{BTreeMap, BTreeSet};

use ferry_proto::Fault;
use ferry_proto::account::EngineKind;

use super::record::{DatabaseRecord, EventName, MariadbRecord, PLUGINS};
use super::session::{Session, ident, text, text_list};
use super::{MariadbFence, grants, strangers, users};
use crate::model::{
    DatabaseFacts, Facts, Finding, Level, ServerFacts, Spec, free_bytes, host_of, user_label,
};

const WHAT: &str = "the account's databases cannot be inspected";

/// Column types that came with a release, as `mysql`'s number has it.
pub(super) const NEW_TYPES: &[(&str, u32)] = &[
    ("inet6", 100_500),
    ("uuid", 100_700),
    ("inet4", 101_000),
    ("vector", 110_700),
    ("xmltype", 120_300),
];

/// Databases of the account as an SQL list.
pub(super) fn database_list(spec: &Spec) -> String {
    text_list(spec.databases.iter().map(|d| d.as_str()))
}

/// The account's users as a condition on two columns.
pub(super) fn user_condition(spec: &Spec, name: &str, host: &str) -> String {
    let each: Vec<String> = spec
        .users
        .iter()
        .map(|u| format!("({name} = {} AND {host} = {})", text(u.name.as_str()), text(host_of(u))))
        .collect();
    if each.is_empty() { "FALSE".to_owned() } else { each.join(" OR ") }
}

pub(super) async fn server(session: &mut Session) -> Result<ServerFacts, Fault> {
    let data_dir = session.value(WHAT, "SELECT @@datadir").await?;
    let free_bytes = free_bytes(data_dir.clone()).await;
    Ok(ServerFacts {
        engine: EngineKind::Mariadb,
        version: session.version().to_owned(),
        free_bytes,
        data_dir,
    })
}

/// Names everything of the definition that the server lacks.
async fn check_present(session: &mut Session, spec: &Spec) -> Result<(), Fault> {
    let sql = format!(
        "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME IN {}",
        database_list(spec)
    );
    let there: BTreeSet<String> =
        session.rows(WHAT, &sql).await?.iter().map(|r| r.text(0)).collect();
    let mut missing: Vec<String> = spec
        .databases
        .iter()
        .filter(|d| !there.contains(d.as_str()))
        .map(|d| format!("database {d}"))
        .collect();
    let logins = users::read(session, &user_condition(spec, "User", "Host")).await?;
    for user in &spec.users {
        if !logins.iter().any(|l| l.name == user.name.as_str() && l.host == host_of(user)) {
            missing.push(format!("user {}", user_label(user)));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Fault::precondition(format!(
        "account {} names what the MariaDB server does not have: {}",
        spec.account,
        missing.join(", ")
    ))
    .remedy("correct the account's definition, or create what is missing"))
}

pub(super) async fn inspect(session: &mut Session, spec: &Spec) -> Result<Facts, Fault> {
    check_present(session, spec).await?;
    let mut databases = Vec::new();
    for name in &spec.databases {
        databases.push(database_facts(session, name.as_str()).await?);
    }
    let mut findings = definers(session, spec).await?;
    findings.extend(strangers::findings(session, spec).await?);
    findings.extend(oddities(session, spec).await?);
    for login in users::read(session, &user_condition(spec, "User", "Host")).await? {
        let (_, more) = grants::read(session, spec, &login.name, &login.host).await?;
        findings.extend(more);
        for auth in login.record().auth {
            if !PLUGINS.contains(&auth.plugin.as_str()) {
                let subject = format!("MariaDB user {}@{}", login.name, login.host);
                findings.push(Finding::new(
                    Level::Blocker,
                    &subject,
                    format!("{subject} logs in by {}, which Ferry does not carry", auth.plugin),
                    "give the user a password (mysql_native_password or ed25519)",
                ));
            }
        }
    }
    Ok(Facts { server: server(session).await?, databases, findings })
}

/// The size of each database's rows, indexes left out: a dump does not carry them.
pub(super) async fn data_sizes(session: &mut Session, spec: &Spec) -> Result<Vec<u64>, Fault> {
    let sql = format!(
        "SELECT TABLE_SCHEMA, SUM(DATA_LENGTH) FROM information_schema.TABLES \
         WHERE TABLE_SCHEMA IN {} GROUP BY TABLE_SCHEMA",
        database_list(spec)
    );
    let rows = session.rows(WHAT, &sql).await?;
    let sizes: BTreeMap<String, u64> = rows.iter().map(|r| (r.text(0), r.number(1))).collect();
    let size = |name: &str| sizes.get(name).copied().unwrap_or_default();
    Ok(spec.databases.iter().map(|d| size(d.as_str())).collect())
}

async fn database_facts(session: &mut Session, name: &str) -> Result<DatabaseFacts, Fault> {
    let db = text(name);
    let sql = format!(
        "SELECT s.DEFAULT_CHARACTER_SET_NAME, s.DEFAULT_COLLATION_NAME, \
         (SELECT SUM(DATA_LENGTH + INDEX_LENGTH) FROM information_schema.TABLES WHERE TABLE_SCHEMA = {db}), \
         (SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = {db} AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED')), \
         (SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = {db} AND TABLE_TYPE = 'VIEW'), \
         (SELECT COUNT(*) FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {db}), \
         (SELECT COUNT(*) FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {db}), \
         (SELECT COUNT(*) FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {db}), \
         (SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = {db} AND TABLE_TYPE = 'SEQUENCE') \
         FROM information_schema.SCHEMATA s WHERE s.SCHEMA_NAME = {db}"
    );
    let rows = session.rows(WHAT, &sql).await?;
    let Some(row) = rows.first() else {
        return Err(Fault::transient(format!("database {name} went away while it was inspected")));
    };
    Ok(DatabaseFacts {
        name: name.to_owned(),
        charset: row.text(0),
        collation: row.text(1),
        size_bytes: row.number(2),
        tables: row.number(3),
        views: row.number(4),
        routines: row.number(5),
        triggers: row.number(6),
        events: row.number(7),
        sequences: row.number(8),
        ..DatabaseFacts::default()
    })
}

/// Views, routines, triggers and events that run with the rights of a user outside the account.
async fn definers(session: &mut Session, spec: &Spec) -> Result<Vec<Finding>, Fault> {
    let list = database_list(spec);
    let sql = format!(
        "SELECT 'view', TABLE_SCHEMA, TABLE_NAME, DEFINER FROM information_schema.VIEWS WHERE TABLE_SCHEMA IN {list} \
         UNION ALL SELECT LOWER(ROUTINE_TYPE), ROUTINE_SCHEMA, ROUTINE_NAME, DEFINER FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA IN {list} \
         UNION ALL SELECT 'trigger', TRIGGER_SCHEMA, TRIGGER_NAME, DEFINER FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA IN {list} \
         UNION ALL SELECT 'event', EVENT_SCHEMA, EVENT_NAME, DEFINER FROM information_schema.EVENTS WHERE EVENT_SCHEMA IN {list}"
    );
    let mut findings = Vec::new();
    for row in session.rows(WHAT, &sql).await? {
        let definer = row.text(3);
        let (name, host) = definer.rsplit_once('@').unwrap_or((&definer, ""));
        if !is_ours(spec, name, host) {
            let subject = format!("{} {}.{}", row.text(0), row.text(1), row.text(2));
            findings.push(Finding::new(
                Level::Blocker,
                &subject,
                format!("{subject} runs with the rights of {definer}, who is not of the account"),
                "create it again as one of the account's own users (DEFINER), or add that user to the definition",
            ));
        }
    }
    Ok(findings)
}

pub(super) fn is_ours(spec: &Spec, name: &str, host: &str) -> bool {
    spec.users.iter().any(|u| u.name.as_str() == name && host_of(u) == host)
}

/// Views that are broken, transactions left prepared, history that a dump would lose.
async fn oddities(session: &mut Session, spec: &Spec) -> Result<Vec<Finding>, Fault> {
    let mut findings = Vec::new();
    for database in &spec.databases {
        for view in broken_views(session, database.as_str()).await? {
            findings.push(Finding::new(
                Level::Warning,
                format!("view {database}.{view}"),
                format!("view {database}.{view} does not work: it refers to something that is not there; it is not carried"),
                "mend or drop the view",
            ));
        }
    }
    let sql = format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE, ENGINE FROM information_schema.TABLES \
         WHERE TABLE_SCHEMA IN {} AND (TABLE_TYPE = 'SYSTEM VERSIONED' OR \
         (TABLE_TYPE = 'BASE TABLE' AND ENGINE IS NULL))",
        database_list(spec)
    );
    for row in session.rows(WHAT, &sql).await? {
        let subject = format!("table {}.{}", row.text(0), row.text(1));
        let (message, remedy) = if row.text(2) == "SYSTEM VERSIONED" {
            (
                "keeps the history of its rows, which a dump does not carry",
                "drop the table's system versioning, or move the history apart",
            )
        } else {
            ("cannot be opened by the server", "repair or drop the table")
        };
        findings.push(Finding::new(
            Level::Blocker,
            &subject,
            format!("{subject} {message}"),
            remedy,
        ));
    }
    let prepared = session.rows(WHAT, "XA RECOVER").await?;
    if !prepared.is_empty() {
        findings.push(Finding::new(
            Level::Warning,
            "MariaDB server",
            format!("{} prepared (XA) transactions wait for their outcome; if one is the account's, its changes are not carried", prepared.len()),
            "commit or roll back prepared transactions (XA RECOVER) before the move",
        ));
    }
    Ok(findings)
}

/// Views that refer to something that is not there. The server says so only when each is opened.
pub(super) async fn broken_views(
    session: &mut Session,
    database: &str,
) -> Result<Vec<String>, Fault> {
    let mut broken = Vec::new();
    for view in views(session, database).await? {
        let sql = format!("SHOW FIELDS FROM {}.{}", ident(database), ident(&view));
        match session.try_rows(&sql).await {
            Ok(_) => {}
            Err(mysql_async::Error::Server(_)) => broken.push(view),
            Err(error) => return Err(super::session::refused(WHAT, &error)),
        }
    }
    Ok(broken)
}

/// Views that do not work here, the broken ones included: their definer may lack a right.
async fn unusable_views(session: &mut Session, database: &str) -> Result<BTreeSet<String>, Fault> {
    let mut unusable = BTreeSet::new();
    for view in views(session, database).await? {
        let sql = format!("CHECK TABLE {}.{}", ident(database), ident(&view));
        let said = session.rows(WHAT, &sql).await?;
        if said.iter().any(|row| row.text(2).eq_ignore_ascii_case("error")) {
            unusable.insert(view);
        }
    }
    Ok(unusable)
}

async fn views(session: &mut Session, database: &str) -> Result<Vec<String>, Fault> {
    let sql = format!(
        "SELECT TABLE_NAME FROM information_schema.VIEWS WHERE TABLE_SCHEMA = {} ORDER BY TABLE_NAME",
        text(database)
    );
    Ok(session.rows(WHAT, &sql).await?.iter().map(|r| r.text(0)).collect())
}

pub(super) async fn record(
    session: &mut Session,
    spec: &Spec,
    fence: Option<&MariadbFence>,
) -> Result<MariadbRecord, Fault> {
    check_present(session, spec).await?;
    let mut databases = Vec::new();
    for name in &spec.databases {
        databases.push(database_record(session, name.as_str()).await?);
    }
    let mut user_records = Vec::new();
    for login in users::read(session, &user_condition(spec, "User", "Host")).await? {
        let mut record = login.record();
        if let Some(before) = fence.and_then(|f| f.locked(&login.name, &login.host)) {
            record.locked = before;
        }
        record.grants = grants::read(session, spec, &login.name, &login.host).await?.0;
        user_records.push(record);
    }
    let running_events = match fence {
        Some(fence) => fence.running_events(),
        None => running_events(session, spec).await?,
    };
    let settings =
        session.rows(WHAT, "SELECT @@GLOBAL.max_allowed_packet, @@GLOBAL.event_scheduler").await?;
    Ok(MariadbRecord {
        version: session.version().to_owned(),
        max_allowed_packet: settings.first().map_or(0, |r| r.number(0)),
        event_scheduler: settings.first().is_some_and(|r| r.text(1) == "ON"),
        databases,
        users: user_records,
        running_events,
    })
}

/// The account's events that are enabled now.
pub(super) async fn running_events(
    session: &mut Session,
    spec: &Spec,
) -> Result<BTreeSet<EventName>, Fault> {
    let sql = format!(
        "SELECT EVENT_SCHEMA, EVENT_NAME FROM information_schema.EVENTS \
         WHERE EVENT_SCHEMA IN {} AND STATUS = 'ENABLED'",
        database_list(spec)
    );
    let rows = session.rows(WHAT, &sql).await?;
    Ok(rows.iter().map(|r| EventName { database: r.text(0), name: r.text(1) }).collect())
}

async fn database_record(session: &mut Session, name: &str) -> Result<DatabaseRecord, Fault> {
    let db = text(name);
    let sql = format!(
        "SELECT DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME, SCHEMA_COMMENT \
         FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {db}"
    );
    let rows = session.rows(WHAT, &sql).await?;
    let Some(schema) = rows.first() else {
        return Err(Fault::transient(format!("database {name} went away while it was recorded")));
    };
    let mut words: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let sql = format!(
        "SELECT 'collation', TABLE_COLLATION FROM information_schema.TABLES WHERE TABLE_SCHEMA = {db} \
         UNION SELECT 'collation', COLLATION_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = {db} \
         UNION SELECT 'collation', COLLATION_CONNECTION FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {db} \
         UNION SELECT 'collation', COLLATION_CONNECTION FROM information_schema.VIEWS WHERE TABLE_SCHEMA = {db} \
         UNION SELECT 'collation', COLLATION_CONNECTION FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {db} \
         UNION SELECT 'collation', COLLATION_CONNECTION FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {db} \
         UNION SELECT 'engine', ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = {db} AND TABLE_TYPE <> 'VIEW' \
         UNION SELECT 'type', LOWER(DATA_TYPE) FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = {db}"
    );
    for row in session.rows(WHAT, &sql).await? {
        let kind = match row.text(0).as_str() {
            "collation" => "collation",
            "engine" => "engine",
            _ => "type",
        };
        words.entry(kind).or_default().extend(row.opt(1).filter(|w| !w.is_empty()));
    }
    let mut collations = words.remove("collation").unwrap_or_default();
    collations.insert(schema.text(1));
    let types = words.remove("type").unwrap_or_default();
    let sql = format!(
        "SELECT DISTINCT TIME_ZONE FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {db}"
    );
    let time_zones = session.rows(WHAT, &sql).await?.iter().map(|r| r.text(0)).collect();
    let sql = format!(
        "SELECT (SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = {db} AND TABLE_TYPE = 'SYSTEM VERSIONED'), \
         (SELECT MAX(DATA_LENGTH) FROM information_schema.TABLES t WHERE TABLE_SCHEMA = {db} AND EXISTS \
         (SELECT 1 FROM information_schema.COLUMNS c WHERE c.TABLE_SCHEMA = {db} AND c.TABLE_NAME = t.TABLE_NAME \
         AND c.DATA_TYPE IN ('mediumblob', 'longblob', 'mediumtext', 'longtext', 'geometry')))"
    );
    let rows = session.rows(WHAT, &sql).await?;
    Ok(DatabaseRecord {
        name: name.to_owned(),
        charset: schema.text(0),
        collation: schema.text(1),
        comment: schema.text(2),
        collations,
        storage_engines: words.remove("engine").unwrap_or_default(),
        types: types.into_iter().filter(|t| NEW_TYPES.iter().any(|(n, _)| n == t)).collect(),
        versioned: rows.first().is_some_and(|r| r.number(0) > 0),
        time_zones,
        largest_blob_table: rows.first().map_or(0, |r| r.number(1)),
        unusable_views: unusable_views(session, name).await?,
    })
}
