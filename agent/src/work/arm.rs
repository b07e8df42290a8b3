//! The redirector in front of an account, and away again; and what firewall and redirector must be
//! for all that stands in the ledger.

mod route;
mod watch;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferry_host::sites_wind_down::{self, WindDown};
use ferry_proto::Fault;
use ferry_proto::command::Receipt;
use ferry_proto::ids::Epoch;
use ferry_traffic::control::{AccountStatus, HoldLimits};
use ferry_traffic::firewall;

use crate::agent::{Agent, blocking};
use crate::ledger::{Account, Standing};
use crate::work::copied::Copied;
use crate::work::record::here;
use crate::work::{Job, done, is_epoch};
use route::{peer, seen_by_visitors};
use watch::{rules, step_aside};

pub use route::{ingress, is_in_front, is_opening, route};
pub use watch::keep;

/// Puts the redirector in front of the account; traffic still goes to the local services. Then winds
/// down the connections that were kept alive before.
///
/// # Errors
/// If this server does not serve the account, or the redirector, the firewall or the web server
/// refuse.
pub async fn arm(job: &Job) -> Result<Receipt, Fault> {
    let agent = &job.agent;
    let _order = agent.order(&job.of.account).await;
    let mut account = here(agent, &job.of.account).await?;
    let repeated = match &account.standing {
        Standing::Serving => false,
        Standing::Armed { of } if of.job == job.of.job => true,
        _ => return Err(job.stands_otherwise(&account, "served and free to move")),
    };
    if !is_epoch(account.epoch, job.of.epoch) {
        return Err(job.stands_otherwise(&account, &format!("at epoch {}", job.of.epoch)));
    }
    let wind_down = match account.wound_down.take().filter(|_| repeated) {
        Some(standing) => *standing,
        None => plan_wind_down(agent, &account).await?,
    };
    account.standing = Standing::Armed { of: job.of.clone() };
    account.wound_down = Some(Box::new(wind_down.clone()));
    let has_mail = !account.definition.mail.is_empty();
    job.set(account).await?;
    reconcile(agent).await?;
    let layout = agent.layout.clone();
    blocking(move || sites_wind_down::wind_down(&layout, &wind_down)).await?;
    if has_mail {
        // The mail services learn where Ferry's tables are now, not while visitors wait.
        agent.mail.install_hooks().await?;
    }
    Ok(done("the redirector stands in front; connections kept alive before have ended"))
}

/// What winding down will change. What an earlier one has left is put back first.
async fn plan_wind_down(agent: &Arc<Agent>, account: &Account) -> Result<WindDown, Fault> {
    if let Some(known) = agent.account(&account.definition.name) {
        end_wind_down(agent, &known, false).await?;
    }
    let (layout, definition) = (agent.layout.clone(), account.definition.clone());
    blocking(move || sites_wind_down::plan_wind_down(&layout, &definition)).await
}

/// Puts back what winding down changed, wherever the fence has it; `reload` if the account is served
/// here.
///
/// # Errors
/// What putting back failed of.
pub async fn end_wind_down(
    agent: &Arc<Agent>,
    account: &Account,
    reload: bool,
) -> Result<(), Fault> {
    let Some(plan) = account.wound_down.clone() else { return Ok(()) };
    let (layout, closed) = (agent.layout.clone(), account.closed.clone());
    blocking(move || {
        let fenced = closed.as_ref().map(|c| &c.sites);
        sites_wind_down::end_wind_down(&layout, &plan, fenced, reload)
    })
    .await
}

/// Undo of [`arm`].
///
/// # Errors
/// If files do not come back, or the redirector or the firewall refuse.
pub async fn disarm(job: &Job) -> Result<Receipt, Fault> {
    let agent = &job.agent;
    let _order = agent.order(&job.of.account).await;
    let stood = stands_no_more(job).await?;
    // An earlier one may have come no further than the ledger.
    unhook_mail(agent).await;
    Copied::forget(agent, &job.of.account).await;
    if !stood {
        return Ok(done("nothing stood"));
    }
    reconcile(agent).await?;
    Ok(done("the redirector is out of the way"))
}

