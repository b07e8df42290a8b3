//! A committed account is opened and released without a controller.

use ferry_proto::channel::Listener;
use ferry_traffic::control::RouteState;

use super::host::{Server, World, account, alone};
use crate::ledger::Standing;
use crate::work::{Job, commit, fence};

/// Waits until the account stands as wished at `server`.
pub async fn until(server: &Server, wished: impl Fn(&Standing) -> bool) {
    let mut changed = server.agent.changed.subscribe();
    let wait = async {
        while !wished(&server.standing()) {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), wait).await.expect("in time");
}

pub fn is_released(standing: &Standing) -> bool {
    matches!(standing, Standing::Moved { released_unix_ms: Some(_), .. })
}

/// Source and target of a move, fenced, and the listener of a target that does not answer yet.
async fn fenced(world: &World) -> (Server, Server, Listener, Job) {
    let (source, target, listener, job) = world.armed_pair().await;
    fence::fence(&job, 600, 0).await.unwrap();
    (source, target, listener, job)
}

#[test]
fn the_source_tells_the_target_itself() {
    alone(async |world| {
        let (source, target, listener, job) = fenced(&world).await;
        commit::commit(&job).await.unwrap();
        assert!(source.agent.delivery(&account()).is_none(), "nobody tells the target");
        target.listen(listener);
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
        target.listen(listener);
        commit::resume(&source.agent, &account());
        assert!(source.agent.delivery(&account()).is_none(), "nobody tells the target");
        until(&target, |s| matches!(s, Standing::Serving)).await;
        until(&source, is_released).await;
    });
}
