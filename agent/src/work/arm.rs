//! The redirector in front of an account, and away again; and what firewall and redirector must be
//! for all that stands in the ledger.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::command::Receipt;
use ferry_proto::ids::Epoch;
use ferry_traffic::control::{AccountRoute, HoldLimits, LocalUpstream, RouteState, Upstream};
use ferry_traffic::{config, firewall};

use crate::agent::Agent;
use crate::ledger::{Account, Standing};
use crate::work::record::here;
use crate::work::{Job, done};

/// How long connections may take to end when the redirector steps aside for the last account.
const STEP_ASIDE: Duration = Duration::from_secs(60);
/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_millis(500);

/// Puts the redirector in front of the account; traffic still goes to the local services.
///
/// # Errors
/// If this server does not serve the account, or the redirector or the firewall refuse.
pub async fn arm(job: &Job) -> Result<Receipt, Fault> {
    let agent = &job.agent;
    let _order = agent.order(&job.of.account).await;
    let mut account = here(agent, &job.of.account).await?;
    match &account.standing {
        Standing::Serving => {}
        Standing::Armed { of } if of.job == job.of.job => {}
        _ => return Err(job.stands_otherwise(&account, "served and free to move")),
    }
    if account.epoch != job.of.epoch {
        return Err(job.stands_otherwise(&account, &format!("at epoch {}", job.of.epoch)));
    }
    account.standing = Standing::Armed { of: job.of.clone() };
    let has_mail = !account.definition.mail.is_empty();
    job.set(account).await?;
    reconcile(agent).await?;
    if has_mail {
        // The mail services learn where Ferry's tables are now, not while visitors wait.
        agent.mail.install_hooks().await?;
    }
    Ok(done("the redirector stands in front"))
}

/// Undo of [`arm`].
///
/// # Errors
/// If the redirector or the firewall refuse.
pub async fn disarm(job: &Job) -> Result<Receipt, Fault> {
    let agent = &job.agent;
    let _order = agent.order(&job.of.account).await;
    let Some(mut account) = agent.account(&job.of.account) else {
        return Ok(done("nothing stood"));
    };
    match &account.standing {
        Standing::Armed { of } if of.job == job.of.job => {}
        Standing::Serving => return Ok(done("nothing stood")),
        _ => return Err(job.stands_otherwise(&account, "armed by this move")),
    }
    account.standing = Standing::Serving;
    let forget = account.made.is_none() && account.epoch == Epoch::default();
    // An account that never moved is the inventory's again.
    agent.set_account(&job.of.account, (!forget).then_some(account)).await?;
    reconcile(agent).await?;
    Ok(done("the redirector is out of the way"))
}

/// Makes redirector and firewall what the ledger says: after a change, and when the agent starts.
///
/// # Errors
/// If the redirector or the firewall refuse.
pub async fn reconcile(agent: &Arc<Agent>) -> Result<(), Fault> {
    let _routing = agent.routing.lock().await;
    let accounts: Vec<Account> = agent.look(|l| l.accounts().values().cloned().collect());
    let known: Vec<_> = if accounts.is_empty() && !socket_exists() {
        Vec::new()
    } else {
        agent.redirector.status().await?
    };
    let mut peers = BTreeSet::new();
    let mut in_front = false;
    for account in &accounts {
        let standing = seen_by_visitors(&account.standing);
        peers.extend(peer(standing));
        in_front |= is_in_front(account);
        if let Some(route) = route(account) {
            agent.redirector.set_route(route).await?;
        }
    }
    for status in known {
        let account = accounts.iter().find(|a| a.definition.name == status.account);
        if account.is_none_or(|a| route(a).is_none() && !is_opening(a)) {
            agent.redirector.remove_route(&status.account, status.epoch).await?;
        }
    }
    if socket_exists() {
        peers.extend(serving_peers(&accounts));
        agent.redirector.set_peers(peers).await?;
    }
    if in_front {
        return firewall::arm(&rules()?).await;
    }
    if !socket_exists() {
        return firewall::disarm().await;
    }
    // New connections no longer come; nobody waits for those that do.
    firewall::stand_down(&rules()?).await?;
    tokio::spawn(step_aside(agent.clone()));
    Ok(())
}

