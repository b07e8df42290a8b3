//! What a caller decides about a pass: whose files, what is left out, how fast. It must not know
//! how a pass is carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use ferry_proto::approval::FIXED_IDS;
use serde::{Deserialize, Serialize};

use crate::approvals::Approvals;
use crate::directories::Directories;
use crate::journal::{Changes, Plan};
use crate::limits::Limits;

/// The numeric ids that files of the account may have, from the source's to the target's.
/// An id that is not in the map is foreign: what belongs to it is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// User ids: the source's to the target's.
    pub uids: BTreeMap<u32, u32>,
    /// Group ids: the source's to the target's.
    pub gids: BTreeMap<u32, u32>,
    /// Those user ids *of the target* in `uids` that other accounts have files of too (`www-data`,
    /// `vmail`). No setuid file may belong to one. 0 always counts as shared.
    #[serde(default)]
    pub shared_uids: BTreeSet<u32>,
    /// Those group ids *of the target* in `gids` that other accounts have files of too. No setgid
    /// file may belong to one. 0 always counts as shared.
    #[serde(default)]
    pub shared_gids: BTreeSet<u32>,
    /// What becomes of ids that are not in the maps.
    #[serde(default)]
    pub others: Others,
}

/// What becomes of ids that nobody has named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Others {
    /// They are foreign.
    #[default]
    Refused,
    /// They are the same numbers at the target, and count as shared.
    Kept,
}

impl IdMap {
    /// A map of one user and one group.
    pub fn of(uid: (u32, u32), gid: (u32, u32)) -> Self {
        Self { uids: BTreeMap::from([uid]), gids: BTreeMap::from([gid]), ..Self::default() }
    }

    /// A map of all numbers to themselves, for trees that are no account's.
    pub fn same() -> Self {
        Self { others: Others::Kept, ..Self::default() }
    }

    /// The same for what was approved: numbers that mean the same on every server are what they are, whatever a
    /// peer says of them.
    pub(crate) fn with_fixed(&self) -> Self {
        let with_fixed = |map: &BTreeMap<u32, u32>| {
            let own =
                map.iter().filter(|(there, here)| **there >= FIXED_IDS && **here >= FIXED_IDS);
            own.map(|(there, here)| (*there, *here))
                .chain((0..FIXED_IDS).map(|id| (id, id)))
                .collect()
        };
        let (uids, gids) = (with_fixed(&self.uids), with_fixed(&self.gids));
        Self { uids, gids, others: Others::Refused, ..self.clone() }
    }

    /// What the source's user `uid` is at the target; none if it is foreign.
    pub(crate) fn uid(&self, uid: u32) -> Option<u32> {
        self.of_source(&self.uids, uid)
    }

    /// What the source's group `gid` is at the target; none if it is foreign.
    pub(crate) fn gid(&self, gid: u32) -> Option<u32> {
        self.of_source(&self.gids, gid)
    }

    fn of_source(&self, map: &BTreeMap<u32, u32>, id: u32) -> Option<u32> {
        map.get(&id).copied().or((self.others == Others::Kept).then_some(id))
    }

    /// Whether the tree may have files of `uid` at the target.
    pub(crate) fn has_uid(&self, uid: u32) -> bool {
        self.others == Others::Kept || self.uids.values().any(|own| *own == uid)
    }

    /// Whether `uid` of the target may have other accounts' files.
    pub(crate) fn is_shared_uid(&self, uid: u32) -> bool {
        uid == 0 || self.shared_uids.contains(&uid) || self.is_other(&self.uids, uid)
    }

    /// Whether `gid` of the target may have other accounts' files.
    pub(crate) fn is_shared_gid(&self, gid: u32) -> bool {
        gid == 0 || self.shared_gids.contains(&gid) || self.is_other(&self.gids, gid)
    }

    fn is_other(&self, map: &BTreeMap<u32, u32>, id: u32) -> bool {
        self.others == Others::Kept && !map.values().any(|own| *own == id)
    }
}

