//! How a name becomes an entry: what it is, whether it is given out, its metadata, and which group of names
//! it is in. It must not know what becomes of the entry.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::{Walk, Walker, lock};
use crate::attributes::{self, Attribute, Unread};
use crate::confine::{MAX_DEPTH, Node};
use crate::entries::{Entry, Link, What, Withheld};
use crate::locks::Locks;
use crate::metadata::{Kind, Stat};
use crate::names;
use crate::projects;
use crate::protocol::Purpose;
use crate::report::{Note, NoteKind, show};

/// How often an inode that changes its place while it is described is looked at again.
const LOOKS: u32 = 3;

/// What a look at a name gave.
pub(super) enum Look {
    Entry(Box<(Entry, Option<Stat>)>),
    /// Nothing that is copied has that name.
    Nothing,
    /// It is one of Ferry's own.
    Reserved,
}

impl Walker<'_> {
    pub(super) fn look(&mut self, dir: BorrowedFd<'_>, node: &Node, name: &[u8]) -> Look {
        if names::is_reserved(name) {
            self.walk.note(
                NoteKind::Reserved,
                node,
                name,
                "Ferry keeps this name for temporary files",
            );
            return Look::Reserved;
        }
        let withheld = |why| {
            let entry = Entry { name: name.to_vec(), ..Entry::of(What::Withheld(why)) };
            Look::Entry(Box::new((entry, None)))
        };
        if !self.walk.excludes.is_empty() && self.walk.excludes.contains(&node.path_of(name)) {
            return withheld(Withheld::Excluded);
        }
        let mut looks = 0;
        loop {
            looks += 1;
            let described = Stat::of(dir, name)
                .map_err(Unread::from)
                .and_then(|stat| self.describe(dir, node, name, stat));
            match described {
                Ok(look) => return look,
                Err(Unread::TooLarge) => return withheld(Withheld::Attributes),
                Err(Unread::Failed(Errno::NOENT)) => return Look::Nothing,
                Err(Unread::Failed(Errno::STALE | Errno::INVAL)) if looks < LOOKS => {}
                Err(Unread::Failed(errno)) => {
                    return withheld(Withheld::Unreadable(errno.raw_os_error().unsigned_abs()));
                }
            }
        }
    }

    fn describe(
        &mut self,
        dir: BorrowedFd<'_>,
        node: &Node,
        name: &[u8],
        stat: Stat,
    ) -> Result<Look, Unread> {
        let too_deep = stat.kind == Kind::Directory && node.depth() + 1 >= MAX_DEPTH;
        let withheld = if stat.is_mount {
            Some(Withheld::Mount)
        } else if too_deep {
            Some(Withheld::TooDeep)
        } else {
            self.walk.owners.withhold(&stat, || node.path_of(name))
        };
        let what = match (withheld, stat.kind) {
            (None, Kind::Socket) => {
                self.walk.note(NoteKind::Socket, node, name, "a socket is not copied");
                return Ok(Look::Nothing);
            }
            (Some(why), _) => What::Withheld(why),
            (None, Kind::File) => What::File(stat.size),
            (None, Kind::Directory) => What::Directory,
            (None, Kind::Fifo) => What::Fifo,
            (None, Kind::Device(device)) => What::Device(device),
            (None, Kind::Symlink) => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
                What::Symlink(target.into_bytes())
            }
        };
        let attributes = match what {
            What::Symlink(_) | What::Withheld(_) | What::Gone => Vec::new(),
            _ => attributes::read_at(dir, name, &stat)?,
        };
        let mut entry = described(&stat, what, attributes);
        entry.name = name.to_vec();
        if self.walk.tree.uses_projects() && matches!(entry.what, What::File(_) | What::Directory) {
            entry.project = projects::of_name(dir, name, &stat)?;
        }
        entry.doubtful = match (self.walk.purpose, self.walk.changed_since) {
            (_, Some(since)) => {
                stat.ctime >= since
                    || !self.in_known
                    || (!self.walk.doubted.is_empty()
                        && self.walk.doubted.contains(&node.path_of(name)))
            }
            (Purpose::Pass, None) => false,
            (Purpose::Verify, None) => true,
        };
        let linkable = !matches!(entry.what, What::Directory | What::Withheld(_));
        if linkable && stat.nlink > 1 {
            entry.link = self.link(&stat, || node.path_of(name));
        }
        Ok(Look::Entry(Box::new((entry, Some(stat)))))
    }

    /// The group of an inode with several names.
    fn link(&mut self, stat: &Stat, path: impl FnOnce() -> Vec<u8>) -> Option<Link> {
        let keeps = self.walk.elsewhere.is_some() && lock(&self.walk.linked).keeps_names();
        // Made while nobody waits for it.
        let path = keeps.then(path);
        let mut linked = lock(&self.walk.linked);
        let directory = self.directory;
        let is_first =
            self.meets_first.get_or_insert_with(|| directory.is_none_or(|d| linked.enter(d)));
        if let Some(path) = path {
            linked.was_at(stat.identity(), &path);
        }
        linked.meet(stat, *is_first)
    }
}

impl Walk {
    fn note(&self, kind: NoteKind, node: &Node, name: &[u8], text: &str) {
        let note = Note { kind, path: show(&node.path_of(name)), text: text.to_owned() };
        lock(&self.notes).push(note);
    }
}

pub(crate) fn described(stat: &Stat, what: What, attributes: Vec<Attribute>) -> Entry {
    let Stat { mode, uid, gid, mtime, .. } = *stat;
    let locks = match what {
        What::File(_) | What::Directory => stat.locks,
        _ => Locks::NONE,
    };
    Entry { mode, uid, gid, mtime, attributes, locks, ..Entry::of(what) }
}
