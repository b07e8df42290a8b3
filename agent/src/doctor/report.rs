//! What a doctor says, to people and to programs.

use ferry_proto::Fault;
use ferry_proto::artefact::{Artefact, Kind};
use serde::Serialize;

use crate::ledger::Account;

/// The version of the JSON document.
const FORMAT: u32 = 1;
/// Nothing was found.
const CLEAN: i32 = 0;
/// Something was found.
const FOUND: i32 = 1;
/// Nothing was found, but not everything was looked at.
pub const COULD_NOT_LOOK: i32 = 2;

/// How a finding weighs; the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The ledger says closed, or held, and it is open.
    Open,
    /// Nothing in the ledger stands for it.
    Orphan,
    /// There is no ledger to compare it with.
    NotCompared,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it weighs.
    pub verdict: Verdict,
    /// What it is about.
    #[serde(flatten)]
    pub artefact: Artefact,
    /// What is so, where the artefact does not say it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub what: String,
    /// Why it was not removed, if that was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_removed: Option<String>,
}

impl Finding {
    /// Nothing stands for it.
    pub fn orphan(artefact: Artefact) -> Self {
        Self { verdict: Verdict::Orphan, artefact, what: String::new(), not_removed: None }
    }

    /// Something of a closed account is open.
    pub fn open(account: &Account, what: String) -> Self {
        let name = account.definition.name.as_str();
        let place = format!("{} here by the ledger", account.kind());
        let artefact = Artefact::new(Kind::Account, place).of(name);
        Self { verdict: Verdict::Open, artefact, what, not_removed: None }
    }

    /// Whether Ferry may take it away.
    pub fn can_be_removed(&self) -> bool {
        self.verdict == Verdict::Orphan && self.artefact.by_hand.is_none()
    }

    /// What to do.
    fn remedy(&self) -> String {
        match (self.verdict, &self.artefact.by_hand, &self.not_removed) {
            (_, _, Some(why)) => format!("not removed: {why}"),
            (_, Some(by_hand), None) => format!("by hand: {by_hand}"),
            (Verdict::Open, ..) => {
                "find out who opened it, and which server serves the account (ferry status); close it at \
                 once where it is not served"
                    .to_owned()
            }
            (Verdict::Orphan, ..) => "ferry-agent doctor --remove removes it".to_owned(),
            (Verdict::NotCompared, ..) => "restore the ledger, then look again".to_owned(),
        }
    }

    fn line(&self) -> String {
        let Artefact { kind, .. } = self.artefact;
        let (word, what) = match self.verdict {
            Verdict::Open => ("OPEN", self.what.as_str()),
            Verdict::Orphan => ("orphan", kind.what()),
            Verdict::NotCompared => ("not compared", kind.what()),
        };
        format!("{word}: {}: {what}\n    {}", self.artefact, self.remedy())
    }
}

/// Everything that is said.
#[derive(Debug, Default)]
pub struct Report {
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
    /// What could not be looked at.
    pub unseen: Vec<Fault>,
    /// How many things of Ferry's are there that the ledger stands for.
    pub stand: usize,
    /// What was removed.
    pub removed: Vec<Artefact>,
}

impl Report {
    /// This report, without findings that are not in `other` too.
    #[must_use]
    pub fn only_what_is_in(mut self, other: &Self) -> Self {
        let is_in = |f: &Finding| {
            other.findings.iter().any(|o| {
                (o.verdict, o.artefact.kind, &o.artefact.place, &o.artefact.account, &o.what)
                    == (f.verdict, f.artefact.kind, &f.artefact.place, &f.artefact.account, &f.what)
            })
        };
        self.findings.retain(is_in);
        self
    }

    /// This report, with why nothing was removed, if anything could have been.
    #[must_use]
    pub fn not_removed(mut self, why: &Fault) -> Self {
        for finding in self.findings.iter_mut().filter(|f| f.can_be_removed()) {
            finding.not_removed = Some(why.to_string());
        }
        self
    }

    /// 0: clean. 1: something was found. 2: nothing was found where it could be looked.
    pub fn exit_code(&self) -> i32 {
        let certain = self.findings.iter().any(|f| f.verdict != Verdict::NotCompared);
        match (certain, self.unseen.is_empty()) {
            (true, _) => FOUND,
            (false, false) => COULD_NOT_LOOK,
            (false, true) => CLEAN,
        }
    }

    /// Says it on standard output.
    pub fn print(&self, json: bool) {
        if json {
            println!("{}", self.json());
        } else {
            print!("{}", self.text());
        }
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let findings = self.findings.iter().map(|finding| {
            let mut value = serde_json::json!(finding);
            value["remedy"] = finding.remedy().into();
            value["description"] = match finding.verdict {
                Verdict::Open => finding.what.as_str(),
                _ => finding.artefact.kind.what(),
            }
            .into();
            value
        });
        serde_json::json!({
            "format": FORMAT,
            "exit_code": self.exit_code(),
            "findings": findings.collect::<Vec<_>>(),
            "removed": self.removed,
            "not_looked_at": self.unseen,
            "accounted_for": self.stand,
        })
    }

    pub(super) fn text(&self) -> String {
        let mut lines: Vec<String> =
            self.removed.iter().map(|a| format!("removed: {a}: {}", a.kind.what())).collect();
        lines.extend(self.findings.iter().map(Finding::line));
        lines.extend(self.unseen.iter().map(|fault| format!("not looked at: {fault}")));
        lines.push(match self.exit_code() {
            CLEAN => format!(
                "clean: the ledger stands for each of the {} things of Ferry's that are here",
                self.stand
            ),
            COULD_NOT_LOOK => "not everything could be looked at".to_owned(),
            _ => format!("{} findings", self.findings.len()),
        });
        lines.join("\n") + "\n"
    }
}
