//! What the agent and the redirector say to each other: one JSON object per line over a Unix
//! socket, a request and then its reply. It owns the types and the framing; it must not know how
//! a route is carried out.
//!
//! The redirector outlives upgrades of the agent, so the two may differ in age: a field may be added
//! with a default and is ignored by an older reader; a meaning is never changed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::ids::{AccountName, DomainName, Epoch};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Where the redirector listens for its agent.
pub const CONTROL_SOCKET: &str = "/run/ferry-redirector/control.sock";

/// The longest line either side accepts. An account of 2,000 domains of the greatest length fits.
pub const MAX_LINE: usize = 1024 * 1024;

/// The most domains one account may have.
pub const MAX_DOMAINS: usize = 2_000;

/// The most accounts routed at once.
pub const MAX_ACCOUNTS: usize = 10_000;

/// The most peers allowed at the ingress.
pub const MAX_PEERS: usize = 1_000;

/// How much the redirector keeps waiting for one account, and how long its running requests may
/// go on when holding begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldLimits {
    /// How long one request waits, in milliseconds.
    pub wait_ms: u64,
    /// How many requests wait at once.
    pub requests: u32,
    /// How many bytes of them are kept.
    pub bytes: u64,
    /// How long requests that run already may go on before they are ended, in milliseconds.
    pub grace_ms: u64,
}

impl Default for HoldLimits {
    fn default() -> Self {
        Self { wait_ms: 30_000, requests: 1_000, bytes: 64 * 1024 * 1024, grace_ms: 2_000 }
    }
}

impl HoldLimits {
    /// How long one request waits.
    pub fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms)
    }

    /// How long running requests may go on.
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }
}

/// Where requests for an account go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum RouteState {
    /// To this server's own web server.
    Local,
    /// Nowhere yet: they wait.
    Hold {
        /// How much may wait.
        limits: HoldLimits,
    },
    /// To the server where the account lives now.
    Remote {
        /// The peer ingress of that server's redirector, usually `ADDRESS:7481`.
        peer: SocketAddr,
    },
}

/// Where held and new requests go when holding ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Target {
    /// To this server's own web server.
    Local,
    /// To the redirector of another server.
    Remote {
        /// Its peer ingress.
        peer: SocketAddr,
    },
}

impl From<Target> for RouteState {
    fn from(target: Target) -> Self {
        match target {
            Target::Local => Self::Local,
            Target::Remote { peer } => Self::Remote { peer },
        }
    }
}

/// A listener of this server's own web server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upstream {
    /// The address that the visitor asked for. It exists only for connections that the firewall
    /// rules brought; a request that came over the peer ingress has none and is refused.
    #[default]
    Original,
    /// This address.
    Addr(SocketAddr),
}

/// How this server's own web server is reached for an account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LocalUpstream {
    /// For HTTP.
    pub http: Upstream,
    /// For HTTPS.
    pub https: Upstream,
    /// Whether the web server expects a PROXY protocol header (version 2) on these addresses. Only
    /// with addresses of its own: a shared port 80 or 443 expects none.
    pub proxy_protocol: bool,
}

/// One account: its names, and where its requests go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRoute {
    /// The account.
    pub account: AccountName,
    /// The epoch under which `state` holds. An older one is refused.
    pub epoch: Epoch,
    /// Its domains; `*.` stands for any labels below.
    pub domains: BTreeSet<DomainName>,
    /// Where its requests go.
    pub state: RouteState,
    /// How the own web server is reached while it is `Local`.
    #[serde(default)]
    pub upstream: LocalUpstream,
}

/// What the agent asks of the redirector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    /// Adds the account, or replaces all that is known of it.
    SetRoute {
        /// The account's route.
        route: AccountRoute,
    },
    /// Holds new requests; running ones end after the grace. Answered by [`Reply::Running`] at
    /// once, without waiting for them.
    Hold {
        /// The account.
        account: AccountName,
        /// The epoch under which it is held.
        epoch: Epoch,
        /// How much may wait.
        limits: HoldLimits,
    },
    /// Ends holding: held and new requests go to `to`.
    Release {
        /// The account.
        account: AccountName,
        /// The epoch under which `to` serves it.
        epoch: Epoch,
        /// Where they go.
        to: Target,
    },
    /// Forgets the account. One that is unknown is forgotten already.
    RemoveRoute {
        /// The account.
        account: AccountName,
        /// An epoch not older than the account's.
        epoch: Epoch,
    },
    /// Replaces the list of servers that may use the peer ingress.
    SetPeers {
        /// Their addresses.
        peers: BTreeSet<IpAddr>,
    },
    /// Waits until no request that began before holding runs. Answered by [`Reply::Running`].
    Drain {
        /// The account.
        account: AccountName,
        /// How long to wait, in milliseconds.
        timeout_ms: u64,
    },
    /// Asks for [`Reply::Status`].
    Status,
}

