//! The agents as the controller sees them: who is enrolled, who is connected, what they were
//! asked. It knows how to speak to an agent, not why.
//!
//! * [`authority`]: the certificate authority, tokens and grants.
//! * [`enrolment`]: tokens into certificates, and their renewal.
//! * [`generations`]: whether agents have obeyed a later controller than this one.
//! * [`session`]: one agent's stream.
//! * [`commands`]: commands under way, which outlive sessions.

pub mod authority;
pub mod commands;
pub mod enrolment;
pub mod generations;
pub mod session;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::channel::{Connections, Revocations};
use ferry_proto::ids::ServerName;
use ferry_store::Store;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::authority::Authority;
use crate::commands::Pending;
use crate::generations::Generations;

/// Milliseconds since 1970 by this host's clock.
pub fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// Does `work` to its end, also if its caller hangs up meanwhile: a call's future is dropped then, and what
/// it has made durable would wait for a restart.
///
/// # Errors
/// The work's own, or of class Bug if it panicked.
pub async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Fault>> + Send + 'static,
) -> Result<T, Fault> {
    let ended = tokio::spawn(work).await;
    ended.unwrap_or_else(|e| Err(Fault::bug("what was asked for broke off").caused_by(&e)))
}

/// What may be set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long an agent's certificate is good for.
    pub certificate_lifetime: Duration,
    /// How long an enrolment token is good for unless told.
    pub token_lifetime: Duration,
}

/// All agents.
pub struct Fleet {
    store: Arc<dyn Store>,
    authority: Arc<Authority>,
    connections: Arc<Connections>,
    settings: Settings,
    generation: u64,
    live: Mutex<Live>,
    /// Rung when an agent has connected or was cut off.
    came_or_cut: watch::Sender<()>,
    generations: Generations,
}

/// What is known only while this process runs. One lock; never held across an await.
#[derive(Default)]
struct Live {
    sessions: HashMap<ServerName, Session>,
    pending: HashMap<ferry_proto::ids::CommandId, Pending>,
    next_session: u64,
}

/// A connected agent.
struct Session {
    /// Tells a session from the one that followed it.
    number: u64,
    next_command: u64,
    /// The highest controller generation that the agent has obeyed.
    obeyed: u64,
    out: mpsc::Sender<ferry_proto::v1::SessionResponse>,
    /// Ends the stream: its own task holds a sender too, so that dropping `out` does not.
    end: CancellationToken,
}

impl Drop for Session {
    /// Whoever forgets a session ends it: the agent must notice, and connect again.
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Fleet {
    /// The fleet that `store` knows.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn open(
        store: Arc<dyn Store>,
        authority: Arc<Authority>,
        connections: Arc<Connections>,
        settings: Settings,
    ) -> Result<Arc<Self>, Fault> {
        let generation = store.generation().await?;
        let fleet = Arc::new(Self {
            store,
            authority,
            connections,
            settings,
            generation,
            live: Mutex::default(),
            came_or_cut: watch::Sender::default(),
            generations: Generations::default(),
        });
        fleet.apply_revocations().await?;
        Ok(fleet)
    }

    /// Whether the agent of `server` has a session now.
    pub fn is_connected(&self, server: &ServerName) -> bool {
        self.live().sessions.contains_key(server)
    }

    /// Whether `server` was cut off, and was not added again since.
    pub fn is_revoked(&self, server: &ServerName) -> bool {
        self.connections.is_cut_off(server)
    }

    /// Waits until the agent of `server` has a session, or cannot have one any more: it was cut off.
    pub async fn until_back_or_revoked(&self, server: &ServerName) {
        let mut rung = self.came_or_cut.subscribe();
        while !self.is_connected(server) && !self.is_revoked(server) {
            // Its sender is ours, and lives as long.
            if rung.changed().await.is_err() {
                return;
            }
        }
    }

    /// The authority.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// The controller's generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Cuts a server off: its certificate is no longer accepted, by the controller from now on, by
    /// its peers as soon as they hear. Returns whether it was connected.
    ///
    /// # Errors
    /// If there is no such server or the store fails; then nothing is changed.
    pub async fn revoke(self: &Arc<Self>, server: &ServerName) -> Result<bool, Fault> {
        let (fleet, server) = (self.clone(), server.clone());
        to_its_end(async move { fleet.cut_off(&server).await }).await
    }

    async fn cut_off(&self, server: &ServerName) -> Result<bool, Fault> {
        let was_connected = self.is_connected(server);
        self.store.revoke_server(server, now_ms()).await?;
        self.apply_revocations().await?;
        self.connections.cut(server);
        self.live().sessions.remove(server);
        self.generations.forget(server);
        self.came_or_cut.send_replace(());
        self.tell_revocations().await?;
        Ok(was_connected)
    }

    /// Tells every connected agent whom it must not trust, and whom it may again.
    async fn tell_revocations(&self) -> Result<(), Fault> {
        let message = self.revocations_message().await?;
        let mut live = self.live();
        // A session that does not read is ended: its agent hears it when it connects again.
        live.sessions.retain(|_, session| session.out.try_send(message.clone()).is_ok());
        Ok(())
    }

    async fn apply_revocations(&self) -> Result<(), Fault> {
        let (serials, servers) = self.store.revocations().await?;
        let serials = serials
            .iter()
            .map(|s| s.parse())
            .collect::<Result<_, _>>()
            .map_err(|_| Fault::bug("the store has a serial that is none"))?;
        self.connections
            .set_revocations(Revocations { servers: servers.into_iter().collect(), serials });
        Ok(())
    }

    async fn revocations_message(&self) -> Result<ferry_proto::v1::SessionResponse, Fault> {
        let (serials, servers) = self.store.revocations().await?;
        let servers = servers.into_iter().map(String::from).collect();
        Ok(session::response(ferry_proto::v1::session_response::Body::Revocations(
            ferry_proto::v1::Revocations { serials, servers },
        )))
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        // A panic while it was held would have left it consistent: each change is one insert or
        // remove.
        self.live.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
