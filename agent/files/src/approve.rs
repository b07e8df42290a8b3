//! Looking at what is to be approved: what is at a path, and whether it can be approved at all. It reads the
//! contents of those files alone. It must not know who approves, or why.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use ferry_proto::approval::{MAX_CONTENT, Sight};
use ferry_proto::{Fault, FaultClass, shown};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use crate::approvals::seen;
use crate::attributes::{self, Unread};
use crate::confine::{self, MAX_DEPTH, Node, Tree};
use crate::digest::{self, Undigested};
use crate::entries::{Entry, What, Withheld};
use crate::guard;
use crate::halt::Halt;
use crate::metadata::{Handle, Kind, Stat};
use crate::names;
use crate::options::IdMap;
use crate::walk::described;

/// What is at each of these paths below `root`, as they are shown, where a target that maps the source's ids by
/// `ids` would refuse it. It blocks: call it where blocking is allowed.
///
/// # Errors
/// Precondition if one of them is no path, is not there, is not refused, or cannot be approved, with each and
/// why; `cancel` was cancelled.
pub fn approve(
    root: &Path,
    paths: &[String],
    ids: &IdMap,
    cancel: &CancellationToken,
) -> Result<Vec<Sight>, Fault> {
    let tree = Tree::open_root(root)?;
    let (mut sights, mut problems) = (Vec::new(), Vec::new());
    // One path may be typed in several ways.
    let mut typed = BTreeSet::new();
    for path in paths.iter().filter(|path| typed.insert(shown::read(path).ok_or(*path))) {
        unless_cancelled(cancel)?;
        match look(&tree, path, ids) {
            Ok(sight) => sights.push(sight),
            Err(problem) => problems.push(format!("{path}: {problem}")),
        }
    }
    if problems.is_empty() {
        return Ok(sights);
    }
    let mut fault = Fault::precondition(format!("{} paths cannot be approved", problems.len()))
        .remedy("give each as the plan shows it, below the home, with its escapes");
    fault.causes = problems;
    Err(fault)
}

/// Those of the `sights` that are still what was seen. It blocks: call it where blocking is allowed.
///
/// # Errors
/// The root cannot be opened, or `cancel` was cancelled.
pub fn as_approved<'a>(
    root: &Path,
    sights: impl IntoIterator<Item = &'a Sight>,
    ids: &IdMap,
    cancel: &CancellationToken,
) -> Result<Vec<Sight>, Fault> {
    let tree = Tree::open_root(root)?;
    let mut same = Vec::new();
    for sight in sights {
        unless_cancelled(cancel)?;
        same.extend(look(&tree, &sight.path, ids).ok().filter(|now| now == sight));
    }
    Ok(same)
}

fn unless_cancelled(cancel: &CancellationToken) -> Result<(), Fault> {
    if cancel.is_cancelled() {
        return Err(Fault::new(FaultClass::Cancelled, "stopped on request"));
    }
    Ok(())
}

/// What is at a path, or why it cannot be approved.
fn look(tree: &Tree, path: &str, ids: &IdMap) -> Result<Sight, String> {
    let bytes = shown::read(path).ok_or("it is no path as one is shown")?;
    let (entry, digest) = match bytes.is_empty() {
        true => (root(tree)?, String::new()),
        false => below(tree, &bytes)?,
    };
    if guard::admit(&entry, None, ids).is_ok() {
        return Err("it is not refused: it needs no approval".to_owned());
    }
    let seen = seen(&entry, &digest).ok_or("it cannot be approved")?;
    guard::admit(&entry, Some(&seen), ids)?;
    Ok(Sight { path: shown::path(&bytes), seen })
}

fn root(tree: &Tree) -> Result<Entry, String> {
    let root = tree.root_fd();
    let stat = Stat::of_fd(root).map_err(unreadable)?;
    let attributes = attributes::read_all(Handle::Open(root)).map_err(unread)?;
    Ok(described(&stat, What::Directory, attributes))
}

