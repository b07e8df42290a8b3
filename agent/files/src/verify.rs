//! The target's visitor of a comparison: compares metadata as the listings come, digests our contents as
//! the source's digests come, and writes down every difference. It changes nothing.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ferry_proto::Fault;
use ferry_proto::approval::Fingerprint;
use rustix::io::Errno;

use crate::approvals;
use crate::attributes::{self, Attribute, Unread};
use crate::codec::Malformed;
use crate::confine::{self, Node, Tree};
use crate::digest::{self, Undigested};
use crate::entries::{Entry, What, Withheld};
use crate::guard::{self, Wanted};
use crate::halt::{Halt, protocol_fault};
use crate::limits::Disks;
use crate::linked::MAX_LINKS;
use crate::make;
use crate::metadata::{Identity, Kind, Stat, Time};
use crate::mirror::{Here, Verdict, Visitor, Want};
use crate::options::TargetOptions;
use crate::progress::Counters;
use crate::projects::{self, Project};
use crate::protocol::{Ending, Frame, Place, Unlisted};
use crate::report::{Comparison, Difference, End, Note, NoteKind, Refusal, show};
use crate::send::Summary;
use crate::wire::{self, Outbox};

/// A directory of the comparison.
#[derive(Debug)]
pub struct Compared {
    node: Arc<Node>,
    wanted: Option<Wanted>,
}

/// A file whose digest the source was asked for.
#[derive(Debug)]
struct Asked {
    node: Arc<Node>,
    name: Vec<u8>,
    /// The source's.
    mtime: Time,
    found: Stat,
    approved: Option<Box<Fingerprint>>,
}

impl Asked {
    /// Whether what was found is another's that was let in.
    fn was_approved(&self) -> bool {
        let owner = self.approved.as_ref().map(|approved| approved.uid);
        owner == Some(self.found.uid) && self.found.nlink == 1
    }

    /// Whether a content is not the one that was approved, if one was.
    fn is_another(&self, theirs: [u8; 32]) -> bool {
        let approved = self.approved.as_deref().and_then(approvals::digest);
        approved.is_some_and(|approved| approved != digest::hex(theirs))
    }
}

/// What a data stream reads with.
#[derive(Debug, Default)]
pub struct Buffer(Vec<u8>);

/// See the module.
#[derive(Debug)]
pub struct Verifier {
    tree: Arc<Tree>,
    options: TargetOptions,
    halt: Halt,
    counters: Counters,
    disks: Disks,
    comparison: Mutex<Comparison>,
    asked: Mutex<HashMap<Place, Asked>>,
    links: Mutex<Links>,
    /// Only what has changed is listed.
    is_partial: AtomicBool,
    began: Instant,
}

/// Which inodes are one at either end.
#[derive(Debug, Default)]
struct Links {
    /// The source's inodes with several names, and ours.
    groups: HashMap<u64, Identity>,
    /// Our inodes with several names, and the source's.
    inodes: HashMap<Identity, Option<u64>>,
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one step, so a panic elsewhere cannot have left it half done.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Verifier {
    /// A visitor that compares with `tree`.
    pub fn new(tree: Arc<Tree>, options: TargetOptions, halt: Halt, counters: Counters) -> Self {
        let disks = Disks::new(&options.limits, &halt, &counters);
        Self {
            tree,
            options,
            halt,
            counters,
            disks,
            comparison: Mutex::default(),
            asked: Mutex::default(),
            links: Mutex::default(),
            is_partial: AtomicBool::new(false),
            began: Instant::now(),
        }
    }

    fn comparison(&self) -> MutexGuard<'_, Comparison> {
        lock(&self.comparison)
    }

    fn differ(&self, path: &[u8], what: &str, source: impl ToString, target: impl ToString) {
        self.differ_since(path, what, source, target, None);
    }

