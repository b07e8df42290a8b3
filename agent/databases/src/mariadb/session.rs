//! The agent's own connection to the MariaDB server, as its administrator over the socket, and
//! the quoting of names and values. All control statements are built here or with these quotes;
//! text of a dump never passes through this connection.

use std::time::Duration;

use ferry_proto::account::EngineKind;
use ferry_proto::{Fault, FaultClass};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder, Value};

use super::MariadbConfig;
use crate::points::statement;

/// Codes by which the server refuses something for now: too many connections, lock timeouts,
/// deadlocks, shutdown in progress.
const TRANSIENT_CODES: &[u16] = &[1040, 1053, 1203, 1205, 1213, 1226, 1317, 1927];

/// A name, quoted.
pub(super) fn ident(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A text value, quoted for a session whose sql_mode is empty.
pub(super) fn text(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// A list of text values, for `IN`. Never empty: an empty list matches nothing.
pub(super) fn text_list<'a>(values: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = values.into_iter().map(text).collect();
    if quoted.is_empty() { "(NULL)".to_owned() } else { format!("({})", quoted.join(",")) }
}

/// A user, quoted.
pub(super) fn user(name: &str, host: &str) -> String {
    format!("{}@{}", ident(name), ident(host))
}

/// A database as the object of GRANT, where `_` and `%` would be wildcards.
pub(super) fn grant_database(name: &str) -> String {
    ident(&name.replace('\\', "\\\\").replace('_', "\\_").replace('%', "\\%"))
}

/// A row of text values.
pub(super) struct Row(Vec<Option<Vec<u8>>>);

impl Row {
    /// The bytes of a column; none: NULL.
    pub(super) fn bytes(&self, column: usize) -> Option<&[u8]> {
        self.0.get(column).and_then(|v| v.as_deref())
    }

    /// The text of a column; none: NULL.
    pub(super) fn opt(&self, column: usize) -> Option<String> {
        self.bytes(column).map(|b| String::from_utf8_lossy(b).into_owned())
    }

    /// The text of a column; NULL is empty.
    pub(super) fn text(&self, column: usize) -> String {
        self.opt(column).unwrap_or_default()
    }

    /// The number in a column; NULL is 0.
    pub(super) fn number(&self, column: usize) -> u64 {
        self.opt(column).and_then(|t| t.parse().ok()).unwrap_or(0)
    }
}

/// What the server answered to a statement that it refused.
pub(super) fn refused(what: &str, error: &mysql_async::Error) -> Fault {
    let class = match error {
        mysql_async::Error::Server(e) if TRANSIENT_CODES.contains(&e.code) => FaultClass::Transient,
        mysql_async::Error::Server(_) => FaultClass::Permanent,
        mysql_async::Error::Io(_) => FaultClass::Transient,
        // The driver reports a connection closed by the server as its own.
        mysql_async::Error::Driver(_) => FaultClass::Transient,
        _ => FaultClass::Bug,
    };
    Fault::new(class, what.to_owned()).caused_by(error)
}

/// How long a statement may take: creating, dropping and locking are quick.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// How long a statement that reads whole tables may take.
const LONG_PATIENCE: Duration = Duration::from_secs(6 * 60 * 60);

/// The administrator's connection.
pub(super) struct Session {
    conn: Conn,
    patience: Duration,
    version: String,
    number: u32,
}

impl Session {
    pub(super) async fn open(config: &MariadbConfig) -> Result<Self, Fault> {
        Self::open_as(config, &config.admin, None, None).await
    }

    /// A connection as another user, for trying what that user may do.
    pub(super) async fn open_as(
        config: &MariadbConfig,
        name: &str,
        password: Option<&str>,
        database: Option<&str>,
    ) -> Result<Self, Fault> {
        let socket = config.socket.to_string_lossy().into_owned();
        let setup = [
            // The quotes of this module rely on it.
            "SET SESSION sql_mode = ''",
            "SET NAMES utf8mb4",
            "SET SESSION time_zone = '+00:00'",
            "SET SESSION max_statement_time = 0",
            "SET SESSION group_concat_max_len = 1048576",
            // A lock held by somebody else is an error in good time, not a hang.
            "SET SESSION lock_wait_timeout = 60",
        ];
        let options = OptsBuilder::default()
            .socket(Some(socket.clone()))
            .user(Some(name))
            .pass(password)
            .db_name(database)
            .setup(setup.map(str::to_owned).to_vec());
        let connecting = tokio::time::timeout(Duration::from_secs(20), Conn::new(options));
        let mut conn = match connecting.await {
            Ok(Ok(conn)) => conn,
            Ok(Err(error)) => return Err(no_connection(&socket, name, &error)),
            Err(_) => {
                return Err(Fault::transient(format!(
                    "the MariaDB server at {socket} does not answer within 20 s"
                )));
            }
        };
        let version: Option<String> = conn
            .query_first("SELECT VERSION()")
            .await
            .map_err(|e| refused("the MariaDB server does not say its version", &e))?;
        let version = version.unwrap_or_default();
        Ok(Self { number: version_number(&version), conn, version, patience: PATIENCE })
    }

    /// Statements from now on may read whole tables.
    pub(super) fn be_patient(&mut self) {
        self.patience = LONG_PATIENCE;
    }

    /// The version as the server says it.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// The version as a number to compare, such as 101100 for 10.11.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Runs a statement. `what` says, in a fault, what could not be done.
    pub(super) async fn run(&mut self, what: &str, sql: &str) -> Result<(), Fault> {
        let run = async { self.try_run(sql).await.map_err(|e| refused(what, &e)) };
        statement(EngineKind::Mariadb, sql.as_bytes(), run).await
    }

    /// The same; false: the server refused it by this code.
    pub(super) async fn run_unless(
        &mut self,
        what: &str,
        sql: &str,
        code: u16,
    ) -> Result<bool, Fault> {
        let run = async {
            match self.try_run(sql).await {
                Ok(()) => Ok(true),
                Err(mysql_async::Error::Server(e)) if e.code == code => Ok(false),
                Err(error) => Err(refused(what, &error)),
            }
        };
        statement(EngineKind::Mariadb, sql.as_bytes(), run).await
    }

    /// Runs a statement whose refusal the caller understands.
    pub(super) async fn try_run(&mut self, sql: &str) -> Result<(), mysql_async::Error> {
        in_time(self.patience, self.conn.query_drop(sql)).await
    }

    /// Runs a statement given as bytes in the session's character set.
    pub(super) async fn run_bytes(&mut self, what: &str, sql: Vec<u8>) -> Result<(), Fault> {
        let ran = in_time(self.patience, self.conn.query_drop(sql.as_slice()));
        let run = async { ran.await.map_err(|e| refused(what, &e)) };
        statement(EngineKind::Mariadb, &sql, run).await
    }

    /// The rows of a query.
    pub(super) async fn rows(&mut self, what: &str, sql: &str) -> Result<Vec<Row>, Fault> {
        self.try_rows(sql).await.map_err(|e| refused(what, &e))
    }

    /// The rows of a query whose refusal the caller understands.
    pub(super) async fn try_rows(&mut self, sql: &str) -> Result<Vec<Row>, mysql_async::Error> {
        let rows: Vec<mysql_async::Row> = in_time(self.patience, self.conn.query(sql)).await?;
        Ok(rows.into_iter().map(plain).collect())
    }

    /// The rows of a query as they arrive.
    pub(super) async fn stream(&mut self, what: &str, sql: String) -> Result<RowStream<'_>, Fault> {
        let result = self.conn.query_iter(sql).await.map_err(|e| refused(what, &e))?;
        Ok(RowStream(result))
    }

    /// The one text that a query yields; empty if none.
    pub(super) async fn value(&mut self, what: &str, sql: &str) -> Result<String, Fault> {
        Ok(self.rows(what, sql).await?.first().map(|r| r.text(0)).unwrap_or_default())
    }
}

