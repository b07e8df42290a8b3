//! A controller in this process that answers what a test tells it to, over the real channel, and
//! the program under test run against it.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ferry_proto::Fault;
use ferry_proto::channel::{CaCertificate, Connections, Credentials, Identity, Listener, Party};
use ferry_proto::v1::operator_service_server::{OperatorService, OperatorServiceServer};
use ferry_proto::v1::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::Value;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status};

type Answers<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

const TOKEN: &str = "operators-token-of-the-test";

/// What the fake answers.
#[derive(Default)]
pub struct Script {
    pub servers: Vec<Server>,
    pub accounts: ListAccountsResponse,
    pub plan: Value,
    /// What each call of `WatchJob` tells, one after the other; the last is repeated.
    pub watch: Vec<Vec<Value>>,
    /// Whether a watched job that has not ended stays open.
    pub hang: bool,
    pub jobs: Vec<Value>,
    pub problems: Vec<String>,
    pub events: Vec<ListEventsResponse>,
    /// Every call but the watching ones fails with this.
    pub fault: Option<(Code, Fault)>,
}

/// A controller under test, in a directory of its own.
pub struct Controller {
    dir: tempfile::TempDir,
    pub address: String,
    calls: Arc<Mutex<Vec<String>>>,
}

struct Fake {
    script: Script,
    calls: Arc<Mutex<Vec<String>>>,
    watched: AtomicUsize,
}

impl Controller {
    pub async fn start(script: Script) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), format!("{TOKEN}\n")).unwrap();
        let identity = identity(dir.path());
        let calls = Arc::new(Mutex::new(Vec::new()));
        let fake = Fake { script, calls: Arc::clone(&calls), watched: AtomicUsize::new(0) };
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.address().to_string();
        let incoming = listener.serve(&identity, &Arc::new(Connections::default())).unwrap();
        let server =
            tonic::transport::Server::builder().add_service(OperatorServiceServer::new(fake));
        tokio::spawn(server.serve_with_incoming(incoming));
        Self { dir, address, calls }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Every call so far, with what matters of its request.
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    pub fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ferry"));
        self.point(&mut command);
        command
            .args(args)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Lets a program find this controller.
    pub fn point(&self, command: &mut tokio::process::Command) {
        command
            .env("FERRY_CONTROLLER", &self.address)
            .env("FERRY_TOKEN_FILE", self.path("token"))
            .env("FERRY_CA", self.path("ca.pem"));
    }

    pub async fn run(&self, args: &[&str]) -> Ran {
        Ran::of(&self.command(args).output().await.unwrap())
    }
}

/// What a run left.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().expect("ended by itself"),
            out: String::from_utf8(output.stdout.clone()).unwrap(),
            err: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }

    /// Standard output as one JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }

    /// Standard output as lines of JSON.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        self.out
            .lines()
            .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}")))
            .collect()
    }
}

/// A new authority and the controller's certificate from it.
fn identity(dir: &Path) -> Arc<Identity> {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Authority of a test");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_pem = params.self_signed(&ca_key).unwrap().pem();
    std::fs::write(dir.join("ca.pem"), &ca_pem).unwrap();
    let ca = CaCertificate::from_pem(&ca_pem).unwrap();

    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(vec![Party::Controller.dns_name()]).unwrap();
    let uri = Party::Controller.uri(ca.fingerprint()).as_str().try_into().unwrap();
    leaf.subject_alt_names.push(rcgen::SanType::URI(uri));
    leaf.serial_number = Some(vec![1, 2, 3, 4, 5, 6, 7, 8].into());
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, &ca_key).unwrap();
    let certificate = leaf.signed_by(&key, &issuer).unwrap().pem();
    Identity::new(&Credentials::new(&key.serialize_pem(), &certificate, &ca_pem)).unwrap()
}

impl Fake {
    fn called<T: std::fmt::Debug>(&self, request: &Request<T>, what: &str) -> Result<(), Status> {
        let expected = format!("Bearer {TOKEN}");
        if request.metadata().get("authorization").and_then(|v| v.to_str().ok()) != Some(&expected)
        {
            let fault = Fault::permanent("the token is not this controller's");
            return Err(status(Code::Unauthenticated, &fault));
        }
        self.calls.lock().unwrap().push(what.to_owned());
        match &self.script.fault {
            Some((code, fault)) => Err(status(*code, fault)),
            None => Ok(()),
        }
    }
}

fn status(code: Code, fault: &Fault) -> Status {
    Status::with_details(code, &fault.message, serde_json::to_vec(fault).unwrap().into())
}