/// Takes the firewall's rules away once the visitors on their way through the redirector are gone:
/// the kernel stops translating running connections with the last rule.
async fn step_aside(agent: Arc<Agent>) {
    let patience = tokio::time::Instant::now() + STEP_ASIDE;
    while tokio::time::Instant::now() < patience
        && agent.redirector.overview().await.is_ok_and(|o| o.visitors > 0)
    {
        tokio::time::sleep(LOOK).await;
    }
    let _routing = agent.routing.lock().await;
    let in_front = agent.look(|l| l.accounts().values().any(is_in_front));
    if in_front {
        return; // Another account was armed meanwhile.
    }
    if let Err(fault) = firewall::disarm().await {
        tracing::warn!("the firewall's rules were not taken away: {fault}");
    }
}

/// Whether visitors of the account must come through the redirector.
fn is_in_front(account: &Account) -> bool {
    matches!(
        seen_by_visitors(&account.standing),
        Standing::Armed { .. } | Standing::Fenced { .. } | Standing::Moved { .. }
    )
}

/// While an account comes back, visitors are passed on as before.
fn seen_by_visitors(standing: &Standing) -> &Standing {
    match standing {
        Standing::Receiving { before: Some(before), .. }
        | Standing::Opening { before: Some(before), .. } => before,
        other => other,
    }
}

/// Between the commit elsewhere and the open here the route stays as it is.
fn is_opening(account: &Account) -> bool {
    matches!(account.standing, Standing::Opening { .. })
}

/// What the firewall redirects: everything but the redirector itself, and our own looks at the web
/// server, which must not be held by the fence that they prove.
fn rules() -> Result<firewall::Rules, Fault> {
    let usual = firewall::Rules::usual(firewall::redirector_uid()?);
    Ok(firewall::Rules { passing_mark: Some(ferry_host::PROBE_MARK), ..usual })
}

fn socket_exists() -> bool {
    std::path::Path::new(ferry_traffic::control::CONTROL_SOCKET).exists()
}

/// Where an account's requests go, if the redirector must know it.
fn route(account: &Account) -> Option<AccountRoute> {
    if is_opening(account) {
        return None;
    }
    let state = match seen_by_visitors(&account.standing) {
        Standing::Armed { .. } => RouteState::Local,
        // Came here by a move: the old server passes visitors on to the ingress.
        Standing::Serving if account.epoch > Epoch::default() => RouteState::Local,
        // Taken back so far that its sites are open.
        Standing::Fenced { open: true, .. } => RouteState::Local,
        Standing::Fenced { .. } => RouteState::Hold { limits: HoldLimits::default() },
        Standing::Moved { released_unix_ms: None, .. } => {
            RouteState::Hold { limits: HoldLimits::default() }
        }
        Standing::Moved { of, .. } => RouteState::Remote { peer: ingress(of.target_peer.ip()) },
        Standing::Serving
        | Standing::Receiving { .. }
        | Standing::Opening { .. }
        | Standing::Finalized { .. } => return None,
    };
    Some(AccountRoute {
        account: account.definition.name.clone(),
        epoch: account.epoch,
        domains: account.definition.domains().cloned().collect(),
        state,
        upstream: upstream(account),
    })
}

/// The peer ingress of the redirector at `address`.
pub fn ingress(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, config::PEER_PORT)
}

/// How the own web server is reached: sites that Ferry rendered have listeners for the redirector;
/// others are reached where the visitor wanted, or over the loopback if he came by the ingress.
fn upstream(account: &Account) -> LocalUpstream {
    let loopback = |port| Upstream::Addr(SocketAddr::from(([127, 0, 0, 1], port)));
    if account.made.as_ref().is_some_and(|m| m.sites.is_some()) {
        let ports = ferry_host::layout::RedirectorPorts::default();
        return LocalUpstream {
            http: loopback(ports.http),
            https: loopback(ports.https),
            proxy_protocol: true,
        };
    }
    if account.epoch > Epoch::default() {
        return LocalUpstream { http: loopback(80), https: loopback(443), proxy_protocol: false };
    }
    LocalUpstream::default()
}

/// The other server of a move that stands.
fn peer(standing: &Standing) -> Option<IpAddr> {
    match standing {
        Standing::Armed { of } | Standing::Fenced { of, .. } | Standing::Moved { of, .. } => {
            Some(of.target_peer.ip())
        }
        _ => None,
    }
}

/// Servers whose accounts came here: their redirectors pass visitors on.
fn serving_peers(accounts: &[Account]) -> impl Iterator<Item = IpAddr> + '_ {
    accounts.iter().filter_map(|a| a.came_from)
}
