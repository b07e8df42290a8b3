//! The controller's parts joined as in its main, over real TLS, with agents played by the test: they
//! enrol with real tokens and answer real commands, and fail where a case says so.

#[path = "moves/approving.rs"]
mod approving;
#[path = "moves/at_once.rs"]
mod at_once;
#[path = "moves/controller.rs"]
mod controller;
#[path = "moves/forced.rs"]
mod forced;
#[path = "moves/hang_up.rs"]
mod hang_up;
#[path = "moves/paused.rs"]
mod paused;
#[path = "moves/player.rs"]
mod player;
#[path = "moves/restored.rs"]
mod restored;
#[path = "moves/way_back.rs"]
mod way_back;

use std::sync::Arc;
use std::time::Duration;

use controller::Controller;
use ferry_api::MoveLimits;
use ferry_proto::channel::Identity;
use ferry_proto::command::{AccountState, Refusal, StandingKind};
use ferry_proto::ids::Epoch;
use ferry_proto::v1;
use ferry_proto::view::{JobPhase, JobView};
use ferry_proto::{Fault, FaultClass};
use player::{Player, stands};

/// A third server, which serves an account of its own.
async fn third(controller: &Controller, obeyed: u64) -> (Player, Arc<Identity>) {
    let (third, dir) = (Player::new("third"), tempfile::tempdir().unwrap());
    let token = controller.add("third", 60).await;
    let identity = controller.enrol(&token, &dir.path().join("identity")).await.unwrap();
    let mut world = third.world.lock().unwrap();
    world.obeyed = obeyed;
    world.serves(&["other"]);
    drop(world);
    (third, identity)
}

/// A controller with two connected agents.
async fn pair() -> (Controller, Player, Player, [Arc<Identity>; 2]) {
    let controller = Controller::start(tempfile::tempdir().unwrap()).await;
    let players = [Player::new("client"), Player::new("transit")];
    let mut identities = Vec::new();
    for player in &players {
        let dir = tempfile::tempdir().unwrap();
        let token = controller.add(player.name.as_str(), 60).await;
        let identity = controller.enrol(&token, &dir.path().join("identity")).await.unwrap();
        player.play(&controller.address, &identity);
        controller.until_connected(player.name.as_str()).await;
        identities.push(identity);
    }
    let [client, transit] = players;
    (controller, client, transit, identities.try_into().unwrap())
}

#[tokio::test]
async fn a_move_goes_through_the_critical_section_in_order() {
    let (controller, client, transit, _) = pair().await;
    let plan = controller.plan("demo", "transit").await.unwrap();
    let job = controller.start_move(&plan.plan_id).await;
    let view = controller.end_of(&job).await;
    assert_eq!(view.phase, JobPhase::Done, "{view:?}");
    assert!(view.committed);
    assert_eq!(
        client.done(),
        [
            "inspect",
            "precopy",
            "arm",
            "fence",
            "final_pass",
            "copy_databases",
            "verify",
            "commit",
            "release"
        ]
    );
    assert_eq!(transit.done(), ["inspect", "provision", "rehearse", "open"]);
}

#[tokio::test]
async fn a_source_that_died_after_its_commit_is_not_taken_for_one_that_serves() {
    let (controller, client, transit, [at_client, at_transit]) = pair().await;
    let plan = controller.plan("demo", "transit").await.unwrap();
    let job = controller.start_move(&plan.plan_id).await;
    controller.end_of(&job).await;
    let fenced = |job: &str| AccountState {
        job: Some(job.parse().unwrap()),
        ..stands(StandingKind::Fenced, 0)
    };
    client.says(&controller, &at_client, &fenced(&job)).await;
    transit.says(&controller, &at_transit, &stands(StandingKind::Serving, 1)).await;
    let fault = controller.finalize("", false).await.unwrap_err();
    assert!(fault.message.contains("nothing stands for a move"), "{fault}");
    // A job that the controller does not know says nothing of where the account is.
    let unknown = fenced("01900000-0000-7000-8000-000000000000");
    // The list does not show the job: that it was heard is seen by the epoch.
    client.says(&controller, &at_client, &stands(StandingKind::Serving, 0)).await;
    client.says(&controller, &at_client, &unknown).await;
    let fault = controller.finalize("", false).await.unwrap_err();
    assert!(fault.message.contains("more than one server"), "{fault}");
    let fault = controller.finalize("transit", false).await.unwrap_err();
    assert!(fault.message.contains("nothing stands for a move"), "{fault}");
}

