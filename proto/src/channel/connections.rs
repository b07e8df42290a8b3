//! Who is connected now, and who may not be: the registry of live connections, their limits, and
//! the revocations. Cutting an agent off is done here, for connections that stand and for those
//! to come. It must not know what is said over a connection, nor keep anything on disk.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::certificate::Serial;
use super::source::Source;
use super::stream::Caller;
use crate::Fault;
use crate::ids::ServerName;

/// Certificates that are no longer accepted although their time is not over.
///
/// Revoking a server names it and lists the serials of its certificates. When the name is
/// enrolled anew the name is taken off the list and the serials stay until they expire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocations {
    /// Servers of which no certificate is accepted.
    #[serde(default)]
    pub servers: BTreeSet<ServerName>,
    /// Single certificates.
    #[serde(default)]
    pub serials: BTreeSet<Serial>,
}

impl Revocations {
    /// Whether this certificate of this server is revoked.
    pub fn contains(&self, server: &ServerName, serial: &Serial) -> bool {
        self.servers.contains(server) || self.serials.contains(serial)
    }
}

/// How much a listener bears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Handshakes at a time, without those of the loopback. One more ends the oldest of the
    /// address that has most, so that whoever is quick finds a place among those who stall.
    pub handshakes: usize,
    /// Handshakes at a time from one address (one more ends its oldest), and anonymous connections
    /// too (one more is refused), so that one address cannot use up what is there for all.
    pub per_address: usize,
    /// Anonymous connections at a time, without those of the loopback.
    pub anonymous: usize,
    /// The same of the loopback: places that are kept for the operator on the server itself.
    pub loopback: usize,
    /// Connections at a time of one agent.
    pub per_agent: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// How long an anonymous connection may last, whatever is said on it, unless it is
    /// [kept](super::Connection::keep). An enrolment is one call, of a second or two: this is for
    /// the slowest line.
    pub anonymous_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshakes: 512,
            per_address: 64,
            anonymous: 512,
            loopback: 64,
            per_agent: 64,
            handshake_timeout: Duration::from_secs(10),
            anonymous_age: Duration::from_secs(60),
        }
    }
}

/// The live connections of one process and the revocations that they obey. Share one among all
/// listeners and outgoing peer connections of a process.
#[derive(Default)]
pub struct Connections {
    limits: Limits,
    revocations: ArcSwap<Revocations>,
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    next: u64,
    agents: HashMap<ServerName, HashMap<u64, Connected>>,
    anonymous: Anonymous,
}

/// The anonymous connections.
#[derive(Default)]
struct Anonymous {
    of: HashMap<Source, usize>,
    /// Of all sources but the loopback.
    strangers: usize,
}

impl Anonymous {
    fn enter(&mut self, source: Source, limits: &Limits) -> Result<(), Fault> {
        let count = self.of.get(&source).copied().unwrap_or_default();
        let limit = match source {
            Source::Loopback => limits.loopback,
            Source::Network(_) if self.strangers >= limits.anonymous => {
                return Err(Fault::transient("there are too many anonymous connections"));
            }
            Source::Network(_) => limits.per_address,
        };
        if count >= limit {
            return Err(Fault::transient(format!(
                "{source} has {count} anonymous connections already"
            )));
        }
        self.of.insert(source, count + 1);
        self.strangers += usize::from(source != Source::Loopback);
        Ok(())
    }

    fn leave(&mut self, source: Source) {
        let Some(count) = self.of.get_mut(&source) else { return };
        *count -= 1;
        if *count == 0 {
            self.of.remove(&source);
        }
        self.strangers -= usize::from(source != Source::Loopback);
    }
}

struct Connected {
    serial: Serial,
    cut: CancellationToken,
}

