//! Compares both ends: every file, every database. Nothing is committed on an exit status alone.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use ferry_failpoints::{Promise, broken};
use ferry_files::journal::Plan;
use ferry_files::{Comparison, Progress as FileProgress, SourceOptions, verify_source};
use ferry_proto::command::Receipt;
use ferry_proto::{Fault, FaultClass};
use tokio::sync::watch;

use crate::agent::{blocking, engine};
use crate::ledger::Account;
use crate::work::copied::Copied;
use crate::work::pace::Doing;
use crate::work::{Job, done, done_with, fence, pace, spec, unless_cancelled};

/// Differences that are named in a fault.
const NAMED: usize = 8;

/// Compares the fenced account with the copy at the target: the contents that may have changed since
/// all was compared before the fence, the metadata of everything, and every database.
///
/// # Errors
/// Permanent if they differ, with where; of class Fenced if something writes here again.
pub async fn verify(job: &Job) -> Result<Receipt, Fault> {
    let account = job.fenced()?;
    if broken(Promise::Fence) {
        return Ok(done("nothing was compared: there was no fence"));
    }
    let mut options = job.source_options(&account)?;
    if let Some(proof) = Copied::of(job).await.proof
        && proof.base.narrow(&account.definition.home, &mut options)
    {
        options.doubted = proof.doubted;
        options.plan = plan(job, &options.doubted).await?;
    }
    let files = compare_all(job, &account, options).await?;
    expect_equal(job, &files)?;
    let mut objects = 0;
    for database in &account.definition.databases {
        objects += unless_cancelled(&job.cancel, compare_database(job, &account, database)).await?;
    }
    fence::still_closed(&job.agent, &account).await?;
    #[allow(clippy::cast_precision_loss)]
    Ok(done_with(
        format!(
            "{} entries, {} bytes of changed content and {} databases are equal",
            files.entries,
            files.bytes,
            account.definition.databases.len()
        ),
        [
            ("entries", files.entries as f64),
            ("bytes", files.bytes as f64),
            ("database_objects", objects as f64),
        ],
    ))
}

/// What has to be compared since everything was; none if that is not known.
async fn plan(job: &Job, doubted: &BTreeSet<PathBuf>) -> Result<Option<Arc<Plan>>, Fault> {
    let Some(journal) = job.agent.journals.existing(&job.of.account, job.of.job) else {
        return Ok(None);
    };
    let doubted = doubted.clone();
    Ok(blocking(move || journal.comparison(&doubted)).await?.map(Arc::new))
}

/// Compares the files of both ends: what the plan says, and everything where that proves nothing.
async fn compare_all(
    job: &Job,
    account: &Account,
    mut options: SourceOptions,
) -> Result<Comparison, Fault> {
    let is_partial = options.plan.is_some();
    match compare(job, account, options.clone()).await {
        Err(fault) if is_partial && fault.class == FaultClass::Transient => {
            tracing::info!(account = %job.of.account, "everything is compared: {fault}");
            options.plan = None;
            compare(job, account, options).await
        }
        compared => compared,
    }
}

/// Compares the files of both ends.
///
/// # Errors
/// What ended the comparison.
pub async fn compare(
    job: &Job,
    account: &Account,
    options: SourceOptions,
) -> Result<Comparison, Fault> {
    let streams = job.peer()?.compare_files(options.plan.is_some(), options.calm).await?;
    let (progress, seen) = watch::channel(FileProgress::default());
    let doing = Doing { what: "comparing files".to_owned(), target: pace::READING };
    let telling = tokio::spawn(pace::tell(seen, job.progress.clone(), doing));
    let root = account.definition.home.clone();
    let compared = verify_source(&root, streams, options, progress, job.cancel.clone()).await;
    telling.await.map_err(|e| Fault::bug("progress failed").caused_by(&e))?;
    compared
}

/// Wholly equal: what was refused or did not hold still is not proved.
fn expect_equal(job: &Job, found: &Comparison) -> Result<(), Fault> {
    let Comparison { differences, refused, unsettled, .. } = found;
    if differences.is_empty() && refused.is_empty() && *unsettled == 0 {
        return Ok(());
    }
    let mut fault = Fault::permanent(format!(
        "{} paths of account {} differ between {} and {}, {} cannot be compared, {unsettled} changed \
         meanwhile",
        differences.total, job.of.account, job.of.source, job.of.target, refused.total
    ))
    .remedy(format!(
        "nothing was committed; if paths changed, find what still writes on {}; move again, and \
         report this if it repeats",
        job.of.source
    ));
    let differing = differences.items.iter().map(ToString::to_string);
    let refused = refused.items.iter().map(|r| format!("{}: {}", r.path, r.reason));
    fault.causes = differing.chain(refused).take(NAMED).collect();
    Err(fault)
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

#[cfg(test)]
mod tests {
    use ferry_files::{Bounded, Refusal};

    use super::*;
    use crate::work::tests::host::{a_move_to_nowhere, alone};

    #[test]
    fn what_is_not_proved_is_not_equal() {
        alone(async |world| {
            let server = world.server("web1").await;
            let job = world.job(&server, &a_move_to_nowhere());
            expect_equal(&job, &Comparison::default()).unwrap();
            let unsettled = Comparison { unsettled: 1, ..Comparison::default() };
            let mut refused = Bounded::default();
            refused.push(Refusal { path: "p".to_owned(), reason: "foreign".to_owned() });
            let refused = Comparison { refused, ..Comparison::default() };
            for comparison in [unsettled, refused] {
                expect_equal(&job, &comparison).unwrap_err();
            }
        });
    }
}