    /// Contents differ, of files with these times: the source's and ours.
    fn differ_since(
        &self,
        path: &[u8],
        what: &str,
        source: impl ToString,
        target: impl ToString,
        times: Option<(Time, Time)>,
    ) {
        self.comparison().differences.push(Difference {
            path: show(path),
            what: what.to_owned(),
            source: source.to_string(),
            target: target.to_string(),
            newer: times.and_then(|(source, target)| match source.cmp(&target) {
                std::cmp::Ordering::Greater => Some(End::Source),
                std::cmp::Ordering::Less => Some(End::Target),
                std::cmp::Ordering::Equal => None,
            }),
        });
    }

    fn admit(&self, entry: &Entry, path: &[u8]) -> Result<Wanted, String> {
        let approved = self.options.approved.at(|| path.to_vec());
        guard::admit(entry, approved, &self.options.ids)
            .map(|wanted| wanted.where_projects_are_held(self.tree.holds_projects()))
    }

    fn refuse(&self, path: &[u8], reason: String) {
        self.comparison().refused.push(Refusal { path: show(path), reason });
    }

    /// Compares what stat tells.
    fn compare_stat(&self, path: &[u8], wanted: &Wanted, found: &Stat) {
        if found.kind != Kind::Symlink && wanted.mode != found.mode {
            let octal = |mode: u16| format!("{mode:04o}");
            self.differ(path, "mode", octal(wanted.mode), octal(found.mode));
        }
        if wanted.uid != found.uid {
            self.differ(path, "owner", wanted.uid, found.uid);
        }
        if wanted.gid != found.gid {
            self.differ(path, "group", wanted.gid, found.gid);
        }
        if wanted.locks != found.locks {
            self.differ(path, "flags", wanted.locks.name(), found.locks.name());
        }
        if wanted.mtime != found.mtime {
            let stamp = |t: Time| format!("{}.{:09}", t.sec, t.nsec);
            let times = Some((wanted.mtime, found.mtime));
            self.differ_since(path, "time", stamp(wanted.mtime), stamp(found.mtime), times);
        }
    }

    /// Compares the projects that both are counted for.
    fn compare_project(&self, path: &[u8], wanted: &Wanted, have: Result<Option<Project>, Errno>) {
        let Some(wanted) = wanted.project else { return };
        match have {
            Ok(Some(have)) if have == wanted => {}
            Ok(Some(have)) => self.differ(path, "project", wanted, have),
            Ok(None) => self.differ(path, "project", wanted, "none"),
            Err(errno) => self.differ(path, "project", wanted, errno),
        }
    }

    fn compare_attributes(
        &self,
        path: &[u8],
        wanted: &Wanted,
        have: Result<Vec<Attribute>, Unread>,
    ) {
        let have = match have {
            Ok(have) => make::comparable(have),
            Err(why) => {
                self.differ(path, "attributes", "readable", format!("{why:?}"));
                return;
            }
        };
        if have == wanted.attributes {
            return;
        }
        let list = |all: &[Attribute]| {
            let names: Vec<_> = all.iter().map(|a| String::from_utf8_lossy(&a.name)).collect();
            names.join(" ").chars().take(200).collect::<String>()
        };
        let (source, target) = (list(&wanted.attributes), list(&have));
        self.differ(path, "attributes", source, target);
    }

