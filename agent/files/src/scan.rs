//! Looking through a tree for inspection: how many files, how many bytes, and what a pass would not
//! let through. It reads no contents.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use ferry_proto::command::TreeNeeds;
use ferry_proto::{Fault, FaultClass};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::attributes::{self, Attribute, Unread};
use crate::confine::{MAX_DEPTH, Node, Tree, has_vanished};
use crate::entries::{Entry, What, Withheld};
use crate::guard;
use crate::holding;
use crate::linked::MAX_LINKS;
use crate::metadata::{Handle, Kind, Stat, Time};
use crate::names::{self, Names};
use crate::options::{IdMap, SourceOptions};
use crate::owners::Owners;
use crate::report::{Bounded, Refusal, show};

/// How many of the biggest files are named.
const BIGGEST: usize = 10;

/// Statistics of a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeStats {
    /// Regular files; one with several names counts once.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Everything else: symlinks, FIFOs, sockets, devices.
    pub others: u64,
    /// Bytes of content, holes included.
    pub bytes: u64,
    /// Bytes on disk.
    pub allocated: u64,
    /// The biggest files, biggest first.
    pub biggest: Vec<(String, u64)>,
    /// What changed last, in content or metadata, and when, in Unix milliseconds. It may be behind by the
    /// few that file systems are.
    #[serde(default)]
    pub latest: Option<(String, i64)>,
    /// Directories that could not be read, are too deep, are refused, or are mounts, which are not entered.
    pub skipped: u64,
    /// Directories that went away, or became something else, between being met and being read.
    #[serde(default)]
    pub vanished: u64,
}

/// Counts what a tree holds. It blocks: call it where blocking is allowed.
///
/// # Errors
/// The root cannot be opened, or `cancel` was cancelled.
pub fn scan(root: &Path, cancel: &CancellationToken) -> Result<TreeStats, Fault> {
    walk(root, None, cancel, &mut |_, _| ()).map(|survey| survey.stats)
}

/// What of a tree has changed since a moment, in content or metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// How many entries.
    pub total: u64,
    /// The last of them, the last first, each with its time in Unix milliseconds.
    pub latest: Vec<(String, i64)>,
    /// Directories that were not looked into: skipped or vanished, as of [`TreeStats`].
    pub skipped: u64,
}

/// Finds what has changed since `since_ms` (Unix milliseconds), and names at most `named` of it. It blocks:
/// call it where blocking is allowed.
///
/// # Errors
/// As [`scan`].
pub fn changed_since(
    root: &Path,
    since_ms: i64,
    named: usize,
    cancel: &CancellationToken,
) -> Result<Changed, Fault> {
    let mut changed = Changed::default();
    let Survey { stats, .. } = walk(root, None, cancel, &mut |stat, path| {
        let at = stat.ctime.millis_since(Time::EPOCH);
        if at < since_ms {
            return;
        }
        changed.total += 1;
        let rank = changed.latest.partition_point(|(_, other)| *other >= at);
        if rank < named {
            changed.latest.insert(rank, (path(), at));
            changed.latest.truncate(named);
        }
    })?;
    changed.skipped = stats.skipped + stats.vanished;
    Ok(changed)
}

/// What was seen of a tree.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// How much there is.
    pub stats: TreeStats,
    /// What a pass would refuse.
    pub refused: Bounded<Refusal>,
    /// What the rest needs of a file system that is to hold it.
    pub needs: TreeNeeds,
}

/// Counts what a tree holds, and finds what a pass with these `options`, to a target that maps its
/// ids by `ids`, would refuse, and what the rest needs. It blocks: call it where blocking is allowed.
///
/// # Errors
/// As [`scan`].
pub fn survey(
    root: &Path,
    options: &SourceOptions,
    ids: &IdMap,
    cancel: &CancellationToken,
) -> Result<Survey, Fault> {
    walk(root, Some(&Admission { owners: Owners::of(options), ids }), cancel, &mut |_, _| ())
}

fn walk(
    root: &Path,
    admission: Option<&Admission<'_>>,
    cancel: &CancellationToken,
    each: &mut dyn FnMut(&Stat, &dyn Fn() -> String),
) -> Result<Survey, Fault> {
    let tree = Tree::open_root(root)?;
    let Survey { mut stats, mut refused, mut needs } = Survey::default();
    if let Some(reason) = admission.and_then(|a| a.root_refusal(tree.root_fd(), &mut needs)) {
        refused.push(Refusal { path: show(b""), reason });
    }
    if let Ok(stat) = Stat::of_fd(tree.root_fd()) {
        stats.change(&stat, || show(b""));
        each(&stat, &|| show(b""));
    }
    let mut seen = HashSet::new();
    let mut stack = vec![(None::<Arc<Node>>, Box::<[u8]>::default())];
    while let Some((parent, name)) = stack.pop() {
        let node = parent.map_or_else(Node::root, |parent| parent.child(&name));
        let opened = tree.open(&node).and_then(|fd| Ok((Names::read(&fd)?, fd)));
        let (names, fd) = match opened {
            Ok(opened) => opened,
            Err(errno) if has_vanished(errno) && node.depth() > 0 => {
                stats.vanished += 1;
                continue;
            }
            Err(_) => {
                stats.skipped += 1;
                continue;
            }
        };
        stats.directories += 1;
        for name in names.iter() {
            if cancel.is_cancelled() {
                return Err(Fault::new(
                    FaultClass::Cancelled,
                    "the counting of files was cancelled",
                ));
            }
            let Ok(stat) = Stat::of(&fd, name) else {
                continue;
            };
            let refusal =
                admission.and_then(|a| a.refusal(fd.as_fd(), &node, name, &stat, &mut needs));
            let enters = refusal.is_none();
            if let Some(reason) = refusal {
                refused.push(Refusal { path: show(&node.path_of(name)), reason });
            }
            stats.change(&stat, || show(&node.path_of(name)));
            each(&stat, &|| show(&node.path_of(name)));
            stats.allocated += stat.blocks.saturating_mul(512);
            match stat.kind {
                Kind::Directory if stat.is_mount || !enters || node.depth() + 1 >= MAX_DEPTH => {
                    stats.skipped += 1;
                }
                Kind::Directory => stack.push((Some(Arc::clone(&node)), name.into())),
                Kind::File => {
                    let several = stat.nlink > 1 && seen.len() < MAX_LINKS;
                    if several && !seen.insert(stat.identity()) {
                        stats.allocated -= stat.blocks.saturating_mul(512);
                        continue;
                    }
                    stats.files += 1;
                    stats.bytes = stats.bytes.saturating_add(stat.size);
                    stats.big(&node, name, stat.size);
                }
                _ => stats.others += 1,
            }
        }
    }
    Ok(Survey { stats, refused, needs })
}

