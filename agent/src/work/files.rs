//! Copies files from the source: ahead, while the account is live, and once more when it is fenced.

use ferry_files::{PassReport, Progress as FileProgress, send_pass};
use ferry_proto::command::{Progress, Receipt};
use ferry_proto::{Fault, FaultClass};
use tokio::sync::watch;

use crate::ledger::Account;
use crate::work::record::here;
use crate::work::{Job, done_with, source_options};

/// Refusals that are named in a fault.
const NAMED: usize = 5;

/// Repeats passes until little is left.
///
/// # Errors
/// Precondition if the target refuses something, with the paths; else what ended a pass.
pub async fn precopy(job: &Job, max_passes: u32, converged_bytes: u64) -> Result<Receipt, Fault> {
    let account = here(&job.agent, &job.of.account).await?;
    let (mut passes, mut files, mut bytes) = (0u32, 0u64, 0u64);
    let last = loop {
        passes += 1;
        let report = pass(job, &account, &format!("pass {passes}")).await?;
        files += report.files_sent;
        bytes += report.bytes_sent;
        let converged = report.bytes_sent < converged_bytes;
        // The first pass is never the last: what changed while it ran is in the second.
        if passes >= max_passes || (converged && passes > 1) {
            break report;
        }
    };
    #[allow(clippy::cast_precision_loss)]
    Ok(done_with(
        format!(
            "{files} files, {bytes} bytes in {passes} passes; the last sent {} bytes",
            last.bytes_sent
        ),
        [
            ("passes", f64::from(passes)),
            ("entries", last.entries as f64),
            ("files_sent", files as f64),
            ("bytes_sent", bytes as f64),
            ("last_bytes_sent", last.bytes_sent as f64),
        ],
    ))
}

/// One pass of the fenced account.
///
/// # Errors
/// Of class Fenced if the account is not fenced; else as [`precopy`].
pub async fn final_pass(job: &Job) -> Result<Receipt, Fault> {
    let account = job.fenced()?;
    let report = pass(job, &account, "final pass").await?;
    if report.changed_while_read > 0 {
        return Err(Fault::permanent(format!(
            "{} files of account {} changed while it was fenced",
            report.changed_while_read, job.of.account
        ))
        .remedy(format!(
            "something on {} still writes below {}: find it and move again",
            job.of.source,
            account.definition.home.display()
        )));
    }
    #[allow(clippy::cast_precision_loss)]
    Ok(done_with(
        format!(
            "{} files, {} bytes, {} deleted of {} entries",
            report.files_sent, report.bytes_sent, report.deleted, report.entries
        ),
        [
            ("entries", report.entries as f64),
            ("files_sent", report.files_sent as f64),
            ("bytes_sent", report.bytes_sent as f64),
        ],
    ))
}

async fn pass(job: &Job, account: &Account, doing: &str) -> Result<PassReport, Fault> {
    let stream = job.peer()?.files().await?;
    let (progress, seen) = watch::channel(FileProgress::default());
    let telling = tokio::spawn(tell(seen, job.progress.clone(), doing.to_owned()));
    let cancel = job.cancel.clone();
    let root = account.definition.home.clone();
    let options = source_options(&job.agent.layout, account.uid)?;
    let report = send_pass(&root, stream, options, progress, cancel).await;
    // Ends by itself: its sender is gone.
    telling.await.map_err(|e| Fault::bug("progress failed").caused_by(&e))?;
    let report = report?;
    refuse_if_refused(job, &report)?;
    for note in report.notes.items.iter().take(NAMED) {
        tracing::info!(account = %job.of.account, path = %note.path, kind = ?note.kind, "noted");
    }
    Ok(report)
}

/// What the target did not take would be missing there: that is no move.
fn refuse_if_refused(job: &Job, report: &PassReport) -> Result<(), Fault> {
    if report.refused.total == 0 {
        return Ok(());
    }
    let mut fault = Fault::new(
        FaultClass::Precondition,
        format!(
            "{} paths of account {} cannot go to {}",
            report.refused.total, job.of.account, job.of.target
        ),
    )
    .remedy(format!(
        "on {}, give these paths to the account or remove them, then move again",
        job.of.source
    ));
    fault.causes = report
        .refused
        .items
        .iter()
        .take(NAMED)
        .map(|r| format!("{}: {}", r.path, r.reason))
        .collect();
    Err(fault)
}

/// Passes the file engine's progress on in the words of the controller.
pub async fn tell(
    mut seen: watch::Receiver<FileProgress>,
    out: watch::Sender<Progress>,
    doing: String,
) {
    while seen.changed().await.is_ok() {
        let now = seen.borrow_and_update().clone();
        out.send_replace(Progress {
            doing: doing.clone(),
            bytes_done: now.bytes_done,
            bytes_total: now.bytes_total,
            items_done: now.files_done,
            items_total: now.files_total,
        });
    }
}
