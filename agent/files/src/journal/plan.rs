//! What a pass looks at, made of what has changed: a tree of the names below the root that it goes to, and the
//! directories that only have another place now. Directories are found by their handles when the pass
//! begins, and not before: where they were in between matters to nobody. It must not know how a pass goes
//! there.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::Arc;

use fanotify_fid::handle::open_by_handle_at;
use ferry_proto::Fault;
use rustix::io::Errno;

use super::changes::{Changes, Names, Place};
use super::key::Key;
use super::known_names::KnownNames;
use super::other_names::Inodes;
use crate::confine::{MAX_DEPTH, Node, Tree, has_vanished};
use crate::metadata::{Identity, Kind, Stat, proc_path};
use crate::protocol::Purpose;

/// Most directories that are told to have another place: each is renamed by itself at the target.
pub const MAX_MOVES: usize = 1_000;
/// How many renames may lie one in another before nobody follows them.
const MAX_NESTED: u32 = 64;

/// Names from the root of the tree down.
pub type Components = Vec<Box<[u8]>>;

/// What a pass looks at in one directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// All of its names; else only `names`.
    pub all: bool,
    /// Those that something is known about.
    pub names: BTreeMap<Box<[u8]>, Child>,
}

/// What is known about a name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Child {
    /// Something happened to it: it may be gone, or another directory.
    pub noted: bool,
    /// The step of what is below it, if only some of that is looked at.
    pub below: Option<usize>,
    /// It is a directory that was there before, if it still is this one.
    pub kept: Option<Kept>,
}

/// A directory that was there before, whatever happened to its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Which directory.
    pub identity: Identity,
    /// The number of its move, if it was elsewhere.
    pub moved: Option<u32>,
}

/// How much of a directory a pass looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of it, and all below.
    Whole,
    /// What this step says.
    Part(usize),
    /// Nothing in it: it is what the pass before left.
    Untouched,
}

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// The first is the root's.
    steps: Vec<Step>,
    /// Where the directories that have another place were, by their numbers.
    moves: Vec<Components>,
    /// The pass before, or one before that, has met files with several names.
    has_links: bool,
    /// Where those were.
    known_names: Arc<KnownNames>,
}

impl Plan {
    /// What a pass over the tree at `root` looks at after these changes, and what of `doubted` lies below the
    /// root. None: at everything.
    ///
    /// # Errors
    /// The root cannot be opened.
    pub fn of<'a>(
        changes: &Changes,
        root: &Path,
        doubted: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Option<Self>, Fault> {
        if changes.lost().is_some() {
            return Ok(None);
        }
        let tree = Tree::open_root(root)?;
        let made = Making::new(changes, &tree).and_then(|mut making| {
            making.moves()?;
            making.names()?;
            doubted.into_iter().for_each(|path| making.doubted(path));
            making.plan.widen();
            making.other_names()?;
            Ok(making.plan)
        });
        Ok(made.ok())
    }

    pub(crate) fn step(&self, scope: Scope) -> Option<&Step> {
        match scope {
            Scope::Part(number) => self.steps.get(number),
            Scope::Whole | Scope::Untouched => None,
        }
    }

    pub(crate) fn has_links(&self) -> bool {
        self.has_links
    }

    pub(crate) fn known_names(&self) -> &KnownNames {
        &self.known_names
    }

    /// Where each directory was that has another place now.
    pub(crate) fn moves(&self) -> &[Components] {
        &self.moves
    }

    /// Whether a pass looks at what is at `path` for its own sake, and not on the way to something else.
    pub fn goes_to(&self, path: &Path) -> bool {
        let mut step = self.steps.first();
        for part in path.components() {
            let (Component::Normal(name), Some(at)) = (part, step) else { continue };
            let Some(child) = at.names.get(name.as_bytes()) else { return at.all };
            if child.noted || at.all {
                return true;
            }
            step = child.below.and_then(|below| self.steps.get(below));
        }
        // A directory in which something happened has changed itself.
        step.is_some()
    }