/// Whose files are let through, at the source and at the target.
struct Admission<'a> {
    owners: Owners,
    ids: &'a IdMap,
}

impl Admission<'_> {
    /// Why `name` in `dir` would be refused; none also if it has gone meanwhile: a pass looks again.
    fn refusal(
        &self,
        dir: BorrowedFd<'_>,
        node: &Node,
        name: &[u8],
        stat: &Stat,
        needs: &mut TreeNeeds,
    ) -> Option<String> {
        if names::is_reserved(name) {
            return None;
        }
        let too_deep = stat.kind == Kind::Directory && node.depth() + 1 >= MAX_DEPTH;
        let withheld = if stat.is_mount {
            Some(Withheld::Mount)
        } else if too_deep {
            Some(Withheld::TooDeep)
        } else {
            self.owners.withhold(stat, || node.path_of(name))
        };
        let what = match (withheld, stat.kind) {
            (None, Kind::Socket) => return None,
            (Some(why), _) => What::Withheld(why),
            (None, Kind::File) => What::File(stat.size),
            (None, Kind::Directory) => What::Directory,
            (None, Kind::Fifo) => What::Fifo,
            (None, Kind::Device(device)) => What::Device(device),
            (None, Kind::Symlink) => What::Symlink(Vec::new()),
        };
        let read = match what {
            What::Symlink(_) | What::Withheld(_) | What::Gone => Ok(Vec::new()),
            _ => attributes::read_at(dir, name, stat),
        };
        if withheld.is_none()
            && let Ok(attributes) = &read
        {
            holding::note(needs, stat, attributes, name, &|| show(&node.path_of(name)));
        }
        // What is there is what was looked at when it was approved; the pass looks again.
        let is_approved = withheld.is_none() && self.owners.is_approved(|| node.path_of(name));
        if is_approved { None } else { self.judge(stat, what, read) }
    }

    /// Why the root itself would be refused.
    fn root_refusal(&self, root: BorrowedFd<'_>, needs: &mut TreeNeeds) -> Option<String> {
        let stat = Stat::of_fd(root).ok()?;
        let read = attributes::read_all(Handle::Open(root));
        if let Ok(attributes) = &read {
            holding::note(needs, &stat, attributes, b"", &|| show(b""));
        }
        if self.owners.is_approved(Vec::new) {
            return None;
        }
        self.judge(&stat, What::Directory, read)
    }

    fn judge(
        &self,
        stat: &Stat,
        what: What,
        read: Result<Vec<Attribute>, Unread>,
    ) -> Option<String> {
        let (what, attributes) = match read {
            Ok(attributes) => (what, attributes),
            Err(Unread::TooLarge) => (What::Withheld(Withheld::Attributes), Vec::new()),
            Err(Unread::Failed(_)) => return None,
        };
        let Stat { mode, uid, gid, .. } = *stat;
        let entry = Entry { mode, uid, gid, attributes, ..Entry::of(what) };
        guard::admit(&entry, None, self.ids).err()
    }
}

impl TreeStats {
    fn change(&mut self, stat: &Stat, path: impl FnOnce() -> String) {
        let at = stat.ctime.millis_since(Time::EPOCH);
        if self.latest.as_ref().is_none_or(|(_, latest)| at > *latest) {
            self.latest = Some((path(), at));
        }
    }

    fn big(&mut self, node: &Node, name: &[u8], size: u64) {
        let place = self.biggest.partition_point(|(_, other)| *other >= size);
        if place < BIGGEST {
            self.biggest.truncate(BIGGEST - 1);
            self.biggest.insert(place, (show(&node.path_of(name)), size));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_goes_away_meanwhile_is_not_one_that_cannot_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for name in ["gone", "swapped", "file", "stays"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        // Each changes when it has been met and before it is read.
        let mut change = |_: &Stat, path: &dyn Fn() -> String| match path().as_str() {
            "gone" => std::fs::remove_dir(root.join("gone")).unwrap(),
            "swapped" => {
                std::fs::remove_dir(root.join("swapped")).unwrap();
                std::os::unix::fs::symlink("/etc", root.join("swapped")).unwrap();
            }
            "file" => {
                std::fs::remove_dir(root.join("file")).unwrap();
                std::fs::write(root.join("file"), "").unwrap();
            }
            _ => {}
        };
        let Survey { stats, .. } =
            walk(root, None, &CancellationToken::new(), &mut change).unwrap();
        assert_eq!((stats.directories, stats.skipped, stats.vanished), (2, 0, 3), "{stats:?}");
    }
}
