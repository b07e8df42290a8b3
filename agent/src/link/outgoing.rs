//! The sending side of one session: events, and outcomes that are numbered and kept until the controller has
//! acknowledged them. It must not know what it is that came of a command.

use std::collections::VecDeque;

use ferry_proto::Fault;
use ferry_proto::command::{Outcome, Progress};
use ferry_proto::ids::CommandId;
use ferry_proto::v1::{self, event, session_request};
use tokio::sync::mpsc;

use super::json;

/// Outcomes kept until the controller acknowledges them. The ledger has them all; a controller that
/// misses one asks.
const UNACKNOWLEDGED: usize = 1024;
/// No outcome that is told is longer. One that the controller refuses to read would end this session, and
/// each later one that tries to tell it.
const MAX_OUTCOME: usize = 2 << 20;

/// The sending side of one session.
pub(super) struct Outgoing {
    pub(super) out: mpsc::Sender<v1::SessionRequest>,
    number: u64,
    unacknowledged: VecDeque<(u64, CommandId, Outcome)>,
}

impl Outgoing {
    pub(super) fn new(out: mpsc::Sender<v1::SessionRequest>) -> Self {
        Self { out, number: 0, unacknowledged: VecDeque::new() }
    }

    pub(super) async fn send(&self, body: session_request::Body) -> Result<(), Fault> {
        self.out
            .send(v1::SessionRequest { body: Some(body) })
            .await
            .map_err(|_| Fault::transient("the session with the controller ended"))
    }

    async fn event(&self, number: u64, body: event::Body) -> Result<(), Fault> {
        self.send(session_request::Body::Event(v1::Event { number, body: Some(body) })).await
    }

    /// Numbers outcomes and keeps them until they are acknowledged.
    pub(super) fn note(&mut self, outcomes: impl IntoIterator<Item = (CommandId, Outcome)>) {
        for (id, outcome) in outcomes {
            self.number += 1;
            let outcome = tellable(outcome);
            self.unacknowledged.push_back((self.number, id, outcome));
            if self.unacknowledged.len() > UNACKNOWLEDGED {
                self.unacknowledged.pop_front();
            }
        }
    }

    /// The controller has all up to this one.
    pub(super) fn acknowledged(&mut self, number: u64) {
        self.unacknowledged.retain(|(n, _, _)| *n > number);
    }

    /// What is left for the next session to tell.
    pub(super) fn left(self) -> VecDeque<(CommandId, Outcome)> {
        self.unacknowledged.into_iter().map(|(_, id, o)| (id, o)).collect()
    }

    /// Tells what an earlier session could not.
    pub(super) async fn tell_again(&self) -> Result<(), Fault> {
        for (number, id, outcome) in &self.unacknowledged {
            self.done(*number, *id, outcome).await?;
        }
        Ok(())
    }

    pub(super) async fn ended(&mut self, id: CommandId, outcome: Outcome) -> Result<(), Fault> {
        let outcome = tellable(outcome);
        self.note([(id, outcome.clone())]);
        self.done(self.number, id, &outcome).await
    }

    async fn done(&self, number: u64, id: CommandId, outcome: &Outcome) -> Result<(), Fault> {
        let (receipt, fault) = match outcome {
            Ok(receipt) => (json(receipt)?, Vec::new()),
            Err(fault) => (Vec::new(), json(fault)?),
        };
        let done = v1::CommandDone { id: id.to_string(), receipt, fault };
        self.event(number, event::Body::CommandDone(done)).await
    }

    pub(super) async fn progress(&self, id: CommandId, progress: &Progress) -> Result<(), Fault> {
        let body = v1::CommandProgress { id: id.to_string(), progress: json(progress)? };
        self.event(0, event::Body::CommandProgress(body)).await
    }

    pub(super) async fn state(&self, id: CommandId, running: bool) -> Result<(), Fault> {
        let body = v1::CommandState { id: id.to_string(), running };
        self.event(0, event::Body::CommandState(body)).await
    }
}

/// The outcome, or a fault in place of one that is too long to be told: an account can have more that is
/// worth a word than any message holds.
fn tellable(outcome: Outcome) -> Outcome {
    let length = serde_json::to_vec(&outcome).map_or(0, |json| json.len());
    if length <= MAX_OUTCOME {
        return outcome;
    }
    Err(Fault::permanent(format!(
        "what came of the command is {length} bytes long; no more than {MAX_OUTCOME} can be told"
    ))
    .remedy(
        "look at the account's databases and files on this server: what is there in such numbers?",
    ))
}
