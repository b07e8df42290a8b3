//! Commands under way. A command outlives the session it was sent in: when its agent connects
//! again it is sent again, with the same id, and the agent answers what it recorded.

use std::time::Duration;

use ferry_proto::command::{Intent, Outcome, Progress, Receipt};
use ferry_proto::grant::SignedGrant;
use ferry_proto::ids::{CommandId, JobId, ServerName};
use ferry_proto::v1;
use ferry_proto::v1::session_response::Body;
use ferry_proto::{Fault, FaultClass};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::session::response;
use crate::{Fleet, Live};

/// How long an agent that is not connected is waited for although it is to be left: some restarts of it.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(60);

/// A command whose outcome is awaited.
pub(crate) struct Pending {
    pub(crate) server: ServerName,
    pub(crate) what: Waiting,
    pub(crate) reply: Option<oneshot::Sender<Answer>>,
    pub(crate) progress: Option<watch::Sender<Progress>>,
    /// Whether the agent shall stop it: told again with the command when it connects again.
    pub(crate) cancelled: bool,
}

/// What is to be sent (again) when the agent connects.
pub(crate) enum Waiting {
    /// Carry this out.
    Outcome { job: Option<JobId>, intent: Vec<u8>, grant: Vec<u8> },
    /// Say what became of it.
    Observation,
}

/// What an agent says of a command.
pub(crate) enum Answer {
    /// It ended.
    Ended(Outcome),
    /// It has not ended: under way, or never heard of. Sending it again is right for both.
    Open,
}

/// A command to one agent.
#[derive(Debug, Clone)]
pub struct Order {
    /// Which agent.
    pub server: ServerName,
    /// Its id: the same again for the same attempt.
    pub id: CommandId,
    /// The job, if it is part of one.
    pub job: Option<JobId>,
    /// What to do.
    pub intent: Intent,
    /// What allows the agent to speak to its peer.
    pub grant: Option<SignedGrant>,
}

/// How whoever waits for a command's outcome stops it.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// The agent is asked to stop it, whenever it connects, and its answer awaited: it may go on unheard.
    pub cancel: CancellationToken,
    /// Fires after that: an agent that is not connected is not awaited for long any more. To go back may need
    /// only the other.
    pub leave: CancellationToken,
}

impl Fleet {
    /// Sends a command and waits for its outcome, across reconnects of the agent. The caller bounds
    /// the wait.
    ///
    /// # Errors
    /// The agent's fault, or one of class Bug if the intent cannot be written.
    pub async fn run(
        &self,
        order: &Order,
        progress: Option<watch::Sender<Progress>>,
        stop: &Stop,
    ) -> Result<Receipt, Fault> {
        self.require_not_overtaken()?;
        let what = Waiting::Outcome {
            job: order.job,
            intent: json(&order.intent)?,
            grant: order.grant.as_ref().map(json).transpose()?.unwrap_or_default(),
        };
        let mut reply = self.register(order.id, &order.server, what, progress);
        let guard = Forget { fleet: self, id: order.id };
        let answer = tokio::select! {
            answer = &mut reply => answer,
            () = stop.cancel.cancelled() => {
                self.cancel(order.id);
                tokio::select! {
                    biased;
                    answer = &mut reply => answer,
                    () = self.stays_away(&order.server, &stop.leave) => return Err(not_stopped(order)),
                }
            }
        };
        drop(guard);
        match answer {
            Ok(Answer::Ended(outcome)) => outcome,
            Ok(Answer::Open) | Err(_) => Err(Fault::transient(format!(
                "the agent of {} gave no outcome of its command",
                order.server
            ))),
        }
    }

    /// Asks an agent what became of a command: its outcome, or none if it has not ended or was
    /// never heard of.
    ///
    /// # Errors
    /// If the answer is lost; the caller bounds the wait.
    pub async fn observe(
        &self,
        server: &ServerName,
        id: CommandId,
    ) -> Result<Option<Outcome>, Fault> {
        self.require_not_overtaken()?;
        let reply = self.register(id, server, Waiting::Observation, None);
        let guard = Forget { fleet: self, id };
        let answer = reply.await;
        drop(guard);
        match answer {
            Ok(Answer::Ended(outcome)) => Ok(Some(outcome)),
            Ok(Answer::Open) => Ok(None),
            Err(_) => Err(Fault::transient(format!(
                "the agent of {server} did not say what became of a command"
            ))),
        }
    }