    /// A directory that may be another one than before is looked at wholly, also where something is known of
    /// some of its names.
    fn widen(&mut self) {
        // A step comes before those below it.
        for number in 0..self.steps.len() {
            let step = &self.steps[number];
            let is_new = |child: &Child| child.kept.is_none() && (child.noted || step.all);
            let news = step.names.values().filter(|child| is_new(child));
            for below in news.filter_map(|child| child.below).collect::<Vec<_>>() {
                self.steps[below].all = true;
            }
        }
    }

    /// The step of the directory at `path`.
    fn step_at(&mut self, path: &[Box<[u8]>]) -> &mut Step {
        let mut at = 0;
        for name in path {
            let fresh = self.steps.len();
            let child = self.steps[at].names.entry(name.clone()).or_default();
            at = *child.below.get_or_insert(fresh);
            if at == fresh {
                self.steps.push(Step::default());
            }
        }
        &mut self.steps[at]
    }

    /// The child at `path`, which is not the root.
    fn child_at(&mut self, path: &[Box<[u8]>]) -> Option<&mut Child> {
        let (name, parent) = path.split_last()?;
        Some(self.step_at(parent).names.entry(name.clone()).or_default())
    }
}

impl Step {
    /// Whether the name may be told to be gone: not if it is only on the way to others.
    pub(crate) fn is_noted(&self, name: &[u8]) -> bool {
        self.names.get(name).is_some_and(|child| child.noted)
    }

    /// What is looked at of the directory `name`, and the number of its move; none if nothing is known of it.
    /// A comparison looks at all of what was moved: the one before may have missed it while it went on.
    pub(crate) fn below(
        &self,
        name: &[u8],
        identity: Identity,
        purpose: Purpose,
    ) -> Option<(Scope, Option<u32>)> {
        let Some(child) = self.names.get(name) else {
            return self.all.then_some((Scope::Whole, None));
        };
        let is_noted = child.noted || self.all;
        let kept = child.kept.filter(|kept| kept.identity == identity);
        let moved = kept.and_then(|kept| kept.moved);
        Some(match (purpose, child.below) {
            (Purpose::Verify, _) if is_noted => (Scope::Whole, None),
            (_, None) if is_noted && kept.is_none() => (Scope::Whole, None),
            (_, Some(step)) => (Scope::Part(step), moved),
            (_, None) => (Scope::Untouched, moved),
        })
    }
}

/// All must be looked at: something could not be found out.
struct Unsure;

impl From<Errno> for Unsure {
    fn from(_: Errno) -> Self {
        Self
    }
}

/// Whether what a handle stood for is gone.
fn is_stale(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::STALE.raw_os_error())
}

/// The names of a path below the root.
fn components(path: &[u8]) -> Result<Components, Unsure> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    let place: Components = names.map(Box::from).collect();
    if place.len() < MAX_DEPTH as usize { Ok(place) } else { Err(Unsure) }
}

/// A plan that is being made.
struct Making<'a> {
    changes: &'a Changes,
    tree: &'a Tree,
    /// The root's path, as this process sees it.
    prefix: Vec<u8>,
    places: HashMap<&'a [u8], Option<Arc<Components>>>,
    /// Directories that were renamed: where each is, and where it was first.
    renamed: BTreeMap<Components, &'a Place>,
    plan: Plan,
}

impl<'a> Making<'a> {
    fn new(changes: &'a Changes, tree: &'a Tree) -> Result<Self, Unsure> {
        let prefix = rustix::fs::readlink(proc_path(tree.root_fd()), Vec::new())?.into_bytes();
        let (has_links, known_names) = (changes.has_links(), Arc::clone(changes.known_names()));
        let plan = Plan { steps: vec![Step::default()], moves: Vec::new(), has_links, known_names };
        let (places, renamed) = (HashMap::new(), BTreeMap::new());
        Ok(Self { changes, tree, prefix, places, renamed, plan })
    }

