//! What the controller asks of an agent, and what the agent answers.
//!
//! An [`Intent`] is frozen when its step is planned. It is serialised once, as JSON; those same
//! bytes are what the store keeps, the wire carries, the agent's ledger digests and `--json`
//! shows, so that "the same command" is a comparison of bytes everywhere. Here is what may be said; it must
//! not know how that is sent or carried out.

mod facts;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::approval::Approval;
use crate::fault::Fault;
use crate::ids::{AccountName, Epoch, JobId, ServerName};

pub use facts::{
    AccountFacts, AccountState, DatabaseSummary, Finding, HoldLimit, Needing, Room, ServerFacts,
    Severity, StandingKind, TargetFacts, TreeNeeds,
};

/// Which way a move goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Client to transit.
    Outbound,
    /// Transit back to the old client.
    Rollback,
    /// Transit to the reinstalled client.
    Return,
}

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Outbound => "outbound",
            Self::Rollback => "rollback",
            Self::Return => "return",
        })
    }
}

impl std::str::FromStr for Direction {
    type Err = crate::ids::InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "outbound" => Ok(Self::Outbound),
            "rollback" => Ok(Self::Rollback),
            "return" => Ok(Self::Return),
            _ => Err(crate::ids::InvalidName {
                what: "direction",
                value: text.chars().take(80).collect(),
                rule: "outbound, rollback or return",
            }),
        }
    }
}

/// One account's passage: what every step of a move needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// The job that this move is.
    pub job: JobId,
    /// What moves.
    pub account: AccountName,
    /// Which way.
    pub direction: Direction,
    /// Who serves it before.
    pub source: ServerName,
    /// Who serves it after.
    pub target: ServerName,
    /// Where the source's agent listens for its peers.
    pub source_peer: SocketAddr,
    /// Where the target's agent listens for its peers.
    pub target_peer: SocketAddr,
    /// The epoch before the move; the commit makes it the next one.
    pub epoch: Epoch,
}

/// Which end of a move an inspection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// Serves the account now.
    Source,
    /// Shall serve it.
    Target,
}

/// What a command asks for. Every one may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Intent {
    /// Look; change nothing.
    Inspect {
        /// The account.
        account: AccountName,
        /// Which end is asked.
        end: End,
        /// At the target: what the source said of the account.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<Box<AccountFacts>>,
        /// Whether the other end's agent must be reachable from here, and where.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<SocketAddr>,
        /// At the source: what somebody wants to approve, paths as they are shown.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        approve: Vec<String>,
        /// At the source: what was approved of the move that brought the account here. What is there as it
        /// was seen is approved still.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        inherited: Vec<Approval>,
    },
    /// Target: make everything of the account, closed.
    Provision {
        /// The move.
        of: Move,
    },
    /// Target: remove what `Provision` made.
    Deprovision {
        /// The move.
        of: Move,
    },
    /// Source: copy the files while the account is live, until little is left.
    Precopy {
        /// The move.
        of: Move,
        /// At most so many passes.
        max_passes: u32,
        /// Stop repeating when a pass sent fewer bytes than this.
        converged_bytes: u64,
    },
    /// Source: the redirector stands in front; traffic still goes to the local services.
    Arm {
        /// The move.
        of: Move,
    },
    /// Source: undo of `Arm`.
    Disarm {
        /// The move.
        of: Move,
    },
    /// Source: the account takes no writes, its connections are held.
    Fence {
        /// The move.
        of: Move,
        /// How long the fence may last before the source takes the account back, in seconds.
        deadline_seconds: u32,
        /// How long running requests may go on, in milliseconds.
        grace_ms: u32,
    },
    /// Source: undo of `Fence`.
    Unfence {
        /// The move.
        of: Move,
    },
    /// Source: copy what changed since the last pass; the account is fenced.
    FinalPass {
        /// The move.
        of: Move,
    },
    /// Source: dump each database and load it at the target; the account is fenced.
    CopyDatabases {
        /// The move.
        of: Move,
    },
    /// Source: compare both ends.
    Verify {
        /// The move.
        of: Move,
    },
    /// Target: start everything, closed, and answer a smoke request.
    Rehearse {
        /// The move.
        of: Move,
    },
    /// Source: record durably that the account has moved. The point of no return.
    Commit {
        /// The move.
        of: Move,
    },
    /// Source: the target has refused what was committed; serve the account again, at the epoch after
    /// it. Undo of `Commit` in this case alone.
    TakeBack {
        /// The move.
        of: Move,
        /// The target's record.
        refusal: Refusal,
    },
    /// Target: serve the account.
    Open {
        /// The move.
        of: Move,
        /// The source's record. Frozen as none, filled in when the commit is known; the record may
        /// also have reached the target from the source itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        commit: Option<CommitRecord>,
    },
    /// Source: pass held and coming connections to the target.
    Release {
        /// The move.
        of: Move,
        /// Frozen as none, filled in if the target was opened by force: the record of that. Whatever the
        /// source did meanwhile, it closes the account and stands as moved.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        forced: Option<CommitRecord>,
    },
    /// Target, of a move that has long ended: say that it serves the account, whole, at this epoch.
    Prove {
        /// The move.
        of: Move,
    },
    /// Source, of a move that has long ended: say that its copy may be erased.
    ProveErasable {
        /// The move.
        of: Move,
    },
    /// End a move: take down what stands for it on the server that no longer serves.
    Finalize {
        /// The move.
        of: Move,
        /// Erase the copy there as well.
        erase: bool,
    },
}

