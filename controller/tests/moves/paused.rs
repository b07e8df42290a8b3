//! A move that is paused while its account is still served, and goes on.

use super::*;
use ferry_proto::view::StepPhase;

/// A move of `demo` whose precopy goes on until it is stopped.
async fn copying(controller: &Controller, client: &Player) -> String {
    client.world.lock().unwrap().silent.push("precopy".into());
    let plan = controller.plan("demo", "transit").await.unwrap();
    let job = controller.start_move(&plan.plan_id).await;
    client.until_waiting("precopy").await;
    job
}

#[tokio::test]
async fn a_move_is_paused_stays_so_across_a_restart_and_goes_on_where_it_was() {
    let (controller, client, transit, identities) = pair().await;
    let job = copying(&controller, &client).await;
    assert_eq!(controller.pause("demo").await.unwrap(), job);
    assert!(controller.journal().await.contains(&"pause requested by an operator".to_owned()));
    let view = controller.until_paused(&job).await;
    assert_eq!(client.world.lock().unwrap().cancelled, ["precopy"]);
    assert_eq!(view.paused.as_ref().map(|paused| paused.by.as_str()), Some("an operator"));
    assert!(view.advice.contains("ferry resume demo"), "{}", view.advice);
    let precopy = &view.steps[1];
    assert_eq!((precopy.phase, &precopy.fault), (StepPhase::Waiting, &None), "it has not failed");
    let fault = controller.pause("demo").await.unwrap_err();
    assert!(fault.message.contains("paused already, by an operator"), "{fault}");

    let controller = Controller::start(controller.crash().await).await;
    for (player, identity) in [&client, &transit].into_iter().zip(&identities) {
        player.play(&controller.address, identity);
        controller.until_connected(player.name.as_str()).await;
    }
    let again = controller.view(&job).await;
    assert_eq!((again.phase, &again.paused), (JobPhase::Paused, &view.paused));
    let fault = controller.plan("demo", "transit").await.unwrap_err();
    assert!(fault.message.contains("has a job under way"), "the account is locked: {fault}");
    assert!(fault.remedy.contains("ferry resume demo"), "{fault}");
    assert!(client.world.lock().unwrap().waiting.is_empty(), "nothing was commanded");

    client.world.lock().unwrap().silent.clear();
    assert_eq!(controller.resume("", "demo").await.unwrap(), job);
    let view = controller.end_of(&job).await;
    assert_eq!((view.phase, &view.paused), (JobPhase::Done, &None), "{view:?}");
    assert_eq!(view.steps[1].attempts, 2);
    assert_eq!(transit.done().iter().filter(|kind| *kind == "provision").count(), 1);
    assert!(!transit.done().contains(&"deprovision".to_owned()));
    assert!(controller.journal().await.contains(&"resumed by an operator".to_owned()));
    let fault = controller.pause("demo").await.unwrap_err();
    assert!(fault.message.contains("no job of account demo is running"), "{fault}");
}

#[tokio::test]
async fn a_paused_move_that_is_aborted_is_undone() {
    let (controller, client, transit, _) = pair().await;
    let job = copying(&controller, &client).await;
    controller.pause("demo").await.unwrap();
    controller.until_paused(&job).await;
    assert_eq!(controller.abort("demo").await.unwrap(), job);
    let view = controller.end_of(&job).await;
    assert_eq!((view.phase, &view.paused), (JobPhase::Undone, &None), "{view:?}");
    assert_eq!(transit.done().last().unwrap(), "deprovision");
    assert!(!client.done().contains(&"precopy".to_owned()), "{:?}", client.done());
}

/// Nobody else can say that it has stopped: it may copy for as long as it is away.
#[tokio::test]
async fn a_move_whose_source_is_away_is_paused_when_that_is_back_and_has_stopped() {
    let (controller, client, _, [at_client, _]) = pair().await;
    let job = copying(&controller, &client).await;
    client.leave(&controller).await;
    controller.pause("demo").await.unwrap();
    let controller = Controller::start(controller.crash().await).await;
    let view = controller.view(&job).await;
    assert!(view.phase == JobPhase::Running && view.paused.is_some(), "{view:?}");
    assert!(client.world.lock().unwrap().cancelled.is_empty());
    client.play(&controller.address, &at_client);
    controller.until_paused(&job).await;
    assert_eq!(client.world.lock().unwrap().cancelled, ["precopy"]);
}

/// Its agent takes its time, or is away: the wish is journalled, and lifted again.
#[tokio::test]
async fn what_is_about_to_pause_can_be_told_to_go_on() {
    let (controller, client, _, [at_client, _]) = pair().await;
    let job = copying(&controller, &client).await;
    client.leave(&controller).await;
    controller.pause("demo").await.unwrap();
    let view = controller.view(&job).await;
    assert!(view.phase == JobPhase::Running && view.paused.is_some(), "{view:?}");
    assert!(view.advice.contains("about to pause"), "{}", view.advice);
    assert_eq!(controller.resume(&job, "").await.unwrap(), job);
    client.world.lock().unwrap().silent.clear();
    client.play(&controller.address, &at_client);
    assert_eq!(controller.end_of(&job).await.phase, JobPhase::Done);
}

#[tokio::test]
async fn a_fence_is_not_paused() {
    let (controller, client, _, [at_client, _]) = pair().await;
    client.world.lock().unwrap().silent.push("verify".into());
    let plan = controller.plan("demo", "transit").await.unwrap();
    let job = controller.start_move(&plan.plan_id).await;
    client.until_waiting("verify").await;
    let fault = controller.pause("demo").await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Precondition);
    assert!(fault.message.contains("cannot be paused: it is at verify"), "{fault}");
    assert!(fault.remedy.contains("ferry abort demo"), "{fault}");
    let fault = controller.resume("", "demo").await.unwrap_err();
    assert!(fault.message.contains("is running: only a stuck job"), "{fault}");
    client.leave(&controller).await;
    client.world.lock().unwrap().silent.clear();
    client.play(&controller.address, &at_client);
    assert_eq!(controller.end_of(&job).await.phase, JobPhase::Done);
    let wishes = ["pause requested by an operator", "resumed by an operator"];
    let journal = controller.journal().await;
    assert!(journal.iter().all(|event| !wishes.contains(&event.as_str())), "{journal:?}");
}

#[tokio::test]
async fn the_end_of_a_move_is_not_paused() {
    let (controller, client, transit, [at_client, at_transit]) = pair().await;
    let moved = AccountState {
        moved_to: Some("transit".parse().unwrap()),
        ..stands(StandingKind::Moved, 1)
    };
    client.says(&controller, &at_client, &moved).await;
    transit.says(&controller, &at_transit, &stands(StandingKind::Serving, 1)).await;
    transit.world.lock().unwrap().silent.push("prove".into());
    controller.finalize("", false).await.unwrap();
    transit.until_waiting("prove").await;
    let fault = controller.pause("demo").await.unwrap_err();
    assert!(fault.message.contains("is being ended for good"), "{fault}");
}
