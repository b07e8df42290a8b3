//! Ends a move for good, at the server that no longer serves the account: takes down what stands for
//! it, and erases the copy if that was asked and Ferry made it.

use ferry_proto::Fault;
use ferry_proto::command::Receipt;

use crate::ledger::Standing;
use crate::work::{Job, arm, done, mail_spec, provision};

/// Finalizes.
///
/// # Errors
/// Of class Fenced if this server serves the account; Precondition if the copy is not Ferry's to
/// erase.
pub async fn finalize(job: &Job, erase: bool) -> Result<Receipt, Fault> {
    let agent = &job.agent;
    let _order = agent.order(&job.of.account).await;
    let Some(mut account) = agent.account(&job.of.account) else {
        return Ok(done("nothing stands here"));
    };
    let to = match &account.standing {
        Standing::Moved { record, .. } => record.target.clone(),
        Standing::Finalized { to } => to.clone(),
        _ => return Err(job.stands_otherwise(&account, "moved away")),
    };
    if to != job.of.target || account.epoch != job.of.epoch {
        return Err(job.stands_otherwise(&account, &format!("moved to {}", job.of.target)));
    }
    if erase && account.made.is_none() {
        return Err(Fault::precondition(format!(
            "account {} was on {} before Ferry: Ferry does not erase it",
            job.of.account, agent.name
        ))
        .remedy("finalize without --erase; the server's reinstallation ends it"));
    }
    account.standing = Standing::Finalized { to: to.clone() };
    job.set(account.clone()).await?;
    arm::reconcile(agent).await?;
    if account.made.is_none() {
        return Ok(done(format!(
            "connections are no longer passed on to {to}; the copy stays, closed"
        )));
    }
    let mail = mail_spec(&account.definition, account.uid, account.gid)?;
    agent.mail.close_here(&mail).await?;
    if !erase {
        return Ok(done(format!(
            "connections are no longer passed on to {to}; the copy stays, closed"
        )));
    }
    if let Some(closed) = &account.closed {
        // What the fence put in the way is no longer needed, and must not outlive the copy.
        provision::clear_closed(agent, closed).await?;
    }
    provision::erase(agent, &account).await?;
    agent.set_account(&job.of.account, None).await?;
    Ok(done("the copy and everything that was made for it is removed"))
}
