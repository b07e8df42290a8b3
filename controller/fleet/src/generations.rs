//! Whether agents have obeyed a later controller than this one: then this one's store was restored from
//! an old backup, and what it would command has been overtaken. It listens, and commands nothing, until
//! support resolves it (`ferry-controller adopt`).

use std::collections::BTreeMap;

use ferry_proto::Fault;
use ferry_proto::ids::ServerName;
use tokio::sync::watch;

use crate::Fleet;

/// An agent that names a generation further above this controller's is lying: one is adopted after a
/// disaster. What may be believed is so little that adopting beyond it uses no numbers up.
const MOST_ADOPTIONS: u64 = 1000;

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
    /// What each agent has obeyed that has obeyed a later controller than this one.
    later: watch::Sender<BTreeMap<ServerName, u64>>,
    /// Who has reported accounts since this process began, and what each has obeyed.
    reported: watch::Sender<BTreeMap<ServerName, u64>>,
}

impl Default for Generations {
    fn default() -> Self {
        let nobody = || watch::channel(BTreeMap::new()).0;
        Self { later: nobody(), reported: nobody() }
    }
}

/// The agent that has obeyed the latest controller.
fn latest(later: &BTreeMap<ServerName, u64>) -> Option<Later> {
    let (server, obeyed) = later.iter().max_by_key(|(_, obeyed)| **obeyed)?;
    Some(Later { server: server.clone(), obeyed: *obeyed })
}

impl Generations {
    /// Takes an agent's word on what it has obeyed.
    ///
    /// # Errors
    /// If no controller can have been of that generation: then it counts for nothing.
    pub(crate) fn heard(&self, own: u64, server: &ServerName, obeyed: u64) -> Result<(), Fault> {
        if obeyed <= own {
            return Ok(());
        }
        if obeyed - own > MOST_ADOPTIONS {
            return Err(Fault::permanent(format!(
                "the agent of {server} says that it has obeyed a controller of generation {obeyed}, and this one is of generation {own}: so many were never adopted"
            ))
            .remedy(format!("see who has its key; cut it off: ferry server revoke {server}")));
        }
        tracing::error!(%server, obeyed, own, "the agent has obeyed a later controller: this one commands nothing");
        self.later.send_modify(|later| {
            let known = later.entry(server.clone()).or_default();
            *known = obeyed.max(*known);
        });
        Ok(())
    }

    /// Forgets what an agent said that is cut off: it has no say any more.
    pub(crate) fn forget(&self, server: &ServerName) {
        self.later.send_if_modified(|later| later.remove(server).is_some());
        self.reported.send_if_modified(|reported| reported.remove(server).is_some());
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
            if let Some(later) = latest(&later.borrow_and_update()) {
                return later;
            }
            if later.changed().await.is_err() {
                // Its sender is ours, and lives as long.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until no agent says so any more: whoever did was cut off.
    pub async fn is_not_overtaken(&self) {
        let mut later = self.generations.later.subscribe();
        // Its sender is ours, and lives as long.
        let _ = later.wait_for(BTreeMap::is_empty).await;
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
        match latest(&self.generations.later.borrow()) {
            None => Ok(()),
            Some(later) => Err(self.overtaken_by(&later)),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn name(server: &str) -> ServerName {
        server.parse().unwrap()
    }

    #[test]
    fn a_word_counts_until_its_server_is_cut_off() {
        let generations = Generations::default();
        let heard = |server, obeyed| generations.heard(3, &name(server), obeyed).unwrap();
        let now = || latest(&generations.later.borrow()).map(|l| (l.server.to_string(), l.obeyed));
        heard("a", 3);
        assert_eq!(now(), None);
        heard("a", 5);
        heard("b", 7);
        heard("b", 6);
        generations.reported(&name("b"), Some(7));
        assert_eq!(now(), Some(("b".into(), 7)));
        generations.forget(&name("b"));
        assert_eq!(now(), Some(("a".into(), 5)));
        assert!(generations.reported.borrow().is_empty());
        generations.forget(&name("a"));
        assert_eq!(now(), None);
    }

    #[test]
    fn a_generation_that_none_can_have_is_not_believed() {
        let generations = Generations::default();
        for obeyed in [3 + MOST_ADOPTIONS + 1, u64::MAX] {
            let fault = generations.heard(3, &name("a"), obeyed).unwrap_err();
            assert!(fault.remedy.contains("ferry server revoke a"), "{fault}");
            assert!(generations.later.borrow().is_empty());
        }
        generations.heard(3, &name("a"), 3 + MOST_ADOPTIONS).unwrap();
        generations.heard(u64::MAX, &name("b"), u64::MAX).unwrap();
        assert_eq!(generations.later.borrow().len(), 1);
    }
}
