//! A controller whose store was restored from an old backup, or that has another beside it: overtaken by
//! what the agents have obeyed, it commands nothing until it is adopted.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use ferry_fleet::authority::Authority;
use ferry_proto::ids::ServerName;
use ferry_store::{SqliteStore, Store as _};

use super::*;

impl Controller {
    async fn overview(&self) -> (Vec<JobView>, Vec<String>) {
        let message = v1::ListJobsRequest::default();
        let list = self.operators().await.list_jobs(self.with_token(message)).await;
        let list = list.unwrap().into_inner();
        let jobs = list.jobs.iter().map(|job| serde_json::from_slice(job).unwrap()).collect();
        (jobs, list.problems)
    }

    async fn until_overtaken(&self) -> Vec<String> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let (_, problems) = self.overview().await;
            if problems.iter().any(|p| p.contains("does not go on")) {
                return problems;
            }
            assert!(tokio::time::Instant::now() < deadline, "not overtaken: {problems:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn account(name: &str, standing: StandingKind, epoch: u64, job: Option<&str>) -> AccountState {
    AccountState {
        name: name.parse().unwrap(),
        job: job.map(|job| job.parse().unwrap()),
        ..stands(standing, epoch)
    }
}

#[tokio::test]
async fn a_controller_that_agents_have_overtaken_leaves_its_jobs_and_says_so() {
    let (controller, client, transit, identities) = pair().await;
    client.world.lock().unwrap().silent.push("precopy".into());
    let plan = controller.plan("demo", "transit").await.unwrap();
    let next = controller.plan("demo", "transit").await.unwrap();
    let job = controller.start_move(&plan.plan_id).await;
    client.until_waiting("precopy").await;
    let journal = controller.journal().await;
    // Another controller, restored and adopted, has had this agent meanwhile.
    client.leave(&controller).await;
    client.world.lock().unwrap().obeyed = 7;
    client.world.lock().unwrap().silent.clear();
    client.play(&controller.address, &identities[0]);
    let problems = controller.until_overtaken().await;
    for words in ["has been overtaken", "generation 1", "client has obeyed generation 7"] {
        assert!(problems[0].contains(words), "{words}: {problems:?}");
    }
    let refusals = [
        controller.plan("demo", "transit").await.unwrap_err(),
        controller.abort("demo").await.unwrap_err(),
        controller.resume(&job, "").await.unwrap_err(),
    ];
    for fault in refusals {
        let said = fault.to_string();
        assert!(said.contains("overtaken") && !fault.remedy.is_empty(), "{said}");
    }
    let message = v1::StartMoveRequest { plan_id: next.plan_id };
    controller.operators().await.start_move(controller.with_token(message)).await.unwrap_err();
    // Also for agents that have not heard of the other one, and after a restart.
    let controller = Controller::start(controller.crash().await).await;
    transit.play(&controller.address, &identities[1]);
    client.play(&controller.address, &identities[0]);
    controller.until_overtaken().await;
    assert_eq!(controller.journal().await, journal, "neither resumed nor undone");
}

/// Runs the real program on the controller's host, while agents connect to it.
async fn adopt(
    dir: &Path,
    answer: &str,
    players: [(&Player, &Arc<Identity>); 2],
) -> (bool, String) {
    adopt_without(dir, answer, None, players).await
}

/// The same, without a server whose agent has reported its accounts before the others connect.
async fn adopt_without(
    dir: &Path,
    answer: &str,
    without: Option<(&Player, &Arc<Identity>)>,
    players: [(&Player, &Arc<Identity>); 2],
) -> (bool, String) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!("listen = \"127.0.0.1:{port}\"\nstate_directory = {dir:?}\n");
    let config = dir.join("controller.toml");
    std::fs::write(&config, text).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ferry-controller"))
        .arg("--config")
        .arg(&config)
        .args(["adopt", "--wait", "20"])
        .args(without.iter().flat_map(|(left_out, _)| ["--without", left_out.name.as_str()]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{answer}").unwrap();
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let connect = |(player, identity): (&Player, &Arc<Identity>)| {
        let (player, identity) = (player.clone(), identity.clone());
        tokio::spawn(async move {
            // Until the program listens.
            while player.play(&format!("127.0.0.1:{port}"), &identity).await.unwrap().is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    };
    let mut connecting: Vec<_> = without.map(connect).into_iter().collect();
    if let Some((left_out, _)) = without {
        until_reported(dir, &left_out.name).await;
    }
    connecting.extend(players.map(connect));
    let ended = ended.await.unwrap();
    connecting.iter().for_each(tokio::task::JoinHandle::abort);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (ended.status.success(), text(&ended.stdout) + &text(&ended.stderr))
}

async fn until_reported(dir: &Path, server: &ServerName) {
    let store = SqliteStore::open(&dir.join("ferry.db")).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !store.accounts().await.unwrap().iter().any(|(reporting, _)| reporting == server) {
        assert!(tokio::time::Instant::now() < deadline, "{server} has not reported");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn when_the_agent_is_cut_off_that_overtook_the_controller_its_jobs_go_on() {
    let (controller, client, _, _) = pair().await;
    client.world.lock().unwrap().silent.push("precopy".into());
    let plan = controller.plan("demo", "transit").await.unwrap();
    let job = controller.start_move(&plan.plan_id).await;
    client.until_waiting("precopy").await;
    let (stolen, identity) = third(&controller, 7).await;
    stolen.play(&controller.address, &identity);
    controller.until_overtaken().await;
    client.world.lock().unwrap().silent.clear();
    // What it has obeyed counts before its session does.
    controller.until_connected("third").await;
    assert!(controller.revoke("third").await);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while let (_, problems) = controller.overview().await
        && !problems.is_empty()
    {
        assert!(tokio::time::Instant::now() < deadline, "still overtaken: {problems:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(controller.end_of(&job).await.phase, JobPhase::Done);
}

#[tokio::test]
async fn an_agent_that_names_a_generation_beyond_belief_gets_no_session() {
    let (controller, _, _, _) = pair().await;
    for obeyed in [1002, u64::MAX] {
        let (stolen, identity) = third(&controller, obeyed).await;
        let session = stolen.play(&controller.address, &identity);
        let ended = tokio::time::timeout(Duration::from_secs(10), session).await;
        let fault = ended.expect("it has a session").unwrap().unwrap_err();
        assert!(fault.to_string().contains(&obeyed.to_string()), "{fault}");
        assert!(!controller.is_connected("third").await);
        controller.plan("demo", "transit").await.unwrap();
        controller.revoke("third").await;
    }
}

#[tokio::test]
async fn a_server_that_is_left_out_does_not_say_how_far_a_controller_is_raised() {
    let (controller, client, transit, [at_client, at_transit]) = pair().await;
    let (stolen, identity) = third(&controller, 900).await;
    let dir = controller.crash().await;
    client.world.lock().unwrap().obeyed = 4;
    let players = [(&client, &at_client), (&transit, &at_transit)];
    let without = Some((&stolen, &identity));
    let words = "no other controller runs";
    let (done, said) = adopt_without(dir.path(), words, without, players).await;
    assert!(done && said.contains("of generation 5 now"), "{said}");
}

#[tokio::test]
async fn an_adopted_controller_goes_on_with_what_is_under_way_and_with_nothing_else() {
    let limits = MoveLimits { source: 4, target: 4, fence: 2 };
    let controller = Controller::with(tempfile::tempdir().unwrap(), limits).await;
    let (client, transit) = (Player::new("client"), Player::new("transit"));
    client.world.lock().unwrap().serves(&["here", "gone", "moved"]);
    let mut identities = Vec::new();
    for player in [&client, &transit] {
        let dir = tempfile::tempdir().unwrap();
        let token = controller.add(player.name.as_str(), 60).await;
        let identity = controller.enrol(&token, &dir.path().join("identity")).await.unwrap();
        player.play(&controller.address, &identity);
        controller.until_connected(player.name.as_str()).await;
        identities.push(identity);
    }
    let [at_client, at_transit] = <[Arc<Identity>; 2]>::try_from(identities).unwrap();
    client.world.lock().unwrap().silent.push("precopy".into());
    let mut jobs = Vec::new();
    for name in ["here", "gone", "moved"] {
        let plan = controller.plan(name, "transit").await.unwrap();
        jobs.push(controller.start_move(&plan.plan_id).await);
    }
    client.until("three", |world| world.waiting.len() == 3).await;
    // From here on this store is the old backup. What another controller has done since:
    let dir = controller.crash().await;
    {
        let mut world = client.world.lock().unwrap();
        world.silent.clear();
        world.obeyed = 4;
        world.accounts = Some(vec![
            account("here", StandingKind::Armed, 0, Some(&jobs[0])),
            account("gone", StandingKind::Serving, 2, None),
            AccountState {
                moved_to: Some("transit".parse().unwrap()),
                ..account("moved", StandingKind::Moved, 1, None)
            },
        ]);
    }
    let players = [(&client, &at_client), (&transit, &at_transit)];
    let (done, said) = adopt(dir.path(), "yes", players).await;
    assert!(!done && said.contains("not confirmed"), "{said}");
    let (done, said) = adopt(dir.path(), "no other controller runs", players).await;
    assert!(done, "{said}");
    for words in
        ["client has obeyed generation 4", "generation 5 now (it was 1)", "gone is serving"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    let controller = Controller::with(dir, limits).await;
    client.play(&controller.address, &at_client);
    transit.play(&controller.address, &at_transit);
    for job in [&jobs[0], &jobs[2]] {
        assert_eq!(controller.end_of(job).await.phase, JobPhase::Done);
    }
    let view = controller.end_of(&jobs[1]).await;
    assert_eq!(view.phase, JobPhase::Overtaken);
    assert!(view.advice.contains("account list"), "{}", view.advice);
    let done = client.world.lock().unwrap().done_for.clone();
    let of_gone = done.iter().filter(|(_, account)| account == "gone").map(|(kind, _)| kind);
    assert_eq!(of_gone.collect::<Vec<_>>(), ["inspect"], "neither resumed nor undone");
    assert_eq!(client.world.lock().unwrap().obeyed, 5);
    let (_, problems) = controller.overview().await;
    assert_eq!(problems, [] as [&str; 0]);
}

#[tokio::test]
async fn adopting_beside_a_controller_that_runs_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (client, transit) = (Player::new("client"), Player::new("transit"));
    let lock = std::fs::File::create(dir.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let authority = Authority::open(&dir.path().join("ca")).unwrap();
    let identity = authority.controller_identity();
    let players = [(&client, &identity), (&transit, &identity)];
    let (done, said) = adopt(dir.path(), "no other controller runs", players).await;
    assert!(!done && said.contains("runs with this state directory already"), "{said}");
}
