//! Copies files from the source: ahead, while the account is live, and once more when it is fenced.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ferry_failpoints::{Promise, broken};
use ferry_files::journal::Whose;
use ferry_files::{
    Bounded, Comparison, Directories, PassReport, Progress as FileProgress, Refusal, SourceOptions,
    send_pass,
};
use ferry_proto::command::Receipt;
use ferry_proto::{Fault, FaultClass};
use tokio::sync::watch;

use crate::agent::blocking;
use crate::journals::Journal;
use crate::ledger::Account;
use crate::work::copied::{Compared, Copied, Doubt, Mark, as_shown};
use crate::work::forecast::Forecast;
use crate::work::pace::{self, Doing, LastPass};
use crate::work::record::here;
use crate::work::{Job, done_with, unless_cancelled, verify};

/// Refusals that are named in a fault.
const NAMED: usize = 5;
/// How often the live account is compared until a comparison names all that differs.
const PROVING: u32 = 3;

/// Repeats passes until little is left; then proves that what was copied is equal, and makes up for
/// what that took. Tells meanwhile how long the final pass is going to take.
///
/// # Errors
/// Precondition if the target refuses something, with the paths; else what ended a pass.
pub async fn precopy(job: &Job, max_passes: u32, converged_bytes: u64) -> Result<Receipt, Fault> {
    // What one that is being stopped still tells the journal would count for this one's passes.
    let alone = async { Ok(job.agent.copying(&job.of.account).await) };
    let _alone = unless_cancelled(&job.cancel, alone).await?;
    let forecast = Forecast::of(job);
    tokio::select! {
        copied = Box::pin(copy_ahead(job, max_passes, converged_bytes, &forecast)) => copied,
        never = forecast.go_on() => match never {},
    }
}

async fn copy_ahead(
    job: &Job,
    max_passes: u32,
    converged_bytes: u64,
    forecast: &Forecast<'_>,
) -> Result<Receipt, Fault> {
    let account = here(&job.agent, &job.of.account).await?;
    let mut copied = Copied::of(job).await;
    copied.proof = None;
    copied.keep(job).await?;
    let (mut passes, mut files, mut bytes) = (0u32, 0u64, 0u64);
    let mut before = None;
    let last_pass = loop {
        passes += 1;
        let began = Instant::now();
        let report = live_pass(job, &account, passes, &mut copied, &Doubt::NONE).await?;
        let took = began.elapsed();
        forecast.passed(&report, took).await;
        files += report.files_sent;
        bytes += report.bytes_sent;
        let converged = report.bytes_sent < converged_bytes;
        // The first pass is never the last: what changed while it ran is in the second.
        if passes >= max_passes || (converged && passes > 1) {
            let since_before = before.map(|before| began.duration_since(before));
            break LastPass { bytes: report.bytes_sent, since_before, took };
        }
        before = Some(began);
    };
    let outpaced = last_pass.outpaced(converged_bytes);
    if let Some(text) = &outpaced {
        tracing::warn!(account = %job.of.account, "{text}");
    }
    let (last, compared) = prove(job, &account, &mut passes, &mut copied, forecast).await?;
    files += last.files_sent;
    bytes += last.bytes_sent;
    let final_pass = forecast.tell().await;
    let sent = format!("{files} files, {bytes} bytes in {passes} passes");
    let last_sent = format!("the last sent {} bytes", last.bytes_sent);
    let words = final_pass.as_ref().map(|told| told.words.clone());
    let said: Vec<String> =
        [Some(sent), Some(last_sent), outpaced, words].into_iter().flatten().collect();
    let figures = [
        ("passes", f64::from(passes)),
        ("entries", last.entries as f64),
        ("files_sent", files as f64),
        ("bytes_sent", bytes as f64),
        ("last_bytes_sent", last.bytes_sent as f64),
        ("bytes_compared", compared as f64),
    ];
    let seconds = final_pass.map(|told| ("final_pass_seconds", told.ms as f64 / 1000.0));
    Ok(done_with(said.join("; "), figures.into_iter().chain(seconds)))
}

