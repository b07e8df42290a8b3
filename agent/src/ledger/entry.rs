//! What the ledger records: commands, and how each account stands on this server. An entry holds
//! the whole new state of what it is about, so that recovery is: the last one counts.

use ferry_databases as databases;
use ferry_host as host;
use ferry_proto::account::{Definition, EngineKind};
use ferry_proto::command::{CommitRecord, Forced, Move, Outcome, Refusal, StandingKind};
use ferry_proto::grant::SignedGrant;
use ferry_proto::ids::{AccountName, CommandId, Epoch, JobId, ServerName};
use ferry_traffic::mail;
use serde::{Deserialize, Serialize};

use crate::clock::Deadline;

/// One entry.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// A command was taken; it may have been begun.
    Taken {
        /// The command.
        id: CommandId,
        /// BLAKE3 of its intent, hex.
        digest: String,
    },
    /// A command ended.
    Ended {
        /// The command.
        id: CommandId,
        /// BLAKE3 of its intent, hex.
        digest: String,
        /// What came of it.
        outcome: Outcome,
    },
    /// How an account stands.
    Account {
        /// Its name.
        name: AccountName,
        /// Its state; none: forgotten.
        account: Option<Box<Account>>,
    },
    /// A move was undone here: its grants are good for nothing any more.
    Undone {
        /// The move's job.
        job: JobId,
    },
    /// The highest controller generation seen.
    Generation {
        /// It.
        generation: u64,
    },
    /// Certificates no longer accepted; the whole list.
    Revocations {
        /// Serials.
        serials: Vec<String>,
        /// Servers.
        servers: Vec<ServerName>,
    },
}

/// An account on this server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Account {
    /// Its definition, as this server serves it.
    pub definition: Definition,
    /// The epoch at which `standing` holds.
    pub epoch: Epoch,
    /// Its user's numeric id here.
    pub uid: u32,
    /// Its group's numeric id here.
    pub gid: u32,
    /// How it stands.
    pub standing: Standing,
    /// What Ferry made here for it; none for an account that was here before Ferry.
    pub made: Option<Made>,
    /// Whose redirector passes its visitors on to this server: where it came from.
    #[serde(default)]
    pub came_from: Option<std::net::IpAddr>,
    /// The last move whose fence ended without a commit, or whose commit the target has refused: it must
    /// not fence again, unasked. At that target likewise.
    #[serde(default)]
    pub taken_back: Option<JobId>,
    /// When that fence ended, or its end began, by this server's clock, Unix milliseconds: since then it
    /// was served here again. None while it is not, and where it is not known.
    #[serde(default)]
    pub served_again_unix_ms: Option<i64>,
    /// Whose word opened it here without its source's, if that is how it was opened.
    #[serde(default)]
    pub forced: Option<Forced>,
    /// What winding down its kept-alive connections changed, while that stands.
    #[serde(default)]
    pub wound_down: Option<Box<host::sites_wind_down::WindDown>>,
    /// What denies it service here: the former state of all that the fence changes.
    pub closed: Option<Box<Closed>>,
    /// While it comes back to where it lived before: what becomes of its user, and was before.
    #[serde(default)]
    pub refreshed: Option<Box<Refreshed>>,
    /// What follows its opening here, at its time.
    #[serde(default)]
    pub after_open: Option<Box<AfterOpen>>,
}

/// How an account stands on a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Standing {
    /// Served here.
    Serving,
    /// A closed copy is being made.
    Receiving {
        /// The move.
        of: Move,
        /// What the source said of it last.
        source: Box<SourceRecord>,
        /// How it stood before: a move that is undone goes back to it.
        before: Option<Box<Standing>>,
    },
    /// Served here, the redirector in front.
    Armed {
        /// The move.
        of: Move,
    },
    /// Takes no writes here.
    Fenced {
        /// The move.
        of: Move,
        /// When it ends by itself; when it began to end, if that was before.
        deadline: Deadline,
        /// When it began, Unix milliseconds.
        began_unix_ms: i64,
        /// When everything was closed, Unix seconds; none: not yet.
        complete_unix: Option<i64>,
        /// It is being taken back: it can no longer be committed.
        ending: bool,
        /// Its sites are open again already; the rest is still tried.
        #[serde(default)]
        open: bool,
        /// How long running requests may go on; none in ledgers of old.
        #[serde(default)]
        grace_ms: Option<u32>,
    },
    /// Committed away.
    Moved {
        /// The move.
        of: Move,
        /// The record.
        record: CommitRecord,
        /// When the fence began, Unix milliseconds.
        fenced_unix_ms: i64,
        /// When connections were passed on, Unix milliseconds; none: not yet.
        released_unix_ms: Option<i64>,
        /// Mail is passed on too, and nothing of the release is left to do.
        #[serde(default)]
        settled: bool,
        /// What lets this server tell the target itself; none in ledgers of old.
        #[serde(default)]
        grant: Option<SignedGrant>,
        /// Whose redirector passed its visitors on to this server: again, if the target refuses it.
        #[serde(default)]
        came_from: Option<std::net::IpAddr>,
    },
    /// Committed to this server; being opened.
    Opening {
        /// The move.
        of: Move,
        /// The source's record.
        record: CommitRecord,
        /// What the source said of it last.
        source: Box<SourceRecord>,
        /// How it stood before.
        before: Option<Box<Standing>>,
        /// It was found that it can be opened: something may be open by now, and nothing is refused any
        /// more. Ledgers of old do not say so.
        #[serde(default = "may_be_open")]
        accepts: bool,
    },
    /// Committed to this server, which could not open it and never will: nothing of it was opened. The
    /// closed copy waits to be removed.
    Refused {
        /// The move.
        of: Move,
        /// What the source is told.
        refusal: Refusal,
        /// What the source said of it last.
        source: Box<SourceRecord>,
        /// How it stood before: a move that is undone goes back to it.
        before: Option<Box<Standing>>,
    },
    /// A closed copy that nothing stands for any more.
    Finalized {
        /// Who serves the account.
        to: ServerName,
        /// Since when: its commit, Unix milliseconds; none in ledgers of old.
        #[serde(default)]
        since_unix_ms: Option<i64>,
        /// Proved to hold nothing unique, and being removed: what is left of it is no copy any more.
        #[serde(default)]
        erasing: bool,
    },
}

