//! The account's user and crontab at the target: planned, recorded before they are changed, and put
//! back where the account lived before.

use std::collections::BTreeMap;
use std::sync::Arc;

use ferry_host::{cron, users};
use ferry_proto::Fault;
use ferry_proto::ids::AccountName;

use super::lived_here;
use crate::agent::{Agent, blocking};
use crate::ledger::{Account, Refreshed, SourceRecord, Standing};

/// What becomes of the user that `source` describes. `known`: the account, if the ledger has it.
///
/// # Errors
/// Precondition if the user is taken, or asks for what this server refuses.
pub async fn plan(
    agent: &Arc<Agent>,
    known: Option<&Account>,
    source: &SourceRecord,
) -> Result<users::Provision, Fault> {
    let existing = if known.is_some() { users::Existing::Keep } else { users::Existing::Refuse };
    let name = &source.definition.name;
    let reserved_ids = agent.look(|l| reserved(l.accounts(), name));
    let policy = users::Policy { reserved_ids, ..users::Policy::default() };
    let (layout, definition, user) =
        (agent.layout.clone(), source.definition.clone(), source.user.clone());
    blocking(move || users::plan_provision(&layout, &definition, &user, existing, &policy)).await
}

/// Numeric ids that other moves to this server have planned: theirs may not be made yet.
pub(super) fn reserved(
    accounts: &BTreeMap<AccountName, Account>,
    except: &AccountName,
) -> Vec<u32> {
    let receiving = |a: &Account| {
        use Standing::{Opening, Receiving, Refused};
        matches!(a.standing, Receiving { .. } | Opening { .. } | Refused { .. })
    };
    let mut ids = Vec::new();
    for (_, account) in accounts.iter().filter(|(name, a)| *name != except && receiving(a)) {
        ids.extend([account.uid, account.gid]);
        let made = account.made.as_ref().and_then(|m| m.user.as_ref());
        let plans = made.into_iter().chain(account.refreshed.as_ref().map(|r| &r.user));
        ids.extend(plans.flat_map(|p| &p.create_groups).map(|g| g.gid));
    }
    ids
}

/// Takes the plan into what will be recorded of the account: where it lived before with what its user
/// and crontab are now, so that a move that is undone can put them back.
///
/// # Errors
/// If the account lived here and its user is gone.
pub async fn take(
    agent: &Arc<Agent>,
    account: &mut Account,
    planned: users::Provision,
) -> Result<(), Fault> {
    let made = account.made.as_mut().and_then(|m| m.user.as_mut());
    if !lived_here(&account.standing) {
        if let Some(first) = made {
            *first = planned.again(first);
            (account.uid, account.gid) = (first.ids.uid, first.ids.gid);
        }
        return Ok(());
    }
    if let Some(made) = made {
        // Ferry has made the user, and may remove groups with it that come only now.
        let known = |name: &_| made.create_groups.iter().any(|g| g.name == *name);
        let new: Vec<_> =
            planned.create_groups.iter().filter(|g| !known(&g.name)).cloned().collect();
        made.create_groups.extend(new);
    }
    (account.uid, account.gid) = (planned.ids.uid, planned.ids.gid);
    account.refreshed = Some(Box::new(match account.refreshed.take() {
        Some(earlier) => Refreshed { user: planned.again(&earlier.user), ..*earlier },
        None => former(agent, account, planned).await?,
    }));
    Ok(())
}

async fn former(
    agent: &Arc<Agent>,
    account: &Account,
    user: users::Provision,
) -> Result<Refreshed, Fault> {
    let (layout, definition) = (agent.layout.clone(), account.definition.clone());
    blocking(move || {
        let former_user = users::former(&layout, &definition)?;
        let former_cron = cron::describe(&layout, &definition.user)?;
        Ok(Refreshed { user, former_user, former_cron })
    })
    .await
}

/// Makes the user and the crontab what is recorded. The crontab stays unseen by cron; that of an account
/// whose crontab does not move is left alone.
///
/// # Errors
/// Precondition if the user database has changed since the plan was made.
pub async fn make(
    agent: &Arc<Agent>,
    account: &Account,
    source: &SourceRecord,
) -> Result<(), Fault> {
    let (layout, definition) = (agent.layout.clone(), account.definition.clone());
    let (uid, content) = (account.uid, source.cron.content.clone());
    let made = account.made.as_ref().and_then(|m| m.user.as_ref());
    let plan = account.refreshed.as_ref().map(|r| &r.user).or(made).cloned();
    blocking(move || {
        if let Some(plan) = &plan {
            users::provision(&layout, plan)?;
        }
        if definition.crontab { crontab(&layout, &definition.user, uid, content) } else { Ok(()) }
    })
    .await
}

/// Puts back what user and crontab were before this move.
///
/// # Errors
/// What does not go back.
pub async fn restore(agent: &Arc<Agent>, account: &Account) -> Result<(), Fault> {
    let Some(refreshed) = account.refreshed.clone() else { return Ok(()) };
    let (layout, definition) = (agent.layout.clone(), account.definition.clone());
    blocking(move || {
        users::restore(&layout, &refreshed.user, &refreshed.former_user)?;
        if !definition.crontab {
            return Ok(());
        }
        let uid = refreshed.former_user.record.uid;
        crontab(&layout, &definition.user, uid, refreshed.former_cron.content)
    })
    .await
}

fn crontab(
    layout: &ferry_host::Layout,
    user: &ferry_proto::ids::UnixName,
    uid: u32,
    content: Option<Vec<u8>>,
) -> Result<(), Fault> {
    match content {
        Some(content) => cron::install_disabled(layout, user, uid, &content).map(|_| ()),
        None => cron::remove(layout, user),
    }
}
