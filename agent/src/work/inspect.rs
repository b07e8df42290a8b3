//! Looks, changes nothing: what the account is, and what stands in the way at either end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferry_databases::{Availability, Level};
use ferry_host::{facts, sites, users};
use ferry_proto::Fault;
use ferry_proto::account::{Definition, EngineKind};
use ferry_proto::command::{
    AccountFacts, DatabaseSummary, Finding, Receipt, ServerFacts, Severity, TargetFacts,
};
use ferry_proto::ids::AccountName;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, ENGINES, blocking, engine};
use crate::ledger::{Account, Standing};
use crate::work::record::here;
use crate::work::{mail_spec, spec};

/// How long a connection to the peer may take.
const REACH: Duration = Duration::from_secs(5);

/// Collects findings about this server.
struct Findings<'a> {
    agent: &'a Agent,
    list: Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, severity: Severity, message: impl Into<String>, remedy: impl Into<String>) {
        self.list.push(Finding {
            severity,
            server: self.agent.name.clone(),
            message: message.into(),
            remedy: remedy.into(),
        });
    }

    fn block(&mut self, fault: &Fault) {
        let mut message = fault.message.clone();
        for cause in &fault.causes {
            message.push_str(": ");
            message.push_str(cause);
        }
        self.add(Severity::Blocker, message, fault.remedy.clone());
    }
}

/// What this server is.
///
/// # Errors
/// If the host does not say.
pub async fn server_facts(agent: &Agent) -> Result<ServerFacts, Fault> {
    let layout = agent.layout.clone();
    let facts = blocking(move || facts::server(&layout, &[])).await?;
    Ok(ServerFacts {
        system: facts.os,
        kernel: facts.kernel,
        cpus: u32::try_from(facts.cpus).unwrap_or(u32::MAX),
        memory_bytes: facts.memory_bytes,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        services: facts.packages,
        clock_unix_ms: i64::try_from(facts.clock_unix_ns / 1_000_000).unwrap_or(i64::MAX),
    })
}

/// At the source.
///
/// # Errors
/// If the account is unknown here, or something that it names is missing.
pub async fn source(
    agent: &Arc<Agent>,
    name: &AccountName,
    peer: Option<SocketAddr>,
) -> Result<Receipt, Fault> {
    let account = here(agent, name).await?;
    let mut findings = Findings { agent, list: Vec::new() };
    if let Some(job) = account.job() {
        findings.add(
            Severity::Blocker,
            format!("account {name} is {} by job {job}", account.kind()),
            "let that job end, or abort it",
        );
    }
    reachable(&mut findings, peer).await;
    let home = account.definition.home.clone();
    let tree = blocking(move || ferry_files::scan(&home, &CancellationToken::new())).await?;
    if tree.skipped > 0 {
        findings.add(
            Severity::Warning,
            format!(
                "{} directories below {} are mounts or cannot be read",
                tree.skipped,
                account.definition.home.display()
            ),
            "unmount them, or move what they hold yourself",
        );
    }
    let databases = source_databases(&account, &mut findings).await?;
    let mail = mail_spec(&account.definition, account.uid, account.gid)?;
    mail_findings(agent, &mail, &mut findings).await;
    Ok(Receipt::Source(Box::new(AccountFacts {
        epoch: account.epoch,
        uid: account.uid,
        gid: account.gid,
        files: tree.files + tree.directories + tree.others,
        bytes: tree.bytes,
        databases,
        server: server_facts(agent).await?,
        findings: findings.list,
        definition: account.definition,
    })))
}

async fn source_databases(
    account: &Account,
    findings: &mut Findings<'_>,
) -> Result<Vec<DatabaseSummary>, Fault> {
    let mut summaries = Vec::new();
    for kind in ENGINES {
        let spec = spec(account, kind);
        if spec.is_empty() {
            continue;
        }
        let facts = engine(kind).inspect(&spec).await?;
        for finding in facts.findings {
            findings.add(
                severity(finding.level),
                format!("{kind}, {}: {}", finding.subject, finding.message),
                finding.remedy,
            );
        }
        for database in facts.databases {
            summaries.push(DatabaseSummary {
                engine: kind,
                name: database.name.to_string(),
                bytes: database.size_bytes,
                tables: database.tables,
                mode: "dump".to_owned(),
                mode_reason: "this version copies by dump and load".to_owned(),
            });
        }
    }
    Ok(summaries)
}

fn severity(level: Level) -> Severity {
    match level {
        Level::Note => Severity::Note,
        Level::Warning => Severity::Warning,
        Level::Blocker => Severity::Blocker,
    }
}

async fn mail_findings(
    agent: &Agent,
    spec: &ferry_traffic::mail::MailSpec,
    findings: &mut Findings<'_>,
) {
    use ferry_traffic::mail::Severity as Grave;
    match agent.mail.inspect(spec).await {
        Ok(inspection) => {
            for finding in inspection.findings {
                let severity = match finding.severity {
                    Grave::Note => Severity::Note,
                    Grave::Warning => Severity::Warning,
                    Grave::Blocking => Severity::Blocker,
                };
                findings.add(severity, format!("mail: {}", finding.message), finding.remedy);
            }
        }
        Err(fault) => findings.block(&fault),
    }
}

