//! Removing what the source does not have: a name, with all below it if it is a directory. It stays
//! inside the tree and crosses no mount. It must not know why something is removed.

use std::sync::Arc;

use ferry_proto::Fault;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::confine::{Node, Tree};
use crate::halt::Halt;
use crate::names::Names;

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

/// Removes `name` in the directory `parent`.
///
/// # Errors
/// The pass was stopped.
pub fn remove(tree: &Tree, parent: &Arc<Node>, name: &[u8], halt: &Halt) -> Result<Removal, Fault> {
    let mut removal = Removal::default();
    match unlink(tree, parent, name, AtFlags::empty()) {
        Ok(()) => {
            removal.removed = 1;
            return Ok(removal);
        }
        Err(Errno::NOENT) => return Ok(removal),
        Err(Errno::ISDIR) => {}
        Err(errno) => {
            // Some file systems answer EPERM for a directory; then it can be emptied.
            if errno != Errno::PERM || !is_directory(tree, parent, name) {
                removal.prevented.push((parent.path_of(name), errno));
                return Ok(removal);
            }
        }
    }
    let mut stack = Vec::new();
    push(tree, parent.child(name), &mut stack, &mut removal);
    while let Some(at) = stack.last_mut() {
        halt.check()?;
        let Some(next) = at.names.get(at.next) else {
            if let Some(done) = stack.pop() {
                close(tree, done, &mut stack, &mut removal);
            }
            continue;
        };
        at.next += 1;
        match unlink(tree, &at.node, next, AtFlags::empty()) {
            Ok(()) => removal.removed += 1,
            Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => {
                let child = at.node.child(next);
                push(tree, child, &mut stack, &mut removal);
            }
            Err(errno) => removal.prevented.push((at.node.path_of(next), errno)),
        }
    }
    Ok(removal)
}

fn is_directory(tree: &Tree, parent: &Node, name: &[u8]) -> bool {
    tree.open(parent)
        .and_then(|fd| crate::metadata::Stat::of(&fd, name))
        .is_ok_and(|stat| stat.kind == crate::metadata::Kind::Directory)
}

fn unlink(tree: &Tree, node: &Node, name: &[u8], flags: AtFlags) -> Result<(), Errno> {
    let fd = tree.open(node)?;
    rustix::fs::unlinkat(&fd, name, flags)
}

fn push(tree: &Tree, node: Arc<Node>, stack: &mut Vec<Emptying>, removal: &mut Removal) {
    match tree.open(&node).and_then(Names::read) {
        Ok(names) => stack.push(Emptying { node, names, next: 0, rounds: 0 }),
        Err(Errno::NOENT) => {}
        Err(errno) => removal.prevented.push((node.path(), errno)),
    }
}

/// Removes a directory that was emptied.
fn close(tree: &Tree, done: Emptying, stack: &mut Vec<Emptying>, removal: &mut Removal) {
    let Some((parent, name)) = done.node.place() else {
        return;
    };
    match unlink(tree, parent, name, AtFlags::REMOVEDIR) {
        Ok(()) => removal.removed += 1,
        Err(Errno::NOENT) => {}
        Err(Errno::NOTEMPTY | Errno::EXIST) => {
            // Either something below was prevented, and was said, or somebody fills it.
            let again = removal.prevented.is_empty() && done.rounds < ROUNDS;
            let names = again.then(|| tree.open(&done.node).and_then(Names::read));
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
