//! What Ferry makes on a server: the kinds, and how one is named. Each crate of the agent observes and
//! removes its own; `ferry-agent doctor` compares them with the ledger.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::account::EngineKind;
use crate::fault::Fault;
use crate::ids::AccountName;

/// A kind of thing that Ferry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each says in `what` what it is")]
pub enum Kind {
    Temporary,
    Aside,
    FenceBlock,
    IdlePool,
    Site,
    Rehearsal,
    Certificate,
    Flag,
    DropIn,
    Linger,
    Crontab,
    KeptCrontab,
    ClosedLogin,
    Firewall,
    Routing,
    Route,
    Peer,
    MailStanding,
    MailTable,
    MailHook,
    ClosedDatabase,
    Database,
    DatabaseUser,
    TemporaryDatabase,
    TemporaryDatabaseUser,
    Session,
    Copy,
    Child,
    Account,
}

impl Kind {
    /// What it is, for people.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Temporary => "a file that was being written",
            Self::Aside => "a file of a service that was moved aside",
            Self::FenceBlock => "a server block that answers 503 for a fenced account",
            Self::IdlePool => "a PHP pool that stands in for a fenced account's",
            Self::Site => "a site's configuration, rendered by Ferry",
            Self::Rehearsal => "what a rehearsal made",
            Self::Certificate => "a copy of an account's certificate or key",
            Self::Flag => "a mark that keeps an account's units stopped",
            Self::DropIn => "a unit's drop-in with the fence's condition",
            Self::Linger => "a linger mark that was moved aside",
            Self::Crontab => "a crontab that was moved aside",
            Self::KeptCrontab => "a former crontab that was kept",
            Self::ClosedLogin => "a user whose logins Ferry has closed",
            Self::Firewall => "the firewall's table",
            Self::Routing => "the policy route of the redirector's answers",
            Self::Route => "an account's route in the redirector",
            Self::Peer => "a server that may use the redirector's peer ingress",
            Self::MailStanding => "what was decided for an account's mail",
            Self::MailTable => "a table for Postfix or Dovecot",
            Self::MailHook => "Ferry's hook in Postfix or Dovecot",
            Self::ClosedDatabase => "a database that a fence has closed",
            Self::Database => "a database that was made and not opened",
            Self::DatabaseUser => "a database user that was made and not opened",
            Self::TemporaryDatabase => "a database that has not been given its name",
            Self::TemporaryDatabaseUser => "a temporary database user",
            Self::Session => "a session of a temporary database user",
            Self::Copy => "what is known of a move's copy",
            Self::Child => "a program that the agent started",
            Self::Account => "an account that the ledger calls closed",
        }
    }
}

/// Something that Ferry has made, as it was observed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Artefact {
    /// What it is.
    pub kind: Kind,
    /// Where: a path, or a name.
    pub place: String,
    /// In which database engine, if in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineKind>,
    /// The account, where the artefact says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountName>,
    /// The account's Unix user, where the artefact says that instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Why Ferry does not remove it, and what to do by hand; none: it can be removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_hand: Option<String>,
}

impl Artefact {
    /// One of `kind` at `place`.
    pub fn new(kind: Kind, place: impl fmt::Display) -> Self {
        Self {
            kind,
            place: place.to_string(),
            engine: None,
            account: None,
            user: None,
            by_hand: None,
        }
    }

    /// It is of this account, if that is a name of one.
    #[must_use]
    pub fn of(mut self, account: &str) -> Self {
        self.account = account.parse().ok();
        self
    }

    /// It is of this Unix user.
    #[must_use]
    pub fn of_user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// It is in this engine.
    #[must_use]
    pub fn in_engine(mut self, engine: EngineKind) -> Self {
        self.engine = Some(engine);
        self
    }

    /// Ferry leaves it to a person: why, and what to do.
    #[must_use]
    pub fn by_hand(mut self, what: impl Into<String>) -> Self {
        self.by_hand = Some(what.into());
        self
    }
}

impl fmt::Display for Artefact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(engine) = self.engine {
            write!(f, "{engine} ")?;
        }
        f.write_str(&self.place)?;
        match (&self.account, &self.user) {
            (Some(account), _) => write!(f, " of account {account}"),
            (None, Some(user)) => write!(f, " of user {user}"),
            (None, None) => Ok(()),
        }
    }
}

/// What was seen of one part of a server.
#[derive(Debug, Default)]
pub struct Observed {
    /// What is there.
    pub artefacts: Vec<Artefact>,
    /// What could not be looked at, and why.
    pub unseen: Vec<Fault>,
}

impl Observed {
    /// Adds what a look gave.
    pub fn take(&mut self, seen: Result<Vec<Artefact>, Fault>) {
        match seen {
            Ok(artefacts) => self.artefacts.extend(artefacts),
            Err(fault) => self.unseen.push(fault),
        }
    }
}

impl Extend<Self> for Observed {
    fn extend<T: IntoIterator<Item = Self>>(&mut self, others: T) {
        for other in others {
            self.artefacts.extend(other.artefacts);
            self.unseen.extend(other.unseen);
        }
    }
}
