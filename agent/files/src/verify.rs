//! The target's visitor of a comparison: compares metadata as the listings come, digests our contents
//! while the source digests its own, and writes down every difference. It changes nothing.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use ferry_proto::Fault;
use rustix::io::Errno;

use crate::attributes::{self, Attribute, Unread};
use crate::codec::Malformed;
use crate::confine::{self, Node, Tree};
use crate::digest::{self, Undigested};
use crate::entries::{Entry, What, Withheld};
use crate::guard::{self, Wanted};
use crate::halt::{Halt, protocol_fault};
use crate::make;
use crate::metadata::{Identity, Kind, Stat, Time};
use crate::mirror::{Here, Verdict, Visitor};
use crate::options::TargetOptions;
use crate::progress::Counters;
use crate::protocol::{DirStatus, Ending, Frame, Place};
use crate::report::{Comparison, Difference, Note, NoteKind, Refusal, show};
use crate::send::Summary;
use crate::walk::MAX_LINKS;
use crate::wire;

/// A directory of the comparison.
#[derive(Debug)]
pub struct Compared {
    node: Arc<Node>,
    wanted: Option<Wanted>,
}

/// A file whose digest the source was asked for.
#[derive(Debug)]
struct Asked {
    place: Place,
    node: Arc<Node>,
    name: Vec<u8>,
    found: Stat,
    /// Ours, once computed; none if it could not be.
    ours: Option<[u8; 32]>,
}

/// See the module.
#[derive(Debug)]
pub struct Verifier {
    tree: Arc<Tree>,
    options: TargetOptions,
    halt: Halt,
    counters: Counters,
    comparison: Comparison,
    asked: VecDeque<Asked>,
    /// How many of `asked` have our digest.
    digested: usize,
    /// The source's inodes with several names, and ours.
    groups: HashMap<u64, Identity>,
    /// Our inodes with several names, and the source's.
    inodes: HashMap<Identity, Option<u64>>,
    buffer: Vec<u8>,
    began: Instant,
}

impl Verifier {
    /// A visitor that compares with `tree`.
    pub fn new(tree: Arc<Tree>, options: TargetOptions, halt: Halt, counters: Counters) -> Self {
        Self {
            tree,
            options,
            halt,
            counters,
            comparison: Comparison::default(),
            asked: VecDeque::new(),
            digested: 0,
            groups: HashMap::new(),
            inodes: HashMap::new(),
            buffer: Vec::new(),
            began: Instant::now(),
        }
    }

    fn differ(&mut self, path: &[u8], what: &str, source: impl ToString, target: impl ToString) {
        self.comparison.differences.push(Difference {
            path: show(path),
            what: what.to_owned(),
            source: source.to_string(),
            target: target.to_string(),
        });
    }

    fn refuse(&mut self, path: &[u8], reason: String) {
        self.comparison.refused.push(Refusal { path: show(path), reason });
    }

    /// Compares what stat tells.
    fn compare_stat(&mut self, path: &[u8], wanted: &Wanted, found: &Stat) {
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
        if wanted.mtime != found.mtime {
            let stamp = |t: Time| format!("{}.{:09}", t.sec, t.nsec);
            self.differ(path, "time", stamp(wanted.mtime), stamp(found.mtime));
        }
    }

