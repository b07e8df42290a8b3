//! The route table as data: which account is where under which epoch, and which change of it is
//! allowed. It is pure: no clock, no disk, no connection.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ferry_failpoints::{Promise, broken};
use ferry_proto::Fault;
use ferry_proto::ids::{AccountName, Epoch};
use serde::{Deserialize, Serialize};

use crate::control::{
    AccountRoute, HoldLimits, MAX_ACCOUNTS, MAX_DOMAINS, MAX_PEERS, RouteState, Target, Upstream,
};

/// The whole table, as it is kept on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routes {
    /// Servers that may use the peer ingress.
    pub peers: BTreeSet<IpAddr>,
    /// The accounts.
    pub accounts: BTreeMap<AccountName, Standing>,
}

/// One account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Its route.
    pub route: AccountRoute,
    /// The server that was last said to serve it, which cannot change under one epoch.
    pub owner: Option<Owner>,
}

/// Who serves an account under an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The epoch.
    pub epoch: Epoch,
    /// Whether it is this server.
    pub here: bool,
}

impl Routes {
    /// Adds or replaces an account.
    ///
    /// # Errors
    /// Too many accounts or domains, a domain of another account, an upstream that cannot be, an
    /// older epoch, or another owner under the same epoch.
    pub fn set_route(&mut self, route: AccountRoute) -> Result<(), Fault> {
        let account = &route.account;
        if !self.accounts.contains_key(account) && self.accounts.len() >= MAX_ACCOUNTS {
            return Err(Fault::permanent(format!(
                "the redirector routes {MAX_ACCOUNTS} accounts already; {account} is one too many"
            ))
            .remedy("finalize moves that are done"));
        }
        if route.domains.len() > MAX_DOMAINS {
            return Err(Fault::permanent(format!(
                "account {account} has {} domains; the redirector takes {MAX_DOMAINS}",
                route.domains.len()
            )));
        }
        let original = [route.upstream.http, route.upstream.https].contains(&Upstream::Original);
        if route.upstream.proxy_protocol && original {
            return Err(Fault::permanent(format!(
                "account {account}: a web server's shared address takes no PROXY protocol header"
            ))
            .remedy("name addresses of its own for both HTTP and HTTPS"));
        }
        let before = self.accounts.get(account);
        if before.is_none_or(|standing| standing.route.domains != route.domains) {
            self.check_domains(&route)?;
        }
        let owner = next_owner(before, account, route.epoch, &route.state)?;
        self.accounts.insert(account.clone(), Standing { route, owner });
        Ok(())
    }

    /// A domain leads to one account only.
    fn check_domains(&self, route: &AccountRoute) -> Result<(), Fault> {
        let others = self.accounts.values().filter(|s| s.route.account != route.account);
        for other in others {
            if let Some(domain) = other.route.domains.intersection(&route.domains).next() {
                return Err(Fault::precondition(format!(
                    "domain {domain} of account {} is routed for account {}",
                    route.account, other.route.account
                ))
                .remedy("remove the domain from one of the two accounts"));
            }
        }
        Ok(())
    }

    /// Changes where an account's requests go.
    ///
    /// # Errors
    /// An unknown account, an older epoch, or another owner under the same epoch.
    pub fn set_state(
        &mut self,
        account: &AccountName,
        epoch: Epoch,
        state: RouteState,
    ) -> Result<(), Fault> {
        let standing = self.accounts.get(account).ok_or_else(|| unknown(account))?;
        let owner = next_owner(Some(standing), account, epoch, &state)?;
        let route = AccountRoute { epoch, state, ..standing.route.clone() };
        self.accounts.insert(account.clone(), Standing { route, owner });
        Ok(())
    }

    /// Holds an account.
    ///
    /// # Errors
    /// As [`Routes::set_state`].
    pub fn hold(
        &mut self,
        account: &AccountName,
        epoch: Epoch,
        limits: HoldLimits,
    ) -> Result<(), Fault> {
        self.set_state(account, epoch, RouteState::Hold { limits })
    }