    /// Whether names of one inode there are names of one inode here, and the other way round.
    fn compare_links(
        &self,
        path: &[u8],
        entry: &Entry,
        wanted: &Wanted,
        found: &Stat,
    ) -> Result<(), Fault> {
        if wanted.approved.is_some() && found.nlink > 1 {
            // The other name may be anywhere.
            self.differ(path, "hard link", "a file of its own", "to another name");
            return Ok(());
        }
        if entry.link.is_none() && found.nlink <= 1 {
            return Ok(());
        }
        let mut links = lock(&self.links);
        if links.groups.len() > MAX_LINKS || links.inodes.len() > MAX_LINKS {
            return Err(Fault::precondition(format!(
                "the trees have more than {MAX_LINKS} files with several names, which is more than \
                 can be compared"
            )));
        }
        let group = entry.link.map(|link| link.group);
        let identity = found.identity();
        let ours = group.map(|group| *links.groups.entry(group).or_insert(identity));
        if ours.is_some_and(|ours| ours != identity) {
            self.differ(path, "hard link", "to another name", "a file of its own");
            return Ok(());
        }
        if found.nlink > 1 {
            // Two files of the source that are each their own may not be one here. The other name need not
            // be met where not all are.
            let theirs = links.inodes.insert(identity, group);
            let is_partial = self.is_partial.load(Ordering::Relaxed);
            if is_partial && group.is_none()
                || theirs.is_some_and(|theirs| theirs != group || group.is_none())
            {
                self.differ(path, "hard link", "a file of its own", "to another name");
            }
        }
        Ok(())
    }