#[tokio::test]
async fn a_copy_that_may_not_be_erased_leaves_the_move_as_it_was() {
    let (controller, client, transit, [at_client, at_transit]) = pair().await;
    let moved = AccountState {
        moved_to: Some("transit".parse().unwrap()),
        ..stands(StandingKind::Moved, 1)
    };
    client.says(&controller, &at_client, &moved).await;
    transit.says(&controller, &at_transit, &stands(StandingKind::Serving, 1)).await;
    let refusal = Fault::precondition("it was here before Ferry").remedy("without --erase");
    client.world.lock().unwrap().failing.insert("prove_erasable".into(), refusal.clone());
    let view = controller.end_of(&controller.finalize("", true).await.unwrap()).await;
    assert_eq!(view.phase, JobPhase::Undone, "{view:?}");
    assert_eq!(view.steps[1].title, "Prove that the copy may be erased");
    assert_eq!(view.steps[1].fault.as_ref(), Some(&refusal));
    assert_eq!(client.done(), ["prove_erasable"]);
    let view = controller.end_of(&controller.finalize("transit", false).await.unwrap()).await;
    assert_eq!(view.phase, JobPhase::Done, "{view:?}");
    assert_eq!(client.done(), ["prove_erasable", "finalize"]);
    assert_eq!(transit.done(), ["prove", "prove"]);
}

#[tokio::test]
async fn a_step_that_fails_undoes_what_was_done_in_reverse() {
    let (controller, client, transit, _) = pair().await;
    let refusal = Fault::precondition("a table differs").remedy("look");
    client.world.lock().unwrap().failing.insert("verify".into(), refusal.clone());
    let plan = controller.plan("demo", "transit").await.unwrap();
    let job = controller.start_move(&plan.plan_id).await;
    let view = controller.end_of(&job).await;
    assert_eq!(view.phase, JobPhase::Undone, "{view:?}");
    assert!(client.done().ends_with(&["verify".into(), "unfence".into(), "disarm".into()]));
    assert_eq!(transit.done().last().unwrap(), "deprovision");
    let verify = view.steps.iter().find(|s| s.name == "verify").unwrap();
    assert_eq!(verify.fault.as_ref(), Some(&refusal), "the reason stays visible");
}

#[tokio::test]
async fn a_target_that_refuses_what_was_committed_gives_the_account_back() {
    let (controller, client, transit, _) = pair().await;
    let plan = controller.plan("demo", "transit").await.unwrap();
    let refusal = Refusal {
        job: plan.plan_id.parse().unwrap(),
        account: "demo".parse().unwrap(),
        source: "client".parse().unwrap(),
        target: "transit".parse().unwrap(),
        epoch: Epoch(1),
        reason: "nginx does not start".into(),
        at_unix_ms: 0,
    };
    let fault = Fault::refused(refusal.clone());
    transit.world.lock().unwrap().failing.insert("open".into(), fault);
    let view = controller.end_of(&controller.start_move(&plan.plan_id).await).await;
    assert_eq!(view.phase, JobPhase::Undone, "{view:?}");
    assert_eq!(view.refused.as_ref(), Some(&refusal));
    // First the source serves it again, then what stood for the move goes.
    let ends = ["commit", "take_back", "unfence", "disarm"].map(String::from);
    assert!(client.done().ends_with(&ends), "{:?}", client.done());
    assert!(transit.done().ends_with(&["open".into(), "deprovision".into()]));
}

/// The source goes away with the only word on whether it has committed.
#[tokio::test]
async fn a_commit_that_nobody_can_be_asked_about_is_shown_as_unheard() {
    let (controller, client, _transit, [at_client, _]) = pair().await;
    client.world.lock().unwrap().silent.push("commit".into());
    let plan = controller.plan("demo", "transit").await.unwrap();
    let job = controller.start_move(&plan.plan_id).await;
    client.until_waiting("commit").await;
    let shown = async || {
        let message = controller.with_token(v1::ListJobsRequest::default());
        let jobs = controller.operators().await.list_jobs(message).await.unwrap().into_inner();
        let view: JobView = serde_json::from_slice(&jobs.jobs[0]).unwrap();
        let message = controller.with_token(v1::ListAccountsRequest {});
        let list = controller.operators().await.list_accounts(message).await.unwrap().into_inner();
        let at_client = list.accounts.into_iter().find(|a| a.server == "client").unwrap();
        (view, at_client.standing)
    };
    let fenced =
        AccountState { job: Some(job.parse().unwrap()), ..stands(StandingKind::Fenced, 0) };
    client.says(&controller, &at_client, &fenced).await;
    let (view, standing) = shown().await;
    assert!(view.commit_unknown && !view.commit_unheard, "it can be asked: {view:?}");
    assert_eq!(standing, "fenced");
    client.leave(&controller).await;
    let (view, standing) = shown().await;
    assert!(view.commit_unheard, "{view:?}");
    assert_eq!(standing, "committed, unheard");
    for part in ["Committed, unheard", "Bring client back", "what-if/committed-unheard.md"] {
        assert!(view.advice.contains(part), "{part}: {}", view.advice);
    }
    // It is back, and says that it has committed: the move goes on.
    client.world.lock().unwrap().silent.clear();
    client.play(&controller.address, &at_client);
    let view = controller.end_of(&job).await;
    assert_eq!((view.phase, view.commit_unheard), (JobPhase::Done, false), "{view:?}");
}

