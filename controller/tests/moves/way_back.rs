//! Where a rollback goes, as this controller's own jobs say: an agent's word alone draws no account to its
//! server.

use super::*;

impl Controller {
    async fn rollback(&self, to: &str) -> Result<(String, String), Fault> {
        let message = v1::PlanMoveRequest {
            account: "demo".into(),
            to: to.into(),
            direction: "rollback".into(),
            ..v1::PlanMoveRequest::default()
        };
        let answer = self.operators().await.plan_move(self.with_token(message)).await;
        let answer = answer.map_err(|s| serde_json::from_slice::<Fault>(s.details()).unwrap())?;
        let plan: serde_json::Value = serde_json::from_slice(&answer.into_inner().plan).unwrap();
        let end = |name: &str| plan[name].as_str().unwrap().to_owned();
        Ok((end("source"), end("target")))
    }
}

fn moved(epoch: u64) -> AccountState {
    AccountState {
        moved_to: Some("transit".parse().unwrap()),
        ..stands(StandingKind::Moved, epoch)
    }
}

#[tokio::test]
async fn a_rollback_goes_where_the_controllers_own_job_came_from_whoever_else_claims_it() {
    let (controller, client, transit, [at_client, at_transit]) = pair().await;
    let plan = controller.plan("demo", "transit").await.unwrap();
    let job = controller.start_move(&plan.plan_id).await;
    assert_eq!(controller.end_of(&job).await.phase, JobPhase::Done);
    client.says(&controller, &at_client, &moved(1)).await;
    transit.says(&controller, &at_transit, &stands(StandingKind::Serving, 1)).await;
    let back = || ("transit".to_owned(), "client".to_owned());
    assert_eq!(controller.rollback("").await.unwrap(), back());
    let (stolen, at_stolen) = third(&controller, 0).await;
    for epoch in [1, 1_000_000_000] {
        stolen.says(&controller, &at_stolen, &moved(epoch)).await;
        assert_eq!(controller.rollback("").await.unwrap(), back(), "{epoch}");
    }
    // A store without the job, as after the controller was lost: a person must say where to.
    controller.sql(format!("DELETE FROM journal WHERE job = '{job}'; DELETE FROM jobs")).await;
    let fault = controller.rollback("").await.unwrap_err();
    assert!(fault.remedy.contains("ferry rollback demo --to SERVER"), "{fault}");
    assert_eq!(controller.rollback("client").await.unwrap(), back());
}
