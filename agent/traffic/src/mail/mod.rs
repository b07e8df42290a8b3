//! Mail of accounts that move. While an account is fenced, its domains' mail is deferred and nothing
//! is delivered or read; at the target Postfix and Dovecot open for it; the old server then passes its
//! mail on.
//!
//! What is decided is kept per account below [`MailConfig::state_dir`], and the tables that Postfix
//! and Dovecot read are made from all of it together. So every operation may be repeated after a crash
//! at any point, and what stands outlives this process, a restart of the services and a reboot: the
//! services deny by their own configuration. The services are told once, by a small hook in each,
//! where the tables are.
//!
//! Mail that a server has accepted is never lost: during a fence it waits in Postfix's queue, and
//! after the move it is passed on from there. A connection made before the fence may still hand a
//! message over; it joins that queue.
//!
//! Knows nothing of moves, epochs or deadlines, and does not look for other processes below the home:
//! a caller says what is to stand.

mod again;
mod deliverers;
mod dovecot;
mod gaps;
mod inspect;
mod maps;
mod observe;
mod postfix;
mod procs;
mod queue;
mod record;
mod run;
mod spec;
mod standing;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::ids::{AccountName, DomainName};

pub use again::Shut;
pub use inspect::{Finding, Inspection, Observed, Service, Severity};
pub use record::{MailRecord, MailboxPassword, PasswordHash};
pub use spec::{MailSpec, Mailbox};
pub use standing::MailState;

use dovecot::Dovecot;
use postfix::Postfix;
use standing::{Act, Basis, Gate, Standing};
use store::{Lock, Store};

/// The service in master.cf that delivers into mailboxes opened by Ferry.
const MAILBOX_SERVICE: &str = "ferry-mailbox";
/// The service in master.cf that passes mail on.
const PASS_ON_SERVICE: &str = "ferry-relay";

/// Where everything is. The default is Debian's layout; a test has private instances.
#[derive(Debug, Clone)]
pub struct MailConfig {
    /// Standings, and the tables that Postfix reads.
    pub state_dir: PathBuf,
    /// The tables that Dovecot reads, password hashes among them: a directory that Dovecot's own user
    /// can reach.
    pub dovecot_dir: PathBuf,
    /// The hook in Dovecot's configuration; it must be read before every other passdb and userdb.
    pub dovecot_snippet: PathBuf,
    /// Dovecot's main configuration file, if it is not the standard one.
    pub dovecot_config: Option<PathBuf>,
    /// Postfix's configuration directory, if it is not the standard one.
    pub postfix_config_dir: Option<PathBuf>,
    /// The programs.
    pub programs: Programs,
    /// The port that mail is passed on to.
    pub pass_on_port: u16,
    /// How long one program may run.
    pub command_timeout: Duration,
    /// How long a fence waits for running deliveries, and for sessions.
    pub drain_timeout: Duration,
}

/// The programs of Postfix and Dovecot, looked up in PATH if they are names.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `postfix`
    pub postfix: PathBuf,
    /// `postconf`
    pub postconf: PathBuf,
    /// `postqueue`
    pub postqueue: PathBuf,
    /// `postmap`
    pub postmap: PathBuf,
    /// `dovecot`
    pub dovecot: PathBuf,
    /// `doveadm`
    pub doveadm: PathBuf,
    /// `doveconf`
    pub doveconf: PathBuf,
}

impl Default for MailConfig {
    fn default() -> Self {
        Self {
            state_dir: "/etc/ferry/mail".into(),
            dovecot_dir: "/etc/dovecot/ferry".into(),
            dovecot_snippet: "/etc/dovecot/conf.d/05-ferry.conf".into(),
            dovecot_config: None,
            postfix_config_dir: None,
            programs: Programs::default(),
            pass_on_port: 25,
            command_timeout: Duration::from_secs(20),
            drain_timeout: Duration::from_secs(20),
        }
    }
}

