//! What Ferry has made in this PostgreSQL server and left: found by its marks and by the names that it
//! derives, whatever any record says; and taken away again.

use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::artefact::{Artefact, Kind};
use ferry_proto::ids::AccountName;

use super::inspect::database_list;
use super::load::UNTOUCHED;
use super::provision::{self, UNNAMED};
use super::session::{Session, ident, text};
use super::{PostgresqlConfig, temporary};
use crate::engine::not_ours;
use crate::model::{MARK, Spec, is_derived, temporary_user_of};

const WHAT: &str = "what Ferry has made in PostgreSQL cannot be seen";

fn artefact(kind: Kind, place: impl std::fmt::Display) -> Artefact {
    Artefact::new(kind, place).in_engine(EngineKind::Postgresql)
}

async fn open(config: &PostgresqlConfig) -> Result<Session, Fault> {
    Session::open(config, &config.maintenance_database).await
}

pub(super) async fn observe(
    config: &PostgresqlConfig,
    accounts: &[AccountName],
) -> Result<Vec<Artefact>, Fault> {
    let session = open(config).await?;
    let mut found = databases(config, &session).await?;
    let sql = format!(
        "SELECT rolname, coalesce(shobj_description(oid, 'pg_authid'), '') FROM pg_roles \
         WHERE starts_with(shobj_description(oid, 'pg_authid'), {}) OR starts_with(rolname, 'ferry_')",
        text(MARK)
    );
    for row in session.rows(WHAT, &sql).await? {
        let (name, comment) = (row.text(0), row.text(1));
        if let Some(account) = comment.strip_prefix(MARK) {
            found.push(artefact(Kind::DatabaseUser, name).of(account));
        } else if is_derived(&name, temporary::WORD) {
            let whose = accounts.iter().find(|a| temporary_user_of(a, temporary::WORD) == name);
            let one = artefact(Kind::TemporaryDatabaseUser, name);
            found.push(match whose {
                Some(account) => one.of(account.as_str()),
                None => one,
            });
        }
    }
    Ok(found)
}

async fn databases(config: &PostgresqlConfig, session: &Session) -> Result<Vec<Artefact>, Fault> {
    let sql = format!(
        "SELECT datname, coalesce(shobj_description(oid, 'pg_database'), '') FROM pg_database \
         WHERE starts_with(shobj_description(oid, 'pg_database'), {}) OR starts_with(datname, 'ferry_')",
        text(MARK)
    );
    let mut found = Vec::new();
    for row in session.rows(WHAT, &sql).await? {
        let (name, comment) = (row.text(0), row.text(1));
        let one = match comment.strip_prefix(MARK) {
            // One without its own name may bear the mark already.
            _ if is_derived(&name, UNNAMED) => artefact(Kind::TemporaryDatabase, &name)
                .of(comment.strip_prefix(MARK).unwrap_or_default()),
            Some(account) => artefact(Kind::Database, &name).of(account),
            None => continue,
        };
        found.push(if is_empty(config, session, &name).await? {
            one
        } else {
            one.by_hand(format!(
                "it has content: look whether that is elsewhere too, then DROP DATABASE {}",
                ident(&name)
            ))
        });
    }
    Ok(found)
}

/// Whether there is nothing in a database that somebody could miss.
async fn is_empty(
    config: &PostgresqlConfig,
    session: &Session,
    database: &str,
) -> Result<bool, Fault> {
    if provision::is_invalid(session, database).await? {
        return Ok(true);
    }
    let inside = Session::open(config, database).await?;
    Ok(inside.rows(WHAT, UNTOUCHED).await?.is_empty())
}

/// A database of the account takes no connection at all, as a fence leaves it.
pub(super) async fn left_closed(session: &Session, spec: &Spec) -> Result<Vec<Artefact>, Fault> {
    let sql = format!(
        "SELECT datname FROM pg_database WHERE datconnlimit = 0 AND datname IN {}",
        database_list(spec)
    );
    let rows = session.rows(WHAT, &sql).await?;
    let each = rows.iter().map(|row| row.text(0)).map(|name| {
        artefact(Kind::ClosedDatabase, &name).of(spec.account.as_str()).by_hand(format!(
            "it takes no connections: unless that is wanted, ALTER DATABASE {} CONNECTION LIMIT -1, \
             and let its roles log in (ALTER ROLE … LOGIN)",
            ident(&name)
        ))
    });
    Ok(each.collect())
}

pub(super) async fn remove(config: &PostgresqlConfig, artefact: &Artefact) -> Result<(), Fault> {
    let session = open(config).await?;
    let place = &artefact.place;
    let comment = |catalogue: &str, table: &str, name: &str| {
        format!(
            "SELECT coalesce(shobj_description(oid, '{catalogue}'), '') FROM {table} WHERE {name} = {}",
            text(place)
        )
    };
    match artefact.kind {
        Kind::Database | Kind::TemporaryDatabase => {
            let sql = comment("pg_database", "pg_database", "datname");
            let Some(comment) = session.value(WHAT, &sql).await? else { return Ok(()) };
            let ours = comment.starts_with(MARK) || is_derived(place, UNNAMED);
            if !ours || !is_empty(config, &session, place).await? {
                return Err(not_ours(artefact));
            }
            provision::drop_database(&session, &ident(place)).await
        }
        Kind::DatabaseUser => {
            let sql = comment("pg_authid", "pg_roles", "rolname");
            let Some(comment) = session.value(WHAT, &sql).await? else { return Ok(()) };
            if !comment.starts_with(MARK) {
                return Err(not_ours(artefact));
            }
            provision::drop_role(&session, place).await
        }
        Kind::TemporaryDatabaseUser if is_derived(place, temporary::WORD) => {
            temporary::drop_named(config, &session, place, "NOT datistemplate").await
        }
        _ => Err(not_ours(artefact)),
    }
}
