//! Agent to agent: one TLS connection per operation, which presents a grant signed by the
//! controller, or is allowed by root on this server. All else is refused and logged.
//!
//! A connection begins with a [`Request`] from the caller and an answer, `Ok` or a fault. What
//! follows depends on the operation: nothing, a stream of the file engine or of a dump, and in the
//! end a [`Reply`]. A pass of files has several connections: the first is told the pass's number, which the
//! others name. Messages are JSON behind their length (u32, big-endian), 16 MiB at most.

mod client;
mod passes;
mod server;

use std::path::PathBuf;

use ferry_databases::DatabaseManifest;
use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::command::CommitRecord;
use ferry_proto::grant::SignedGrant;
use ferry_proto::ids::{DatabaseName, ServerName};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub use client::{Caller, Peer};
pub use server::serve;

use crate::ledger::SourceRecord;
use passes::PassId;

/// No message is longer. (Records hold crontabs and grants, manifests a line per table.)
const MAX_MESSAGE: u32 = 16 << 20;

/// What a peer asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
enum Request {
    /// Something for the account of a grant.
    Grant { grant: SignedGrant, operation: Operation },
    /// Something that root here has allowed.
    Allowance { ask: Alone },
    /// A data stream of a pass of files that has begun. The file engine's stream follows.
    Pass { pass: PassId },
}

/// Something without a move. The pass's number is told, then the file engine's control stream follows.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Alone {
    /// Make a directory here equal to one of the peer's.
    Copy {
        /// Which.
        directory: PathBuf,
        /// Delete what the peer does not have.
        delete: bool,
        /// Also if the peer's is empty.
        allow_emptied: bool,
        /// Leave this host to others where it is busy.
        calm: bool,
        /// How many data streams it will have.
        streams: usize,
    },
    /// Compare both.
    Compare {
        /// Which.
        directory: PathBuf,
        /// How many data streams it will have.
        streams: usize,
    },
}

/// One operation on the account of the grant.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Operation {
    /// Target asks source: what is the account, apart from content.
    Record,
    /// Source tells target: this is the account now.
    UpdateRecord { record: Box<SourceRecord> },
    /// Source sends a pass of files. Its number is told, then the file engine's control stream follows.
    Files {
        /// The source has seen that its tree is empty because its owner has emptied it.
        allow_emptied: bool,
        /// The account is served meanwhile: nobody must notice.
        calm: bool,
        /// How many data streams it will have.
        streams: usize,
    },
    /// Source compares files. Its number is told, then the file engine's control stream follows.
    CompareFiles {
        /// Only what has changed since everything was compared.
        partial: bool,
        /// The account is served meanwhile: nobody must notice.
        #[serde(default)]
        calm: bool,
        /// How many data streams it will have.
        streams: usize,
    },
    /// Source sends a dump. The dump's stream follows.
    Load { engine: EngineKind, database: DatabaseName },
    /// Source asks what the target holds.
    Manifest { engine: EngineKind, database: DatabaseName },
    /// Source has committed: the target may open.
    Open { commit: CommitRecord },
}

impl Operation {
    fn name(&self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::UpdateRecord { .. } => "update-record",
            Self::Files { .. } => "files",
            Self::CompareFiles { .. } => "compare-files",
            Self::Load { .. } => "load",
            Self::Manifest { .. } => "manifest",
            Self::Open { .. } => "open",
        }
    }
}

/// The last word of an operation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
enum Reply {
    Record { record: Box<SourceRecord> },
    Manifest { manifest: Box<DatabaseManifest> },
    Loaded { bytes: u64 },
    Pass { pass: PassId },
    Done,
}

type Answer<T> = Result<T, Fault>;

async fn send<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), message: &T) -> Answer<()> {
    let bytes = serde_json::to_vec(message)
        .map_err(|e| Fault::bug("a message to a peer has no JSON").caused_by(&e))?;
    let length = u32::try_from(bytes.len())
        .ok()
        .filter(|l| *l <= MAX_MESSAGE)
        .ok_or_else(|| Fault::permanent("a message to a peer is longer than 16 MiB"))?;
    let lost = |e: &std::io::Error| Fault::io("the connection to the peer was lost", e);
    stream.write_u32(length).await.map_err(|e| lost(&e))?;
    stream.write_all(&bytes).await.map_err(|e| lost(&e))?;
    stream.flush().await.map_err(|e| lost(&e))
}