impl Request {
    /// What fault tests know it by, if it changes something.
    pub(crate) fn change(&self) -> Option<&'static str> {
        match self {
            Self::SetRoute { route } => Some(match route.state {
                RouteState::Local => "redirector.set_route.local",
                RouteState::Hold { .. } => "redirector.set_route.hold",
                RouteState::Remote { .. } => "redirector.set_route.remote",
            }),
            Self::Hold { .. } => Some("redirector.hold"),
            Self::Release { to: Target::Local, .. } => Some("redirector.release.local"),
            Self::Release { to: Target::Remote { .. }, .. } => Some("redirector.release.remote"),
            Self::RemoveRoute { .. } => Some("redirector.remove_route"),
            Self::SetPeers { .. } => Some("redirector.set_peers"),
            Self::Drain { .. } | Self::Status => None,
        }
    }
}

/// What the redirector answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Done, and durable.
    Done,
    /// How many requests of the account still run; 0 means that none is left.
    Running {
        /// The number.
        running: u64,
    },
    /// All that is known.
    Status {
        /// The process and its accounts.
        overview: Box<Overview>,
    },
    /// Refused or failed; nothing changed.
    Fault {
        /// Why.
        fault: Fault,
    },
}

/// An instant, by the wall clock and by a clock that never jumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
    /// Nanoseconds of `CLOCK_MONOTONIC`, comparable only on one server and one boot.
    pub monotonic_ns: u64,
}

/// The redirector as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overview {
    /// When this process started. Counters and measurements begin then.
    pub started: Stamp,
    /// Connections open now.
    pub connections: u64,
    /// Those among them that did not come from other servers.
    #[serde(default)]
    pub visitors: u64,
    /// The servers that may use the peer ingress.
    pub peers: BTreeSet<IpAddr>,
    /// Every routed account.
    pub accounts: Vec<AccountStatus>,
}

/// What the redirector knows of one account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountStatus {
    /// The account.
    pub account: AccountName,
    /// Its epoch.
    pub epoch: Epoch,
    /// Where its requests go.
    pub state: RouteState,
    /// How many domains it has.
    pub domains: u32,
    /// What has been counted and measured.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// Counters and measurements of one account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Requests and TLS tunnels passed on, held ones included.
    pub passed: u64,
    /// Those running now.
    pub running: u64,
    /// Those held now.
    pub held_now: u64,
    /// Bytes kept for those held now.
    pub held_bytes: u64,
    /// Those held since the last hold began.
    pub held_total: u64,
    /// Those refused since then: beyond the hold limit, or no target reached.
    pub refused_total: u64,
    /// Those ended by the redirector since then because the grace of the hold was over.
    pub ended_total: u64,
    /// The first request held or refused since the last hold began.
    pub first_held_at: Option<Stamp>,
    /// The first byte of an answer to a request passed on after that hold was released. The outage
    /// is the time between the two; none was noticed while `first_held_at` is absent.
    pub first_answered_at: Option<Stamp>,
}

impl Traffic {
    /// The outage of the last hold, once it is over.
    pub fn outage(&self) -> Option<Duration> {
        let (from, to) = (self.first_held_at?, self.first_answered_at?);
        Some(Duration::from_nanos(to.monotonic_ns.saturating_sub(from.monotonic_ns)))
    }
}

/// Reads one message; `None` at the end of the stream.
///
/// # Errors
/// A line longer than [`MAX_LINE`], one that is not such a message, or a failed read.
pub async fn read_message<T: serde::de::DeserializeOwned>(
    reader: &mut (impl AsyncBufRead + Unpin),
) -> Result<Option<T>, Fault> {
    let mut line = Vec::new();
    let mut limited = reader.take(MAX_LINE as u64 + 1);
    limited
        .read_until(b'\n', &mut line)
        .await
        .map_err(|e| Fault::io("the control connection of the redirector failed", &e))?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(if line.len() > MAX_LINE {
            Fault::permanent(format!("a control message is longer than {MAX_LINE} bytes"))
        } else {
            Fault::transient("the control connection of the redirector ended within a message")
        });
    }
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(|e| Fault::permanent("a control message cannot be read").caused_by(&e))
}

/// Writes one message.
///
/// # Errors
/// A message longer than [`MAX_LINE`], or a failed write.
pub async fn write_message<T: Serialize>(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), Fault> {
    let mut line = serde_json::to_vec(message)
        .map_err(|e| Fault::bug("a control message cannot be written as JSON").caused_by(&e))?;
    line.push(b'\n');
    if line.len() > MAX_LINE {
        return Err(Fault::permanent(format!(
            "a control message of {} bytes is longer than {MAX_LINE}",
            line.len()
        )));
    }
    writer
        .write_all(&line)
        .await
        .map_err(|e| Fault::io("the control connection of the redirector failed", &e))
}
