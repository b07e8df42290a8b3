//! Makes everything of the account at the target, closed; and removes it again.

mod user;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use ferry_databases::{Existing, Provisioned};
use ferry_files::IdMap;
use ferry_host::users::Provision;
use ferry_host::{Layout, cron, processes, sites};
use ferry_proto::account::Definition;
use ferry_proto::command::{Move, Receipt};
use ferry_proto::grant::Grant;
use ferry_proto::{Fault, FaultClass};
use tokio::sync::Mutex;

use crate::agent::{Agent, blocking, engine};
use crate::ledger::{Account, Made, SourceRecord, Standing};
use crate::unsynced::Unsynced;
use crate::work::record::differences;
use crate::work::{Job, arm, database_record, done, mail_spec, spec};

/// Held from looking which numeric ids are free until those that were chosen are in the ledger.
static PLANNING: Mutex<()> = Mutex::const_new(());

/// Makes the account, closed.
///
/// # Errors
/// Precondition if something is taken or missing here; nothing is left half made that
/// [`deprovision`] does not find in the ledger.
pub async fn provision(job: &Job) -> Result<Receipt, Fault> {
    let agent = &job.agent;
    let _order = agent.order(&job.of.account).await;
    let source = job.peer()?.record().await?;
    if source.definition.name != job.of.account {
        return Err(Fault::permanent("the source answered with another account"));
    }
    source.definition.check().map_err(|e| {
        Fault::permanent("the source's definition of the account is not valid").caused_by(&e)
    })?;
    let planning = PLANNING.lock().await;
    let account = plan(agent, &job.of, source.clone()).await?;
    job.set(account.clone()).await?;
    drop(planning);
    make(agent, &account, &source).await?;
    Ok(done(format!(
        "user {} ({}:{}), {} databases, {} sites, {} mail domains, all closed",
        account.definition.user,
        account.uid,
        account.gid,
        account.definition.databases.len(),
        account.definition.sites.len(),
        account.definition.mail.len(),
    )))
}

/// What will be made, and nothing made yet.
async fn plan(agent: &Arc<Agent>, of: &Move, source: SourceRecord) -> Result<Account, Fault> {
    let known = agent.account(&of.account);
    let before = match known.as_ref().map(|a| &a.standing) {
        None => None,
        Some(Standing::Receiving { of: was, source: said, before }) if was.job == of.job => {
            check_ids(said, &source)?;
            before.clone()
        }
        Some(Standing::Finalized { erasing: true, .. }) => {
            return Err(Fault::precondition(format!(
                "the copy of account {} on {} is half erased",
                of.account, agent.name
            ))
            .remedy(format!("end that first: ferry finalize {} --erase", of.account)));
        }
        Some(standing @ (Standing::Moved { .. } | Standing::Finalized { .. })) => {
            Some(Box::new(standing.clone()))
        }
        Some(_) => {
            let account = known.as_ref().map(Account::kind);
            return Err(Fault::precondition(format!(
                "account {} stands on {} already ({})",
                of.account,
                agent.name,
                account.map(|a| a.to_string()).unwrap_or_default()
            ))
            .remedy("another move has it: see `ferry status`"));
        }
    };
    if let Some(known) = &known {
        check_definition(agent, known, &source.definition)?;
    }
    let user = user::plan(agent, known.as_ref(), &source).await?;
    let standing = Standing::Receiving { of: of.clone(), source: Box::new(source.clone()), before };
    let Some(known) = known else { return plan_first(agent, of, &source, standing, user).await };
    // A release that got no further has left it so: what comes back is the file itself.
    arm::end_wind_down(agent, &known, false).await?;
    let epoch = known.epoch.max(of.epoch);
    let mut account = Account { standing, epoch, after_open: None, wound_down: None, ..known };
    user::take(agent, &mut account, user).await?;
    Ok(account)
}

/// What will be made of an account that was never here.
async fn plan_first(
    agent: &Arc<Agent>,
    of: &Move,
    source: &SourceRecord,
    standing: Standing,
    user: ferry_host::users::Provision,
) -> Result<Account, Fault> {
    let (layout, definition) = (agent.layout.clone(), source.definition.clone());
    let sites = blocking(move || sites::plan(&layout, &definition)).await?;
    let mut account = Account {
        definition: served_here(agent, source, &sites),
        epoch: of.epoch,
        uid: user.ids.uid,
        gid: user.ids.gid,
        standing,
        made: None,
        came_from: None,
        taken_back: None,
        served_again_unix_ms: None,
        forced: None,
        wound_down: None,
        closed: None,
        refreshed: None,
        after_open: None,
    };
    let all = |(kind, _): &(_, _)| (*kind, Provisioned::all_of(&spec(&account, *kind)));
    let databases = source.databases.iter().map(all).collect();
    account.made = Some(Made { user: Some(user), databases, sites: Some(sites) });
    Ok(account)
}

