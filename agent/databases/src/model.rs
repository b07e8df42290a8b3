//! The plain data that callers and both engines share. It knows no engine's inside.

use std::collections::BTreeSet;

use ferry_proto::Fault;
use ferry_proto::account::{DatabaseUser, Definition, EngineKind};
use ferry_proto::ids::{AccountName, DatabaseName};
use serde::{Deserialize, Serialize};

/// The databases and users of a server, whosever they are; the server's own among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Every database.
    pub databases: Vec<SurveyedDatabase>,
    /// Every user that can log in or has rights.
    pub users: Vec<SurveyedUser>,
}

/// A database of a survey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SurveyedDatabase {
    /// Its name as the server keeps it, which need not be one that Ferry moves.
    pub name: String,
    /// Its owner; MariaDB knows none.
    pub owner: Option<String>,
}

/// A database user of a survey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SurveyedUser {
    /// Its name.
    pub name: String,
    /// MariaDB: from where it may come.
    pub host: Option<String>,
    /// The databases on which, or on something in which, it was given rights.
    pub databases: BTreeSet<String>,
    /// Whether it has rights on the whole server.
    pub administrates: bool,
}

/// What of an account one engine is asked to handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The account.
    pub account: AccountName,
    /// The Unix user that clients loading a dump run as.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The account's databases of this engine.
    pub databases: Vec<DatabaseName>,
    /// The account's database users of this engine.
    pub users: Vec<DatabaseUser>,
}

impl Spec {
    /// The part of `definition` that concerns `engine`.
    pub fn of(definition: &Definition, engine: EngineKind, uid: u32, gid: u32) -> Self {
        Self {
            account: definition.name.clone(),
            uid,
            gid,
            databases: definition.databases_of(engine).map(|d| d.name.clone()).collect(),
            users: definition.users_of(engine).cloned().collect(),
        }
    }

    /// Whether the account has nothing of this engine.
    pub fn is_empty(&self) -> bool {
        self.databases.is_empty() && self.users.is_empty()
    }

    pub(crate) fn owns(&self, database: &str) -> bool {
        self.databases.iter().any(|d| d.as_str() == database)
    }

    /// A peer may name any database; its grant is for this account's alone.
    pub(crate) fn check_owns(&self, database: &str) -> Result<(), Fault> {
        if self.owns(database) {
            return Ok(());
        }
        Err(Fault::permanent(format!("database {database} is not of the account {}", self.account))
            .remedy("look in the journal of both agents: somebody asks for what no move needs"))
    }

    /// A load runs programs as the account: never as root.
    pub(crate) fn check_unix_user(&self) -> Result<(), Fault> {
        if self.uid == 0 || self.gid == 0 {
            return Err(Fault::bug(format!(
                "a dump of account {} would be loaded as root",
                self.account
            )));
        }
        Ok(())
    }

    /// The name of a temporary database user of this account. It is derived from the account, so
    /// that one left by a crash is found again, and short enough for both engines.
    pub(crate) fn temporary_user(&self, purpose: &str) -> String {
        temporary_user_of(&self.account, purpose)
    }

    /// The mark on what Ferry created for this account and has not opened yet.
    pub(crate) fn mark(&self) -> String {
        mark_of(self.account.as_str())
    }
}

/// What every mark begins with; the account follows.
pub(crate) const MARK: &str = "ferry: closed, being received for account ";
/// How much of a hash is in the names that Ferry derives.
const DIGITS: usize = 16;

/// The mark on what Ferry created for `account`.
pub(crate) fn mark_of(account: &str) -> String {
    format!("{MARK}{account}")
}

/// The name of a temporary user of `account`.
pub(crate) fn temporary_user_of(account: &AccountName, purpose: &str) -> String {
    let hash = blake3::hash(account.as_str().as_bytes()).to_hex();
    format!("ferry_{purpose}_{}", &hash[..DIGITS])
}

/// Whether `name` is exactly one that Ferry derives for `purpose`, of whatever account.
pub(crate) fn is_derived(name: &str, purpose: &str) -> bool {
    let digits = name
        .strip_prefix("ferry_")
        .and_then(|rest| rest.strip_prefix(purpose)?.strip_prefix('_'))
        .unwrap_or_default();
    digits.len() == DIGITS && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Good to know.
    Note,
    /// Something will be different at the target.
    Warning,
    /// The move cannot succeed, or would lose something.
    Blocker,
}

