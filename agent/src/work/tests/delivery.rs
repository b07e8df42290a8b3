//! A committed account is opened and released without a controller.

use ferry_proto::channel::{Listener, PeerListener};
use ferry_traffic::control::RouteState;
use tokio_util::sync::CancellationToken;

use super::host::{Server, World, a_move, account, alone};
use crate::ledger::Standing;
use crate::peer;
use crate::work::{Job, commit, fence, record};

/// Waits until the account stands as wished at `server`.
async fn until(server: &Server, wished: impl Fn(&Standing) -> bool) {
    let mut changed = server.agent.changed.subscribe();
    let wait = async {
        while !wished(&server.standing()) {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), wait).await.expect("in time");
}

fn is_released(standing: &Standing) -> bool {
    matches!(standing, Standing::Moved { released_unix_ms: Some(_), .. })
}

/// Source and target of a move, and the listener of a target that does not answer yet.
async fn fenced(world: &World) -> (Server, Server, Listener, Job) {
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let of = a_move(listener.address());
    let (source, target) = (world.server("web1").await, world.server("transit1").await);
    source.stands(Standing::Armed { of: of.clone() }).await;
    let said = Box::new(record::of_account(&source.agent, &account()).await.unwrap());
    target.stands(Standing::Receiving { of: of.clone(), source: said, before: None }).await;
    let job = world.job(&source, &of);
    fence::fence(&job, 600, 0).await.unwrap();
    (source, target, listener, job)
}

fn listen(target: &Server, listener: Listener) {
    let agent = target.agent.clone();
    let peers = PeerListener::new(listener, &agent.identity, &agent.connections).unwrap();
    tokio::spawn(peer::serve(agent, peers, CancellationToken::new()));
}

#[test]
fn the_source_tells_the_target_itself() {
    alone(async |world| {
        let (source, target, listener, job) = fenced(&world).await;
        commit::commit(&job).await.unwrap();
        assert!(source.agent.delivery(&account()).is_none(), "nobody tells the target");
        listen(&target, listener);
        until(&target, |s| matches!(s, Standing::Serving)).await;
        until(&source, is_released).await;
        assert_eq!(target.route().await, RouteState::Local);
        // The release holds the order until the redirector knows.
        drop(source.agent.order(&account()).await);
        assert!(matches!(source.route().await, RouteState::Remote { .. }));
    });
}

#[test]
fn a_delivery_is_resumed_from_the_ledger_alone() {
    alone(async |world| {
        let (source, target, listener, job) = fenced(&world).await;
        // What a restart leaves: a commit that nobody tells.
        commit::commit(&Job { grant: None, ..job.clone() }).await.unwrap();
        assert!(source.agent.delivery(&account()).is_some(), "somebody tells the target");
        let mut committed = source.agent.account(&account()).unwrap();
        let Standing::Moved { grant, .. } = &mut committed.standing else { panic!("not moved") };
        *grant = job.grant.clone();
        source.agent.set_account(&account(), Some(committed)).await.unwrap();
        listen(&target, listener);
        commit::resume(&source.agent, &account());
        assert!(source.agent.delivery(&account()).is_none(), "nobody tells the target");
        until(&target, |s| matches!(s, Standing::Serving)).await;
        until(&source, is_released).await;
    });
}