    fn compare_content(
        &self,
        here: Here<'_>,
        place: Place,
        entry: Entry,
        found: Stat,
        approved: Option<Box<Fingerprint>>,
    ) -> Result<bool, Fault> {
        let path = || here.node.path_of(&entry.name);
        match entry.what {
            What::File(size) if size != found.size => {
                let times = Some((entry.mtime, found.mtime));
                self.differ_since(&path(), "size", size, found.size, times);
                Ok(false)
            }
            What::File(size) if entry.doubtful => {
                self.counters.wanted(size);
                let Entry { name, mtime, .. } = entry;
                let asked = Asked { node: Arc::clone(here.node), name, mtime, found, approved };
                match lock(&self.asked).insert(place, asked) {
                    None => Ok(true),
                    Some(_) => Err(protocol_fault(&Malformed("two batches of one number"))),
                }
            }
            What::Symlink(target) => {
                let have = rustix::fs::readlinkat(here.fd, entry.name.as_slice(), Vec::new());
                let have = have.map(std::ffi::CString::into_bytes).unwrap_or_default();
                if have != target {
                    self.differ(&path(), "symlink", show(&target), show(&have));
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    fn digest(&self, asked: &Asked, buffer: &mut Vec<u8>) -> Result<Option<[u8; 32]>, Fault> {
        // Another's file is not read, whatever name the account gave it.
        if !self.options.ids.has_uid(asked.found.uid) && !asked.was_approved() {
            return Ok(None);
        }
        let digested = self
            .tree
            .open(&asked.node)
            .and_then(|dir| confine::open_file(&dir, &asked.name))
            .and_then(|fd| Stat::of_fd(&fd).map(|stat| (fd, stat)))
            .map_err(Undigested::from)
            .and_then(|(fd, stat)| {
                if stat.identity() != asked.found.identity() || stat.kind != Kind::File {
                    return Err(Undigested::Failed(Errno::STALE));
                }
                digest::of_file(&fd, &stat, buffer, &self.halt, |bytes| self.disks.used(bytes))
            });
        match digested {
            Ok((digest, _)) => Ok(Some(digest)),
            Err(Undigested::Stopped) => Err(self.halt.ended()),
            Err(Undigested::Failed(_)) => Ok(None),
        }
    }

    fn take(&self, place: Place) -> Result<Asked, Fault> {
        let asked = lock(&self.asked).remove(&place);
        asked.ok_or_else(|| protocol_fault(&Malformed("a digest that was not asked for")))
    }

    /// The source's digest of a content has come: now ours.
    fn compare_digest(
        &self,
        asked: &Asked,
        (ending, size, theirs): (Ending, u64, [u8; 32]),
        buffer: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let path = asked.node.path_of(&asked.name);
        {
            let mut comparison = self.comparison();
            comparison.files += 1;
            comparison.bytes = comparison.bytes.saturating_add(size);
        }
        if ending != Ending::Settled {
            self.unsettled(&path, "it changed while it was read");
        } else if asked.is_another(theirs) {
            self.refuse(&path, approvals::another_content());
        } else {
            match self.digest(asked, buffer)? {
                Some(ours) if ours == theirs => {}
                Some(ours) => {
                    let times = Some((asked.mtime, asked.found.mtime));
                    self.differ_since(&path, "content", hex(theirs), hex(ours), times);
                }
                None => self.differ(&path, "content", hex(theirs), "cannot be read"),
            }
        }
        self.counters.file_done();
        self.counters.bytes_done(size);
        Ok(())
    }

    /// There is no digest of the source's.
    fn not_digested(&self, asked: &Asked, ending: Ending) {
        let path = asked.node.path_of(&asked.name);
        self.counters.file_done();
        match ending {
            Ending::Unreadable(errno) => {
                let why = guard::errno_text(errno);
                self.refuse(&path, format!("it cannot be read at the source: {why}"));
            }
            _ => self.unsettled(&path, "it was replaced or removed before it was read"),
        }
    }

    fn unsettled(&self, path: &[u8], text: &str) {
        let (kind, path, text) = (NoteKind::Changed, show(path), text.to_owned());
        let mut comparison = self.comparison();
        comparison.unsettled += 1;
        comparison.notes.push(Note { kind, path, text });
    }
}

fn kind_of(what: &What) -> Option<Kind> {
    match what {
        What::File(_) => Some(Kind::File),
        What::Directory => Some(Kind::Directory),
        What::Symlink(_) => Some(Kind::Symlink),
        What::Fifo => Some(Kind::Fifo),
        What::Device(device) => Some(Kind::Device(*device)),
        What::Withheld(_) | What::Gone => None,
    }
}

fn hex(digest: [u8; 32]) -> String {
    digest::hex(digest)[..16].to_owned()
}

impl Visitor for Verifier {
    type Dir = Compared;
    type Stream = Buffer;

    fn root(&self, node: &Arc<Node>, entry: Entry, partial: bool) -> Result<Compared, Fault> {
        self.is_partial.store(partial, Ordering::Relaxed);
        let wanted = match self.admit(&entry, b"") {
            Ok(wanted) => Some(wanted),
            Err(reason) => {
                self.refuse(b"", reason);
                None
            }
        };
        Ok(Compared { node: Arc::clone(node), wanted })
    }

    fn moved(&self, _: Vec<Vec<u8>>) -> Result<(), Fault> {
        Err(protocol_fault(&Malformed("a move in a comparison")))
    }

    fn depart(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn entry(
        &self,
        _: &Compared,
        here: Here<'_>,
        place: Place,
        entry: Entry,
        found: Option<Stat>,
    ) -> Result<Verdict<Compared>, Fault> {
        self.comparison().entries += 1;
        if entry.what == What::Withheld(Withheld::Excluded) {
            return Ok(Verdict::NOTHING);
        }
        let path = here.node.path_of(&entry.name);
        let wanted = match self.admit(&entry, &path) {
            Ok(wanted) => wanted,
            Err(reason) => {
                self.refuse(&path, reason);
                return Ok(Verdict::NOTHING);
            }
        };
        let kind = kind_of(&entry.what);
        let kind_name = kind.map_or_else(|| "nothing".to_owned(), Kind::name);
        let Some(found) = found else {
            self.differ(&path, "missing", kind_name, "nothing");
            return Ok(Verdict::NOTHING);
        };
        if Some(found.kind) != kind || found.is_mount {
            let target = if found.is_mount { "a mount".to_owned() } else { found.kind.name() };
            self.differ(&path, "type", kind_name, target);
            return Ok(Verdict::NOTHING);
        }
        if found.kind == Kind::Directory {
            let node = here.node.child(&entry.name);
            let state = Compared { node: Arc::clone(&node), wanted: Some(wanted) };
            return Ok(Verdict::descend(node, state, false));
        }
        self.compare_stat(&path, &wanted, &found);
        if wanted.project.is_some() {
            let have = projects::of_name(here.fd.as_fd(), &entry.name, &found);
            self.compare_project(&path, &wanted, have);
        }
        if found.kind != Kind::Symlink {
            let have = attributes::read_at(here.fd.as_fd(), &entry.name, &found);
            self.compare_attributes(&path, &wanted, have);
        }
        self.compare_links(&path, &entry, &wanted, &found)?;
        let want = self.compare_content(here, place, entry, found, wanted.approved)?;
        Ok(if want { Verdict::want(Want::All) } else { Verdict::NOTHING })
    }

    fn extra(&self, _: &Compared, here: Here<'_>, name: &[u8]) -> Result<(), Fault> {
        let kind =
            Stat::of(here.fd, name).map_or_else(|_| "nothing".to_owned(), |stat| stat.kind.name());
        self.differ(&here.node.path_of(name), "extra", "nothing", kind);
        Ok(())
    }

    fn leftover(&self, dir: &Compared, here: Here<'_>, name: &[u8]) -> Result<(), Fault> {
        self.extra(dir, here, name)
    }

    fn emptied(&self, _: usize) -> Result<(), Fault> {
        Ok(())
    }

    fn can_share(&self) -> bool {
        false
    }

    fn told(&self, _: &mut dyn Iterator<Item = Place>) {}

    fn beside(&self, _: Outbox) -> Result<(), Fault> {
        Ok(())
    }

    fn met_all(&self) {}

    fn leave(&self, dir: Compared) -> Result<(), Fault> {
        let Some(wanted) = dir.wanted else {
            return Ok(());
        };
        let path = dir.node.path();
        let examined = self.tree.open(&dir.node).and_then(|fd| Ok((Stat::of_fd(&fd)?, fd)));
        match examined {
            Ok((found, fd)) => {
                self.compare_stat(&path, &wanted, &found);
                if wanted.project.is_some() {
                    self.compare_project(&path, &wanted, projects::of(fd.as_fd()).map(Some));
                }
                let have = attributes::read_all(crate::metadata::Handle::Open(fd.as_fd()));
                self.compare_attributes(&path, &wanted, have);
            }
            Err(errno) => self.differ(&path, "directory", "readable", errno),
        }
        Ok(())
    }

    fn unlisted(&self, node: &Node, dir: Compared, why: Unlisted) -> Result<(), Fault> {
        match why {
            Unlisted::Untouched => return self.leave(dir),
            Unlisted::Unreadable(errno) => {
                let why = guard::errno_text(errno);
                self.refuse(&node.path(), format!("it cannot be read at the source: {why}"));
            }
            Unlisted::Vanished => {
                self.unsettled(&node.path(), "it was gone when it was to be listed");
            }
        }
        Ok(())
    }

    fn unreadable(&self, node: &Node, _: Compared, why: Errno) -> Result<(), Fault> {
        self.differ(&node.path(), "directory", "readable", why);
        Ok(())
    }

    fn content(&self, Buffer(buffer): &mut Buffer, frame: Frame<'_>) -> Result<bool, Fault> {
        match frame {
            Frame::Hash(place, ending, size, theirs) => {
                let asked = self.take(place)?;
                self.compare_digest(&asked, (ending, size, theirs), buffer)?;
                Ok(true)
            }
            Frame::Skip(place, ending) => {
                self.not_digested(&self.take(place)?, ending);
                Ok(true)
            }
            _ => Err(protocol_fault(&Malformed("a content in a comparison"))),
        }
    }

    fn finish(self, summary: Summary) -> Result<Vec<u8>, Fault> {
        let mut comparison = self.comparison.into_inner().unwrap_or_else(PoisonError::into_inner);
        comparison.notes.extend(summary.notes);
        comparison.manifest = summary.manifest.unwrap_or_default();
        comparison.duration = self.began.elapsed();
        Ok(wire::to_json(&comparison))
    }
}
