//! Who may call what of the operators' service: a request's proof makes its caller, the caller has a
//! role, and the role allows verbs. There is one token and one role so far.

use std::path::Path;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use ferry_proto::Fault;
use ferry_proto::channel::files;
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

    /// Who sends a request, if they may call for `verb`.
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
        Ok(Caller { name: "an operator".to_owned(), role: Role::Operator })
    }
}
