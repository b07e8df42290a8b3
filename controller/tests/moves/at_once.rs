//! Several moves at once: within the limits of each server, in the order in which they were started, and
//! never two of one account.

use super::*;

use ferry_proto::view::{Place, PlaceKind, StepPhase};

/// A pair whose client serves these accounts and whose transit server serves those.
async fn pair_of(
    limits: MoveLimits,
    client: &[&str],
    transit: &[&str],
) -> (Controller, [Player; 2], [Arc<Identity>; 2]) {
    let controller = Controller::with(tempfile::tempdir().unwrap(), limits).await;
    let players = [Player::new("client"), Player::new("transit")];
    let mut identities = Vec::new();
    for (player, accounts) in players.iter().zip([client, transit]) {
        player.world.lock().unwrap().serves(accounts);
        let dir = tempfile::tempdir().unwrap();
        let token = controller.add(player.name.as_str(), 60).await;
        let identity = controller.enrol(&token, &dir.path().join("identity")).await.unwrap();
        player.play(&controller.address, &identity);
        identities.push(identity);
    }
    for (player, accounts) in players.iter().zip([client, transit]) {
        for account in accounts {
            controller.until_known(player.name.as_str(), account).await;
        }
    }
    (controller, players, identities.try_into().unwrap())
}

impl Controller {
    async fn until_known(&self, server: &str, account: &str) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let message = self.with_token(v1::ListAccountsRequest {});
            let list = self.operators().await.list_accounts(message).await.unwrap().into_inner();
            if list.accounts.iter().any(|a| a.server == server && a.name == account && a.connected)
            {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{account} on {server} is not known");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn moves(&self, account: &str, to: &str) -> String {
        let plan = self.plan(account, to).await.unwrap();
        self.start_move(&plan.plan_id).await
    }

    /// The jobs that have not ended, as the overview shows them.
    async fn running(&self) -> Vec<JobView> {
        let message = v1::ListJobsRequest { account: String::new(), running: true };
        let list = self.operators().await.list_jobs(self.with_token(message)).await;
        let jobs = list.unwrap().into_inner().jobs;
        jobs.iter().map(|job| serde_json::from_slice(job).unwrap()).collect()
    }