impl Default for Programs {
    fn default() -> Self {
        Self {
            postfix: "/usr/sbin/postfix".into(),
            postconf: "/usr/sbin/postconf".into(),
            postqueue: "/usr/sbin/postqueue".into(),
            postmap: "/usr/sbin/postmap".into(),
            dovecot: "/usr/sbin/dovecot".into(),
            doveadm: "/usr/bin/doveadm".into(),
            doveconf: "/usr/bin/doveconf".into(),
        }
    }
}

/// Both services, for one operation.
struct Services<'a> {
    postfix: Postfix<'a>,
    dovecot: Dovecot<'a>,
}

/// The mail of this server's accounts.
#[derive(Debug, Clone)]
pub struct Mail {
    config: MailConfig,
}

impl Mail {
    /// On this server.
    pub fn new(config: MailConfig) -> Self {
        Self { config }
    }

    fn postfix(&self) -> Postfix<'_> {
        Postfix::new(&self.config)
    }

    fn dovecot(&self) -> Dovecot<'_> {
        Dovecot::new(&self.config)
    }

    fn services(&self) -> Services<'_> {
        Services { postfix: self.postfix(), dovecot: self.dovecot() }
    }

    fn store(&self) -> Store {
        Store { dir: self.config.state_dir.clone() }
    }

    /// Defers the account's mail with 4xx, stops its delivery, ends its sessions and refuses logins
    /// for the time being. Returns when no delivery to it runs any more.
    ///
    /// # Errors
    /// Precondition, when it is not served here. Transient, when a delivery does not end: the fence
    /// stands then, and may be repeated or undone.
    pub async fn fence(&self, spec: &MailSpec) -> Result<(), Fault> {
        self.change(spec, Act::Fence).await
    }

    /// Undoes [`Mail::fence`], and has deferred mail delivered. Needs no free disk.
    ///
    /// # Errors
    /// When the services cannot be told.
    pub async fn unfence(&self, spec: &MailSpec) -> Result<(), Fault> {
        self.change(spec, Act::Unfence).await
    }

    /// Prepares the account's mail at the target, closed: mailboxes and passwords are known, logins
    /// are refused for the time being, and Postfix does not claim the domain yet.
    ///
    /// # Errors
    /// Precondition, when it is served here already, or another account has one of its domains.
    pub async fn provision_closed(
        &self,
        spec: &MailSpec,
        record: &MailRecord,
    ) -> Result<(), Fault> {
        self.change(spec, Act::Provision(record.clone())).await
    }

    /// Looks whether the account's mail could be opened here: both services are there and take Ferry's
    /// hooks, and what stands so far can be read and written. Opens nothing.
    ///
    /// # Errors
    /// Precondition, when a service is absent or does not take its hook.
    pub async fn can_open(&self, spec: &MailSpec) -> Result<(), Fault> {
        if spec.is_empty() { Ok(()) } else { self.install_hooks().await }
    }

    /// Serves the account's mail here. Where the provider's own configuration served it before it was
    /// passed on, that configuration serves it again, and `record` is not used.
    ///
    /// # Errors
    /// Precondition, when it is fenced here, or another account has one of its domains.
    pub async fn open_here(&self, spec: &MailSpec, record: &MailRecord) -> Result<(), Fault> {
        self.change(spec, Act::Open(record.clone())).await
    }

    /// Undoes [`Mail::provision_closed`] and [`Mail::open_here`]. The Maildirs stay, and so does what
    /// the provider's own configuration serves.
    ///
    /// # Errors
    /// When the services cannot be told.
    pub async fn close_here(&self, spec: &MailSpec) -> Result<(), Fault> {
        self.change(spec, Act::Close).await
    }

    /// Passes the account's mail on to the server that serves it now, what waits in the queue
    /// included. Logins stay refused here for the time being.
    ///
    /// # Errors
    /// Precondition, when it is only prepared here.
    pub async fn pass_on(&self, spec: &MailSpec, next_hop: IpAddr) -> Result<(), Fault> {
        self.change(spec, Act::PassOn(next_hop)).await
    }

    /// Ends a fence or the passing on: the account's mail is served here as it was before.
    ///
    /// # Errors
    /// When the services cannot be told.
    pub async fn release(&self, spec: &MailSpec) -> Result<(), Fault> {
        self.change(spec, Act::Release).await
    }

    /// Puts the hooks into Postfix and Dovecot, where they are not there already.
    ///
    /// # Errors
    /// Precondition, when a service is absent or does not take its hook.
    pub async fn install_hooks(&self) -> Result<(), Fault> {
        let (lock, standings) = self.begin().await?;
        self.hook(&self.services(), &lock, &standings).await
    }

    /// Whether something of the hooks is there although no account's mail stands on it.
    ///
    /// # Errors
    /// When it cannot be read what accounts' mail stands on.
    pub async fn has_idle_hooks(&self) -> Result<bool, Fault> {
        if !self.store().exists() && !self.is_hooked() {
            return Ok(false);
        }
        Ok(!self.load().await?.values().any(Standing::needs_tables))
    }

    /// Takes the hooks out again, and all that Ferry wrote for mail; with `force` also what accounts'
    /// mail stands on.
    ///
    /// # Errors
    /// Precondition, when an account's mail still stands on them and not `force`.
    pub async fn remove_hooks(&self, force: bool) -> Result<(), Fault> {
        if !self.store().exists() && !self.is_hooked() {
            return Ok(());
        }
        let lock = self.lock().await?;
        let standings = self.load().await?;
        let needs = standings.iter().find(|(_, s)| s.needs_tables());
        if let Some((account, standing)) = needs.filter(|_| !force) {
            return Err(Fault::precondition(format!(
                "the mail of account {account} is {}, which Postfix and Dovecot know by Ferry's hooks",
                MailState::of(Some(standing))
            ))
            .remedy(
                "move the account away first; or give up what its mail stands on here: ferry-agent \
                 unhook --force",
            ));
        }
        let (postfix, dovecot) = (self.postfix(), self.dovecot());
        dovecot.remove(&lock).await?;
        if postfix.is_hooked() && postfix.version().await?.is_some() {
            postfix.remove().await?;
            postfix.reload().await?;
        }
        postfix.remove_tables(&lock).await?;
        for account in standings.keys() {
            self.keep(&lock, account, None).await?;
        }
        Ok(())
    }

    /// Makes all that stands on this server so again: at boot, and after a service was reinstalled.
    ///
    /// # Errors
    /// When the services cannot be told.
    pub async fn apply(&self) -> Result<(), Fault> {
        if !self.store().exists() {
            return Ok(());
        }
        let (lock, standings) = self.begin().await?;
        self.make_so(&lock, &standings).await
    }

    async fn make_so(
        &self,
        lock: &Lock,
        standings: &BTreeMap<AccountName, Standing>,
    ) -> Result<(), Fault> {
        let services = self.services();
        if !standings.is_empty() {
            self.hook(&services, lock, standings).await?;
        }
        self.write(&services, lock, standings).await?;
        services.postfix.reload_hooked().await.map(drop)
    }

    async fn lock(&self) -> Result<Lock, Fault> {
        let store = self.store();
        store::blocking(move || {
            store.prepare()?;
            store.lock()
        })
        .await
    }

    async fn load(&self) -> Result<BTreeMap<AccountName, Standing>, Fault> {
        let store = self.store();
        store::blocking(move || store.load()).await
    }

    /// One act: decide, keep the decision, make it so, and prove it.
    async fn change(&self, spec: &MailSpec, act: Act) -> Result<(), Fault> {
        let undoes = matches!(act, Act::Unfence | Act::Close | Act::Release);
        if !self.store().exists() && (undoes || spec.is_empty()) {
            return Ok(());
        }
        let (lock, mut standings) = self.begin().await?;
        let now = standings.get(spec.account()).cloned();
        if spec.is_empty() && now.is_none() {
            return Ok(());
        }
        let next = standing::next(now.as_ref(), spec, &act)?;
        let services = self.services();
        if let Some(next) = &next {
            check_claims(&standings, next)?;
            self.hook(&services, &lock, &standings).await?;
        }
        // The decision comes before the deed: whatever happens now, a repetition or `apply` ends it.
        self.keep(&lock, spec.account(), next.clone()).await?;
        match next.clone() {
            Some(next) => standings.insert(spec.account().clone(), next),
            None => standings.remove(spec.account()),
        };
        if !self.is_hooked() {
            return Ok(());
        }
        self.write(&services, &lock, &standings).await?;
        // Domains that the definition no longer names stood until this act.
        let domains: BTreeSet<&DomainName> =
            now.iter().flat_map(|s| s.spec.domains()).chain(spec.domains()).collect();
        let proof = prove(&services.dovecot, spec, &domains, next.as_ref());
        // Both to their end: the one must not be cut short because the other failed.
        let (running, proven) = tokio::join!(services.postfix.reload_hooked(), proof);
        let (is_running, ()) = (running?, proven?);
        let gate = next.as_ref().map(|n| n.gate);
        if matches!(gate, Some(Gate::Fenced | Gate::PassedOn { .. })) {
            drain(&services, spec, &domains).await?;
        }
        if is_running && !matches!(gate, Some(Gate::Fenced | Gate::Closed)) {
            services.postfix.flush(&domains).await?;
        }
        match next.filter(|n| n.gate == Gate::Fenced) {
            Some(fenced) => self.stands(&lock, fenced).await,
            None => Ok(()),
        }
    }

    async fn keep(
        &self,
        lock: &Lock,
        account: &AccountName,
        standing: Option<Standing>,
    ) -> Result<(), Fault> {
        let (store, account) = (self.store(), account.clone());
        lock.change(move || match standing {
            Some(standing) => store.save(&account, &standing),
            None => store.remove(&account),
        })
        .await
    }

    fn is_hooked(&self) -> bool {
        self.postfix().is_hooked() || self.dovecot().is_hooked()
    }

    /// Both hooks, and tables of what stands so far for them to read.
    async fn hook(
        &self,
        services: &Services<'_>,
        lock: &Lock,
        standings: &BTreeMap<AccountName, Standing>,
    ) -> Result<(), Fault> {
        let Services { postfix, dovecot } = services;
        let absent = |what: &str| {
            Fault::precondition(format!("{what} is not installed on this server, but mail is here"))
                .remedy(format!("install {what}, or take the mail out of the account's definition"))
        };
        let version = dovecot.version().await?.ok_or_else(|| absent("Dovecot"))?;
        if postfix.version().await?.is_none() {
            return Err(absent("Postfix"));
        }
        self.write(services, lock, standings).await?;
        dovecot.install(lock, version).await?;
        if postfix.install(lock).await? {
            postfix.reload().await?;
        }
        Ok(())
    }

    /// Writes the tables of the services that are installed.
    async fn write(
        &self,
        services: &Services<'_>,
        lock: &Lock,
        standings: &BTreeMap<AccountName, Standing>,
    ) -> Result<(), Fault> {
        let Services { postfix, dovecot } = services;
        let tables = maps::render(standings, dovecot.dialect().await?, self.config.pass_on_port);
        if dovecot.version().await?.is_some() {
            dovecot.write(lock, &tables).await?;
        }
        let files = postfix.files(&tables);
        lock.change(move || files.iter().try_for_each(store::Wanted::write)).await
    }
}

