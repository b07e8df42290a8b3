//! Dumps each database of the fenced account and has it loaded at the target.

use std::collections::{BTreeMap, VecDeque};

use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::command::{Progress, Receipt};
use tokio::io::AsyncWriteExt;

use crate::agent::{ENGINES, engine};
use crate::ledger::Account;
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
    let outlook = outlook(&account).await;
    let items_total = u64::try_from(account.definition.databases.len()).ok();
    let (mut count, mut bytes) = (0u32, 0u64);
    for (at, database) in account.definition.databases.iter().enumerate() {
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
                    bytes_total: outlook.as_deref().map(|sizes| before + expected(sizes, at, done)),
                    items_done: u64::from(count),
                    items_total,
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

/// About how long each dump will be, in the order of the definition. None if a server does not say:
/// that stops nothing.
async fn outlook(account: &Account) -> Option<Vec<u64>> {
    let mut sizes: BTreeMap<EngineKind, VecDeque<u64>> = BTreeMap::new();
    for kind in ENGINES {
        let spec = spec(account, kind);
        if !spec.databases.is_empty() {
            sizes.insert(kind, engine(kind).dump_sizes(&spec).await.ok()?.into());
        }
    }
    let databases = account.definition.databases.iter();
    databases.map(|d| sizes.get_mut(&d.engine)?.pop_front()).collect()
}

/// What is to be copied from database number `at` on, of which `done` bytes are: a dump that turns
/// out longer than its estimate counts with its own length.
fn expected(sizes: &[u64], at: usize, done: u64) -> u64 {
    let this = sizes.get(at).copied().unwrap_or_default().max(done);
    this + sizes.iter().skip(at + 1).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::expected;

    #[test]
    fn the_total_follows_what_turns_out() {
        let sizes = [100, 50, 10];
        assert_eq!(expected(&sizes, 0, 0), 160);
        assert_eq!(expected(&sizes, 0, 130), 190);
        assert_eq!(expected(&sizes, 1, 20), 60);
        assert_eq!(expected(&sizes, 2, 11), 11);
    }
}
