//! The operators' gRPC service: the edge where wire types become ours.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ferry_fleet::Fleet;
use ferry_fleet::session::status;
use ferry_plan::Policy;
use ferry_proto::Fault;
use ferry_proto::command::{AccountState, StandingKind};
use ferry_proto::ids::{AccountName, JobId, ServerName};
use ferry_proto::v1;
use ferry_proto::v1::operator_service_server::OperatorService;
use ferry_proto::view::JobView;
use ferry_store::{ServerRow, Store};
use futures::Stream;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::{Request, Response, Status};

use crate::advice;
use crate::auth::{OperatorToken, Verb};
use crate::jobs::{Jobs, Which, is_unheard, read_plan};
use crate::planning::{Planner, Wish};
use crate::view::sentence;

/// Events read from the store at a time.
const PAGE: u32 = 200;

/// How an account stands whose source was asked to commit, has not answered, and is away.
const UNHEARD: &str = "committed, unheard";

/// The service.
#[derive(Clone)]
pub struct OperatorEndpoint {
    /// Who may call.
    pub token: OperatorToken,
    /// The agents.
    pub fleet: Arc<Fleet>,
    /// What is known.
    pub store: Arc<dyn Store>,
    /// What runs.
    pub jobs: Arc<Jobs>,
}

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[allow(clippy::result_large_err)]
fn parse<T: std::str::FromStr>(text: &str) -> Result<T, Status>
where
    T::Err: std::error::Error + 'static,
{
    text.parse().map_err(|e: T::Err| status(&Fault::permanent(e.to_string())))
}

#[allow(clippy::result_large_err)]
fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Status> {
    serde_json::to_vec(value)
        .map_err(|e| status(&Fault::bug("a document has no JSON").caused_by(&e)))
}

#[allow(clippy::result_large_err)]
fn or_status<T>(result: Result<T, Fault>) -> Result<T, Status> {
    result.map_err(|fault| status(&fault))
}

impl OperatorEndpoint {
    fn planner(&self) -> Planner {
        Planner { fleet: self.fleet.clone(), store: self.store.clone() }
    }

    /// How an account stands on a server, in words. What a server said before its agent went away may be
    /// outdated by a commit that nobody has heard of, or by what was done without its word.
    async fn standing(&self, server: &ServerName, state: &AccountState) -> String {
        let leaving = matches!(state.standing, StandingKind::Armed | StandingKind::Fenced);
        let job = state.job.filter(|_| leaving && !self.fleet.is_connected(server));
        let Some(job) = job else { return state.standing.to_string() };
        // A job that cannot be shown says nothing of the account.
        let shown = self.jobs.watch(job).await.ok().and_then(|w| w.borrow().clone().ok());
        match shown.filter(|view| view.source == *server) {
            Some(view) if is_unheard(&self.fleet, &view) => UNHEARD.to_owned(),
            Some(view) if view.forced.is_some() => {
                format!("lost; opened by force on {}", view.target)
            }
            _ => state.standing.to_string(),
        }
    }

    fn server_message(&self, row: ServerRow) -> v1::Server {
        let system = serde_json::from_str::<ferry_proto::command::ServerFacts>(&row.facts)
            .map(|f| f.system)
            .unwrap_or_default();
        v1::Server {
            connected: self.fleet.is_connected(&row.name),
            name: row.name.into(),
            role: row.role.as_str().to_owned(),
            state: row.state.as_str().to_owned(),
            version: row.version,
            peer_address: row.peer_address,
            certificate_not_after_unix: row.not_after_ms.unwrap_or(0) / 1000,
            last_seen_unix: row.last_seen_ms.unwrap_or(0) / 1000,
            system,
        }
    }
}

#[tonic::async_trait]
impl OperatorService for OperatorEndpoint {
    async fn add_server(
        &self,
        request: Request<v1::AddServerRequest>,
    ) -> Answer<v1::AddServerResponse> {
        self.token.authorise(&request, Verb::AddServer)?;
        let request = request.into_inner();
        let valid = (request.token_seconds > 0)
            .then(|| Duration::from_secs(u64::from(request.token_seconds)));
        let name: ServerName = parse(&request.name)?;
        let role = or_status(request.role.parse())?;
        let (token, expires_ms) = or_status(self.fleet.add_server(&name, role, valid).await)?;
        Ok(Response::new(v1::AddServerResponse { token, expires_unix: expires_ms / 1000 }))
    }

    async fn list_servers(
        &self,
        request: Request<v1::ListServersRequest>,
    ) -> Answer<v1::ListServersResponse> {
        self.token.authorise(&request, Verb::ListServers)?;
        let rows = or_status(self.store.servers().await)?;
        let servers = rows.into_iter().map(|row| self.server_message(row)).collect();
        Ok(Response::new(v1::ListServersResponse { servers }))
    }

