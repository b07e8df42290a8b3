//! Dumps each database of the fenced account and has it loaded at the target.

use ferry_proto::Fault;
use ferry_proto::command::{Progress, Receipt};
use tokio::io::AsyncWriteExt;

use crate::agent::engine;
use crate::work::{Job, done_with, record, spec, unless_cancelled};

/// Copies every database, one after the other.
///
/// # Errors
/// Of class Fenced if the account is not fenced; else what ended a dump or a load.
pub async fn copy(job: &Job) -> Result<Receipt, Fault> {
    let account = job.fenced()?;
    // Passwords, grants and the crontab as they were when the fence closed.
    let source = record::of_account(&job.agent, &job.of.account).await?;
    job.peer()?.update_record(source).await?;
    let (mut count, mut bytes) = (0u32, 0u64);
    for database in &account.definition.databases {
        let kind = database.engine;
        let doing = format!("{kind} {}", database.name);
        let before = bytes;
        let copied = unless_cancelled(&job.cancel, async {
            let peer = job.peer()?;
            let mut stream = peer.load(kind, &database.name).await?;
            let progress = |done: u64| {
                job.progress.send_replace(Progress {
                    doing: doing.clone(),
                    bytes_done: before + done,
                    items_done: u64::from(count),
                    ..Progress::default()
                });
            };
            let spec = spec(&account, kind);
            let dumped = engine(kind).dump(&spec, &database.name, &mut stream, &progress).await;
            let flushed = stream.flush().await;
            // If the target gave up, its word says more than our broken pipe.
            match (dumped, flushed) {
                (Ok(_), Ok(())) => peer.loaded(stream).await,
                (Err(fault), _) => Err(peer.loaded(stream).await.err().unwrap_or(fault)),
                (_, Err(e)) => Err(Fault::io("the connection to the peer was lost", &e)),
            }
        })
        .await
        .map_err(|f| f.context(format!("{doing} of account {} was not copied", job.of.account)))?;
        count += 1;
        bytes += copied;
    }
    #[allow(clippy::cast_precision_loss)]
    Ok(done_with(
        format!("{count} databases, {bytes} bytes of dump"),
        [("databases", f64::from(count)), ("bytes_sent", bytes as f64)],
    ))
}
