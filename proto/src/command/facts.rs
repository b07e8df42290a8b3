//! What an agent says of its server and of the accounts there: facts that plans are made from, what stands in
//! the way, and how each account stands. It must not know what is asked of an agent, or what is made of its word.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::account::{Definition, EngineKind};
use crate::approval::Sight;
use crate::ids::{AccountName, Epoch, JobId, ServerName};

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Note,
    /// May surprise; the move can go on.
    Warning,
    /// The move cannot start.
    Blocker,
}

/// Something that preflight saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How grave.
    pub severity: Severity,
    /// Where: a server.
    pub server: ServerName,
    /// What: one sentence.
    pub message: String,
    /// What to do about it.
    #[serde(default)]
    pub remedy: String,
}

/// How much the redirector of a server keeps waiting for one account during a fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldLimit {
    /// How long one request waits, in milliseconds.
    pub wait_ms: u64,
    /// How many requests wait at once.
    pub requests: u32,
    /// How many bytes of them are kept.
    pub bytes: u64,
}

impl Default for HoldLimit {
    fn default() -> Self {
        Self { wait_ms: 30_000, requests: 1_000, bytes: 64 << 20 }
    }
}

/// What a server is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerFacts {
    /// `PRETTY_NAME` of os-release.
    pub system: String,
    /// Kernel release.
    pub kernel: String,
    /// Cores.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The agent's version.
    pub agent_version: String,
    /// Versions of the services found, by name.
    pub services: BTreeMap<String, String>,
    /// What its redirector keeps waiting; the usual limit if it does not say.
    pub hold: HoldLimit,
    /// The clock, Unix milliseconds: the last thing read before this was sent.
    pub clock_unix_ms: i64,
}

/// A database as inspected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatabaseSummary {
    /// Engine, as people write it.
    pub engine: EngineKind,
    /// Name.
    pub name: String,
    /// Bytes of data and indexes.
    pub bytes: u64,
    /// Tables.
    pub tables: u64,
    /// How it will be copied: `dump`.
    pub mode: String,
    /// Why not faster, and what would have to change.
    pub mode_reason: String,
}

/// What of a tree needs most of something that not every file system can hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needing {
    /// Its path below the home.
    pub path: String,
    /// How much, bytes or 1.
    pub amount: u64,
}

/// What the files of an account need of the file system that is to hold them, with the path that needs it most.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TreeNeeds {
    /// The longest name, bytes.
    pub name: Option<Needing>,
    /// The largest file, bytes.
    pub size: Option<Needing>,
    /// The longest target of a symlink, bytes.
    pub symlink: Option<Needing>,
    /// Extended attributes of its owner, bytes of their names and values.
    pub attributes: Option<Needing>,
    /// An ACL, bytes.
    pub acl: Option<Needing>,
    /// Immutable or append-only: 1.
    pub flags: Option<Needing>,
}

/// What the source knows of an account.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountFacts {
    /// Its definition, as the source serves it.
    pub definition: Definition,
    /// Epoch that the source serves it at.
    pub epoch: Epoch,
    /// Its user's numeric id.
    pub uid: u32,
    /// Its group's numeric id.
    pub gid: u32,
    /// Files of all kinds below the home.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// What they need of a file system.
    #[serde(default)]
    pub needs: TreeNeeds,
    /// What was seen where something is to be approved, or is still as it was approved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvable: Vec<Sight>,
    /// Its databases.
    pub databases: Vec<DatabaseSummary>,
    /// The server.
    pub server: ServerFacts,
    /// What was seen.
    pub findings: Vec<Finding>,
}

// Floating-point numbers in facts are measurements and never NaN.
impl Eq for AccountFacts {}

/// What the target says of an account that shall come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetFacts {
    /// The server.
    pub server: ServerFacts,
    /// The numeric user id that the account would get.
    pub uid: u32,
    /// The numeric group id that the account would get.
    pub gid: u32,
    /// The room for each part of the account; a part whose service does not answer has none.
    #[serde(default)]
    pub rooms: Vec<Room>,
    /// What was seen.
    pub findings: Vec<Finding>,
}

/// Where the target would keep a part of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// The engine whose databases these are; none: the home.
    pub engine: Option<EngineKind>,
    /// The directory.
    pub path: String,
    /// Which file system it is on: rooms on one share what is free.
    pub file_system: String,
    /// Bytes free on it.
    pub free_bytes: u64,
    /// Bytes of the account that are there already, of an earlier move.
    pub present_bytes: u64,
    /// Files that can still be made on it; none: as many as there is room for.
    #[serde(default)]
    pub free_files: Option<u64>,
    /// Files of the account that are there already.
    #[serde(default)]
    pub present_files: u64,
}

/// How an account stands on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StandingKind {
    /// This server serves it.
    Serving,
    /// A closed copy is being made here.
    Provisioned,
    /// Served here, the redirector in front.
    Armed,
    /// Fenced here.
    Fenced,
    /// Committed away; traffic passes on.
    Moved,
    /// A closed copy that serves nobody.
    Closed,
}

impl std::fmt::Display for StandingKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Serving => "serving",
            Self::Provisioned => "provisioned",
            Self::Armed => "armed",
            Self::Fenced => "fenced",
            Self::Moved => "moved",
            Self::Closed => "closed",
        })
    }
}

/// An account as one agent reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountState {
    /// The account.
    pub name: AccountName,
    /// How it stands here.
    pub standing: StandingKind,
    /// At which epoch.
    pub epoch: Epoch,
    /// Where it went, if it moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<ServerName>,
    /// Its web domains.
    pub domains: Vec<String>,
    /// The job that has it, if one has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
}