    async fn revoke_server(
        &self,
        request: Request<v1::RevokeServerRequest>,
    ) -> Answer<v1::RevokeServerResponse> {
        self.token.authorise(&request, Verb::RevokeServer)?;
        let name: ServerName = parse(&request.into_inner().name)?;
        let was_connected = or_status(self.fleet.revoke(&name).await)?;
        tracing::warn!(server = %name, "server cut off");
        Ok(Response::new(v1::RevokeServerResponse { was_connected }))
    }

    async fn list_accounts(
        &self,
        request: Request<v1::ListAccountsRequest>,
    ) -> Answer<v1::ListAccountsResponse> {
        self.token.authorise(&request, Verb::ListAccounts)?;
        let mut accounts = Vec::new();
        for (server, state) in or_status(self.store.accounts().await)? {
            accounts.push(v1::Account {
                connected: self.fleet.is_connected(&server),
                standing: self.standing(&server, &state).await,
                name: state.name.into(),
                server: server.into(),
                epoch: state.epoch.0,
                moved_to: state.moved_to.map(String::from).unwrap_or_default(),
                domains: state.domains,
            });
        }
        let problems = or_status(self.store.problems().await)?
            .into_iter()
            .map(|(server, problem)| format!("{server}: {problem}"))
            .collect();
        Ok(Response::new(v1::ListAccountsResponse { accounts, problems }))
    }

    async fn plan_move(
        &self,
        request: Request<v1::PlanMoveRequest>,
    ) -> Answer<v1::PlanMoveResponse> {
        let caller = self.token.authorise(&request, Verb::PlanMove)?;
        let request = request.into_inner();
        let wish = Wish {
            account: parse(&request.account)?,
            from: (!request.from.is_empty()).then(|| parse(&request.from)).transpose()?,
            to: (!request.to.is_empty()).then(|| parse(&request.to)).transpose()?,
            direction: parse(&request.direction)?,
            approve: request.approve,
            by: caller.name.clone(),
            policy: Policy {
                deadline_seconds: (request.deadline_seconds > 0)
                    .then_some(request.deadline_seconds),
                ..Policy::default()
            },
        };
        or_status(self.jobs.refuse_if_busy(&wish.account).await)?;
        let plan = or_status(self.planner().plan(&wish).await)?;
        or_status(self.jobs.keep(&plan).await)?;
        Ok(Response::new(v1::PlanMoveResponse {
            plan_id: plan.job.to_string(),
            plan: json(&plan)?,
        }))
    }

    async fn start_move(
        &self,
        request: Request<v1::StartMoveRequest>,
    ) -> Answer<v1::StartMoveResponse> {
        self.token.authorise(&request, Verb::StartMove)?;
        let id: JobId = parse(&request.into_inner().plan_id)?;
        or_status(self.jobs.start(id).await)?;
        Ok(Response::new(v1::StartMoveResponse { job: id.to_string() }))
    }

    async fn abort_move(
        &self,
        request: Request<v1::AbortMoveRequest>,
    ) -> Answer<v1::AbortMoveResponse> {
        let caller = self.token.authorise(&request, Verb::AbortMove)?;
        let account: AccountName = parse(&request.into_inner().account)?;
        let job = or_status(self.jobs.abort(&account, &caller.name).await)?;
        Ok(Response::new(v1::AbortMoveResponse { job: job.to_string() }))
    }

    async fn pause_move(
        &self,
        request: Request<v1::PauseMoveRequest>,
    ) -> Answer<v1::PauseMoveResponse> {
        let caller = self.token.authorise(&request, Verb::PauseMove)?;
        let account: AccountName = parse(&request.into_inner().account)?;
        let job = or_status(self.jobs.pause(&account, &caller.name).await)?;
        Ok(Response::new(v1::PauseMoveResponse { job: job.to_string() }))
    }

    async fn resume_job(
        &self,
        request: Request<v1::ResumeJobRequest>,
    ) -> Answer<v1::ResumeJobResponse> {
        let caller = self.token.authorise(&request, Verb::ResumeJob)?;
        let request = request.into_inner();
        let which = if request.job.is_empty() {
            Which::LastOf(parse(&request.account)?)
        } else {
            Which::Job(parse(&request.job)?)
        };
        let (job, account) = or_status(self.jobs.resume(&which, &caller.name).await)?;
        Ok(Response::new(v1::ResumeJobResponse { job: job.to_string(), account: account.into() }))
    }

    async fn finalize_move(
        &self,
        request: Request<v1::FinalizeMoveRequest>,
    ) -> Answer<v1::FinalizeMoveResponse> {
        self.token.authorise(&request, Verb::FinalizeMove)?;
        let request = request.into_inner();
        let account: AccountName = parse(&request.account)?;
        let from = (!request.from.is_empty()).then(|| parse(&request.from)).transpose()?;
        or_status(self.jobs.refuse_if_busy(&account).await)?;
        let plan = self.planner().plan_finalize(&account, from.as_ref(), request.erase).await;
        let plan = or_status(plan)?;
        or_status(self.jobs.keep(&plan).await)?;
        or_status(self.jobs.start(plan.job).await)?;
        Ok(Response::new(v1::FinalizeMoveResponse { job: plan.job.to_string() }))
    }

