//! What the redirector must do for an account, by how it stands. Pure.

use std::net::{IpAddr, SocketAddr};

use ferry_failpoints::{Promise, broken};
use ferry_proto::ids::Epoch;
use ferry_traffic::config;
use ferry_traffic::control::{AccountRoute, HoldLimits, LocalUpstream, RouteState, Upstream};

use crate::ledger::{Account, Standing};

/// Whether visitors of the account must come through the redirector.
pub fn is_in_front(account: &Account) -> bool {
    matches!(
        seen_by_visitors(&account.standing),
        Standing::Armed { .. } | Standing::Fenced { .. } | Standing::Moved { .. }
    )
}

/// While an account comes back, visitors are passed on as before.
pub fn seen_by_visitors(standing: &Standing) -> &Standing {
    match standing {
        Standing::Receiving { before: Some(before), .. }
        | Standing::Opening { before: Some(before), .. }
        | Standing::Refused { before: Some(before), .. } => before,
        other => other,
    }
}

/// Between the commit elsewhere and the open here the route stays as it is.
pub fn is_opening(account: &Account) -> bool {
    matches!(account.standing, Standing::Opening { .. })
}

/// Where an account's requests go, if the redirector must know it; those that wait do so within
/// `limits`.
pub fn route(account: &Account, limits: HoldLimits) -> Option<AccountRoute> {
    if is_opening(account) {
        return None;
    }
    let state = match seen_by_visitors(&account.standing) {
        Standing::Armed { .. } => RouteState::Local,
        // Came here by a move: the old server passes visitors on to the ingress.
        Standing::Serving if account.epoch > Epoch::default() => RouteState::Local,
        // Taken back so far that its sites are open.
        Standing::Fenced { open: true, .. } => RouteState::Local,
        Standing::Fenced { .. } if broken(Promise::Fence) => RouteState::Local,
        Standing::Fenced { grace_ms, .. } => {
            let grace_ms = grace_ms.map_or(limits.grace_ms, u64::from);
            RouteState::Hold { limits: HoldLimits { grace_ms, ..limits } }
        }
        Standing::Moved { released_unix_ms: None, .. } => RouteState::Hold { limits },
        Standing::Moved { of, .. } => RouteState::Remote { peer: ingress(of.target_peer.ip()) },
        Standing::Serving
        | Standing::Receiving { .. }
        | Standing::Opening { .. }
        | Standing::Refused { .. }
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
pub fn peer(standing: &Standing) -> Option<IpAddr> {
    match standing {
        Standing::Armed { of } | Standing::Fenced { of, .. } | Standing::Moved { of, .. } => {
            Some(of.target_peer.ip())
        }
        _ => None,
    }
}