/// Whether the other agent's port can be reached from here.
async fn reachable(findings: &mut Findings<'_>, peer: Option<SocketAddr>) {
    let Some(peer) = peer else { return };
    let problem = match tokio::time::timeout(REACH, tokio::net::TcpStream::connect(peer)).await {
        Ok(Ok(_)) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", REACH.as_secs()),
    };
    findings.add(
        Severity::Blocker,
        format!("the peer's agent cannot be reached at {peer}: {problem}"),
        "check the route and the firewalls between both servers (TCP 7401 and 7481), and peer_address in /etc/ferry/agent.toml there",
    );
}

/// At the target.
///
/// # Errors
/// If this host does not say what it is.
pub async fn target(
    agent: &Arc<Agent>,
    source: &AccountFacts,
    peer: Option<SocketAddr>,
) -> Result<Receipt, Fault> {
    let name = &source.definition.name;
    let mut findings = Findings { agent, list: Vec::new() };
    reachable(&mut findings, peer).await;
    let known = agent.account(name);
    let lived_here = match known.as_ref().map(|a| &a.standing) {
        None => false,
        Some(Standing::Moved { .. } | Standing::Finalized { .. }) => true,
        Some(_) => {
            let kind = known.as_ref().map(|a| a.kind().to_string()).unwrap_or_default();
            findings.add(
                Severity::Blocker,
                format!("account {name} is {kind} here already"),
                "let the job that has it end",
            );
            true
        }
    };
    let ids = ids(agent, source, lived_here, &mut findings).await?;
    if !lived_here {
        sites_findings(agent, source, &mut findings).await;
    }
    engine_findings(source, &mut findings).await;
    mail_findings(agent, &mail_spec(&source.definition, ids.0, ids.1)?, &mut findings).await;
    let home = source.definition.home.clone();
    let space = blocking(move || facts::space(&home)).await?;
    Ok(Receipt::Target(Box::new(TargetFacts {
        server: server_facts(agent).await?,
        uid: ids.0,
        gid: ids.1,
        free_bytes: space.free_bytes,
        findings: findings.list,
    })))
}

/// The numeric ids that the account would get; a finding if its user or home is taken.
async fn ids(
    agent: &Arc<Agent>,
    source: &AccountFacts,
    lived_here: bool,
    findings: &mut Findings<'_>,
) -> Result<(u32, u32), Fault> {
    let (layout, definition) = (agent.layout.clone(), source.definition.clone());
    let (uid, gid) = (source.uid, source.gid);
    let checked = blocking(move || {
        if lived_here {
            let user = users::describe(&layout, &definition)?;
            return Ok(Ok((user.uid, user.group.gid)));
        }
        let record = likely(&definition, uid, gid)?;
        let refuse = users::Existing::Refuse;
        let plan =
            users::plan_provision(&layout, &definition, &record, refuse, &users::Policy::default());
        Ok(plan.map(|plan| (plan.ids.uid, plan.ids.gid)))
    })
    .await?;
    Ok(checked.unwrap_or_else(|fault| {
        findings.block(&fault);
        (uid, gid)
    }))
}

/// The user as far as preflight knows it: what it takes to see whether name, ids and home are
/// free. Its password crosses later, from agent to agent.
fn likely(definition: &Definition, uid: u32, gid: u32) -> Result<users::UserRecord, Fault> {
    let locked = serde_json::from_str("\"!\"")
        .map_err(|e| Fault::bug("a locked password has no form").caused_by(&e))?;
    Ok(users::UserRecord {
        name: definition.user.clone(),
        uid,
        group: users::Group { name: definition.user.clone(), gid },
        gecos: String::new(),
        shell: "/bin/sh".into(),
        home: definition.home.clone(),
        password_hash: locked,
        aging: users::Aging::default(),
        groups: Vec::new(),
        web_group_member: false,
        findings: Vec::new(),
    })
}

async fn sites_findings(agent: &Arc<Agent>, source: &AccountFacts, findings: &mut Findings<'_>) {
    let (layout, definition) = (agent.layout.clone(), source.definition.clone());
    if let Err(fault) = blocking(move || sites::plan(&layout, &definition)).await {
        findings.block(&fault);
    }
}

async fn engine_findings(source: &AccountFacts, findings: &mut Findings<'_>) {
    let mut needed: BTreeMap<EngineKind, &DatabaseSummary> = BTreeMap::new();
    for database in &source.databases {
        needed.insert(database.engine, database);
    }
    for kind in needed.into_keys() {
        match engine(kind).available().await {
            Availability::Running(_) => {}
            Availability::Absent => findings.add(
                Severity::Blocker,
                format!("{kind} is not installed here"),
                format!("install {kind} on the target"),
            ),
            Availability::Down(fault) => findings.block(&fault),
        }
    }
}
