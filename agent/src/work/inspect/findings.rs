//! Collects findings about one server, from all that has its own kind of them.

use ferry_databases::Level;
use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::command::{Finding, Severity};
use ferry_proto::ids::ServerName;
use ferry_traffic::mail;

/// Findings about a server, each once.
#[derive(Debug)]
pub struct Findings {
    server: ServerName,
    list: Vec<Finding>,
}

impl Findings {
    /// None yet, about `server`.
    pub fn new(server: &ServerName) -> Self {
        Self { server: server.clone(), list: Vec::new() }
    }

    /// What was found.
    pub fn into_list(self) -> Vec<Finding> {
        self.list
    }

    /// Adds one.
    pub fn add(
        &mut self,
        severity: Severity,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let finding = Finding {
            severity,
            server: self.server.clone(),
            message: message.into(),
            remedy: remedy.into(),
        };
        if !self.list.contains(&finding) {
            self.list.push(finding);
        }
    }

    /// Adds those of another collection.
    pub fn join(&mut self, others: Self) {
        for other in others.list {
            self.add(other.severity, other.message, other.remedy);
        }
    }

    /// A fault of a step's own plan: the step would end with it.
    pub fn block(&mut self, fault: &Fault) {
        let mut message = fault.message.clone();
        for cause in &fault.causes {
            message.push_str(": ");
            message.push_str(cause);
        }
        self.add(Severity::Blocker, message, fault.remedy.clone());
    }

    /// What came of a look; if a fault did, it blocks.
    pub fn take<T>(&mut self, looked: Result<T, Fault>) -> Option<T> {
        looked.map_err(|fault| self.block(&fault)).ok()
    }

    /// The host's. They have no weight of their own: what asks for something to be done may surprise.
    pub fn of_host(&mut self, found: impl IntoIterator<Item = ferry_host::Finding>) {
        for finding in found {
            let nothing_to_do = finding.remedy.is_empty();
            let severity = if nothing_to_do { Severity::Note } else { Severity::Warning };
            self.add(severity, finding.message, finding.remedy);
        }
    }

    /// A database engine's.
    pub fn of_engine(
        &mut self,
        kind: EngineKind,
        found: impl IntoIterator<Item = ferry_databases::Finding>,
    ) {
        for finding in found {
            let severity = match finding.level {
                Level::Note => Severity::Note,
                Level::Warning => Severity::Warning,
                Level::Blocker => Severity::Blocker,
            };
            let message = format!("{kind}, {}: {}", finding.subject, finding.message);
            self.add(severity, message, finding.remedy);
        }
    }

    /// Mail's.
    pub fn of_mail(&mut self, found: impl IntoIterator<Item = mail::Finding>) {
        for finding in found {
            let severity = match finding.severity {
                mail::Severity::Note => Severity::Note,
                mail::Severity::Warning => Severity::Warning,
                mail::Severity::Blocking => Severity::Blocker,
            };
            self.add(severity, format!("mail: {}", finding.message), finding.remedy);
        }
    }
}
