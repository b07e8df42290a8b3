//! Directories at the target that have another place than the pass before gave them. All are taken out of
//! their old places before anything else is done, the deepest first, so that they can change places with
//! each other or lie one in another; each is put in its new place when its entry is met. It must not know why
//! they were moved.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ferry_proto::Fault;
use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::apply::{Applier, DirState};
use crate::codec::Malformed;
use crate::confine::{Node, Tree, has_vanished};
use crate::halt::protocol_fault;
use crate::metadata::{Kind, Stat};
use crate::mirror::Here;
use crate::names;
use crate::tally::one;

/// See the module.
#[derive(Debug, Default)]
pub struct Moving {
    /// Where they were, by their numbers.
    old: Mutex<Vec<Vec<Vec<u8>>>>,
    /// The temporary name of each in the root, until it has its place; none if it was not there.
    taken: Mutex<Vec<Option<Vec<u8>>>>,
    /// The root, which is given its own metadata when none is left in it.
    root: OnceLock<Arc<DirState>>,
}

impl Moving {
    /// Another one.
    pub fn add(&self, path: Vec<Vec<u8>>) {
        lock(&self.old).push(path);
    }

    /// The tree's root, of a pass that may move.
    pub fn set_root(&self, root: Arc<DirState>) {
        // There is one.
        let _ = self.root.set(root);
    }
}

impl Applier {
    /// Takes all out of their old places.
    pub(crate) fn depart_all(&self) -> Result<(), Fault> {
        let paths = std::mem::take(&mut *lock(&self.moving.old));
        if let Some(root) = self.moving.root.get() {
            root.expect();
        }
        let mut order: Vec<usize> = (0..paths.len()).collect();
        order.sort_by_key(|number| std::cmp::Reverse(paths[*number].len()));
        let mut taken = vec![None; paths.len()];
        for number in order {
            taken[number] = match take(&self.tree, &paths[number]) {
                Ok(name) => Some(name),
                // One that its flags keep where it is comes with the pass that looks at everything.
                Err(errno) if has_vanished(errno) || errno == Errno::PERM => None,
                Err(errno) => {
                    self.trouble(&paths[number].join(&b'/'), "moved", errno)?;
                    None
                }
            };
        }
        *lock(&self.moving.taken) = taken;
        Ok(())
    }

    /// Puts one in its new place. None: something that stays there is in its way, which was written down.
    pub(crate) fn arrive(
        &self,
        number: u32,
        here: Here<'_>,
        name: &[u8],
    ) -> Result<Option<Stat>, Fault> {
        let path = here.node.path_of(name);
        let taken = {
            let mut taken = lock(&self.moving.taken);
            let Some(taken) = taken.get_mut(number as usize) else {
                return Err(protocol_fault(&Malformed("a move that was not told")));
            };
            taken.take()
        };
        let Some(temporary) = taken else {
            return Err(Fault::transient(format!(
                "{}: the target does not have what the pass before left where this was",
                crate::report::show(&path)
            ))
            .remedy("try again: the next pass looks at everything"));
        };
        let root = self.tree.root_fd();
        let mut outcome = rename(root, &temporary, here.fd, name);
        if outcome == Err(Errno::EXIST) && self.clear(here, name)? {
            outcome = rename(root, &temporary, here.fd, name);
        }
        match outcome.and_then(|()| Stat::of(here.fd, name)) {
            Ok(stat) if stat.kind == Kind::Directory => {
                one(&self.tally.moved);
                Ok(Some(stat))
            }
            outcome => {
                let errno = outcome.err().unwrap_or(Errno::NOTDIR);
                self.trouble(&path, "put in its place", errno)?;
                Ok(None)
            }
        }
    }

    /// Those that found no place are gone at the source.
    pub(crate) fn end_moves(&self) -> Result<(), Fault> {
        let left: Vec<_> = lock(&self.moving.taken).drain(..).flatten().collect();
        for temporary in left {
            self.remove(&Node::root(), &temporary)?;
        }
        self.moving.root.get().map_or(Ok(()), |root| self.one_done(root))
    }
}

/// Takes the directory at `path` out of its place. Answers its temporary name in the root.
fn take(tree: &Tree, path: &[Vec<u8>]) -> Result<Vec<u8>, Errno> {
    let (name, above) = path.split_last().ok_or(Errno::NOENT)?;
    let parent: Arc<Node> = above.iter().fold(Node::root(), |node, name| node.child(name));
    let fd = tree.open(&parent)?;
    if Stat::of(&fd, name)?.kind != Kind::Directory {
        return Err(Errno::NOTDIR);
    }
    let temporary = names::temporary();
    rename(&fd, name, tree.root_fd(), &temporary)?;
    Ok(temporary)
}

/// Renames to a name that is free.
fn rename(from: impl AsFd, name: &[u8], to: impl AsFd, new: &[u8]) -> Result<(), Errno> {
    rustix::fs::renameat_with(from, name, to, new, RenameFlags::NOREPLACE)
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panics stops the whole pass: nobody goes on with what it left.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