fn json(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

const JOB: &str = "01900000-0000-7000-8000-000000000000";

#[tonic::async_trait]
impl OperatorService for Fake {
    type WatchJobStream = Answers<WatchJobResponse>;
    type ListEventsStream = Answers<ListEventsResponse>;

    async fn add_server(
        &self,
        r: Request<AddServerRequest>,
    ) -> Result<Response<AddServerResponse>, Status> {
        let q = r.get_ref();
        self.called(&r, &format!("add {} {} {}", q.name, q.role, q.token_seconds))?;
        Ok(Response::new(AddServerResponse {
            token: "fry1-abc".to_owned(),
            expires_unix: 1_795_398_180,
        }))
    }

    async fn list_servers(
        &self,
        r: Request<ListServersRequest>,
    ) -> Result<Response<ListServersResponse>, Status> {
        self.called(&r, "servers")?;
        Ok(Response::new(ListServersResponse { servers: self.script.servers.clone() }))
    }

    async fn revoke_server(
        &self,
        r: Request<RevokeServerRequest>,
    ) -> Result<Response<RevokeServerResponse>, Status> {
        self.called(&r, &format!("revoke {}", r.get_ref().name))?;
        Ok(Response::new(RevokeServerResponse { was_connected: true }))
    }

    async fn list_accounts(
        &self,
        r: Request<ListAccountsRequest>,
    ) -> Result<Response<ListAccountsResponse>, Status> {
        self.called(&r, "accounts")?;
        Ok(Response::new(self.script.accounts.clone()))
    }

    async fn plan_move(
        &self,
        r: Request<PlanMoveRequest>,
    ) -> Result<Response<PlanMoveResponse>, Status> {
        let q = r.get_ref();
        self.called(
            &r,
            format!(
                "plan {} {} {} {} {} {}",
                q.account,
                q.to,
                q.direction,
                q.deadline_seconds,
                q.from,
                q.approve.join(",")
            )
            .trim_end(),
        )?;
        Ok(Response::new(PlanMoveResponse {
            plan_id: "p1".to_owned(),
            plan: json(&self.script.plan),
        }))
    }

    async fn start_move(
        &self,
        r: Request<StartMoveRequest>,
    ) -> Result<Response<StartMoveResponse>, Status> {
        self.called(&r, &format!("start {}", r.get_ref().plan_id))?;
        Ok(Response::new(StartMoveResponse { job: JOB.to_owned() }))
    }

    async fn abort_move(
        &self,
        r: Request<AbortMoveRequest>,
    ) -> Result<Response<AbortMoveResponse>, Status> {
        self.called(&r, &format!("abort {}", r.get_ref().account))?;
        Ok(Response::new(AbortMoveResponse { job: JOB.to_owned() }))
    }

    async fn pause_move(
        &self,
        r: Request<PauseMoveRequest>,
    ) -> Result<Response<PauseMoveResponse>, Status> {
        self.called(&r, &format!("pause {}", r.get_ref().account))?;
        Ok(Response::new(PauseMoveResponse { job: JOB.to_owned() }))
    }

    async fn resume_job(
        &self,
        r: Request<ResumeJobRequest>,
    ) -> Result<Response<ResumeJobResponse>, Status> {
        self.called(&r, &format!("resume {}{}", r.get_ref().job, r.get_ref().account))?;
        Ok(Response::new(ResumeJobResponse { job: JOB.to_owned(), account: "shop".to_owned() }))
    }

    async fn finalize_move(
        &self,
        r: Request<FinalizeMoveRequest>,
    ) -> Result<Response<FinalizeMoveResponse>, Status> {
        let q = r.get_ref();
        self.called(&r, format!("finalize {} {} {}", q.account, q.erase, q.from).trim_end())?;
        Ok(Response::new(FinalizeMoveResponse { job: JOB.to_owned() }))
    }

    async fn force_open(
        &self,
        r: Request<ForceOpenRequest>,
    ) -> Result<Response<ForceOpenResponse>, Status> {
        self.called(&r, &format!("force {} {}", r.get_ref().account, r.get_ref().source_is_off))?;
        Ok(Response::new(ForceOpenResponse { job: JOB.to_owned() }))
    }

    async fn list_jobs(
        &self,
        r: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        self.called(&r, &format!("jobs {} {}", r.get_ref().account, r.get_ref().running))?;
        let (jobs, problems) = (self.script.jobs.iter().map(json), self.script.problems.clone());
        Ok(Response::new(ListJobsResponse { jobs: jobs.collect(), problems }))
    }

    async fn watch_job(
        &self,
        r: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        self.called(&r, &format!("watch {}", r.get_ref().job))?;
        let turn = self.watched.fetch_add(1, Ordering::SeqCst).min(self.script.watch.len() - 1);
        let told: Vec<_> = self.script.watch[turn]
            .iter()
            .map(|job| Ok(WatchJobResponse { job: json(job) }))
            .collect();
        let told = tokio_stream::iter(told);
        Ok(Response::new(match self.script.hang {
            true => Box::pin(told.chain(tokio_stream::pending())),
            false => Box::pin(told),
        }))
    }

    async fn list_events(
        &self,
        r: Request<ListEventsRequest>,
    ) -> Result<Response<Self::ListEventsStream>, Status> {
        let q = r.get_ref();
        self.called(&r, &format!("events {} {} {} {}", q.account, q.job, q.follow, q.after))?;
        let events: Vec<_> = self.script.events.iter().cloned().map(Ok).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(events))))
    }
}
