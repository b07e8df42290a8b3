//! A step that is one command to one agent, and whose undo is another.

use std::sync::Arc;

use async_trait::async_trait;
use ferry_engine::{Context, Observation, Step};
use ferry_fleet::Fleet;
use ferry_fleet::commands::{Order, Stop};
use ferry_plan::PlannedStep;
use ferry_proto::Fault;
use ferry_proto::approval::Approval;
use ferry_proto::command::{Intent, Move, Receipt, Refusal};
use ferry_proto::ids::{CommandId, ServerName};

use crate::grant::{self, Words};
use crate::release;

/// How long a grant lets two agents *start* together, in seconds: a precopy may take days, and
/// each attempt gets a new one.
const GRANT_SECONDS: i64 = 7 * 24 * 3600;

/// A command, and who gets it.
type Command = (ServerName, Intent);

/// What is special about a kind of step.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    /// Its name, as of the intent.
    pub kind: &'static str,
    /// Adds to the frozen intent what only earlier receipts tell.
    pub fill: fn(Intent, &Context) -> Result<Intent, Fault>,
    /// Checks the evidence.
    pub check: fn(&Move, &Receipt) -> Result<(), Fault>,
    /// The command that leaves nothing of it behind, and who gets it; none if nothing can be left. Told
    /// the refusal that made the commit void, if one has.
    pub undo: fn(&Move, Option<&Refusal>) -> Option<Command>,
}

impl Recipe {
    /// A kind with nothing special: any receipt of `Done` will do, nothing to undo.
    pub const fn plain(kind: &'static str) -> Self {
        Self { kind, fill: |intent, _| Ok(intent), check: expect_done, undo: |_, _| None }
    }
}

fn expect_done(of: &Move, receipt: &Receipt) -> Result<(), Fault> {
    match receipt {
        Receipt::Done { .. } => Ok(()),
        other => Err(wrong_receipt(of, other)),
    }
}

/// The fault for a receipt of another kind than the command's.
pub fn wrong_receipt(of: &Move, receipt: &Receipt) -> Fault {
    Fault::bug(format!("an agent answered a step of account {} with {receipt:?}", of.account))
}

/// A step done by an agent.
pub struct AgentStep {
    fleet: Arc<Fleet>,
    recipe: Recipe,
}

/// What a command is for: part of its id.
#[derive(Clone, Copy)]
enum Action {
    Execute,
    Undo,
}

impl AgentStep {
    /// A step of this kind, done by the agents of `fleet`.
    pub fn new(fleet: Arc<Fleet>, recipe: Recipe) -> Self {
        Self { fleet, recipe }
    }

    fn order(
        &self,
        context: &Context,
        action: Action,
        server: ServerName,
        intent: Intent,
        approvals: Vec<Approval>,
    ) -> Result<Order, Fault> {
        let forced = match &intent {
            Intent::Open { commit: Some(record), .. }
            | Intent::Release { forced: Some(record), .. } => record.forced.clone(),
            _ => None,
        };
        let words = Words { forced, approvals };
        let sign = |of| grant::with_words(&self.fleet, of, GRANT_SECONDS, words);
        let grant = intent.of().map(sign).transpose()?;
        Ok(Order { server, id: command_id(context, action), job: Some(context.job), intent, grant })
    }
}

fn planned(context: &Context) -> Result<PlannedStep, Fault> {
    serde_json::from_value(context.spec.intent.clone())
        .map_err(|e| Fault::bug("a planned step cannot be read").caused_by(&e))
}

fn move_of(step: &PlannedStep) -> Result<Move, Fault> {
    step.intent.of().cloned().ok_or_else(|| Fault::bug("a step of a job is of no move"))
}

/// The same for the same attempt, also after a crash of the controller: so the agent knows it.
fn command_id(context: &Context, action: Action) -> CommandId {
    let action = match action {
        Action::Execute => "execute",
        Action::Undo => "undo",
    };
    let name = format!("{}/{action}/{}", context.spec.name, context.attempt);
    CommandId(uuid::Uuid::new_v5(&context.job.0, name.as_bytes()))
}

fn to_json(receipt: &Receipt) -> Result<serde_json::Value, Fault> {
    serde_json::to_value(receipt).map_err(|e| Fault::bug("a receipt has no JSON").caused_by(&e))
}

#[async_trait]
impl Step for AgentStep {
    async fn observe(&self, context: &Context) -> Result<Observation, Fault> {
        let step = planned(context)?;
        match self.fleet.observe(&step.server, command_id(context, Action::Execute)).await? {
            Some(Ok(receipt)) => Ok(Observation::Done(to_json(&receipt)?)),
            Some(Err(fault)) => Err(fault),
            // Under way or unknown: sending the same command again attaches to it or starts it.
            None => Ok(Observation::NotDone),
        }
    }

    async fn execute(&self, context: &Context) -> Result<serde_json::Value, Fault> {
        let step = planned(context)?;
        let intent = (self.recipe.fill)(step.intent, context)?;
        if release::is_pointless(&self.fleet, &step.server, &intent) {
            return to_json(&release::cut_off(&step.server));
        }
        let order = self.order(context, Action::Execute, step.server, intent, step.approvals)?;
        let stop = Stop { cancel: context.cancel.clone(), leave: context.abort.clone() };
        let receipt = self.fleet.run(&order, Some(context.progress.clone()), &stop).await?;
        to_json(&receipt)
    }

    async fn verify(&self, context: &Context, receipt: &serde_json::Value) -> Result<(), Fault> {
        let of = move_of(&planned(context)?)?;
        let receipt = serde_json::from_value(receipt.clone())
            .map_err(|e| Fault::bug("a receipt cannot be read").caused_by(&e))?;
        (self.recipe.check)(&of, &receipt)
    }

    async fn undo(&self, context: &Context, _: Option<&serde_json::Value>) -> Result<(), Fault> {
        let of = move_of(&planned(context)?)?;
        let refusal = context.void.as_ref().and_then(Fault::final_refusal);
        let Some((server, intent)) = (self.recipe.undo)(&of, refusal) else { return Ok(()) };
        let order = self.order(context, Action::Undo, server, intent, Vec::new())?;
        self.fleet.run(&order, None, &Stop::default()).await.map(|_| ())
    }
}