#[tokio::test]
async fn a_controller_that_dies_in_the_fence_goes_on_without_doing_anything_twice() {
    let (controller, client, transit, identities) = pair().await;
    client.world.lock().unwrap().silent.push("copy_databases".into());
    let plan = controller.plan("demo", "transit").await.unwrap();
    let job = controller.start_move(&plan.plan_id).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !client.done().contains(&"final_pass".to_owned()) {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let dir = controller.crash().await;
    client.world.lock().unwrap().silent.clear();
    let controller = Controller::start(dir).await;
    client.play(&controller.address, &identities[0]);
    transit.play(&controller.address, &identities[1]);
    let view = controller.end_of(&job).await;
    assert_eq!(view.phase, JobPhase::Done, "{view:?}");
    for kind in ["fence", "final_pass", "copy_databases", "commit"] {
        let times = client.done().iter().filter(|k| *k == kind).count();
        assert_eq!(times, 1, "{kind}: {:?}", client.done());
    }
}

#[tokio::test]
async fn bad_tokens_are_refused_each_with_its_reason() {
    let controller = Controller::start(tempfile::tempdir().unwrap()).await;
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let token = controller.add("client", 60).await;
    controller.enrol(&token, &a.path().join("i")).await.unwrap();
    controller.enrol(&token, &a.path().join("i")).await.expect("the same key lost the answer");
    let fault = controller.enrol(&token, &b.path().join("i")).await.unwrap_err();
    assert!(fault.message.contains("used already"), "{fault}");
    assert!(!fault.remedy.is_empty());

    let old = controller.add("transit", 60).await;
    let new = controller.add("transit", 1).await;
    let fault = controller.enrol(&old, &b.path().join("j")).await.unwrap_err();
    assert!(fault.message.contains("not the one issued last"), "{fault}");
    tokio::time::sleep(Duration::from_millis(1100)).await; // Until the token has expired.
    let fault = controller.enrol(&new, &b.path().join("k")).await.unwrap_err();
    assert!(fault.message.contains("expired"), "{fault}");
    let fault = controller.enrol("ferry1.AAAA", &b.path().join("l")).await.unwrap_err();
    assert!(fault.message.contains("not valid"), "{fault}");
}

#[tokio::test]
async fn a_revoked_agent_is_cut_off_at_once_and_stays_out() {
    let (controller, client, _, identities) = pair().await;
    assert!(controller.revoke("client").await);
    let again = client.play(&controller.address, &identities[0]).await.unwrap();
    let fault = again.expect_err("a revoked agent connected again");
    assert!(fault.to_string().contains("revoked"), "{fault}");
    let fault = controller.plan("demo", "transit").await.unwrap_err();
    assert!(fault.message.contains("cut off"), "{fault}");
}

#[tokio::test]
async fn operators_without_the_token_and_wrong_wishes_are_refused() {
    let (controller, _, _, _) = pair().await;
    let refused = controller.operators().await.list_servers(v1::ListServersRequest {}).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::Unauthenticated);
    let fault = controller.plan("nobody", "transit").await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Precondition);
    assert!(fault.message.contains("no server serves account nobody"), "{fault}");
    let fault = controller.plan("demo", "nowhere").await.unwrap_err();
    assert!(fault.message.contains("no server is called nowhere"), "{fault}");
    let fault = controller.plan("; rm -rf /", "transit").await.unwrap_err();
    assert!(fault.message.contains("account name"), "{fault}");
    let plan = controller.plan("demo", "transit").await.unwrap();
    controller.start_move(&plan.plan_id).await;
    let message = v1::StartMoveRequest { plan_id: plan.plan_id };
    let twice = controller.operators().await.start_move(controller.with_token(message)).await;
    assert_eq!(twice.unwrap_err().code(), tonic::Code::FailedPrecondition);
}

