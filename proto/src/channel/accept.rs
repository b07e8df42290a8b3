//! The listening side: connections are taken as they come and handshakes run side by side, each
//! with a deadline, so that one who stalls holds up nobody. What comes out is authenticated as
//! far as it can be; who stays anonymous has a deadline too.

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
use tokio::sync::mpsc;
use tokio_rustls::{TlsAcceptor, TlsStream, server};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::certificate::{Fingerprint, Leaf};
use super::connections::{Connections, Registration};
use super::credentials::Identity;
use super::handshakes::{Displaced, Handshakes, Place};
use super::source::Source;
use super::stream::{Caller, SecureStream};
use super::verify::AgentVerifier;
use super::{ALPN_CONTROLLER, ALPN_PEER, provider, refusal};
use crate::Fault;

/// Authenticated connections that wait to be taken; beyond it they wait at the places of their
/// handshakes.
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
    sender: mpsc::Sender<SecureStream>,
}

/// Accepts until stopped. The handshakes belong to this task and end with it.
async fn run(tcp: TcpListener, acceptor: Arc<Acceptor>, stop: CancellationToken) {
    let mut handshakes = Handshakes::new(acceptor.connections.limits());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = handshakes.tidy() => {}
            accepted = tcp.accept() => match accepted {
                Ok((socket, address)) => begin(&mut handshakes, &acceptor, socket, address).await,
                Err(error) => {
                    tracing::warn!(%error, "no connection could be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Nobody waits for a place in the kernel's queue: the loopback would wait behind strangers there.
async fn begin(
    handshakes: &mut Handshakes,
    acceptor: &Arc<Acceptor>,
    socket: TcpStream,
    address: SocketAddr,
) {
    let acceptor = Arc::clone(acceptor);
    let begun = handshakes
        .begin(Source::of(address.ip()), |place| async move {
            acceptor.receive(socket, address, place).await;
        })
        .await;
    if let Err(fault) = begun {
        tracing::warn!(%address, %fault, "connection refused");
    }
}

impl Acceptor {
    async fn receive(&self, socket: TcpStream, address: SocketAddr, place: Place) {
        let timeout = self.connections.limits().handshake_timeout;
        let handshake = tokio::time::timeout(timeout, self.handshake(socket, address));
        let stream = match place.hold(handshake).await {
            Ok(Ok(Ok(stream))) => stream,
            Ok(Ok(Err(fault))) => {
                tracing::warn!(%address, %fault, "connection refused");
                return;
            }
            Ok(Err(_)) => {
                tracing::warn!(%address, ?timeout, "handshake not finished in time");
                return;
            }
            Err(Displaced) => {
                tracing::warn!(%address, "handshake ended: there are too many");
                return;
            }
        };
        // Full: this task keeps its place, so the wait is bounded. Closed: we are stopping.
        let _ = self.sender.send(stream).await;
    }

    async fn handshake(
        &self,
        socket: TcpStream,
        address: SocketAddr,
    ) -> Result<SecureStream, Fault> {
        tune(&socket)?;
        let other = format!("the caller at {address}");
        let mut tls =
            self.tls.accept(socket).await.map_err(|error| refusal::fault(&other, &error))?;
        let caller = self.caller(&tls)?;
        let admitted = self.connections.admit(&caller, Source::of(address.ip()));
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
        if caller == Caller::Anonymous {
            self.limit_age(&registration, address);
        }
        tracing::debug!(%address, %caller, "connected");
        Ok(SecureStream::new(TlsStream::Server(tls), caller, address, registration))
    }

    /// Cuts a connection when its time is over, unless it is kept or has ended before.
    fn limit_age(&self, registration: &Registration, address: SocketAddr) {
        let (cut, kept) = (registration.cut().clone(), registration.kept().clone());
        let age = self.connections.limits().anonymous_age;
        tokio::spawn(async move {
            if tokio::time::timeout(age, kept.cancelled()).await.is_err() {
                tracing::info!(%address, ?age, "anonymous connection cut: its time is over");
                cut.cancel();
            }
        });
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
