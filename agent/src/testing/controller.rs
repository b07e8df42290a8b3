//! A controller for tests: it takes sessions and renews certificates, over real TLS; what is said in a
//! session is the test's business.

use std::sync::Arc;
use std::time::Duration;

use ferry_proto::channel::{Connections, Identity, Limits, Listener, Party, require_agent};
use ferry_proto::command::Intent;
use ferry_proto::ids::CommandId;
use ferry_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use ferry_proto::v1::session_request::Body as FromAgent;
use ferry_proto::v1::session_response::Body as ToAgent;
use ferry_proto::v1::{self, event};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::authority::Authority;

/// The controller.
pub struct Controller {
    pub address: String,
    sessions: mpsc::Receiver<Session>,
}

/// One session of the agent.
pub struct Session {
    to: mpsc::Sender<Result<v1::SessionResponse, Status>>,
    from: tonic::Streaming<v1::SessionRequest>,
}

struct Service {
    authority: Arc<Authority>,
    sessions: mpsc::Sender<Session>,
}

#[tonic::async_trait]
impl AgentService for Service {
    type SessionStream = ReceiverStream<Result<v1::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<tonic::Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (to, out) = mpsc::channel(16);
        self.sessions.send(Session { to, from: request.into_inner() }).await.unwrap();
        Ok(Response::new(ReceiverStream::new(out)))
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::RenewResponse>, Status> {
        let party = Party::Agent(require_agent(&request)?);
        let certificate_pem = self.authority.certify(&party, &request.into_inner().csr_pem);
        Ok(Response::new(v1::RenewResponse { certificate_pem }))
    }
}

impl Controller {
    pub async fn start(authority: &Arc<Authority>) -> Self {
        let credentials = authority.credentials(&Party::Controller, 60, 3600);
        let identity = Identity::new(&credentials).unwrap();
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let connections = Connections::new(Limits::default());
        let incoming = listener.serve(&identity, &connections).unwrap();
        let address = incoming.address().to_string();
        let (sender, sessions) = mpsc::channel(16);
        let service = Service { authority: authority.clone(), sessions: sender };
        tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(AgentServiceServer::new(service))
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        Self { address, sessions }
    }

    /// The agent's next session.
    pub async fn session(&mut self) -> Session {
        tokio::time::timeout(Duration::from_secs(20), self.sessions.recv()).await.unwrap().unwrap()
    }

    /// Whether a session was begun that the test has not taken.
    pub fn has_another_session(&self) -> bool {
        !self.sessions.is_empty()
    }
}

impl Session {
    pub async fn send(&self, id: CommandId, intent: &Intent) {
        let command = v1::Command {
            number: 1,
            id: id.to_string(),
            job: String::new(),
            generation: 1,
            intent: serde_json::to_vec(intent).unwrap(),
            grant: Vec::new(),
        };
        let message = v1::SessionResponse { body: Some(ToAgent::Command(command)) };
        self.to.send(Ok(message)).await.unwrap();
    }

    /// The first thing said that `wanted` takes.
    pub async fn hear<T>(&mut self, wanted: impl Fn(FromAgent) -> Option<T>) -> T {
        let heard = async {
            loop {
                let message = self.from.message().await.unwrap().unwrap();
                if let Some(heard) = message.body.and_then(&wanted) {
                    return heard;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), heard).await.unwrap()
    }

    /// Waits until the command is taken.
    pub async fn hear_taken(&mut self) {
        self.hear(|body| matches!(body, FromAgent::CommandAck(1)).then_some(())).await;
    }

    /// What became of the command.
    pub async fn hear_done(&mut self) -> v1::CommandDone {
        self.hear(|body| match body {
            FromAgent::Event(v1::Event { body: Some(event::Body::CommandDone(done)), .. }) => {
                Some(done)
            }
            _ => None,
        })
        .await
    }

    /// The names of the accounts in the next report that `such` takes.
    pub async fn hear_accounts(&mut self, such: impl Fn(&[String]) -> bool) -> Vec<String> {
        self.hear(|body| {
            let FromAgent::Event(v1::Event {
                body: Some(event::Body::AccountStates(states)), ..
            }) = body
            else {
                return None;
            };
            let names: Vec<String> = states
                .accounts
                .iter()
                .map(|a| serde_json::from_slice::<serde_json::Value>(a).unwrap())
                .map(|a| a["name"].as_str().unwrap().to_owned())
                .collect();
            such(&names).then_some(names)
        })
        .await
    }
}
