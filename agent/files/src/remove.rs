//! Removing what the source does not have: a name, with all below it if it is a directory. It stays
//! inside the tree and crosses no mount. It must not know why something is removed.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use ferry_proto::Fault;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::confine::{Node, Tree};
use crate::halt::Halt;
use crate::locks::{self, Lifting, Locks};
use crate::metadata::{Kind, Stat};
use crate::names::Names;
use crate::options::IdMap;
use crate::report::show;

/// How often a directory that fills again while it is emptied is tried again.
const ROUNDS: u32 = 3;

/// What removing came to.
#[derive(Debug, Default)]
pub struct Removal {
    /// Names removed.
    pub removed: u64,
    /// Where it was prevented, and by what.
    pub prevented: Vec<(Vec<u8>, Errno)>,
}

/// A directory that is being emptied.
struct Emptying {
    node: Arc<Node>,
    names: Names,
    next: usize,
    rounds: u32,
}

/// Removes everything below `root`, whatever flags keep what belongs to `ids`. It blocks: call it where
/// blocking is allowed.
///
/// # Errors
/// The root cannot be opened, or something cannot be removed.
pub fn empty(root: &Path, ids: &IdMap) -> Result<(), Fault> {
    let tree = Tree::open_root(root)?;
    let failed = |what: &str, errno: Errno| {
        Fault::io(format!("{what} below {} cannot be removed", root.display()), &errno.into())
            .remedy("look what keeps it there (lsattr, findmnt), then try again")
    };
    let names = Stat::of_fd(tree.root_fd()).and_then(|found| {
        if !found.locks.is_none() && ids.has_uid(found.uid) {
            locks::put(tree.root_fd(), Locks::NONE)?;
        }
        Names::read(tree.root_fd())
    });
    let (names, halt) = (names.map_err(|errno| failed("what is", errno))?, Halt::default());
    let removing = Removing { tree: &tree, ids, halt: &halt, lifting: &Lifting::default() };
    for name in names.iter() {
        let removal = removing.remove(&Node::root(), name)?;
        if let Some((path, errno)) = removal.prevented.first() {
            return Err(failed(&show(path), *errno));
        }
    }
    Ok(())
}

/// What it takes to remove something.
#[derive(Debug, Clone, Copy)]
pub struct Removing<'a> {
    /// Where.
    pub tree: &'a Tree,
    /// What belongs to these goes although its flags keep it.
    pub ids: &'a IdMap,
    /// How it is stopped.
    pub halt: &'a Halt,
    /// Whose flags are lifted: what is removed may have other names, which keep them.
    pub lifting: &'a Lifting,
}

impl Removing<'_> {
    /// Removes `name` in the directory `parent`.
    ///
    /// # Errors
    /// The pass was stopped.
    pub fn remove(self, parent: &Arc<Node>, name: &[u8]) -> Result<Removal, Fault> {
        let mut removal = Removal::default();
        match self.unlink(parent, name, AtFlags::empty()) {
            Ok(()) => {
                removal.removed = 1;
                return Ok(removal);
            }
            Err(Errno::NOENT) => return Ok(removal),
            Err(Errno::ISDIR) => {}
            Err(errno) => {
                // Some file systems answer EPERM for a directory; then it can be emptied.
                if errno != Errno::PERM || !self.is_directory(parent, name) {
                    removal.prevented.push((parent.path_of(name), errno));
                    return Ok(removal);
                }
            }
        }
        let mut stack = Vec::new();
        self.push(parent.child(name), &mut stack, &mut removal);
        while let Some(at) = stack.last_mut() {
            self.halt.check()?;
            let Some(next) = at.names.get(at.next) else {
                if let Some(done) = stack.pop() {
                    self.close(done, &mut stack, &mut removal);
                }
                continue;
            };
            at.next += 1;
            match self.unlink(&at.node, next, AtFlags::empty()) {
                Ok(()) => removal.removed += 1,
                Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) => {
                    let child = at.node.child(next);
                    self.push(child, &mut stack, &mut removal);
                }
                Err(errno) => removal.prevented.push((at.node.path_of(next), errno)),
            }
        }
        Ok(removal)
    }

    fn is_directory(self, parent: &Node, name: &[u8]) -> bool {
        self.tree
            .open(parent)
            .and_then(|fd| Stat::of(&fd, name))
            .is_ok_and(|stat| stat.kind == Kind::Directory)
    }

    fn unlink(self, node: &Node, name: &[u8], flags: AtFlags) -> Result<(), Errno> {
        let fd = self.tree.open(node)?;
        match rustix::fs::unlinkat(&fd, name, flags) {
            Err(Errno::PERM) => {
                let lifted = self.lifting.lift(fd.as_fd(), name, |found| self.is_ours(found));
                match lifted.unwrap_or_default() {
                    Some(_lifted) => rustix::fs::unlinkat(&fd, name, flags),
                    None => Err(Errno::PERM),
                }
            }
            other => other,
        }
    }

    fn is_ours(self, found: &Stat) -> bool {
        self.ids.has_uid(found.uid)
    }

    fn push(self, node: Arc<Node>, stack: &mut Vec<Emptying>, removal: &mut Removal) {
        if let Some((parent, name)) = node.place()
            && let Ok(parent) = self.tree.open(parent)
        {
            // Nothing could be taken out of it.
            let _ = locks::take_off(parent.as_fd(), name, |found| self.is_ours(found));
        }
        match self.tree.open(&node).and_then(Names::read) {
            Ok(names) => stack.push(Emptying { node, names, next: 0, rounds: 0 }),
            Err(Errno::NOENT) => {}
            Err(errno) => removal.prevented.push((node.path(), errno)),
        }
    }

    /// Removes a directory that was emptied.
    fn close(self, done: Emptying, stack: &mut Vec<Emptying>, removal: &mut Removal) {
        let Some((parent, name)) = done.node.place() else {
            return;
        };
        match self.unlink(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => removal.removed += 1,
            Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                // Either something below was prevented, and was said, or somebody fills it.
                let again = removal.prevented.is_empty() && done.rounds < ROUNDS;
                let names = again.then(|| self.tree.open(&done.node).and_then(Names::read));
                if let Some(Ok(names)) = names {
                    stack.push(Emptying { names, next: 0, rounds: done.rounds + 1, ..done });
                    return;
                }
                if removal.prevented.is_empty() {
                    removal.prevented.push((done.node.path(), Errno::NOTEMPTY));
                }
            }
            Err(errno) => removal.prevented.push((done.node.path(), errno)),
        }
    }
}