/// Compares everything while the account is live, so that behind the fence only what has changed
/// since is read again. What differs is sent again by one more pass, and read again behind the fence;
/// so is what was not compared. The last pass, and how many bytes were compared.
async fn prove(
    job: &Job,
    account: &Account,
    passes: &mut u32,
    copied: &mut Copied,
    forecast: &Forecast<'_>,
) -> Result<(PassReport, u64), Fault> {
    let mut rounds = 0;
    loop {
        rounds += 1;
        let compared = compare_live(job, account, copied.last.clone()).await?;
        let bytes = compared.bytes;
        forecast.met(compared.entries);
        *passes += 1;
        let began = Instant::now();
        let report = live_pass(job, account, *passes, copied, &compared.doubt).await?;
        forecast.passed(&report, began.elapsed()).await;
        if copied.prove(compared) {
            copied.keep(job).await?;
            return Ok((report, bytes));
        }
        if rounds == PROVING {
            tracing::warn!(account = %job.of.account, "too much changes to prove the copy ahead: all of it is compared behind the fence");
            return Ok((report, bytes));
        }
    }
}

/// Compares everything while the account is live, `base` being the last pass.
pub(super) async fn compare_live(
    job: &Job,
    account: &Account,
    base: Option<Mark>,
) -> Result<Compared, Fault> {
    let mut options = job.source_options(account)?;
    let directories = Arc::new(Mutex::new(Directories::default()));
    options.seen = Some(Arc::clone(&directories));
    calm(job, &mut options);
    // Reads everything all the same; but of no other root.
    options.known = base.as_ref().map(|base| Arc::new(base.directories.clone()));
    let journal = journal(job, account).await?;
    journal.iter().for_each(|journal| journal.compares());
    let found = verify::compare(job, account, options).await?;
    refuse_if_refused(job, &found.refused)?;
    if let Some(journal) = journal {
        believe(job, journal, &found).await?;
    }
    let directories = taken(&directories);
    let doubt = Doubt::of(&found);
    Ok(Compared { base, directories, doubt, entries: found.entries, bytes: found.bytes })
}

/// Leaves the hosts to others where they are busy, and keeps to the limits that are set.
fn calm(job: &Job, options: &mut SourceOptions) {
    (options.calm, options.limits) = (true, job.agent.limits.clone());
}

/// The journal of the account's tree, which begins now if there was none.
async fn journal(job: &Job, account: &Account) -> Result<Option<Arc<Journal>>, Fault> {
    let (agent, of, root) = (job.agent.clone(), job.of.clone(), account.definition.home.clone());
    blocking(move || Ok(agent.journals.of(&of.account, &root, of.job, Whose::Everybodys))).await
}

/// Gives a journal up that has not told of what differs.
async fn believe(job: &Job, journal: Arc<Journal>, found: &Comparison) -> Result<(), Fault> {
    let differing: Option<Vec<_>> =
        found.differences.items.iter().map(|d| as_shown(&d.path)).collect();
    let explained = move || match differing {
        Some(differing) => journal.explains(differing.iter().map(PathBuf::as_path)),
        // What is not named whole may be anywhere.
        None => Ok(false),
    };
    if !blocking(explained).await? {
        let account = &job.of.account;
        tracing::warn!(%account, "the change journal has missed something: every pass looks at everything");
        job.agent.journals.give_up(account);
    }
    Ok(())
}