/// Asks Dovecot itself whether logins are held or let through as they should be.
async fn prove(
    dovecot: &Dovecot<'_>,
    spec: &MailSpec,
    domains: &BTreeSet<&DomainName>,
    standing: Option<&Standing>,
) -> Result<(), Fault> {
    if dovecot.version().await?.is_none() || dovecot.master().await?.is_none() {
        return Ok(());
    }
    let ours = standing.is_some_and(Standing::needs_tables);
    for domain in domains {
        let named = spec.domains().any(|d| d == *domain);
        let held = named && standing.is_some_and(|s| s.gate != Gate::Open);
        match dovecot.prove_hold(domain.as_str(), held, ours).await {
            Ok(()) => {}
            // The provider's own user database may be out of order: that is not Ferry's hold.
            Err(fault) if !ours => tracing::warn!(%domain, %fault, "logins stay refused"),
            Err(fault) => return Err(fault),
        }
    }
    if !standing.is_some_and(|s| s.gate == Gate::Open && matches!(s.basis, Basis::Ferry(_))) {
        return Ok(());
    }
    // The tables were replaced as a whole, so one mailbox speaks for all.
    let Some(mailbox) = spec.mailboxes().last() else {
        return Ok(());
    };
    let (wanted, found) = (mailbox.maildir(), dovecot.home(&mailbox.address()).await?);
    if found.as_deref() == wanted.to_str() {
        return Ok(());
    }
    Err(Fault::precondition(format!(
        "Dovecot has {} for the mailbox {}, not {}",
        found.unwrap_or_else(|| "no place".to_owned()),
        mailbox.address(),
        wanted.display()
    ))
    .remedy("let Dovecot's user names keep their domain (auth_username_format)"))
}

