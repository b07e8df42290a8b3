//! Journals pass from a process of the agent that stops in order to the next one: what is noted as data, and the
//! queues that the kernel goes on filling meanwhile. What has not been watched all the time is not believed.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferry_files::journal::{Backend, Changes, Handed, Watch, Whose, handle_of};
use ferry_proto::Fault;
use ferry_proto::ids::AccountName;

use super::kept::{Bytes, KeptJournal, KeptWatch};
use super::{Journal, Journals, Mount, OfMove, State, lock, mount, opened};

/// Most queues: FileDescriptorStoreMax= leaves room for one more.
const MAX_QUEUES: usize = 63;
/// Bytes of changes that are kept; journals beyond begin anew. Whoever stops or starts has two seconds, and no gigabyte.
const MAX_BYTES: usize = 32 << 20;

impl Journals {
    /// Ends all journals. Answers what the next process needs to go on, and the queues by their names.
    pub fn hand_over(&self) -> (Vec<KeptWatch>, Vec<(String, OwnedFd)>) {
        let all = std::mem::take(&mut *lock(&self.0));
        let (mut kept, mut queues, mut room) = (Vec::new(), Vec::new(), MAX_BYTES);
        for ((mount, whose), watch) in &all.watches {
            let Some(watch) = watch.upgrade().filter(|_| queues.len() < MAX_QUEUES) else {
                continue;
            };
            // First: what happens from now on is in it, and all until now is taken afterwards.
            let handed = match watch.hand_over() {
                Ok(handed) => handed,
                Err(fault) => {
                    tracing::info!("change journals begin anew after the restart: {fault}");
                    continue;
                }
            };
            let ours = all.journals.iter();
            let journals = ours.filter_map(|(account, of)| of.end(account, &watch, &mut room));
            let (journals, queue) =
                (journals.collect(), format!("journal-{:016x}", rand::random::<u64>()));
            kept.push(KeptWatch {
                queue: queue.clone(),
                backend: handed.backend.name().to_owned(),
                device: device(*mount),
                others: *whose == Whose::Others,
                journals,
            });
            queues.push((queue, handed.queue));
        }
        (kept, queues)
    }

    /// Goes on with the journals of the process before, of which these queues were kept.
    pub fn take_over(&self, kept: Vec<KeptWatch>, queues: &mut HashMap<String, OwnedFd>) {
        for watch in kept {
            let of: Vec<String> = watch.journals.iter().map(|j| j.account.to_string()).collect();
            let of = of.join(", ");
            match self.take_one_over(watch, queues) {
                Ok(()) => tracing::info!("the change journals go on: {of}"),
                Err(fault) => tracing::info!("the change journals begin anew: {of}: {fault}"),
            }
        }
    }

    fn take_one_over(
        &self,
        kept: KeptWatch,
        queues: &mut HashMap<String, OwnedFd>,
    ) -> Result<(), Fault> {
        let lost = || Fault::precondition("the service manager has not kept the kernel's queue");
        let queue = queues.remove(&kept.queue).ok_or_else(lost)?;
        let unknown = || Fault::precondition(format!("{:?} is not known here", kept.backend));
        let backend = Backend::named(&kept.backend).ok_or_else(unknown)?;
        let whose = kept.whose();
        let handed = Handed { queue, backend };
        let mut through: Option<(Mount, File)> = None;
        let (mut trees, mut journals) = (Vec::new(), Vec::new());
        for journal in kept.journals {
            let opened = opened(&journal.root)?;
            let Some((changes, state)) = read(&journal, &opened) else { continue };
            let Ok(mount) = mount(&opened) else { continue };
            // A service that is started anew has mounts of its own: the same ones by other numbers.
            if device(mount) == kept.device && through.as_ref().is_none_or(|(at, _)| *at == mount) {
                through.get_or_insert((mount, opened));
                trees.push((journal.root.clone(), changes));
                journals.push((journal, state));
            }
        }
        let moved = || Fault::precondition("other directories are there now");
        let (at, root) = through.ok_or_else(moved)?;
        let (watch, watched) = Watch::take_over(root.into(), handed, whose, trees)?;
        let mut all = lock(&self.0);
        all.watches.insert((at, whose), Arc::downgrade(&watch));
        for ((kept, state), tree) in journals.into_iter().zip(watched) {
            let journal = Some(Arc::new(Journal::with(tree, &kept.root, state)));
            // Whoever has not waited for us has begun with one of his own.
            all.journals.entry(kept.account).or_insert(OfMove { of: kept.job, whose, journal });
        }
        Ok(())
    }
}

impl OfMove {
    /// Ends the journal, if it is told by `watch` and there is room.
    fn end(
        &self,
        account: &AccountName,
        watch: &Arc<Watch>,
        room: &mut usize,
    ) -> Option<KeptJournal> {
        let journal = self.journal.as_ref().filter(|journal| journal.tree.is_of(watch))?;
        let mut state = lock(&journal.state);
        let changes = Bytes(journal.tree.take().save());
        let State { follows, compared } = std::mem::take(&mut *state);
        let compared = compared.map(|compared| Bytes(compared.save()));
        let length = changes.0.len() + compared.as_ref().map_or(0, |compared| compared.0.len());
        if !journal.is_there() {
            return None;
        }
        let handle = handle_of(opened(&journal.root).ok()?).ok()?;
        *room = room.checked_sub(length)?;
        let (account, root) = (account.clone(), journal.root.clone());
        let handle = Bytes(handle.into());
        Some(KeptJournal { account, job: self.of, root, handle, follows, changes, compared })
    }
}

fn device((_, major, minor): Mount) -> (u32, u32) {
    (major, minor)
}

/// What is known of a journal, if the directory at its root is the same.
fn read(kept: &KeptJournal, root: &File) -> Option<(Changes, State)> {
    if *handle_of(root).ok()? != *kept.handle.0 {
        return None;
    }
    let compared = match &kept.compared {
        Some(compared) => Some(Changes::saved(&compared.0)?),
        None => None,
    };
    Some((Changes::saved(&kept.changes.0)?, State { follows: kept.follows, compared }))
}
