//! What redirector and firewall are for what stands in the ledger.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ferry_proto::command::{CommitRecord, Move, Receipt};
use ferry_traffic::control::{HoldLimits, RouteState};
use ferry_traffic::firewall;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::host::{Server, World, a_move_to_nowhere, account, alone};
use crate::clock::Deadline;
use crate::deadlines;
use crate::ledger::{Account, Standing};
use crate::work::copied::Copied;
use crate::work::{arm, open, release};

const LONG: Duration = Duration::from_secs(30);

fn fenced(of: &Move, grace_ms: u32) -> Standing {
    Standing::Fenced {
        of: of.clone(),
        deadline: Deadline::after(Duration::from_secs(600)).unwrap(),
        began_unix_ms: 0,
        complete_unix: None,
        ending: false,
        open: false,
        grace_ms: Some(grace_ms),
    }
}

fn record(of: &Move) -> CommitRecord {
    CommitRecord {
        job: of.job,
        account: of.account.clone(),
        source: of.source.clone(),
        target: of.target.clone(),
        epoch: of.epoch.next(),
        fenced_at_unix: 0,
        committed_at_unix_ms: 0,
        forced: None,
    }
}

fn moved(of: &Move, released_unix_ms: Option<i64>) -> Standing {
    Standing::Moved {
        of: of.clone(),
        record: record(of),
        fenced_unix_ms: 0,
        released_unix_ms,
        settled: false,
        grant: None,
        came_from: None,
    }
}

/// Changes what else the ledger says of the account.
async fn change(server: &Server, change: impl FnOnce(&mut Account)) {
    let mut known = server.agent.account(&account()).unwrap();
    change(&mut known);
    server.agent.set_account(&account(), Some(known)).await.unwrap();
}

async fn rules_stand() -> bool {
    firewall::list().await.unwrap().iter().any(|rule| rule.chain == "prerouting")
}

