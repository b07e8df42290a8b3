//! The redirector's process: listeners, their limits, the beginning and the end. What happens to a
//! connection is in `connection`, where it goes is in `gate`.
//!
//! It parses bytes of strangers, so it is a process of its own, with a user of its own. It obeys
//! its routes and decides nothing: an account that is held stays held until the agent says
//! otherwise, however long that takes.
//!
//! What it cannot do: see hosts within TLS. A visitor that opened a tunnel for one name and uses
//! it for another (HTTP/2 does so for names of one certificate) is treated by the first name. And
//! connections that name no host at all, or whose first bytes cannot be read, go to the address
//! that they asked for. Both are why a fence never relies on the redirector alone.

mod body;
mod connection;
mod control;
mod dial;
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod http;
mod ingress;
mod live;
mod pass;
mod relay;
pub(crate) mod routes;
mod sockets;
pub(crate) mod store;
mod tls;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferry_proto::Fault;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use connection::Context;
use control::Control;
use dial::{Arrival, Dialer};
use gate::Gate;
use ingress::Kind;
pub use sockets::Sockets;
use store::Store;

/// How long running connections may go on when the process is to end.
pub const END_WITHIN: Duration = Duration::from_secs(5);

/// How long refusing those that wait may then take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How many connections of the agent are served at once.
const MAX_CONTROL: usize = 16;

/// Strangers at the peer ingress are mentioned once in so many.
const WARN_EVERY: u64 = 1_000;

/// How often a change that could not be saved is saved again.
const SAVE_AGAIN: Duration = Duration::from_secs(5);

/// The running redirector.
pub struct Redirector {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    http: Vec<SocketAddr>,
    https: Vec<SocketAddr>,
    peer: Vec<SocketAddr>,
}

struct Shared {
    context: Context,
    control: Control,
    visitors: Visitors,
    own_ports: Vec<u16>,
    /// No new connections.
    closing: CancellationToken,
    /// No connections at all.
    ended: CancellationToken,
    connections: Arc<AtomicU64>,
    /// Connections to the peer ingress from elsewhere.
    refused_peers: AtomicU64,
}

