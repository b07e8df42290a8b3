//! A source is lost with the only word on whether it has committed: the target is opened by force, and the
//! source, if it comes back, is told before anything else.

use ferry_store::{SqliteStore, Store as _};

use super::player::World;
use super::*;

const FORCED: &str = "transit opens the account by force, without the word of client: it is off and isolated, says an operator";

/// As often as the engine asks a source that answers something else than yes or no.
const OFTEN: u32 = 12;

impl Controller {
    async fn force_open(&self, off: &str) -> Result<String, Fault> {
        let message = v1::ForceOpenRequest { account: "demo".into(), source_is_off: off.into() };
        let answer = self.operators().await.force_open(self.with_token(message)).await;
        answer.map(|a| a.into_inner().job).map_err(|s| serde_json::from_slice(s.details()).unwrap())
    }

    pub(crate) async fn view(&self, job: &str) -> JobView {
        let message = v1::ListJobsRequest::default();
        let list = self.operators().await.list_jobs(self.with_token(message)).await.unwrap();
        let jobs = list.into_inner().jobs;
        let views = jobs.iter().map(|job| serde_json::from_slice::<JobView>(job).unwrap());
        views.into_iter().find(|view| view.job.to_string() == job).unwrap()
    }

    async fn standing_at(&self, server: &str) -> String {
        let message = self.with_token(v1::ListAccountsRequest {});
        let list = self.operators().await.list_accounts(message).await.unwrap().into_inner();
        list.accounts.into_iter().find(|a| a.server == server).unwrap().standing
    }
}

fn of_job(job: &str, standing: StandingKind) -> AccountState {
    AccountState { job: Some(job.parse().unwrap()), ..stands(standing, 0) }
}

/// A move whose source has gone without a word on the commit that was asked of it.
struct Lost {
    controller: Controller,
    client: Player,
    transit: Player,
    at_client: Arc<Identity>,
    at_transit: Arc<Identity>,
    job: String,
}

impl Lost {
    /// Before the source goes, and before the target has said what it has.
    async fn asked() -> Self {
        let (controller, client, transit, [at_client, at_transit]) = pair().await;
        client.world.lock().unwrap().silent.push("commit".into());
        let plan = controller.plan("demo", "transit").await.unwrap();
        let job = controller.start_move(&plan.plan_id).await;
        client.until_waiting("commit").await;
        client.says(&controller, &at_client, &of_job(&job, StandingKind::Fenced)).await;
        Self { controller, client, transit, at_client, at_transit, job }
    }

    async fn source() -> Self {
        let lost = Self::asked().await;
        lost.transit_has_the_copy().await;
        lost.client.leave(&lost.controller).await;
        lost
    }

    async fn transit_has_the_copy(&self) {
        let has = of_job(&self.job, StandingKind::Provisioned);
        self.transit.says(&self.controller, &self.at_transit, &has).await;
    }

    async fn comes_back(&self) {
        self.client.world.lock().unwrap().silent.clear();
        self.client.play(&self.controller.address, &self.at_client);
    }

    async fn until_open(&self) {
        let open = |world: &World| world.done.contains(&"open by force".to_owned());
        self.transit.until("open", open).await;
    }
}

#[tokio::test]
async fn only_what_is_unheard_is_opened_by_force_and_only_by_the_name_of_its_source() {
    let lost = Lost::asked().await;
    let Lost { controller, client, transit, .. } = &lost;
    let refused = async |off: &str, part: &str| {
        let fault = controller.force_open(off).await.unwrap_err();
        assert!(fault.message.contains(part) && !fault.remedy.is_empty(), "{part}: {fault}");
    };
    refused("client", "client is connected").await;
    client.leave(controller).await;
    refused("client", "no copy of account demo").await;
    lost.transit_has_the_copy().await;
    refused("transit", "source of account demo is client, not transit").await;
    transit.leave(controller).await;
    refused("client", "transit is not connected").await;
    lost.transit_has_the_copy().await;
    assert!(!transit.done().iter().any(|kind| kind.starts_with("open")), "{:?}", transit.done());
    assert!(!controller.journal().await.iter().any(|said| said == FORCED));
    lost.comes_back().await;
    assert_eq!(controller.end_of(&lost.job).await.phase, JobPhase::Done);
    refused("client", "not committed, unheard").await;
}

#[tokio::test]
async fn a_lost_source_is_told_before_anything_else_whenever_it_comes_back() {
    let mut lost = Lost::source().await;
    // Two operators at once are one.
    let force = || lost.controller.force_open("client");
    let (one, other) = tokio::join!(force(), force());
    assert!([&one, &other].iter().any(|answer| answer.as_ref() == Ok(&lost.job)));
    lost.until_open().await;
    let said = lost.controller.journal().await;
    assert_eq!(said.iter().filter(|said| *said == FORCED).count(), 1, "{said:?}");
    let view = lost.controller.view(&lost.job).await;
    assert_eq!(view.forced.as_ref().map(|f| f.by.as_str()), Some("an operator"));
    assert!(!view.commit_unheard && view.committed, "{view:?}");
    assert!(view.advice.contains("Keep client off and isolated"), "{}", view.advice);
    assert_eq!(lost.controller.standing_at("client").await, "lost; opened by force on transit");
    let fault = lost.controller.abort("demo").await.unwrap_err();
    assert!(fault.remedy.contains("ferry server revoke client"), "{fault}");
    // The controller's end does not end the wait.
    lost.controller = Controller::start(lost.controller.crash().await).await;
    lost.transit.play(&lost.controller.address, &lost.at_transit);
    let before = lost.client.done().len();
    lost.comes_back().await;
    let view = lost.controller.end_of(&lost.job).await;
    assert_eq!((view.phase, view.forced.is_some()), (JobPhase::Done, true), "{view:?}");
    assert_eq!(lost.client.done()[before..], ["release by force"]);
    assert!(view.advice.contains("orders/4711"), "{}", view.advice);
    let said = lost.controller.journal().await;
    assert!(
        said.iter().any(|s| s.starts_with("release on client: done: it had served")
            && s.contains("orders/4711")),
        "{said:?}"
    );
}

