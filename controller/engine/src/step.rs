//! What a step offers, and where events are kept. Implementations live elsewhere.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use ferry_proto::Fault;
use ferry_proto::command::Progress;
use ferry_proto::ids::JobId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::spec::StepSpec;
use crate::state::{Entry, Event};

/// What a step is called with.
#[derive(Debug, Clone)]
pub struct Context {
    /// The job.
    pub job: JobId,
    /// The step as planned.
    pub spec: StepSpec,
    /// Which attempt; the same number again after a crash of the controller.
    pub attempt: u32,
    /// The receipts of the steps done before, by name.
    pub receipts: HashMap<String, serde_json::Value>,
    /// Why the commit is void, if a step after it has refused for good.
    pub void: Option<Fault>,
    /// Cancelled when somebody wants the job undone, or paused.
    pub cancel: CancellationToken,
    /// Cancelled when somebody wants the job undone: nobody waits then for who is away. A pause waits.
    pub abort: CancellationToken,
    /// Where to say how far it is.
    pub progress: watch::Sender<Progress>,
}

/// What the world says of an attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Observation {
    /// It is done; this is the evidence.
    Done(serde_json::Value),
    /// It is not done, or not wholly; executing it (again) is safe.
    NotDone,
}

/// One kind of step. Every method may be called again after it was cut off anywhere.
#[async_trait]
pub trait Step: Send + Sync {
    /// Looks whether this attempt is done already. Called when an attempt was under way when the
    /// controller died.
    async fn observe(&self, context: &Context) -> Result<Observation, Fault>;

    /// Does it and returns the evidence.
    async fn execute(&self, context: &Context) -> Result<serde_json::Value, Fault>;

    /// Checks the evidence against the world.
    async fn verify(&self, context: &Context, receipt: &serde_json::Value) -> Result<(), Fault>;

    /// Leaves nothing of it behind. Called for every step that started, with a receipt or without.
    async fn undo(
        &self,
        context: &Context,
        receipt: Option<&serde_json::Value>,
    ) -> Result<(), Fault>;
}

/// The kinds of steps there are, by name.
pub type Steps = HashMap<String, Arc<dyn Step>>;

/// Where events are kept. An event is durable when `append` returns.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Adds an event to a job's journal. Returns when that was, Unix ms, as [`Journal::load`] says it.
    async fn append(&self, job: JobId, event: &Event) -> Result<i64, Fault>;
    /// Every event of a job, oldest first.
    async fn load(&self, job: JobId) -> Result<Vec<Entry>, Fault>;
}
