//! The change journals of this server: which trees are watched, and what of each the next pass or comparison has
//! to look at. A journal makes passes shorter and promises nothing: where there is none, where it may have
//! missed something, or where the last pass did not end, everything is looked at. It must not know how files
//! are copied.

mod kept;
mod passing_on;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ferry_files::journal::{Backend, Changes, Extent, Plan, Watch, Watched, Whose};
use ferry_proto::Fault;
use ferry_proto::ids::{AccountName, JobId};
use rustix::fs::{AtFlags, StatxFlags};

pub use self::kept::KeptWatch;

/// See the module.
#[derive(Debug, Default)]
pub struct Journals(Mutex<All>);

#[derive(Debug, Default)]
struct All {
    /// Nothing is watched: as where it cannot be.
    #[cfg(test)]
    are_off: bool,
    journals: HashMap<AccountName, OfMove>,
    /// One for all trees that are seen through one mount.
    watches: HashMap<(Mount, Whose), Weak<Watch>>,
}

/// Which mount, and which device it is of.
type Mount = (u64, u32, u32);

#[derive(Debug)]
struct OfMove {
    of: JobId,
    whose: Whose,
    /// None: it was given up, or there cannot be one.
    journal: Option<Arc<Journal>>,
}

/// The journal of one tree.
#[derive(Debug)]
pub struct Journal {
    root: PathBuf,
    /// Which directory that was: device and inode.
    identity: Option<(u64, u64)>,
    tree: Watched,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The other end is what a pass left that began when the changes begin that were not taken yet.
    follows: bool,
    /// What has changed since a comparison of everything began; none if there was none.
    compared: Option<Changes>,
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked has at most taken changes, and then all counts as changed.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journals {
    /// The journal of the account's tree at `root` for the move of `job`, from now on if there was none. None: it
    /// cannot be watched.
    pub fn of(
        &self,
        account: &AccountName,
        root: &Path,
        job: JobId,
        whose: Whose,
    ) -> Option<Arc<Journal>> {
        let begins = OfMove { of: job, whose, journal: None };
        let watch = {
            let mut all = lock(&self.0);
            if let Some(old) = all.same(account, root, &begins) {
                return old.journal.clone();
            }
            all.watch(root, whose)
        };
        // Nobody waits for it: a tree that has to be looked through takes time.
        let journal = watch.and_then(|watch| Journal::of(&watch, root)).inspect_err(|fault| {
            tracing::info!(%account, "no change journal, every pass looks at everything: {fault}");
        });
        let journal = journal.ok().map(Arc::new);
        let mut all = lock(&self.0);
        if let Some(other) = all.same(account, root, &begins) {
            return other.journal.clone();
        }
        // Where there is none the next pass does not try again: a tree may have to be looked through for that, too.
        let of_move = OfMove { journal: journal.clone(), ..begins };
        all.journals.insert(account.clone(), of_move);
        journal
    }

    /// From now on nothing is watched.
    #[cfg(test)]
    pub fn switch_off(&self) {
        *lock(&self.0) = All { are_off: true, ..All::default() };
    }

    /// The account's journal, if it has one for this move.
    pub fn existing(&self, account: &AccountName, job: JobId) -> Option<Arc<Journal>> {
        let all = lock(&self.0);
        let found = all.journals.get(account).filter(|journal| journal.of == job);
        found.and_then(|found| found.journal.clone())
    }

    /// The account's journal has missed something: its move goes on without one.
    pub fn give_up(&self, account: &AccountName) {
        let mut all = lock(&self.0);
        let journal = all.journals.get_mut(account).and_then(|of_move| of_move.journal.take());
        drop(all);
        drop(journal);
    }

    /// The move is over.
    pub fn forget(&self, account: &AccountName) {
        let journal = lock(&self.0).journals.remove(account);
        drop(journal);
    }
}

impl All {
    /// What the account has, if it is of the same move and tree.
    fn same(&self, account: &AccountName, root: &Path, begins: &OfMove) -> Option<&OfMove> {
        self.journals.get(account).filter(|old| {
            let is_here = old.journal.as_ref().is_none_or(|journal| journal.root == root);
            (old.of, old.whose) == (begins.of, begins.whose) && is_here
        })
    }