    /// Waits until the overview shows that a job waits for this, or for nothing.
    async fn until_waits(&self, job: &str, place: Option<&Place>) -> JobView {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let view = self.running().await.into_iter().find(|v| v.job.to_string() == job);
            if let Some(view) = view
                && view.waiting_for.as_ref() == place
            {
                return view;
            }
            assert!(tokio::time::Instant::now() < deadline, "{job} does not wait for {place:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn place(server: &str, kind: PlaceKind) -> Place {
    Place { server: server.parse().unwrap(), kind }
}

/// Answers from now on, also what was not answered before.
async fn heals(player: &Player, controller: &Controller, identity: &Arc<Identity>) {
    player.leave(controller).await;
    player.world.lock().unwrap().silent.clear();
    player.play(&controller.address, identity);
}

#[tokio::test]
async fn moves_beyond_the_limit_wait_in_their_order_across_a_restart_and_are_aborted_at_once() {
    let limits = MoveLimits { source: 3, target: 1, fence: 1 };
    let (controller, [client, transit], identities) = pair_of(limits, &["a", "b", "c"], &[]).await;
    client.world.lock().unwrap().silent.push("precopy".into());
    let first = controller.moves("a", "transit").await;
    client.until_waiting("precopy").await;
    let full = place("transit", PlaceKind::Target);
    let second = controller.moves("b", "transit").await;
    let third = controller.moves("c", "transit").await;
    for job in [&second, &third] {
        let view = controller.until_waits(job, Some(&full)).await;
        assert_eq!(view.phase, JobPhase::Running);
        assert!(view.advice.contains("waits for a place on transit"), "{}", view.advice);
    }
    let dir = controller.crash().await;
    let controller = Controller::with(dir, limits).await;
    for job in [&second, &third] {
        controller.until_waits(job, Some(&full)).await;
    }
    // With no agent there, and nothing begun.
    assert_eq!(controller.abort("b").await.unwrap(), second);
    let view = controller.end_of(&second).await;
    assert_eq!(view.phase, JobPhase::Undone);
    assert!(view.steps.iter().all(|step| step.started_unix_ms.is_none()), "{view:?}");
    client.world.lock().unwrap().silent.clear();
    client.play(&controller.address, &identities[0]);
    transit.play(&controller.address, &identities[1]);
    for job in [&first, &third] {
        let view = controller.end_of(job).await;
        assert_eq!((view.phase, view.waiting_for), (JobPhase::Done, None));
    }
    let done = transit.world.lock().unwrap().done_for.clone();
    let at = |kind: &str, account: &str| {
        done.iter().position(|(k, a)| k == kind && a == account).unwrap()
    };
    assert!(at("open", "a") < at("provision", "c"), "{done:?}");
}

#[tokio::test]
async fn who_may_not_enter_the_fence_yet_waits_before_anything_stands_in_front() {
    let limits = MoveLimits { source: 3, target: 3, fence: 1 };
    let (controller, [client, _], identities) = pair_of(limits, &["a", "b"], &["c"]).await;
    client.world.lock().unwrap().silent.push("verify".into());
    let first = controller.moves("a", "transit").await;
    client.until_waiting("verify").await;
    let others = [controller.moves("b", "transit").await, controller.moves("c", "client").await];
    controller.until_waits(&others[0], Some(&place("client", PlaceKind::Fence))).await;
    // The other way: it would wait for the first with either end.
    let view = controller.until_waits(&others[1], Some(&place("transit", PlaceKind::Fence))).await;
    let done = view.steps.iter().filter(|s| s.started_unix_ms.is_some()).map(|s| &s.name);
    assert_eq!(done.collect::<Vec<_>>(), ["provision", "precopy"]);
    assert_eq!(client.done().iter().filter(|kind| *kind == "arm").count(), 1);
    heals(&client, &controller, &identities[0]).await;
    for job in others.iter().chain([&first]) {
        assert_eq!(controller.end_of(job).await.phase, JobPhase::Done);
    }
    let done = client.world.lock().unwrap().done_for.clone();
    let at = |kind: &str, account: &str| {
        done.iter().position(|(k, a)| k == kind && a == account).unwrap()
    };
    assert!(at("commit", "a") < at("arm", "b"), "{done:?}");
}

/// A fence that stands when the controller dies counts when it is back, before anybody waits.
#[tokio::test]
async fn a_fence_that_stands_keeps_its_place_across_a_restart() {
    let limits = MoveLimits { source: 2, target: 2, fence: 1 };
    let (controller, [client, transit], identities) = pair_of(limits, &["a", "b"], &[]).await;
    client.world.lock().unwrap().silent.push("verify".into());
    let older = controller.moves("a", "transit").await;
    client.until_waiting("verify").await;
    let younger = controller.moves("b", "transit").await;
    let fenced = place("client", PlaceKind::Fence);
    controller.until_waits(&younger, Some(&fenced)).await;
    let controller = Controller::with(controller.crash().await, limits).await;
    client.play(&controller.address, &identities[0]);
    transit.play(&controller.address, &identities[1]);
    controller.until_waits(&younger, Some(&fenced)).await;
    assert_eq!(client.done().iter().filter(|kind| *kind == "arm").count(), 1);
    heals(&client, &controller, &identities[0]).await;
    for job in [&older, &younger] {
        assert_eq!(controller.end_of(job).await.phase, JobPhase::Done);
    }
}

#[tokio::test]
async fn whoever_goes_back_does_not_wait_for_moves_to_begin() {
    let limits = MoveLimits { source: 1, target: 1, fence: 1 };
    let (controller, [client, transit], [_, at_transit]) =
        pair_of(limits, &["a"], &["b", "c"]).await;
    transit.world.lock().unwrap().silent.push("precopy".into());
    controller.moves("b", "client").await;
    transit.until_waiting("precopy").await;
    let message = v1::PlanMoveRequest {
        account: "c".into(),
        to: "client".into(),
        direction: "rollback".into(),
        ..v1::PlanMoveRequest::default()
    };
    let plan = controller.operators().await.plan_move(controller.with_token(message)).await;
    let back = controller.start_move(&plan.unwrap().into_inner().plan_id).await;
    client.until("c", |world| world.done_for.contains(&("provision".into(), "c".into()))).await;
    heals(&transit, &controller, &at_transit).await;
    assert_eq!(controller.end_of(&back).await.phase, JobPhase::Done);
}

#[tokio::test]
async fn a_paused_move_leaves_its_place_to_others_and_waits_for_one_when_it_goes_on() {
    let limits = MoveLimits { source: 3, target: 1, fence: 1 };
    let (controller, [client, transit], [at_client, _]) = pair_of(limits, &["a", "b"], &[]).await;
    client.world.lock().unwrap().silent.push("precopy".into());
    let first = controller.moves("a", "transit").await;
    client.until_waiting("precopy").await;
    let full = place("transit", PlaceKind::Target);
    let second = controller.moves("b", "transit").await;
    controller.until_waits(&second, Some(&full)).await;
    controller.pause("a").await.unwrap();
    controller.until_paused(&first).await;
    transit.until("b", |world| world.done_for.contains(&("provision".into(), "b".into()))).await;
    controller.resume("", "a").await.unwrap();
    controller.until_waits(&first, Some(&full)).await;
    // At once, with nothing under way.
    controller.pause("a").await.unwrap();
    let view = controller.until_paused(&first).await;
    assert_eq!((view.waiting_for, view.steps[1].attempts), (None, 1));
    heals(&client, &controller, &at_client).await;
    assert_eq!(controller.end_of(&second).await.phase, JobPhase::Done);
    controller.resume("", "a").await.unwrap();
    assert_eq!(controller.end_of(&first).await.phase, JobPhase::Done);
}

#[tokio::test]
async fn a_move_that_waits_for_a_place_after_its_pause_takes_none_by_a_restart() {
    let limits = MoveLimits { source: 3, target: 1, fence: 1 };
    let (controller, [client, transit], identities) = pair_of(limits, &["a", "b"], &[]).await;
    client.world.lock().unwrap().silent.push("precopy".into());
    let first = controller.moves("a", "transit").await;
    client.until_waiting("precopy").await;
    controller.pause("a").await.unwrap();
    controller.until_paused(&first).await;
    let second = controller.moves("b", "transit").await;
    client.until_waiting("precopy").await;
    controller.resume("", "a").await.unwrap();
    let full = place("transit", PlaceKind::Target);
    controller.until_waits(&first, Some(&full)).await;

    let controller = Controller::with(controller.crash().await, limits).await;
    client.play(&controller.address, &identities[0]);
    transit.play(&controller.address, &identities[1]);
    controller.until_waits(&first, Some(&full)).await;
    heals(&client, &controller, &identities[0]).await;
    for job in [&second, &first] {
        assert_eq!(controller.end_of(job).await.phase, JobPhase::Done);
    }
}

/// Copied whole, it is still served.
#[tokio::test]
async fn a_move_that_waits_for_its_fence_is_paused_at_once() {
    let limits = MoveLimits { source: 2, target: 2, fence: 1 };
    let (controller, [client, transit], identities) = pair_of(limits, &["a", "b"], &[]).await;
    client.world.lock().unwrap().silent.push("verify".into());
    let older = controller.moves("a", "transit").await;
    client.until_waiting("verify").await;
    let younger = controller.moves("b", "transit").await;
    let fenced = place("client", PlaceKind::Fence);
    controller.until_waits(&younger, Some(&fenced)).await;
    controller.pause("b").await.unwrap();
    let view = controller.until_paused(&younger).await;
    let done = view.steps.iter().filter(|s| s.phase == StepPhase::Done).map(|s| &s.name);
    assert_eq!(done.collect::<Vec<_>>(), ["provision", "precopy"]);
    heals(&client, &controller, &identities[0]).await;
    assert_eq!(controller.end_of(&older).await.phase, JobPhase::Done);
    assert_eq!(controller.view(&younger).await.phase, JobPhase::Paused);
    controller.resume("", "b").await.unwrap();
    let view = controller.end_of(&younger).await;
    // What has changed meanwhile is copied while the account is still served.
    assert_eq!((view.phase, view.steps[1].attempts), (JobPhase::Done, 2), "{view:?}");
    let done = client.world.lock().unwrap().done_for.clone();
    let of_b: Vec<_> = done.iter().filter(|(_, account)| account == "b").map(|(k, _)| k).collect();
    assert_eq!(of_b[..4], ["inspect", "precopy", "precopy", "arm"], "{of_b:?}");
    assert_eq!(transit.done().iter().filter(|kind| *kind == "open").count(), 2);
}

/// A source that is lost while its fence is undone has nothing to do with the fences of the other server.
#[tokio::test]
async fn a_move_that_is_undone_gives_its_targets_fence_to_others_also_after_a_restart() {
    let limits = MoveLimits { source: 3, target: 3, fence: 1 };
    let (controller, [client, transit], [_, at_transit]) =
        pair_of(limits, &["a"], &["b", "c"]).await;
    let (third, at_third) = third(&controller, 0).await;
    third.play(&controller.address, &at_third);
    controller.until_known("third", "other").await;
    {
        let mut world = client.world.lock().unwrap();
        world.failing.insert("verify".into(), Fault::precondition("a table differs"));
        world.silent.push("unfence".into());
    }
    let lost = controller.moves("a", "transit").await;
    client.until_waiting("unfence").await;
    let back = controller.moves("b", "third").await;
    transit.until("fenced", |world| world.done_for.contains(&("fence".into(), "b".into()))).await;
    assert_eq!(controller.end_of(&back).await.phase, JobPhase::Done);

    let controller = Controller::with(controller.crash().await, limits).await;
    transit.play(&controller.address, &at_transit);
    third.play(&controller.address, &at_third);
    controller.until_connected("transit").await;
    controller.until_connected("third").await;
    let back = controller.moves("c", "third").await;
    transit.until("fenced", |world| world.done_for.contains(&("fence".into(), "c".into()))).await;
    assert_eq!(controller.end_of(&back).await.phase, JobPhase::Done);
    let waits = controller.running().await;
    assert_eq!(waits.iter().map(|view| view.job.to_string()).collect::<Vec<_>>(), [lost]);
}

#[tokio::test]
async fn of_many_who_start_at_once_one_account_has_one_job() {
    let (controller, client, transit, identities) = pair().await;
    client.world.lock().unwrap().silent.push("precopy".into());
    let mut plans = Vec::new();
    for _ in 0..8 {
        plans.push(controller.plan("demo", "transit").await.unwrap().plan_id);
    }
    let mut starting = tokio::task::JoinSet::new();
    for plan in plans {
        let mut operators = controller.operators().await;
        let request = controller.with_token(v1::StartMoveRequest { plan_id: plan });
        starting.spawn(async move { operators.start_move(request).await });
    }
    let (mut started, mut refused) = (Vec::new(), Vec::new());
    while let Some(answer) = starting.join_next().await {
        match answer.unwrap() {
            Ok(answer) => started.push(answer.into_inner().job),
            Err(status) => {
                refused.push(serde_json::from_slice::<Fault>(status.details()).unwrap());
            }
        }
    }
    assert_eq!((started.len(), refused.len()), (1, 7), "{started:?}, {refused:?}");
    let words = ["account demo has a job under way", "from client to transit", &started[0]];
    client.until_waiting("precopy").await;
    refused.push(controller.plan("demo", "transit").await.unwrap_err());
    refused.push(controller.finalize("", false).await.unwrap_err());
    for fault in &refused {
        assert_eq!(fault.class, FaultClass::Precondition);
        assert!(words.iter().all(|word| fault.message.contains(word)), "{fault}");
        assert!(fault.remedy.contains("ferry abort demo"), "{fault}");
    }
    heals(&client, &controller, &identities[0]).await;
    assert_eq!(controller.end_of(&started[0]).await.phase, JobPhase::Done);
    assert_eq!(transit.done().iter().filter(|kind| *kind == "provision").count(), 1);
}
