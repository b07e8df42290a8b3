//! One agent's stream: commands in, events out. This is the edge where wire types become ours.

use std::pin::Pin;
use std::sync::Arc;

use ferry_proto::channel::{connection, require_agent};
use ferry_proto::command::{AccountState, Outcome};
use ferry_proto::ids::{CommandId, ServerName};
use ferry_proto::v1;
use ferry_proto::v1::agent_service_server::AgentService;
use ferry_proto::v1::session_response::Body;
use ferry_proto::{Fault, FaultClass};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::commands::Answer;
use crate::{Fleet, Session, now_ms};

/// Messages waiting for one agent; more means that it does not read.
const QUEUE: usize = 256;
/// No message of an agent is longer.
pub const MAX_MESSAGE: usize = 4 << 20;

pub(crate) fn response(body: Body) -> v1::SessionResponse {
    v1::SessionResponse { body: Some(body) }
}

/// The gRPC service that agents call.
#[derive(Clone)]
pub struct AgentEndpoint(pub Arc<Fleet>);

/// The status that a fault becomes: the fault itself, as JSON, in the details.
pub fn status(fault: &Fault) -> Status {
    let code = match fault.class {
        FaultClass::Transient => tonic::Code::Unavailable,
        FaultClass::Precondition => tonic::Code::FailedPrecondition,
        FaultClass::Fenced => tonic::Code::Aborted,
        FaultClass::Cancelled => tonic::Code::Cancelled,
        FaultClass::Permanent => tonic::Code::InvalidArgument,
        FaultClass::Bug => tonic::Code::Internal,
    };
    let details = serde_json::to_vec(fault).unwrap_or_default();
    Status::with_details(code, fault.to_string(), details.into())
}

#[tonic::async_trait]
impl AgentService for AgentEndpoint {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let server = require_agent(&request)?;
        let cut = connection(&request).map(|c| c.cut.clone()).unwrap_or_default();
        let fleet = self.0.clone();
        let mut incoming = request.into_inner();
        let hello = match incoming.message().await?.and_then(|m| m.body) {
            Some(v1::session_request::Body::Hello(hello)) => hello,
            _ => return Err(Status::invalid_argument("a session begins with hello")),
        };
        let Greeted { number, out, end, receiver } =
            fleet.greet(&server, hello).await.map_err(|f| status(&f))?;
        tracing::info!(%server, "agent connected");
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = fleet.listen(&server, &mut incoming, &out) => ended,
                () = cut.cancelled() => Err(Status::aborted("cut off")),
                () = end.cancelled() => Err(Status::aborted("replaced, or its agent does not read")),
                () = out.closed() => Ok(()),
            };
            fleet.forget(&server, number);
            if cut.is_cancelled() {
                // It may have spoken while it was cut off.
                fleet.generations.forget(&server);
            }
            tracing::info!(%server, reason = ?ended.err().map(|s| s.message().to_owned()), "agent disconnected");
        });
        use tokio_stream::StreamExt;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(Ok))))
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::RenewResponse>, Status> {
        let server = require_agent(&request)?;
        let certificate_pem =
            self.0.renew(&server, &request.into_inner().csr_pem).await.map_err(|f| status(&f))?;
        Ok(Response::new(v1::RenewResponse { certificate_pem }))
    }
}

type Outgoing = mpsc::Sender<v1::SessionResponse>;

/// A session that was registered.
struct Greeted {
    number: u64,
    out: Outgoing,
    /// Cancelled when the fleet forgets the session.
    end: CancellationToken,
    receiver: mpsc::Receiver<v1::SessionResponse>,
}

impl Fleet {
    /// Registers a session and sends what waits for it.
    async fn greet(&self, server: &ServerName, hello: v1::Hello) -> Result<Greeted, Fault> {
        let obeyed = hello.generation;
        self.generations
            .heard(self.generation, server, obeyed)
            .inspect_err(|fault| tracing::error!(%server, "its agent gets no session: {fault}"))?;
        let facts = String::from_utf8(hello.facts).unwrap_or_else(|_| "{}".to_owned());
        self.store.set_seen(server, &hello.peer_address, &hello.version, &facts, now_ms()).await?;
        let revocations = self.revocations_message().await?;
        let (out, receiver) = mpsc::channel(QUEUE);
        let end = CancellationToken::new();
        let welcome = response(Body::Welcome(v1::Welcome { generation: self.generation }));
        let number = {
            let mut live = self.live();
            live.next_session += 1;
            let number = live.next_session;
            // The queue is new and longer than this.
            let _ = out.try_send(welcome);
            let _ = out.try_send(revocations);
            let (out, end) = (out.clone(), end.clone());
            let session = Session { number, next_command: 0, obeyed, out, end };
            // An older session of the same agent is a connection that died unnoticed.
            live.sessions.insert(server.clone(), session);
            let waiting: Vec<_> = live
                .pending
                .iter()
                .filter(|(_, p)| &p.server == server && p.reply.is_some())
                .map(|(id, _)| *id)
                .collect();
            for id in waiting {
                live.send_pending(id, self.generation);
            }
            number
        };
        self.came_or_cut.send_replace(());
        Ok(Greeted { number, out, end, receiver })
    }

    /// Forgets a session, unless a newer one took its place.
    fn forget(&self, server: &ServerName, number: u64) {
        let mut live = self.live();
        if live.sessions.get(server).is_some_and(|s| s.number == number) {
            live.sessions.remove(server);
        }
    }

    async fn listen(
        &self,
        server: &ServerName,
        incoming: &mut Streaming<v1::SessionRequest>,
        out: &Outgoing,
    ) -> Result<(), Status> {
        while let Some(message) = incoming.message().await? {
            let Some(v1::session_request::Body::Event(event)) = message.body else {
                continue; // A command's acknowledgement: its outcome says more.
            };
            self.take(server, &event).await.map_err(|f| status(&f))?;
            if event.number > 0 {
                let ack = response(Body::EventAck(event.number));
                if out.send(ack).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Takes one event. A message that cannot be read ends the session with a clear word.
    async fn take(&self, server: &ServerName, event: &v1::Event) -> Result<(), Fault> {
        use v1::event::Body;
        match &event.body {
            Some(Body::CommandDone(done)) => {
                let id = command_id(&done.id)?;
                let outcome: Outcome = if done.fault.is_empty() {
                    Ok(read(&done.receipt, "receipt")?)
                } else {
                    Err(read(&done.fault, "fault")?)
                };
                self.answer(server, id, Answer::Ended(outcome));
            }
            Some(Body::CommandState(state)) => {
                self.answer(server, command_id(&state.id)?, Answer::Open);
            }
            Some(Body::CommandProgress(progress)) => {
                let id = command_id(&progress.id)?;
                self.progressed(server, id, read(&progress.progress, "progress")?);
            }
            Some(Body::AccountStates(states)) => {
                let accounts: Vec<AccountState> = states
                    .accounts
                    .iter()
                    .map(|a| read(a, "account state"))
                    .collect::<Result<_, _>>()?;
                self.store.set_accounts(server, &accounts, &states.problems).await?;
                let obeyed = self.live().sessions.get(server).map(|session| session.obeyed);
                self.generations.reported(server, obeyed);
            }
            None => {}
        }
        Ok(())
    }
}

fn command_id(text: &str) -> Result<CommandId, Fault> {
    text.parse().map_err(|e| Fault::permanent("an agent named a command by no id").caused_by(&e))
}

fn read<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|e| {
        Fault::permanent(format!("an agent sent a {what} that cannot be read"))
            .caused_by(&e)
            .remedy("install the same version of Ferry on controller and agents")
    })
}
