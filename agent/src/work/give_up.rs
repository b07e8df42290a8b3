//! A source that was lost with the only word on whether it had committed, and has come back: meanwhile its
//! target was opened by force. Whatever was done here since, the account has moved: that is recorded first,
//! so that what follows follows from the ledger, whoever crashes. Then it is closed, and visitors are passed
//! on. What was written here meanwhile is named, and not merged.

use std::path::PathBuf;
use std::time::Duration;

use ferry_files::Changed;
use ferry_proto::command::{CommitRecord, Receipt};
use ferry_proto::{Fault, FaultClass};
use tokio_util::sync::CancellationToken;

use crate::agent::blocking;
use crate::clock::unix_ms;
use crate::ledger::{Account, Standing};
use crate::work::copied::Copied;
use crate::work::{Job, fence, forced, record, release};

/// How long running requests may go on: the account is served elsewhere already.
const GRACE: Duration = Duration::from_secs(1);
/// How long it is looked for what was written here.
const LOOK: Duration = Duration::from_secs(20);
/// How many paths are named of what was written here.
const NAMED: usize = 20;
/// Of each at most so many characters.
const LONGEST_NAME: usize = 300;

/// How the account stood when this server heard of it.
enum Stood {
    /// Nothing of it is here.
    Unknown,
    /// It had moved by the source's own record.
    Committed,
    /// It was in its fence.
    Fenced,
    /// Its fence had ended, or there never was one as far as this server knows.
    Served,
}

/// Gives the account up to the target, which was opened on `forced`. May be repeated.
///
/// # Errors
/// Of class Fenced if the record is of another move, or the account stands as no such source can;
/// Permanent if it is not signed; else of class Transient, whatever does not close: it is tried again until
/// it does.
pub async fn give_up(job: &Job, forced: &CommitRecord) -> Result<Receipt, Fault> {
    forced::check(job, forced)?;
    let (stood, closed) = close(job, forced).await?;
    let account = match job.agent.account(&job.of.account) {
        Some(account) if !matches!(stood, Stood::Unknown) => account,
        _ => return Ok(receipt(format!("{} has nothing of the account", job.agent.name))),
    };
    // What does not close does not keep visitors from where the account is served; and it goes on being
    // closed, as all that has moved away.
    release::release(job).await.and(closed).map_err(patiently)?;
    fence::still_closed(&job.agent, &account).await.map_err(patiently)?;
    match stood {
        Stood::Committed => Ok(receipt("it had committed, and has served nobody since".to_owned())),
        Stood::Served => told(&account, forced).await.map_err(patiently),
        Stood::Fenced | Stood::Unknown => {
            Ok(receipt("it was still closed by its fence: nothing was written there".to_owned()))
        }
    }
}

/// The source may need a while: its disks and databases have just come back.
fn patiently(fault: Fault) -> Fault {
    Fault { class: FaultClass::Transient, ..fault }
}

/// Records that the account has moved, and closes it, in one order: the release that follows by itself
/// finds it closed. What does not close is told apart.
async fn close(job: &Job, forced: &CommitRecord) -> Result<(Stood, Result<(), Fault>), Fault> {
    let _order = job.agent.order(&job.of.account).await;
    let Some(account) = here(job).await.map_err(patiently)? else {
        return Ok((Stood::Unknown, Ok(())));
    };
    let stood = how_it_stood(job, &account)?;
    let account = match (&stood, &account.standing) {
        // Its own record counts as much: it is closed since its commit.
        (Stood::Committed, _) | (_, Standing::Moved { settled: true, .. }) => {
            return Ok((stood, Ok(())));
        }
        (_, Standing::Moved { .. }) => account,
        _ => stand_as_moved(job, account, &stood, forced).await.map_err(patiently)?,
    };
    job.agent.stop_activity(&job.of.account);
    Copied::forget(&job.agent, &job.of.account).await;
    let closed = fence::close_moved(&job.agent, &account, GRACE).await;
    Ok((stood, closed))
}

/// The account as this server has it, be its ledger lost: then its definition says that it is served here.
async fn here(job: &Job) -> Result<Option<Account>, Fault> {
    match job.agent.account(&job.of.account) {
        Some(account) if matches!(account.standing, Standing::Serving) => {
            // Defined otherwise since, perhaps. If that cannot be told, what was known must do.
            Ok(Some(record::here(&job.agent, &job.of.account).await.unwrap_or(account)))
        }
        Some(account) => Ok(Some(account)),
        None => record::defined(&job.agent, &job.of.account).await,
    }
}