    /// Ends holding.
    ///
    /// # Errors
    /// As [`Routes::set_state`].
    pub fn release(
        &mut self,
        account: &AccountName,
        epoch: Epoch,
        to: Target,
    ) -> Result<(), Fault> {
        self.set_state(account, epoch, to.into())
    }

    /// Forgets an account.
    ///
    /// # Errors
    /// An older epoch.
    pub fn remove(&mut self, account: &AccountName, epoch: Epoch) -> Result<(), Fault> {
        if let Some(standing) = self.accounts.get(account) {
            not_older(account, standing.route.epoch, epoch)?;
            self.accounts.remove(account);
        }
        Ok(())
    }

    /// Replaces the peers.
    ///
    /// # Errors
    /// Too many.
    pub fn set_peers(&mut self, peers: BTreeSet<IpAddr>) -> Result<(), Fault> {
        if peers.len() > MAX_PEERS {
            return Err(Fault::permanent(format!(
                "{} peers are more than the {MAX_PEERS} that the redirector takes",
                peers.len()
            )));
        }
        self.peers = peers.into_iter().map(|ip| ip.to_canonical()).collect();
        Ok(())
    }
}

/// The fault for an account without a route.
pub fn unknown(account: &AccountName) -> Fault {
    Fault::precondition(format!("account {account} has no route in the redirector"))
        .remedy("arm the account first")
}

fn not_older(account: &AccountName, standing: Epoch, asked: Epoch) -> Result<(), Fault> {
    if asked < standing && !broken(Promise::Epoch) {
        return Err(Fault::fenced(format!(
            "account {account} is at epoch {standing} in the redirector; epoch {asked} is older"
        ))
        .remedy("read the account's epoch from the server that serves it now"));
    }
    Ok(())
}

/// Who serves the account after the change.
fn next_owner(
    before: Option<&Standing>,
    account: &AccountName,
    epoch: Epoch,
    state: &RouteState,
) -> Result<Option<Owner>, Fault> {
    if let Some(standing) = before {
        not_older(account, standing.route.epoch, epoch)?;
    }
    let owner = before.and_then(|standing| standing.owner);
    let here = match state {
        RouteState::Hold { .. } => return Ok(owner),
        RouteState::Local => true,
        RouteState::Remote { .. } => false,
    };
    match owner {
        Some(owner) if owner.epoch == epoch && owner.here != here && !broken(Promise::Epoch) => {
            Err(Fault::fenced(format!(
                "account {account} cannot change its server within epoch {epoch}"
            ))
            .remedy("raise the epoch with each change of the server"))
        }
        _ => Ok(Some(Owner { epoch, here })),
    }
}

/// Finds the account of a host name.
#[derive(Debug, Clone, Default)]
pub struct Index {
    exact: HashMap<String, Arc<AccountName>>,
    below: HashMap<String, Arc<AccountName>>,
}

impl Index {
    /// The index of a table.
    pub fn of(routes: &Routes) -> Self {
        let mut index = Self::default();
        for standing in routes.accounts.values() {
            let account = Arc::new(standing.route.account.clone());
            for domain in &standing.route.domains {
                let (map, name) = match domain.as_str().strip_prefix("*.") {
                    Some(parent) => (&mut index.below, parent),
                    None => (&mut index.exact, domain.as_str()),
                };
                map.insert(name.to_owned(), Arc::clone(&account));
            }
        }
        index
    }

