//! What is approved is in the plan with who approved it, in the grants of the steps that see files, in the
//! events, and in the way back.

use ferry_proto::approval::Approval;

use super::player::tool;
use super::*;

impl Controller {
    async fn plan_approving(
        &self,
        direction: &str,
        to: &str,
        approve: &[&str],
    ) -> Result<(String, serde_json::Value), Fault> {
        let message = v1::PlanMoveRequest {
            account: "demo".into(),
            to: to.into(),
            direction: direction.into(),
            approve: approve.iter().map(|path| (*path).to_owned()).collect(),
            ..v1::PlanMoveRequest::default()
        };
        let answer = self.operators().await.plan_move(self.with_token(message)).await;
        let answer = answer.map_err(|s| serde_json::from_slice::<Fault>(s.details()).unwrap())?;
        let answer = answer.into_inner();
        Ok((answer.plan_id, serde_json::from_slice(&answer.plan).unwrap()))
    }

    async fn texts(&self, job: &str) -> Vec<String> {
        let message = v1::ListEventsRequest { job: job.into(), ..v1::ListEventsRequest::default() };
        let events = self.operators().await.list_events(self.with_token(message)).await.unwrap();
        let mut events = events.into_inner();
        let mut texts = Vec::new();
        while let Some(event) = events.message().await.unwrap() {
            texts.push(event.text);
        }
        texts
    }
}

fn approvals(plan: &serde_json::Value) -> Vec<Approval> {
    plan.get("approvals").map_or_else(Vec::new, |all| serde_json::from_value(all.clone()).unwrap())
}

#[tokio::test]
async fn what_is_approved_is_granted_to_the_steps_that_see_files_and_inherited_by_the_way_back() {
    let (controller, client, transit, [at_client, at_transit]) = pair().await;
    let (id, plan) = controller.plan_approving("outbound", "transit", &["bin/tool"]).await.unwrap();
    let first = approvals(&plan);
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].what, tool("bin/tool"));
    assert!(!first[0].by.is_empty() && first[0].at_unix_ms > 0, "{first:?}");
    let job = controller.start_move(&id).await;
    assert_eq!(controller.end_of(&job).await.phase, JobPhase::Done);
    let of = |kind: &str| (kind.to_owned(), "bin/tool".to_owned());
    let approved = client.world.lock().unwrap().approved.clone();
    assert_eq!(approved, ["precopy", "final_pass", "verify"].map(of));
    assert!(transit.world.lock().unwrap().approved.is_empty());
    let texts = controller.texts(&job).await;
    let told = format!("bin/tool: {} (approved by {})", first[0].what.seen, first[0].by);
    assert!(texts.iter().any(|text| text.contains(&told)), "{texts:?}");
    let moved = AccountState {
        moved_to: Some("transit".parse().unwrap()),
        ..stands(StandingKind::Moved, 1)
    };
    client.says(&controller, &at_client, &moved).await;
    transit.says(&controller, &at_transit, &stands(StandingKind::Serving, 1)).await;
    for direction in ["rollback", "return"] {
        let (_, plan) = controller.plan_approving(direction, "client", &[]).await.unwrap();
        assert_eq!(approvals(&plan), first, "{direction}");
    }
    // Another move from there is none of that one's.
    let (_, plan) = controller.plan_approving("outbound", "client", &[]).await.unwrap();
    assert!(approvals(&plan).is_empty(), "{plan}");
}