/// Waits until nothing of these domains is delivered or read any more.
async fn drain(
    services: &Services<'_>,
    spec: &MailSpec,
    domains: &BTreeSet<&DomainName>,
) -> Result<(), Fault> {
    let Services { postfix, dovecot } = services;
    let roots = spec.roots();
    let deliveries = postfix.drain(domains, &roots);
    let sessions = async {
        if dovecot.version().await?.is_none() || dovecot.master().await?.is_none() {
            return Ok(());
        }
        dovecot.end_sessions(spec).await
    };
    tokio::try_join!(deliveries, sessions).map(drop)
}

/// A domain belongs to one account.
fn check_claims(standings: &BTreeMap<AccountName, Standing>, next: &Standing) -> Result<(), Fault> {
    for other in standings.values().filter(|s| s.spec.account() != next.spec.account()) {
        if let Some(domain) = next.spec.domains().find(|d| other.spec.domains().any(|o| o == *d)) {
            return Err(Fault::precondition(format!(
                "the mail domain {domain} of account {} belongs to account {} on this server",
                next.spec.account(),
                other.spec.account()
            ))
            .remedy("leave the domain in one account's definition"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ferry_proto::account::MailDomain;
    use nix::fcntl::{Flock, FlockArg};
    use nix::sys::stat::Mode;

    use super::*;

    fn mail(dir: &std::path::Path) -> Mail {
        let (state_dir, dovecot_snippet) = (dir.join("ferry"), dir.join("05-ferry.conf"));
        Mail::new(MailConfig { state_dir, dovecot_snippet, ..MailConfig::default() })
    }

    fn spec() -> MailSpec {
        let domain = MailDomain {
            domain: "shop.example".parse().unwrap(),
            root: "mail/shop.example".to_owned().try_into().unwrap(),
            mailboxes: vec!["alice".parse().unwrap()],
        };
        MailSpec::new("shop".parse().unwrap(), "/home/shop".into(), 1001, 1001, vec![domain])
            .unwrap()
    }

    fn is_locked(mail: &Mail) -> bool {
        let file = std::fs::File::open(mail.config.state_dir.join(".lock")).unwrap();
        Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err()
    }

    #[tokio::test]
    async fn a_fence_that_is_given_up_leaves_nothing_behind_the_release_that_follows() {
        let dir = tempfile::tempdir().unwrap();
        let (mail, spec) = (mail(dir.path()), spec());
        let lock = mail.lock().await.unwrap();
        // The thread that keeps the standing waits for the test here.
        let gate = mail.store().file(spec.account());
        nix::unistd::mkfifo(&gate, Mode::S_IRWXU).unwrap();
        let fenced = standing::next(None, &spec, &Act::Fence).unwrap();
        let (keeper, account) = (mail.clone(), spec.account().clone());
        let given_up = tokio::spawn(async move { keeper.keep(&lock, &account, fenced).await });
        let at_gate = move || std::fs::OpenOptions::new().write(true).open(gate);
        let gate = tokio::task::spawn_blocking(at_gate).await.unwrap().unwrap();
        given_up.abort();
        assert!(given_up.await.is_err_and(|e| e.is_cancelled()));

        assert!(is_locked(&mail), "the next operation would be overtaken");
        let next = mail.clone();
        let release = tokio::spawn(async move { next.release(&spec).await });
        drop(gate);
        release.await.unwrap().unwrap();
        assert!(mail.load().await.unwrap().is_empty());
        assert!(!is_locked(&mail));
    }
}