impl Standing {
    /// The move that stands for it, if one does.
    pub fn of(&self) -> Option<&Move> {
        match self {
            Self::Receiving { of, .. }
            | Self::Armed { of }
            | Self::Fenced { of, .. }
            | Self::Moved { of, .. }
            | Self::Opening { of, .. }
            | Self::Refused { of, .. } => Some(of),
            Self::Serving | Self::Finalized { .. } => None,
        }
    }
}

fn may_be_open() -> bool {
    true
}

/// What Ferry made here for an account: what may be removed again.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Made {
    /// The Unix user and groups.
    pub user: Option<host::users::Provision>,
    /// Databases and database users, by engine.
    pub databases: Vec<(EngineKind, databases::Provisioned)>,
    /// Rendered sites.
    pub sites: Option<host::sites::SitesPlan>,
}

/// What receiving an account changes of its user and crontab where it lived before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refreshed {
    /// The user as it is at the source, with its ids here.
    pub user: host::users::Provision,
    /// What this server's user was: what a move that is undone goes back to.
    pub former_user: host::users::FormerUser,
    /// Likewise this server's crontab.
    pub former_cron: host::cron::CronRecord,
}

/// What follows an open once the minute of the fence has passed: cron, units, the account's hook.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AfterOpen {
    /// Not before this, Unix milliseconds by this server's clock.
    pub due_unix_ms: i64,
    /// The minute of the fence, counted from 1970: the last in which the source's cron may have run.
    pub fence_minute: i64,
    /// Minutes whose cron jobs no server runs.
    pub missed_minutes: i64,
    /// What systemd may start.
    pub units: host::processes::KeptStopped,
    /// Cron and units have been started; the hook perhaps not.
    #[serde(default)]
    pub started: bool,
    /// It has followed.
    pub done: bool,
}

/// The former state of all that the fence changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Closed {
    /// Web sites.
    pub sites: host::sites_fence::FencePlan,
    /// Logins.
    pub logins: host::users::LoginRecord,
    /// User units, timers, services.
    pub units: host::processes::KeptStopped,
    /// Databases, by engine.
    pub databases: Vec<(EngineKind, databases::FenceRecord)>,
}

/// What a source tells its target of an account, apart from content. It holds password hashes: it
/// crosses only from agent to agent, and is kept only in this ledger.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The definition as the source serves it.
    pub definition: Definition,
    /// The user.
    pub user: host::users::UserRecord,
    /// The crontab.
    pub cron: host::cron::CronRecord,
    /// Databases and database users, by engine.
    pub databases: Vec<(EngineKind, databases::Record)>,
    /// Mailboxes.
    pub mail: mail::MailRecord,
    /// The web server's ids there, which own files in many homes.
    #[serde(default)]
    pub web: Option<host::users::WebIds>,
    /// Whether its user units run without a login; none: not known.
    #[serde(default)]
    pub linger: Option<bool>,
}

impl Account {
    /// The kind of its standing, as reported.
    pub fn kind(&self) -> StandingKind {
        match &self.standing {
            Standing::Serving => StandingKind::Serving,
            Standing::Receiving { .. } | Standing::Opening { .. } | Standing::Refused { .. } => {
                StandingKind::Provisioned
            }
            Standing::Armed { .. } => StandingKind::Armed,
            Standing::Fenced { .. } => StandingKind::Fenced,
            Standing::Moved { .. } => StandingKind::Moved,
            Standing::Finalized { .. } => StandingKind::Closed,
        }
    }

    /// The job that has it, if one has.
    pub fn job(&self) -> Option<JobId> {
        let has_ended = matches!(self.standing, Standing::Moved { .. });
        self.standing.of().filter(|_| !has_ended).map(|of| of.job)
    }

    /// Whether a move copies it from here or to here.
    pub fn is_copied(&self) -> bool {
        use Standing::{Armed, Fenced, Receiving};
        matches!(self.standing, Receiving { .. } | Armed { .. } | Fenced { .. })
    }

    /// Whether this copy, which is served elsewhere, was served here after its last fence: what was
    /// written then may be nowhere else.
    pub fn may_hold_unique(&self) -> bool {
        let away = matches!(self.standing, Standing::Moved { .. } | Standing::Finalized { .. });
        away && self.served_again_unix_ms.is_some()
    }

    /// Where it went, if it moved.
    pub fn moved_to(&self) -> Option<&ServerName> {
        match &self.standing {
            Standing::Moved { record, .. } => Some(&record.target),
            Standing::Finalized { to, .. } => Some(to),
            _ => None,
        }
    }
}
