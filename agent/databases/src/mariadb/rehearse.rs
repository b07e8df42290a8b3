//! Everything that was loaded can be used, and everything that opening needs is there.

use ferry_proto::Fault;

use super::record::MariadbRecord;
use super::session::{Session, ident, text};
use super::temporary::{self, Purpose, Temporary};
use super::{MariadbConfig, inspect, users};
use crate::model::Spec;

const WHAT: &str = "the loaded databases cannot be tried";

pub(super) async fn rehearse(
    config: &MariadbConfig,
    spec: &Spec,
    record: &MariadbRecord,
) -> Result<(), Fault> {
    record.check(spec)?;
    let mut session = Session::open(config).await?;
    closed(&mut session, spec, record).await?;
    let user = temporary::make(&mut session, spec, Purpose::Rehearse).await?;
    let tried = try_all(config, &mut session, record, &user).await;
    let dropped = temporary::drop_all(&mut session, spec).await;
    tried?;
    dropped
}

/// Users are there and locked, events are there and off.
async fn closed(session: &mut Session, spec: &Spec, record: &MariadbRecord) -> Result<(), Fault> {
    for user in &record.users {
        let label = format!("{}@{}", user.name, user.host);
        match users::find(session, &user.name, &user.host).await? {
            Some(login) if login.locked() => {}
            Some(_) => {
                return Err(Fault::permanent(format!(
                    "MariaDB user {label} can log in before the open"
                )));
            }
            None => {
                return Err(Fault::precondition(format!(
                    "MariaDB user {label} is not at the target"
                ))
                .remedy("provision the account again"));
            }
        }
    }
    if let Some(event) = inspect::running_events(session, spec).await?.first() {
        return Err(Fault::permanent(format!(
            "event {}.{} is on before the open",
            event.database, event.name
        )));
    }
    for event in &record.running_events {
        let sql = format!(
            "SELECT 1 FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {} AND BINARY EVENT_NAME = {}",
            text(&event.database),
            text(&event.name)
        );
        if session.rows(WHAT, &sql).await?.is_empty() {
            return Err(Fault::permanent(format!(
                "event {}.{} ran at the source and is not at the target",
                event.database, event.name
            ))
            .remedy("load the database again"));
        }
    }
    Ok(())
}

/// Opens every table and view with the account's rights.
async fn try_all(
    config: &MariadbConfig,
    session: &mut Session,
    record: &MariadbRecord,
    user: &Temporary,
) -> Result<(), Fault> {
    for described in &record.databases {
        let database = described.name.as_str();
        let sql = format!(
            "SELECT TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES WHERE TABLE_SCHEMA = {}",
            text(database)
        );
        let tables = session.rows(WHAT, &sql).await?;
        let mut trial =
            Session::open_as(config, &user.name, Some(&user.password), Some(database)).await?;
        trial.run(WHAT, "SET SESSION max_statement_time = 30").await?;
        // What is tried may run functions of the account's, which must not change what was loaded.
        trial.run(WHAT, "START TRANSACTION READ ONLY").await?;
        for table in tables.iter().filter(|t| !described.unusable_views.contains(&t.text(0))) {
            // No row is wanted: rights and references are checked all the same.
            let sql = format!("SELECT * FROM {} LIMIT 0", ident(&table.text(0)));
            let what = format!(
                "{} {database}.{} cannot be used at the target",
                table.text(1).to_ascii_lowercase(),
                table.text(0)
            );
            trial.run(&what, &sql).await?;
        }
    }
    Ok(())
}