#[tokio::test]
async fn a_stuck_undo_is_resumed_once_it_is_mended() {
    let (controller, client, transit, _) = pair().await;
    let broken = Fault::permanent("user demo has processes");
    client.world.lock().unwrap().failing.insert("verify".into(), Fault::precondition("differs"));
    transit.world.lock().unwrap().failing.insert("deprovision".into(), broken.clone());
    let plan = controller.plan("demo", "transit").await.unwrap();
    let job = controller.start_move(&plan.plan_id).await;
    let view = controller.end_of(&job).await;
    assert_eq!(view.phase, JobPhase::Stuck, "{view:?}");
    assert!(view.advice.contains("ferry resume demo"), "{}", view.advice);
    let provision = view.steps.iter().find(|s| s.name == "provision").unwrap();
    assert_eq!((&provision.fault, &provision.undo_fault), (&None, &Some(broken)));

    // Not mended: stuck again, and it can be resumed again.
    assert_eq!(controller.resume("", "demo").await.unwrap(), job);
    assert_eq!(controller.end_of(&job).await.phase, JobPhase::Stuck);
    transit.world.lock().unwrap().failing.clear();
    assert_eq!(controller.resume(&job, "").await.unwrap(), job);
    let view = controller.end_of(&job).await;
    assert_eq!(view.phase, JobPhase::Undone, "{view:?}");
    assert!(controller.journal().await.contains(&"resumed by an operator".to_owned()));

    let fault = controller.resume(&job, "").await.unwrap_err();
    assert!(fault.message.contains("only a stuck job"), "{fault}");
    let fault = controller.resume("", "nobody").await.unwrap_err();
    assert!(fault.message.contains("has no job"), "{fault}");
}

#[tokio::test]
async fn only_the_last_job_of_an_account_is_resumed() {
    let (controller, client, transit, _) = pair().await;
    client.world.lock().unwrap().failing.insert("verify".into(), Fault::precondition("differs"));
    transit.world.lock().unwrap().failing.insert("deprovision".into(), Fault::permanent("busy"));
    let plan = controller.plan("demo", "transit").await.unwrap();
    let stuck = controller.start_move(&plan.plan_id).await;
    assert_eq!(controller.end_of(&stuck).await.phase, JobPhase::Stuck);
    client.world.lock().unwrap().silent.push("precopy".into());
    let plan = controller.plan("demo", "transit").await.unwrap();
    let later = controller.start_move(&plan.plan_id).await;
    client.until_waiting("precopy").await;
    let fault = controller.resume(&stuck, "").await.unwrap_err();
    assert!(fault.message.contains("not the last"), "{fault}");
    let fault = controller.resume(&later, "").await.unwrap_err();
    assert!(fault.message.contains("is running"), "{fault}");
}

#[tokio::test]
async fn an_abort_is_journalled_when_it_is_answered_and_outlives_controller_and_session() {
    let (controller, client, transit, identities) = pair().await;
    client.world.lock().unwrap().silent.push("precopy".into());
    let plan = controller.plan("demo", "transit").await.unwrap();
    let job = controller.start_move(&plan.plan_id).await;
    client.until_waiting("precopy").await;
    // The agent is away when the abort comes, and what it does not hear is not lost.
    client.leave(&controller).await;
    assert_eq!(controller.abort("demo").await.unwrap(), job);
    assert!(controller.journal().await.contains(&"abort requested by an operator".to_owned()));
    let dir = controller.crash().await;
    let controller = Controller::start(dir).await;
    client.play(&controller.address, &identities[0]);
    transit.play(&controller.address, &identities[1]);
    let view = controller.end_of(&job).await;
    assert_eq!(view.phase, JobPhase::Undone, "{view:?}");
    assert_eq!(client.world.lock().unwrap().cancelled, ["precopy"]);
    let fault = controller.abort("demo").await.unwrap_err();
    assert!(fault.message.contains("no job of account demo is running"), "{fault}");
}

#[tokio::test]
async fn a_cancellation_that_an_agent_did_not_hear_is_told_again_when_it_connects() {
    let (controller, client, _, identities) = pair().await;
    client.world.lock().unwrap().silent.push("precopy".into());
    let plan = controller.plan("demo", "transit").await.unwrap();
    let job = controller.start_move(&plan.plan_id).await;
    client.until_waiting("precopy").await;
    client.leave(&controller).await;
    controller.abort("demo").await.unwrap();
    client.play(&controller.address, &identities[0]);
    assert_eq!(controller.end_of(&job).await.phase, JobPhase::Undone);
    assert_eq!(client.world.lock().unwrap().cancelled, ["precopy"]);
}

