//! What stands in the way of receiving an account on this PostgreSQL server.

use std::collections::{BTreeMap, BTreeSet};

use ferry_proto::Fault;

use super::inspect::{database_list, role_list};
use super::record::{DatabaseRecord, PostgresqlRecord, Provider, RoleRecord};
use super::session::{Session, text};
use super::{PostgresqlConfig, tools};
use crate::model::{Existing, Finding, Level, Spec};

const WHAT: &str = "the target's PostgreSQL server cannot be inspected";

/// What is here under the account's names.
#[derive(Default)]
pub(super) struct Present {
    /// Databases, and whether each bears the account's mark.
    pub(super) databases: BTreeMap<String, bool>,
    /// Roles that bear the account's mark.
    pub(super) marked_roles: BTreeSet<String>,
    /// Roles that do not, but may not log in.
    pub(super) closed_roles: BTreeSet<String>,
    /// Roles that may log in.
    pub(super) open_roles: BTreeSet<String>,
}

pub(super) async fn present(session: &Session, spec: &Spec) -> Result<Present, Fault> {
    let mut found = Present::default();
    let sql = format!(
        "SELECT datname, coalesce(shobj_description(oid, 'pg_database') = {}, false) FROM pg_database WHERE datname IN {}",
        text(&spec.mark()),
        database_list(spec)
    );
    for row in session.rows(WHAT, &sql).await? {
        found.databases.insert(row.text(0), row.is(1));
    }
    let sql = format!(
        "SELECT rolname, coalesce(shobj_description(oid, 'pg_authid') = {}, false), rolcanlogin FROM pg_roles WHERE rolname IN {}",
        text(&spec.mark()),
        role_list(spec)
    );
    for row in session.rows(WHAT, &sql).await? {
        let set = if row.is(1) {
            &mut found.marked_roles
        } else if row.is(2) {
            &mut found.open_roles
        } else {
            &mut found.closed_roles
        };
        set.insert(row.text(0));
    }
    Ok(found)
}

/// What of it is in the way.
pub(super) fn taken(present: &Present, existing: Existing) -> Vec<Finding> {
    let blocker = |subject: String, what: &str, remedy: &str| {
        let message = format!("{subject} {what}");
        Finding::new(Level::Blocker, subject, message, remedy)
    };
    let (what, remedy) = match existing {
        Existing::Refuse => (
            "exists at the target already",
            "rename or remove it at the target, if it is not needed there",
        ),
        Existing::Replace => (
            "can log in at the target, so the account's copy there is not closed",
            "find out which server serves the account before going on",
        ),
    };
    let mut found = Vec::new();
    if existing == Existing::Refuse {
        let others = present.databases.iter().filter(|(_, marked)| !**marked);
        found.extend(others.map(|(name, _)| blocker(format!("database {name}"), what, remedy)));
        let closed = present.closed_roles.iter();
        found.extend(closed.map(|r| blocker(format!("PostgreSQL role {r}"), what, remedy)));
    }
    let open = present.open_roles.iter();
    found.extend(open.map(|r| blocker(format!("PostgreSQL role {r}"), what, remedy)));
    found
}

pub(super) async fn check(
    config: &PostgresqlConfig,
    spec: &Spec,
    record: &PostgresqlRecord,
    existing: Existing,
) -> Result<Vec<Finding>, Fault> {
    record.check(spec)?;
    let session = Session::open(config, &config.maintenance_database).await?;
    let mut findings = taken(&present(&session, spec).await?, existing);
    for database in &record.databases {
        locale(&session, database, &mut findings).await?;
        extensions(&session, database, &mut findings).await?;
    }
    findings.extend(old_passwords(&session, record).await?);
    if let Err(fault) = tools::find(config, session.major(), "psql").await {
        findings.push(Finding::new(Level::Blocker, "psql", fault.message, fault.remedy));
    }
    let place = (config.host.as_str(), config.port);
    if let Err(error) = tokio::net::TcpStream::connect(place).await {
        findings.push(Finding::new(
            Level::Blocker,
            "PostgreSQL server",
            format!("the target's PostgreSQL does not take connections at {}:{}: {error}", config.host, config.port),
            "dumps are loaded by a temporary role that logs in there: let the server listen on it (listen_addresses), as Debian does",
        ));
    }
    if record.major > session.major() {
        findings.push(Finding::new(
            Level::Note,
            "PostgreSQL server",
            format!("the target's PostgreSQL {} is older than the source's {}; what it does not know stops the load", session.version(), record.version),
            "",
        ));
    }
    Ok(findings)
}