/// What is at a path below the root, with the digest of its content if it is a file.
fn below(tree: &Tree, path: &[u8]) -> Result<(Entry, String), String> {
    let components: Vec<_> = path.split(|byte| *byte == b'/').collect();
    let Some((name, parents)) = components.split_last() else {
        return Err("it is no path below the home".to_owned());
    };
    if !components.iter().all(|name| names::is_valid(name)) {
        return Err("it is no path below the home".to_owned());
    }
    if components.iter().any(|name| names::is_reserved(name)) {
        return Err("Ferry keeps such names for temporary files".to_owned());
    }
    if components.len() >= MAX_DEPTH as usize {
        return Err(guard::withheld(Withheld::TooDeep));
    }
    let node = parents.iter().fold(Node::root(), |node, name| node.child(name));
    let dir = tree.open(&node).map_err(unreadable)?;
    let stat = Stat::of(&dir, name).map_err(unreadable)?;
    if stat.is_mount {
        return Err(guard::withheld(Withheld::Mount));
    }
    if !stat.locks.is_none() {
        return Err(format!("it is {}, which would keep it from being removed", stat.locks.name()));
    }
    if stat.nlink > 1 && stat.kind != Kind::Directory {
        return Err(format!("it has {} names", stat.nlink));
    }
    let what = what(&dir, name, &stat)?;
    let attributes = match what {
        What::Symlink(_) => Vec::new(),
        _ => attributes::read_at(dir.as_fd(), name, &stat).map_err(unread)?,
    };
    let digest = match what {
        What::File(_) => content(&dir, name, &stat)?,
        _ => String::new(),
    };
    Ok((described(&stat, what, attributes), digest))
}

fn what(dir: &Arc<OwnedFd>, name: &[u8], stat: &Stat) -> Result<What, String> {
    match stat.kind {
        Kind::Socket => Err("it is a socket, which is never copied".to_owned()),
        Kind::File if stat.size > MAX_CONTENT => {
            Err(format!("it is larger than {} MiB", MAX_CONTENT >> 20))
        }
        Kind::File => Ok(What::File(stat.size)),
        Kind::Directory => Ok(What::Directory),
        Kind::Fifo => Ok(What::Fifo),
        Kind::Device(device) => Ok(What::Device(device)),
        Kind::Symlink => {
            let to = rustix::fs::readlinkat(dir, name, Vec::new()).map_err(unreadable)?;
            Ok(What::Symlink(to.into_bytes()))
        }
    }
}

/// The digest of the content of the very file that was looked at, if it held still.
fn content(dir: &Arc<OwnedFd>, name: &[u8], stat: &Stat) -> Result<String, String> {
    let fd = confine::open_file(dir, name).map_err(unreadable)?;
    let is_it = |now: Stat| now.identity() == stat.identity() && now.ctime == stat.ctime;
    let same = || Stat::of_fd(&fd).map_err(unreadable).map(is_it);
    let changed = || "it changes while it is looked at".to_owned();
    if !same()? {
        return Err(changed());
    }
    match digest::in_hex(&fd, &Halt::default(), |_| ()) {
        Ok(digest) if same()? => Ok(digest),
        Ok(_) | Err(Undigested::Stopped) => Err(changed()),
        Err(Undigested::Failed(errno)) => Err(unreadable(errno)),
    }
}

fn unread(why: Unread) -> String {
    match why {
        Unread::TooLarge => guard::withheld(Withheld::Attributes),
        Unread::Failed(errno) => unreadable(errno),
    }
}

fn unreadable(errno: Errno) -> String {
    match errno {
        Errno::NOENT | Errno::NOTDIR => "it is not there".to_owned(),
        Errno::LOOP => "a symlink is on the way to it".to_owned(),
        Errno::XDEV => "something is mounted on the way to it, which is not crossed".to_owned(),
        other => guard::withheld(Withheld::Unreadable(other.raw_os_error().unsigned_abs())),
    }
}