fn taken<T: Default>(noted: &Mutex<T>) -> T {
    std::mem::take(&mut *noted.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A pass of the live account, noted as the last one.
pub(super) async fn live_pass(
    job: &Job,
    account: &Account,
    number: u32,
    copied: &mut Copied,
    doubt: &Doubt,
) -> Result<PassReport, Fault> {
    let doing = format!("pass {number}");
    let (report, mark) = pass(job, account, (&doing, true), copied.last.as_ref(), doubt).await?;
    copied.last = Some(mark);
    copied.keep(job).await?;
    Ok(report)
}

/// One pass of the fenced account.
///
/// # Errors
/// Of class Fenced if the account is not fenced; else as [`precopy`].
pub async fn final_pass(job: &Job) -> Result<Receipt, Fault> {
    let account = job.fenced()?;
    let last = Copied::of(job).await.last;
    let (report, _) =
        pass(job, &account, ("final pass", false), last.as_ref(), &Doubt::NONE).await?;
    if report.changed_while_read > 0 && !broken(Promise::Fence) {
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

/// One pass: what may have changed since the walk of `last`, and what is in doubt. What it is called, and
/// whether it leaves the hosts to others where they are busy.
async fn pass(
    job: &Job,
    account: &Account,
    (doing, is_calm): (&str, bool),
    last: Option<&Mark>,
    doubt: &Doubt,
) -> Result<(PassReport, Mark), Fault> {
    let mut options = job.source_options(account)?;
    // The very root of the last pass, and empty now: its owner has emptied it. Without a last pass it
    // may as well not be mounted.
    let allow_emptied = last.is_some_and(|last| last.widen(&mut options));
    doubt.widen(&mut options);
    // Who waits behind a fence waits for no bytes that are there twice.
    options.share = is_calm;
    if is_calm {
        calm(job, &mut options);
    }
    let directories = Arc::new(Mutex::new(Directories::default()));
    options.seen = Some(Arc::clone(&directories));
    let elsewhere = Arc::default();
    options.elsewhere = Some(Arc::clone(&elsewhere));
    // Behind a fence nobody waits for one to begin that tells nothing yet.
    let journal = match is_calm {
        true => journal(job, account).await?,
        false => job.agent.journals.existing(&job.of.account, job.of.job),
    };
    let mut mark = Mark::now();
    if let Some(journal) = journal.clone() {
        let doubted = options.doubted.clone();
        let renewed = move || {
            if is_calm {
                journal.renew();
            }
            journal.pass(&doubted)
        };
        let plan = blocking(renewed).await?;
        // Where more is in doubt than is named, the pass has to find it.
        options.plan = plan.filter(|_| doubt.is_named()).map(Arc::new);
    }
    let is_partial = options.plan.is_some();
    let mut sent = Box::pin(send(job, account, doing, allow_emptied, options.clone())).await;
    if let (true, Err(fault)) = (is_partial, &sent)
        && fault.class == FaultClass::Transient
    {
        tracing::info!(account = %job.of.account, "the pass looks at everything now: {fault}");
        options.plan = None;
        sent = Box::pin(send(job, account, doing, allow_emptied, options)).await;
    }
    let report = sent?;
    refuse_if_refused(job, &report.refused)?;
    for note in report.notes.items.iter().take(NAMED) {
        tracing::info!(account = %job.of.account, path = %note.path, kind = ?note.kind, "noted");
    }
    if let Some(journal) = journal {
        journal.passed(taken(&elsewhere));
    }
    mark.left(&report.notes);
    mark.directories = match last {
        Some(last) if is_partial => last.directories.clone(),
        _ => Directories::default(),
    };
    mark.directories.update(taken(&directories));
    Ok((report, mark))
}

/// Sends one pass and tells how far it is.
async fn send(
    job: &Job,
    account: &Account,
    doing: &str,
    allow_emptied: bool,
    options: SourceOptions,
) -> Result<PassReport, Fault> {
    let streams = job.peer()?.files(allow_emptied, options.calm).await?;
    let (progress, seen) = watch::channel(FileProgress::default());
    let doing = Doing { what: doing.to_owned(), target: pace::WRITING };
    let telling = tokio::spawn(pace::tell(seen, job.progress.clone(), doing));
    let root = account.definition.home.clone();
    let report = send_pass(&root, streams, options, progress, job.cancel.clone()).await;
    // Ends by itself: its sender is gone.
    telling.await.map_err(|e| Fault::bug("progress failed").caused_by(&e))?;
    report
}

/// What the target did not take would be missing there: that is no move.
fn refuse_if_refused(job: &Job, refused: &Bounded<Refusal>) -> Result<(), Fault> {
    if refused.is_empty() {
        return Ok(());
    }
    let mut fault = Fault::new(
        FaultClass::Precondition,
        format!(
            "{} paths of account {} cannot go to {}",
            refused.total, job.of.account, job.of.target
        ),
    )
    .remedy(format!(
        "on {}, give these paths to the account or remove them, then move again; or approve them: ferry move {} \
         --approve PATH",
        job.of.source, job.of.account
    ));
    fault.causes =
        refused.items.iter().take(NAMED).map(|r| format!("{}: {}", r.path, r.reason)).collect();
    Err(fault)
}
