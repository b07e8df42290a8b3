//! A rehearsed open: everything at the target is started but closed, and a smoke request is
//! answered.

use std::path::PathBuf;

use ferry_databases::Availability;
use ferry_host::sites::{Smoke, rehearse as rehearse_sites};
use ferry_host::sites_fence;
use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::command::Receipt;

use crate::agent::{Agent, blocking, engine};
use crate::ledger::{Account, SourceRecord};
use crate::work::{Job, done, inspect, mail_spec, spec};

/// Rehearses.
///
/// # Errors
/// Precondition if something would not start or not answer.
pub async fn rehearse(job: &Job) -> Result<Receipt, Fault> {
    let _order = job.agent.order(&job.of.account).await;
    let (account, source) = job.receiving()?;
    for (kind, record) in &source.databases {
        engine(*kind).rehearse(&spec(&account, *kind), record).await?;
    }
    let sites = could_open(&job.agent, &account, &source).await?;
    Ok(done(format!("databases are usable; {sites}")))
}

/// Looks whether all that opening needs is there, and says how the sites answered. Opens nothing, and
/// reads nothing of the content: it is asked again while visitors wait.
///
/// # Errors
/// Precondition if something would not start, not answer, or has no room.
pub async fn could_open(
    agent: &Agent,
    account: &Account,
    source: &SourceRecord,
) -> Result<String, Fault> {
    let mut directories = vec![
        account.definition.home.clone(),
        agent.layout.path("/etc"),
        agent.config.state_directory.clone(),
    ];
    for (kind, _) in &source.databases {
        directories.push(data_directory(*kind).await?);
    }
    blocking(move || directories.iter().try_for_each(|d| inspect::writable(d))).await?;
    agent.mail.can_open(&mail_spec(&account.definition, account.uid, account.gid)?).await?;
    sites(agent, account).await
}

/// Where a database server that answers keeps its data.
async fn data_directory(kind: EngineKind) -> Result<PathBuf, Fault> {
    match engine(kind).available().await {
        Availability::Running(server) => Ok(server.data_dir.into()),
        Availability::Down(fault) => Err(fault),
        Availability::Absent => {
            Err(Fault::precondition(format!("{kind} is not installed on this server"))
                .remedy("install it, or take its databases out of the account's definition"))
        }
    }
}

/// Starts the account's sites, closed, and says how they answered.
async fn sites(agent: &Agent, account: &Account) -> Result<String, Fault> {
    let layout = agent.layout.clone();
    if let Some(closed) = account.closed.clone() {
        // It lived here before, and its own configuration comes back: the home that it names has
        // changed since, and so may have the services.
        let tried = blocking(move || sites_fence::rehearse(&layout, &closed.sites)).await?;
        return Ok(if tried {
            "nginx and PHP-FPM accept the account's own configuration".to_owned()
        } else {
            "the account's own configuration is checked when it is put back".to_owned()
        });
    }
    let Some(plan) = account.made.as_ref().and_then(|m| m.sites.clone()) else {
        return Ok("there are no sites".to_owned());
    };
    let answers = blocking(move || rehearse_sites(&layout, &plan, Smoke::Ping)).await?;
    let answered: Vec<_> = answers.iter().map(|a| format!("{} {}", a.site, a.status)).collect();
    Ok(format!("sites answered: {}", answered.join(", ")))
}
