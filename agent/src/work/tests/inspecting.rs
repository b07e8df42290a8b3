//! What preflight finds between two agents: the target asks the source itself.

use std::net::{IpAddr, Ipv4Addr};

use ferry_proto::channel::{Listener, PeerListener};
use ferry_proto::command::{AccountFacts, Finding, Move, Receipt, Severity, TargetFacts};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::host::{Server, World, a_move_to_nowhere, account, alone};
use crate::ledger::Standing;
use crate::peer;
use crate::work::arm::ingress;
use crate::work::inspect::{self, Asked};

/// A source that answers its peers, a target that never had the account, and their move.
async fn pair(world: &World) -> (Server, Server, Move) {
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let of = Move { source_peer: listener.address(), ..a_move_to_nowhere() };
    let (source, target) = (world.server("web1").await, world.server("transit1").await);
    source.stands(Standing::Armed { of: of.clone() }).await;
    let agent = source.agent.clone();
    let peers = PeerListener::new(listener, &agent.identity, &agent.connections).unwrap();
    tokio::spawn(peer::serve(agent, peers, CancellationToken::new()));
    (source, target, of)
}

async fn source_facts(source: &Server) -> AccountFacts {
    match inspect::source(&source.agent, &account(), None, Asked::default()).await.unwrap() {
        Receipt::Source(facts) => *facts,
        other => panic!("{other:?}"),
    }
}

async fn target_facts(
    world: &World,
    target: &Server,
    of: &Move,
    facts: &AccountFacts,
) -> TargetFacts {
    let grant = world.job(target, of).grant;
    let said =
        inspect::target(&target.agent, facts, Some(of.source_peer), grant.as_ref()).await.unwrap();
    match said {
        Receipt::Target(facts) => *facts,
        other => panic!("{other:?}"),
    }
}

fn blockers(findings: &[Finding]) -> Vec<&str> {
    let blocking = findings.iter().filter(|f| f.severity == Severity::Blocker);
    blocking.map(|f| f.message.as_str()).collect()
}

#[test]
fn the_target_hears_from_the_source_itself_what_provisioning_would_refuse() {
    alone(async |world| {
        let (source, target, of) = pair(&world).await;
        let facts = source_facts(&source).await;
        assert_eq!((facts.uid, facts.files), (world.uid, 2));
        let _redirector = TcpListener::bind(ingress(of.source_peer.ip())).await.unwrap();
        let said = target_facts(&world, &target, &of, &facts).await;
        assert_eq!(blockers(&said.findings), ["there is a user shop at the target already"]);
        assert_eq!(said.rooms.len(), 1);
        assert!(said.rooms[0].free_bytes > 0 && said.server.clock_unix_ms > 0, "{said:?}");
    });
}

#[test]
fn a_redirector_that_cannot_be_reached_and_a_source_that_does_not_answer_block() {
    alone(async |world| {
        let (source, target, of) = pair(&world).await;
        let facts = source_facts(&source).await;
        let said = target_facts(&world, &target, &of, &facts).await;
        let found = blockers(&said.findings);
        assert!(found.iter().any(|m| m.contains("redirector") && m.contains("7481")), "{found:?}");
        // The grant of another epoch is refused by the source, and that is said.
        let later = Move { epoch: of.epoch.next(), ..of.clone() };
        let said = target_facts(&world, &target, &later, &facts).await;
        let found = blockers(&said.findings);
        assert!(found.iter().any(|m| m.contains("web1 refused")), "{found:?}");
        // Nobody listens where the source should be.
        let nowhere =
            Move { source_peer: (IpAddr::V4(Ipv4Addr::LOCALHOST), 9).into(), ..of.clone() };
        let said = target_facts(&world, &target, &nowhere, &facts).await;
        let found = blockers(&said.findings);
        assert!(found.iter().any(|m| m.contains("agent cannot be reached")), "{found:?}");
        assert_eq!((said.uid, said.gid), (facts.uid, facts.gid));
    });
}
