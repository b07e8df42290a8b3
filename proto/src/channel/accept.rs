//! The listening side: connections are taken as they come and handshakes run side by side, each
//! with a deadline, so that one who stalls holds up nobody. What comes out is authenticated as
//! far as it can be.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsStream, server};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::certificate::{Fingerprint, Leaf};
use super::connections::{AddressSlot, Connections};
use super::credentials::Identity;
use super::stream::{Caller, SecureStream};
use super::verify::AgentVerifier;
use super::{ALPN_CONTROLLER, ALPN_PEER, provider, refusal};
use crate::Fault;

/// Accepted connections that wait to be taken; beyond it handshakes wait, and beyond those the
/// kernel's queue.
const READY: usize = 32;

/// How long to wait after `accept` failed, for want of descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a peer is told once it is admitted. In TLS 1.3 the client is done before the server has
/// looked at its certificate; this byte makes a successful connect mean what it says.
pub(crate) const ADMITTED: u8 = b'+';

/// Whom a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Agents, and callers without a certificate, over HTTP/2.
    Everybody,
    /// Other agents, over Ferry's peer protocol.
    Peers,
}

/// A bound port that does not answer yet.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address` (`HOST:PORT`).
    ///
    /// # Errors
    /// The address is not ours or in use.
    pub async fn bind(address: &str) -> Result<Self, Fault> {
        let tcp = TcpListener::bind(address).await.map_err(|e| {
            Fault::io(format!("cannot listen on {address}"), &e)
                .remedy("check the configured address and what else listens there")
        })?;
        Self::from_tcp(tcp)
    }

    /// Takes a listening socket, from systemd say.
    ///
    /// # Errors
    /// It is not bound.
    pub fn from_tcp(tcp: TcpListener) -> Result<Self, Fault> {
        let address =
            tcp.local_addr().map_err(|e| Fault::io("the listening socket has no address", &e))?;
        Ok(Self { tcp, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers as the controller: a stream for tonic's `serve_with_incoming`. Each request then
    /// carries a [`Connection`](super::Connection) (see [`caller`](super::caller)).
    /// Dropping the stream closes the port and ends unfinished handshakes.
    ///
    /// # Errors
    /// The identity cannot be used.
    pub fn serve(
        self,
        identity: &Arc<Identity>,
        connections: &Arc<Connections>,
    ) -> Result<Incoming, Fault> {
        self.start(identity, connections, Audience::Everybody)
    }

    pub(crate) fn start(
        self,
        identity: &Arc<Identity>,
        connections: &Arc<Connections>,
        audience: Audience,
    ) -> Result<Incoming, Fault> {
        let config = server_config(identity, connections, audience)?;
        let (sender, ready) = mpsc::channel(READY);
        let stop = CancellationToken::new();
        let acceptor = Acceptor {
            tls: TlsAcceptor::from(Arc::new(config)),
            ca: *identity.ca().fingerprint(),
            connections: Arc::clone(connections),
            audience,
            permits: Arc::new(Semaphore::new(connections.limits().handshakes)),
            sender,
        };
        let address = self.address;
        tokio::spawn(run(self.tcp, Arc::new(acceptor), stop.clone()));
        Ok(Incoming { ready, address, _stop: stop.drop_guard() })
    }
}

fn server_config(
    identity: &Arc<Identity>,
    connections: &Arc<Connections>,
    audience: Audience,
) -> Result<ServerConfig, Fault> {
    let mandatory = audience == Audience::Peers;
    let verifier = AgentVerifier::new(identity.ca(), Arc::clone(connections), mandatory)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| Fault::bug("TLS 1.3 is not available").caused_by(&e))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::clone(identity) as Arc<_>);
    // A resumed session is not verified again, so a revoked agent could resume: never resume.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![audience.alpn().to_vec()];
    Ok(config)
}

impl Audience {
    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Everybody => ALPN_CONTROLLER,
            Self::Peers => ALPN_PEER,
        }
    }
}

/// Authenticated connections, in the order in which their handshakes ended. It never ends by
/// itself and never yields an error: who is refused is logged and forgotten.
#[derive(Debug)]
pub struct Incoming {
    ready: mpsc::Receiver<SecureStream>,
    address: SocketAddr,
    _stop: DropGuard,
}

impl Incoming {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn next(&mut self) -> Option<SecureStream> {
        self.ready.recv().await
    }
}

impl Stream for Incoming {
    type Item = std::io::Result<SecureStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx).map(|ready| ready.map(Ok))
    }
}

