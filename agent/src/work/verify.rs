//! Compares both ends: every file, every database. Nothing is committed on an exit status alone.

use ferry_files::{Progress as FileProgress, verify_source};
use ferry_proto::Fault;
use ferry_proto::command::Receipt;
use tokio::sync::watch;

use crate::agent::engine;
use crate::ledger::Account;
use crate::work::{Job, done_with, files, source_options, spec, unless_cancelled};

/// Differences that are named in a fault.
const NAMED: usize = 8;

/// Compares the fenced account with the copy at the target.
///
/// # Errors
/// Permanent if they differ, with where.
pub async fn verify(job: &Job) -> Result<Receipt, Fault> {
    let account = job.fenced()?;
    let (entries, bytes) = compare_files(job, &account).await?;
    let mut objects = 0;
    for database in &account.definition.databases {
        objects += unless_cancelled(&job.cancel, compare_database(job, &account, database)).await?;
    }
    #[allow(clippy::cast_precision_loss)]
    Ok(done_with(
        format!(
            "{entries} entries, {bytes} bytes of content and {} databases are equal",
            account.definition.databases.len()
        ),
        [
            ("entries", entries as f64),
            ("bytes", bytes as f64),
            ("database_objects", objects as f64),
        ],
    ))
}

async fn compare_files(job: &Job, account: &Account) -> Result<(u64, u64), Fault> {
    let stream = job.peer()?.compare_files().await?;
    let (progress, seen) = watch::channel(FileProgress::default());
    let telling =
        tokio::spawn(files::tell(seen, job.progress.clone(), "comparing files".to_owned()));
    let options = source_options(&job.agent.layout, account.uid)?;
    let root = account.definition.home.clone();
    let compared = verify_source(&root, stream, options, progress, job.cancel.clone()).await;
    telling.await.map_err(|e| Fault::bug("progress failed").caused_by(&e))?;
    let comparison = compared?;
    if comparison.differences.total > 0 {
        let mut fault = Fault::permanent(format!(
            "{} paths of account {} differ between {} and {}",
            comparison.differences.total, job.of.account, job.of.source, job.of.target
        ))
        .remedy("nothing was committed; move again, and report this if it repeats");
        fault.causes =
            comparison.differences.items.iter().take(NAMED).map(|d| format!("{d:?}")).collect();
        return Err(fault);
    }
    Ok((comparison.entries, comparison.bytes))
}

async fn compare_database(
    job: &Job,
    account: &Account,
    database: &ferry_proto::account::Database,
) -> Result<usize, Fault> {
    let kind = database.engine;
    let (peer, spec) = (job.peer()?, spec(account, kind));
    let ours = engine(kind);
    let (here, there) =
        tokio::join!(ours.manifest(&spec, &database.name), peer.manifest(kind, &database.name));
    let (here, there) = (here?, there?);
    let differences = ferry_databases::compare(&here, &there);
    if differences.is_empty() {
        return Ok(here.objects.len());
    }
    let mut fault = Fault::permanent(format!(
        "{kind} {} of account {} differs between {} and {}",
        database.name, job.of.account, job.of.source, job.of.target
    ))
    .remedy("nothing was committed; move again, and report this if it repeats");
    fault.causes = differences.iter().take(NAMED).map(|d| format!("{d:?}")).collect();
    Err(fault)
}