async fn until(wished: impl AsyncFn() -> bool) {
    let wait = async {
        while !wished().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect("in time");
}

#[test]
fn a_fence_holds_with_its_own_grace_and_the_configured_limits() {
    alone(async |world: World| {
        let server = world.server("web1").await;
        server.stands(fenced(&a_move_to_nowhere(), 700)).await;
        arm::reconcile(&server.agent).await.unwrap();
        let limits = HoldLimits { grace_ms: 700, ..server.agent.config.hold.limits() };
        assert_eq!(server.route().await, RouteState::Hold { limits });
    });
}

#[test]
fn flushed_rules_come_back_while_somebody_needs_them() {
    alone(async |world: World| {
        let server = world.server("web1").await;
        server.stands(Standing::Armed { of: a_move_to_nowhere() }).await;
        arm::reconcile(&server.agent).await.unwrap();
        assert!(rules_stand().await);
        let flushed = Command::new("nft").args(["flush", "ruleset"]).status();
        assert!(flushed.is_ok_and(|s| s.success()) && !rules_stand().await);
        let stop = CancellationToken::new();
        let keeping = tokio::spawn(arm::keep(server.agent.clone(), stop.clone()));
        until(rules_stand).await;
        stop.cancel();
        keeping.await.unwrap();
    });
}

#[test]
fn one_account_s_fault_does_not_keep_the_others_from_their_routes() {
    alone(async |world: World| {
        let server = world.server("web1").await;
        let of = a_move_to_nowhere();
        let site = serde_json::json!([{"name": "main", "domains": ["a.example"], "root": "www"}]);
        server.stands(Standing::Armed { of: of.clone() }).await;
        change(&server, |a| a.definition.sites = serde_json::from_value(site).unwrap()).await;
        // Before it in the order, and with its domain.
        let mut thief = server.agent.account(&account()).unwrap();
        thief.definition.name = "aaa".parse().unwrap();
        server.agent.set_account(&"aaa".parse().unwrap(), Some(thief)).await.unwrap();
        let mut last = server.agent.account(&account()).unwrap();
        last.definition.name = "zzz".parse().unwrap();
        last.definition.sites.clear();
        server.agent.set_account(&"zzz".parse().unwrap(), Some(last)).await.unwrap();
        let fault = arm::reconcile(&server.agent).await.unwrap_err();
        assert!(fault.message.contains("a.example"), "{fault}");
        let routed = server.agent.redirector.status().await.unwrap();
        assert!(routed.iter().any(|s| s.account.as_str() == "zzz"), "{routed:?}");
        assert!(rules_stand().await);
    });
}

#[test]
fn the_rules_go_only_when_no_visitor_is_left_however_long_it_takes() {
    alone(async |world: World| {
        let server = world.server("web1").await;
        server.stands(Standing::Armed { of: a_move_to_nowhere() }).await;
        arm::reconcile(&server.agent).await.unwrap();
        let visitor = TcpStream::connect(server.http()).await.unwrap();
        let visitors = async || server.agent.redirector.overview().await.unwrap().visitors;
        until(async || visitors().await == 1).await;
        server.stands(Standing::Serving).await;
        arm::reconcile(&server.agent).await.unwrap();
        assert!(!rules_stand().await, "new connections are not redirected");
        let gone = async || firewall::list().await.unwrap().is_empty();
        let early = tokio::time::timeout(Duration::from_secs(3), until(gone)).await;
        assert!(early.is_err(), "the kernel still translates the visitor's connection");
        drop(visitor);
        until(gone).await;
    });
}

#[test]
fn a_disarm_that_the_redirector_refused_leaves_nothing_once_it_takes_changes_again() {
    alone(async |world: World| {
        let server = world.server("web1").await;
        let of = a_move_to_nowhere();
        server.stands(Standing::Armed { of: of.clone() }).await;
        arm::reconcile(&server.agent).await.unwrap();
        assert_eq!(server.route().await, RouteState::Local);
        let job = world.job(&server, &of);
        Copied::of(&job).await.keep(&job).await.unwrap();
        // As on a full disk it cannot save what it is told.
        let routes = server.dir.join("routes.json");
        std::fs::remove_file(&routes).unwrap();
        std::fs::create_dir(&routes).unwrap();
        arm::disarm(&job).await.unwrap_err();
        std::fs::remove_dir(&routes).unwrap();
        arm::disarm(&job).await.unwrap();
        assert!(!server.dir.join("copies/shop.json").exists(), "what is known of the copy");
        let stop = CancellationToken::new();
        let keeping = tokio::spawn(arm::keep(server.agent.clone(), stop.clone()));
        until(async || server.agent.redirector.status().await.unwrap().is_empty()).await;
        stop.cancel();
        keeping.await.unwrap();
    });
}

#[test]
fn what_mail_no_longer_needs_goes_as_soon_as_it_can_and_after_a_restart() {
    alone(async |world: World| {
        let mut server = world.server("web1").await;
        let table = server.dir.join("mail/transport");
        std::fs::create_dir_all(server.dir.join("mail/accounts")).unwrap();
        let gone = || !table.exists();
        // It cannot be removed as it is.
        std::fs::create_dir(&table).unwrap();
        arm::unhook_mail(&server.agent).await;
        std::fs::remove_dir(&table).unwrap();
        std::fs::write(&table, "").unwrap();
        let stop = CancellationToken::new();
        let keeping = tokio::spawn(arm::keep(server.agent.clone(), stop.clone()));
        until(async || gone()).await;
        stop.cancel();
        keeping.await.unwrap();
        // As if the agent had died when the last account was forgotten.
        std::fs::write(&table, "").unwrap();
        server = world.restarted(server);
        let stop = CancellationToken::new();
        let watch = deadlines::watch(server.agent.clone(), Arc::default(), stop.clone());
        let watching = tokio::spawn(watch);
        until(async || gone()).await;
        stop.cancel();
        watching.await.unwrap();
    });
}

#[test]
fn an_open_repeated_makes_the_route_that_failed_before() {
    alone(async |world: World| {
        let server = world.server("transit1").await;
        let of = a_move_to_nowhere();
        server.stands(Standing::Serving).await;
        change(&server, |a| {
            a.epoch = of.epoch.next();
            a.came_from = Some(of.source_peer.ip());
        })
        .await;
        // As if the agent had died before the redirector knew.
        assert!(server.agent.redirector.status().await.unwrap().is_empty());
        open::open(&server.agent, of.job, &record(&of)).await.unwrap();
        assert_eq!(server.route().await, RouteState::Local);
        let peers = server.agent.redirector.overview().await.unwrap().peers;
        assert!(peers.contains(&of.source_peer.ip()), "{peers:?}");
    });
}

#[test]
fn a_release_that_was_cut_off_is_done_in_full_when_repeated() {
    alone(async |world: World| {
        let server = world.server("web1").await;
        let of = a_move_to_nowhere();
        server.stands(moved(&of, Some(5))).await;
        change(&server, |a| {
            a.epoch = of.epoch.next();
            a.wound_down = serde_json::from_value(serde_json::json!({
                "account": "shop",
                "files": [{
                    "path": server.dir.join("shop.conf"), "aside": server.dir.join("aside.conf"),
                    "owner": [0, 0, 0o644],
                }],
            }))
            .unwrap();
        })
        .await;
        let original = "server { listen 80; }\n";
        std::fs::write(server.dir.join("aside.conf"), original).unwrap();
        let closing = "server { keepalive_timeout 0; listen 80; }\n";
        std::fs::write(server.dir.join("shop.conf"), closing).unwrap();
        let job = world.job(&server, &of);
        for _ in 0..2 {
            let receipt = release::release(&job).await.unwrap();
            let Receipt::Released { fenced_ms, .. } = receipt else { panic!("{receipt:?}") };
            assert!((fenced_ms - 5.0).abs() < 0.1, "the first release counts: {fenced_ms}");
        }
        assert!(matches!(server.standing(), Standing::Moved { settled: true, .. }));
        assert!(matches!(server.route().await, RouteState::Remote { .. }));
        assert_eq!(std::fs::read_to_string(server.dir.join("shop.conf")).unwrap(), original);
        assert!(server.agent.account(&account()).unwrap().wound_down.is_none());
    });
}
