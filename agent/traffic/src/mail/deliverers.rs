//! Waiting until Postfix delivers nothing to an account any more.
//!
//! A deliverer does what a queue manager asks it to, whoever started it and when: one that Postfix began
//! after its reload may still have been asked by the former queue manager. So it is looked at once that
//! one has ended. It asks only who has said to be ready, and has sent all when it ends: what it asked for
//! is with a process that is there by then, that wakes up for it, and that keeps the message's file open
//! until it is done. A process that waits and has no such file open was not asked, or is done; and
//! whoever is asked later is asked by the new tables.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::ids::DomainName;
use tokio::time::Instant;

use super::postfix::Postfix;
use super::procs::{self, Process};

/// The processes that write mail into mailboxes, or wait for those that do.
const DELIVERERS: &[&str] = &["local", "virtual", "lmtp", "pipe"];
/// Where a message's file may be in the queue, while somebody has it open.
const QUEUES: &[&str] = &["active", "incoming", "deferred", "hold", "corrupt", "saved"];
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// What a deliverer does.
#[derive(Debug, PartialEq, Eq)]
enum Doing {
    /// Nothing that it was asked for before it was looked at.
    Nothing,
    /// It delivers these messages.
    Delivers(BTreeSet<String>),
    /// It writes into a mailbox of the account, or nobody can tell.
    Unknown,
}

impl Doing {
    fn of(p: &Process, roots: &[PathBuf]) -> Self {
        // Before its files: it may open one and then wait for something else.
        let Some(now) = procs::process(p.pid).filter(|now| now.started == p.started) else {
            return Self::Nothing;
        };
        let (Some(files), Some(dir)) = (procs::open_files(p.pid), procs::directory(p.pid)) else {
            return Self::Unknown;
        };
        Self::seen(now.waits, &files, &dir, roots)
    }

    /// Of one that works in `dir`.
    fn seen(waits: bool, files: &[PathBuf], dir: &Path, roots: &[PathBuf]) -> Self {
        if files.iter().any(|file| roots.iter().any(|root| file.starts_with(root))) {
            return Self::Unknown;
        }
        let messages: BTreeSet<String> =
            files.iter().filter_map(|file| message(file.strip_prefix(dir).ok()?)).collect();
        match (messages.is_empty(), waits) {
            (false, _) => Self::Delivers(messages),
            (true, true) => Self::Nothing,
            (true, false) => Self::Unknown,
        }
    }

    /// Whether it concerns nobody but those whose messages are `others`.
    fn is_harmless(&self, others: &BTreeSet<String>) -> bool {
        match self {
            Self::Nothing => true,
            Self::Delivers(messages) => messages.is_subset(others),
            Self::Unknown => false,
        }
    }
}

/// The id of the message that a file of the queue holds.
fn message(file: &Path) -> Option<String> {
    let queue = file.iter().next()?.to_str()?;
    QUEUES.contains(&queue).then(|| file.file_name()?.to_str().map(str::to_owned))?
}

impl Postfix<'_> {
    /// Waits until nothing is delivered to these domains any more that the former queue manager, which has
    /// ended, has asked for.
    pub async fn drain(
        &self,
        domains: &BTreeSet<&DomainName>,
        roots: &[PathBuf],
    ) -> Result<(), Fault> {
        let deadline = Instant::now() + self.config.drain_timeout;
        let mut left = procs::at_work(self.queue_directory().await?, DELIVERERS);
        loop {
            let seen: Vec<Doing> = left.iter().map(|p| Doing::of(p, roots)).collect();
            let others = if seen.iter().any(|d| matches!(d, Doing::Delivers(_))) {
                self.of_others(domains).await?
            } else {
                BTreeSet::new()
            };
            let mut seen = seen.iter();
            left.retain(|_| !seen.next().is_some_and(|doing| doing.is_harmless(&others)));
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let busy: Vec<_> = left.iter().map(|p| format!("{} {}", p.name, p.pid)).collect();
                return Err(Fault::transient(format!(
                    "mail is still being delivered {} s after the fence: {}",
                    self.config.drain_timeout.as_secs(),
                    busy.join(", ")
                ))
                .remedy("look at what these processes wait for, then try again"));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deliverer_is_harmless_only_if_that_is_sure() {
        let roots = [PathBuf::from("/home/shop/mail")];
        let seen = |waits, files: &[&str]| {
            let files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
            Doing::seen(waits, &files, Path::new("/queue"), &roots)
        };
        let others = BTreeSet::from(["4THEIRS".to_owned()]);
        let lock = "/queue/pid/unix.virtual";
        for (doing, harmless) in [
            (seen(true, &[lock]), true),
            (seen(true, &["/queue/active/4THEIRS", lock]), true),
            (seen(true, &["/queue/deferred/4/4THEIRS"]), true),
            // It may be about to open one.
            (seen(false, &[lock]), false),
            // Listed with a recipient of the account, or missed when its file went from queue to queue.
            (seen(true, &["/queue/active/4OURS"]), false),
            (seen(true, &["/queue/active/4THEIRS (deleted)"]), false),
            (seen(true, &["/queue/active/4THEIRS", "/home/shop/mail/alice/tmp/1"]), false),
        ] {
            assert_eq!(doing.is_harmless(&others), harmless, "{doing:?}");
        }
    }
}
