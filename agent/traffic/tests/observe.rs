//! What stands of the redirection is found wherever it came from, and is gone once it is removed.

mod support;

use std::path::Path;

use ferry_proto::artefact::{Artefact, Kind, Observed};
use ferry_proto::ids::Epoch;
use ferry_traffic::client::Redirector as Client;
use ferry_traffic::control::RouteState;
use ferry_traffic::firewall::{self, Rules};
use ferry_traffic::observe::Redirection;
use nix::sched::{CloneFlags, unshare};

/// No account of the machine.
const UID: u32 = 64_991;

/// Runs `work` with a network of its own.
fn alone<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) {
    let ran = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests run as root");
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.is_ok_and(|s| s.success()), "the package iproute2 is needed");
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(work());
    });
    if let Err(panic) = ran.join() {
        std::panic::resume_unwind(panic);
    }
}

fn redirection(dir: &Path) -> Redirection {
    let config = dir.join("redirector.toml");
    std::fs::write(&config, format!("state_dir = {dir:?}\n")).unwrap();
    Redirection::of(&config, Client::at(dir.join("control"))).unwrap()
}

fn kinds(seen: &Observed) -> Vec<(Kind, String)> {
    assert_eq!(seen.unseen, Vec::new());
    seen.artefacts.iter().map(|a| (a.kind, a.place.clone())).collect()
}

async fn remove_all(redirection: &Redirection, found: &[Artefact]) {
    // Twice: whatever came of the first, a repetition is no fault.
    for _ in 0..2 {
        for artefact in found {
            redirection.remove(artefact).await.unwrap();
        }
    }
}

#[test]
fn rules_and_routes_of_the_kernel_are_found_and_removed() {
    alone(|| async {
        let dir = tempfile::tempdir().unwrap();
        let redirection = redirection(dir.path());
        assert_eq!(kinds(&redirection.observe().await), []);
        firewall::arm(&Rules::usual(UID)).await.unwrap();
        let seen = redirection.observe().await;
        let found = kinds(&seen);
        assert_eq!(found[0], (Kind::Firewall, "nftables table inet ferry_redirect".to_owned()));
        assert!(
            found.len() >= 3 && found[1..].iter().all(|(k, _)| *k == Kind::Routing),
            "{found:?}"
        );
        remove_all(&redirection, &seen.artefacts).await;
        assert_eq!(kinds(&redirection.observe().await), []);
        // A flush of the ruleset leaves the policy route.
        firewall::arm(&Rules::usual(UID)).await.unwrap();
        let flush = std::process::Command::new("nft").args(["flush", "ruleset"]).status().unwrap();
        assert!(flush.success());
        let seen = redirection.observe().await;
        assert!(
            kinds(&seen).iter().all(|(k, _)| *k == Kind::Routing) && !seen.artefacts.is_empty()
        );
        remove_all(&redirection, &seen.artefacts).await;
        assert_eq!(kinds(&redirection.observe().await), []);
    });
}

#[test]
fn a_table_that_redirects_nobody_any_more_is_one_too() {
    alone(|| async {
        let dir = tempfile::tempdir().unwrap();
        let redirection = redirection(dir.path());
        firewall::stand_down(&Rules::usual(UID)).await.unwrap();
        let seen = redirection.observe().await;
        assert_eq!(kinds(&seen).len(), 1);
        remove_all(&redirection, &seen.artefacts).await;
        assert_eq!(kinds(&redirection.observe().await), []);
    });
}

#[tokio::test]
async fn routes_peers_and_cut_off_files_of_the_redirector_are_found_and_removed() {
    let support::Running { redirector: running, client, dir } = support::start().await;
    let state = dir.path();
    let to = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    client
        .set_route(support::route("shop", 3, &["shop.example"], RouteState::Local, to))
        .await
        .unwrap();
    client.set_peers(["192.0.2.7".parse().unwrap()].into()).await.unwrap();
    std::fs::write(state.join(".tmpleft"), "half").unwrap();

    let file = dir.path().join("redirector.toml");
    std::fs::write(&file, format!("state_dir = {state:?}\n")).unwrap();
    let redirection = Redirection::of(&file, client.clone()).unwrap();
    let in_store = |seen: Observed| -> Vec<Artefact> {
        let ours = [Kind::Route, Kind::Peer, Kind::Temporary];
        seen.artefacts.into_iter().filter(|a| ours.contains(&a.kind)).collect()
    };
    let found = in_store(redirection.observe().await);
    let places: Vec<_> = found.iter().map(|a| (a.kind, a.place.as_str())).collect();
    let left = state.join(".tmpleft").display().to_string();
    assert_eq!(
        places,
        [(Kind::Route, "shop"), (Kind::Peer, "192.0.2.7"), (Kind::Temporary, left.as_str())]
    );
    assert_eq!(redirection.account_routes().unwrap()[0].epoch, Epoch(3));
    remove_all(&redirection, &found).await;
    assert_eq!(in_store(redirection.observe().await), Vec::new());
    assert!(client.status().await.unwrap().is_empty());

    // The routes are the redirector's: without it they stay, and it is said what to do.
    client.set_peers(["192.0.2.7".parse().unwrap()].into()).await.unwrap();
    running.stop(std::time::Duration::ZERO).await;
    std::fs::remove_file(state.join("control.sock")).unwrap();
    let found = in_store(redirection.observe().await);
    let fault = redirection.remove(&found[0]).await.unwrap_err();
    assert!(fault.remedy.contains("systemctl start"), "{fault}");
}
