//! A job as it is shown: to `ferry status`, to `--json`, to pages later.

use serde::{Deserialize, Serialize};

use crate::command::{Direction, Forced, Progress, Receipt, Refusal};
use crate::fault::Fault;
use crate::ids::{AccountName, JobId, ServerName};

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobPhase {
    /// Going forward.
    Running,
    /// Undoing what it did.
    Undoing,
    /// Stopped for now, because somebody wants it so: it goes on, or is undone, when somebody wants that.
    Paused,
    /// Ended at the target.
    Done,
    /// Ended where it started.
    Undone,
    /// Needs a person.
    Stuck,
    /// Neither resumed nor undone: the store was restored from a backup, and the servers say that it is
    /// not under way any more.
    Overtaken,
}

impl JobPhase {
    /// Whether it is over, or waits for a person to mend something.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Done | Self::Undone | Self::Stuck | Self::Overtaken)
    }
}

impl std::fmt::Display for JobPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Undoing => "undoing",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Undone => "undone",
            Self::Stuck => "stuck",
            Self::Overtaken => "overtaken",
        })
    }
}

/// Where a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepPhase {
    /// Not yet.
    Waiting,
    /// Being executed or verified.
    Running,
    /// Done and verified.
    Done,
    /// Failed; the fault says why.
    Failed,
    /// Being undone.
    Undoing,
    /// Undone.
    Undone,
    /// Its undo failed for good; a person must look.
    Stuck,
}

/// A step as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepView {
    /// Its name in the plan.
    pub name: String,
    /// What it does, for a person.
    pub title: String,
    /// Which agent does it.
    pub server: ServerName,
    /// Where it is.
    pub phase: StepPhase,
    /// How often it was tried.
    pub attempts: u32,
    /// When it started first, Unix milliseconds.
    pub started_unix_ms: Option<i64>,
    /// When it ended last, Unix milliseconds.
    pub ended_unix_ms: Option<i64>,
    /// What it did.
    pub receipt: Option<Receipt>,
    /// What went wrong last when it was executed.
    pub fault: Option<Fault>,
    /// What went wrong last when it was undone.
    #[serde(default)]
    pub undo_fault: Option<Fault>,
    /// How far it is, while it runs.
    pub progress: Option<Progress>,
}

/// What there is only so much of at one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaceKind {
    /// A move away from it.
    Source,
    /// A move to it.
    Target,
    /// An account inside its fence, at either end.
    Fence,
}

/// What a move takes up at a server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The server.
    pub server: ServerName,
    /// Which of its places.
    pub kind: PlaceKind,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a place on {}", self.server)
    }
}

/// Somebody's wish that a job stop for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// Whose, as far as known.
    pub by: String,
    /// Since when, Unix milliseconds.
    pub since_unix_ms: i64,
}

/// A job as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// The job.
    pub job: JobId,
    /// What moves.
    pub account: AccountName,
    /// Which way.
    pub direction: Direction,
    /// From.
    pub source: ServerName,
    /// To.
    pub target: ServerName,
    /// Where it is.
    pub phase: JobPhase,
    /// Whether the source has recorded the commit, as far as the controller knows.
    pub committed: bool,
    /// Whether the commit was begun and the source has not said what came of it: the account may
    /// have moved, or not.
    #[serde(default)]
    pub commit_unknown: bool,
    /// Whether nobody can be asked about that now: the source, which alone knows, is not connected.
    #[serde(default)]
    pub commit_unheard: bool,
    /// Whose word it was, if the target was opened by force: without the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced: Option<Forced>,
    /// The target's refusal, if it could not open what was committed: that is void, and the source
    /// serves the account again at the epoch after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
    /// Whether somebody asked for it to be undone.
    #[serde(default)]
    pub abort_requested: bool,
    /// Whose wish it is that it stop for now, if it is somebody's. It has stopped once its phase says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Paused>,
    /// Whether it can be paused as it stands.
    #[serde(default)]
    pub can_pause: bool,
    /// What it waits for before it goes on: the limits of moves at once are reached there.
    #[serde(default)]
    pub waiting_for: Option<Place>,
    /// What a person should know: who serves the account, what is safe, what to do next.
    pub advice: String,
    /// When it was started, Unix milliseconds.
    pub started_unix_ms: i64,
    /// When it ended, Unix milliseconds.
    pub ended_unix_ms: Option<i64>,
    /// Its steps, in order.
    pub steps: Vec<StepView>,
}
