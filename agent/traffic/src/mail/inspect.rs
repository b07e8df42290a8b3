//! Looks at the mail of an account on this server and changes nothing: what there is, what stands,
//! what would get in a move's way, and the passwords that the target needs.

use std::collections::BTreeSet;

use ferry_proto::Fault;
use ferry_proto::ids::DomainName;
use serde::{Deserialize, Serialize};

use super::maps;
use super::record::{self, MailRecord};
use super::spec::MailSpec;
use super::standing::{Basis, MailState};
use super::{Mail, store};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Something will be different after the move.
    Warning,
    /// The move cannot keep its promises.
    Blocking,
}

/// What was found, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What is so, one sentence.
    pub message: String,
    /// What to do; empty if nothing.
    pub remedy: String,
}

impl Finding {
    fn new(severity: Severity, message: String, remedy: &str) -> Self {
        Self { severity, message, remedy: remedy.to_owned() }
    }
}

/// A mail service of this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its version, as it tells it.
    pub version: String,
    /// Whether it runs.
    pub running: bool,
}

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// Postfix, if it is installed.
    pub postfix: Option<Service>,
    /// Dovecot, if it is installed.
    pub dovecot: Option<Service>,
    /// How many messages for the account wait in Postfix's queue.
    pub queued: usize,
    /// What would get in a move's way.
    pub findings: Vec<Finding>,
}

/// What stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// What was decided last.
    pub state: MailState,
    /// Where the world is not so; empty if all is in effect.
    pub drift: Vec<String>,
}

impl Mail {
    /// What there is of the account's mail on this server. An account without mail needs nothing.
    ///
    /// # Errors
    /// When a service that is there cannot be asked.
    pub async fn inspect(&self, spec: &MailSpec) -> Result<Inspection, Fault> {
        let mut seen = Inspection::default();
        if spec.is_empty() {
            return Ok(seen);
        }
        let (postfix, dovecot) = (self.postfix(), self.dovecot());
        if let Some(version) = postfix.version().await? {
            let running = postfix.master().await?.is_some();
            seen.postfix = Some(Service { version: version.to_owned(), running });
            seen.findings.extend(self.postfix_findings(spec).await?);
            if running {
                let domains: BTreeSet<&DomainName> = spec.domains().collect();
                seen.queued = postfix.queued(&domains).await?.len();
            }
        }
        if let Some(version) = dovecot.version().await? {
            let running = dovecot.master().await?.is_some();
            seen.dovecot = Some(Service { version: version.text.clone(), running });
            seen.findings.extend(self.dovecot_findings().await?);
            if running {
                seen.findings.extend(self.place_findings(spec).await?);
            }
        }
        for (name, service) in [("Postfix", &seen.postfix), ("Dovecot", &seen.dovecot)] {
            let (message, remedy) = match service {
                None => {
                    (format!("{name} is not installed, but the account has mail"), "install it")
                }
                Some(s) if !s.running => (format!("{name} does not run"), "start it"),
                Some(_) => continue,
            };
            seen.findings.push(Finding::new(Severity::Blocking, message, remedy));
        }
        Ok(seen)
    }

