//! The system as a doctor sees it: every part of it that Ferry changes, each seen by the crate that
//! changes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ferry_databases::{Availability, Engine};
use ferry_host::{Layout, accounts, observe};
use ferry_proto::Fault;
use ferry_proto::account::{Definition, EngineKind};
use ferry_proto::artefact::{Artefact, Kind, Observed};
use ferry_proto::ids::AccountName;
use ferry_traffic::client::Redirector;
use ferry_traffic::control::CONTROL_SOCKET;
use ferry_traffic::mail::{Mail, MailConfig};
use ferry_traffic::observe::Redirection;

use super::own;
use crate::agent::{ENGINES, blocking, engine};
use crate::config::Config;
use crate::ledger::{Account, Ledger, Said};

/// Where the redirector's configuration is.
const REDIRECTOR: &str = "/etc/ferry/redirector.toml";

/// Everything that is looked at.
pub struct World {
    /// The agent's state.
    pub state_directory: PathBuf,
    /// This host's files and programs.
    pub layout: Layout,
    /// Postfix and Dovecot.
    pub mail: Mail,
    /// Kernel and redirector; why not, if it cannot be looked at.
    pub redirection: Result<Redirection, Fault>,
    /// Databases.
    pub engines: Vec<Box<dyn Engine>>,
    /// The end of the path of the agent's control group.
    pub service: String,
    /// Accounts that are defined here.
    pub definitions: Vec<Definition>,
}

impl World {
    /// This server.
    pub fn of(config: &Config) -> Self {
        let inventory = accounts::load(&config.accounts_directory, &config.inventory_directory);
        Self {
            state_directory: config.state_directory.clone(),
            layout: Layout::system(),
            mail: Mail::new(MailConfig::default()),
            redirection: Redirection::of(Path::new(REDIRECTOR), Redirector::at(CONTROL_SOCKET)),
            service: own::SERVICE.to_owned(),
            engines: ENGINES.map(engine).into(),
            definitions: inventory.accounts.into_values().collect(),
        }
    }

    /// What the ledger says now. None yet: nothing.
    ///
    /// # Errors
    /// If it cannot be read or is damaged.
    pub fn said(&self) -> Result<Said, Fault> {
        let path = self.state_directory.join("ledger");
        if !self.state_directory.join("identity").exists() && !path.exists() {
            // Never enrolled: this server has promised nothing.
            return Ok(Said::default());
        }
        Ledger::read_at(&path)
    }

    /// Everything of Ferry's that is there. `known`: accounts of the ledger.
    pub async fn observe(&self, known: &BTreeMap<AccountName, Account>) -> Observed {
        let mut seen = Observed::default();
        let homes = self.homes(known);
        let (layout, state) = (self.layout.clone(), self.state_directory.clone());
        let service = self.service.clone();
        let host = blocking(move || {
            let mut seen = observe::observe(&layout, &homes);
            seen.take(own::files(&state));
            seen.take(own::children(&service));
            Ok(seen)
        });
        let names: Vec<AccountName> =
            self.defined(known).map(|definition| definition.name.clone()).collect();
        let traffic = async {
            match &self.redirection {
                Ok(redirection) => redirection.observe().await,
                Err(fault) => Observed { unseen: vec![fault.clone()], ..Observed::default() },
            }
        };
        let databases = async {
            let mut seen = Observed::default();
            for engine in &self.engines {
                match engine.available().await {
                    Availability::Absent => {}
                    Availability::Down(fault) => seen.unseen.push(fault),
                    Availability::Running(_) => seen.take(engine.observe(&names).await),
                }
            }
            seen
        };
        let (host, traffic, mail, databases) =
            tokio::join!(host, traffic, self.mail.observe(), databases);
        let host =
            host.unwrap_or_else(|fault| Observed { unseen: vec![fault], ..Observed::default() });
        seen.extend([host, traffic, mail, databases]);
        seen
    }

    /// The engine of a kind.
    ///
    /// # Errors
    /// If there is none of it here.
    pub fn engine(&self, kind: EngineKind) -> Result<&dyn Engine, Fault> {
        let engine = self.engines.iter().find(|e| e.kind() == kind);
        engine.map(AsRef::as_ref).ok_or_else(|| Fault::bug(format!("{kind} is not looked at")))
    }

    /// Removes an orphan.
    ///
    /// # Errors
    /// What removing failed of.
    pub async fn remove(&self, artefact: &Artefact) -> Result<(), Fault> {
        if let Some(kind) = artefact.engine {
            return self.engine(kind)?.remove(artefact).await;
        }
        match artefact.kind {
            Kind::Firewall | Kind::Routing | Kind::Route | Kind::Peer => {
                self.redirection.as_ref().map_err(Clone::clone)?.remove(artefact).await
            }
            Kind::MailStanding | Kind::MailTable | Kind::MailHook => {
                self.mail.remove(artefact).await
            }
            Kind::Temporary => self.remove_temporary(artefact).await,
            Kind::Copy => self.remove_own(artefact).await,
            Kind::Child => {
                let (service, artefact) = (self.service.clone(), artefact.clone());
                blocking(move || own::end(&service, &artefact)).await
            }
            _ => self.remove_of_host(artefact).await,
        }
    }

    /// Whoever finds it again removes it.
    async fn remove_temporary(&self, artefact: &Artefact) -> Result<(), Fault> {
        if self.mail.observe().await.artefacts.contains(artefact) {
            return self.mail.remove(artefact).await;
        }
        if let Ok(redirection) = &self.redirection
            && redirection.observe().await.artefacts.contains(artefact)
        {
            return redirection.remove(artefact).await;
        }
        self.remove_own(artefact).await?;
        self.remove_of_host(artefact).await
    }

    async fn remove_own(&self, artefact: &Artefact) -> Result<(), Fault> {
        let (state, artefact) = (self.state_directory.clone(), artefact.clone());
        blocking(move || own::remove(&state, &artefact)).await
    }

    async fn remove_of_host(&self, artefact: &Artefact) -> Result<(), Fault> {
        let known = self.said()?;
        let homes = self.homes(&known.accounts);
        let (layout, artefact) = (self.layout.clone(), artefact.clone());
        blocking(move || observe::remove(&layout, &homes, &artefact)).await
    }

    fn defined<'a>(
        &'a self,
        known: &'a BTreeMap<AccountName, Account>,
    ) -> impl Iterator<Item = &'a Definition> {
        let others = self.definitions.iter().filter(|d| !known.contains_key(&d.name));
        known.values().map(|account| &account.definition).chain(others)
    }

    fn homes(&self, known: &BTreeMap<AccountName, Account>) -> Vec<observe::Home> {
        let home = |d: &Definition| observe::Home {
            account: d.name.clone(),
            path: self.layout.path(&d.home),
        };
        self.defined(known).map(home).collect()
    }
}
