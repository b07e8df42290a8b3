//! What the parts of the agent share: who it is, its ledger, and the one place where an account's
//! changes are put in order.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferry_databases::{Availability, Engine, MariadbConfig, PostgresqlConfig};
use ferry_files::Limits;
use ferry_host::Layout;
use ferry_proto::account::EngineKind;
use ferry_proto::channel::{Connections, Identity, Revocations};
use ferry_proto::grant::GrantKey;
use ferry_proto::ids::{AccountName, JobId, ServerName};
use ferry_proto::{Fault, FaultClass};
use ferry_traffic::client::Redirector;
use ferry_traffic::mail::{Mail, MailConfig};
use tokio::sync::{OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::journals::Journals;
use crate::ledger::{Account, Ledger};

/// What redirector and firewall are.
#[derive(Debug, Default)]
pub struct Routing {
    /// They may not be what the ledger says: they have refused something, and that is to be tried again.
    pub is_behind: bool,
}

/// The agent.
pub struct Agent {
    /// What may be set, as it was when the agent began.
    pub config: Config,
    /// How fast accounts' files may be copied while they are served.
    pub limits: Limits,
    /// Which server this is.
    pub name: ServerName,
    /// Key and certificate.
    pub identity: Arc<Identity>,
    /// What the controller signs grants with.
    pub grant_key: GrantKey,
    /// Live connections, and what is revoked.
    pub connections: Arc<Connections>,
    /// This host's files and programs.
    pub layout: Layout,
    /// The redirector's control socket.
    pub redirector: Redirector,
    /// Postfix and Dovecot.
    pub mail: Mail,
    /// Where peers reach this agent, once known.
    pub peer_address: watch::Sender<Option<SocketAddr>>,
    /// Rung when an account's standing changed.
    pub changed: watch::Sender<u64>,
    /// Held while redirector and firewall are made what the ledger says: two at once could
    /// put an older picture over a newer one.
    pub routing: tokio::sync::Mutex<Routing>,
    /// The mail services may have hooks that no account needs: they are to be taken out.
    pub hooks_stay: AtomicBool,
    /// The change journals of trees that are copied from here or to here.
    pub journals: Journals,
    ledger: Arc<Mutex<Ledger>>,
    accounts: Mutex<HashMap<AccountName, Arc<PerAccount>>>,
}

/// What only lives while this process does, per account.
struct PerAccount {
    /// Whoever changes how the account stands holds it.
    order: Arc<tokio::sync::Mutex<()>>,
    /// Cancelled when what runs for the account must stop; then replaced.
    activity: Mutex<CancellationToken>,
    /// Whoever copies the account's files ahead holds it.
    copying: Arc<tokio::sync::Mutex<()>>,
    /// Whoever tells the account's target of a commit holds it.
    delivery: Arc<tokio::sync::Mutex<()>>,
    /// Whoever does what follows an open holds it.
    following: Arc<tokio::sync::Mutex<()>>,
    /// The last job of which it was told what is approved.
    told: Mutex<Option<JobId>>,
}

impl Agent {
    /// An agent of `config`, as `identity`, with `ledger`.
    ///
    /// # Errors
    /// If the identity is no agent's, or the ledger's revocations cannot be read.
    pub fn new(
        config: Config,
        identity: Arc<Identity>,
        grant_key: GrantKey,
        connections: Arc<Connections>,
        ledger: Ledger,
        redirector: Redirector,
    ) -> Result<Arc<Self>, Fault> {
        let name = identity.party().server().cloned().ok_or_else(|| {
            Fault::permanent("this identity is not an agent's").remedy("enrol this server again")
        })?;
        let agent = Arc::new(Self {
            peer_address: watch::channel(config.peer_address).0,
            limits: Limits::new(config.copy.rates()),
            config,
            name,
            identity,
            grant_key,
            connections,
            layout: Layout::system(),
            redirector,
            mail: Mail::new(MailConfig::default()),
            changed: watch::channel(0).0,
            routing: tokio::sync::Mutex::default(),
            hooks_stay: AtomicBool::default(),
            journals: Journals::default(),
            ledger: Arc::new(Mutex::new(ledger)),
            accounts: Mutex::default(),
        });
        agent.apply_revocations()?;
        Ok(agent)
    }

    /// Looks into the ledger.
    pub fn look<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.ledger())
    }

    /// Writes to the ledger, on a thread that may wait for the disk.
    ///
    /// # Errors
    /// Of class Transient, whatever the cause: it is not recorded, or not known to be.
    pub async fn write(
        &self,
        write: impl FnOnce(&mut Ledger) -> Result<(), Fault> + Send + 'static,
    ) -> Result<(), Fault> {
        let ledger = self.ledger.clone();
        let (written, grown) = blocking(move || {
            let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
            let before = ledger.len();
            let written = write(&mut ledger);
            Ok((written, ledger.len() != before))
        })
        .await
        .unwrap_or_else(|fault| (Err(fault), false));
        // Not for a write that changed nothing: who waits for changes would try again at once.
        if grown {
            self.changed.send_modify(|n| *n += 1);
        }
        written.map_err(|fault| Fault { class: FaultClass::Transient, ..fault })
    }

    /// How an account stands, if the ledger knows it.
    pub fn account(&self, name: &AccountName) -> Option<Account> {
        self.look(|l| l.account(name).cloned())
    }

    /// Records how an account stands.
    ///
    /// # Errors
    /// If it is not recorded.
    pub async fn set_account(
        &self,
        name: &AccountName,
        account: Option<Account>,
    ) -> Result<(), Fault> {
        let (of, journaled) = (name.clone(), account.as_ref().is_some_and(|a| a.is_copied()));
        Box::pin(self.write(move |l| l.set_account(&of, account))).await?;
        if !journaled {
            self.journals.forget(name);
        }
        Ok(())
    }

    /// The right to change how an account stands; held until dropped. Whoever has it reads how the
    /// account stands only then: what he writes is refused if a change that had seemed to fail has been
    /// found recorded since.
    pub async fn order(&self, name: &AccountName) -> OwnedMutexGuard<()> {
        let order = self.per_account(name).order.clone().lock_owned().await;
        self.ledger().decide_anew(name);
        order
    }

    /// The right to copy the account's files ahead: one that was stopped has it until it has ended.
    pub async fn copying(&self, name: &AccountName) -> OwnedMutexGuard<()> {
        let copying = self.per_account(name).copying.clone();
        copying.lock_owned().await
    }

    /// The right to tell the account's target of a commit; none if somebody does already.
    pub fn delivery(&self, name: &AccountName) -> Option<OwnedMutexGuard<()>> {
        self.per_account(name).delivery.clone().try_lock_owned().ok()
    }

    /// The right to do what follows an account's open. Taken before the account's order, if both are.
    pub async fn following(&self, name: &AccountName) -> OwnedMutexGuard<()> {
        let following = self.per_account(name).following.clone();
        following.lock_owned().await
    }

    /// Cancelled when what runs for the account must stop.
    pub fn activity(&self, name: &AccountName) -> CancellationToken {
        let per = self.per_account(name);
        let activity = per.activity.lock().unwrap_or_else(PoisonError::into_inner);
        activity.child_token()
    }

    /// Whether nothing has been told yet of what is approved for this job of the account.
    pub fn is_untold(&self, name: &AccountName, job: JobId) -> bool {
        let per = self.per_account(name);
        let mut told = per.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.replace(job) != Some(job)
    }

    /// Stops what runs for the account: copies, dumps, loads, comparisons.
    pub fn stop_activity(&self, name: &AccountName) {
        let per = self.per_account(name);
        let mut activity = per.activity.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *activity).cancel();
    }

    /// Takes the ledger's revocations into force, and cuts connections that they forbid.
    ///
    /// # Errors
    /// If a serial in the ledger is none.
    pub fn apply_revocations(&self) -> Result<(), Fault> {
        let revocations = self.look(|l| {
            let (serials, servers) = l.revocations();
            let serials = serials
                .iter()
                .map(|s| s.parse())
                .collect::<Result<_, _>>()
                .map_err(|_| Fault::bug("the ledger holds a serial that is none"))?;
            Ok::<_, Fault>(Revocations { servers: servers.iter().cloned().collect(), serials })
        })?;
        self.connections.set_revocations(revocations);
        Ok(())
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Each change is one assignment: a panic leaves the state before or after it.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn per_account(&self, name: &AccountName) -> Arc<PerAccount> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts
            .entry(name.clone())
            .or_insert_with(|| {
                Arc::new(PerAccount {
                    order: Arc::default(),
                    activity: Mutex::default(),
                    copying: Arc::default(),
                    delivery: Arc::default(),
                    following: Arc::default(),
                    told: Mutex::default(),
                })
            })
            .clone()
    }
}

