//! The controller's parts joined as in its main.

use std::sync::Arc;
use std::time::Duration;

use ferry_api::{Jobs, MoveLimits, OperatorEndpoint, OperatorToken};
use ferry_fleet::authority::Authority;
use ferry_fleet::session::AgentEndpoint;
use ferry_fleet::{Fleet, Settings};
use ferry_proto::Fault;
use ferry_proto::channel::token::Token;
use ferry_proto::channel::{
    self, CaCertificate, Connections, Credentials, Identity, Limits, Listener,
};
use ferry_proto::command::AccountState;
use ferry_proto::v1;
use ferry_proto::v1::agent_service_server::AgentServiceServer;
use ferry_proto::v1::enrolment_service_client::EnrolmentServiceClient;
use ferry_proto::v1::enrolment_service_server::EnrolmentServiceServer;
use ferry_proto::v1::operator_service_client::OperatorServiceClient;
use ferry_proto::v1::operator_service_server::OperatorServiceServer;
use ferry_proto::view::{JobPhase, JobView};
use ferry_store::{SqliteStore, Store};
use sqlx::Connection;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::metadata::MetadataValue;

/// A controller on a loopback port, in a directory of its own.
pub(crate) struct Controller {
    pub(crate) address: String,
    pub(crate) ca: CaCertificate,
    pub(crate) token: String,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) stop: CancellationToken,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) fleet: Arc<Fleet>,
}

impl Controller {
    pub(crate) async fn start(dir: tempfile::TempDir) -> Self {
        Self::with(dir, MoveLimits::default()).await
    }

    pub(crate) async fn with(dir: tempfile::TempDir, limits: MoveLimits) -> Self {
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
        let jobs = Jobs::new(store.clone(), &fleet, limits, stop.clone());
        let incoming = Listener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .serve(&authority.controller_identity(), &connections)
            .unwrap();
        let address = incoming.address().to_string();
        jobs.recover().await.unwrap();
        let agents = AgentEndpoint(fleet.clone());
        let endpoint =
            OperatorEndpoint { token: operators, fleet: fleet.clone(), store, jobs: jobs.clone() };
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
        Self { address, ca: authority.ca().clone(), token, dir, stop, jobs, fleet }
    }

    /// Stops it as a crash would leave it: jobs are where their journal says.
    pub(crate) async fn crash(self) -> tempfile::TempDir {
        self.stop.cancel();
        self.jobs.stopped().await;
        self.dir
    }

    pub(crate) async fn operators(&self) -> OperatorServiceClient<tonic::transport::Channel> {
        OperatorServiceClient::new(
            channel::connect_anonymous(&self.address, &self.ca).await.unwrap(),
        )
    }

