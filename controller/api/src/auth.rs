//! Who may call what of the operators' service: a request's proof makes its caller, the caller has a
//! role, and the role allows verbs. There is one token and one role so far.

use std::path::Path;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use ferry_proto::Fault;
use ferry_proto::channel::{connection, files};
use tonic::{Request, Status};

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// As the journal names them.
    pub name: String,
    /// What they are.
    pub role: Role,
}

/// What a caller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Holds the operators' token.
    Operator,
}

/// What somebody calls for: one per method of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Verb {
    AddServer,
    ListServers,
    RevokeServer,
    ListAccounts,
    PlanMove,
    StartMove,
    AbortMove,
    PauseMove,
    ResumeJob,
    FinalizeMove,
    ForceOpen,
    ListJobs,
    WatchJob,
    ListEvents,
}

impl Role {
    /// Whether the role allows it. Every verb is named, so that a new one has to be decided.
    pub fn allows(self, verb: Verb) -> bool {
        match (self, verb) {
            (
                Self::Operator,
                Verb::AddServer
                | Verb::ListServers
                | Verb::RevokeServer
                | Verb::ListAccounts
                | Verb::PlanMove
                | Verb::StartMove
                | Verb::AbortMove
                | Verb::PauseMove
                | Verb::ResumeJob
                | Verb::FinalizeMove
                | Verb::ForceOpen
                | Verb::ListJobs
                | Verb::WatchJob
                | Verb::ListEvents,
            ) => true,
        }
    }
}

/// The operators' token.
#[derive(Clone)]
pub struct OperatorToken(String);

impl OperatorToken {
    /// Reads the token from `path`; makes one at the first start.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        match std::fs::read_to_string(path) {
            Ok(text) if text.trim().len() >= 32 => return Ok(Self(text.trim().to_owned())),
            Ok(_) => {
                return Err(Fault::precondition(format!("{} is no token", path.display()))
                    .remedy("delete it and restart the controller, which makes a new one"));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Fault::io(format!("cannot read {}", path.display()), &e)),
        }
        let mut secret = [0u8; 32];
        SystemRandom::new()
            .fill(&mut secret)
            .map_err(|_| Fault::transient("the system gives no random numbers"))?;
        let text: String = secret.iter().map(|b| format!("{b:02x}")).collect();
        // The group of the file's directory may read it: packaging gives it to operators.
        files::create_new(path, format!("{text}\n").as_bytes(), 0o640)?;
        Ok(Self(text))
    }

    /// Who sends a request, if they may call for `verb`. The connection of whoever shows the token
    /// is kept from then on: an operator follows a job for hours.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` without the token, `PERMISSION_DENIED` if the caller's role does not allow
    /// it.
    #[allow(clippy::result_large_err)]
    pub fn authorise<T>(&self, request: &Request<T>, verb: Verb) -> Result<Caller, Status> {
        let caller = self.caller(request)?;
        if caller.role.allows(verb) {
            Ok(caller)
        } else {
            Err(Status::permission_denied(format!("{} may not do this: {verb:?}", caller.name)))
        }
    }

    #[allow(clippy::result_large_err)]
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let given = request
            .metadata()
            .get("authorization")
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.strip_prefix("Bearer "))
            .unwrap_or_default();
        verify_slices_are_equal(given.as_bytes(), self.0.as_bytes()).map_err(|_| {
            Status::unauthenticated(
                "the operators' token is missing or wrong: give --token-file, or FERRY_TOKEN_FILE",
            )
        })?;
        if let Some(connection) = connection(request) {
            connection.keep();
        }
        Ok(Caller { name: "an operator".to_owned(), role: Role::Operator })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ferry_fleet::authority::Authority;
    use ferry_proto::channel::{Connections, Limits, Listener, connect_anonymous};
    use tonic::service::interceptor::InterceptedService;
    use tonic_health::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::health_server::HealthServer;
    use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
    use tonic_health::server::{HealthReporter, HealthService};

    use super::*;

    async fn soon<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(20), future).await.expect("nothing happened")
    }

    /// Follows the health service over a connection of its own, with such a token.
    async fn follow(
        address: &str,
        authority: &Authority,
        token: &str,
    ) -> tonic::Streaming<HealthCheckResponse> {
        let channel = connect_anonymous(address, authority.ca()).await.unwrap();
        let mut request = Request::new(HealthCheckRequest::default());
        let bearer = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let mut stream = soon(HealthClient::new(channel).watch(request)).await.unwrap();
        soon(stream.get_mut().message()).await.unwrap().unwrap();
        stream.into_inner()
    }

    #[tokio::test]
    async fn only_the_token_keeps_a_connection_beyond_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(&dir.path().join("ca")).unwrap();
        let token = OperatorToken::open(&dir.path().join("operator.token")).unwrap();
        let right = token.0.clone();
        let limits = Limits { anonymous_age: Duration::from_secs(4), ..Limits::default() };
        let incoming = Listener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .serve(&authority.controller_identity(), &Connections::new(limits))
            .unwrap();
        let address = incoming.address().to_string();
        let reporter = HealthReporter::new();
        let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        // Who has no token is served here too, so that the end of its time is seen.
        let service = InterceptedService::new(service, move |request| {
            let _ = token.authorise(&request, Verb::WatchJob);
            Ok(request)
        });
        let serving = tokio::spawn(
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming),
        );

        let mut operator = follow(&address, &authority, &right).await;
        // Younger, so that the operator's time is over when its is.
        let mut stranger = follow(&address, &authority, &"0".repeat(64)).await;
        assert!(soon(stranger.message()).await.is_err());
        reporter.set_service_status("", ServingStatus::NotServing).await;
        let told = soon(operator.message()).await.unwrap().unwrap();
        assert_eq!(told.status, ServingStatus::NotServing as i32);
        serving.abort();
    }
}