    fn compare_attributes(
        &mut self,
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
    fn compare_links(&mut self, path: &[u8], entry: &Entry, found: &Stat) -> Result<(), Fault> {
        if self.groups.len() > MAX_LINKS || self.inodes.len() > MAX_LINKS {
            return Err(Fault::precondition(format!(
                "the trees have more than {MAX_LINKS} files with several names, which is more than \
                 can be compared"
            )));
        }
        let group = entry.link.map(|link| link.group);
        let identity = found.identity();
        let ours = group.map(|group| *self.groups.entry(group).or_insert(identity));
        if ours.is_some_and(|ours| ours != identity) {
            self.differ(path, "hard link", "to another name", "a file of its own");
            return Ok(());
        }
        if found.nlink > 1 {
            // Two files of the source that are each their own may not be one here.
            let theirs = self.inodes.insert(identity, group);
            if theirs.is_some_and(|theirs| theirs != group || group.is_none()) {
                self.differ(path, "hard link", "a file of its own", "to another name");
            }
        }
        Ok(())
    }

    fn compare_content(&mut self, here: Here<'_>, place: Place, entry: Entry, found: Stat) -> bool {
        let path = here.node.path_of(&entry.name);
        match entry.what {
            What::File(size) if size != found.size => {
                self.differ(&path, "size", size, found.size);
                false
            }
            What::File(size) if entry.doubtful => {
                self.counters.wanted(size);
                let node = Arc::clone(here.node);
                self.asked.push_back(Asked { place, node, name: entry.name, found, ours: None });
                true
            }
            What::Symlink(target) => {
                let have = rustix::fs::readlinkat(here.fd, entry.name.as_slice(), Vec::new());
                let have = have.map(std::ffi::CString::into_bytes).unwrap_or_default();
                if have != target {
                    self.differ(&path, "symlink", show(&target), show(&have));
                }
                false
            }
            _ => false,
        }
    }

    fn digest(&mut self, asked: &Asked) -> Result<Option<[u8; 32]>, Fault> {
        // Another's file is not read, whatever name the account gave it.
        if !self.options.ids.uids.values().any(|uid| *uid == asked.found.uid) {
            return Ok(None);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
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
                digest::of_file(&fd, &stat, &mut buffer, &self.halt, |_| ())
            });
        self.buffer = buffer;
        match digested {
            Ok((digest, _)) => Ok(Some(digest)),
            Err(Undigested::Stopped) => Err(self.halt.ended()),
            Err(Undigested::Failed(_)) => Ok(None),
        }
    }

    fn next(&mut self, place: Place) -> Result<Asked, Fault> {
        let asked = self.asked.pop_front().filter(|asked| asked.place == place);
        self.digested = self.digested.saturating_sub(1);
        asked.ok_or_else(|| protocol_fault(&Malformed("a digest that was not asked for")))
    }

    fn unsettled(&mut self, path: &[u8], text: &str) {
        self.comparison.unsettled += 1;
        let (kind, path, text) = (NoteKind::Changed, show(path), text.to_owned());
        self.comparison.notes.push(Note { kind, path, text });
    }
}

fn kind_of(what: &What) -> Option<Kind> {
    match what {
        What::File(_) => Some(Kind::File),
        What::Directory => Some(Kind::Directory),
        What::Symlink(_) => Some(Kind::Symlink),
        What::Fifo => Some(Kind::Fifo),
        What::Device => Some(Kind::Device),
        What::Withheld(_) => None,
    }
}

fn hex(digest: [u8; 32]) -> String {
    blake3::Hash::from_bytes(digest).to_hex()[..16].to_owned()
}

impl Visitor for Verifier {
    type Dir = Compared;

    fn root(&mut self, node: &Arc<Node>, entry: Entry) -> Result<Compared, Fault> {
        let wanted = match guard::admit(&entry, &self.options.ids) {
            Ok(wanted) => Some(wanted),
            Err(reason) => {
                self.refuse(b"", reason);
                None
            }
        };
        Ok(Compared { node: Arc::clone(node), wanted })
    }

    fn entry(
        &mut self,
        _: &Compared,
        here: Here<'_>,
        place: Place,
        entry: Entry,
        found: Option<Stat>,
    ) -> Result<Verdict<Compared>, Fault> {
        self.comparison.entries += 1;
        if entry.what == What::Withheld(Withheld::Excluded) {
            return Ok(Verdict::NOTHING);
        }
        let path = here.node.path_of(&entry.name);
        let wanted = match guard::admit(&entry, &self.options.ids) {
            Ok(wanted) => wanted,
            Err(reason) => {
                self.refuse(&path, reason);
                return Ok(Verdict::NOTHING);
            }
        };
        let kind = kind_of(&entry.what);
        let kind_name = kind.map_or("nothing", Kind::name);
        let Some(found) = found else {
            self.differ(&path, "missing", kind_name, "nothing");
            return Ok(Verdict::NOTHING);
        };
        if Some(found.kind) != kind || found.is_mount {
            let target = if found.is_mount { "a mount" } else { found.kind.name() };
            self.differ(&path, "type", kind_name, target);
            return Ok(Verdict::NOTHING);
        }
        if found.kind == Kind::Directory {
            let node = here.node.child(&entry.name);
            return Ok(Verdict::descend(Compared { node, wanted: Some(wanted) }));
        }
        self.compare_stat(&path, &wanted, &found);
        if found.kind != Kind::Symlink {
            let have = attributes::read_at(here.fd.as_fd(), &entry.name, &found);
            self.compare_attributes(&path, &wanted, have);
        }
        self.compare_links(&path, &entry, &found)?;
        let want = self.compare_content(here, place, entry, found);
        Ok(if want { Verdict::WANT } else { Verdict::NOTHING })
    }

