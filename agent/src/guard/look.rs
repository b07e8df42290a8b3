//! The agent's own look, for as long as it runs: at start, when databases can be asked too, and again and
//! again. What has come back of a closed account is closed again, said aloud and counted.
//!
//! A fence is looked at by its own commit, which refuses: closing it again quietly would hide that
//! something may have been written since.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_databases::FenceRecord;
use ferry_host::closed::ClosedAgain;
use ferry_host::processes::{Process, of_users, stop_all};
use ferry_host::sites_fence::Enabled;
use ferry_host::{Layout, Services, users};
use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::ids::AccountName;
use tokio_util::sync::CancellationToken;

use super::{close_host, close_mail, is_broken, put_mail_back, tell};
use crate::agent::{Agent, ENGINES, answers, blocking, engine};
use crate::ledger::{Account, Standing};
use crate::work::spec;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(15);
/// How often while something comes back: what starts it may do so again.
const AGAIN: Duration = Duration::from_secs(2);
/// How often databases are asked: each account costs a client of its own.
const DATABASES: Duration = Duration::from_secs(600);
/// How long an account may be in use by a command before it is left for the next look.
const BUSY: Duration = Duration::from_millis(100);

/// Looks until `stop` fires.
pub async fn keep(agent: Arc<Agent>, stop: CancellationToken) {
    let mut databases = Databases::default();
    let mut pause = Duration::ZERO;
    while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let found = !is_broken() && look(&agent, &mut databases).await;
        pause = if found { AGAIN } else { LOOK };
    }
}

/// When each account's databases were last found closed.
type Databases = BTreeMap<AccountName, Instant>;

/// Why engines cannot be asked now.
type Silent = BTreeMap<EngineKind, Fault>;

/// Looks once. Whether something was open.
async fn look(agent: &Arc<Agent>, databases: &mut Databases) -> bool {
    let names: Vec<AccountName> = agent.look(|l| {
        let closed = l.accounts().iter().filter(|(_, account)| is_looked_at(account));
        closed.map(|(name, _)| name.clone()).collect()
    });
    databases.retain(|name, _| names.contains(name));
    if names.is_empty() {
        return false;
    }
    let layout = agent.layout.clone();
    let enabled = match blocking(move || Enabled::read(&layout)).await {
        Ok(enabled) => Arc::new(enabled),
        Err(fault) => {
            tracing::error!(class = %fault.class, "what the web server reads cannot be seen: {fault}");
            Arc::default()
        }
    };
    if let Err(fault) = put_mail_back(&agent.mail).await {
        tracing::error!(class = %fault.class, "mail of closed accounts may be served: {fault}");
    }
    let silent = silent(agent, &names, databases).await;
    let mut open = false;
    for name in names {
        open |= look_at(agent, &name, &enabled, databases, &silent).await;
    }
    open
}

/// The engines that are due to be asked and do not answer. Each is waited for once, not for every account:
/// the last of them would be looked at after hours.
async fn silent(agent: &Agent, names: &[AccountName], databases: &Databases) -> Silent {
    let mut silent = Silent::new();
    for kind in ENGINES {
        let is_asked = |name: &AccountName| {
            is_due(databases, name)
                && agent.account(name).is_some_and(|a| closed_in(&a).any(|(k, _)| *k == kind))
        };
        if names.iter().any(is_asked)
            && let Err(fault) = answers(kind).await
        {
            silent.insert(kind, fault);
        }
    }
    silent
}

/// Whether an account's databases are to be looked at.
fn is_due(databases: &Databases, name: &AccountName) -> bool {
    databases.get(name).is_none_or(|last| last.elapsed() >= DATABASES)
}

/// What is closed of the account's databases. Those of one that is received are being made.
fn closed_in(account: &Account) -> impl Iterator<Item = &(EngineKind, FenceRecord)> {
    let is_received = matches!(account.standing, Standing::Receiving { .. });
    account.closed.iter().filter(move |_| !is_received).flat_map(|closed| &closed.databases)
}

/// Closed for good, or being received: not what is fenced or opened just now.
fn is_looked_at(account: &Account) -> bool {
    match &account.standing {
        Standing::Moved { .. } | Standing::Receiving { .. } | Standing::Refused { .. } => true,
        Standing::Finalized { erasing, .. } => !erasing,
        Standing::Serving
        | Standing::Armed { .. }
        | Standing::Fenced { .. }
        | Standing::Opening { .. } => false,
    }
}

/// Closes again what is open of one account. Whether something was.
async fn look_at(
    agent: &Arc<Agent>,
    name: &AccountName,
    enabled: &Arc<Enabled>,
    databases: &mut Databases,
    silent: &Silent,
) -> bool {
    let Ok(_order) = tokio::time::timeout(BUSY, agent.order(name)).await else { return false };
    // It may stand otherwise by now.
    let Some(account) = agent.account(name).filter(is_looked_at) else { return false };
    let mut all = host(agent, &account, enabled).await;
    all.add(close_mail(&agent.mail, &account).await);
    if is_due(databases, name) {
        let mut all_seen = true;
        for closed in closed_in(&account) {
            let again = close_database(&account, closed, silent).await;
            all_seen &= again.is_ok();
            all.add(again);
        }
        if all_seen {
            databases.insert(name.clone(), Instant::now());
        }
    }
    tell(name, &all);
    for fault in &all.faults {
        tracing::error!(account = %name, class = %fault.class, "a closed account may be open: {fault}");
    }
    metrics::counter!("ferry_closed_again_total", "account" => name.to_string())
        .increment(all.found.len() as u64);
    metrics::gauge!("ferry_closed_unsure", "account" => name.to_string())
        .set(f64::from(u8::from(!all.faults.is_empty())));
    !all.found.is_empty() || !all.faults.is_empty()
}

async fn host(agent: &Arc<Agent>, account: &Account, enabled: &Arc<Enabled>) -> ClosedAgain {
    let (layout, enabled, account) = (agent.layout.clone(), enabled.clone(), account.clone());
    let looked = blocking(move || {
        let mut all = close_host(&layout, &account, &enabled, Services::Running);
        // Of one that is received, our own clients run as its user.
        if account.closed.is_some() && !matches!(account.standing, Standing::Receiving { .. }) {
            all.add(end_processes(&layout, &account));
        }
        Ok(all)
    });
    looked.await.unwrap_or_else(|fault| ClosedAgain { found: Vec::new(), faults: vec![fault] })
}

/// Ends what runs as the account's user, unless its number has become somebody else's.
fn end_processes(layout: &Layout, account: &Account) -> Result<Vec<String>, Fault> {
    let uid = account.uid;
    if users::uid_of(layout, &account.definition.user)? != Some(uid) {
        return Ok(Vec::new());
    }
    let running = of_users(&[uid], &[])?;
    if running.is_empty() {
        return Ok(Vec::new());
    }
    stop_all(layout, &[uid], &[], Duration::ZERO)?;
    Ok(running.iter().map(Process::to_string).collect())
}

/// Closes a database server to the account again that lets it in.
async fn close_database(
    account: &Account,
    (kind, record): &(EngineKind, FenceRecord),
    silent: &Silent,
) -> Result<Vec<String>, Fault> {
    if let Some(fault) = silent.get(kind) {
        return Err(fault.clone());
    }
    let (engine, spec) = (engine(*kind), spec(account, *kind));
    if engine.is_fenced(&spec).await? {
        return Ok(Vec::new());
    }
    engine.fence(&spec, record, Duration::ZERO).await?;
    Ok(vec![format!("{kind} let the account in")])
}
