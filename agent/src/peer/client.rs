//! The calling side.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferry_databases::DatabaseManifest;
use ferry_failpoints::around_async;
use ferry_files::Streams;
use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::channel::{Connections, Identity, SecureStream, peer_connect};
use ferry_proto::command::CommitRecord;
use ferry_proto::grant::SignedGrant;
use ferry_proto::ids::{DatabaseName, ServerName};

use super::{Alone, Answer, Operation, Reply, Request, receive, send, told};
use crate::agent::Agent;
use crate::ledger::SourceRecord;

/// How long a peer may take to say whether it takes an operation.
const ADMISSION: Duration = Duration::from_secs(30);

/// Somebody who speaks to another agent.
#[derive(Clone)]
pub struct Caller {
    /// As whom.
    pub identity: Arc<Identity>,
    /// Live connections, and what is revoked.
    pub connections: Arc<Connections>,
    /// To whose agent.
    pub server: ServerName,
    /// Where it answers, `HOST:PORT`.
    pub address: String,
}

/// The other agent of a move.
#[derive(Clone)]
pub struct Peer {
    caller: Caller,
    grant: SignedGrant,
}

impl Peer {
    /// The agent of `server` at `address`, spoken to under `grant`.
    pub fn new(
        agent: &Arc<Agent>,
        server: &ServerName,
        address: SocketAddr,
        grant: &SignedGrant,
    ) -> Self {
        let caller = Caller {
            identity: agent.identity.clone(),
            connections: agent.connections.clone(),
            server: server.clone(),
            address: address.to_string(),
        };
        Self { caller, grant: grant.clone() }
    }

    /// What the account is, apart from content.
    ///
    /// # Errors
    /// The peer's, or the connection's.
    pub async fn record(&self) -> Result<SourceRecord, Fault> {
        match self.ask(Operation::Record).await? {
            Reply::Record { record } => Ok(*record),
            other => Err(self.caller.unexpected(&other)),
        }
    }

    /// Tells what the account is now.
    ///
    /// # Errors
    /// The peer's, or the connection's.
    pub async fn update_record(&self, record: SourceRecord) -> Result<(), Fault> {
        self.ask(Operation::UpdateRecord { record: Box::new(record) }).await.map(|_| ())
    }

    /// Streams for a pass of the file engine. With `allow_emptied` the copy is emptied if the tree is
    /// empty here; if it is `calm` the peer leaves its host to others where that is busy.
    ///
    /// # Errors
    /// If the peer does not take it.
    pub async fn files(
        &self,
        allow_emptied: bool,
        calm: bool,
    ) -> Result<Streams<SecureStream>, Fault> {
        self.streams(|streams| Operation::Files { allow_emptied, calm, streams }).await
    }

    /// Streams for a comparison by the file engine; of everything, or only of what has changed since that. If
    /// it is `calm` the peer leaves its host to others where that is busy.
    ///
    /// # Errors
    /// If the peer does not take it.
    pub async fn compare_files(
        &self,
        partial: bool,
        calm: bool,
    ) -> Result<Streams<SecureStream>, Fault> {
        self.streams(|streams| Operation::CompareFiles { partial, calm, streams }).await
    }

    async fn streams(
        &self,
        operation: impl FnOnce(usize) -> Operation,
    ) -> Result<Streams<SecureStream>, Fault> {
        let count = data_streams();
        let control = self.open(operation(count)).await?;
        self.caller.streams(control, count).await
    }

    /// A stream for a dump of `database`. When it is written, call [`Self::loaded`].
    ///
    /// # Errors
    /// If the peer does not take it.
    pub async fn load(
        &self,
        engine: EngineKind,
        database: &DatabaseName,
    ) -> Result<SecureStream, Fault> {
        self.open(Operation::Load { engine, database: database.clone() }).await
    }

