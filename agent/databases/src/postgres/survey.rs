//! Every database and role of the server, whosever they are.

use std::collections::{BTreeMap, BTreeSet};

use ferry_proto::Fault;

use super::session::Session;
use crate::model::{Survey, SurveyedDatabase, SurveyedUser};

const WHAT: &str = "the server's databases and roles cannot be listed";

pub(super) async fn survey(session: &Session) -> Result<Survey, Fault> {
    let sql = "SELECT d.datname, r.rolname FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba \
               WHERE NOT d.datistemplate ORDER BY 1";
    let databases = session.rows(WHAT, sql).await?;
    // What an owner has is not told again: rights that were given.
    let sql = "SELECT r.rolname, d.datname FROM pg_database d, aclexplode(d.datacl) a \
               JOIN pg_roles r ON r.oid = a.grantee \
               WHERE NOT d.datistemplate AND a.grantee <> d.datdba";
    let mut rights: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in session.rows(WHAT, sql).await? {
        rights.entry(row.text(0)).or_default().insert(row.text(1));
    }
    let sql = "SELECT rolname, rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication \
               FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1";
    let users = session.rows(WHAT, sql).await?;
    Ok(Survey {
        databases: databases
            .iter()
            .map(|row| SurveyedDatabase { name: row.text(0), owner: Some(row.text(1)) })
            .collect(),
        users: users
            .iter()
            .map(|row| SurveyedUser {
                name: row.text(0),
                host: None,
                databases: rights.get(&row.text(0)).cloned().unwrap_or_default(),
                administrates: row.is(1),
            })
            .collect(),
    })
}