/// Something that a person should know before saying yes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How much it weighs.
    pub level: Level,
    /// What it is about: a database, user or object.
    pub subject: String,
    /// What was found, one sentence.
    pub message: String,
    /// What to do about it; empty if nothing need be done.
    pub remedy: String,
}

impl Finding {
    pub(crate) fn new(
        level: Level,
        subject: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level, subject: subject.into(), message: message.into(), remedy: remedy.into() }
    }
}

/// Whether an engine can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// Its programs or its socket are not on this server.
    Absent,
    /// It is installed but does not answer.
    Down(Fault),
    /// It answers.
    Running(ServerFacts),
}

/// A database server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// The engine.
    pub engine: EngineKind,
    /// The version as the server says it.
    pub version: String,
    /// Where its data lies.
    pub data_dir: String,
    /// Free space there, if it could be read.
    pub free_bytes: Option<u64>,
}

/// Free space at a place, if it can be read.
pub(crate) async fn free_bytes(place: String) -> Option<u64> {
    let read = tokio::task::spawn_blocking(move || nix::sys::statvfs::statvfs(place.as_str()));
    let stat = read.await.ok()?.ok()?;
    Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// What an account has on a database server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The server.
    pub server: ServerFacts,
    /// The account's databases.
    pub databases: Vec<DatabaseFacts>,
    /// Everything worth knowing, about users as well as databases.
    pub findings: Vec<Finding>,
}

impl Facts {
    /// The findings that stop a move.
    pub fn blockers(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| f.level == Level::Blocker)
    }
}

/// One database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseFacts {
    /// Its name.
    pub name: String,
    /// Data and indexes, as the server estimates them.
    pub size_bytes: u64,
    /// Character set (MariaDB) or encoding (PostgreSQL).
    pub charset: String,
    /// Collation.
    pub collation: String,
    /// PostgreSQL: LC_CTYPE.
    pub ctype: Option<String>,
    /// PostgreSQL: the owning role.
    pub owner: Option<String>,
    /// PostgreSQL: extensions.
    pub extensions: Vec<String>,
    /// Number of tables.
    pub tables: u64,
    /// Number of views.
    pub views: u64,
    /// Number of functions and procedures.
    pub routines: u64,
    /// Number of triggers.
    pub triggers: u64,
    /// MariaDB: number of events.
    pub events: u64,
    /// Number of sequences.
    pub sequences: u64,
}

/// What to do about a database or user of the account that is at the target already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Existing {
    /// It belongs to somebody else: refuse.
    Refuse,
    /// It is the account's own, closed since an earlier move: take its place.
    Replace,
}

/// What Ferry created at a target and has not opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisioned {
    /// Databases.
    pub databases: BTreeSet<String>,
    /// Users: `name` in PostgreSQL, `name@host` in MariaDB.
    pub users: BTreeSet<String>,
}

impl Provisioned {
    /// Everything that provisioning `spec` could have created.
    pub fn all_of(spec: &Spec) -> Self {
        Self {
            databases: spec.databases.iter().map(ToString::to_string).collect(),
            users: spec.users.iter().map(user_label).collect(),
        }
    }
}

/// The fault for a copy that is to be dropped and is not closed.
pub(crate) fn not_closed(spec: &Spec, engine: EngineKind) -> Fault {
    Fault::fenced(format!(
        "the {engine} databases of account {} are not closed here: nothing of them is dropped",
        spec.account
    ))
    .remedy("find out which server serves the account; only a copy that serves nobody is erased")
}

/// How a user is written in messages and receipts.
pub(crate) fn user_label(user: &DatabaseUser) -> String {
    match user.engine {
        EngineKind::Mariadb => format!("{}@{}", user.name, host_of(user)),
        EngineKind::Postgresql => user.name.to_string(),
    }
}

/// The host part of a MariaDB user.
pub(crate) fn host_of(user: &DatabaseUser) -> &str {
    user.host.as_ref().map_or("localhost", |h| h.as_str())
}

/// What a dump wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpReport {
    /// Bytes of the stream.
    pub bytes: u64,
    /// Things left out on purpose.
    pub notes: Vec<String>,
}

/// What a load did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Bytes of the stream.
    pub bytes: u64,
    /// Things left out or changed on purpose.
    pub notes: Vec<String>,
}
