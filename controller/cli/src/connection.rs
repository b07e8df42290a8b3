//! The way to the controller: an authenticated channel, the operators' service with the token on
//! every call, and what became of a call, as a failure with the right exit code. The one place
//! that sees generated types' clients and gRPC statuses.

use std::fs::File;
use std::future::Future;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use ferry_proto::channel::{CaCertificate, connect_anonymous, status_fault};
use ferry_proto::ids::{AccountName, JobId};
use ferry_proto::v1::operator_service_client::OperatorServiceClient;
use ferry_proto::v1::{self, ListEventsResponse, WatchJobResponse};
use ferry_proto::view::JobView;
use ferry_proto::{Fault, FaultClass};
use serde::de::DeserializeOwned;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::args::{DEFAULT_CA_FILES, Global};
use crate::exit::{Exit, Failure};

/// How long the controller may take for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// How long it may take to inspect both servers: they count an account's files.
const PLAN_WITHIN: Duration = Duration::from_secs(900);

/// The largest answer taken: thousands of jobs.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// No token or certificate is longer.
const MAX_FILE: u64 = 64 * 1024;

/// Puts the token on each call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// The operators' service of one controller.
pub struct Operator {
    client: OperatorServiceClient<InterceptedService<Channel, Bearer>>,
    controller: String,
}

impl Operator {
    /// Connects.
    pub async fn connect(global: &Global) -> Result<Self, Failure> {
        let bearer = bearer(&global.token_file)?;
        let ca = authority(global.ca.as_deref())?;
        let channel = connect_anonymous(&global.controller, &ca)
            .await
            .map_err(|fault| Failure::new(Exit::Unreachable, fault))?;
        let client = OperatorServiceClient::with_interceptor(channel, bearer)
            .max_decoding_message_size(MAX_ANSWER);
        Ok(Self { client, controller: global.controller.clone() })
    }

    /// Registers a server.
    pub async fn add_server(
        &self,
        request: v1::AddServerRequest,
    ) -> Result<v1::AddServerResponse, Failure> {
        let mut client = self.client.clone();
        self.within(ANSWER_WITHIN, client.add_server(request)).await
    }

    /// All servers.
    pub async fn list_servers(&self) -> Result<Vec<v1::Server>, Failure> {
        let mut client = self.client.clone();
        let answer =
            self.within(ANSWER_WITHIN, client.list_servers(v1::ListServersRequest {})).await?;
        Ok(answer.servers)
    }

    /// Cuts a server off; returns whether it was connected.
    pub async fn revoke_server(&self, name: String) -> Result<bool, Failure> {
        let mut client = self.client.clone();
        let request = v1::RevokeServerRequest { name };
        Ok(self.within(ANSWER_WITHIN, client.revoke_server(request)).await?.was_connected)
    }

    /// All accounts.
    pub async fn list_accounts(&self) -> Result<v1::ListAccountsResponse, Failure> {
        let mut client = self.client.clone();
        self.within(ANSWER_WITHIN, client.list_accounts(v1::ListAccountsRequest {})).await
    }

    /// Inspects and plans; returns the plan's id and its document.
    pub async fn plan_move(
        &self,
        request: v1::PlanMoveRequest,
    ) -> Result<(String, serde_json::Value), Failure> {
        let mut client = self.client.clone();
        let answer = self.within(PLAN_WITHIN, client.plan_move(request)).await?;
        Ok((answer.plan_id, decode("a plan", &answer.plan)?))
    }

    /// Starts a plan that was shown.
    pub async fn start_move(&self, plan_id: String) -> Result<JobId, Failure> {
        let mut client = self.client.clone();
        let request = v1::StartMoveRequest { plan_id };
        let answer = self.within(ANSWER_WITHIN, client.start_move(request)).await;
        job_id(&answer.map_err(may_have_started)?.job)
    }

    /// Asks a move to undo itself.
    pub async fn abort_move(&self, account: String) -> Result<JobId, Failure> {
        let mut client = self.client.clone();
        let request = v1::AbortMoveRequest { account };
        job_id(&self.within(ANSWER_WITHIN, client.abort_move(request)).await?.job)
    }

    /// Asks a move to stop for now.
    pub async fn pause_move(&self, account: String) -> Result<JobId, Failure> {
        let mut client = self.client.clone();
        let request = v1::PauseMoveRequest { account };
        job_id(&self.within(ANSWER_WITHIN, client.pause_move(request)).await?.job)
    }

    /// Goes on with a paused or stuck job; which, and of which account.
    pub async fn resume_job(
        &self,
        request: v1::ResumeJobRequest,
    ) -> Result<(JobId, AccountName), Failure> {
        let mut client = self.client.clone();
        let answer = self.within(ANSWER_WITHIN, client.resume_job(request)).await;
        let answer = answer.map_err(may_have_started)?;
        let account = answer.account.parse().map_err(|e| {
            Fault::bug("the controller answered with an account that is none").caused_by(&e)
        })?;
        Ok((job_id(&answer.job)?, account))
    }

