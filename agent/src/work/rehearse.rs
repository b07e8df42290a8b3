//! A rehearsed open: everything at the target is started but closed, and a smoke request is
//! answered.

use ferry_host::sites::{Smoke, rehearse as rehearse_sites};
use ferry_host::sites_fence;
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
    let layout = job.agent.layout.clone();
    if let Some(closed) = account.closed {
        // It lived here before, and its own configuration comes back: the home that it names has
        // changed since, and so may have the services.
        let tried = blocking(move || sites_fence::rehearse(&layout, &closed.sites)).await?;
        return Ok(done(if tried {
            "databases are usable; nginx and PHP-FPM accept the account's own configuration"
        } else {
            "databases are usable; the account's own configuration is checked when it is put back"
        }));
    }
    let Some(plan) = account.made.and_then(|m| m.sites) else {
        return Ok(done("databases are usable; there are no sites"));
    };
    let answers = blocking(move || rehearse_sites(&layout, &plan, Smoke::Ping)).await?;
    let answered: Vec<_> = answers.iter().map(|a| format!("{} {}", a.site, a.status)).collect();
    Ok(done(format!("databases are usable; sites answered: {}", answered.join(", "))))
}
