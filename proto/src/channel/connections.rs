//! Who is connected now, and who may not be: the registry of live connections, their limits, and
//! the revocations. Cutting an agent off is done here, for connections that stand and for those
//! to come. It must not know what is said over a connection, nor keep anything on disk.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::certificate::Serial;
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
    /// Handshakes at a time.
    pub handshakes: usize,
    /// Handshakes and anonymous connections at a time from one address, so that one address
    /// cannot use up what is there for all.
    pub per_address: usize,
    /// Anonymous connections at a time.
    pub anonymous: usize,
    /// Connections at a time of one agent.
    pub per_agent: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshakes: 512,
            per_address: 64,
            anonymous: 512,
            per_agent: 64,
            handshake_timeout: Duration::from_secs(10),
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
    anonymous: usize,
    addresses: HashMap<IpAddr, usize>,
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

    /// Takes one of the places of an address.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<AddressSlot, Fault> {
        // An IPv6 host has a whole /64 to itself.
        let address = match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
            v4 @ IpAddr::V4(_) => v4,
        };
        let mut live = self.lock();
        let count = live.addresses.entry(address).or_default();
        if *count >= self.limits.per_address {
            return Err(Fault::transient(format!(
                "{address} has {count} unauthenticated connections already"
            )));
        }
        *count += 1;
        Ok(AddressSlot { connections: Arc::clone(self), address })
    }

    /// Enters a connection whose handshake is done. An anonymous one keeps its address's place.
    pub(crate) fn admit(
        self: &Arc<Self>,
        caller: &Caller,
        slot: Option<AddressSlot>,
    ) -> Result<Registration, Fault> {
        let cut = CancellationToken::new();
        let mut live = self.lock();
        live.next += 1;
        let id = live.next;
        let kind = match caller {
            Caller::Anonymous if live.anonymous >= self.limits.anonymous => {
                return Err(Fault::transient("there are too many anonymous connections"));
            }
            Caller::Anonymous => {
                live.anonymous += 1;
                Kind::Anonymous { _slot: slot }
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
        let registration = Registration { connections: Arc::clone(self), cut, kind };
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
            .field("anonymous", &live.anonymous)
            .finish_non_exhaustive()
    }
}

/// A place among those of one address; given back when dropped.
pub(crate) struct AddressSlot {
    connections: Arc<Connections>,
    address: IpAddr,
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        let mut live = self.connections.lock();
        if let Some(count) = live.addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                live.addresses.remove(&self.address);
            }
        }
    }
}

/// A connection's entry; taken out when dropped.
pub(crate) struct Registration {
    connections: Arc<Connections>,
    cut: CancellationToken,
    kind: Kind,
}

enum Kind {
    Anonymous { _slot: Option<AddressSlot> },
    Agent { name: ServerName, id: u64 },
}

impl Registration {
    /// Cancelled when the connection is cut.
    pub(crate) fn cut(&self) -> &CancellationToken {
        &self.cut
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut live = self.connections.lock();
        match &self.kind {
            Kind::Anonymous { .. } => live.anonymous -= 1,
            Kind::Agent { name, id } => {
                if let Some(connections) = live.agents.get_mut(name) {
                    connections.remove(id);
                    if connections.is_empty() {
                        live.agents.remove(name);
                    }
                }
            }
        }
        // The slot is dropped after this body, hence after the lock: they never nest.
    }
}