/// Makes it what the ledger says that the account is served and not armed; false if it said so.
async fn stands_no_more(job: &Job) -> Result<bool, Fault> {
    let agent = &job.agent;
    let Some(mut account) = agent.account(&job.of.account) else { return Ok(false) };
    match &account.standing {
        Standing::Armed { of } if of.job == job.of.job => {}
        Standing::Serving => return Ok(false),
        _ => return Err(job.stands_otherwise(&account, "armed by this move")),
    }
    end_wind_down(agent, &account, true).await?;
    account.wound_down = None;
    account.standing = Standing::Serving;
    let forget = account.made.is_none() && account.epoch == Epoch::default();
    // An account that never moved is the inventory's again.
    agent.set_account(&job.of.account, (!forget).then_some(account)).await?;
    Ok(true)
}

/// Takes the mail services' hooks out if no account needs them: an aborted move leaves nothing behind. What
/// keeps that from being done, as a full disk may, [`keep`] outlasts.
pub async fn unhook_mail(agent: &Agent) {
    let moves = |a: &Account| !matches!(a.standing, Standing::Serving | Standing::Finalized { .. });
    if agent.look(|l| l.accounts().values().any(moves)) {
        return;
    }
    let unhook = async {
        // Accounts that were opened here live by them.
        if agent.mail.has_idle_hooks().await? {
            agent.mail.remove_hooks(false).await?;
        }
        Ok::<(), Fault>(())
    };
    let unhooked = unhook.await;
    agent.hooks_stay.store(unhooked.is_err(), Ordering::Relaxed);
    if let Err(fault) = unhooked {
        tracing::warn!("the mail services keep Ferry's hooks for now: {fault}");
    }
}

/// Makes redirector and firewall what the ledger says: after a change, and when the agent starts. What
/// fails for one account does not keep it from the others; it is tried again by [`keep`].
///
/// # Errors
/// The first of what the redirector or the firewall refuse.
pub async fn reconcile(agent: &Arc<Agent>) -> Result<(), Fault> {
    let mut routing = agent.routing.lock().await;
    routing.is_behind = true;
    make(agent).await?;
    routing.is_behind = false;
    Ok(())
}

async fn make(agent: &Arc<Agent>) -> Result<(), Fault> {
    let accounts: Vec<Account> = agent.look(|l| l.accounts().values().cloned().collect());
    let routed = if accounts.is_empty() && !agent.redirector.is_here() {
        Ok(())
    } else {
        // One that does not answer must not be put in front of everybody's sites.
        let known = agent.redirector.status().await?;
        route_all(agent, &accounts, known).await
    };
    // Who must be held or passed on must come by, whatever became of another's route.
    let armed = match accounts.iter().any(is_in_front) {
        true => firewall::arm(&rules()?).await,
        false if agent.redirector.is_here() => {
            // New connections no longer come; nobody waits for those that do.
            let stood_down = firewall::stand_down(&rules()?).await;
            tokio::spawn(step_aside(agent.clone()));
            stood_down
        }
        false => firewall::disarm().await,
    };
    routed.and(armed)
}

/// Gives the redirector every account's route, and the list of its peers.
async fn route_all(
    agent: &Agent,
    accounts: &[Account],
    known: Vec<AccountStatus>,
) -> Result<(), Fault> {
    let mut first = Ok(());
    for account in accounts {
        if let Some(route) = route(account, agent.config.hold.limits()) {
            first = first.and(agent.redirector.set_route(route).await);
        }
    }
    for status in known {
        let account = accounts.iter().find(|a| a.definition.name == status.account);
        let unknown =
            account.is_none_or(|a| route(a, HoldLimits::default()).is_none() && !is_opening(a));
        if unknown {
            let removed = agent.redirector.remove_route(&status.account, status.epoch).await;
            first = first.and(removed);
        }
    }
    first.and(agent.redirector.set_peers(peers(accounts)).await)
}

/// The servers whose redirectors may pass visitors on to this one.
pub fn peers<'a>(accounts: impl IntoIterator<Item = &'a Account>) -> BTreeSet<IpAddr> {
    let of = |a: &Account| [peer(seen_by_visitors(&a.standing)), a.came_from];
    accounts.into_iter().flat_map(of).flatten().collect()
}