#[tokio::test]
async fn a_job_whose_journal_fails_says_so_and_goes_on_by_itself() {
    let (controller, client, _, _) = pair().await;
    client.world.lock().unwrap().silent.push("precopy".into());
    let plan = controller.plan("demo", "transit").await.unwrap();
    let job = controller.start_move(&plan.plan_id).await;
    client.until_waiting("precopy").await;
    let message = v1::WatchJobRequest { job: job.clone() };
    let mut operators = controller.operators().await;
    let mut watched =
        operators.watch_job(controller.with_token(message)).await.unwrap().into_inner();
    controller
        .sql("CREATE TRIGGER broken BEFORE INSERT ON journal BEGIN SELECT RAISE(ABORT, 'broken'); END".into())
        .await;
    let aborting = controller.abort("demo").await.unwrap_err();
    assert!(aborting.to_string().contains("cannot write to the journal"), "{aborting}");
    let told = loop {
        match watched.message().await {
            Ok(message) => assert!(message.is_some(), "a stream that ends says why"),
            Err(status) => break serde_json::from_slice::<Fault>(status.details()).unwrap(),
        }
    };
    assert!(told.message.contains("does not go on") && !told.remedy.is_empty(), "{told}");
    controller.sql("DROP TRIGGER broken".into()).await;
    client.until("cancelled", |world| world.cancelled == ["precopy"]).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let message = v1::ListJobsRequest::default();
        let jobs = operators.list_jobs(controller.with_token(message)).await.unwrap().into_inner();
        let view: JobView = serde_json::from_slice(&jobs.jobs[0]).unwrap();
        if view.phase == JobPhase::Undone {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{view:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_damaged_job_does_not_hide_the_others() {
    let (controller, _, _, _) = pair().await;
    let mut jobs = Vec::new();
    for _ in 0..2 {
        let plan = controller.plan("demo", "transit").await.unwrap();
        let job = controller.start_move(&plan.plan_id).await;
        controller.end_of(&job).await;
        jobs.push(job);
    }
    controller.sql(format!("UPDATE journal SET event = 'x' WHERE job = '{}'", jobs[0])).await;
    let message = v1::ListJobsRequest::default();
    let list = controller.operators().await.list_jobs(controller.with_token(message)).await;
    let list = list.unwrap().into_inner();
    assert_eq!(list.jobs.len(), 1);
    assert!(list.problems[0].contains(&jobs[0]) && list.problems[0].contains("damaged"));
}

#[tokio::test]
async fn a_server_that_comes_back_is_trusted_again_by_its_peers() {
    let (controller, _, transit, _) = pair().await;
    controller.revoke("client").await;
    let client = vec!["client".to_owned()];
    transit.until("revoked", |world| world.revocations.last() == Some(&client)).await;
    controller.add("client", 60).await;
    transit.until("trusted", |world| world.revocations.last() == Some(&vec![])).await;
}

#[tokio::test]
async fn a_token_is_good_for_a_week_at_most() {
    let controller = Controller::start(tempfile::tempdir().unwrap()).await;
    controller.add("client", 7 * 86_400).await;
    let message = v1::AddServerRequest {
        name: "client".into(),
        role: "client".into(),
        token_seconds: 7 * 86_400 + 1,
    };
    let refused = controller.operators().await.add_server(controller.with_token(message)).await;
    let fault: Fault = serde_json::from_slice(refused.unwrap_err().details()).unwrap();
    assert!(fault.message.contains("at most 7 days") && !fault.remedy.is_empty(), "{fault}");
}

/// A connection that died unnoticed: the agent's old stream ends when it connects again.
#[tokio::test]
async fn a_session_that_is_replaced_ends() {
    let (controller, client, _, identities) = pair().await;
    let first = client.play(&controller.address, &identities[0]);
    controller.until_connected("client").await;
    client.play(&controller.address, &identities[0]);
    tokio::time::timeout(Duration::from_secs(10), first).await.expect("it ends").unwrap().unwrap();
}

#[tokio::test]
async fn an_inspection_that_fails_says_where_and_that_nothing_was_changed() {
    let (controller, client, _, _) = pair().await;
    let broken = Fault::permanent("no such disk");
    client.world.lock().unwrap().failing.insert("inspect".into(), broken);
    let fault = controller.plan("demo", "transit").await.unwrap_err();
    for part in ["client", "demo", "nothing was changed"] {
        assert!(fault.message.contains(part), "{part}: {fault}");
    }
    assert_eq!(fault.causes, ["no such disk"]);
}