/// An account that was here before comes back as it was: what is here of it is made of this server's
/// own definition.
///
/// # Errors
/// Precondition, with what differs, if the source serves it by another definition.
pub fn check_definition(
    agent: &Agent,
    known: &Account,
    definition: &Definition,
) -> Result<(), Fault> {
    let differ = differences(&known.definition, definition);
    if differ.is_empty() {
        return Ok(());
    }
    let remedy = if known.made.is_some() {
        format!(
            "let the old copy on {} be erased, then move again: ferry finalize {} --erase",
            agent.name, known.definition.name
        )
    } else {
        "make the definition at the source again what it was when the account was moved".to_owned()
    };
    Err(Fault::precondition(format!(
        "the definition of account {} is another one now than when it was last on {}: {} differ",
        known.definition.name,
        agent.name,
        differ.join(", ")
    ))
    .remedy(remedy))
}

/// What the source has said of the account's ids stands as long as the move does: by them it is decided whose
/// everything becomes that comes.
fn check_ids(said: &SourceRecord, now: &SourceRecord) -> Result<(), Fault> {
    let ids = |record: &SourceRecord| {
        let user = &record.user;
        (user.uid, user.group.clone(), user.groups.clone(), record.web)
    };
    if ids(said) == ids(now) {
        return Ok(());
    }
    Err(Fault::precondition(format!(
        "the user's or a group's number of account {} was changed at the source during the move",
        now.definition.name
    ))
    .remedy("move it again"))
}

/// The definition as this server will serve it: the same, but with the files rendered here as the
/// configuration that a fence moves aside.
fn served_here(agent: &Agent, source: &SourceRecord, plan: &sites::SitesPlan) -> Definition {
    let mut definition = source.definition.clone();
    for site in &mut definition.sites {
        site.config.clear();
    }
    for file in sites::render(&agent.layout, plan) {
        let live = match (file.role, file.path.file_name()) {
            (sites::Role::Server, Some(name)) => {
                agent.layout.path("/etc/nginx/sites-enabled").join(name)
            }
            _ => file.path,
        };
        if let Some(site) = definition.sites.iter_mut().find(|s| s.name.as_str() == file.site) {
            site.config.push(live);
        }
    }
    definition
}

/// Makes what is planned; what is there already is left.
async fn make(agent: &Arc<Agent>, account: &Account, source: &SourceRecord) -> Result<(), Fault> {
    user::make(agent, account, source).await?;
    // An account that was here before gets its own configuration back.
    let plan = account.made.as_ref().and_then(|m| m.sites.clone());
    if let Some(plan) = plan.filter(|_| !lived_here(&account.standing)) {
        let layout = agent.layout.clone();
        blocking(move || sites::install_closed(&layout, &plan)).await?;
    }
    let existing = existing(account);
    for (kind, record) in &source.databases {
        engine(*kind).provision(&spec(account, *kind), record, existing).await?;
    }
    let mail = mail_spec(&account.definition, account.uid, account.gid)?;
    if !lived_here(&account.standing) {
        agent.mail.provision_closed(&mail, &source.mail).await?;
    }
    Ok(())
}

/// Whether databases of these names may be here already: those of an account that lived here.
fn existing(account: &Account) -> Existing {
    if lived_here(&account.standing) { Existing::Replace } else { Existing::Refuse }
}

/// Whether the account was on this server before the move that brings it.
fn lived_here(standing: &Standing) -> bool {
    matches!(standing, Standing::Receiving { before: Some(_), .. })
}

/// Takes the source's last word on the account: its crontab, passwords and grants at the fence.
///
/// # Errors
/// If it cannot be kept or applied.
pub async fn update(agent: &Arc<Agent>, grant: &Grant, record: SourceRecord) -> Result<(), Fault> {
    let _order = agent.order(&grant.account).await;
    let Some(mut account) = agent.account(&grant.account) else {
        return Err(Fault::precondition(format!("account {} is not received here", grant.account)));
    };
    let Standing::Receiving { of, source, .. } = &mut account.standing else {
        return Err(Fault::fenced(format!("account {} is not received here", grant.account)));
    };
    if of.job != grant.job || source.definition.name != record.definition.name {
        return Err(Fault::fenced(format!("account {} is received by another job", grant.account)));
    }
    let differ = differences(&source.definition, &record.definition);
    if !differ.is_empty() {
        return Err(Fault::precondition(format!(
            "the definition of account {} was changed during the move: {} differ",
            grant.account,
            differ.join(", ")
        ))
        .remedy("move it again"));
    }
    check_ids(source, &record)?;
    **source = record.clone();
    let planning = PLANNING.lock().await;
    let user = user::plan(agent, Some(&account), &record).await?;
    user::take(agent, &mut account, user).await?;
    agent.set_account(&grant.account, Some(account.clone())).await?;
    drop(planning);
    make(agent, &account, &record).await
}