    async fn force_open(
        &self,
        request: Request<v1::ForceOpenRequest>,
    ) -> Answer<v1::ForceOpenResponse> {
        let caller = self.token.authorise(&request, Verb::ForceOpen)?;
        let request = request.into_inner();
        let account: AccountName = parse(&request.account)?;
        let off: ServerName = parse(&request.source_is_off)?;
        let job = or_status(self.jobs.force_open(&account, &off, &caller.name).await)?;
        tracing::warn!(%account, source = %off, %job, by = caller.name, "opened by force");
        Ok(Response::new(v1::ForceOpenResponse { job: job.to_string() }))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Answer<v1::ListJobsResponse> {
        self.token.authorise(&request, Verb::ListJobs)?;
        let request = request.into_inner();
        let account = (!request.account.is_empty()).then(|| parse(&request.account)).transpose()?;
        let (views, problems) = or_status(self.jobs.list(account.as_ref(), request.running).await)?;
        let jobs =
            views.into_iter().map(|v| json(&heard(&self.fleet, v))).collect::<Result<_, _>>()?;
        Ok(Response::new(v1::ListJobsResponse { jobs, problems }))
    }

    type WatchJobStream = Streamed<v1::WatchJobResponse>;

    async fn watch_job(
        &self,
        request: Request<v1::WatchJobRequest>,
    ) -> Answer<Self::WatchJobStream> {
        self.token.authorise(&request, Verb::WatchJob)?;
        let id: JobId = parse(&request.into_inner().job)?;
        let views = or_status(self.jobs.watch(id).await)?;
        // A job that does not go on for now ends the stream with the reason.
        let fleet = self.fleet.clone();
        let stream = WatchStream::new(views).map(move |shown| {
            Ok(v1::WatchJobResponse { job: json(&heard(&fleet, or_status(shown)?))? })
        });
        Ok(Response::new(Box::pin(stream)))
    }

    type ListEventsStream = Streamed<v1::ListEventsResponse>;

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Answer<Self::ListEventsStream> {
        self.token.authorise(&request, Verb::ListEvents)?;
        let request = request.into_inner();
        let reader = EventReader {
            job: (!request.job.is_empty()).then(|| parse(&request.job)).transpose()?,
            account: (!request.account.is_empty()).then(|| parse(&request.account)).transpose()?,
            store: self.store.clone(),
            // Before the first read: an event between the two rings the bell.
            bell: request.follow.then(|| self.jobs.bell()),
        };
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(reader.run(request.after, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// The view with what only the sessions tell: whether the source can be asked what became of its commit.
fn heard(fleet: &Fleet, mut view: JobView) -> JobView {
    if is_unheard(fleet, &view) {
        view.commit_unheard = true;
        view.advice = advice::unheard(&view);
    }
    view
}

/// Reads events from the store, and goes on reading if it has a bell.
struct EventReader {
    store: Arc<dyn Store>,
    job: Option<JobId>,
    account: Option<AccountName>,
    bell: Option<broadcast::Receiver<()>>,
}

type EventSender = mpsc::Sender<Result<v1::ListEventsResponse, Status>>;

impl EventReader {
    /// Ends when the receiver is gone, or everything is read and there is no bell.
    async fn run(mut self, mut after: u64, sender: EventSender) {
        loop {
            match self.page(after, &sender).await {
                Ok(Some(last)) => after = last,
                Ok(None) => {
                    let Some(bell) = &mut self.bell else { return };
                    tokio::select! {
                        rung = bell.recv() => if matches!(rung, Err(broadcast::error::RecvError::Closed)) { return },
                        () = sender.closed() => return,
                    }
                }
                Err(fault) => {
                    let _ = sender.send(Err(status(&fault))).await;
                    return;
                }
            }
        }
    }

    /// Sends one page; the number of its last event, or none if there was nothing.
    async fn page(&self, after: u64, sender: &EventSender) -> Result<Option<u64>, Fault> {
        let rows = self.store.events(self.job, self.account.as_ref(), after, PAGE).await?;
        let mut last = None;
        for row in rows {
            let job = self
                .store
                .job(row.job)
                .await?
                .ok_or_else(|| Fault::bug(format!("event {} is of no job", row.number)))?;
            let event = serde_json::from_str(&row.event).map_err(|e| {
                Fault::bug(format!("event {} is damaged", row.number)).caused_by(&e)
            })?;
            let message = v1::ListEventsResponse {
                number: row.number,
                at_unix_ms: row.at_ms,
                job: row.job.to_string(),
                account: row.account.into(),
                text: sentence(&read_plan(&job)?, &event),
                event: row.event.into_bytes(),
            };
            if sender.send(Ok(message)).await.is_err() {
                return Ok(None);
            }
            last = Some(row.number);
        }
        Ok(last)
    }
}