    /// Where a directory is; none if it is gone or outside.
    fn place(&mut self, handle: &'a [u8]) -> Result<Option<Arc<Components>>, Unsure> {
        if let Some(known) = self.places.get(handle) {
            return Ok(known.clone());
        }
        let place = match Key::of(handle) {
            // What has come to its place since is noted itself.
            Key::Path(path) => Some(Arc::new(components(path)?)),
            Key::Inode(_) => None,
            Key::Handle(handle) => match open_by_handle_at(self.tree.root_fd(), handle) {
                Ok(fd) => self.place_of(&fd)?.map(Arc::new),
                Err(error) if is_stale(&error) => None,
                Err(_) => return Err(Unsure),
            },
        };
        self.places.insert(handle, place.clone());
        Ok(place)
    }

    fn place_of(&self, directory: &OwnedFd) -> Result<Option<Components>, Unsure> {
        if Stat::of_fd(directory)?.nlink == 0 {
            return Ok(None);
        }
        let path = rustix::fs::readlink(proc_path(directory.as_fd()), Vec::new())?.into_bytes();
        self.below(&path).map(components).transpose()
    }

    /// Where each directory that was renamed was for the pass before.
    fn moves(&mut self) -> Result<(), Unsure> {
        for (own, was) in self.changes.moved() {
            if let Some(place) = self.place(own)? {
                self.renamed.insert((*place).clone(), was);
            }
        }
        let places: Vec<Components> = self.renamed.keys().cloned().collect();
        if places.len() > MAX_MOVES {
            return Err(Unsure);
        }
        for place in places {
            let Some(was) = self.was(&place, 0)? else { continue };
            let Ok(found) = self.stat(&place) else { continue };
            let moved = (was != place).then(|| {
                self.plan.moves.push(was);
                // There are at most MAX_MOVES.
                (self.plan.moves.len() - 1) as u32
            });
            if let Some(child) = self.plan.child_at(&place) {
                child.kept = Some(Kept { identity: found.identity(), moved });
            }
        }
        Ok(())
    }

    /// Where a directory was for the pass before that is at `place` now; none if that place is gone.
    fn was(&mut self, place: &[Box<[u8]>], nested: u32) -> Result<Option<Components>, Unsure> {
        if nested > MAX_NESTED {
            return Err(Unsure);
        }
        let renamed = (1..=place.len())
            .rev()
            .find_map(|length| self.renamed.get(&place[..length]).map(|was| (length, *was)));
        let Some((length, first)) = renamed else { return Ok(Some(place.to_vec())) };
        let Some(parent) = self.place(&first.parent)? else { return Ok(None) };
        let Some(mut was) = self.was(&parent, nested + 1)? else { return Ok(None) };
        was.push(first.name.clone());
        was.extend_from_slice(&place[length..]);
        Ok(Some(was))
    }

    /// What is noted in each directory.
    fn names(&mut self) -> Result<(), Unsure> {
        for (directory, names) in self.changes.directories() {
            let Some(place) = self.place(directory)? else { continue };
            let step = self.plan.step_at(&place);
            match names {
                Names::All => step.all = true,
                Names::Some(names) => {
                    for name in names.iter().filter(|name| &***name != b".") {
                        step.names.entry(name.clone()).or_default().noted = true;
                    }
                }
            }
        }
        Ok(())
    }

    fn doubted(&mut self, path: &Path) {
        let is_name = |part: &Component<'_>| matches!(part, Component::Normal(_));
        let names = path.components().filter(is_name).map(|name| name.as_os_str().as_bytes());
        let place: Components = names.map(Box::from).collect();
        if let Some(child) = self.plan.child_at(&place) {
            child.noted = true;
        }
    }