impl Intent {
    /// The account that it is about.
    pub fn account(&self) -> &AccountName {
        match self {
            Self::Inspect { account, .. } => account,
            other => match other.of() {
                Some(of) => &of.account,
                // `of` is none for Inspect alone, which the arm above took.
                None => unreachable!("every intent but Inspect is of a move"),
            },
        }
    }

    /// The move that it is part of.
    pub fn of(&self) -> Option<&Move> {
        match self {
            Self::Inspect { .. } => None,
            Self::Provision { of }
            | Self::Deprovision { of }
            | Self::Precopy { of, .. }
            | Self::Arm { of }
            | Self::Disarm { of }
            | Self::Fence { of, .. }
            | Self::Unfence { of }
            | Self::FinalPass { of }
            | Self::CopyDatabases { of }
            | Self::Verify { of }
            | Self::Rehearse { of }
            | Self::Commit { of }
            | Self::TakeBack { of, .. }
            | Self::Open { of, .. }
            | Self::Release { of, .. }
            | Self::Prove { of }
            | Self::ProveErasable { of }
            | Self::Finalize { of, .. } => Some(of),
        }
    }

    /// Its name, as in `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Inspect { .. } => "inspect",
            Self::Provision { .. } => "provision",
            Self::Deprovision { .. } => "deprovision",
            Self::Precopy { .. } => "precopy",
            Self::Arm { .. } => "arm",
            Self::Disarm { .. } => "disarm",
            Self::Fence { .. } => "fence",
            Self::Unfence { .. } => "unfence",
            Self::FinalPass { .. } => "final_pass",
            Self::CopyDatabases { .. } => "copy_databases",
            Self::Verify { .. } => "verify",
            Self::Rehearse { .. } => "rehearse",
            Self::Commit { .. } => "commit",
            Self::TakeBack { .. } => "take_back",
            Self::Open { .. } => "open",
            Self::Release { .. } => "release",
            Self::Prove { .. } => "prove",
            Self::ProveErasable { .. } => "prove_erasable",
            Self::Finalize { .. } => "finalize",
        }
    }
}

/// The source's durable record that the account has moved. The target opens on nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitRecord {
    /// The job that moved it.
    pub job: JobId,
    /// The account.
    pub account: AccountName,
    /// Who served it.
    pub source: ServerName,
    /// Who serves it from now on.
    pub target: ServerName,
    /// The new epoch.
    pub epoch: Epoch,
    /// When the fence was complete, by the source's clock, Unix seconds. The target's cron starts
    /// only after this minute.
    pub fenced_at_unix: i64,
    /// When it was recorded, Unix milliseconds.
    pub committed_at_unix_ms: i64,
    /// Whose word it is instead of the source's, if it is: the source is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced: Option<Forced>,
}

/// A person's word that a source, of which nobody knows whether it has committed, is off and isolated, and
/// that the target shall open the account without hearing from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forced {
    /// Who said so, as the controller knows them.
    pub by: String,
    /// When, by the controller's clock, Unix milliseconds.
    pub at_unix_ms: i64,
}