fn how_it_stood(job: &Job, account: &Account) -> Result<Stood, Fault> {
    let of_this_job = account.standing.of().is_some_and(|of| of.job == job.of.job);
    let at_its_epoch = of_this_job && account.epoch == job.of.epoch;
    match &account.standing {
        Standing::Moved { record, .. } if of_this_job && record.forced.is_none() => {
            Ok(Stood::Committed)
        }
        // Told again.
        Standing::Moved { .. } if of_this_job && account.may_hold_unique() => Ok(Stood::Served),
        Standing::Moved { .. } if of_this_job => Ok(Stood::Fenced),
        // Behind its deadline it may be open although no disk took that down.
        Standing::Fenced { ending: false, complete_unix: Some(_), deadline, .. }
            if at_its_epoch && !deadline.has_passed() =>
        {
            Ok(Stood::Fenced)
        }
        Standing::Fenced { .. } | Standing::Armed { .. } if at_its_epoch => Ok(Stood::Served),
        Standing::Serving if account.epoch <= job.of.epoch => Ok(Stood::Served),
        _ => Err(job.stands_otherwise(account, "as this move can have left it")),
    }
}

async fn stand_as_moved(
    job: &Job,
    mut account: Account,
    stood: &Stood,
    forced: &CommitRecord,
) -> Result<Account, Fault> {
    // A fence has what was before it; to look again would take what it closed for that.
    if !matches!(account.standing, Standing::Fenced { .. }) || account.closed.is_none() {
        account.closed = Some(Box::new(fence::plan(&job.agent, &account).await?));
    }
    let since = account.served_again_unix_ms.unwrap_or(forced.fenced_at_unix * 1000);
    account.served_again_unix_ms = matches!(stood, Stood::Served).then_some(since);
    account.taken_back = None;
    account.epoch = forced.epoch;
    account.standing = Standing::Moved {
        of: job.of.clone(),
        record: forced.clone(),
        fenced_unix_ms: unix_ms(),
        released_unix_ms: None,
        settled: false,
        grant: job.grant.clone(),
        came_from: account.came_from.take(),
    };
    job.set(account.clone()).await?;
    tracing::warn!(account = %job.of.account, "given up to {}, which was opened by force", forced.target);
    Ok(account)
}

fn receipt(found: String) -> Receipt {
    Receipt::GivenUp { found, written: Vec::new(), written_total: 0, look_at: String::new() }
}

/// What has changed below a home; none if there is too much to look at while somebody waits for it.
async fn written_since(home: PathBuf, since_ms: i64) -> Result<Option<Changed>, Fault> {
    let cancel = CancellationToken::new();
    let looks = cancel.clone();
    let work = blocking(move || ferry_files::changed_since(&home, since_ms, NAMED, &looks));
    tokio::pin!(work);
    tokio::select! {
        changed = &mut work => return changed.map(Some),
        () = tokio::time::sleep(LOOK) => cancel.cancel(),
    }
    match work.await {
        Err(fault) if fault.class == FaultClass::Cancelled => Ok(None),
        looked => looked.map(Some),
    }
}

/// What was written here since the fence ended.
async fn told(account: &Account, forced: &CommitRecord) -> Result<Receipt, Fault> {
    let since_ms = account.served_again_unix_ms.unwrap_or(forced.fenced_at_unix * 1000);
    let changed = written_since(account.definition.home.clone(), since_ms).await?;
    let mut look_at = format!(
        "see find {} -newerct @{}",
        account.definition.home.display(),
        since_ms.div_euclid(1000)
    );
    if changed.is_none() {
        look_at.insert_str(0, "what was written there is too much to be looked for now: ");
    }
    let changed = changed.unwrap_or_default();
    if changed.skipped > 0 {
        look_at.push_str(&format!(", and {} directories that were not entered", changed.skipped));
    }
    let databases: Vec<_> =
        account.definition.databases.iter().map(|d| d.name.to_string()).collect();
    if !databases.is_empty() {
        look_at.push_str(&format!(
            "; compare its databases with those on {}: {}",
            forced.target,
            databases.join(", ")
        ));
    }
    let found = "its fence had ended, and it served the account again; it is closed now".to_owned();
    tracing::warn!(account = %account.definition.name, written = changed.total, "{found}; {look_at}");
    let short = |(path, _): (String, i64)| path.chars().take(LONGEST_NAME).collect();
    let written = changed.latest.into_iter().map(short).collect();
    Ok(Receipt::GivenUp { found, written, written_total: changed.total, look_at })
}