    pub(crate) fn with_token<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let value: MetadataValue<_> = format!("Bearer {}", self.token).parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        request
    }

    pub(crate) async fn add(&self, name: &str, seconds: u32) -> String {
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
    pub(crate) async fn enrol(
        &self,
        text: &str,
        dir: &std::path::Path,
    ) -> Result<Arc<Identity>, Fault> {
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

    pub(crate) async fn plan(
        &self,
        account: &str,
        to: &str,
    ) -> Result<v1::PlanMoveResponse, Fault> {
        let message = v1::PlanMoveRequest {
            account: account.into(),
            to: to.into(),
            direction: "outbound".into(),
            deadline_seconds: 0,
            from: String::new(),
            approve: Vec::new(),
        };
        let answer = self.operators().await.plan_move(self.with_token(message)).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|s| serde_json::from_slice(s.details()).unwrap())
    }

    pub(crate) async fn start_move(&self, plan: &str) -> String {
        let message = v1::StartMoveRequest { plan_id: plan.into() };
        self.operators().await.start_move(self.with_token(message)).await.unwrap().into_inner().job
    }

    pub(crate) async fn is_connected(&self, server: &str) -> bool {
        let message = self.with_token(v1::ListServersRequest {});
        let list = self.operators().await.list_servers(message).await.unwrap().into_inner();
        list.servers.iter().any(|s| s.name == server && s.connected)
    }

    /// Whether the account is known to stand like that on a server, which is connected.
    pub(crate) async fn knows(&self, server: &str, state: &AccountState) -> bool {
        let message = self.with_token(v1::ListAccountsRequest {});
        let list = self.operators().await.list_accounts(message).await.unwrap().into_inner();
        list.accounts.iter().any(|known| {
            known.server == server
                && known.connected
                && known.standing == state.standing.to_string()
                && known.epoch == state.epoch.0
        })
    }

    pub(crate) async fn finalize(&self, from: &str, erase: bool) -> Result<String, Fault> {
        let message = v1::FinalizeMoveRequest { account: "demo".into(), erase, from: from.into() };
        let answer = self.operators().await.finalize_move(self.with_token(message)).await;
        answer.map(|a| a.into_inner().job).map_err(|s| serde_json::from_slice(s.details()).unwrap())
    }

    pub(crate) async fn abort(&self, account: &str) -> Result<String, Fault> {
        let message = v1::AbortMoveRequest { account: account.into() };
        let answer = self.operators().await.abort_move(self.with_token(message)).await;
        answer.map(|a| a.into_inner().job).map_err(|s| serde_json::from_slice(s.details()).unwrap())
    }

    pub(crate) async fn pause(&self, account: &str) -> Result<String, Fault> {
        let message = v1::PauseMoveRequest { account: account.into() };
        let answer = self.operators().await.pause_move(self.with_token(message)).await;
        answer.map(|a| a.into_inner().job).map_err(|s| serde_json::from_slice(s.details()).unwrap())
    }

    pub(crate) async fn resume(&self, job: &str, account: &str) -> Result<String, Fault> {
        let message = v1::ResumeJobRequest { job: job.into(), account: account.into() };
        let answer = self.operators().await.resume_job(self.with_token(message)).await;
        answer.map(|a| a.into_inner().job).map_err(|s| serde_json::from_slice(s.details()).unwrap())
    }

    pub(crate) async fn revoke(&self, name: &str) -> bool {
        let message = v1::RevokeServerRequest { name: name.into() };
        let answer = self.operators().await.revoke_server(self.with_token(message)).await;
        answer.unwrap().into_inner().was_connected
    }

    /// What is journalled, a sentence each.
    pub(crate) async fn journal(&self) -> Vec<String> {
        let message = v1::ListEventsRequest::default();
        let mut events = self
            .operators()
            .await
            .list_events(self.with_token(message))
            .await
            .unwrap()
            .into_inner();
        let mut sentences = Vec::new();
        while let Some(event) = events.message().await.unwrap() {
            sentences.push(event.text);
        }
        sentences
    }

    /// A way into the store beside the controller's own.
    pub(crate) async fn sql(&self, statement: String) {
        let options =
            sqlx::sqlite::SqliteConnectOptions::new().filename(self.dir.path().join("ferry.db"));
        let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    /// Watches a job to its end.
    pub(crate) async fn end_of(&self, job: &str) -> JobView {
        self.watched_until(job, |view| view.phase.has_ended()).await
    }

    /// Watches a job until it is paused.
    pub(crate) async fn until_paused(&self, job: &str) -> JobView {
        self.watched_until(job, |view| view.phase == JobPhase::Paused).await
    }

    async fn watched_until(&self, job: &str, is_there: impl Fn(&JobView) -> bool) -> JobView {
        let message = v1::WatchJobRequest { job: job.into() };
        let mut stream =
            self.operators().await.watch_job(self.with_token(message)).await.unwrap().into_inner();
        loop {
            let message = stream.message().await.unwrap().expect("a job's last view says its end");
            let view: JobView = serde_json::from_slice(&message.job).unwrap();
            if is_there(&view) {
                return view;
            }
        }
    }

    pub(crate) async fn until_connected(&self, server: &str) {
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
