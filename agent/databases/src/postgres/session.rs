//! The agent's own connections to the PostgreSQL server, and the quoting of names and values. Text
//! of a dump never passes through the superuser's.
//!
//! The superuser is let in on the socket because of the Unix user on the other end (peer
//! authentication): one thread takes that user on for as long as connecting takes.
//!
//! An account can set defaults on its own database, and they hold for whoever connects to it.
//! Options given at connecting override them: without `search_path` the superuser would run the
//! account's functions.

use std::os::unix::net::UnixStream as BlockingStream;
use std::path::PathBuf;
use std::time::Duration;

use ferry_proto::account::EngineKind;
use ferry_proto::{Fault, FaultClass};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::PostgresqlConfig;
use crate::model::Spec;
use crate::points::statement;

/// Defaults that an account's own settings must not replace; and what is done through these connections, or was
/// done before it through others, is on the disk when it is said to be done, whatever the server's own rule.
pub(super) const OPTIONS: &str = "-c search_path=pg_catalog -c role=none -c statement_timeout=0 \
     -c lock_timeout=60000 -c idle_in_transaction_session_timeout=0 -c standard_conforming_strings=on \
     -c DateStyle=ISO,YMD -c IntervalStyle=postgres -c TimeZone=UTC -c extra_float_digits=1 \
     -c bytea_output=hex -c row_security=off -c default_transaction_read_only=off \
     -c client_min_messages=warning -c quote_all_identifiers=off -c lc_monetary=C \
     -c check_function_bodies=off -c synchronous_commit=on \
     -c default_transaction_isolation=read\\ committed";

const CONNECT: Duration = Duration::from_secs(20);
/// How long a statement may take: creating, dropping and locking are quick.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// How long a statement that reads whole tables may take.
const LONG_PATIENCE: Duration = Duration::from_secs(6 * 60 * 60);

/// A name, quoted.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text value, quoted for a session with standard-conforming strings.
pub(super) fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// A list of text values, for `IN`. An empty list matches nothing.
pub(super) fn text_list<'a>(values: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = values.into_iter().map(text).collect();
    if quoted.is_empty() { "(NULL)".to_owned() } else { format!("({})", quoted.join(",")) }
}

/// A row of text values.
pub(super) struct Row(Vec<Option<String>>);

impl Row {
    /// The text of a column; none: NULL.
    pub(super) fn opt(&self, column: usize) -> Option<&str> {
        self.0.get(column).and_then(|v| v.as_deref())
    }

    /// The text of a column; NULL is empty.
    pub(super) fn text(&self, column: usize) -> String {
        self.opt(column).unwrap_or_default().to_owned()
    }

    /// The number in a column; NULL is 0.
    pub(super) fn number(&self, column: usize) -> i64 {
        self.opt(column).and_then(|t| t.parse().ok()).unwrap_or(0)
    }

    /// The truth in a column.
    pub(super) fn is(&self, column: usize) -> bool {
        self.opt(column) == Some("t")
    }
}

/// What the server answered to a statement that it refused.
pub(super) fn refused(what: &str, error: &tokio_postgres::Error) -> Fault {
    let class = match error.code().map(tokio_postgres::error::SqlState::code) {
        // Connection lost, too many of them, deadlock, lock not available, shutting down.
        Some(code) if ["08", "53", "40", "57"].contains(&&code[..2]) || code == "55P03" => {
            FaultClass::Transient
        }
        // In use by others: they may go.
        Some("55006") => FaultClass::Transient,
        Some(_) => FaultClass::Permanent,
        None => FaultClass::Transient,
    };
    let mut fault = Fault::new(class, what.to_owned());
    match error.as_db_error() {
        Some(said) => {
            fault.causes.push(format!("{} ({})", said.message(), said.code().code()));
            fault.causes.extend(said.detail().map(str::to_owned));
        }
        None => fault = fault.caused_by(error),
    }
    fault
}