/// A server that stops answering is a lost one: the connection must not be used again.
async fn in_time<T>(
    patience: Duration,
    running: impl Future<Output = Result<T, mysql_async::Error>>,
) -> Result<T, mysql_async::Error> {
    tokio::time::timeout(patience, running).await.unwrap_or_else(|_| {
        let silent =
            std::io::Error::new(std::io::ErrorKind::TimedOut, "the server does not answer");
        Err(mysql_async::Error::Io(silent.into()))
    })
}

/// Rows as they arrive.
pub(super) struct RowStream<'a>(mysql_async::QueryResult<'a, 'static, mysql_async::TextProtocol>);

impl RowStream<'_> {
    pub(super) async fn next(&mut self, what: &str) -> Result<Option<Row>, Fault> {
        Ok(self.0.next().await.map_err(|e| refused(what, &e))?.map(plain))
    }
}

fn plain(row: mysql_async::Row) -> Row {
    let values = row.unwrap_raw().into_iter().map(|value| match value {
        // The text protocol yields nothing else than these.
        Some(Value::Bytes(bytes)) => Some(bytes),
        _ => None,
    });
    Row(values.collect())
}

fn no_connection(socket: &str, name: &str, error: &mysql_async::Error) -> Fault {
    let fault = match error {
        mysql_async::Error::Server(e) if e.code == 1045 || e.code == 1698 => {
            Fault::precondition(format!("the MariaDB server at {socket} does not let {name} in"))
                .remedy("let the administrator log in on the socket as Unix root (IDENTIFIED VIA unix_socket), as Debian does")
        }
        _ => Fault::transient(format!("the MariaDB server at {socket} cannot be reached"))
            .remedy("start it: systemctl start mariadb"),
    };
    fault.caused_by(error)
}

/// 10.11.6 is 101106; what is not understood is 0.
pub(super) fn version_number(version: &str) -> u32 {
    // Replication prefix of old servers.
    let version = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(|p| p.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0u32).min(99);
    next() * 10_000 + next() * 100 + next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_cannot_break_out() {
        assert_eq!(ident("a`b"), "`a``b`");
        assert_eq!(text("a'b\\"), "'a''b\\\\'");
        assert_eq!(text_list(["a", "b'"]), "('a','b''')");
        assert_eq!(text_list([]), "(NULL)");
        assert_eq!(grant_database("a_b%"), "`a\\_b\\%`");
        assert_eq!(user("a", "%"), "`a`@`%`");
    }

    #[test]
    fn versions_are_ordered() {
        assert_eq!(version_number("10.5.23-MariaDB-0+deb11u1"), 100_523);
        assert_eq!(version_number("10.11.19-MariaDB-0+deb12u1"), 101_119);
        assert_eq!(version_number("11.8.6-MariaDB-0+deb13u1 from Debian"), 110_806);
        assert_eq!(version_number("nonsense"), 0);
    }
}