    /// An inode that changed under one of its names has changed under all of them, and nobody has noted those.
    fn other_names(&mut self) -> Result<(), Unsure> {
        let mut inodes = Inodes::default();
        let mut stack = vec![(0, Node::root())];
        while let Some((step, node)) = stack.pop() {
            self.collect(&mut inodes, &self.plan.steps[step], &node, &mut stack)?;
        }
        for file in self.changes.files() {
            match Key::of(file) {
                Key::Handle(file) => self.changed(file, &mut inodes)?,
                Key::Inode(identity) => inodes.was_here(identity),
                Key::Path(_) => return Err(Unsure),
            }
        }
        for place in inodes.missing(self.tree, self.changes.known_names())? {
            if let Some(child) = self.plan.child_at(&place) {
                child.noted = true;
            }
        }
        // One that was made meanwhile can be in a directory that is looked at wholly.
        self.plan.widen();
        Ok(())
    }

    /// A file has changed, under whichever names.
    fn changed(&self, file: &[u8], inodes: &mut Inodes) -> Result<(), Unsure> {
        match open_by_handle_at(self.tree.root_fd(), file) {
            Ok(fd) => {
                let found = Stat::of_fd(&fd)?;
                if found.nlink > 1 || !self.is_elsewhere(&fd, &found) {
                    inodes.changed(found.identity(), found.nlink);
                }
                Ok(())
            }
            Err(error) if is_stale(&error) => Ok(()),
            Err(_) => Err(Unsure),
        }
    }

    /// Collects the inodes with several names that the pass goes to in one directory; `stack` gets the
    /// directories where it goes on.
    fn collect(
        &self,
        inodes: &mut Inodes,
        step: &Step,
        node: &Arc<Node>,
        stack: &mut Vec<(usize, Arc<Node>)>,
    ) -> Result<(), Unsure> {
        let fd = match self.tree.open(node) {
            Ok(fd) => fd,
            Err(errno) if has_vanished(errno) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        for name in step.names.keys() {
            let found = match Stat::of(&fd, name) {
                Ok(found) => found,
                Err(errno) if has_vanished(errno) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if found.kind != Kind::Directory {
                inodes.add(&found, node.path_of(name));
                continue;
            }
            match step.below(name, found.identity(), Purpose::Pass) {
                Some((Scope::Whole, _)) => {
                    inodes.add_below(self.tree, node.child(name), &|_| true)?;
                }
                Some((Scope::Part(below), _)) => stack.push((below, node.child(name))),
                _ => {}
            }
        }
        if step.all {
            // Those that are named were looked at.
            let is_other = |name: &[u8]| !step.names.contains_key(name);
            inodes.add_below(self.tree, Arc::clone(node), &is_other)?;
        }
        Ok(())
    }

    /// Whether a file is surely outside the tree under the only name that it has.
    fn is_elsewhere(&self, file: &OwnedFd, found: &Stat) -> bool {
        let path = rustix::fs::readlink(proc_path(file.as_fd()), Vec::new());
        let Ok(path) = path.map(std::ffi::CString::into_bytes) else { return false };
        // One that was opened by its handle need not have been found in a directory yet.
        let is_there =
            Stat::of(rustix::fs::CWD, &path).is_ok_and(|s| s.identity() == found.identity());
        is_there && self.below(&path).is_none()
    }

    /// What of a path is below the root; none if it is not.
    fn below<'p>(&self, path: &'p [u8]) -> Option<&'p [u8]> {
        let below = path.strip_prefix(self.prefix.as_slice())?;
        let is_below = below.is_empty() || below.starts_with(b"/") || self.prefix == b"/";
        is_below.then_some(below)
    }

    fn stat(&self, place: &[Box<[u8]>]) -> Result<Stat, Errno> {
        let node = place.iter().fold(Node::root(), |node, name| node.child(name));
        Stat::of_fd(self.tree.open(&node)?)
    }
}
