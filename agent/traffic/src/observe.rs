//! What of the redirection stands on this server, seen in the kernel and in the redirector's own file;
//! and taking it away. It must not know which accounts are on the move: a caller compares.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::artefact::{Artefact, Kind, Observed};

use crate::client::Redirector;
use crate::config::Config;
use crate::control::AccountRoute;
use crate::firewall::{self, Rules, TABLE};
use crate::redirector::routes::Routes;
use crate::redirector::store::Store;

/// How long visitors on their way through the redirector may take to end.
const GENTLY: Duration = Duration::from_secs(5);

/// The redirector of a server, as it stands on disk and as it answers.
#[derive(Debug, Clone)]
pub struct Redirection {
    state_dir: PathBuf,
    redirector: Redirector,
}

impl Redirection {
    /// Of the redirector that `config` configures and that answers at `redirector`.
    ///
    /// # Errors
    /// The configuration is not valid.
    pub fn of(config: &Path, redirector: Redirector) -> Result<Self, Fault> {
        Ok(Self { state_dir: Config::load(config)?.state_dir, redirector })
    }

    fn routes(&self) -> Result<Routes, Fault> {
        Store::in_directory(&self.state_dir).load()
    }

    /// Where each account's requests go, whether the redirector runs or not.
    ///
    /// # Errors
    /// The redirector's file cannot be read.
    pub fn account_routes(&self) -> Result<Vec<AccountRoute>, Fault> {
        Ok(self.routes()?.accounts.into_values().map(|standing| standing.route).collect())
    }

    /// All that stands of the redirection. Changes nothing.
    pub async fn observe(&self) -> Observed {
        let mut seen = Observed::default();
        seen.take(self.in_kernel().await);
        seen.take(self.in_store());
        seen
    }

    async fn in_kernel(&self) -> Result<Vec<Artefact>, Fault> {
        let standing = firewall::standing().await?;
        let lets_go = standing.table == Some(false);
        if lets_go && self.redirector.overview().await.is_ok_and(|o| o.visitors > 0) {
            // It redirects nobody any more; those that it has redirected would lose their connections.
            return Ok(Vec::new());
        }
        let table = standing.table.map(|_| Artefact::new(Kind::Firewall, place_of_table()));
        let routing = standing.routing.iter().map(|what| Artefact::new(Kind::Routing, what));
        Ok(table.into_iter().chain(routing).collect())
    }

    fn in_store(&self) -> Result<Vec<Artefact>, Fault> {
        let routes = self.routes()?;
        let accounts = routes.accounts.keys();
        let mut found: Vec<Artefact> =
            accounts.map(|a| Artefact::new(Kind::Route, a).of(a.as_str())).collect();
        found.extend(routes.peers.iter().map(|peer| Artefact::new(Kind::Peer, peer)));
        found.extend(
            Store::in_directory(&self.state_dir)
                .unfinished()
                .iter()
                .map(|path| Artefact::new(Kind::Temporary, path.display())),
        );
        Ok(found)
    }

    /// Takes away what [`Self::observe`] has found. May be repeated.
    ///
    /// # Errors
    /// What the kernel or the redirector refuse; Precondition if the redirector is needed and is not there.
    pub async fn remove(&self, artefact: &Artefact) -> Result<(), Fault> {
        match artefact.kind {
            Kind::Firewall | Kind::Routing => self.disarm().await,
            Kind::Route => {
                let routes = self.routes()?;
                let standing = routes
                    .accounts
                    .values()
                    .find(|s| artefact.account.as_ref() == Some(&s.route.account));
                let Some(route) = standing.map(|s| &s.route) else { return Ok(()) };
                self.asked()?.remove_route(&route.account, route.epoch).await
            }
            Kind::Peer => {
                let mut peers: BTreeSet<IpAddr> = self.routes()?.peers;
                peers.retain(|peer| peer.to_string() != artefact.place);
                self.asked()?.set_peers(peers).await
            }
            Kind::Temporary => Store::in_directory(&self.state_dir).remove_unfinished(),
            _ => Err(Fault::bug(format!("{artefact} is none of the redirection's"))),
        }
    }

    async fn disarm(&self) -> Result<(), Fault> {
        match firewall::redirector_uid() {
            Ok(uid) => firewall::withdraw(&Rules::usual(uid), &self.redirector, GENTLY).await,
            // Without its user there is no redirector, and nobody on his way through it.
            Err(_) => firewall::disarm().await,
        }
    }

    /// Routes are the redirector's own: nobody else writes its file.
    fn asked(&self) -> Result<&Redirector, Fault> {
        if self.redirector.is_here() {
            return Ok(&self.redirector);
        }
        Err(Fault::precondition("the redirector is not there to forget a route")
            .remedy("start it: systemctl start ferry-redirector-control.socket"))
    }
}

fn place_of_table() -> String {
    format!("nftables table inet {TABLE}")
}