struct Acceptor {
    tls: TlsAcceptor,
    ca: Fingerprint,
    connections: Arc<Connections>,
    audience: Audience,
    permits: Arc<Semaphore>,
    sender: mpsc::Sender<SecureStream>,
}

/// Accepts until stopped. The handshakes belong to this task and end with it.
async fn run(tcp: TcpListener, acceptor: Arc<Acceptor>, stop: CancellationToken) {
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = handshakes.join_next() => {}
            accepted = next(&tcp, &acceptor) => {
                if let Some((socket, address, permit, slot)) = accepted {
                    let acceptor = Arc::clone(&acceptor);
                    handshakes.spawn(async move {
                        acceptor.receive(socket, address, slot).await;
                        drop(permit);
                    });
                }
            }
        }
    }
}

/// The next connection that may begin a handshake.
async fn next(
    tcp: &TcpListener,
    acceptor: &Acceptor,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit, AddressSlot)> {
    // The permit first: without one, connections wait in the kernel's queue, which has its bound.
    // The semaphore is never closed.
    let permit = Arc::clone(&acceptor.permits).acquire_owned().await.ok()?;
    match tcp.accept().await {
        Ok((socket, address)) => match acceptor.connections.enter(address.ip()) {
            Ok(slot) => Some((socket, address, permit, slot)),
            Err(fault) => {
                tracing::warn!(%address, %fault, "connection refused");
                None
            }
        },
        Err(error) => {
            tracing::warn!(%error, "no connection could be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

impl Acceptor {
    async fn receive(&self, socket: TcpStream, address: SocketAddr, slot: AddressSlot) {
        let timeout = self.connections.limits().handshake_timeout;
        let stream =
            match tokio::time::timeout(timeout, self.handshake(socket, address, slot)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(fault)) => {
                    tracing::warn!(%address, %fault, "connection refused");
                    return;
                }
                Err(_) => {
                    tracing::warn!(%address, ?timeout, "handshake not finished in time");
                    return;
                }
            };
        // Full: the handshake's permit is kept, so the wait is bounded. Closed: we are stopping.
        let _ = self.sender.send(stream).await;
    }

    async fn handshake(
        &self,
        socket: TcpStream,
        address: SocketAddr,
        slot: AddressSlot,
    ) -> Result<SecureStream, Fault> {
        tune(&socket)?;
        let other = format!("the caller at {address}");
        let mut tls =
            self.tls.accept(socket).await.map_err(|error| refusal::fault(&other, &error))?;
        let caller = self.caller(&tls)?;
        let admitted = self.connections.admit(&caller, keep_for_anonymous(&caller, slot));
        let registration = match admitted {
            Ok(registration) => registration,
            Err(fault) => {
                let _ = tls.shutdown().await;
                return Err(fault);
            }
        };
        if self.audience == Audience::Peers {
            greet(&mut tls).await.map_err(|e| Fault::io(format!("{caller} went away"), &e))?;
        }
        tracing::debug!(%address, %caller, "connected");
        Ok(SecureStream::new(TlsStream::Server(tls), caller, address, registration))
    }

    /// Who is calling, from the certificate that the handshake verified.
    fn caller(&self, tls: &server::TlsStream<TcpStream>) -> Result<Caller, Fault> {
        let (_, session) = tls.get_ref();
        // rustls refuses a client that offers other protocols, but not one that offers none.
        if session.alpn_protocol() != Some(self.audience.alpn()) {
            return Err(Fault::permanent("the caller did not offer Ferry's protocol"));
        }
        match session.peer_certificates() {
            Some([leaf, ..]) => Caller::from_leaf(Leaf::parse(leaf, &self.ca)?),
            _ if self.audience == Audience::Everybody => Ok(Caller::Anonymous),
            _ => Err(Fault::permanent("the caller showed no certificate")),
        }
    }
}

fn keep_for_anonymous(caller: &Caller, slot: AddressSlot) -> Option<AddressSlot> {
    matches!(caller, Caller::Anonymous).then_some(slot)
}

async fn greet(tls: &mut server::TlsStream<TcpStream>) -> std::io::Result<()> {
    tls.write_all(&[ADMITTED]).await?;
    tls.flush().await
}

/// No delay, and an end to idle connections whose other side is gone without a word. There is no
/// TCP_USER_TIMEOUT on purpose: it would also end a connection whose other side is well but has
/// not read for a while, such as a database that builds an index in the middle of a load.
pub(crate) fn tune(socket: &TcpStream) -> Result<(), Fault> {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    socket
        .set_nodelay(true)
        .and_then(|()| socket2::SockRef::from(socket).set_tcp_keepalive(&keepalive))
        .map_err(|e| Fault::io("a socket refused its options", &e))
}
