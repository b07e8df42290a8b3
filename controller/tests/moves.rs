//! The controller's parts joined as in its main, over real TLS, with agents played by the test: they
//! enrol with real tokens and answer real commands, and fail where a case says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferry_api::{Jobs, OperatorEndpoint, OperatorToken};
use ferry_fleet::authority::Authority;
use ferry_fleet::session::AgentEndpoint;
use ferry_fleet::{Fleet, Settings};
use ferry_proto::channel::token::Token;
use ferry_proto::channel::{
    self, CaCertificate, Connections, Credentials, Identity, Limits, Listener, Party,
};
use ferry_proto::command::{
    AccountFacts, AccountState, CommitRecord, Intent, Receipt, ServerFacts, StandingKind,
    TargetFacts,
};
use ferry_proto::ids::{Epoch, ServerName};
use ferry_proto::v1::agent_service_client::AgentServiceClient;
use ferry_proto::v1::agent_service_server::AgentServiceServer;
use ferry_proto::v1::enrolment_service_client::EnrolmentServiceClient;
use ferry_proto::v1::enrolment_service_server::EnrolmentServiceServer;
use ferry_proto::v1::operator_service_client::OperatorServiceClient;
use ferry_proto::v1::operator_service_server::OperatorServiceServer;
use ferry_proto::v1::{self, event, session_request, session_response};
use ferry_proto::view::{JobPhase, JobView};
use ferry_proto::{Fault, FaultClass};
use ferry_store::{SqliteStore, Store};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::metadata::MetadataValue;

/// A controller on a loopback port, in a directory of its own.
struct Controller {
    address: String,
    ca: CaCertificate,
    token: String,
    dir: tempfile::TempDir,
    stop: CancellationToken,
    jobs: Arc<Jobs>,
}

impl Controller {
    async fn start(dir: tempfile::TempDir) -> Self {
        let state = dir.path();
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::open(&state.join("ferry.db")).await.unwrap());
        let authority = Arc::new(Authority::open(&state.join("ca")).unwrap());
        let operators = OperatorToken::open(&state.join("operator.token")).unwrap();
        let token =
            std::fs::read_to_string(state.join("operator.token")).unwrap().trim().to_owned();
        let connections = Connections::new(Limits::default());
        let settings = Settings {
            certificate_lifetime: Duration::from_secs(3600),
            token_lifetime: Duration::from_secs(60),
        };
        let fleet = Fleet::open(store.clone(), authority.clone(), connections.clone(), settings)
            .await
            .unwrap();
        let stop = CancellationToken::new();
        let jobs = Jobs::new(store.clone(), &fleet, stop.clone());
        let incoming = Listener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .serve(&authority.controller_identity(), &connections)
            .unwrap();
        let address = incoming.address().to_string();
        jobs.recover().await.unwrap();
        let agents = AgentEndpoint(fleet.clone());
        let endpoint = OperatorEndpoint { token: operators, fleet, store, jobs: jobs.clone() };
        let server = tonic::transport::Server::builder()
            .add_service(AgentServiceServer::new(agents.clone()))
            .add_service(EnrolmentServiceServer::new(agents))
            .add_service(OperatorServiceServer::new(endpoint))
            .serve_with_incoming(incoming);
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                served = server => served.unwrap(),
                () = stopped.cancelled() => {}
            }
        });
        Self { address, ca: authority.ca().clone(), token, dir, stop, jobs }
    }

    /// Stops it as a crash would leave it: jobs are where their journal says.
    async fn crash(self) -> tempfile::TempDir {
        self.stop.cancel();
        self.jobs.stopped().await;
        self.dir
    }

    async fn operators(&self) -> OperatorServiceClient<tonic::transport::Channel> {
        OperatorServiceClient::new(
            channel::connect_anonymous(&self.address, &self.ca).await.unwrap(),
        )
    }

    fn with_token<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let value: MetadataValue<_> = format!("Bearer {}", self.token).parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        request
    }

    async fn add(&self, name: &str, seconds: u32) -> String {
        let message = v1::AddServerRequest {
            name: name.into(),
            role: "client".into(),
            token_seconds: seconds,
        };
        self.operators()
            .await
            .add_server(self.with_token(message))
            .await
            .unwrap()
            .into_inner()
            .token
    }

    /// Enrols an agent as `ferry-agent enroll` does.
    async fn enrol(&self, text: &str, dir: &std::path::Path) -> Result<Arc<Identity>, Fault> {
        let token = Token::parse(text)?;
        let key = channel::pending_key_and_csr(dir, &token.server)?;
        let channel = channel::pinned_connect(&self.address, &token.ca).await?;
        let request = v1::EnrolRequest {
            token: text.into(),
            csr_pem: key.csr_pem.clone(),
            peer_address: String::new(),
        };
        let response = EnrolmentServiceClient::new(channel)
            .enrol(request)
            .await
            .map_err(|s| serde_json::from_slice::<Fault>(s.details()).unwrap())?
            .into_inner();
        let credentials =
            Credentials::enrolled(&key, &response.certificate_pem, &response.ca_pem, &token)?;
        Identity::new(&credentials)
    }

    async fn plan(&self, account: &str, to: &str) -> Result<v1::PlanMoveResponse, Fault> {
        let message = v1::PlanMoveRequest {
            account: account.into(),
            to: to.into(),
            direction: "outbound".into(),
            deadline_seconds: 0,
        };
        let answer = self.operators().await.plan_move(self.with_token(message)).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|s| serde_json::from_slice(s.details()).unwrap())
    }

    async fn start_move(&self, plan: &str) -> String {
        let message = v1::StartMoveRequest { plan_id: plan.into() };
        self.operators().await.start_move(self.with_token(message)).await.unwrap().into_inner().job
    }

    /// Watches a job to its end.
    async fn end_of(&self, job: &str) -> JobView {
        let message = v1::WatchJobRequest { job: job.into() };
        let mut stream =
            self.operators().await.watch_job(self.with_token(message)).await.unwrap().into_inner();
        loop {
            let message = stream.message().await.unwrap().expect("a job's last view says its end");
            let view: JobView = serde_json::from_slice(&message.job).unwrap();
            if view.phase.has_ended() {
                return view;
            }
        }
    }

    async fn until_connected(&self, server: &str) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let mut operators = self.operators().await;
            let list = operators.list_servers(self.with_token(v1::ListServersRequest {})).await;
            let servers = list.unwrap().into_inner().servers;
            let list = operators.list_accounts(self.with_token(v1::ListAccountsRequest {})).await;
            let accounts = list.unwrap().into_inner().accounts;
            let reported = server != "client" || !accounts.is_empty();
            if reported && servers.iter().any(|s| s.name == server && s.connected) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{server} did not connect");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What an agent played by the test has done: outlives its sessions, as a ledger would.
