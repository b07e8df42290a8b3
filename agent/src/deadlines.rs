//! Watches the fences: takes an account back when its deadline has passed, with a controller or
//! without; and at start goes on with what a crash cut off.

use std::sync::Arc;
use std::time::Duration;

use ferry_proto::ids::AccountName;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::ledger::Standing;
use crate::work::{arm, commit, open, unfence};

/// How long to wait after something did not open, before it is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// How long to wait when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// Watches until `stop` fires.
pub async fn watch(agent: Arc<Agent>, stop: CancellationToken) {
    let mut changed = agent.changed.subscribe();
    let mut failed = start(&agent).await;
    loop {
        let wait = if failed { AGAIN } else { next(&agent) };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = changed.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        changed.mark_unchanged();
        if failed {
            failed = start(&agent).await;
        }
        for name in due(&agent) {
            if let Err(fault) = unfence::at_deadline(&agent, &name).await {
                tracing::error!(account = %name, "cannot take the account back yet: {fault}");
                failed = true;
            }
        }
    }
}

/// What a crash or a reboot cut off: redirects stand again, opens go on. True if something failed.
async fn start(agent: &Arc<Agent>) -> bool {
    let mut failed = false;
    if let Err(fault) = arm::reconcile(agent).await {
        tracing::error!("the redirector is not as the ledger says: {fault}");
        failed = true;
    }
    let names: Vec<AccountName> = agent.look(|l| l.accounts().keys().cloned().collect());
    for name in names {
        if let Err(fault) = open::resume(agent, &name).await {
            tracing::error!(account = %name, "cannot open the account yet: {fault}");
            failed = true;
        }
        commit::resume(agent, &name);
    }
    failed
}

/// Fences whose end has come.
fn due(agent: &Agent) -> Vec<AccountName> {
    agent.look(|l| {
        l.accounts()
            .iter()
            .filter(|(_, a)| matches!(&a.standing, Standing::Fenced { deadline, ending, .. } if *ending || deadline.has_passed()))
            .map(|(name, _)| name.clone())
            .collect()
    })
}

/// How long until the next fence's end.
fn next(agent: &Agent) -> Duration {
    agent.look(|l| {
        l.accounts()
            .values()
            .filter_map(|a| match &a.standing {
                Standing::Fenced { deadline, .. } => Some(deadline.left()),
                _ => None,
            })
            .min()
            .unwrap_or(IDLE)
    })
}
