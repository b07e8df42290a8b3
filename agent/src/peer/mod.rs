//! Agent to agent: one TLS connection per operation, which presents a grant signed by the
//! controller. All else is refused and logged.
//!
//! A connection begins with a [`Request`] from the caller and an answer, `Ok` or a fault. What
//! follows depends on the operation: nothing, a stream of the file engine or of a dump, and in the
//! end a [`Reply`]. Messages are JSON behind their length (u32, big-endian), 16 MiB at most.

mod client;
mod server;

use ferry_databases::DatabaseManifest;
use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::command::CommitRecord;
use ferry_proto::grant::SignedGrant;
use ferry_proto::ids::DatabaseName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub use client::Peer;
pub use server::serve;

use crate::ledger::SourceRecord;

/// No message is longer. (Records hold crontabs and grants, manifests a line per table.)
const MAX_MESSAGE: u32 = 16 << 20;

/// What a peer asks.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    grant: SignedGrant,
    operation: Operation,
}

/// One operation on the account of the grant.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Operation {
    /// Target asks source: what is the account, apart from content.
    Record,
    /// Source tells target: this is the account now.
    UpdateRecord { record: Box<SourceRecord> },
    /// Source sends a pass of files. The file engine's stream follows.
    Files {
        /// The source has seen that its tree is empty because its owner has emptied it.
        #[serde(default)]
        allow_emptied: bool,
    },
    /// Source compares files. The file engine's stream follows.
    CompareFiles,
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
            Self::CompareFiles => "compare-files",
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

#[cfg(test)]
mod tests {
    use super::*;

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
