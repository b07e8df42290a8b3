//! A job as data: frozen when planned, never changed afterwards.

use std::time::Duration;

use ferry_proto::ids::JobId;
use serde::{Deserialize, Serialize};

/// A job: a row of steps done in order, undone in reverse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Its id.
    pub job: JobId,
    /// Its steps.
    pub steps: Vec<StepSpec>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepSpec {
    /// Unique within the job.
    pub name: String,
    /// Which implementation does it.
    pub kind: String,
    /// What it shall do; only the implementation reads it.
    pub intent: serde_json::Value,
    /// How long one attempt may take, in seconds.
    pub timeout_seconds: u32,
    /// Whether this is the point of no return. Before its outcome is known, nothing is undone;
    /// after it succeeded, nothing is undone any more, unless a later step makes it void.
    #[serde(default)]
    pub commit_point: bool,
    /// Whether there is no way back once it has started, whatever comes of it: what it takes down
    /// nothing puts up again. It is tried again, then stuck.
    #[serde(default)]
    pub forward_only: bool,
    /// Whether a final refusal of this step makes a commit before it void: the job is undone then, the
    /// commit included.
    #[serde(default)]
    pub may_void_commit: bool,
    /// Whether the job may be paused while this step is at hand: nobody feels what was done so far, however
    /// long it lasts, and the next attempt goes on with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pausable: bool,
    /// Whether a pause makes old what it did: it is done again before a job goes on that was paused after it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again_after_pause: bool,
}

impl StepSpec {
    /// How long one attempt may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(u64::from(self.timeout_seconds))
    }
}

impl JobSpec {
    /// The index of the commit point, if the job has one.
    pub fn commit_point(&self) -> Option<usize> {
        self.steps.iter().position(|s| s.commit_point)
    }
}
