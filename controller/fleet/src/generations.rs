//! Whether agents have obeyed a later controller than this one: then this one's store was restored from
//! an old backup, and what it would command has been overtaken. It listens, and commands nothing, until
//! support resolves it (`ferry-controller adopt`).

use std::collections::BTreeMap;

use ferry_proto::Fault;
use ferry_proto::ids::ServerName;
use tokio::sync::watch;

use crate::Fleet;

/// An agent that has obeyed a later controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Later {
    /// Its server.
    pub server: ServerName,
    /// The generation that it has obeyed.
    pub obeyed: u64,
}

/// What agents say of controllers' generations.
#[derive(Debug)]
pub(crate) struct Generations {
    later: watch::Sender<Option<Later>>,
    /// Who has reported accounts since this process began, and what each has obeyed.
    reported: watch::Sender<BTreeMap<ServerName, u64>>,
}

impl Default for Generations {
    fn default() -> Self {
        Self { later: watch::channel(None).0, reported: watch::channel(BTreeMap::new()).0 }
    }
}

impl Generations {
    pub(crate) fn heard(&self, own: u64, server: &ServerName, obeyed: u64) {
        if obeyed <= own {
            return;
        }
        tracing::error!(%server, obeyed, own, "the agent has obeyed a later controller: this one commands nothing");
        self.later.send_if_modified(|later| {
            let is_more = later.as_ref().is_none_or(|known| known.obeyed < obeyed);
            if is_more {
                *later = Some(Later { server: server.clone(), obeyed });
            }
            is_more
        });
    }

    pub(crate) fn reported(&self, server: &ServerName, obeyed: Option<u64>) {
        if let Some(obeyed) = obeyed {
            self.reported.send_modify(|reported| {
                reported.insert(server.clone(), obeyed);
            });
        }
    }
}

impl Fleet {
    /// Waits until an agent says that it has obeyed a later controller.
    pub async fn is_overtaken(&self) -> Later {
        let mut later = self.generations.later.subscribe();
        loop {
            if let Some(later) = later.borrow_and_update().clone() {
                return later;
            }
            if later.changed().await.is_err() {
                // Its sender is ours, and lives as long.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Who has reported accounts since this process began, with the generation that each has obeyed.
    pub fn reports(&self) -> watch::Receiver<BTreeMap<ServerName, u64>> {
        self.generations.reported.subscribe()
    }

    /// A fault if an agent has obeyed a later controller.
    ///
    /// # Errors
    /// That, with what to do.
    pub fn require_not_overtaken(&self) -> Result<(), Fault> {
        match &*self.generations.later.borrow() {
            None => Ok(()),
            Some(later) => Err(self.overtaken_by(later)),
        }
    }

    /// What is said of a controller that has been overtaken.
    pub fn overtaken_by(&self, later: &Later) -> Fault {
        Fault::precondition(format!(
            "this controller has been overtaken and commands nothing: it is of generation {}, the agent of {} has obeyed generation {}",
            self.generation, later.server, later.obeyed
        ))
        .remedy(
            "its store was restored from an old backup, or another controller was adopted: use that one; only if no other runs: ferry-controller adopt (see /usr/share/doc/ferry-controller/what-if/controller-restored.md)",
        )
    }
}
