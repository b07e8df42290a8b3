//! Every database and user of the server, whosever they are.

use std::collections::{BTreeMap, BTreeSet};

use ferry_proto::Fault;

use super::session::Session;
use crate::model::{Survey, SurveyedDatabase, SurveyedUser};

const WHAT: &str = "the server's databases and users cannot be listed";

/// Rights on databases are given by patterns; those on tables, columns and routines by names.
const RIGHTS: &str = "SELECT u.User, u.Host, s.SCHEMA_NAME FROM information_schema.SCHEMATA s \
     JOIN mysql.db u ON s.SCHEMA_NAME LIKE u.Db \
     UNION SELECT User, Host, Db FROM mysql.tables_priv \
     UNION SELECT User, Host, Db FROM mysql.columns_priv \
     UNION SELECT User, Host, Db FROM mysql.procs_priv";

pub(super) async fn survey(session: &mut Session) -> Result<Survey, Fault> {
    let sql = "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA ORDER BY 1";
    let databases = session.rows(WHAT, sql).await?;
    let mut rights: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for row in session.rows(WHAT, RIGHTS).await? {
        rights.entry((row.text(0), row.text(1))).or_default().insert(row.text(2));
    }
    let sql = "SELECT u.User, u.Host, EXISTS (SELECT 1 FROM information_schema.USER_PRIVILEGES p \
               WHERE p.GRANTEE = CONCAT('''', u.User, '''@''', u.Host, '''') \
               AND p.PRIVILEGE_TYPE <> 'USAGE') FROM mysql.user u WHERE u.is_role = 'N' ORDER BY 1, 2";
    let users = session.rows(WHAT, sql).await?;
    let user = |row: &super::session::Row| {
        let (name, host) = (row.text(0), row.text(1));
        SurveyedUser {
            databases: rights.get(&(name.clone(), host.clone())).cloned().unwrap_or_default(),
            administrates: row.number(2) != 0,
            host: Some(host),
            name,
        }
    };
    Ok(Survey {
        databases: databases
            .iter()
            .map(|row| SurveyedDatabase { name: row.text(0), owner: None })
            .collect(),
        users: users.iter().map(user).collect(),
    })
}
