//! Whether a committed account can be opened here: looked at once it is recorded that the commit has
//! arrived, and before anything is opened. What is found is recorded: from then on the account is opened,
//! however often that has to be tried, or never. In the second case nothing was acknowledged here, so the
//! source loses nothing by taking it back.

use std::sync::Arc;
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::command::Refusal;
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
/// At most this part of what a visitor waits.
const PART_OF_HOLD: u32 = 3;
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
    let until = Instant::now() + PATIENCE.min(hold / PART_OF_HOLD);
    let name = &account.definition.name;
    let mut last = Fault::transient("looking whether it can be opened takes too long");
    loop {
        let (agent, account, source) = (agent.clone(), account.clone(), source.clone());
        let mut trial =
            tokio::spawn(async move { rehearse::could_open(&agent, &account, &source).await });
        match tokio::time::timeout_at(until, &mut trial).await {
            Ok(Ok(Ok(_))) => return Tried { found: Ok(()), under_way: None },
            Ok(Ok(Err(fault))) => last = fault,
            Ok(Err(panic)) => last = Fault::bug("looking panicked").caused_by(&panic),
            Err(_) => return Tried { found: Err(last), under_way: Some(trial) },
        }
        tracing::warn!(account = %name, "does not open yet: {last}");
        if Instant::now() + AGAIN >= until {
            return Tried { found: Err(last), under_way: None };
        }
        tokio::time::sleep(AGAIN).await;
    }
}
