//! Agent to agent: plain bytes over mutual TLS, with no HTTP in between. Both ends are agents of
//! the same authority; which account they may exchange is the grant's business, not ours.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio_rustls::TlsStream;

use super::accept::{ADMITTED, Audience, Incoming, Listener};
use super::certificate::Leaf;
use super::client::{Dialler, client_config};
use super::connections::Connections;
use super::credentials::Identity;
use super::names::Party;
use super::source::Source;
use super::stream::{Caller, SecureStream};
use super::verify::ServerVerifier;
use super::{ALPN_PEER, refusal};
use crate::Fault;
use crate::ids::ServerName;

/// How long the other end may take to admit us after the handshake.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that another agent made to us.
#[derive(Debug)]
pub struct PeerConnection {
    /// The bytes.
    pub stream: SecureStream,
    /// The server whose agent it is.
    pub server: ServerName,
    /// From where, for logs.
    pub address: SocketAddr,
}

/// Takes connections of other agents.
#[derive(Debug)]
pub struct PeerListener {
    incoming: Incoming,
}

impl PeerListener {
    /// Answers on `listener` as `identity`, to agents that are not revoked.
    /// Dropping it closes the port; connections that were taken go on.
    ///
    /// # Errors
    /// The identity cannot be used.
    pub fn new(
        listener: Listener,
        identity: &Arc<Identity>,
        connections: &Arc<Connections>,
    ) -> Result<Self, Fault> {
        Ok(Self { incoming: listener.start(identity, connections, Audience::Peers)? })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.incoming.address()
    }

    /// The next connection. May be dropped and called again without losing one.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn accept(&mut self) -> Result<PeerConnection, Fault> {
        let stream =
            self.incoming.next().await.ok_or_else(|| {
                Fault::new(crate::FaultClass::Cancelled, "the peer port was closed")
            })?;
        let connection = stream.connection();
        let address = connection.address;
        // Peers must show a certificate, so this cannot fail; if it did, nobody gets in.
        let server = connection.caller.server().cloned().ok_or_else(|| {
            Fault::bug(format!("an anonymous caller at {address} came through the peer port"))
        })?;
        Ok(PeerConnection { stream, server, address })
    }
}

/// Connects to the agent of `server` at `address` (`HOST:PORT`). When this succeeds the other
/// agent has admitted us. The connection is cut if that server is revoked.
///
/// # Errors
/// Nobody answers there, somebody else does, it is revoked, or it refused us.
pub async fn peer_connect(
    address: &str,
    identity: &Arc<Identity>,
    server: &ServerName,
    connections: &Arc<Connections>,
) -> Result<SecureStream, Fault> {
    let expected = Party::Agent(server.clone());
    let verifier =
        ServerVerifier::new(identity.ca(), expected.clone(), Some(Arc::clone(connections)))?;
    let config = client_config(Arc::new(verifier), Some(identity), ALPN_PEER)?;
    let dialler = Dialler::new(address, expected, config);
    let (mut tls, address) = dialler.dial().await?;
    let leaf = match tls.get_ref().1.peer_certificates() {
        Some([leaf, ..]) => Leaf::parse(leaf, identity.ca().fingerprint())?,
        _ => {
            return Err(Fault::bug(format!("{} showed no certificate", dialler.other())));
        }
    };
    match tokio::time::timeout(ADMISSION_TIMEOUT, tls.read_u8()).await {
        Ok(Ok(ADMITTED)) => {}
        Ok(Ok(_)) => {
            return Err(Fault::permanent(format!(
                "{} speaks another protocol than Ferry's",
                dialler.other()
            )));
        }
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Err(dialler.not_admitted());
        }
        Ok(Err(error)) => return Err(refusal::fault(&dialler.other(), &error)),
        Err(_) => {
            return Err(Fault::transient(format!("{} did not admit us in time", dialler.other())));
        }
    }
    let caller = Caller::from_leaf(leaf)?;
    let registration = connections.admit(&caller, Source::of(address.ip()))?;
    Ok(SecureStream::new(TlsStream::Client(tls), caller, address, registration))
}