/// The engine gave up asking before the operator came.
#[tokio::test]
async fn a_stuck_job_is_taken_up_by_the_word() {
    let mut lost = Lost::source().await;
    let dir = lost.controller.crash().await;
    lost.controller = Controller::with_failed_commits(dir, &lost.job, OFTEN).await;
    lost.transit_has_the_copy().await;
    let view = lost.controller.view(&lost.job).await;
    assert_eq!((view.phase, view.commit_unheard), (JobPhase::Stuck, true), "{view:?}");
    assert_eq!(lost.controller.force_open("client").await.unwrap(), lost.job);
    lost.until_open().await;
    lost.comes_back().await;
    assert_eq!(lost.controller.end_of(&lost.job).await.phase, JobPhase::Done);
}

impl Controller {
    /// Starts again as if the source had been asked, and had not been understood, so often, once a minute.
    async fn with_failed_commits(dir: tempfile::TempDir, job: &str, times: u32) -> Self {
        let store = SqliteStore::open(&dir.path().join("ferry.db")).await.unwrap();
        let id = job.parse().unwrap();
        let row = store.job(id).await.unwrap().unwrap();
        let plan: serde_json::Value = serde_json::from_str(&row.plan).unwrap();
        let steps = plan["steps"].as_array().unwrap();
        let step = steps.iter().position(|step| step["name"] == "commit").unwrap();
        let fault = serde_json::to_value(Fault::permanent("its answer cannot be read")).unwrap();
        for attempt in 1..=times {
            let at_ms = i64::from(attempt) * 60_000;
            let failed = serde_json::json!({"event": "step_failed", "step": step, "fault": fault});
            store.append_event(id, &failed.to_string(), at_ms).await.unwrap();
            if attempt < times {
                let next = attempt + 1;
                let started =
                    serde_json::json!({"event": "step_started", "step": step, "attempt": next});
                store.append_event(id, &started.to_string(), at_ms).await.unwrap();
            }
        }
        if times == OFTEN {
            store.end_job(id, "stuck", 1).await.unwrap();
        }
        drop(store);
        Self::start(dir).await
    }
}

#[tokio::test]
async fn cutting_the_source_off_ends_the_wait() {
    let lost = Lost::source().await;
    lost.controller.force_open("client").await.unwrap();
    lost.until_open().await;
    lost.controller.revoke("client").await;
    let view = lost.controller.end_of(&lost.job).await;
    assert_eq!(view.phase, JobPhase::Done, "{view:?}");
    assert!(view.advice.contains("cut off before it came back"), "{}", view.advice);
}

/// The target had refused what the source itself had told it: then the source serves the account again.
#[tokio::test]
async fn a_target_that_had_refused_gives_the_account_back_when_the_source_returns() {
    let lost = Lost::source().await;
    let refusal = Refusal {
        job: lost.job.parse().unwrap(),
        account: "demo".parse().unwrap(),
        source: "client".parse().unwrap(),
        target: "transit".parse().unwrap(),
        epoch: Epoch(1),
        reason: "the disk is full".into(),
        at_unix_ms: 0,
    };
    let fault = Fault::refused(refusal);
    lost.transit.world.lock().unwrap().failing.insert("open".into(), fault);
    lost.controller.force_open("client").await.unwrap();
    lost.comes_back().await;
    let view = lost.controller.end_of(&lost.job).await;
    assert_eq!(view.phase, JobPhase::Undone, "{view:?}");
    assert!(lost.client.done().contains(&"take_back".to_owned()), "{:?}", lost.client.done());
}

/// While the source is away its job holds no place, before the word and after it: there is one place inside
/// a fence at the target.
#[tokio::test]
async fn who_waits_for_a_lost_source_keeps_nobody_from_its_servers() {
    for forced in [false, true] {
        let mut lost = Lost::source().await;
        if forced {
            lost.controller.force_open("client").await.unwrap();
            lost.until_open().await;
        } else {
            // An attempt is over only after a while.
            let dir = lost.controller.crash().await;
            lost.controller = Controller::with_failed_commits(dir, &lost.job, 1).await;
            lost.transit_has_the_copy().await;
        }
        let controller = &lost.controller;
        let spare = Player::new("spare");
        spare.world.lock().unwrap().serves(&["other"]);
        let dir = tempfile::tempdir().unwrap();
        let token = controller.add("spare", 60).await;
        let identity = controller.enrol(&token, &dir.path().join("identity")).await.unwrap();
        spare.play(&controller.address, &identity);
        let serving = stands(StandingKind::Serving, 0);
        let known = async {
            while !controller.knows("spare", &serving).await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), known).await.expect("spare is known");
        let plan = controller.plan("other", "transit").await.unwrap();
        let moved = controller.start_move(&plan.plan_id).await;
        let end = tokio::time::timeout(Duration::from_secs(60), controller.end_of(&moved)).await;
        assert_eq!(end.expect("it waits").phase, JobPhase::Done, "forced {forced}");
        assert_eq!(controller.view(&lost.job).await.phase, JobPhase::Running);
    }
}