/// A connection to one database.
pub(super) struct Session {
    client: Client,
    driver: JoinHandle<()>,
    patience: Duration,
    number: u32,
    version: String,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Session {
    /// As the superuser.
    pub(super) async fn open(config: &PostgresqlConfig, database: &str) -> Result<Self, Fault> {
        let socket = config.socket_dir.join(format!(".s.PGSQL.{}", config.port));
        let shown = socket.display().to_string();
        let connecting = async {
            let stream = connect_as(socket, config.admin_user.clone()).await?;
            let options = options_of(&config.admin, None, database);
            let (client, connection) = options
                .connect_raw(stream, NoTls)
                .await
                .map_err(|e| no_entry(&shown, &config.admin, database, &e))?;
            let driver = tokio::spawn(async move {
                // A connection that broke is noticed by whoever asks through it.
                let _ = connection.await;
            });
            Self::started(client, driver).await
        };
        let in_time = tokio::time::timeout(CONNECT, connecting).await;
        in_time.unwrap_or_else(|_| {
            Err(silent(&format!("the PostgreSQL server at {}", config.socket_dir.display())))
        })
    }

    /// As a temporary role, by its password.
    pub(super) async fn open_as(
        config: &PostgresqlConfig,
        role: &str,
        password: &str,
        database: &str,
    ) -> Result<Self, Fault> {
        let shown = format!("{}:{}", config.host, config.port);
        let connecting = async {
            let stream = TcpStream::connect((config.host.as_str(), config.port))
                .await
                .map_err(|e| unreachable(&shown, &e))?;
            let options = options_of(role, Some(password), database);
            let (client, connection) = options
                .connect_raw(stream, NoTls)
                .await
                .map_err(|e| no_entry(&shown, role, database, &e))?;
            let driver = tokio::spawn(async move {
                let _ = connection.await;
            });
            Self::started(client, driver).await
        };
        let in_time = tokio::time::timeout(CONNECT, connecting).await;
        in_time.unwrap_or_else(|_| Err(silent(&format!("the PostgreSQL server at {shown}"))))
    }

    async fn started(client: Client, driver: JoinHandle<()>) -> Result<Self, Fault> {
        let mut session =
            Self { client, driver, patience: PATIENCE, number: 0, version: String::new() };
        let sql = "SELECT current_setting('server_version_num'), current_setting('server_version')";
        let rows = session.rows("PostgreSQL does not say its version", sql).await?;
        if let Some(row) = rows.first() {
            session.number = u32::try_from(row.number(0)).unwrap_or(0);
            session.version = row.text(1);
        }
        Ok(session)
    }

    /// As the superuser, for changing what an account has here. A server finishes what a client that
    /// was cut off has begun, creating a database for one, before it notices that nobody waits for
    /// it: so that a repetition does not meet it half-way, each holds the account's lock.
    pub(super) async fn exclusive(config: &PostgresqlConfig, spec: &Spec) -> Result<Self, Fault> {
        let session = Self::open(config, &config.maintenance_database).await?;
        let mut key = [0; 8];
        let name = format!("ferry/{}", spec.account);
        key.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..8]);
        let sql = format!("SELECT pg_advisory_lock({})", i64::from_be_bytes(key));
        let what = format!("earlier work on account {} does not end", spec.account);
        session.rows(&what, &sql).await?;
        Ok(session)
    }

    /// Statements from now on may read whole tables.
    pub(super) fn be_patient(&mut self) {
        self.patience = LONG_PATIENCE;
    }

    /// A server that stops answering is a lost one: the connection is closed, and what was asked
    /// through it fails.
    async fn in_time<T>(
        &self,
        running: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, tokio_postgres::Error> {
        let mut running = std::pin::pin!(running);
        if let Ok(answer) = tokio::time::timeout(self.patience, &mut running).await {
            return answer;
        }
        self.driver.abort();
        running.await
    }

    /// The version as the server says it.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// The major version.
    pub(super) fn major(&self) -> u32 {
        self.number / 10_000
    }

    /// Runs statements. `what` says, in a fault, what could not be done.
    pub(super) async fn run(&self, what: &str, sql: &str) -> Result<(), Fault> {
        let run = async { self.try_run(sql).await.map_err(|e| refused(what, &e)) };
        statement(EngineKind::Postgresql, sql.as_bytes(), run).await
    }

    /// Runs statements whose refusal the caller understands.
    pub(super) async fn try_run(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        self.in_time(self.client.batch_execute(sql)).await
    }

    /// The rows of a query.
    pub(super) async fn rows(&self, what: &str, sql: &str) -> Result<Vec<Row>, Fault> {
        let answer = self.in_time(self.client.simple_query(sql)).await;
        let answer = answer.map_err(|e| refused(what, &e))?;
        let rows = answer.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some(Row((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()))
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The one text that a query yields; none if there is no row, or it is NULL.
    pub(super) async fn value(&self, what: &str, sql: &str) -> Result<Option<String>, Fault> {
        Ok(self.rows(what, sql).await?.first().and_then(|r| r.opt(0).map(str::to_owned)))
    }
}

fn options_of(role: &str, password: Option<&str>, database: &str) -> Config {
    let mut options = Config::new();
    options.user(role).dbname(database).application_name("ferry-agent").options(OPTIONS);
    if let Some(password) = password {
        options.password(password);
    }
    options
}

/// The socket, connected by a thread that is `unix_user` meanwhile. The server asks the kernel who
/// connected.
async fn connect_as(socket: PathBuf, unix_user: String) -> Result<UnixStream, Fault> {
    let shown = socket.display().to_string();
    let connected = tokio::task::spawn_blocking(move || {
        let user = nix::unistd::User::from_name(&unix_user).map_err(std::io::Error::from)?;
        let user = user
            .ok_or_else(|| std::io::Error::other(format!("there is no Unix user {unix_user}")))?;
        // A thread of its own: its identity ends with it.
        let thread = std::thread::Builder::new().name("postgres-peer".to_owned());
        let handle = thread.spawn(move || {
            if nix::unistd::geteuid() != user.uid {
                let uid = rustix::process::Uid::from_raw(user.uid.as_raw());
                rustix::thread::set_thread_res_uid(None, uid, None)?;
            }
            BlockingStream::connect(&socket)
        })?;
        let stream = handle.join().map_err(|_| std::io::Error::other("a thread was lost"))??;
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    });
    match connected.await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(unreachable(&shown, &error)),
        Err(error) => Err(Fault::bug("connecting was cut off").caused_by(&error)),
    }
}

fn unreachable(place: &str, error: &std::io::Error) -> Fault {
    Fault::transient(format!("the PostgreSQL server at {place} cannot be reached"))
        .caused_by(error)
        .remedy("start it (systemctl start postgresql), and let it listen there (port, listen_addresses)")
}

fn silent(who: &str) -> Fault {
    Fault::transient(format!("{who} does not answer within {} s", CONNECT.as_secs()))
}

fn no_entry(place: &str, role: &str, database: &str, error: &tokio_postgres::Error) -> Fault {
    let what =
        format!("the PostgreSQL server at {place} does not let {role} into database {database}");
    let fault = refused(&what, error);
    match error.code().map(tokio_postgres::error::SqlState::code) {
        Some(code) if code.starts_with("28") => Fault {
            class: FaultClass::Precondition,
            ..fault
        }
        .remedy("let pg_hba.conf have Debian's lines: 'local all postgres peer' and 'host all all 127.0.0.1/32 scram-sha-256'"),
        Some("3D000") => Fault { class: FaultClass::Precondition, ..fault },
        _ => fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_cannot_break_out() {
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(text("a'b\\"), "'a''b\\'");
        assert_eq!(text_list(["a", "b'"]), "('a','b''')");
        assert_eq!(text_list([]), "(NULL)");
    }
}
