//! Postfix's queue, seen by recipient domain. Changes no settings.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ferry_proto::Fault;
use ferry_proto::ids::DomainName;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use super::postfix::Postfix;
use super::run::Program;

/// The most of a queue listing that is read: a million messages or so.
const MAX_LISTING: u64 = 512 << 20;
/// Up to so many messages are flushed one by one; beyond that the whole queue is.
const FLUSH_SINGLY: usize = 200;

/// A message that waits, as `postqueue -j` tells it.
#[derive(Debug, Deserialize)]
pub(super) struct Queued {
    /// Which queue: incoming, active, deferred, hold.
    pub queue_name: String,
    /// Its id, which is also its file's name.
    pub queue_id: String,
    recipients: Vec<Recipient>,
}

#[derive(Debug, Deserialize)]
struct Recipient {
    address: String,
}

impl Queued {
    fn is_for(&self, domains: &BTreeSet<&DomainName>) -> bool {
        self.recipients.iter().any(|r| is_in(&r.address, domains))
    }
}

impl Postfix<'_> {
    fn postqueue(&self) -> Program<'_> {
        Program {
            path: &self.config.programs.postqueue,
            config: self.config.postfix_config_dir.as_deref(),
            timeout: self.config.command_timeout,
        }
    }

    /// The messages with a recipient in one of `domains`.
    ///
    /// # Errors
    /// When the queue cannot be listed.
    pub async fn queued(&self, domains: &BTreeSet<&DomainName>) -> Result<Vec<Queued>, Fault> {
        let mut found = Vec::new();
        let keep = |message: Queued| {
            if message.is_for(domains) {
                found.push(message);
            }
        };
        self.list(keep).await.map(|()| found)
    }

    /// The ids of the messages that have no recipient left in any of `domains`. One that went from queue
    /// to queue meanwhile may be missing.
    ///
    /// # Errors
    /// When the queue cannot be listed.
    pub async fn of_others(
        &self,
        domains: &BTreeSet<&DomainName>,
    ) -> Result<BTreeSet<String>, Fault> {
        let mut ours: BTreeMap<String, bool> = BTreeMap::new();
        let note = |message: Queued| {
            let is_ours = message.is_for(domains);
            *ours.entry(message.queue_id).or_default() |= is_ours;
        };
        self.list(note).await?;
        Ok(ours.into_iter().filter(|(_, is_ours)| !is_ours).map(|(id, _)| id).collect())
    }

    async fn list(&self, mut each: impl FnMut(Queued)) -> Result<(), Fault> {
        let path: &Path = &self.config.programs.postqueue;
        let failed = |e: &std::io::Error| Fault::io("Postfix's queue cannot be listed", e);
        let mut child = self.postqueue().command(&["-j"]).spawn().map_err(|e| failed(&e))?;
        let stdout = child.stdout.take().ok_or_else(|| Fault::bug("postqueue has no output"))?;
        let mut errors = child.stderr.take();
        let listing = async {
            let mut lines = BufReader::new(stdout.take(MAX_LISTING)).lines();
            while let Some(line) = lines.next_line().await.map_err(|e| failed(&e))? {
                let message: Queued = serde_json::from_str(&line).map_err(|e| {
                    Fault::permanent("Postfix's queue listing cannot be read").caused_by(&e)
                })?;
                each(message);
            }
            let status = child.wait().await.map_err(|e| failed(&e))?;
            Ok(status)
        };
        let status = tokio::time::timeout(self.config.command_timeout, listing)
            .await
            .map_err(|_| Fault::transient(format!("{} did not end in time", path.display())))??;
        if status.success() {
            return Ok(());
        }
        let mut said = String::new();
        if let Some(stderr) = errors.as_mut() {
            // Only explains the fault that is told anyway.
            let _ = stderr.take(4096).read_to_string(&mut said).await;
        }
        let mut fault = Fault::transient(format!("{} -j failed", path.display()));
        fault.causes.extend(said.lines().take(5).map(str::to_owned));
        Err(fault)
    }

    /// Has the deferred mail of these domains tried again now.
    ///
    /// # Errors
    /// When the queue cannot be listed or flushed.
    pub async fn flush(&self, domains: &BTreeSet<&DomainName>) -> Result<(), Fault> {
        let deferred: Vec<Queued> = self
            .queued(domains)
            .await?
            .into_iter()
            .filter(|m| m.queue_name == "deferred")
            .collect();
        if deferred.len() > FLUSH_SINGLY {
            self.postqueue().change("postfix.flush", &["-f"]).await?;
            return Ok(());
        }
        for message in deferred {
            // One that is gone meanwhile was delivered: postqueue does not mind.
            self.postqueue().change("postfix.flush", &["-i", &message.queue_id]).await?;
        }
        Ok(())
    }
}

fn is_in(address: &str, domains: &BTreeSet<&DomainName>) -> bool {
    address
        .rsplit_once('@')
        .is_some_and(|(_, domain)| domains.iter().any(|d| d.as_str().eq_ignore_ascii_case(domain)))
}