    /// A fault unless the agent has a session.
    ///
    /// # Errors
    /// Of class Transient, with what to look at.
    pub fn require_connected(&self, server: &ServerName) -> Result<(), Fault> {
        if self.is_connected(server) {
            return Ok(());
        }
        Err(Fault::transient(format!("the agent of {server} is not connected"))
            .remedy(format!("on {server}: systemctl status ferry-agent")))
    }

    /// Waits until an agent that is to be left has been given time to come back, and is not connected.
    async fn stays_away(&self, server: &ServerName, leave: &CancellationToken) {
        leave.cancelled().await;
        loop {
            tokio::time::sleep(COMES_BACK_WITHIN).await;
            if !self.is_connected(server) {
                return;
            }
        }
    }

    fn register(
        &self,
        id: CommandId,
        server: &ServerName,
        what: Waiting,
        progress: Option<watch::Sender<Progress>>,
    ) -> oneshot::Receiver<Answer> {
        let (reply, receiver) = oneshot::channel();
        let mut live = self.live();
        let (server, reply) = (server.clone(), Some(reply));
        live.pending.insert(id, Pending { server, what, reply, progress, cancelled: false });
        live.send_pending(id, self.generation);
        receiver
    }

    /// Asks the agent to stop a command: now if it is connected, and whenever it connects again.
    fn cancel(&self, id: CommandId) {
        let mut live = self.live();
        if let Some(pending) = live.pending.get_mut(&id) {
            pending.cancelled = true;
            let server = pending.server.clone();
            live.send(&server, cancellation(id));
        }
    }

    /// Takes an agent's answer.
    pub(crate) fn answer(&self, server: &ServerName, id: CommandId, answer: Answer) {
        let mut live = self.live();
        let Some(pending) = live.pending.get_mut(&id).filter(|p| &p.server == server) else {
            return; // Nobody waits any more: the next attempt will ask.
        };
        if let (Waiting::Outcome { .. }, Answer::Open) = (&pending.what, &answer) {
            return;
        }
        if let Some(reply) = pending.reply.take() {
            let _ = reply.send(answer);
        }
    }

    /// Takes a word on progress.
    pub(crate) fn progressed(&self, server: &ServerName, id: CommandId, progress: Progress) {
        let live = self.live();
        if let Some(pending) = live.pending.get(&id).filter(|p| &p.server == server)
            && let Some(sender) = &pending.progress
        {
            sender.send_replace(progress);
        }
    }
}

/// What is said of a command that was to be stopped, at an agent that is away. What it is part of is undone all
/// the same: the other end takes nothing of it from then on, and the agent's own undo waits for it.
fn not_stopped(order: &Order) -> Fault {
    Fault::transient(format!(
        "the agent of {} is not connected, and has not said that it stopped its command ({})",
        order.server,
        order.intent.kind()
    ))
    .remedy(format!("on {}: systemctl status ferry-agent", order.server))
}

fn cancellation(id: CommandId) -> Body {
    Body::CancelCommandId(id.to_string())
}

impl Live {
    /// Sends a pending command, and that it is cancelled, if its agent is connected.
    pub(crate) fn send_pending(&mut self, id: CommandId, generation: u64) {
        let Some(pending) = self.pending.get(&id) else { return };
        let Some(session) = self.sessions.get_mut(&pending.server) else { return };
        if session.obeyed > generation {
            return; // It would refuse, and of a commit nobody would know what that means.
        }
        let body = match &pending.what {
            Waiting::Observation => Body::ObserveCommandId(id.to_string()),
            Waiting::Outcome { job, intent, grant } => {
                session.next_command += 1;
                Body::Command(v1::Command {
                    number: session.next_command,
                    id: id.to_string(),
                    job: job.map(|j| j.to_string()).unwrap_or_default(),
                    generation,
                    intent: intent.clone(),
                    grant: grant.clone(),
                })
            }
        };
        let (server, cancelled) = (pending.server.clone(), pending.cancelled);
        self.send(&server, body);
        if cancelled {
            self.send(&server, cancellation(id));
        }
    }

    /// Sends to an agent if it is connected. If its queue is full the session is ended: the agent
    /// connects again, and everything pending is sent then.
    fn send(&mut self, server: &ServerName, body: Body) {
        if let Some(session) = self.sessions.get(server)
            && let Err(mpsc::error::TrySendError::Full(_)) = session.out.try_send(response(body))
        {
            self.sessions.remove(server);
        }
    }
}

