//! Everything that was loaded can be used, and everything that opening needs is there.
//!
//! What is tried may run code of the account's, so it is tried as the temporary role, never as the
//! superuser under another role: such code could give the role back.

use ferry_proto::Fault;

use super::record::PostgresqlRecord;
use super::session::{Session, ident};
use super::{PostgresqlConfig, target, temporary};
use crate::model::Spec;

const WHAT: &str = "the loaded databases cannot be tried";

/// Refusals that are no fault of the move: not allowed (a view may have been so at the source, whose
/// rights are compared), never filled (a materialized view), a function that would write.
const HARMLESS: &[&str] = &["42501", "55000", "25006"];

pub(super) async fn rehearse(
    config: &PostgresqlConfig,
    spec: &Spec,
    record: &PostgresqlRecord,
) -> Result<(), Fault> {
    record.check(spec)?;
    let session = Session::exclusive(config, spec).await?;
    let present = target::present(&session, spec).await?;
    if let Some(role) = present.open_roles.first() {
        return Err(Fault::permanent(format!("PostgreSQL role {role} can log in before the open")));
    }
    for role in &record.roles {
        if !present.marked_roles.contains(&role.name) && !present.closed_roles.contains(&role.name)
        {
            return Err(Fault::precondition(format!(
                "PostgreSQL role {} is not at the target",
                role.name
            ))
            .remedy("provision the account again"));
        }
    }
    for database in &record.databases {
        if !present.databases.contains_key(&database.name) {
            return Err(Fault::precondition(format!(
                "database {} is not at the target",
                database.name
            ))
            .remedy("provision the account and load the database again"));
        }
    }
    temporary::drop_role(config, &session, spec).await?;
    let password = temporary::make(&session, spec).await?;
    let mut tried = Ok(());
    for database in &record.databases {
        temporary::admit(&session, spec, &database.name, true).await?;
        tried = try_database(config, spec, &password, &database.name).await;
        temporary::admit(&session, spec, &database.name, false).await?;
        if tried.is_err() {
            break;
        }
    }
    let dropped = temporary::drop_role(config, &session, spec).await;
    tried?;
    dropped
}

async fn try_database(
    config: &PostgresqlConfig,
    spec: &Spec,
    password: &str,
    database: &str,
) -> Result<(), Fault> {
    let trial = Session::open_as(config, &temporary::name(spec), password, database).await?;
    trial.run(WHAT, "SET statement_timeout = '30s'; SET row_security = on").await?;
    let sql = "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S') AND n.nspname !~ '^pg_' \
               AND n.nspname <> 'information_schema' AND NOT EXISTS (SELECT 1 FROM pg_depend e \
               WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')";
    for row in trial.rows(WHAT, sql).await? {
        let (schema, name) = (row.text(0), row.text(1));
        // No row is wanted: rights and references are checked all the same. Planning may run
        // functions of the account's, which must not change what was loaded.
        let sql = format!(
            "START TRANSACTION READ ONLY; SELECT * FROM {}.{} LIMIT 0",
            ident(&schema),
            ident(&name)
        );
        let outcome = trial.try_run(&sql).await;
        trial.run(WHAT, "ROLLBACK").await?;
        match outcome {
            Ok(()) => {}
            Err(error) => {
                let code = error.code().map(tokio_postgres::error::SqlState::code);
                if !code.is_some_and(|code| HARMLESS.contains(&code)) {
                    let what = format!("{database}.{schema}.{name} cannot be used at the target");
                    return Err(super::session::refused(&what, &error));
                }
            }
        }
    }
    Ok(())
}