    /// Ends a move for good.
    pub async fn finalize_move(&self, request: v1::FinalizeMoveRequest) -> Result<JobId, Failure> {
        let mut client = self.client.clone();
        let answer = self.within(ANSWER_WITHIN, client.finalize_move(request)).await;
        job_id(&answer.map_err(may_have_started)?.job)
    }

    /// Opens an account at its target by force.
    pub async fn force_open(&self, request: v1::ForceOpenRequest) -> Result<JobId, Failure> {
        let mut client = self.client.clone();
        let answer = self.within(ANSWER_WITHIN, client.force_open(request)).await;
        job_id(&answer.map_err(may_have_started)?.job)
    }

    /// Jobs of one account, or of all (empty); and a sentence for each that is damaged or does not go on.
    pub async fn list_jobs(
        &self,
        account: String,
        running: bool,
    ) -> Result<(Vec<JobView>, Vec<String>), Failure> {
        let mut client = self.client.clone();
        let request = v1::ListJobsRequest { account, running };
        let answer = self.within(ANSWER_WITHIN, client.list_jobs(request)).await?;
        let jobs = answer.jobs.iter().map(|job| decode("a job", job)).collect::<Result<_, _>>()?;
        Ok((jobs, answer.problems))
    }

    /// A job now, and each change until it ends.
    pub async fn watch_job(&self, job: JobId) -> Result<Jobs, Failure> {
        let mut client = self.client.clone();
        let request = v1::WatchJobRequest { job: job.to_string() };
        let stream = self.within(ANSWER_WITHIN, client.watch_job(request)).await?;
        Ok(Jobs { stream, controller: self.controller.clone() })
    }

    /// Recorded events, and if asked for the coming ones.
    pub async fn list_events(&self, request: v1::ListEventsRequest) -> Result<Events, Failure> {
        let mut client = self.client.clone();
        let stream = self.within(ANSWER_WITHIN, client.list_events(request)).await?;
        Ok(Events { stream, controller: self.controller.clone() })
    }

    async fn within<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(failure(&self.controller, &status)),
            Err(_) => Err(Failure::new(
                Exit::Unreachable,
                Fault::transient(format!(
                    "the controller at {} has not answered within {} s",
                    self.controller,
                    limit.as_secs()
                ))
                .remedy("`ferry status` shows what came of it, once the controller answers again"),
            )),
        }
    }
}

/// One job as it changes.
pub struct Jobs {
    stream: Streaming<WatchJobResponse>,
    controller: String,
}

impl Jobs {
    /// The job now; none once it has ended.
    pub async fn next(&mut self) -> Result<Option<JobView>, Failure> {
        match self.stream.message().await {
            Ok(message) => message.map(|m| decode("a job", &m.job)).transpose(),
            Err(status) => Err(failure(&self.controller, &status)),
        }
    }
}

/// Events as they come.
pub struct Events {
    stream: Streaming<ListEventsResponse>,
    controller: String,
}

impl Events {
    /// The next one; none after the last.
    pub async fn next(&mut self) -> Result<Option<ListEventsResponse>, Failure> {
        self.stream.message().await.map_err(|status| failure(&self.controller, &status))
    }
}

fn job_id(text: &str) -> Result<JobId, Failure> {
    text.parse().map_err(|e| {
        Fault::bug("the controller answered with a job that is none").caused_by(&e).into()
    })
}

fn decode<T: DeserializeOwned>(what: &str, json: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(json).map_err(|e| {
        Fault::bug(format!("the controller sent {what} that this ferry cannot read"))
            .remedy("use the ferry of the controller's own version")
            .caused_by(&e)
            .into()
    })
}

/// Adds that the answer was lost, not necessarily the request.
fn may_have_started(failure: Failure) -> Failure {
    match failure {
        Failure::Told { exit: Exit::Unreachable, fault } => Failure::new(
            Exit::Unreachable,
            fault.remedy("it may have been started all the same: `ferry status` shows it, once the controller answers again"),
        ),
        other => other,
    }
}

/// What a failed call means. The controller's own faults come as JSON in the details; without
/// them the failure is the connection's, or the service layer's.
fn failure(controller: &str, status: &Status) -> Failure {
    let unauthorised = matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied);
    if let Ok(fault) = serde_json::from_slice::<Fault>(status.details()) {
        return Failure::new(if unauthorised { Exit::Unauthorised } else { Exit::Failed }, fault);
    }
    if let Some(fault) = status_fault(status) {
        return Failure::new(Exit::Unreachable, fault);
    }
    if unauthorised {
        let fault = Fault::permanent(format!(
            "the controller at {controller} does not accept the token: {}",
            status.message()
        ))
        .remedy("name the file of this controller's token with --token-file");
        return Failure::new(Exit::Unauthorised, fault);
    }
    match status.code() {
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown => {
            let mut fault = Fault::transient(format!(
                "the connection to the controller at {controller} was lost"
            ))
            .caused_by(status)
            .remedy("look whether it runs: systemctl status ferry-controller");
            fault.causes.dedup();
            Failure::new(Exit::Unreachable, fault)
        }
        Code::Unimplemented => {
            Fault::permanent(format!("the controller at {controller} does not know this command"))
                .remedy("use the ferry of the controller's own version")
                .into()
        }
        code => {
            let class = match code {
                Code::NotFound | Code::FailedPrecondition | Code::AlreadyExists => {
                    FaultClass::Precondition
                }
                _ => FaultClass::Permanent,
            };
            Fault::new(class, status.message()).into()
        }
    }
}