    fn watch(&mut self, root: &Path, whose: Whose) -> Result<Arc<Watch>, Fault> {
        #[cfg(test)]
        if self.are_off {
            return Err(Fault::precondition("switched off"));
        }
        let fd = opened(root)?;
        let key = (mount(&fd).map_err(|e| cannot_open(root, &e))?, whose);
        self.watches.retain(|_, watch| watch.strong_count() > 0);
        if let Some(watch) = self.watches.get(&key).and_then(Weak::upgrade) {
            return Ok(watch);
        }
        let watch = Arc::new(Watch::start(fd.into(), Backend::Renames, whose)?);
        self.watches.insert(key, Arc::downgrade(&watch));
        Ok(watch)
    }
}

fn mount(root: &File) -> std::io::Result<Mount> {
    let found = rustix::fs::statx(root, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    Ok((found.stx_mnt_id, found.stx_dev_major, found.stx_dev_minor))
}

fn identity(root: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(root).ok()?;
    Some((found.dev(), found.ino()))
}

fn opened(root: &Path) -> Result<File, Fault> {
    File::open(root).map_err(|e| cannot_open(root, &e))
}

fn cannot_open(root: &Path, error: &std::io::Error) -> Fault {
    Fault::io(format!("{} cannot be opened", root.display()), error)
}

impl Journal {
    fn of(watch: &Arc<Watch>, root: &Path) -> Result<Self, Fault> {
        Ok(Self::with(watch.tree(root)?, root, State::default()))
    }

    fn with(tree: Watched, root: &Path, state: State) -> Self {
        let state = Mutex::new(state);
        Self { root: root.to_owned(), identity: identity(root), tree, state }
    }

    /// Whether the directory at the root's place is still the one that is watched.
    fn is_there(&self) -> bool {
        self.identity.is_some() && identity(&self.root) == self.identity
    }

    /// A journal of the tree at `root`, of no move.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn alone(root: &Path) -> Result<Self, Fault> {
        let watch = Watch::start(opened(root)?.into(), Backend::Renames, Whose::Everybodys)?;
        Self::of(&Arc::new(watch), root)
    }

    /// What the kernel tells it.
    pub fn backend(&self) -> Backend {
        self.tree.backend()
    }

    /// Watches anew what was given up because it got too much. Not behind a fence: it takes time.
    pub fn renew(&self) {
        self.tree.renew();
    }

    /// What a pass that begins now has to look at; none: everything. Until [`Self::passed`] is called the next
    /// pass looks at everything.
    ///
    /// # Errors
    /// The root is not there.
    pub fn pass(&self, doubted: &BTreeSet<PathBuf>) -> Result<Option<Plan>, Fault> {
        let mut state = lock(&self.state);
        let changes = self.tree.take();
        if let Some(compared) = state.compared.take() {
            let mut all = changes.clone();
            all.put_back(compared);
            state.compared = Some(all);
        }
        if !std::mem::take(&mut state.follows) || !self.is_there() {
            return Ok(None);
        }
        Plan::of(&changes, &self.root, doubted.iter().map(PathBuf::as_path))
    }

    /// The pass has ended: the other end is what it left. `elsewhere`: what it says that the next one has to look at.
    pub fn passed(&self, elsewhere: Changes) {
        let mut state = lock(&self.state);
        self.tree.put_back(elsewhere);
        state.follows = true;
    }

    /// How much has changed since the last pass began; none: more than is noted, and the next one looks at everything.
    ///
    /// # Errors
    /// The root is not there.
    pub fn changed(&self) -> Result<Option<Extent>, Fault> {
        if self.is_there() { Extent::of(&self.tree, &self.root) } else { Ok(None) }
    }

    /// A comparison of everything begins.
    pub fn compares(&self) {
        lock(&self.state).compared = Some(Changes::default());
    }

    /// Whether the next pass looks at all that a comparison found to differ at these paths. If not, the journal has
    /// missed something.
    ///
    /// # Errors
    /// The root is not there.
    pub fn explains<'a>(&self, paths: impl IntoIterator<Item = &'a Path>) -> Result<bool, Fault> {
        let state = lock(&self.state);
        let changes = self.tree.take();
        let plan = Plan::of(&changes, &self.root, []);
        self.tree.put_back(changes);
        drop(state);
        Ok(plan?.is_none_or(|plan| paths.into_iter().all(|path| plan.goes_to(path))))
    }

    /// What has to be compared so that all is, after a comparison of everything; none: everything.
    ///
    /// # Errors
    /// The root is not there.
    pub fn comparison(&self, doubted: &BTreeSet<PathBuf>) -> Result<Option<Plan>, Fault> {
        if !self.backend().is_complete() {
            return Ok(None);
        }
        let mut state = lock(&self.state);
        let Some(compared) = state.compared.take() else { return Ok(None) };
        let mut changes = self.tree.take();
        // A pass after this one would miss them.
        state.follows &= changes.is_empty() && changes.files().next().is_none();
        changes.put_back(compared);
        let doubted = doubted.iter().map(PathBuf::as_path);
        let plan = self.is_there().then(|| Plan::of(&changes, &self.root, doubted));
        state.compared = Some(changes);
        Ok(plan.transpose()?.flatten())
    }

    /// Whether nobody has changed anything since a comparison of everything began.
    pub fn is_as_compared(&self) -> bool {
        let mut state = lock(&self.state);
        let Some(compared) = state.compared.take() else { return false };
        let mut changes = self.tree.take();
        changes.put_back(compared);
        state.compared.insert(changes).is_empty() && self.is_there()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::a_move;

    #[test]
    fn what_could_not_be_watched_is_not_tried_again_by_the_same_move() {
        let (journals, dir) = (Journals::default(), tempfile::tempdir_in("/dev/shm").unwrap());
        let (of, root) = (a_move(), dir.path().join("home"));
        let begins = |job| journals.of(&of.account, &root, job, Whose::Everybodys).is_some();
        assert!(!begins(of.job));
        std::fs::create_dir(&root).unwrap();
        assert!(!begins(of.job), "it was tried again");
        journals.forget(&of.account);
        assert!(begins(of.job));
    }
}
