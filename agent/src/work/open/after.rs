//! What follows an open: cron, the account's units and its hook, once the minute of the fence has
//! passed on this server's clock, so that no job runs in it at both servers. It is in the ledger
//! until it is done, so that a restart of the agent loses nothing of it.
//!
//! Cron (Debian's and cronie) sleeps until the second after a minute has begun, then reads changed
//! crontabs, then runs that minute's jobs: a crontab that is shown in second 0 is in time for its
//! minute, a later one waits for the next.

use std::sync::Arc;
use std::time::Duration;

use ferry_host::processes::KeptStopped;
use ferry_host::{cron, hooks, processes};
use ferry_proto::Fault;
use ferry_proto::account::Definition;
use ferry_proto::command::CommitRecord;
use ferry_proto::ids::AccountName;
use tokio::sync::OwnedMutexGuard;

use crate::agent::{Agent, blocking};
use crate::clock::unix_ms;
use crate::ledger::{Account, AfterOpen, SourceRecord, Standing};

/// How long a hook of the account may run.
const HOOK: Duration = Duration::from_secs(60);
/// How long to wait before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// The clock is looked at this often: it may be set while we wait.
const LOOK: Duration = Duration::from_secs(5);
const MINUTE_MS: i64 = 60_000;
/// Cron does not read crontabs earlier in a minute than this.
const CRON_READS_MS: i64 = 1_000;

/// What will follow the opening of `account` at `now_ms`.
pub fn plan(
    account: &Account,
    source: &SourceRecord,
    commit: &CommitRecord,
    now_ms: i64,
) -> AfterOpen {
    let fence_minute = commit.fenced_at_unix.div_euclid(60);
    let due_unix_ms = (fence_minute + 1) * MINUTE_MS;
    let mut units = account.closed.as_ref().map_or_else(
        || KeptStopped {
            user: account.definition.user.clone(),
            uid: account.uid,
            linger: false,
            manager_active: false,
            units: Vec::new(),
        },
        |closed| closed.units.clone(),
    );
    units.linger = source.linger.unwrap_or(units.linger);
    let missed_minutes = missed(fence_minute, due_unix_ms.max(now_ms));
    AfterOpen { due_unix_ms, fence_minute, missed_minutes, units, started: false, done: false }
}

/// Minutes after the one of the fence whose jobs nobody runs, if cron sees the crontab at `shown_ms`.
fn missed(fence_minute: i64, shown_ms: i64) -> i64 {
    let minute = shown_ms.div_euclid(MINUTE_MS);
    let in_time = shown_ms.rem_euclid(MINUTE_MS) < CRON_READS_MS;
    let first = if in_time { minute } else { minute + 1 };
    (first - fence_minute - 1).max(0)
}

/// Lets follow what is due to follow, in its time.
pub fn later(agent: &Arc<Agent>, name: &AccountName) {
    let (agent, name) = (agent.clone(), name.clone());
    tokio::spawn(async move {
        loop {
            let wait = match go_on(&agent, &name).await {
                Ok(None) => return,
                Ok(Some(wait)) => wait,
                Err(fault) => {
                    tracing::error!(account = %name, "cron does not start yet: {fault}");
                    AGAIN
                }
            };
            tokio::time::sleep(wait).await;
        }
    });
}

/// Does what is due. How long to wait before it is asked again; none: nothing is left to do.
///
/// # Errors
/// What keeps cron or the units from starting.
pub async fn go_on(agent: &Arc<Agent>, name: &AccountName) -> Result<Option<Duration>, Fault> {
    let _following = agent.following(name).await;
    let order = agent.order(name).await;
    let Some((mut account, mut after)) = pending(agent, name) else { return Ok(None) };
    if is_fenced(&account) {
        // Nothing may run now; perhaps it is taken back.
        return Ok(Some(AGAIN));
    }
    let left = u64::try_from(after.due_unix_ms - unix_ms()).unwrap_or(0);
    if left > 0 {
        return Ok(Some(Duration::from_millis(left).min(LOOK)));
    }
    if !after.started {
        start(agent, &account.definition, after.units.clone()).await?;
        after.missed_minutes = missed(after.fence_minute, unix_ms());
        tracing::info!(account = %name, "cron missed {} minutes", after.missed_minutes);
        after.started = true;
        account.after_open = Some(after);
        agent.set_account(name, Some(account.clone())).await?;
    }
    let ran = hook(agent, &account.definition, order).await;
    finish(agent, name, &account, ran).await
}

/// The account, and what is still to follow its open, if this server serves it.
fn pending(agent: &Agent, name: &AccountName) -> Option<(Account, Box<AfterOpen>)> {
    let account = agent.account(name)?;
    let after = account.after_open.clone().filter(|a| !a.done)?;
    match &account.standing {
        Standing::Serving | Standing::Armed { .. } | Standing::Fenced { .. } => {
            Some((account, after))
        }
        _ => None,
    }
}

fn is_fenced(account: &Account) -> bool {
    matches!(account.standing, Standing::Fenced { .. })
}

/// Records that it has followed, unless the account went away since `begun` or a fence has ended the
/// hook: when that is taken back, the hook runs again.
async fn finish(
    agent: &Arc<Agent>,
    name: &AccountName,
    begun: &Account,
    ran: bool,
) -> Result<Option<Duration>, Fault> {
    let _order = agent.order(name).await;
    let Some((mut account, mut after)) = pending(agent, name) else { return Ok(None) };
    // Each open is of an epoch of its own.
    if account.epoch != begun.epoch || is_fenced(&account) && !ran {
        return Ok(Some(AGAIN));
    }
    after.done = true;
    account.after_open = Some(after);
    agent.set_account(name, Some(account)).await?;
    Ok(None)
}

/// Cron first: it must be in time for its minute.
async fn start(
    agent: &Arc<Agent>,
    definition: &Definition,
    units: KeptStopped,
) -> Result<(), Fault> {
    let (layout, user) = (agent.layout.clone(), definition.user.clone());
    let name = definition.name.clone();
    blocking(move || {
        cron::enable(&layout, &user)?;
        for finding in processes::allow(&layout, &units)? {
            tracing::warn!(account = %name, "{} ({})", finding.message, finding.remedy);
        }
        Ok(())
    })
    .await
}

/// Runs the account's hook. If it fails, the account is served all the same. The order is held only
/// until its process is there, which a fence ends like any other of the account: nobody waits for a
/// hook. Whether it succeeded.
async fn hook(agent: &Arc<Agent>, definition: &Definition, order: OwnedMutexGuard<()>) -> bool {
    let Some(hook) = definition.hooks.after_open.clone() else { return true };
    let (layout, definition) = (agent.layout.clone(), definition.clone());
    let name = definition.name.clone();
    let ran = blocking(move || {
        hooks::run_telling(&layout, &definition, &hook, HOOK, move || drop(order))
    });
    ran.await.inspect_err(|fault| tracing::error!(account = %name, "{fault}")).is_ok()
}

#[cfg(test)]
mod tests;
