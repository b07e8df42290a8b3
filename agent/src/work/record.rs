//! What the source tells the target of an account, apart from content.

use std::sync::Arc;

use ferry_host::{cron, users};
use ferry_proto::Fault;
use ferry_proto::ids::AccountName;

use crate::agent::{Agent, ENGINES, blocking, engine};
use crate::ledger::{Account, SourceRecord, Standing};
use crate::work::{definition, mail_spec, spec};

/// The record of an account that this server serves or holds fenced.
///
/// # Errors
/// If something that the definition names is missing, or a service does not answer.
pub async fn of_account(agent: &Arc<Agent>, name: &AccountName) -> Result<SourceRecord, Fault> {
    let account = here(agent, name).await?;
    let (layout, definition) = (agent.layout.clone(), account.definition.clone());
    let (user, cron, web) = blocking(move || {
        let user = users::describe(&layout, &definition)?;
        let cron = cron::describe(&layout, &definition.user)?;
        Ok((user, cron, users::web_ids(&layout)?))
    })
    .await?;
    let mut databases = Vec::new();
    for kind in ENGINES {
        let spec = spec(&account, kind);
        if !spec.is_empty() {
            let fence = account
                .closed
                .as_ref()
                .and_then(|c| c.databases.iter().find(|(k, _)| *k == kind))
                .map(|(_, record)| record);
            databases.push((kind, engine(kind).record(&spec, fence).await?));
        }
    }
    let mail = mail_spec(&account.definition, account.uid, account.gid)?;
    let (mail, _) = agent.mail.record(&mail).await?;
    let mut user = user;
    if let Some(closed) = &account.closed {
        // The fence lets logins expire; what counts is what was before.
        user.aging.expire = closed.logins.expire;
    }
    Ok(SourceRecord { definition: account.definition, user, cron, databases, mail, web })
}

/// The account as this server has it: from the ledger, or as the inventory defines it.
///
/// # Errors
/// If this server does not serve it, or its user is not there.
pub async fn here(agent: &Arc<Agent>, name: &AccountName) -> Result<Account, Fault> {
    if let Some(account) = agent.account(name) {
        return match account.standing {
            Standing::Serving | Standing::Armed { .. } | Standing::Fenced { .. } => Ok(account),
            _ => Err(Fault::fenced(format!(
                "account {name} is {} on {}, not served there",
                account.kind(),
                agent.name
            ))),
        };
    }
    let definition = definition(agent, name)?;
    let layout = agent.layout.clone();
    blocking(move || {
        let user = users::describe(&layout, &definition)?;
        Ok(Account {
            definition,
            epoch: ferry_proto::ids::Epoch::default(),
            uid: user.uid,
            gid: user.group.gid,
            standing: Standing::Serving,
            made: None,
            came_from: None,
            taken_back: None,
            wound_down: None,
            closed: None,
        })
    })
    .await
}