/// The database engine of a kind, as Debian installs it.
pub fn engine(kind: EngineKind) -> Box<dyn Engine> {
    match kind {
        EngineKind::Mariadb => ferry_databases::mariadb(MariadbConfig::default()),
        EngineKind::Postgresql => ferry_databases::postgresql(PostgresqlConfig::default()),
    }
}

/// How long a database server may take to say that it is there. One that starts or was stopped may take a
/// connection and say nothing for minutes.
const ANSWERS: Duration = Duration::from_secs(5);

/// Sees that a database server answers, and soon.
///
/// # Errors
/// Transient if it does not, precondition if it is not installed.
pub async fn answers(kind: EngineKind) -> Result<(), Fault> {
    match tokio::time::timeout(ANSWERS, engine(kind).available()).await {
        Ok(Availability::Running(_)) => Ok(()),
        Ok(Availability::Down(fault)) => Err(fault),
        Ok(Availability::Absent) => {
            Err(Fault::precondition(format!("{kind} is not installed")).remedy("install it"))
        }
        Err(_) => {
            let seconds = ANSWERS.as_secs();
            Err(Fault::transient(format!("{kind} does not answer within {seconds} s"))
                .remedy("see that it runs; what waits for it is tried again until it does"))
        }
    }
}

/// Both kinds.
pub const ENGINES: [EngineKind; 2] = [EngineKind::Mariadb, EngineKind::Postgresql];