    /// The account of a host: the exact name, else the longest `*.` name above it.
    pub fn account(&self, host: &str) -> Option<&Arc<AccountName>> {
        self.exact.get(host).or_else(|| {
            let mut rest = host;
            while let Some((_, parent)) = rest.split_once('.') {
                if let Some(account) = self.below.get(parent) {
                    return Some(account);
                }
                rest = parent;
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferry_proto::FaultClass;

    fn route(account: &str, epoch: u64, domains: &[&str], state: RouteState) -> AccountRoute {
        AccountRoute {
            account: account.parse().unwrap(),
            epoch: Epoch(epoch),
            domains: domains.iter().map(|d| d.parse().unwrap()).collect(),
            state,
            upstream: crate::control::LocalUpstream::default(),
        }
    }

    fn remote() -> RouteState {
        RouteState::Remote { peer: "192.0.2.9:7481".parse().unwrap() }
    }

    fn hold() -> RouteState {
        RouteState::Hold { limits: HoldLimits::default() }
    }

    #[test]
    fn an_older_epoch_is_refused_and_changes_nothing() {
        let mut routes = Routes::default();
        routes.set_route(route("alice", 5, &["a.example"], RouteState::Local)).unwrap();
        let before = routes.clone();
        let alice = "alice".parse().unwrap();
        let refused = [
            routes.set_route(route("alice", 4, &[], RouteState::Local)),
            routes.hold(&alice, Epoch(4), HoldLimits::default()),
            routes.release(&alice, Epoch(4), Target::Local),
            routes.remove(&alice, Epoch(4)),
        ];
        for result in refused {
            assert_eq!(result.unwrap_err().class, FaultClass::Fenced);
        }
        assert_eq!(routes, before);
        routes.remove(&alice, Epoch(5)).unwrap();
        routes.remove(&alice, Epoch(0)).unwrap();
        assert!(routes.accounts.is_empty());
    }

    #[test]
    fn one_epoch_has_one_owner() {
        let alice = "alice".parse().unwrap();
        let mut routes = Routes::default();
        routes.set_route(route("alice", 1, &["a.example"], RouteState::Local)).unwrap();
        routes.set_state(&alice, Epoch(1), hold()).unwrap();
        let fault = routes.set_state(&alice, Epoch(1), remote()).unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced);
        routes.set_state(&alice, Epoch(2), remote()).unwrap();
        routes.set_state(&alice, Epoch(2), remote()).unwrap();
        assert!(routes.set_state(&alice, Epoch(2), RouteState::Local).is_err());
        routes.set_state(&alice, Epoch(3), hold()).unwrap();
        routes.set_state(&alice, Epoch(3), RouteState::Local).unwrap();
    }

    #[test]
    fn a_domain_leads_to_one_account() {
        let mut routes = Routes::default();
        routes.set_route(route("alice", 1, &["a.example"], RouteState::Local)).unwrap();
        let fault = routes.set_route(route("bob", 1, &["a.example"], hold())).unwrap_err();
        assert!(fault.message.contains("alice"), "{fault}");
        routes.set_route(route("alice", 1, &["b.example"], RouteState::Local)).unwrap();
        routes.set_route(route("bob", 1, &["a.example"], hold())).unwrap();
    }

    #[test]
    fn the_closest_name_wins() {
        let mut routes = Routes::default();
        let domains = ["example.org", "*.example.org"];
        routes.set_route(route("alice", 1, &domains, RouteState::Local)).unwrap();
        routes.set_route(route("bob", 1, &["*.b.example.org"], hold())).unwrap();
        routes.set_route(route("carol", 1, &["c.b.example.org"], hold())).unwrap();
        let index = Index::of(&routes);
        let of = |host: &str| index.account(host).map(|a| a.as_str().to_owned());
        assert_eq!(of("example.org").as_deref(), Some("alice"));
        assert_eq!(of("x.y.example.org").as_deref(), Some("alice"));
        assert_eq!(of("x.b.example.org").as_deref(), Some("bob"));
        assert_eq!(of("c.b.example.org").as_deref(), Some("carol"));
        assert_eq!(of("org"), None);
        assert_eq!(of("notexample.org"), None);
        assert_eq!(of(""), None);
    }
}