    fn extra(&mut self, _: &Compared, here: Here<'_>, name: &[u8]) -> Result<(), Fault> {
        let kind = Stat::of(here.fd, name).map_or("nothing", |stat| stat.kind.name());
        self.differ(&here.node.path_of(name), "extra", "nothing", kind);
        Ok(())
    }

    fn leftover(&mut self, dir: &Compared, here: Here<'_>, name: &[u8]) -> Result<(), Fault> {
        self.extra(dir, here, name)
    }

    fn emptied(&mut self, _: usize) -> Result<(), Fault> {
        Ok(())
    }

    /// Digests our side while the source digests its own.
    fn answered(&mut self) -> Result<(), Fault> {
        while let Some(asked) = self.asked.get_mut(self.digested) {
            self.halt.check()?;
            // Taken out and put back, so that digesting may use all of `self`.
            let place = asked.place;
            let node = Arc::clone(&asked.node);
            let name = std::mem::take(&mut asked.name);
            let mut taken = Asked { place, node, name, found: asked.found, ours: None };
            taken.ours = self.digest(&taken)?;
            self.asked[self.digested] = taken;
            self.digested += 1;
        }
        Ok(())
    }

    fn leave(&mut self, dir: Compared) -> Result<(), Fault> {
        let Some(wanted) = dir.wanted else {
            return Ok(());
        };
        let path = dir.node.path();
        let examined = self.tree.open(&dir.node).and_then(|fd| Ok((Stat::of_fd(&fd)?, fd)));
        match examined {
            Ok((found, fd)) => {
                self.compare_stat(&path, &wanted, &found);
                let have = attributes::read_all(crate::metadata::Handle::Open(fd.as_fd()));
                self.compare_attributes(&path, &wanted, have);
            }
            Err(errno) => self.differ(&path, "directory", "readable", errno),
        }
        Ok(())
    }

    fn unlisted(&mut self, node: &Node, _: Compared, why: DirStatus) -> Result<(), Fault> {
        match why {
            DirStatus::Unreadable(errno) => {
                let why = guard::errno_text(errno);
                self.refuse(&node.path(), format!("it cannot be read at the source: {why}"));
            }
            _ => self.unsettled(&node.path(), "it was gone when it was to be listed"),
        }
        Ok(())
    }

    fn unreadable(&mut self, node: &Node, _: Compared, why: Errno) -> Result<(), Fault> {
        self.differ(&node.path(), "directory", "readable", why);
        Ok(())
    }

    fn content(&mut self, frame: Frame<'_>) -> Result<(), Fault> {
        match frame {
            Frame::Hash(place, ending, size, theirs) => {
                let asked = self.next(place)?;
                let path = asked.node.path_of(&asked.name);
                self.comparison.files += 1;
                self.comparison.bytes = self.comparison.bytes.saturating_add(size);
                self.counters.file_done();
                self.counters.bytes_done(size);
                match (ending, asked.ours) {
                    (Ending::Settled, Some(ours)) if ours == theirs => {}
                    (Ending::Settled, Some(ours)) => {
                        self.differ(&path, "content", hex(theirs), hex(ours));
                    }
                    (Ending::Settled, None) => {
                        self.differ(&path, "content", hex(theirs), "cannot be read");
                    }
                    _ => self.unsettled(&path, "it changed while it was read"),
                }
                Ok(())
            }
            Frame::Skip(place, ending) => {
                let asked = self.next(place)?;
                let path = asked.node.path_of(&asked.name);
                self.counters.file_done();
                match ending {
                    Ending::Unreadable(errno) => {
                        let why = guard::errno_text(errno);
                        self.refuse(&path, format!("it cannot be read at the source: {why}"));
                    }
                    _ => self.unsettled(&path, "it was replaced or removed before it was read"),
                }
                Ok(())
            }
            _ => Err(protocol_fault(&Malformed("a content where a digest was asked for"))),
        }
    }

    fn finish(mut self, summary: Summary) -> Result<Vec<u8>, Fault> {
        self.comparison.notes.extend(summary.notes);
        self.comparison.manifest = summary.manifest.unwrap_or_default();
        self.comparison.duration = self.began.elapsed();
        Ok(wire::to_json(&self.comparison))
    }
}
