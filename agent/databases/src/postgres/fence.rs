//! The fence: logins and connections refused by the server itself, and nobody connected any more.

use std::time::{Duration, Instant};

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};

use super::inspect::{database_list, role_list};
use super::provision::INVALID;
use super::session::{Row, Session, ident};
use crate::model::Spec;

const WHAT: &str = "the account's connections to PostgreSQL cannot be seen";
/// How often the connections are looked at.
const POLL: Duration = Duration::from_millis(25);
/// How long a transaction that was ended may take to go away.
const END_LIMIT: Duration = Duration::from_secs(60);

/// The state before a fence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresqlFence {
    roles: Vec<RoleLogin>,
    databases: Vec<DatabaseLimit>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RoleLogin {
    name: String,
    login: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct DatabaseLimit {
    name: String,
    connection_limit: i32,
}

impl PostgresqlFence {
    /// Whether a role could log in before the fence; none: the fence does not know the role.
    pub(super) fn login(&self, role: &str) -> Option<bool> {
        self.roles.iter().find(|r| r.name == role).map(|r| r.login)
    }

    /// A database's limit before the fence.
    pub(super) fn connection_limit(&self, database: &str) -> Option<i32> {
        self.databases.iter().find(|d| d.name == database).map(|d| d.connection_limit)
    }
}

/// How logins and databases stand. A database whose dropping was cut off lets nobody in and cannot be altered:
/// it is left out.
pub(super) async fn plan(session: &Session, spec: &Spec) -> Result<PostgresqlFence, Fault> {
    let what = "the state before the fence cannot be read";
    let sql =
        format!("SELECT rolname, rolcanlogin FROM pg_roles WHERE rolname IN {}", role_list(spec));
    let roles = session.rows(what, &sql).await?;
    let sql = format!(
        "SELECT datname, datconnlimit FROM pg_database WHERE datconnlimit <> {INVALID} AND datname IN {}",
        database_list(spec)
    );
    let databases = session.rows(what, &sql).await?;
    let limit = |r: &Row| i32::try_from(r.number(1)).unwrap_or(-1);
    Ok(PostgresqlFence {
        roles: roles.iter().map(|r| RoleLogin { name: r.text(0), login: r.is(1) }).collect(),
        databases: databases
            .iter()
            .map(|r| DatabaseLimit { name: r.text(0), connection_limit: limit(r) })
            .collect(),
    })
}

pub(super) async fn fence(session: &Session, spec: &Spec, grace: Duration) -> Result<(), Fault> {
    let now = plan(session, spec).await?;
    let mut sql = String::from("BEGIN;");
    for role in &now.roles {
        sql.push_str(&format!("ALTER ROLE {} NOLOGIN;", ident(&role.name)));
    }
    for database in &now.databases {
        sql.push_str(&format!("ALTER DATABASE {} CONNECTION LIMIT 0;", ident(&database.name)));
    }
    sql.push_str("COMMIT");
    session
        .run(&format!("the PostgreSQL roles of {} cannot be locked", spec.account), &sql)
        .await?;
    drain(session, spec, grace).await
}

pub(super) async fn unfence(
    session: &Session,
    spec: &Spec,
    fence: &PostgresqlFence,
) -> Result<(), Fault> {
    // What the owner's administrator dropped meanwhile cannot be opened, and stops nothing.
    let now = plan(session, spec).await?;
    let mut sql = String::from("BEGIN;");
    for role in fence.roles.iter().filter(|r| r.login && now.login(&r.name).is_some()) {
        sql.push_str(&format!("ALTER ROLE {} LOGIN;", ident(&role.name)));
    }
    for database in fence.databases.iter().filter(|d| now.connection_limit(&d.name).is_some()) {
        sql.push_str(&format!(
            "ALTER DATABASE {} CONNECTION LIMIT {};",
            ident(&database.name),
            database.connection_limit
        ));
    }
    sql.push_str("COMMIT");
    session
        .run(&format!("the PostgreSQL roles of {} cannot be let in again", spec.account), &sql)
        .await
}

pub(super) async fn is_fenced(session: &Session, spec: &Spec) -> Result<bool, Fault> {
    let now = plan(session, spec).await?;
    let closed =
        now.roles.iter().all(|r| !r.login) && now.databases.iter().all(|d| d.connection_limit == 0);
    Ok(closed && session.rows(WHAT, &connections(spec)).await?.is_empty())
}

/// The account's connections: those of its roles, and those of others (superusers apart) to its
/// databases; and whether each is in the middle of something.
fn connections(spec: &Spec) -> String {
    format!(
        "SELECT a.pid, a.state = 'idle' AND now() - a.state_change > interval '250 ms' \
         FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid \
         WHERE a.pid <> pg_backend_pid() AND (a.usename IN {} \
         OR (a.datname IN {} AND a.backend_type = 'client backend' AND NOT coalesce(r.rolsuper, false)))",
        role_list(spec),
        database_list(spec)
    )
}

/// Waits until the account's connections have come to an end by themselves or are quiet, at most
/// for `grace`; ends them; returns when the last is gone, and with it the last transaction.
async fn drain(session: &Session, spec: &Spec, grace: Duration) -> Result<(), Fault> {
    let start = Instant::now();
    // Someone in the middle of connecting may have passed the check of the limit already: such a
    // one holds a lock on the database until it is seen among the connections. So the locks are
    // looked at first.
    let connecting = format!(
        "SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.objid \
         WHERE l.locktype = 'object' AND l.classid = 'pg_database'::regclass AND d.datname IN {} \
         AND l.pid <> pg_backend_pid()",
        database_list(spec)
    );
    loop {
        let entering = session.rows(WHAT, &connecting).await?;
        let left = session.rows(WHAT, &connections(spec)).await?;
        if left.is_empty() && entering.is_empty() {
            return Ok(());
        }
        if start.elapsed() >= grace || left.iter().all(|c| c.is(1)) {
            for row in &left {
                let sql = format!("SELECT pg_terminate_backend({})", row.number(0));
                session.rows("a connection to PostgreSQL cannot be ended", &sql).await?;
            }
        }
        if start.elapsed() > grace + END_LIMIT {
            return Err(Fault::transient(format!(
                "{} connections of account {} to PostgreSQL do not end",
                left.len().max(entering.len()),
                spec.account
            ))
            .remedy("look at pg_stat_activity and pg_locks"));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Ends the connections that a query names and waits until they are gone.
pub(super) async fn end_connections(session: &Session, pids: &str) -> Result<(), Fault> {
    let start = Instant::now();
    loop {
        let left = session.rows(WHAT, pids).await?;
        if left.is_empty() {
            return Ok(());
        }
        for row in &left {
            let sql = format!("SELECT pg_terminate_backend({})", row.number(0));
            session.rows("a connection to PostgreSQL cannot be ended", &sql).await?;
        }
        if start.elapsed() > END_LIMIT {
            return Err(Fault::transient(
                "a connection to PostgreSQL that was ended does not go away",
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}