/// A connection that is counted until this is dropped.
struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn one_more(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a TCP listener is for.
#[derive(Debug, Clone, Copy)]
enum Door {
    Visitors(Kind),
    Peers,
}

impl Redirector {
    /// Starts serving. To be called within the runtime.
    ///
    /// # Errors
    /// The routes cannot be read, or a socket cannot be used.
    pub fn start(config: Config, sockets: Sockets) -> Result<Self, Fault> {
        let unusable = |e: std::io::Error| Fault::io("a listening socket cannot be used", &e);
        let gate = Gate::open(Store::in_directory(&config.state_dir))?;
        let own_ports = sockets.ports();
        sockets.set_nonblocking().map_err(unusable)?;
        let connections = Arc::new(AtomicU64::new(0));
        let control = Control {
            gate: Arc::clone(&gate),
            started: live::now(),
            connections: Arc::clone(&connections),
            visitors: Arc::default(),
        };
        let shared = Arc::new(Shared {
            visitors: Visitors::new(config.max_per_visitor),
            context: Context {
                gate,
                dialer: Dialer::new(config.keep_visitor_address),
                config,
                ending: CancellationToken::new(),
            },
            control,
            own_ports,
            closing: CancellationToken::new(),
            ended: CancellationToken::new(),
            connections,
            refused_peers: AtomicU64::new(0),
        });
        let mut this = Self {
            shared,
            tasks: TaskTracker::new(),
            http: Vec::new(),
            https: Vec::new(),
            peer: Vec::new(),
        };
        // Peers have a limit of their own, so that visitors cannot keep them out.
        let limit =
            || Arc::new(Semaphore::new(this.shared.context.config.max_connections as usize));
        let (visitors, peers) = (limit(), limit());
        let http = (sockets.http, Door::Visitors(Kind::Http), visitors.clone());
        let https = (sockets.https, Door::Visitors(Kind::Https), visitors);
        let peer = (sockets.peer, Door::Peers, peers);
        this.http = this.listen_all(http).map_err(unusable)?;
        this.https = this.listen_all(https).map_err(unusable)?;
        this.peer = this.listen_all(peer).map_err(unusable)?;
        for listener in sockets.control {
            let listener = UnixListener::from_std(listener).map_err(unusable)?;
            this.tasks.spawn(listen_control(Arc::clone(&this.shared), listener));
        }
        this.tasks.spawn(save_again(Arc::clone(&this.shared)));
        Ok(this)
    }

    fn listen_all(
        &self,
        (listeners, door, limit): (Vec<std::net::TcpListener>, Door, Arc<Semaphore>),
    ) -> std::io::Result<Vec<SocketAddr>> {
        let mut addresses = Vec::new();
        for listener in listeners {
            let listener = TcpListener::from_std(listener)?;
            addresses.push(listener.local_addr()?);
            let (shared, limit) = (Arc::clone(&self.shared), Arc::clone(&limit));
            self.tasks.spawn(listen(shared, self.tasks.clone(), listener, door, limit));
        }
        Ok(addresses)
    }

    /// Where it accepts HTTP.
    pub fn http(&self) -> &[SocketAddr] {
        &self.http
    }

    /// Where it accepts HTTPS.
    pub fn https(&self) -> &[SocketAddr] {
        &self.https
    }

    /// Where it accepts other servers' redirectors.
    pub fn peer(&self) -> &[SocketAddr] {
        &self.peer
    }

    /// Returns if the gate can still be passed. For the watchdog.
    pub fn pass_gate(&self) {
        self.shared.context.gate.touch();
    }

    /// Takes no new connections, lets running ones go on and waiting ones wait for at most `grace`,
    /// and ends.
    pub async fn stop(self, grace: Duration) {
        self.shared.closing.cancel();
        self.tasks.close();
        let ending = [(grace, &self.shared.context.ending), (LAST_WORDS, &self.shared.ended)];
        for (limit, then) in ending {
            if tokio::time::timeout(limit, self.tasks.wait()).await.is_ok() {
                return;
            }
            then.cancel();
        }
        self.tasks.wait().await;
    }
}

async fn listen(
    shared: Arc<Shared>,
    tasks: TaskTracker,
    listener: TcpListener,
    door: Door,
    limit: Arc<Semaphore>,
) {
    loop {
        let next = async {
            // At the limit no more are accepted: they wait in the kernel. The semaphore is never
            // closed.
            let permit = Arc::clone(&limit).acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = shared.closing.cancelled() => return,
        };
        match accepted {
            Ok((stream, from)) => {
                let shared = Arc::clone(&shared);
                tasks.spawn(async move {
                    let _permit = permit;
                    let _counted = Counted::one_more(&shared.connections);
                    tokio::select! {
                        () = shared.serve(stream, ingress::canonical(from), door) => {}
                        () = shared.ended.cancelled() => {}
                    }
                });
            }
            Err(error) => {
                // Out of descriptors or memory: give the connections that run time to end.
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Shared {
    async fn serve(&self, stream: TcpStream, from: SocketAddr, door: Door) {
        dial::prepare(&stream);
        match door {
            Door::Visitors(kind) => {
                let _counted = Counted::one_more(&self.control.visitors);
                let Some(_place) = self.visitors.enter(from.ip()) else {
                    tracing::debug!(visitor = %from, "too many connections of one visitor");
                    return;
                };
                let Ok(listener) = stream.local_addr() else {
                    return;
                };
                let arrival = Arrival {
                    visitor: from,
                    asked: dial::asked_for(&stream, &self.own_ports),
                    listener: ingress::canonical(listener),
                    kind,
                    passage: None,
                };
                connection::serve(&self.context, stream, arrival).await;
            }
            Door::Peers if self.context.gate.is_peer(from.ip()) => {
                if let Err(error) = connection::serve_peer(&self.context, stream).await {
                    tracing::debug!(peer = %from, %error, "a peer's connection failed");
                }
            }
            Door::Peers => {
                if self.refused_peers.fetch_add(1, Ordering::Relaxed).is_multiple_of(WARN_EVERY) {
                    tracing::warn!(address = %from, "not a peer: connections refused");
                }
            }
        }
    }
}

async fn listen_control(shared: Arc<Shared>, listener: UnixListener) {
    let limit = Arc::new(Semaphore::new(MAX_CONTROL));
    let talks = TaskTracker::new();
    loop {
        let next = async {
            let permit = Arc::clone(&limit).acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = shared.closing.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let shared = Arc::clone(&shared);
                talks.spawn(async move {
                    let _permit = permit;
                    tokio::select! {
                        () = shared.control.serve(stream) => {}
                        // What was acknowledged is durable; the agent repeats the rest.
                        () = shared.closing.cancelled() => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a control connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    talks.close();
    talks.wait().await;
}

async fn save_again(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(SAVE_AGAIN);
    loop {
        tokio::select! {
            _ = ticks.tick() => shared.context.gate.save_again().await,
            () = shared.closing.cancelled() => return,
        }
    }
}

/// How many connections each visitor has.
struct Visitors {
    limit: u32,
    counts: Mutex<HashMap<IpAddr, u32>>,
}

/// A visitor's place, given back when dropped.
struct Place<'a> {
    visitors: &'a Visitors,
    key: Option<IpAddr>,
}

impl Visitors {
    fn new(limit: u32) -> Self {
        Self { limit, counts: Mutex::default() }
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection, unless the visitor has all it may.
    fn enter(&self, visitor: IpAddr) -> Option<Place<'_>> {
        if self.limit == 0 {
            return Some(Place { visitors: self, key: None });
        }
        // One visitor commands a whole /64.
        let key = match visitor {
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
            v4 @ IpAddr::V4(_) => v4,
        };
        let mut counts = self.counts();
        let count = counts.entry(key).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Place { visitors: self, key: Some(key) })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut counts = self.visitors.counts();
        if let Some(count) = counts.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visitor_has_so_many_places_and_gets_them_back() {
        let visitors = Visitors::new(2);
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        let neighbour: IpAddr = "2001:db8::ffff".parse().unwrap();
        let other: IpAddr = "2001:db8:0:1::1".parse().unwrap();
        let first = visitors.enter(address).unwrap();
        let _second = visitors.enter(neighbour).unwrap();
        assert!(visitors.enter(address).is_none());
        assert!(visitors.enter(other).is_some());
        drop(first);
        assert!(visitors.enter(address).is_some());
    }
}