    /// Waits until what was written to `stream` is loaded; the bytes that the peer took.
    ///
    /// # Errors
    /// The peer's, or the connection's.
    pub async fn loaded(
        &self,
        mut stream: impl tokio::io::AsyncRead + Unpin,
    ) -> Result<u64, Fault> {
        match self.caller.last_word(receive::<Answer<Reply>>(&mut stream).await?)? {
            Reply::Loaded { bytes } => Ok(bytes),
            other => Err(self.caller.unexpected(&other)),
        }
    }

    /// What the peer holds of `database`.
    ///
    /// # Errors
    /// The peer's, or the connection's.
    pub async fn manifest(
        &self,
        engine: EngineKind,
        database: &DatabaseName,
    ) -> Result<DatabaseManifest, Fault> {
        match self.ask(Operation::Manifest { engine, database: database.clone() }).await? {
            Reply::Manifest { manifest } => Ok(*manifest),
            other => Err(self.caller.unexpected(&other)),
        }
    }

    /// Tells that the account has moved to the peer; returns when it is open there.
    ///
    /// # Errors
    /// The peer's, or the connection's.
    pub async fn open_account(&self, commit: CommitRecord) -> Result<(), Fault> {
        self.ask(Operation::Open { commit }).await.map(|_| ())
    }

    /// One operation that has only a reply.
    async fn ask(&self, operation: Operation) -> Result<Reply, Fault> {
        let name = operation.name();
        let asked = async {
            let mut stream = self.admitted(operation).await?;
            self.caller.last_word(receive::<Answer<Reply>>(&mut stream).await?)
        };
        around_async(|| format!("peer.{name}"), lost, asked).await
    }

    /// One operation that is followed by a stream.
    async fn open(&self, operation: Operation) -> Result<SecureStream, Fault> {
        let name = operation.name();
        around_async(|| format!("peer.{name}"), lost, self.admitted(operation)).await
    }

    async fn admitted(&self, operation: Operation) -> Result<SecureStream, Fault> {
        let request = Request::Grant { grant: self.grant.clone(), operation };
        Box::pin(self.caller.admitted(&request)).await
    }
}

impl Caller {
    /// Streams for something without a move; `what` is told how many data streams there will be.
    ///
    /// # Errors
    /// If the peer does not take it.
    pub async fn alone(
        &self,
        what: impl FnOnce(usize) -> Alone,
    ) -> Result<Streams<SecureStream>, Fault> {
        let count = data_streams();
        let control = Box::pin(self.admitted(&Request::Allowance { ask: what(count) })).await?;
        self.streams(control, count).await
    }

    /// All streams of a pass of files that the peer has taken.
    async fn streams(
        &self,
        mut control: SecureStream,
        count: usize,
    ) -> Result<Streams<SecureStream>, Fault> {
        let pass = match self.last_word(receive::<Answer<Reply>>(&mut control).await?)? {
            Reply::Pass { pass } => pass,
            other => return Err(self.unexpected(&other)),
        };
        let mut data = Vec::new();
        for _ in 0..count {
            data.push(Box::pin(self.admitted(&Request::Pass { pass })).await?);
        }
        Ok(Streams { control, data })
    }

    async fn admitted(&self, request: &Request) -> Result<SecureStream, Fault> {
        let mut stream =
            peer_connect(&self.address, &self.identity, &self.server, &self.connections).await?;
        send(&mut stream, request).await?;
        let admission = tokio::time::timeout(ADMISSION, receive::<Answer<()>>(&mut stream));
        let admitted = admission.await.map_err(|_| {
            Fault::transient(format!(
                "the agent of {} did not answer within {} s",
                self.server,
                ADMISSION.as_secs()
            ))
        })??;
        self.last_word(admitted)?;
        Ok(stream)
    }

    fn last_word<T>(&self, answer: Answer<T>) -> Answer<T> {
        told(&self.server, answer)
    }

    fn unexpected(&self, reply: &Reply) -> Fault {
        Fault::bug(format!("the agent of {} gave an unexpected reply: {reply:?}", self.server))
    }
}

/// One data stream fills one processor with encryption at the most.
fn data_streams() -> usize {
    const MOST: usize = 4;
    std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST))
}

fn lost(error: io::Error) -> Fault {
    Fault::io("the connection to the peer was lost", &error)
}