/// What the source side decides.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// The user ids, here at the source, whose files are the account's. Files of any other are
    /// withheld: the account may have hard-linked them into its home. None: the tree is no account's, and
    /// whoever may read it gives it all out.
    pub uids: Option<BTreeSet<u32>>,
    /// User ids whose files are taken too although other accounts have files of them
    /// (`www-data`, `vmail`), unless the file has more than one name. 0 always counts as shared.
    pub shared_uids: BTreeSet<u32>,
    /// What is given out although it is another's, as it was seen.
    pub approved: Arc<Approvals>,
    /// Paths below the root that are not copied and are left alone at the target, with all below
    /// them.
    pub excludes: Vec<PathBuf>,
    /// How fast it may be: what is sent to the target, and contents read here.
    pub limits: Limits,
    /// Files whose inode changed at or after this moment are copied (or, when verifying, read) even
    /// if size and time look the same. Give the start of the previous pass, less a minute.
    /// When verifying, contents of older files are not read; none: every content is read.
    pub changed_since: Option<SystemTime>,
    /// The directories of the walk that `changed_since` is about. Files in any other, or
    /// below one, count as changed, and another root is a fault: what is mounted there may be missing.
    pub known: Option<Arc<Directories>>,
    /// Files below the root that count as changed in any case.
    pub doubted: BTreeSet<PathBuf>,
    /// Where to note the directories of this walk.
    pub seen: Option<Arc<Mutex<Directories>>>,
    /// Where to note what the next pass has to look at, whatever its journal tells.
    pub elsewhere: Option<Arc<Mutex<Changes>>>,
    /// What is looked at; none: everything. The target must be what the pass before left when the journal that
    /// this is made of began.
    pub plan: Option<Arc<Plan>>,
    /// Flush the source's file system first, so that later writes through a shared mapping show
    /// in the file's time. A pass while there are writers needs it; one behind a fence does not.
    pub settle: bool,
    /// Files that share what they hold (`cp --reflink`) are to share it at the target as well. That takes a pass some
    /// time: one behind a fence has none.
    pub share: bool,
    /// So many directories are walked at once.
    pub walkers: usize,
    /// Leave the host to others where it is busy.
    pub calm: bool,
}

impl SourceOptions {
    /// Options for the account whose files belong to `uids`.
    pub fn new(uids: impl IntoIterator<Item = u32>) -> Self {
        Self { uids: Some(uids.into_iter().collect()), ..Self::everyone() }
    }

    /// Options for a tree that is no account's.
    pub fn everyone() -> Self {
        Self {
            uids: None,
            shared_uids: BTreeSet::new(),
            approved: Arc::default(),
            excludes: Vec::new(),
            limits: Limits::default(),
            changed_since: None,
            known: None,
            doubted: BTreeSet::new(),
            seen: None,
            elsewhere: None,
            plan: None,
            settle: true,
            share: true,
            walkers: workers(),
            calm: false,
        }
    }
}

/// What the target side decides.
#[derive(Debug, Clone)]
pub struct TargetOptions {
    /// Which ids are the account's, and what they are here.
    pub ids: IdMap,
    /// What is let in although an account may not have it, as it was seen at the source.
    pub approved: Arc<Approvals>,
    /// Delete what the source does not have.
    pub delete: bool,
    /// Go on although the source's root is empty and ours is not. Without it that is a halt: a
    /// file system that is not mounted looks the same.
    pub allow_emptied: bool,
    /// Flush the target's file system before the pass is reported done. Only a test has reason
    /// to switch it off.
    pub durable: bool,
    /// Files here whose inode changed at or after this moment are not taken for equal, whatever their size
    /// and time: what was written then may never have reached the disk.
    pub distrusted_since: Option<SystemTime>,
    /// Files that share what they hold at the source are to share it here as well.
    pub share: bool,
    /// How fast it may be: what is sent to the source, and contents written and read here.
    pub limits: Limits,
    /// So many directories are worked on at once.
    pub workers: usize,
    /// Leave the host to others where it is busy.
    pub calm: bool,
}

impl TargetOptions {
    /// Options that make the target equal to the source, deletions included.
    pub fn new(ids: IdMap) -> Self {
        Self {
            ids,
            approved: Arc::default(),
            delete: true,
            allow_emptied: false,
            durable: true,
            distrusted_since: None,
            share: true,
            limits: Limits::default(),
            workers: workers(),
            calm: false,
        }
    }
}

/// As many as there are processors, within what a disk's queue makes use of.
fn workers() -> usize {
    /// A disk that has to be waited for is faster when it is asked for several things at once.
    const FEWEST: usize = 2;
    const MOST: usize = 8;
    std::thread::available_parallelism().map_or(FEWEST, |n| n.get().clamp(FEWEST, MOST))
}
