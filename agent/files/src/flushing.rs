//! What a pass has written goes to the disk while the pass goes on: else the kernel keeps it until the end, which
//! then waits for all of it. It must not know what is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use ferry_proto::Fault;

use crate::confine::Tree;
use crate::halt::Halt;

/// As much as this is flushed at a time: less, and the file system's own journal is written too often.
const AHEAD: u64 = 64 << 20;

/// Flushes the file system of a tree, ahead and in the end.
#[derive(Debug)]
pub struct Flushing {
    tree: Arc<Tree>,
    halt: Halt,
    written: AtomicU64,
    wake: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Flushing {
    /// Of the file system that has `tree`. What it fails of goes to `halt`.
    pub fn new(tree: Arc<Tree>, halt: Halt) -> Self {
        let (wake, woken) = sync_channel(1);
        let (of, stop) = (Arc::clone(&tree), halt.clone());
        let thread = std::thread::spawn(move || stop.watch(|| ahead(&of, &woken, &stop)));
        Self { tree, halt, written: AtomicU64::new(0), wake, thread }
    }

    /// So many bytes were written.
    pub fn written(&self, bytes: usize) {
        let before = self.written.fetch_add(bytes as u64, Ordering::Relaxed);
        if is_due(before, bytes as u64) {
            // Whoever is flushing already is not asked twice.
            let _ = self.wake.try_send(());
        }
    }

    /// Flushes all.
    ///
    /// # Errors
    /// The disk failed, now or before: what was written may not last.
    pub fn end(self) -> Result<(), Fault> {
        drop(self.wake);
        // Its fault, or its panic, has stopped the pass.
        let _ = self.thread.join();
        self.halt.check()?;
        flush(&self.tree)
    }
}

/// Whether another [`AHEAD`] is full when so much comes to what was written before.
fn is_due(before: u64, bytes: u64) -> bool {
    before / AHEAD != (before + bytes) / AHEAD
}

fn ahead(tree: &Tree, woken: &Receiver<()>, halt: &Halt) -> Result<(), Fault> {
    while woken.recv().is_ok() && !halt.is_stopped() {
        flush(tree)?;
    }
    Ok(())
}

fn flush(tree: &Tree) -> Result<(), Fault> {
    rustix::fs::syncfs(tree.root_fd()).map_err(|errno| {
        Fault::io("the target's file system cannot be flushed", &errno.into())
            .remedy("check the target's disk; what was copied may not last")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flushing() -> (tempfile::TempDir, Flushing, Halt) {
        let directory = tempfile::tempdir().unwrap();
        let tree = Arc::new(Tree::open_root(directory.path()).unwrap());
        let halt = Halt::default();
        (directory, Flushing::new(tree, halt.clone()), halt)
    }

    #[test]
    fn what_is_much_is_flushed_ahead_and_little_only_in_the_end() {
        assert!(!is_due(0, 1000) && !is_due(AHEAD, AHEAD - 1));
        assert!(is_due(AHEAD - 1, 1) && is_due(0, 2 * AHEAD));
        let (_directory, flushing, _) = flushing();
        (0..5).for_each(|_| flushing.written(AHEAD as usize / 2));
        flushing.end().unwrap();
    }

    #[test]
    fn a_disk_that_failed_ahead_is_no_success_in_the_end() {
        let (_directory, flushing, halt) = flushing();
        flushing.written(AHEAD as usize);
        halt.stop(Fault::permanent("the disk failed"));
        assert_eq!(flushing.end().unwrap_err().message, "the disk failed");
    }
}