/// The target's durable record that it never opens an epoch: before anything of the account was opened
/// there it found that it could not be. So nothing was acknowledged at the target, and the source may
/// serve the account again, at the epoch after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The job that moved it.
    pub job: JobId,
    /// The account.
    pub account: AccountName,
    /// Who served it.
    pub source: ServerName,
    /// Who refuses it.
    pub target: ServerName,
    /// The epoch of the commit record, which nobody serves.
    pub epoch: Epoch,
    /// What did not open.
    pub reason: String,
    /// When it was refused, by the target's clock, Unix milliseconds.
    pub at_unix_ms: i64,
}

impl Refusal {
    /// Whether it ends what `record` says.
    pub fn is_of(&self, record: &CommitRecord) -> bool {
        let mine = (self.job, &self.account, &self.source, &self.target, self.epoch);
        mine == (record.job, &record.account, &record.source, &record.target, record.epoch)
    }
}

/// What a command found or did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Receipt {
    /// Of `Inspect` at the source.
    Source(Box<AccountFacts>),
    /// Of `Inspect` at the target.
    Target(Box<TargetFacts>),
    /// Of any command that has only to say that it is done.
    Done {
        /// What was done, for a person; empty if nothing was left to do.
        summary: String,
        /// Numbers worth keeping, by name with unit (`bytes_sent`, `held_ms`).
        #[serde(default)]
        figures: BTreeMap<String, f64>,
    },
    /// Of `Commit`.
    Committed(CommitRecord),
    /// Of `Release`: what visitors felt.
    Released {
        /// From the first request held or refused to the first answered at the target,
        /// milliseconds; none if nobody came during the fence.
        outage_ms: Option<f64>,
        /// From the fence's beginning until release, milliseconds.
        fenced_ms: f64,
        /// How many connections were held.
        held: u64,
        /// How many were refused.
        refused: u64,
        /// How many requests that were running when the fence began it had to end.
        #[serde(default)]
        ended: u64,
    },
    /// Of `Release`, if the target was opened by force: what became of the source's copy.
    GivenUp {
        /// How the source stood, for a person.
        found: String,
        /// What was written there meanwhile, and is not at the target: paths below the home, the last
        /// first.
        #[serde(default)]
        written: Vec<String>,
        /// How many paths were written; more than are named, if they are many.
        #[serde(default)]
        written_total: u64,
        /// What may be there besides, and how to find it; empty if nothing can be.
        #[serde(default)]
        look_at: String,
    },
}

impl Receipt {
    /// What it says, on a line, for a person; empty if it has nothing to say.
    pub fn in_words(&self) -> String {
        match self {
            Self::Done { summary, .. } => summary.clone(),
            Self::Committed(record) => match &record.forced {
                None => format!("epoch {}", record.epoch),
                Some(forced) => {
                    format!("epoch {}, by force, on the word of {}", record.epoch, forced.by)
                }
            },
            Self::GivenUp { found, written, written_total, look_at } => {
                let mut text = found.clone();
                if *written_total > 0 {
                    let named = written.join(", ");
                    text.push_str(&format!(
                        "; {written_total} written there meanwhile, not merged: {named}"
                    ));
                }
                if !look_at.is_empty() {
                    text.push_str(&format!("; {look_at}"));
                }
                text
            }
            Self::Source(_) | Self::Target(_) | Self::Released { .. } => String::new(),
        }
    }
}

/// How far a command is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// What it is at.
    pub doing: String,
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes in all, if known.
    pub bytes_total: Option<u64>,
    /// Files or tables done.
    pub items_done: u64,
    /// Files or tables in all, if known.
    pub items_total: Option<u64>,
    /// Bytes a second at present, if known.
    pub bytes_per_second: Option<u64>,
    /// Files or tables a second at present, if known.
    pub items_per_second: Option<u64>,
    /// How long the rest takes at these rates, if known.
    pub seconds_left: Option<u64>,
    /// What takes most of the time, if something does.
    pub slow: Option<String>,
    /// While an account is copied ahead: how long its final pass is going to take, if known.
    pub final_pass: Option<FinalPass>,
}

/// How long the final pass behind the fence is going to take, as things are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FinalPass {
    /// Milliseconds, about.
    pub ms: u64,
    /// The same and why, in a sentence.
    pub words: String,
}

/// What came of a command.
pub type Outcome = Result<Receipt, Fault>;
