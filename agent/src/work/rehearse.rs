//! A rehearsed open: everything at the target is started but closed, and a smoke request is
//! answered.

use ferry_host::sites::{Smoke, rehearse as rehearse_sites};
use ferry_proto::Fault;
use ferry_proto::command::Receipt;

use crate::agent::{blocking, engine};
use crate::work::{Job, done, spec};

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
    let Some(plan) = account.made.and_then(|m| m.sites) else {
        // The account's own former configuration: it served here before, and is tested when it is
        // put back.
        return Ok(done("databases are usable; sites get their own configuration back"));
    };
    let layout = job.agent.layout.clone();
    let answers = blocking(move || rehearse_sites(&layout, &plan, Smoke::Ping)).await?;
    let answered: Vec<_> = answers.iter().map(|a| format!("{} {}", a.site, a.status)).collect();
    Ok(done(format!("databases are usable; sites answered: {}", answered.join(", "))))
}
