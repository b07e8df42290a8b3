//! What the source tells the target of an account, apart from content.

use std::sync::Arc;

use ferry_host::accounts::Inventory;
use ferry_host::{cron, processes, users};
use ferry_proto::Fault;
use ferry_proto::account::{Definition, Site};
use ferry_proto::ids::AccountName;

use crate::agent::{Agent, ENGINES, blocking, engine};
use crate::ledger::{Account, SourceRecord, Standing};
use crate::work::{mail_spec, spec};

/// The record of an account that this server serves or holds fenced.
///
/// # Errors
/// If something that the definition names is missing, or a service does not answer.
pub async fn of_account(agent: &Arc<Agent>, name: &AccountName) -> Result<SourceRecord, Fault> {
    let account = here(agent, name).await?;
    let (layout, definition) = (agent.layout.clone(), account.definition.clone());
    let (user, cron, web, lingers) = blocking(move || {
        let user = users::describe(&layout, &definition)?;
        let cron = cron::describe(&layout, &definition.user)?;
        let lingers = processes::lingers(&layout, &definition.user)?;
        Ok((user, cron, users::web_ids(&layout)?, lingers))
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
    // What still waits for its minute here is not lost for the next server.
    let pending = account.after_open.as_ref().filter(|a| !a.done).map(|a| a.units.linger);
    let linger = Some(pending.unwrap_or(lingers));
    Ok(SourceRecord { definition: account.definition, user, cron, databases, mail, web, linger })
}

/// The account as this server has it: from the ledger, or as the inventory defines it. One that was
/// here before Ferry is the inventory's whenever it is served and free to move.
///
/// # Errors
/// If this server does not serve it, its user is not there, or its definition cannot be relied upon.
pub async fn here(agent: &Arc<Agent>, name: &AccountName) -> Result<Account, Fault> {
    let known = agent.account(name);
    match known {
        Some(account) => match account.standing {
            Standing::Armed { .. } | Standing::Fenced { .. } => Ok(account),
            Standing::Serving => {
                let agent = agent.clone();
                blocking(move || as_defined(&agent, account)).await
            }
            _ => Err(Fault::fenced(format!(
                "account {name} is {} on {}, not served there",
                account.kind(),
                agent.name
            ))),
        },
        None => {
            let (agent, name) = (agent.clone(), name.clone());
            blocking(move || new_account(&agent, definition(&agent, &name)?)).await
        }
    }
}

/// The account as the inventory defines it, if it does.
///
/// # Errors
/// If its user is not there, or a definition cannot be read: it may be this one's.
pub async fn defined(agent: &Arc<Agent>, name: &AccountName) -> Result<Option<Account>, Fault> {
    let (agent, name) = (agent.clone(), name.clone());
    blocking(move || {
        let known = inventory(&agent);
        let whole = known.problems.is_empty() && !known.incomplete;
        if whole && !known.accounts.contains_key(&name) {
            return Ok(None);
        }
        new_account(&agent, definition(&agent, &name)?).map(Some)
    })
    .await
}

/// An account that the ledger does not know.
fn new_account(agent: &Agent, definition: Definition) -> Result<Account, Fault> {
    let user = users::describe(&agent.layout, &definition)?;
    Ok(Account {
        definition,
        epoch: ferry_proto::ids::Epoch::default(),
        uid: user.uid,
        gid: user.group.gid,
        standing: Standing::Serving,
        made: None,
        came_from: None,
        taken_back: None,
        served_again_unix_ms: None,
        forced: None,
        wound_down: None,
        closed: None,
        refreshed: None,
        after_open: None,
    })
}

/// An account that is served here, as it is defined now. What Ferry made here is served as it came: a
/// definition that says otherwise is refused, for nobody has made what it names.
fn as_defined(agent: &Agent, known: Account) -> Result<Account, Fault> {
    if known.made.is_none() {
        let now = new_account(agent, definition(agent, &known.definition.name)?)?;
        return Ok(Account { definition: now.definition, uid: now.uid, gid: now.gid, ..known });
    }
    let name = &known.definition.name;
    let Some(other) = inventory(agent).accounts.remove(name) else { return Ok(known) };
    let differ = differences(&known.definition, &other);
    if differ.is_empty() {
        return Ok(known);
    }
    Err(Fault::precondition(format!(
        "account {name} came to {} by a move, but a definition on this server says otherwise: {} \
         differ",
        agent.name,
        differ.join(", ")
    ))
    .remedy("remove the definition from this server; change the account where it is at home"))
}

fn inventory(agent: &Agent) -> Inventory {
    let config = &agent.config;
    ferry_host::accounts::load(&config.accounts_directory, &config.inventory_directory)
}

/// What this server's inventory says of an account.
fn definition(agent: &Agent, name: &AccountName) -> Result<Definition, Fault> {
    let mut inventory = inventory(agent);
    if let Some(definition) = inventory.accounts.remove(name) {
        return Ok(definition);
    }
    let mut fault =
        Fault::precondition(format!("{} has no account {name}", agent.name)).remedy(format!(
            "define it in {}/{name}.toml; `ferry-agent accounts` shows what is known",
            agent.config.accounts_directory.display()
        ));
    fault.causes = inventory.problems.iter().map(ToString::to_string).take(5).collect();
    Err(fault)
}

/// In which fields two definitions of an account differ, but for the files that serve its sites, which
/// are each server's own.
pub fn differences(one: &Definition, other: &Definition) -> Vec<&'static str> {
    let sites = |definition: &Definition| -> Vec<_> {
        let bare = |site: &Site| Site { config: Vec::new(), ..site.clone() };
        definition.sites.iter().map(bare).collect()
    };
    [
        ("user", one.user == other.user),
        ("groups", one.groups == other.groups),
        ("home", one.home == other.home),
        ("sites", sites(one) == sites(other)),
        ("databases", one.databases == other.databases),
        ("database_users", one.database_users == other.database_users),
        ("mail", one.mail == other.mail),
        ("crontab", one.crontab == other.crontab),
        ("hooks", one.hooks == other.hooks),
    ]
    .into_iter()
    .filter_map(|(field, same)| (!same).then_some(field))
    .collect()
}

#[cfg(test)]
mod tests;
