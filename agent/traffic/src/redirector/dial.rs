//! Finding out where a connection wanted to go, and opening the one that goes on. It owns sockets'
//! options; it must not know accounts' states.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::gate::Goal;
use super::ingress::{Kind, MAX_HOPS, Passage, canonical, plain_header};
use crate::control::Upstream;

/// How long one attempt to reach a server may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// How long one attempt with the visitor's address may take: the web server is on this machine.
const TRANSPARENT_WITHIN: Duration = Duration::from_secs(1);

/// After the visitor's address could not be kept, how long it is not tried.
const TRANSPARENT_AGAIN: Duration = Duration::from_secs(30);

/// Where a connection came from.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The visitor.
    pub visitor: SocketAddr,
    /// The address that the visitor asked for, if the firewall rules brought the connection.
    pub asked: Option<SocketAddr>,
    /// The listener's address.
    pub listener: SocketAddr,
    /// What travels.
    pub kind: Kind,
    /// What the other server says, if it came from one.
    pub passage: Option<Passage>,
}

/// An open connection to the next server.
#[derive(Debug)]
pub struct Dialed {
    /// The connection.
    pub stream: TcpStream,
    /// What goes before the visitor's bytes.
    pub preface: Vec<u8>,
}

/// Why no connection could be opened.
#[derive(Debug)]
pub enum Unreached {
    /// There is no address to go to.
    Nowhere(&'static str),
    /// It has passed too many redirectors.
    Loop,
    /// The attempt failed; another may succeed.
    Failed(io::Error),
}

/// Opens connections.
#[derive(Debug)]
pub struct Dialer {
    /// Whether connections to the own web server carry the visitor's address.
    keep_visitor: bool,
    started: Instant,
    /// Milliseconds since `started` until which keeping it is not tried.
    not_before: AtomicU64,
}

impl Dialer {
    /// A dialer; `keep_visitor` asks for the visitor's address towards the own web server.
    pub fn new(keep_visitor: bool) -> Self {
        let keep_visitor = keep_visitor
            && transparent_allowed()
                .inspect_err(|error| {
                    tracing::warn!(%error, "sites will see this server's address instead of \
                        their visitors': give the process CAP_NET_RAW");
                })
                .is_ok();
        Self { keep_visitor, started: Instant::now(), not_before: AtomicU64::new(0) }
    }

    /// Opens the connection to `goal`.
    ///
    /// # Errors
    /// Why not.
    pub async fn dial(&self, goal: &Goal, arrival: &Arrival) -> Result<Dialed, Unreached> {
        let upstream = match goal {
            Goal::Remote { peer, account, epoch } => {
                let hops = arrival.passage.as_ref().map_or(0, |passage| passage.hops);
                if hops >= MAX_HOPS {
                    return Err(Unreached::Loop);
                }
                let passage = Passage {
                    visitor: arrival.visitor,
                    asked: arrival.asked.unwrap_or(arrival.listener),
                    kind: arrival.kind,
                    hops: hops + 1,
                    account: account.clone(),
                    epoch: *epoch,
                };
                let preface = passage.encode().map_err(Unreached::Failed)?;
                let stream = connect(*peer, CONNECT_WITHIN).await.map_err(Unreached::Failed)?;
                return Ok(Dialed { stream, preface });
            }
            Goal::Unrouted => Upstream::Original,
            Goal::Local(local) => match arrival.kind {
                Kind::Http => local.http,
                Kind::Https => local.https,
            },
        };
        let stream = match upstream {
            Upstream::Addr(address) => connect(address, CONNECT_WITHIN).await,
            Upstream::Original => {
                const NONE: Unreached =
                    Unreached::Nowhere("the connection was not redirected from a service port");
                // The address asked for at another server is not one of this server.
                let asked = arrival.asked.filter(|_| arrival.passage.is_none()).ok_or(NONE)?;
                self.connect_original(asked, arrival.visitor).await
            }
        };
        let preface = match goal {
            Goal::Local(local) if local.proxy_protocol => {
                let asked = arrival.asked.unwrap_or(arrival.listener);
                plain_header(arrival.visitor, asked).map_err(Unreached::Failed)?
            }
            _ => Vec::new(),
        };
        Ok(Dialed { stream: stream.map_err(Unreached::Failed)?, preface })
    }

    async fn connect_original(&self, to: SocketAddr, visitor: SocketAddr) -> io::Result<TcpStream> {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let keep = self.keep_visitor
            && now >= self.not_before.load(Ordering::Relaxed)
            && !is_link_local(visitor.ip());
        if !keep {
            return connect(to, CONNECT_WITHIN).await;
        }
        // The chosen port may be one that the visitor itself uses towards the same address at this
        // moment; then the attempt fails and the next chooses another.
        for _ in 0..2 {
            match within(TRANSPARENT_WITHIN, connect_as(visitor.ip(), to)).await {
                Err(e) if e.kind() != io::ErrorKind::ConnectionRefused => {}
                done => return done,
            }
        }
        let stream = connect(to, CONNECT_WITHIN).await?;
        let pause = u64::try_from(TRANSPARENT_AGAIN.as_millis()).unwrap_or(u64::MAX);
        self.not_before.store(now.saturating_add(pause), Ordering::Relaxed);
        tracing::warn!(
            "connections with visitors' addresses get no answer: is the policy route of \
            the firewall rules in place? Sites see this server's own address meanwhile"
        );
        Ok(stream)
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

async fn within(
    limit: Duration,
    attempt: impl Future<Output = io::Result<TcpStream>>,
) -> io::Result<TcpStream> {
    let stream = timeout(limit, attempt).await.map_err(|_| io::ErrorKind::TimedOut)??;
    prepare(&stream);
    Ok(stream)
}

async fn connect(to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    within(limit, TcpStream::connect(to)).await
}

/// Connects with the visitor's address and a port of our choice.
async fn connect_as(visitor: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    make_transparent(&SockRef::from(&socket), to.is_ipv4())?;
    // The port is chosen when connecting, so that one port serves many destinations.
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(SocketAddr::new(visitor, 0))?;
    socket.connect(to).await
}

/// Lets the socket have an address, or accept for one, that is not its own. Needs `CAP_NET_RAW`.
pub fn make_transparent(socket: &SockRef<'_>, v4: bool) -> io::Result<()> {
    if v4 { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

fn transparent_allowed() -> io::Result<()> {
    make_transparent(&SockRef::from(&TcpSocket::new_v4()?), true)
}

/// Sets what every connection gets: no delay for small pieces, and probes that find a dead end.
pub fn prepare(stream: &TcpStream) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(20));
    // A connection without these options still works.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// The address that the visitor asked for, if the firewall rules brought the connection, translated or
/// as it was; none if it came straight to a port of the redirector, which it would otherwise lead back
/// to.
pub fn asked_for(stream: &TcpStream, own_ports: &[u16]) -> Option<SocketAddr> {
    let local = canonical(stream.local_addr().ok()?);
    if !own_ports.contains(&local.port()) {
        return Some(local);
    }
    let socket = SockRef::from(stream);
    let found = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let asked = canonical(found.ok()?.as_socket()?);
    (!own_ports.contains(&asked.port())).then_some(asked)
}

/// Whether the visitor has closed the connection, or at least said that it sends no more.
pub fn has_left(stream: &TcpStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let left = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(_) => fds[0].revents().intersects(left),
        // An interrupted call says nothing: it is asked again soon.
        Err(_) => false,
    }
}
