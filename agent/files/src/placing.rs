//! Names at the target: a finished inode takes its place, what is in the way goes, and further names of an
//! inode follow its first. It must not know how it was decided that a name belongs there.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferry_proto::Fault;
use rustix::io::Errno;

use crate::apply::{Applier, Done, Waiting};
use crate::confine::Node;
use crate::links::Master;
use crate::locks::{self, Locks};
use crate::make;
use crate::metadata::{Identity, Stat};
use crate::mirror::Here;
use crate::remove::Removing;
use crate::report::NoteKind;

impl Applier {
    /// Renames `temporary` to `name`, over whatever stands there. Answers whether it worked; if
    /// not, the temporary name is gone and the refusal is written down.
    pub(crate) fn put(&self, here: Here<'_>, temporary: &[u8], name: &[u8]) -> Result<bool, Fault> {
        let fd = here.fd.as_fd();
        let mut outcome = rustix::fs::renameat(fd, temporary, fd, name);
        // What stands there may have other names, which keep its flags.
        let mut lifted = None;
        if outcome == Err(Errno::PERM) {
            let is_ours = |found: &Stat| self.options.ids.has_uid(found.uid);
            lifted = self.lifting.lift(fd, name, is_ours).unwrap_or_default();
        }
        if lifted.is_some() {
            outcome = rustix::fs::renameat(fd, temporary, fd, name);
        }
        let in_the_way = matches!(outcome, Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST));
        if in_the_way && self.clear(here, name)? {
            outcome = rustix::fs::renameat(fd, temporary, fd, name);
        }
        match outcome {
            Ok(()) => Ok(true),
            Err(errno) => {
                make::discard(fd, temporary);
                if !(in_the_way && errno == Errno::ISDIR) {
                    self.trouble(&here.node.path_of(name), "put in its place", errno)?;
                }
                Ok(false)
            }
        }
    }

    /// Removes what stands in the way of another kind of inode. Answers whether it is gone.
    pub(crate) fn clear(&self, here: Here<'_>, name: &[u8]) -> Result<bool, Fault> {
        if !self.options.delete {
            let reason = "something of another kind has its name, and nothing is to be deleted";
            self.tally.refuse(&here.node.path_of(name), reason);
            return Ok(false);
        }
        self.remove(here.node, name)
    }

    /// Takes the flags off `name` in `dir` that keep it from being changed, if it is the account's. Answers
    /// whether it had any.
    pub(crate) fn unlock(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
        locks::take_off(dir, name, |found| self.options.ids.has_uid(found.uid))
    }

    /// Answers whether all of it is gone.
    pub(crate) fn remove(&self, node: &Arc<Node>, name: &[u8]) -> Result<bool, Fault> {
        let Self { tree, halt, lifting, .. } = self;
        let removal =
            Removing { tree, ids: &self.options.ids, halt, lifting }.remove(node, name)?;
        self.tally.deleted.fetch_add(removal.removed, Ordering::Relaxed);
        let all = removal.prevented.is_empty();
        for (path, errno) in removal.prevented {
            self.trouble(&path, "removed", errno)?;
        }
        Ok(all)
    }

    /// The first name of an inode stands, which one with which flags, or failed; those that waited for it follow.
    pub(crate) fn first_done(
        &self,
        group: Option<u64>,
        node: &Arc<Node>,
        name: &[u8],
        stands: Option<(Identity, Locks)>,
    ) -> Result<(), Fault> {
        let Some(group) = group else { return Ok(()) };
        let Some((identity, locks)) = stands else {
            let waited = self.links().failed(group);
            for Waiting { dir, name } in waited {
                let path = dir.node.path_of(&name);
                let text = "its other name could not be copied";
                self.tally.disturbed(NoteKind::Changed, &path, text);
                self.one_done(&dir)?;
            }
            return Ok(());
        };
        let master = Master { node: Arc::clone(node), name: name.into(), identity, locks };
        let waited = self.links().stands(group, master.clone());
        for Waiting { dir, name } in waited {
            self.another_name(&dir.node, &name, &master)?;
            self.one_done(&dir)?;
        }
        Ok(())
    }

    /// Makes `name` in `node` another name of `master`.
    pub(crate) fn another_name(
        &self,
        node: &Arc<Node>,
        name: &[u8],
        master: &Master,
    ) -> Result<(), Fault> {
        // Until the name stands.
        let mut lifted = None;
        let linked = self.tree.open(node).and_then(|fd| {
            match Stat::of(&fd, name) {
                Ok(found) if found.identity() == master.identity => return Ok((fd, None)),
                Ok(_) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
            let from = self.tree.open(&master.node)?;
            if !master.locks.is_none() {
                let is_it = |found: &Stat| found.identity() == master.identity;
                lifted = self.lifting.lift(from.as_fd(), &master.name, is_it)?;
            }
            let temporary = make::link(from.as_fd(), &master.name, fd.as_fd())?;
            if Stat::of(&fd, &temporary)?.identity() != master.identity {
                make::discard(fd.as_fd(), &temporary);
                return Err(Errno::STALE);
            }
            Ok((fd, Some(temporary)))
        });
        match linked {
            Ok((_, None)) => self.count(&Done::Kept),
            Ok((fd, Some(temporary))) => {
                if self.put(Here { node, fd: &fd }, &temporary, name)? {
                    // Renaming one name of an inode over another leaves both.
                    make::discard(fd.as_fd(), &temporary);
                    self.count(&Done::Created);
                }
            }
            Err(errno) => self.trouble(&node.path_of(name), "linked", errno)?,
        }
        drop(lifted);
        Ok(())
    }
}
