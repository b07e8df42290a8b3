//! A plan as it is shown: the part of the controller's plan document that a person is told. What
//! else a plan holds (the intents) is passed on by `--json` and otherwise ignored, so that a newer
//! controller can add to it.

use ferry_proto::account::EngineKind;
use ferry_proto::command::{Direction, Finding};
use ferry_proto::ids::{AccountName, Epoch, ServerName};
use serde::Deserialize;

/// A plan.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PlanView {
    /// What moves.
    pub account: AccountName,
    /// Which way.
    pub direction: Direction,
    /// From.
    pub source: ServerName,
    /// To.
    pub target: ServerName,
    /// The epoch before.
    pub epoch: Epoch,
    /// How long the fence may last, in seconds.
    pub deadline_seconds: u32,
    /// How long it will take.
    pub forecast: ForecastView,
    /// How each database will be copied.
    #[serde(default)]
    pub databases: Vec<PlannedDatabaseView>,
    /// What preflight saw.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// What will be done, in order.
    #[serde(default)]
    pub steps: Vec<PlannedStepView>,
    /// Whether a finding forbids it.
    #[serde(default)]
    pub blocked: bool,
}

/// How long it will take.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ForecastView {
    /// Copying ahead, while the account is served, in seconds.
    pub precopy_seconds: f64,
    /// The outage, in seconds.
    pub outage_seconds: f64,
    /// The outage of a rollback afterwards, in seconds.
    #[serde(default)]
    pub rollback_outage_seconds: Option<f64>,
    /// Bytes to move in all.
    pub bytes: u64,
}

/// A database of a plan.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PlannedDatabaseView {
    /// The engine.
    pub engine: EngineKind,
    /// Its name.
    pub name: String,
    /// How it is copied.
    pub mode: String,
    /// Why so.
    pub reason: String,
    /// Bytes of data and indexes.
    pub bytes: u64,
}

/// A step of a plan.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PlannedStepView {
    /// Its name.
    pub name: String,
    /// What it does, for a person.
    pub title: String,
    /// Whose agent does it.
    pub server: ServerName,
}
