//! Inodes with several names that a walk meets: which of their names belong together, and of which not all were met.
//! Whoever changes such a one by a name that is elsewhere is told of by no journal of the tree. It must not know how
//! the walk goes.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use crate::entries::Link;
use crate::journal::{Changes, KnownNames, Lost, Plan, of_inode};
use crate::metadata::{Identity, Stat};

/// A bound on inodes whose other names were not met yet.
pub const MAX_LINKS: usize = 4_000_000;
/// So many that have names elsewhere are looked at by every pass; if there are more, everything is.
const MAX_ELSEWHERE: usize = 10_000;

/// See the module.
#[derive(Debug, Default)]
pub struct Linked {
    /// Those of which not all names were met.
    met: HashMap<Identity, Seen>,
    next_group: u64,
    /// Directories that have such names.
    directories: HashSet<Identity>,
    /// There were more than are kept.
    is_full: bool,
    /// Where they were met.
    names: KnownNames,
}

#[derive(Debug)]
struct Seen {
    group: u64,
    met: u32,
}

impl Linked {
    /// A directory is listed that has such names. False if it was listed before, in another place: its names are then
    /// met for the second time.
    pub fn enter(&mut self, directory: Identity) -> bool {
        self.directories.insert(directory)
    }

    /// One has a name in a directory; `is_new`: that name was not met before. Answers its group.
    pub fn meet(&mut self, stat: &Stat, is_new: bool) -> Option<Link> {
        let names = stat.nlink;
        let has_room = self.met.len() < MAX_LINKS;
        match self.met.entry(stat.identity()) {
            Entry::Occupied(mut seen) => {
                let Seen { group, met } = seen.get_mut();
                *met += u32::from(is_new);
                let link = Link { group: *group, names };
                if *met >= names {
                    seen.remove();
                }
                Some(link)
            }
            // Beyond the bound names become files of their own; the comparison shows it.
            Entry::Vacant(_) if !has_room => {
                self.is_full = true;
                None
            }
            Entry::Vacant(free) => {
                let group = self.next_group;
                self.next_group += 1;
                free.insert(Seen { group, met: 1 });
                Some(Link { group, names })
            }
        }
    }

    /// Whether it is kept where such names are met.
    pub fn keeps_names(&self) -> bool {
        !self.names.is_full()
    }

    /// One that has several was met at `path`.
    pub fn was_at(&mut self, identity: Identity, path: &[u8]) {
        self.names.note(identity, path);
    }

    /// What the next pass has to look at, whatever the journal tells it, and what it need not look for; `plan`: of
    /// this one, if it did not look at everything.
    pub fn elsewhere(&mut self, plan: Option<&Plan>) -> Changes {
        let mut changes = Changes::default();
        let mut names = std::mem::take(&mut self.names);
        if let Some(plan) = plan {
            names.add_earlier(plan.known_names());
        }
        changes.know(names);
        if self.next_group > 0 || plan.is_some_and(Plan::has_links) {
            changes.note_links();
        }
        if self.is_full || self.met.len() > MAX_ELSEWHERE {
            changes.lose(Lost::TooMany);
        }
        self.met.keys().for_each(|identity| changes.note_file(&of_inode(*identity)));
        changes
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::metadata::Kind;

    /// Meets all files in a directory.
    fn meet(linked: &mut Linked, directory: &Path) {
        let open = std::fs::File::open(directory).unwrap();
        let is_new = linked.enter(Stat::of_fd(&open).unwrap().identity());
        for entry in std::fs::read_dir(directory).unwrap() {
            let name = entry.unwrap().file_name();
            let stat = Stat::of(&open, name.as_encoded_bytes()).unwrap();
            if stat.kind == Kind::File && stat.nlink > 1 {
                linked.meet(&stat, is_new);
            }
        }
    }

    #[test]
    fn what_has_names_elsewhere_is_looked_at_by_the_next_pass() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["a", "b", "outside"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        for name in ["a/inside", "a/several", "a/one"] {
            std::fs::write(path(name), "").unwrap();
        }
        std::fs::hard_link(path("a/inside"), path("b/inside")).unwrap();
        std::fs::hard_link(path("a/several"), path("outside/several")).unwrap();
        let mut linked = Linked::default();
        assert!(!linked.elsewhere(None).has_links());
        meet(&mut linked, &path("a"));
        meet(&mut linked, &path("b"));
        let changes = linked.elsewhere(None);
        let several = Stat::of(rustix::fs::CWD, path("a/several").as_os_str().as_encoded_bytes());
        let expected = of_inode(several.unwrap().identity());
        assert_eq!(changes.files().collect::<Vec<_>>(), [&*expected]);
        assert!(changes.has_links() && changes.lost().is_none());
        // A directory that was renamed meanwhile comes twice; no more names of its files were met by that.
        std::fs::rename(path("a"), path("c")).unwrap();
        meet(&mut linked, &path("c"));
        assert!(linked.elsewhere(None).files().any(|file| *file == *expected));
    }

    #[test]
    fn beyond_the_bound_the_next_pass_looks_at_everything() {
        let mut linked = Linked::default();
        for ino in 0..=MAX_ELSEWHERE as u64 {
            linked.met.insert(Identity { dev: (8, 1), ino }, Seen { group: ino, met: 1 });
        }
        assert_eq!(linked.elsewhere(None).lost(), Some(Lost::TooMany));
        linked.met.remove(&Identity { dev: (8, 1), ino: 0 });
        assert_eq!(linked.elsewhere(None).lost(), None);
    }
}