/// A role whose password is kept as MD5 is let in only where `pg_hba.conf` says md5 (or less).
async fn old_passwords(
    session: &Session,
    record: &PostgresqlRecord,
) -> Result<Option<Finding>, Fault> {
    let old =
        |r: &&RoleRecord| r.login && r.verifier.as_ref().is_some_and(|v| v.0.starts_with("md5"));
    let roles: Vec<&str> = record.roles.iter().filter(old).map(|r| r.name.as_str()).collect();
    let sql = "SELECT 1 FROM pg_hba_file_rules WHERE auth_method IN ('md5', 'password') LIMIT 1";
    if roles.is_empty() || !session.rows(WHAT, sql).await?.is_empty() {
        return Ok(None);
    }
    Ok(Some(Finding::new(
        Level::Warning,
        format!("PostgreSQL role {}", roles.join(", ")),
        format!(
            "the password of {} is kept as MD5, with which the target's pg_hba.conf lets nobody in",
            roles.join(", ")
        ),
        "set the password again at the source (password_encryption = scram-sha-256), or let the target's pg_hba.conf say md5",
    )))
}

async fn locale(
    session: &Session,
    database: &DatabaseRecord,
    findings: &mut Vec<Finding>,
) -> Result<(), Fault> {
    let subject = format!("database {}", database.name);
    let major = session.major();
    let mut lacks = |what: String, remedy: &str| {
        let message = format!("{subject} needs {what}, which the target does not have");
        findings.push(Finding::new(Level::Blocker, &subject, message, remedy));
    };
    let needs = match database.locale.provider {
        Provider::Libc => 0,
        Provider::Icu => 15,
        Provider::Builtin => 17,
    };
    if major < needs {
        lacks(format!("the locale provider of PostgreSQL {needs}"), "choose a newer target");
    }
    for name in [&database.locale.collate, &database.locale.ctype] {
        // The server checks the locale as the system has it.
        let sql = format!("BEGIN; SET LOCAL lc_monetary = {}; ROLLBACK", text(name));
        match session.try_run(&sql).await {
            Ok(()) => {}
            Err(error) if error.as_db_error().is_some() => {
                session.run(WHAT, "ROLLBACK").await?;
                lacks(
                    format!("the locale {name}"),
                    "generate the locale at the target (dpkg-reconfigure locales) and restart PostgreSQL",
                );
            }
            Err(error) => return Err(super::session::refused(WHAT, &error)),
        }
    }
    Ok(())
}

async fn extensions(
    session: &Session,
    database: &DatabaseRecord,
    findings: &mut Vec<Finding>,
) -> Result<(), Fault> {
    for extension in &database.extensions {
        let sql = format!(
            "SELECT default_version FROM pg_available_extensions WHERE name = {}",
            text(&extension.name)
        );
        let subject = format!("extension {}.{}", database.name, extension.name);
        match session.value(WHAT, &sql).await? {
            None => findings.push(Finding::new(
                Level::Blocker,
                &subject,
                format!("{subject} is not installed on the target"),
                "install it at the target (postgresql-contrib)",
            )),
            Some(version) if version != extension.version => findings.push(Finding::new(
                Level::Note,
                &subject,
                format!(
                    "{subject} has version {} here and {version} at the target",
                    extension.version
                ),
                "",
            )),
            Some(_) => {}
        }
    }
    Ok(())
}