/// Runs something that blocks where blocking is allowed.
///
/// # Errors
/// The closure's; of class Bug if it panicked.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_cancelled() => {
            Err(Fault::new(FaultClass::Cancelled, "the agent is stopping"))
        }
        Err(error) => Err(Fault::bug("a part of the agent panicked").caused_by(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Standing;
    use crate::ledger::failing::{EIO, on_failing};
    use crate::testing::authority::Authority;
    use crate::testing::{a_move, account, agent_with, before_the_reboot, fenced, moved};

    #[tokio::test]
    async fn who_took_the_order_before_a_commit_was_found_does_not_write_over_it() {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let (ledger, kernel) = on_failing();
        let agent = agent_with(&authority, dir.path(), ledger);
        let (of, name) = (a_move(), "shop".parse().unwrap());
        let stood = account("shop", &fenced(&of, &before_the_reboot()));
        agent.set_account(&name, Some(stood)).await.unwrap();
        kernel.lock().unwrap().syncs = [Err(EIO), Err(EIO)].into();
        let committed = account("shop", &moved(&of));
        agent.set_account(&name, Some(committed)).await.unwrap_err();
        let order = agent.order(&name).await;
        let stale = agent.account(&name);
        // Of another account: the disk is read again for it, and nothing is in doubt any more.
        let other = account("other", &Standing::Serving);
        agent.set_account(&"other".parse().unwrap(), Some(other)).await.unwrap();
        let is_moved = || {
            let account = agent.account(&name).unwrap();
            matches!(account.standing, Standing::Moved { .. })
        };
        assert!(is_moved());
        for _ in 0..2 {
            let fault = agent.set_account(&name, stale.clone()).await.unwrap_err();
            assert_eq!(fault.class, FaultClass::Transient, "{fault}");
            assert!(is_moved());
        }
        drop(order);
        // Whoever takes it now reads what was found.
        let _order = agent.order(&name).await;
        agent.set_account(&name, agent.account(&name)).await.unwrap();
    }
}
