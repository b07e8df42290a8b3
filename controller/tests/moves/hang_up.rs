//! Callers who hang up: their call's future is dropped wherever it is, as the server does when the
//! connection is lost. What it has made durable by then is gone on with all the same.

use std::task::Poll;

use ferry_api::jobs::Which;
use ferry_store::{ServerState, SqliteStore, Store as _};

use super::*;

impl Controller {
    /// Polls a call until the store is as told, and drops it at that moment.
    async fn hangs_up_once(
        &self,
        call: impl Future<Output = Result<(), Fault>>,
        is: impl AsyncFn(&SqliteStore) -> bool,
    ) {
        let store = SqliteStore::open(&self.dir.path().join("ferry.db")).await.unwrap();
        let mut call = Box::pin(call);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !is(&store).await {
            let once = std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context)));
            if let Poll::Ready(done) = once.await {
                return done.unwrap();
            }
            assert!(tokio::time::Instant::now() < deadline, "the store did not change");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_job_whose_caller_hangs_up_right_after_it_was_started_runs() {
    let (controller, _, transit, _) = pair().await;
    let plan = controller.plan("demo", "transit").await.unwrap().plan_id;
    let id = plan.parse().unwrap();
    let is_started =
        async |store: &SqliteStore| store.job(id).await.unwrap().unwrap().started_ms.is_some();
    controller.hangs_up_once(controller.jobs.start(id), is_started).await;
    transit.until("begun", |world| world.done.contains(&"provision".into())).await;
    assert_eq!(controller.end_of(&plan).await.phase, JobPhase::Done);
}

#[tokio::test]
async fn a_stuck_job_whose_caller_hangs_up_right_after_it_was_resumed_goes_on() {
    let (controller, client, transit, _) = pair().await;
    client.world.lock().unwrap().failing.insert("verify".into(), Fault::precondition("differs"));
    transit.world.lock().unwrap().failing.insert("deprovision".into(), Fault::permanent("busy"));
    let plan = controller.plan("demo", "transit").await.unwrap();
    let job = controller.start_move(&plan.plan_id).await;
    assert_eq!(controller.end_of(&job).await.phase, JobPhase::Stuck);
    transit.world.lock().unwrap().failing.clear();
    let id = job.parse().unwrap();
    let which = Which::Job(id);
    let call = async { controller.jobs.resume(&which, "somebody").await.map(|_| ()) };
    let is_resumed =
        async |store: &SqliteStore| store.job(id).await.unwrap().unwrap().ended_ms.is_none();
    controller.hangs_up_once(call, is_resumed).await;
    let twice = |done: &[String]| done.iter().filter(|kind| *kind == "deprovision").count() == 2;
    transit.until("undone", |world| twice(&world.done)).await;
    assert_eq!(controller.end_of(&job).await.phase, JobPhase::Undone);
}

#[tokio::test]
async fn a_server_is_cut_off_although_whoever_revoked_it_hangs_up() {
    let (controller, client, transit, _) = pair().await;
    let call = async { controller.fleet.revoke(&client.name).await.map(|_| ()) };
    let is_revoked = async |store: &SqliteStore| {
        store.server(&client.name).await.unwrap().unwrap().state == ServerState::Revoked
    };
    controller.hangs_up_once(call, is_revoked).await;
    let told = vec!["client".to_owned()];
    transit.until("told", |world| world.revocations.last() == Some(&told)).await;
    assert!(!controller.is_connected("client").await);
}
