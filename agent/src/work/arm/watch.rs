//! Sees to it that what stands in front of the web server goes on standing there, and goes away when
//! nobody needs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ferry_proto::Fault;
use ferry_traffic::firewall;
use tokio_util::sync::CancellationToken;

use super::{is_in_front, reconcile, unhook_mail};
use crate::agent::Agent;

/// How often it is looked whether visitors have left the redirector.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked whether the firewall's rules still stand.
const STANDS: Duration = Duration::from_secs(5);

/// One wait is enough for all.
static STEPPING_ASIDE: AtomicBool = AtomicBool::new(false);

/// What the firewall redirects: everything but the redirector itself, and our own looks at the web
/// server, which must not be held by the fence that they prove.
pub fn rules() -> Result<firewall::Rules, Fault> {
    let usual = firewall::Rules::usual(firewall::redirector_uid()?);
    Ok(firewall::Rules { passing_mark: Some(ferry_host::PROBE_MARK), ..usual })
}

/// Whether visitors of any account must come through the redirector.
fn needed(agent: &Agent) -> bool {
    agent.look(|l| l.accounts().values().any(is_in_front))
}

/// Takes the firewall's rules away once the visitors on their way through the redirector are gone,
/// however long that takes: the kernel stops translating running connections with the last rule.
pub async fn step_aside(agent: Arc<Agent>) {
    if STEPPING_ASIDE.swap(true, Ordering::SeqCst) {
        return;
    }
    // A redirector that does not answer may still pass bytes.
    while !needed(&agent) && !agent.redirector.overview().await.is_ok_and(|o| o.visitors == 0) {
        tokio::time::sleep(LOOK).await;
    }
    STEPPING_ASIDE.store(false, Ordering::SeqCst);
    let _routing = agent.routing.lock().await;
    if needed(&agent) {
        return; // Another account was armed meanwhile.
    }
    if let Err(fault) = firewall::disarm().await {
        tracing::warn!("the firewall's rules were not taken away: {fault}");
    }
}

/// Puts the firewall's rules back when something has flushed them, as a reload of nftables does:
/// visitors of moved accounts would meet the closed copy. And goes on with what redirector, firewall or the
/// mail services refused, as on a full disk: nobody else may come back to it.
pub async fn keep(agent: Arc<Agent>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(STANDS)).await.is_some() {
        if let Err(fault) = put_back(&agent).await {
            tracing::error!(class = %fault.class, "the firewall's rules do not stand: {fault}");
        }
        if agent.hooks_stay.load(Ordering::Relaxed) {
            unhook_mail(&agent).await;
        }
    }
}

async fn put_back(agent: &Arc<Agent>) -> Result<(), Fault> {
    if agent.routing.lock().await.is_behind {
        return reconcile(agent).await;
    }
    if !needed(agent) || firewall::is_armed(&rules()?).await? {
        return Ok(());
    }
    tracing::warn!("the firewall's rules were flushed: they are put back");
    reconcile(agent).await
}
