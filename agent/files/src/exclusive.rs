//! One pass at a time changes a tree. A caller that drops a pass cannot wait for its thread, so the next
//! pass on the same tree does. Within this process only: no other process changes trees for us, and a
//! lock in the file system could be held by the account. It must not know what the tree is changed for.

use std::collections::HashSet;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferry_proto::Fault;

use crate::halt::Halt;
use crate::metadata::Identity;

/// How long a pass waits for the one before to end. That one was stopped and ends after the entry that it
/// is at.
const PATIENCE: Duration = Duration::from_secs(30);

/// A waiting pass looks so often whether it was stopped itself.
const LOOK: Duration = Duration::from_millis(100);

static CLAIMED: LazyLock<Mutex<HashSet<Identity>>> = LazyLock::new(Mutex::default);
static FREED: Condvar = Condvar::new();

fn claimed() -> MutexGuard<'static, HashSet<Identity>> {
    CLAIMED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to change the tree with this root, until dropped.
#[derive(Debug)]
pub struct Claim(Identity);

impl Claim {
    /// Claims the tree; waits if another pass has it.
    ///
    /// # Errors
    /// The other pass does not end, or this one was stopped.
    pub fn wait(root: Identity, halt: &Halt) -> Result<Self, Fault> {
        let deadline = Instant::now() + PATIENCE;
        let mut all = claimed();
        while !all.insert(root) {
            halt.check()?;
            if Instant::now() >= deadline {
                return Err(Fault::transient("another pass is at work on the target's tree")
                    .remedy("wait until it has ended, then run this one again"));
            }
            all = FREED.wait_timeout(all, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(Self(root))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        claimed().remove(&self.0);
        FREED.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_waits_for_the_first_and_others_do_not() {
        let tree = |ino| Identity { dev: (0, 0), ino };
        let halt = Halt::default();
        let first = Claim::wait(tree(1), &halt).expect("free");
        let _other = Claim::wait(tree(2), &halt).expect("another tree");
        let second = std::thread::spawn(move || {
            Claim::wait(tree(1), &Halt::default()).map(|_claim| Instant::now())
        });
        let stopped = Halt::default();
        stopped.stop(Fault::transient("enough"));
        assert!(Claim::wait(tree(1), &stopped).is_err());
        let freed = Instant::now();
        drop(first);
        let got = second.join().expect("a thread").expect("freed");
        assert!(got >= freed);
    }
}
