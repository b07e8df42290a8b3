//! The steps of a move, in the order of the critical section in the design.

use ferry_proto::account::EngineKind;
use ferry_proto::approval::Approval;
use ferry_proto::command::{AccountFacts, Direction, Finding, Intent, Move, Severity, TargetFacts};
use ferry_proto::ids::{AccountName, Epoch, JobId, ServerName};
use serde::{Deserialize, Serialize};

use crate::forecast::{Forecast, Policy, deadline_seconds, forecast};
use crate::preflight;

/// What planning reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// The move.
    pub of: Move,
    /// What the source said.
    pub source: AccountFacts,
    /// What the target said.
    pub target: TargetFacts,
    /// When they said it.
    pub heard: Heard,
    /// What may be set.
    pub policy: Policy,
    /// What goes to the target although an account may not have it.
    pub approvals: Vec<Approval>,
}

/// The controller's clock when each end's answer arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// The source's, Unix milliseconds.
    pub source_unix_ms: i64,
    /// The target's, Unix milliseconds.
    pub target_unix_ms: i64,
}

/// How a database of the account will be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedDatabase {
    /// The engine.
    pub engine: EngineKind,
    /// Its name.
    pub name: String,
    /// The mode.
    pub mode: String,
    /// Why not a faster one, and what would have to change.
    pub reason: String,
    /// Bytes of data and indexes.
    pub bytes: u64,
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The job that it will be.
    pub job: JobId,
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
    pub forecast: Forecast,
    /// How each database will be copied, and why so.
    #[serde(default)]
    pub databases: Vec<PlannedDatabase>,
    /// What goes to the target although an account may not have it, and who said so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
    /// What preflight saw, gravest first.
    pub findings: Vec<Finding>,
    /// Whether a finding forbids it.
    pub blocked: bool,
    /// What will be done.
    pub steps: Vec<PlannedStep>,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// Unique within the plan.
    pub name: String,
    /// What it does, for a person.
    pub title: String,
    /// Whose agent does it.
    pub server: ServerName,
    /// What the agent is asked.
    pub intent: Intent,
    /// How long one attempt may take, in seconds.
    pub timeout_seconds: u32,
    /// Whether it is the point of no return.
    pub commit_point: bool,
    /// What it lets in; only if it copies or compares files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
}

/// Days in seconds.
const DAY: u32 = 24 * 3600;

impl PlannedStep {
    fn new(server: &ServerName, title: &str, timeout_seconds: u32, intent: Intent) -> Self {
        Self {
            name: intent.kind().to_owned(),
            title: title.to_owned(),
            server: server.clone(),
            commit_point: matches!(intent, Intent::Commit { .. }),
            intent,
            timeout_seconds,
            approvals: Vec::new(),
        }
    }

    /// With what is approved, if it is about files.
    fn letting_in(mut self, approvals: &[Approval]) -> Self {
        let has_files = matches!(
            self.intent,
            Intent::Precopy { .. } | Intent::FinalPass { .. } | Intent::Verify { .. }
        );
        if has_files {
            self.approvals = approvals.to_vec();
        }
        self
    }
}

/// Plans a move.
pub fn plan(inputs: &Inputs) -> Plan {
    let forecast = forecast(&inputs.source);
    let deadline = deadline_seconds(&inputs.policy, &forecast);
    let findings = preflight::findings(inputs, &forecast);
    Plan {
        job: inputs.of.job,
        account: inputs.of.account.clone(),
        direction: inputs.of.direction,
        source: inputs.of.source.clone(),
        target: inputs.of.target.clone(),
        epoch: inputs.of.epoch,
        deadline_seconds: deadline,
        databases: databases(&inputs.source),
        forecast,
        blocked: findings.iter().any(|f| f.severity == Severity::Blocker),
        findings,
        approvals: inputs.approvals.clone(),
        steps: steps(&inputs.of, &inputs.policy, deadline)
            .into_iter()
            .map(|step| step.letting_in(&inputs.approvals))
            .collect(),
    }
}

fn databases(source: &AccountFacts) -> Vec<PlannedDatabase> {
    let planned = |d: &ferry_proto::command::DatabaseSummary| PlannedDatabase {
        engine: d.engine,
        name: d.name.clone(),
        mode: d.mode.clone(),
        reason: d.mode_reason.clone(),
        bytes: d.bytes,
    };
    source.databases.iter().map(planned).collect()
}

/// The critical section of the design, and what goes before and after it.
fn steps(of: &Move, policy: &Policy, deadline: u32) -> Vec<PlannedStep> {
    let (source, target) = (&of.source, &of.target);
    // Inside the fence nothing is worth waiting for longer than the fence itself lasts.
    let fenced = deadline;
    let step = PlannedStep::new;
    let of = || of.clone();
    vec![
        step(target, "Make the account at the target, closed", 600, Intent::Provision { of: of() }),
        step(
            source,
            "Copy the files ahead while the account is served",
            7 * DAY,
            Intent::Precopy {
                of: of(),
                max_passes: policy.max_passes,
                converged_bytes: policy.converged_bytes,
            },
        ),
        step(source, "Put the redirector in front", 60, Intent::Arm { of: of() }),
        step(
            source,
            "Fence: hold connections, stop writes",
            fenced,
            Intent::Fence { of: of(), deadline_seconds: deadline, grace_ms: policy.grace_ms },
        ),
        step(source, "Copy what changed since", fenced, Intent::FinalPass { of: of() }),
        step(source, "Dump and load the databases", fenced, Intent::CopyDatabases { of: of() }),
        step(source, "Compare both ends", fenced, Intent::Verify { of: of() }),
        step(target, "Rehearse the open", fenced, Intent::Rehearse { of: of() }),
        step(source, "Commit: the account has moved", fenced, Intent::Commit { of: of() }),
        step(
            target,
            "Open the account at the target",
            120,
            Intent::Open { of: of(), commit: None },
        ),
        step(
            source,
            "Release held connections to the target",
            60,
            Intent::Release { of: of(), forced: None },
        ),
    ]
}

/// The plan that ends a move: takes down what stands for it at the server that no longer serves. That
/// cannot be undone, so the server that serves proves it first; what is erased proves itself unwritten
/// since its commit before anything is taken down, and again in the same command that erases it.
pub fn finalize(of: &Move, erase: bool) -> Plan {
    Plan {
        job: of.job,
        account: of.account.clone(),
        direction: of.direction,
        source: of.source.clone(),
        target: of.target.clone(),
        epoch: of.epoch,
        deadline_seconds: 0,
        forecast: Forecast {
            precopy_seconds: 0.0,
            outage_seconds: 0.0,
            rollback_outage_seconds: 0.0,
            bytes: 0,
        },
        databases: Vec::new(),
        approvals: Vec::new(),
        findings: Vec::new(),
        blocked: false,
        steps: ending(of, erase),
    }
}

fn ending(of: &Move, erase: bool) -> Vec<PlannedStep> {
    let step = |server, title, intent| PlannedStep::new(server, title, 3600, intent);
    let mut steps = vec![step(
        &of.target,
        "Prove that the account is served here, whole",
        Intent::Prove { of: of.clone() },
    )];
    if erase {
        steps.push(step(
            &of.source,
            "Prove that the copy may be erased",
            Intent::ProveErasable { of: of.clone() },
        ));
    }
    let title = if erase {
        "Take down what stands for the move, and erase the copy"
    } else {
        "Take down what stands for the move"
    };
    steps.push(step(&of.source, title, Intent::Finalize { of: of.clone(), erase }));
    steps
}