async fn receive<T: serde::de::DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Answer<T> {
    let lost = |e: &std::io::Error| Fault::io("the connection to the peer was lost", e);
    let length = stream.read_u32().await.map_err(|e| lost(&e))?;
    if length > MAX_MESSAGE {
        return Err(Fault::permanent("a peer sent a message longer than 16 MiB"));
    }
    // Grows as bytes arrive: a length alone allocates nothing.
    let mut bytes = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut bytes).await.map_err(|e| lost(&e))?;
    if bytes.len() != length as usize {
        return Err(Fault::transient("the peer ended the connection within a message"));
    }
    serde_json::from_slice(&bytes).map_err(|e| {
        Fault::permanent("a peer sent a message that cannot be read")
            .caused_by(&e)
            .remedy("install the same version of Ferry on both servers")
    })
}

/// What `server` answered, fit to be shown and kept: its fault's words are another server's.
fn told<T>(server: &ServerName, answer: Answer<T>) -> Answer<T> {
    answer.map_err(|fault| fault.told_by_another().context(format!("{server} refused or failed")))
}

/// For the fuzz target `peer_messages`: what either end reads is written as what reads alike.
pub(crate) fn fuzz(bytes: &[u8]) {
    fn keeps<T: Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
        let value: T = serde_json::from_slice(bytes).ok()?;
        let text = serde_json::to_vec(&value).expect("what was read can be written");
        let again: T = serde_json::from_slice(&text).expect("what was written can be read");
        assert_eq!(serde_json::to_vec(&again).ok(), Some(text));
        Some(value)
    }
    if let Some(Request::Grant { operation, .. }) = keeps::<Request>(bytes) {
        assert!(!operation.name().is_empty());
    }
    keeps::<Answer<Reply>>(bytes);
    keeps::<Answer<()>>(bytes);
    if let Some(record) = keeps::<SourceRecord>(bytes) {
        ferry_proto::fuzzing::checked(&record.definition);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(async {
        let _ = receive::<Request>(&mut &*bytes).await;
        let _ = receive::<Answer<Reply>>(&mut &*bytes).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_speaks_to_nobodys_terminal_and_proves_no_bug_of_ours() {
        let mut fault = Fault::bug("\x1b[2Jgone").remedy("x".repeat(1 << 20));
        fault.causes = vec!["a\nb".to_owned(); 1000];
        let heard = told::<()>(&"web1".parse().unwrap(), Err(fault)).unwrap_err();
        assert_eq!(heard.class, ferry_proto::FaultClass::Permanent);
        let text = heard.to_string();
        assert!(!text.contains(char::is_control) && text.len() < 32 << 10, "{}", text.len());
        assert!(text.starts_with("web1 refused or failed: "), "{text}");
    }

    #[tokio::test]
    async fn messages_cross_and_bad_ones_are_faults() {
        let (mut a, mut b) = tokio::io::duplex(64);
        let sending = tokio::spawn(async move {
            send(&mut a, &Ok::<u32, Fault>(7)).await.unwrap();
            send(&mut a, &Err::<u32, Fault>(Fault::fenced("no"))).await.unwrap();
            a.write_u32(MAX_MESSAGE + 1).await.unwrap();
            a
        });
        assert_eq!(receive::<Answer<u32>>(&mut b).await.unwrap(), Ok(7));
        assert_eq!(receive::<Answer<u32>>(&mut b).await.unwrap(), Err(Fault::fenced("no")));
        assert!(receive::<Answer<u32>>(&mut b).await.unwrap_err().message.contains("longer"));
        drop(sending.await.unwrap());
        let (mut a, mut b) = tokio::io::duplex(64);
        a.write_all(&[0, 0, 0, 9, b'{']).await.unwrap();
        drop(a);
        assert!(receive::<Answer<u32>>(&mut b).await.unwrap_err().message.contains("within"));
    }
}
