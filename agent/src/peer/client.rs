//! The calling side.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferry_databases::DatabaseManifest;
use ferry_failpoints::around_async;
use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::channel::{SecureStream, peer_connect};
use ferry_proto::command::CommitRecord;
use ferry_proto::grant::SignedGrant;
use ferry_proto::ids::{DatabaseName, ServerName};

use super::{Answer, Operation, Reply, Request, receive, send, told};
use crate::agent::Agent;
use crate::ledger::SourceRecord;

/// How long a peer may take to say whether it takes an operation.
const ADMISSION: Duration = Duration::from_secs(30);

/// The other agent of a move.
#[derive(Clone)]
pub struct Peer {
    agent: Arc<Agent>,
    server: ServerName,
    address: SocketAddr,
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
        Self { agent: agent.clone(), server: server.clone(), address, grant: grant.clone() }
    }

    /// What the account is, apart from content.
    ///
    /// # Errors
    /// The peer's, or the connection's.
    pub async fn record(&self) -> Result<SourceRecord, Fault> {
        match self.ask(Operation::Record).await? {
            Reply::Record { record } => Ok(*record),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Tells what the account is now.
    ///
    /// # Errors
    /// The peer's, or the connection's.
    pub async fn update_record(&self, record: SourceRecord) -> Result<(), Fault> {
        self.ask(Operation::UpdateRecord { record: Box::new(record) }).await.map(|_| ())
    }

    /// A stream for a pass of the file engine. With `allow_emptied` the copy is emptied if the tree is
    /// empty here.
    ///
    /// # Errors
    /// If the peer does not take it.
    pub async fn files(&self, allow_emptied: bool) -> Result<SecureStream, Fault> {
        self.open(Operation::Files { allow_emptied }).await
    }

    /// A stream for a comparison by the file engine.
    ///
    /// # Errors
    /// If the peer does not take it.
    pub async fn compare_files(&self) -> Result<SecureStream, Fault> {
        self.open(Operation::CompareFiles).await
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
        match self.last_word(receive::<Answer<Reply>>(&mut stream).await?)? {
            Reply::Loaded { bytes } => Ok(bytes),
            other => Err(self.unexpected(&other)),
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
            other => Err(self.unexpected(&other)),
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
            self.last_word(receive::<Answer<Reply>>(&mut stream).await?)
        };
        around_async(|| format!("peer.{name}"), lost, asked).await
    }

    /// One operation that is followed by a stream.
    async fn open(&self, operation: Operation) -> Result<SecureStream, Fault> {
        let name = operation.name();
        around_async(|| format!("peer.{name}"), lost, self.admitted(operation)).await
    }

    async fn admitted(&self, operation: Operation) -> Result<SecureStream, Fault> {
        let agent = &self.agent;
        let mut stream = peer_connect(
            &self.address.to_string(),
            &agent.identity,
            &self.server,
            &agent.connections,
        )
        .await?;
        let request = Request { grant: self.grant.clone(), operation };
        send(&mut stream, &request).await?;
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

fn lost(error: io::Error) -> Fault {
    Fault::io("the connection to the peer was lost", &error)
}