impl Connections {
    /// None yet, nobody revoked.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, ..Self::default() })
    }

    /// Replaces the whole list of revocations and cuts the connections of whoever is on it.
    /// Returns how many were cut. From then on every read and write on them fails.
    pub fn set_revocations(&self, revocations: Revocations) -> usize {
        // First the list, then the connections: one that is being made in between is registered
        // and then looks at the list, so it cannot slip through.
        let revocations = Arc::new(revocations);
        self.revocations.store(Arc::clone(&revocations));
        self.cut_where(|server, serial| revocations.contains(server, serial))
    }

    /// Cuts the connections of one server's agent; it may connect again unless it is revoked.
    /// Returns how many were cut.
    pub fn cut(&self, server: &ServerName) -> usize {
        self.cut_where(|other, _| other == server)
    }

    /// How many connections a server's agent has.
    pub fn count(&self, server: &ServerName) -> usize {
        self.lock().agents.get(server).map_or(0, HashMap::len)
    }

    /// Whether this certificate of this server is revoked.
    pub fn is_revoked(&self, server: &ServerName, serial: &Serial) -> bool {
        self.revocations.load().contains(server, serial)
    }

    /// Whether no certificate of this server is accepted.
    pub fn is_cut_off(&self, server: &ServerName) -> bool {
        self.revocations.load().servers.contains(server)
    }

    /// The limits that it was made with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    fn cut_where(&self, revoked: impl Fn(&ServerName, &Serial) -> bool) -> usize {
        let live = self.lock();
        let mut cut = 0;
        for (server, connections) in &live.agents {
            for connection in connections.values() {
                if revoked(server, &connection.serial) {
                    connection.cut.cancel();
                    cut += 1;
                }
            }
        }
        cut
    }

    /// Enters a connection whose handshake is done. An anonymous one takes a place of its source.
    pub(crate) fn admit(
        self: &Arc<Self>,
        caller: &Caller,
        source: Source,
    ) -> Result<Registration, Fault> {
        let cut = CancellationToken::new();
        let mut live = self.lock();
        live.next += 1;
        let id = live.next;
        let kind = match caller {
            Caller::Anonymous => {
                live.anonymous.enter(source, &self.limits)?;
                Kind::Anonymous(source)
            }
            Caller::Agent { name, serial, .. } => {
                let connections = live.agents.entry(name.clone()).or_default();
                if connections.len() >= self.limits.per_agent {
                    return Err(Fault::transient(format!(
                        "the agent of {name} has {} connections already",
                        connections.len()
                    )));
                }
                connections.insert(id, Connected { serial: serial.clone(), cut: cut.clone() });
                Kind::Agent { name: name.clone(), id }
            }
        };
        drop(live);
        // From here on the registration's drop undoes what was entered.
        let registration = Registration {
            connections: Arc::clone(self),
            cut,
            kept: CancellationToken::new(),
            kind,
        };
        match caller {
            Caller::Agent { name, serial, .. } if self.is_revoked(name, serial) => {
                Err(Fault::permanent(format!("the certificate of {name} is revoked")))
            }
            _ => Ok(registration),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        // Every change is a single insertion, removal or count: nothing is half done in there.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let live = self.lock();
        f.debug_struct("Connections")
            .field("agents", &live.agents.len())
            .field("strangers", &live.anonymous.strangers)
            .finish_non_exhaustive()
    }
}

/// A connection's entry; taken out when dropped.
pub(crate) struct Registration {
    connections: Arc<Connections>,
    cut: CancellationToken,
    kept: CancellationToken,
    kind: Kind,
}

enum Kind {
    Anonymous(Source),
    Agent { name: ServerName, id: u64 },
}

impl Registration {
    /// Cancelled when the connection is cut.
    pub(crate) fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Cancelled when the connection's age is limited no longer: it is kept, or over.
    pub(crate) fn kept(&self) -> &CancellationToken {
        &self.kept
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.kept.cancel();
        let mut live = self.connections.lock();
        match &self.kind {
            Kind::Anonymous(source) => live.anonymous.leave(*source),
            Kind::Agent { name, id } => {
                if let Some(connections) = live.agents.get_mut(name) {
                    connections.remove(id);
                    if connections.is_empty() {
                        live.agents.remove(name);
                    }
                }
            }
        }
    }
}
