//! All of the controller's SQL, behind a trait: SQLite by default, PostgreSQL to come. It keeps
//! rows and knows no rule of the domain but those that a constraint can hold.

mod sqlite;

use async_trait::async_trait;
use ferry_proto::Fault;
use ferry_proto::command::AccountState;
use ferry_proto::ids::{AccountName, JobId, ServerName};
use serde::{Deserialize, Serialize};

pub use sqlite::SqliteStore;

/// What a server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A customer's own.
    Client,
    /// Lent for one migration.
    Transit,
    /// Lent to many.
    SharedTransit,
}

impl Role {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Transit => "transit",
            Self::SharedTransit => "shared-transit",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self, Fault> {
        match text {
            "client" => Ok(Self::Client),
            "transit" => Ok(Self::Transit),
            "shared-transit" => Ok(Self::SharedTransit),
            other => Err(Fault::precondition(format!("{other:?} is not a role"))
                .remedy("use client, transit or shared-transit")),
        }
    }
}

/// Whether a server may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    /// A token was issued.
    Added,
    /// It has a certificate.
    Enrolled,
    /// It is cut off.
    Revoked,
}

impl ServerState {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Enrolled => "enrolled",
            Self::Revoked => "revoked",
        }
    }
}

/// A server's row.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerRow {
    /// Its name.
    pub name: ServerName,
    /// What it is for.
    pub role: Role,
    /// Whether it may speak.
    pub state: ServerState,
    /// SHA-256 of the token's secret, hex.
    pub token_hash: Option<String>,
    /// Until when the token is good, Unix ms.
    pub token_expires_ms: Option<i64>,
    /// Until when its certificate is good, Unix ms.
    pub not_after_ms: Option<i64>,
    /// Where other agents reach it.
    pub peer_address: String,
    /// Its agent's version.
    pub version: String,
    /// What it said of itself, JSON.
    pub facts: String,
    /// When it was heard last, Unix ms.
    pub last_seen_ms: Option<i64>,
}

/// A certificate as it is noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRow {
    /// Its serial.
    pub serial: String,
    /// Until when it is good, Unix ms.
    pub not_after_ms: i64,
}

/// A job's row. `plan` is JSON of a type that the store does not know.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRow {
    /// Its id.
    pub id: JobId,
    /// What it moves.
    pub account: AccountName,
    /// The plan as shown.
    pub plan: String,
    /// When it was planned, Unix ms.
    pub planned_ms: i64,
    /// When it was started, Unix ms.
    pub started_ms: Option<i64>,
    /// When it ended, Unix ms.
    pub ended_ms: Option<i64>,
    /// How it ended.
    pub phase: Option<String>,
}

/// How a job ended that the world has overtaken: its journal does not say so.
pub const OVERTAKEN: &str = "overtaken";

/// A journalled event.
#[derive(Debug, Clone, PartialEq)]
pub struct JournalRow {
    /// Rising over all jobs.
    pub number: u64,
    /// Of which job.
    pub job: JobId,
    /// Of which account.
    pub account: AccountName,
    /// When, Unix ms.
    pub at_ms: i64,
    /// JSON of the engine's event.
    pub event: String,
}

/// What the controller keeps. Each method is one transaction, durable when it returns.
#[async_trait]
pub trait Store: Send + Sync {
    /// The controller's generation: rises when its store is restored from a backup.
    async fn generation(&self) -> Result<u64, Fault>;
    /// Raises the generation, and ends jobs that the world has overtaken.
    async fn adopt(&self, generation: u64, overtaken: &[JobId], now_ms: i64) -> Result<(), Fault>;

    /// Adds a server, or gives one that has not enrolled, or that was revoked, a new token.
    async fn add_server(&self, row: &ServerRow, now_ms: i64) -> Result<(), Fault>;
    /// Every server by name.
    async fn servers(&self) -> Result<Vec<ServerRow>, Fault>;
    /// One server.
    async fn server(&self, name: &ServerName) -> Result<Option<ServerRow>, Fault>;
    /// Takes the token for `key` if it is good, and notes the certificate: exactly one key wins, and
    /// that one may ask again until the token expires.
    async fn take_token(
        &self,
        name: &ServerName,
        hash: &str,
        key: &str,
        certificate: &CertificateRow,
        now_ms: i64,
    ) -> Result<bool, Fault>;
    /// Notes a certificate issued to a server that had one. A fault unless it is enrolled: a server
    /// that is being cut off gets none.
    async fn add_certificate(
        &self,
        name: &ServerName,
        certificate: &CertificateRow,
    ) -> Result<(), Fault>;
    /// Notes what an agent said of itself.
    async fn set_seen(
        &self,
        name: &ServerName,
        peer_address: &str,
        version: &str,
        facts: &str,
        now_ms: i64,
    ) -> Result<(), Fault>;
    /// Cuts a server off: none of its certificates is accepted any more.
    async fn revoke_server(&self, name: &ServerName, now_ms: i64) -> Result<(), Fault>;
    /// Serials no longer accepted, and the names of servers cut off.
    async fn revocations(&self) -> Result<(Vec<String>, Vec<ServerName>), Fault>;

    /// Replaces what a server reported of its accounts.
    async fn set_accounts(
        &self,
        server: &ServerName,
        accounts: &[AccountState],
        problems: &[String],
    ) -> Result<(), Fault>;
    /// What every server reported.
    async fn accounts(&self) -> Result<Vec<(ServerName, AccountState)>, Fault>;
    /// Definitions refused, by server.
    async fn problems(&self) -> Result<Vec<(ServerName, String)>, Fault>;

    /// Keeps a plan.
    async fn add_plan(&self, row: &JobRow) -> Result<(), Fault>;
    /// Starts a plan. A fault if it was started before, or another job has the account.
    async fn start_job(&self, id: JobId, now_ms: i64) -> Result<(), Fault>;
    /// Takes an ended job up again, with the event that says so. A fault if it has not ended, or
    /// another job has the account.
    async fn resume_job(&self, id: JobId, event: &str, now_ms: i64) -> Result<(), Fault>;
    /// Ends a job.
    async fn end_job(&self, id: JobId, phase: &str, now_ms: i64) -> Result<(), Fault>;
    /// One job or plan.
    async fn job(&self, id: JobId) -> Result<Option<JobRow>, Fault>;
    /// Started jobs, newest first; of one account, or all; every one that has not ended, or the last of
    /// those that have as well.
    async fn jobs(
        &self,
        account: Option<&AccountName>,
        running: bool,
    ) -> Result<Vec<JobRow>, Fault>;

    /// Adds an event; its number.
    async fn append_event(&self, job: JobId, event: &str, now_ms: i64) -> Result<u64, Fault>;
    /// Events after `after`, oldest first, at most `limit`; of one job or account, or all.
    async fn events(
        &self,
        job: Option<JobId>,
        account: Option<&AccountName>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<JournalRow>, Fault>;
}