    /// What stands for the account's mail on this server, and whether it is in effect.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn state(&self, spec: &MailSpec) -> Result<Observed, Fault> {
        if !self.store().exists() {
            return Ok(Observed { state: MailState::Local, drift: Vec::new() });
        }
        let standings = self.load().await?;
        let state = MailState::of(standings.get(spec.account()));
        if standings.is_empty() {
            return Ok(Observed { state, drift: Vec::new() });
        }
        let (postfix, dovecot) = (self.postfix(), self.dovecot());
        let mut drift = self.stale_tables(&standings).await?;
        let version = dovecot.version().await?;
        match postfix.version().await? {
            Some(_) if !postfix.is_installed().await? => {
                drift.push("Postfix's hook is not in its configuration".to_owned());
            }
            Some(_) if postfix.master().await?.is_none() => {
                drift.push("Postfix does not run".to_owned())
            }
            Some(_) => {}
            None => drift.push("Postfix is not installed".to_owned()),
        }
        match version {
            Some(_) if dovecot.master().await?.is_none() => {
                drift.push("Dovecot does not run".to_owned())
            }
            Some(_) if !dovecot.holds(maps::PROBE_DOMAIN).await? => {
                drift.push("Dovecot does not read its hook".to_owned());
            }
            Some(_) => {}
            None => drift.push("Dovecot is not installed".to_owned()),
        }
        Ok(Observed { state, drift })
    }

    /// The passwords of the account's mailboxes, as hashes, for the target. What cannot be read is a
    /// finding.
    ///
    /// # Errors
    /// When a service that is there cannot be asked, or a passwd-file cannot be read.
    pub async fn record(&self, spec: &MailSpec) -> Result<(MailRecord, Vec<Finding>), Fault> {
        if spec.is_empty() {
            return Ok((MailRecord::default(), Vec::new()));
        }
        if let Some(standing) = self.load().await?.remove(spec.account())
            && let Basis::Ferry(record) = standing.basis
        {
            let findings = missing(spec, &record, &[]);
            return Ok((record, findings));
        }
        let dovecot = self.dovecot();
        if dovecot.version().await?.is_none() {
            return Err(Fault::precondition(format!(
                "the mailboxes of account {} have no Dovecot on this server",
                spec.account()
            ))
            .remedy("install Dovecot, or take the mail out of the account's definition"));
        }
        let (files, others) = dovecot.passwd_files().await?;
        let owned = spec.clone();
        let record = store::blocking(move || record::read_passwords(&owned, &files)).await?;
        let findings = missing(spec, &record, &others);
        Ok((record, findings))
    }

    /// What this server, as the target, would not take of a record from the source.
    ///
    /// # Errors
    /// When Dovecot cannot be asked.
    pub async fn check_record(&self, record: &MailRecord) -> Result<Vec<Finding>, Fault> {
        let dovecot = self.dovecot();
        let Some(version) = dovecot.version().await? else {
            return Ok(Vec::new());
        };
        if version.dialect == maps::Dialect::V2_3
            || dovecot.setting("auth_allow_weak_schemes").await?.as_deref() == Some("yes")
        {
            return Ok(Vec::new());
        }
        let weak = record.passwords.iter().filter(|p| p.hash.is_weak());
        Ok(weak
            .map(|p| {
                Finding::new(
                    Severity::Blocking,
                    format!(
                        "the password of {}@{} is kept as {}, which Dovecot {} refuses",
                        p.mailbox,
                        p.domain,
                        p.hash.scheme(),
                        version.text
                    ),
                    "set auth_allow_weak_schemes = yes on this server, or have the owner set the \
                     password anew before the move",
                )
            })
            .collect())
    }

    async fn postfix_findings(&self, spec: &MailSpec) -> Result<Vec<Finding>, Fault> {
        let postfix = self.postfix();
        let mut findings = Vec::new();
        if !postfix.has_service("retry/unix").await? {
            findings.push(Finding::new(
                Severity::Blocking,
                "Postfix has no retry service, so mail could not be kept during the fence"
                    .to_owned(),
                "put Debian's line 'retry unix - - y - - error' back into master.cf",
            ));
        }
        let own_rules = postfix.own_rules().await?;
        if !own_rules.is_empty() {
            findings.push(Finding::new(
                Severity::Note,
                format!(
                    "mail that comes by {} is accepted during the fence and kept in the queue, \
                     where other mail is deferred",
                    own_rules.join(", ")
                ),
                "nothing needs doing: it is delivered or passed on afterwards",
            ));
        }
        let addresses: Vec<String> = spec.mailboxes().map(|m| m.address()).collect();
        for (address, target) in postfix.aliases(&addresses).await? {
            findings.push(Finding::new(
                Severity::Blocking,
                format!("mail for {address} goes to {target} instead of a mailbox"),
                "Postfix rewrites this address before Ferry can hold it: remove the alias, or the \
                 mailbox from the definition",
            ));
        }
        Ok(findings)
    }

    async fn dovecot_findings(&self) -> Result<Vec<Finding>, Fault> {
        let dovecot = self.dovecot();
        let mut findings = Vec::new();
        for protocol in ["imap", "lmtp"] {
            let format = dovecot.setting_of(protocol, "auth_username_format").await?;
            let format = format.unwrap_or_default();
            let strips = format.contains('n') && format.starts_with('%') && !format.contains('{')
                || format.contains("username");
            if strips {
                findings.push(Finding::new(
                    if protocol == "imap" { Severity::Blocking } else { Severity::Warning },
                    format!(
                        "Dovecot takes the domain off the user names of {protocol} ({format}), so \
                         it cannot tell this account's mailboxes from others"
                    ),
                    "let auth_username_format keep the domain",
                ));
            }
        }
        let location = dovecot.setting("mail_location").await?.unwrap_or_default();
        let control = dovecot.setting("mail_control_path").await?.unwrap_or_default();
        if location.contains(":CONTROL=") || !control.is_empty() {
            findings.push(Finding::new(
                Severity::Blocking,
                "Dovecot keeps its control files outside the Maildirs, so messages would get new UIDs"
                    .to_owned(),
                "keep dovecot-uidlist in the Maildirs (no CONTROL= or mail_control_path)",
            ));
        }
        let layout = dovecot.explicit("mailbox_list_layout").await?.unwrap_or_default();
        if location.contains(":LAYOUT=fs") || layout == "fs" {
            findings.push(Finding::new(
                Severity::Blocking,
                "Dovecot keeps folders in the layout fs, which the target would not find"
                    .to_owned(),
                "only the standard layout of Maildirs (Maildir++) can be moved",
            ));
        }
        Ok(findings)
    }

    /// Whether Dovecot has the mailboxes where the definition says.
    async fn place_findings(&self, spec: &MailSpec) -> Result<Vec<Finding>, Fault> {
        let Some(mailbox) = spec.mailboxes().next() else {
            return Ok(Vec::new());
        };
        let wanted = mailbox.maildir().display().to_string();
        let address = mailbox.address();
        let known = self.dovecot().fields(&address).await?;
        if known.is_empty() || known.contains(&wanted) {
            return Ok(Vec::new());
        }
        Ok(vec![Finding::new(
            Severity::Warning,
            format!("Dovecot does not name {wanted} as the place of {address}"),
            "compare the account's mail root with the provider's Dovecot configuration",
        )])
    }
}

fn missing(spec: &MailSpec, record: &MailRecord, others: &[String]) -> Vec<Finding> {
    let why = if others.is_empty() {
        "no passwd-file of Dovecot's holds it".to_owned()
    } else {
        format!("no passwd-file of Dovecot's holds it, and {} cannot be read", others.join(", "))
    };
    let missing = record.missing(spec);
    missing
        .iter()
        .map(|mailbox| {
            Finding::new(
                Severity::Warning,
                format!("the password of mailbox {} cannot be read: {why}", mailbox.address()),
                "let the target ask the same password database, or set a new password after the move",
            )
        })
        .collect()
}