/// Forgets a pending command when its caller is gone.
struct Forget<'a> {
    fleet: &'a Fleet,
    id: CommandId,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.fleet.live().pending.remove(&self.id);
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec(value)
        .map_err(|e| Fault::new(FaultClass::Bug, "a command has no JSON").caused_by(&e))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ferry_proto::channel::{Connections, Limits};
    use ferry_proto::command::End;
    use ferry_store::SqliteStore;

    use super::*;
    use crate::authority::Authority;
    use crate::{Session, Settings};

    fn pending(live: &mut Live, server: &ServerName, cancelled: bool) -> CommandId {
        let id = CommandId::new_now();
        let what = Waiting::Outcome { job: None, intent: vec![], grant: vec![] };
        let server = server.clone();
        live.pending.insert(id, Pending { server, what, reply: None, progress: None, cancelled });
        id
    }

    fn connect(
        live: &mut Live,
        server: &ServerName,
        room: usize,
    ) -> (mpsc::Receiver<v1::SessionResponse>, CancellationToken) {
        let (out, queue) = mpsc::channel(room);
        let end = CancellationToken::new();
        let session = Session { number: 1, next_command: 0, obeyed: 0, out, end: end.clone() };
        live.sessions.insert(server.clone(), session);
        (queue, end)
    }

    #[test]
    fn an_agent_that_does_not_read_loses_its_session_and_notices() {
        let (mut live, server) = (Live::default(), "web1".parse().unwrap());
        let (_queue, end) = connect(&mut live, &server, 1);
        let (first, second) =
            (pending(&mut live, &server, false), pending(&mut live, &server, false));
        live.send_pending(first, 1);
        assert!(!end.is_cancelled() && live.sessions.contains_key(&server));
        live.send_pending(second, 1);
        assert!(end.is_cancelled() && !live.sessions.contains_key(&server));
        assert_eq!(live.pending.len(), 2, "both are sent again when it connects");
    }

    #[test]
    fn a_command_that_was_cancelled_is_sent_with_its_cancellation() {
        let (mut live, server) = (Live::default(), "web1".parse().unwrap());
        let (mut queue, _end) = connect(&mut live, &server, 4);
        let id = pending(&mut live, &server, true);
        live.send_pending(id, 1);
        let mut next = || queue.try_recv().ok().and_then(|m| m.body);
        assert!(matches!(next(), Some(Body::Command(command)) if command.id == id.to_string()));
        assert_eq!(next(), Some(Body::CancelCommandId(id.to_string())));
        assert_eq!(next(), None);
    }

    async fn fleet(dir: &std::path::Path) -> Arc<Fleet> {
        let store = SqliteStore::open(&dir.join("ferry.db")).await.unwrap();
        let authority = Arc::new(Authority::open(&dir.join("ca")).unwrap());
        let settings = Settings {
            certificate_lifetime: Duration::from_secs(3600),
            token_lifetime: Duration::from_secs(60),
        };
        let connections = Connections::new(Limits::default());
        Fleet::open(Arc::new(store), authority, connections, settings).await.unwrap()
    }

    #[tokio::test]
    async fn a_cancelled_command_waits_for_its_agent_and_not_for_days_for_one_that_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = fleet(dir.path()).await;
        let server: ServerName = "web1".parse().unwrap();
        let (_queue, _end) = connect(&mut fleet.live(), &server, 4);
        let account = "shop".parse().unwrap();
        let order = Order {
            server: server.clone(),
            id: CommandId::new_now(),
            job: None,
            intent: Intent::Inspect {
                account,
                end: End::Source,
                source: None,
                peer: None,
                approve: Vec::new(),
                inherited: Vec::new(),
            },
            grant: None,
        };
        let stop = Stop::default();
        // From here on nothing but time passes.
        tokio::time::pause();
        let day = Duration::from_secs(86_400);
        let run = fleet.run(&order, None, &stop);
        tokio::pin!(run);
        fleet.live().sessions.clear();
        tokio::time::timeout(day, &mut run).await.expect_err("it may come back");
        stop.cancel.cancel();
        tokio::time::timeout(day, &mut run).await.expect_err("it may not have stopped");
        assert!(fleet.live().pending[&order.id].cancelled, "it hears that when it connects");
        let (_queue, _end) = connect(&mut fleet.live(), &server, 4);
        stop.leave.cancel();
        tokio::time::timeout(day, &mut run).await.expect_err("it is there, and will answer");
        fleet.live().sessions.clear();
        let ended = tokio::time::timeout(2 * COMES_BACK_WITHIN, run).await;
        let fault = ended.expect("its agent is away").unwrap_err();
        assert_eq!(fault.class, FaultClass::Transient);
        assert!(fault.message.contains("web1 is not connected"), "{fault}");
        assert!(fleet.live().pending.is_empty());
    }
}