/// Removes what [`provision`] made, and nothing else.
///
/// # Errors
/// If something cannot be removed.
pub async fn deprovision(job: &Job) -> Result<Receipt, Fault> {
    let agent = &job.agent;
    agent.stop_activity(&job.of.account);
    let _order = agent.order(&job.of.account).await;
    let Some(account) = agent.account(&job.of.account) else {
        return Ok(done("nothing was made here"));
    };
    match &account.standing {
        Standing::Receiving { of, source, before }
        | Standing::Refused { of, source, before, .. }
            if of.job == job.of.job =>
        {
            let mut back = account.clone();
            if let Standing::Refused { refusal, .. } = &account.standing {
                // The source has taken it back by now: that is the epoch at which it is served there.
                back.epoch = refusal.epoch.next();
                back.taken_back = Some(job.of.job);
            }
            match before {
                Some(before) => {
                    // It lived here before: what is its own stays, closed as it was.
                    database_undo(&account, source).await?;
                    user::restore(agent, &account).await?;
                    back.refreshed = None;
                    back.standing = (**before).clone();
                    job.set(back).await?;
                    Ok(done("closed as it was before"))
                }
                None => {
                    erase(agent, &account).await?;
                    agent.set_account(&job.of.account, None).await?;
                    arm::unhook_mail(agent).await;
                    Ok(done("everything that was made here is removed"))
                }
            }
        }
        Standing::Opening { of, .. } if of.job == job.of.job => Err(Fault::fenced(format!(
            "account {} was committed to {}: going back is a rollback",
            job.of.account, agent.name
        ))),
        _ => Ok(done("nothing was made here by this move")),
    }
}

/// Removes temporary database users of a load that was cut off.
async fn database_undo(account: &Account, source: &SourceRecord) -> Result<(), Fault> {
    for (kind, _) in &source.databases {
        let spec = spec(account, *kind);
        engine(*kind).deprovision(&spec, &Provisioned::default()).await?;
        let _ = database_record(source, *kind)?;
    }
    Ok(())
}

/// Removes all that Ferry made here for an account.
///
/// # Errors
/// If something cannot be removed.
pub async fn erase(agent: &Arc<Agent>, account: &Account) -> Result<(), Fault> {
    let made = account.made.clone().unwrap_or_default();
    let mail = mail_spec(&account.definition, account.uid, account.gid)?;
    agent.mail.close_here(&mail).await?;
    let (layout, plan) = (agent.layout.clone(), made.sites.clone());
    if let Some(plan) = plan {
        blocking(move || sites::remove(&layout, &plan)).await?;
    }
    for (kind, created) in &made.databases {
        engine(*kind).deprovision(&spec(account, *kind), created).await?;
    }
    let (layout, user, uid) = (agent.layout.clone(), account.definition.user.clone(), account.uid);
    let Some(plan) = made.user else { return Ok(()) };
    let unsynced = Unsynced::of(&agent.config.state_directory, &account.definition.home);
    blocking(move || {
        cron::remove(&layout, &user)?;
        if uid < 100 {
            return Err(Fault::new(FaultClass::Bug, "a system user was to be removed"));
        }
        processes::stop_all(&layout, &[uid], &[], std::time::Duration::from_secs(1))?;
        processes::remove_linger(&layout, &user)?;
        ferry_host::users::deprovision(&layout, &plan)
            .or_else(|fault| unlock_home(&layout, &plan, fault))?;
        unsynced.forget()
    })
    .await
}

/// A home whose files have flags that keep them (they came with the account) is emptied, and removed once more.
fn unlock_home(layout: &Layout, plan: &Provision, fault: Fault) -> Result<(), Fault> {
    let home = layout.path(&plan.record.home);
    let is_ours =
        std::fs::symlink_metadata(&home).is_ok_and(|m| m.is_dir() && m.uid() == plan.ids.uid);
    if !plan.create || !is_ours {
        return Err(fault);
    }
    let (uid, gid) = (plan.ids.uid, plan.ids.gid);
    ferry_files::empty(&home, &IdMap::of((uid, uid), (gid, gid)))?;
    ferry_host::users::deprovision(layout, plan)
}

#[cfg(test)]
mod tests;
