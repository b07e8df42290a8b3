//! Whether a committed account can be opened here: looked at once it is recorded that the commit has
//! arrived, and before anything is opened. What is found is recorded: from then on the account is opened,
//! however often that has to be tried, or never. In the second case nothing was acknowledged here, so the
//! source loses nothing by taking it back.

use std::sync::Arc;
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::command::Refusal;
use ferry_proto::ids::AccountName;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::agent::Agent;
use crate::clock::unix_ms;
use crate::ledger::{Account, SourceRecord, Standing};
use crate::work::rehearse;

/// How long what does not open is tried again before it is refused. Visitors are held meanwhile, and the
/// source needs time too.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long looking may take while nothing has been found wrong: it may wait for its turn at the web server
/// or the mail services, which other accounts have for seconds, and that is no fault of this one. Two
/// thirds of what a visitor waits, between these.
const LOOKING: [Duration; 2] = [Duration::from_secs(15), Duration::from_secs(20)];
/// How long to wait before what did not open is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Lets an account be opened that can be, and refuses it for good if it cannot. Takes the account's
/// order, and gives it back where the account is to be opened.
///
/// # Errors
/// The refusal, once it is recorded; of class Transient if what was found could not be recorded.
pub async fn accept(
    agent: &Arc<Agent>,
    mut account: Account,
    order: OwnedMutexGuard<()>,
) -> Result<(Account, OwnedMutexGuard<()>), Fault> {
    let Standing::Opening { accepts, source, .. } = &mut account.standing else {
        return Err(Fault::bug("an account was to be opened that has not come"));
    };
    if *accepts {
        return Ok((account, order));
    }
    let source = source.clone();
    *accepts = true;
    let Tried { found, under_way } = try_for_a_while(agent, &account, source).await;
    let Err(why) = found else {
        agent.set_account(&account.definition.name.clone(), Some(account.clone())).await?;
        return Ok((account, order));
    };
    // Still in order: whoever comes next must find the refusal, or he would look for himself.
    let refused = refuse(agent, account, &why).await;
    if let Some(trial) = under_way {
        tokio::spawn(async move {
            let _ = trial.await;
            drop(order);
        });
    }
    Err(refused)
}

/// What came of trying.
struct Tried {
    found: Result<(), Fault>,
    /// What is still under way: nobody may remove the copy under its hands.
    under_way: Option<JoinHandle<Result<String, Fault>>>,
}

/// Records the refusal. What is told: a refusal that is not recorded is none.
async fn refuse(agent: &Arc<Agent>, mut account: Account, why: &Fault) -> Fault {
    let Standing::Opening { of, record, source, before, .. } = account.standing else {
        return Fault::bug("an account was to be refused that has not come");
    };
    let refusal = Refusal {
        job: record.job,
        account: record.account,
        source: record.source,
        target: record.target,
        epoch: record.epoch,
        reason: why.to_string(),
        at_unix_ms: unix_ms(),
    };
    account.standing = Standing::Refused { of, refusal: refusal.clone(), source, before };
    let name = refusal.account.clone();
    match agent.set_account(&name, Some(account)).await {
        Ok(()) => {
            tracing::error!(account = %name, epoch = %refusal.epoch, "refused for good: {why}");
            Fault::refused(refusal)
        }
        Err(fault) => fault.context(format!("account {name} does not open: {why}")),
    }
}

/// Tries until the account could be opened, or for too long.
async fn try_for_a_while(
    agent: &Arc<Agent>,
    account: &Account,
    source: Box<SourceRecord>,
) -> Tried {
    let hold = Duration::from_secs(agent.config.hold.wait_seconds.into());
    let name = &account.definition.name;
    let look = || {
        let (agent, account, source) = (agent.clone(), account.clone(), source.clone());
        async move { rehearse::could_open(&agent, &account, &source).await }
    };
    try_until(hold, name, look).await
}

/// Looks again and again while that may still help visitors who wait as long as `hold`.
async fn try_until<L>(hold: Duration, name: &AccountName, look: impl Fn() -> L) -> Tried
where
    L: Future<Output = Result<String, Fault>> + Send + 'static,
{
    let [least, most] = LOOKING;
    let mut until = Instant::now() + (hold * 2 / 3).clamp(least, most);
    let mut last = None;
    loop {
        let mut trial = tokio::spawn(look());
        let fault = match tokio::time::timeout_at(until, &mut trial).await {
            Ok(Ok(Ok(_))) => return Tried { found: Ok(()), under_way: None },
            Ok(Ok(Err(fault))) => fault,
            Ok(Err(panic)) => Fault::bug("looking panicked").caused_by(&panic),
            Err(_) => {
                let late = || Fault::transient("looking whether it can be opened takes too long");
                let found = Err(last.unwrap_or_else(late));
                return Tried { found, under_way: Some(trial) };
            }
        };
        tracing::warn!(account = %name, "does not open yet: {fault}");
        if last.is_none() {
            until = until.min(Instant::now() + PATIENCE);
        }
        if Instant::now() + AGAIN >= until {
            return Tried { found: Err(fault), under_way: None };
        }
        last = Some(fault);
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const HOLD: Duration = Duration::from_secs(30);

    /// Looks that take so long each, the last of them also for all later ones, and what they find.
    async fn tried(hold: Duration, looks: &[(u64, bool)]) -> (Result<(), Fault>, u64) {
        let name = "shop".parse().unwrap();
        let left: Mutex<Vec<(u64, bool)>> = Mutex::new(looks.iter().rev().copied().collect());
        let began = Instant::now();
        let look = || {
            let mut left = left.lock().unwrap();
            let (seconds, good) = if left.len() > 1 { left.pop().unwrap() } else { left[0] };
            async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                if good { Ok(String::new()) } else { Err(Fault::precondition("broken")) }
            }
        };
        (try_until(hold, &name, look).await.found, began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_his_turn_is_not_refused_for_it() {
        for seconds in [0, 10, 19] {
            assert_eq!(tried(HOLD, &[(seconds, true)]).await.1, seconds);
        }
        assert!(tried(HOLD, &[(10, true)]).await.0.is_ok());
        // Nor where visitors are not kept waiting for long.
        assert!(tried(Duration::from_secs(1), &[(10, true)]).await.0.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_wrong_is_tried_again_for_a_while_and_then_told() {
        let (found, seconds) = tried(HOLD, &[(0, false)]).await;
        assert_eq!(found.unwrap_err().message, "broken");
        assert!((7..=8).contains(&seconds), "{seconds}");
        assert!(tried(HOLD, &[(0, false), (2, false), (1, true)]).await.0.is_ok());
        // The look that hangs has not found more than the one before it.
        let (found, seconds) = tried(HOLD, &[(2, false), (600, true)]).await;
        assert_eq!((found.unwrap_err().message.as_str(), seconds), ("broken", 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_never_ends_ends_while_visitors_wait() {
        let (found, seconds) = tried(HOLD, &[(600, true)]).await;
        assert!(found.unwrap_err().message.contains("takes too long"));
        assert_eq!(seconds, 20);
    }
}