fn bearer(path: &Path) -> Result<Bearer, Failure> {
    let unusable = |fault: Fault| {
        Failure::new(
            Exit::Unauthorised,
            fault.remedy("run it as root or as a member of the group ferry-operators, or name another file with --token-file"),
        )
    };
    let text = read(path).map_err(|e| {
        unusable(Fault::io(format!("the operators' token {} cannot be read", path.display()), &e))
    })?;
    let token = text.trim();
    if token.is_empty() {
        return Err(unusable(Fault::precondition(format!("{} holds no token", path.display()))));
    }
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| {
        unusable(Fault::precondition(format!(
            "{} holds something else than a token",
            path.display()
        )))
    })?;
    // Kept out of logs.
    value.set_sensitive(true);
    Ok(Bearer(value))
}

fn authority(named: Option<&Path>) -> Result<CaCertificate, Failure> {
    let candidates =
        named.map_or_else(|| DEFAULT_CA_FILES.map(Path::new).to_vec(), |path| vec![path]);
    let mut last = None;
    for path in &candidates {
        match read(path) {
            Ok(pem) => {
                return CaCertificate::from_pem(&pem).map_err(|fault| {
                    let fault = fault.context(format!("{} cannot be used", path.display()));
                    fault.remedy("copy ca.pem from the controller, and name it with --ca").into()
                });
            }
            Err(error) => last = Some((path, error)),
        }
    }
    // There is at least one candidate, so without a result there is an error.
    let message = "the certificate of the controller's authority cannot be read";
    let fault = match last {
        Some((path, error)) => Fault::io(format!("{message}: {}", path.display()), &error),
        None => Fault::bug(message),
    };
    Err(fault.remedy("copy /etc/ferry/ca.pem from the controller, and name it with --ca").into())
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(failure: Failure) -> (Exit, Fault) {
        match failure {
            Failure::Told { exit, fault } => (exit, *fault),
            Failure::OutputClosed => panic!("nothing was written"),
        }
    }

    #[test]
    fn a_fault_in_the_details_is_the_controllers_own() {
        let fault = Fault::transient("the agent of web1 is not connected").remedy("start it");
        let details = serde_json::to_vec(&fault).unwrap();
        for (code, exit) in [
            (Code::Unavailable, Exit::Failed),
            (Code::NotFound, Exit::Failed),
            (Code::Unauthenticated, Exit::Unauthorised),
        ] {
            let status = Status::with_details(code, "x", details.clone().into());
            assert_eq!(told(failure("c:1", &status)), (exit, fault.clone()));
        }
    }

    #[test]
    fn without_details_the_code_tells() {
        let cases = [
            (Code::Unavailable, Exit::Unreachable),
            (Code::DeadlineExceeded, Exit::Unreachable),
            (Code::PermissionDenied, Exit::Unauthorised),
            (Code::InvalidArgument, Exit::Failed),
            (Code::Unimplemented, Exit::Failed),
        ];
        for (code, exit) in cases {
            let (got, fault) = told(failure("c:1", &Status::new(code, "why")));
            assert_eq!(got, exit, "{code:?}");
            assert!(!fault.message.is_empty());
        }
    }

    #[test]
    fn files_that_cannot_be_used_say_which_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let Err(missing) = bearer(&path) else { panic!("there is no token") };
        let (exit, fault) = told(missing);
        assert_eq!(exit, Exit::Unauthorised);
        assert!(fault.message.contains("token") && fault.remedy.contains("--token-file"));
        for content in ["", " \n", "two\nlines"] {
            std::fs::write(&path, content).unwrap();
            assert!(bearer(&path).is_err(), "{content:?}");
        }
        std::fs::write(&path, "secret\n").unwrap();
        let Ok(Bearer(value)) = bearer(&path) else { panic!("there is a token") };
        assert_eq!(value.to_str().unwrap(), "Bearer secret");
        assert!(!format!("{value:?}").contains("secret"));

        let (exit, fault) = told(authority(Some(&path)).unwrap_err());
        assert_eq!(exit, Exit::Failed);
        assert!(fault.message.contains("token") && fault.remedy.contains("--ca"));
    }
}
