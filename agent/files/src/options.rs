//! What a caller decides about a pass: whose files, what is left out, how fast. It must not know
//! how a pass is carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::directories::Directories;

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
}

impl IdMap {
    /// A map of one user and one group.
    pub fn of(uid: (u32, u32), gid: (u32, u32)) -> Self {
        Self { uids: BTreeMap::from([uid]), gids: BTreeMap::from([gid]), ..Self::default() }
    }

    /// Whether `uid` of the target may have other accounts' files.
    pub(crate) fn is_shared_uid(&self, uid: u32) -> bool {
        uid == 0 || self.shared_uids.contains(&uid)
    }

    /// Whether `gid` of the target may have other accounts' files.
    pub(crate) fn is_shared_gid(&self, gid: u32) -> bool {
        gid == 0 || self.shared_gids.contains(&gid)
    }
}

/// What the source side decides.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// The user ids, here at the source, whose files are the account's. Files of any other are
    /// withheld: the account may have hard-linked them into its home.
    pub uids: BTreeSet<u32>,
    /// User ids whose files are taken too although other accounts have files of them
    /// (`www-data`, `vmail`), unless the file has more than one name. 0 always counts as shared.
    pub shared_uids: BTreeSet<u32>,
    /// Paths below the root that are not copied and are left alone at the target, with all below
    /// them.
    pub excludes: Vec<PathBuf>,
    /// At most so many bytes a second on the stream.
    pub bandwidth: Option<u64>,
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
    /// Flush the source's file system first, so that later writes through a shared mapping show
    /// in the file's time. A pass while there are writers needs it; one behind a fence does not.
    pub settle: bool,
}

impl SourceOptions {
    /// Options for the account whose files belong to `uids`.
    pub fn new(uids: impl IntoIterator<Item = u32>) -> Self {
        Self {
            uids: uids.into_iter().collect(),
            shared_uids: BTreeSet::new(),
            excludes: Vec::new(),
            bandwidth: None,
            changed_since: None,
            known: None,
            doubted: BTreeSet::new(),
            seen: None,
            settle: true,
        }
    }
}

/// What the target side decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetOptions {
    /// Which ids are the account's, and what they are here.
    pub ids: IdMap,
    /// Delete what the source does not have.
    pub delete: bool,
    /// Go on although the source's root is empty and ours is not. Without it that is a halt: a
    /// file system that is not mounted looks the same.
    pub allow_emptied: bool,
    /// Flush the target's file system before the pass is reported done. Only a test has reason
    /// to switch it off.
    pub durable: bool,
}

impl TargetOptions {
    /// Options that make the target equal to the source, deletions included.
    pub fn new(ids: IdMap) -> Self {
        Self { ids, delete: true, allow_emptied: false, durable: true }
    }
}
