//! Which owners' files the source gives out, and which others by name. It must not know what is done with what
//! is withheld.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::approvals::{self, Approvals};
use crate::entries::Withheld;
use crate::metadata::{Kind, Stat};
use crate::options::SourceOptions;

/// Which owners' files the source gives out, and which others by name.
#[derive(Debug, Clone)]
pub struct Owners {
    own: Option<BTreeSet<u32>>,
    shared: BTreeSet<u32>,
    approved: Arc<Approvals>,
}

impl Owners {
    /// Those of the options.
    pub fn of(options: &SourceOptions) -> Self {
        Self {
            own: options.uids.clone(),
            shared: options.shared_uids.clone(),
            approved: Arc::clone(&options.approved),
        }
    }

    /// Why the inode at `path` is withheld, if it is.
    pub fn withhold(&self, stat: &Stat, path: impl FnOnce() -> Vec<u8>) -> Option<Withheld> {
        let withheld = self.by_owner(stat)?;
        let approved = self.approved.at(path);
        (!approved.is_some_and(|approved| approvals::may_leave(stat, approved))).then_some(withheld)
    }

    /// Whether something was approved at `path`.
    pub fn is_approved(&self, path: impl FnOnce() -> Vec<u8>) -> bool {
        self.approved.at(path).is_some()
    }

    fn by_owner(&self, stat: &Stat) -> Option<Withheld> {
        let Some(own) = &self.own else { return None };
        let is_own = own.contains(&stat.uid);
        let is_shared = stat.uid == 0 || self.shared.contains(&stat.uid);
        if !is_own && !self.shared.contains(&stat.uid) {
            Some(Withheld::Foreign(stat.uid))
        } else if is_shared && stat.kind != Kind::Directory && stat.nlink > 1 {
            // The account may have given a name in its home to another's file.
            Some(Withheld::SharedLink(stat.uid))
        } else {
            None
        }
    }
}
