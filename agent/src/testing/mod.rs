//! What tests of the agent's parts share: an agent in a directory of its own, accounts in its ledger.

pub mod authority;
pub mod controller;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ferry_proto::channel::{Connections, Identity, Limits, Party, unix_now};
use ferry_proto::command::{Direction, Move};
use ferry_proto::grant::{Grant, SignedGrant};
use ferry_proto::ids::{Epoch, JobId};
use ferry_traffic::client::Redirector;
use serde_json::json;

use crate::agent::Agent;
use crate::clock::Deadline;
use crate::config::Config;
use crate::ledger::{Account, Ledger, Standing};
use authority::Authority;

/// A day, in seconds.
const DAY: i64 = 86400;

/// The agent of `web1`, with its ledger below `dir` and no redirector.
pub fn agent(authority: &Authority, dir: &Path) -> Arc<Agent> {
    agent_with(authority, dir, Ledger::open(&dir.join("ledger")).unwrap())
}

/// The same with that ledger.
pub fn agent_with(authority: &Authority, dir: &Path, ledger: Ledger) -> Arc<Agent> {
    let credentials = authority.credentials(&Party::Agent("web1".parse().unwrap()), DAY, 90 * DAY);
    agent_as(authority, dir, ledger, &Identity::new(&credentials).unwrap())
}

/// The same with that identity.
pub fn agent_as(
    authority: &Authority,
    dir: &Path,
    ledger: Ledger,
    identity: &Arc<Identity>,
) -> Arc<Agent> {
    let config = Config {
        state_directory: dir.to_owned(),
        accounts_directory: dir.join("accounts.d"),
        inventory_directory: dir.join("inventory.d"),
        peer_address: Some("127.0.0.1:7401".parse().unwrap()),
        ..Config::default()
    };
    Agent::new(
        config,
        identity.clone(),
        authority.grant_key(),
        Connections::new(Limits::default()),
        ledger,
        Redirector::at(dir.join("control")),
    )
    .unwrap()
}

/// A move of `shop` from `web1` to `transit1`, at epoch 3.
pub fn a_move() -> Move {
    Move {
        job: JobId(uuid::Uuid::now_v7()),
        account: "shop".parse().unwrap(),
        direction: Direction::Outbound,
        source: "web1".parse().unwrap(),
        target: "transit1".parse().unwrap(),
        source_peer: "127.0.0.1:7401".parse().unwrap(),
        target_peer: "127.0.0.1:7402".parse().unwrap(),
        epoch: Epoch(3),
    }
}

/// An account at epoch 3 that has nothing but its name, and stands so.
pub fn account(name: &str, standing: &Standing) -> Account {
    serde_json::from_value(json!({
        "definition": { "name": name, "user": name, "home": format!("/home/{name}") },
        "epoch": 3, "uid": 4711, "gid": 4711,
        "standing": standing, "made": null, "closed": null,
    }))
    .unwrap()
}

/// Fenced by `of`, with nothing closed, until `deadline`.
pub fn fenced(of: &Move, deadline: &Deadline) -> Standing {
    serde_json::from_value(json!({
        "is": "fenced", "of": of, "deadline": deadline, "began_unix_ms": 1, "complete_unix": 1,
        "ending": false,
    }))
    .unwrap()
}

/// A deadline of the boot before.
pub fn before_the_reboot() -> Deadline {
    Deadline { boot_id: "the boot before".to_owned(), boottime_ms: u64::MAX }
}

/// Being received by `of`.
pub fn receiving(of: &Move) -> Standing {
    serde_json::from_value(json!({
        "is": "receiving", "of": of, "before": null, "source": source_record(),
    }))
    .unwrap()
}

/// Committed, and being opened here.
pub fn opening(of: &Move) -> Standing {
    serde_json::from_value(json!({
        "is": "opening", "of": of, "before": null, "source": source_record(), "record": record(of),
    }))
    .unwrap()
}

/// Committed away, and passed on.
pub fn moved(of: &Move) -> Standing {
    serde_json::from_value(json!({
        "is": "moved", "of": of, "fenced_unix_ms": 1, "released_unix_ms": 1, "record": record(of),
    }))
    .unwrap()
}

fn record(of: &Move) -> serde_json::Value {
    json!({
        "job": of.job, "account": of.account, "source": of.source, "target": of.target,
        "epoch": of.epoch.next(), "fenced_at_unix": 1, "committed_at_unix_ms": 1,
    })
}

pub fn source_record() -> serde_json::Value {
    json!({
        "definition": { "name": "shop", "user": "shop", "home": "/home/shop" },
        "user": {
            "name": "shop", "uid": 1001, "group": { "name": "shop", "gid": 1001 }, "gecos": "",
            "shell": "/bin/sh", "home": "/home/shop", "password_hash": "!",
            "aging": {
                "last_change": null, "minimum": null, "maximum": null, "warning": null,
                "inactive": null, "expire": null,
            },
            "groups": [], "web_group_member": false, "findings": [],
        },
        "cron": { "user": "shop", "content": null, "findings": [] },
        "databases": [],
        "mail": { "passwords": [] },
    })
}

/// A grant for `of`, as the controller signs it.
pub fn grant(authority: &Authority, of: &Move) -> SignedGrant {
    Grant {
        id: uuid::Uuid::now_v7(),
        job: of.job,
        account: of.account.clone(),
        direction: of.direction,
        source: of.source.clone(),
        target: of.target.clone(),
        epoch: of.epoch,
        not_before: unix_now() - 60,
        expires: unix_now() + 7 * DAY,
        controller_generation: 1,
        forced: None,
        approvals: Vec::new(),
    }
    .sign(&authority.grants)
    .unwrap()
}

/// Waits until the account's standing is such.
pub async fn until(agent: &Agent, name: &str, such: impl Fn(&Standing) -> bool) {
    let mut changed = agent.changed.subscribe();
    let name = name.parse().unwrap();
    let all = async {
        while !agent.account(&name).is_some_and(|a| such(&a.standing)) {
            changed.changed().await.unwrap();
        }
    };
    if tokio::time::timeout(Duration::from_secs(20), all).await.is_err() {
        panic!("account {name} still is {:?}", agent.account(&name).map(|a| a.standing));
    }
}