#[derive(Default)]
struct World {
    /// Kinds of commands carried out, in order, with how often.
    done: Vec<String>,
    outcomes: HashMap<String, Result<Receipt, Fault>>,
    /// What to answer instead of carrying out, by kind.
    failing: HashMap<String, Fault>,
    /// Kinds that are never answered.
    silent: Vec<String>,
}

#[derive(Clone)]
struct Player {
    name: ServerName,
    world: Arc<Mutex<World>>,
}

impl Player {
    fn new(name: &str) -> Self {
        Self { name: name.parse().unwrap(), world: Arc::default() }
    }

    fn done(&self) -> Vec<String> {
        self.world.lock().unwrap().done.clone()
    }

    /// Connects and answers until the stream ends.
    fn play(
        &self,
        address: &str,
        identity: &Arc<Identity>,
    ) -> tokio::task::JoinHandle<Result<(), Fault>> {
        let (player, address, identity) = (self.clone(), address.to_owned(), identity.clone());
        tokio::spawn(async move {
            let channel = channel::connect(&address, &identity, &Party::Controller).await?;
            let (out, queue) = mpsc::channel(64);
            let hello = v1::Hello {
                peer_address: "192.0.2.7:7401".into(),
                facts: b"{}".to_vec(),
                ..v1::Hello::default()
            };
            out.send(request(session_request::Body::Hello(hello))).await.unwrap();
            let mut incoming = AgentServiceClient::new(channel)
                .session(ReceiverStream::new(queue))
                .await
                .map_err(|s| Fault::transient(s.to_string()))?
                .into_inner();
            out.send(player.accounts()).await.unwrap();
            while let Ok(Some(message)) = incoming.message().await {
                let answer = match message.body {
                    Some(session_response::Body::Command(command)) => player.answer(&command),
                    Some(session_response::Body::ObserveCommandId(id)) => player.observe(&id),
                    _ => None,
                };
                if let Some(answer) = answer
                    && out.send(answer).await.is_err()
                {
                    break;
                }
            }
            Ok(())
        })
    }

    fn accounts(&self) -> v1::SessionRequest {
        let state = AccountState {
            name: "demo".parse().unwrap(),
            standing: StandingKind::Serving,
            epoch: Epoch(0),
            moved_to: None,
            domains: vec![],
            job: None,
        };
        let accounts = if self.name.as_str() == "client" {
            vec![serde_json::to_vec(&state).unwrap()]
        } else {
            vec![]
        };
        let states = v1::AccountStates { accounts, problems: vec![] };
        let body = event::Body::AccountStates(states);
        request(session_request::Body::Event(v1::Event { number: 0, body: Some(body) }))
    }

    /// Says of a command that it is not under way, or what came of it.
    fn observe(&self, id: &str) -> Option<v1::SessionRequest> {
        let ended = self.world.lock().unwrap().outcomes.get(id).cloned();
        let body = match ended {
            Some(outcome) => done(id, &outcome),
            None => event::Body::CommandState(v1::CommandState { id: id.into(), running: false }),
        };
        Some(request(session_request::Body::Event(v1::Event { number: 0, body: Some(body) })))
    }

    fn answer(&self, command: &v1::Command) -> Option<v1::SessionRequest> {
        let intent: Intent = serde_json::from_slice(&command.intent).unwrap();
        let mut world = self.world.lock().unwrap();
        if world.silent.iter().any(|k| k == intent.kind()) {
            return None;
        }
        let outcome = match world.outcomes.get(&command.id) {
            Some(outcome) => outcome.clone(),
            None => {
                let outcome = match world.failing.get(intent.kind()) {
                    Some(fault) => Err(fault.clone()),
                    None => Ok(receipt(&intent)),
                };
                world.done.push(intent.kind().to_owned());
                world.outcomes.insert(command.id.clone(), outcome.clone());
                outcome
            }
        };
        let body = Some(done(&command.id, &outcome));
        Some(request(session_request::Body::Event(v1::Event { number: 1, body })))
    }
}

fn done(id: &str, outcome: &Result<Receipt, Fault>) -> event::Body {
    let (receipt, fault) = match outcome {
        Ok(receipt) => (serde_json::to_vec(receipt).unwrap(), vec![]),
        Err(fault) => (vec![], serde_json::to_vec(fault).unwrap()),
    };
    event::Body::CommandDone(v1::CommandDone { id: id.into(), receipt, fault })
}

fn request(body: session_request::Body) -> v1::SessionRequest {
    v1::SessionRequest { body: Some(body) }
}

fn receipt(intent: &Intent) -> Receipt {
    match intent {
        Intent::Inspect { source: None, .. } => Receipt::Source(Box::new(AccountFacts {
            definition: serde_json::from_value(
                serde_json::json!({"name": "demo", "user": "demo", "home": "/home/demo"}),
            )
            .unwrap(),
            epoch: Epoch(0),
            uid: 1000,
            gid: 1000,
            files: 1,
            bytes: 1,
            databases: vec![],
            server: ServerFacts::default(),
            findings: vec![],
        })),
        Intent::Inspect { .. } => Receipt::Target(Box::new(TargetFacts {
            server: ServerFacts::default(),
            uid: 1000,
            gid: 1000,
            rooms: vec![],
            findings: vec![],
        })),
        Intent::Commit { of } => Receipt::Committed(CommitRecord {
            job: of.job,
            account: of.account.clone(),
            source: of.source.clone(),
            target: of.target.clone(),
            epoch: of.epoch.next(),
            fenced_at_unix: 0,
            committed_at_unix_ms: 0,
        }),
        Intent::Release { .. } => Receipt::Released {
            outage_ms: Some(1.0),
            fenced_ms: 2.0,
            held: 3,
            refused: 0,
            ended: 0,
        },
        Intent::Open { commit, .. } => {
            assert!(commit.is_some(), "the open carries the commit record");
            Receipt::Done { summary: "open".into(), figures: Default::default() }
        }
        _ => Receipt::Done { summary: "done".into(), figures: Default::default() },
    }
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
    let message = v1::RevokeServerRequest { name: "client".into() };
    let answer = controller.operators().await.revoke_server(controller.with_token(message)).await;
    assert!(answer.unwrap().into_inner().was_connected);
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
