//! The Unix users that may be accounts, and whose a path is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use ferry_proto::Fault;

use crate::users::passwd::Database;
use crate::{Layout, durable};

/// Debian's range for people, where `/etc/login.defs` does not say.
const RANGE: (u32, u32) = (1000, 60_000);
/// The most users that are looked at.
const MOST: usize = 20_000;
const DEFS_CAP: u64 = 1 << 20;

/// One user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Person {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: PathBuf,
    pub(super) shell: String,
    /// The supplementary groups, with their ids.
    pub(super) groups: Vec<(String, u32)>,
}

impl Person {
    /// Whether the user may have a shell. One that may not may still own sites.
    pub(super) fn logs_in(&self) -> bool {
        !["nologin", "false"].iter().any(|no| self.shell.ends_with(&format!("/{no}")))
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct People(Vec<Person>);

impl People {
    /// The users with an id of people's whose home is a directory.
    pub(super) fn read(layout: &Layout) -> Result<Self, Fault> {
        let database = Database::read(layout)?;
        let (first, last) = range(layout);
        let mut people: Vec<Person> = Vec::new();
        for user in database.users().iter().take(MOST) {
            let home = PathBuf::from(&user.home);
            let plain = home.is_absolute() && home != Path::new("/") && is_normal(&home);
            let eligible = (first..=last).contains(&user.uid) && user.name != "nobody";
            if eligible && plain && layout.path(&home).is_dir() {
                people.push(Person {
                    name: user.name.clone(),
                    uid: user.uid,
                    gid: user.gid,
                    shell: user.shell().to_owned(),
                    groups: groups(&database, &user.name),
                    home,
                });
            }
        }
        Ok(Self(people))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Person)> {
        self.0.iter().enumerate()
    }

    pub(super) fn get(&self, index: usize) -> &Person {
        // Indices come from this list, which does not change.
        &self.0[index]
    }

    pub(super) fn named(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|p| p.name == name)
    }

    /// In whose home `path` is, the innermost if homes are nested, and where there.
    pub(super) fn home_of(&self, path: &Path) -> Option<(usize, PathBuf)> {
        if !is_normal(path) {
            return None;
        }
        let within = self.0.iter().enumerate().filter(|(_, p)| path.starts_with(&p.home));
        let (index, person) = within.max_by_key(|(_, p)| p.home.components().count())?;
        Some((index, path.strip_prefix(&person.home).ok()?.to_owned()))
    }

    /// The same, for a path that leads into a home by symlinks. `None` where it is not there.
    pub(super) fn real_home_of(&self, layout: &Layout, path: &Path) -> Option<(usize, PathBuf)> {
        let real = fs::canonicalize(layout.path(path)).ok()?;
        let root = fs::canonicalize(layout.root()).ok()?;
        self.home_of(&Path::new("/").join(real.strip_prefix(root).ok()?))
    }

    /// Whose the entry at `path` is by its owner.
    pub(super) fn owner_of(&self, layout: &Layout, path: &Path) -> Option<usize> {
        let uid = fs::symlink_metadata(layout.path(path)).ok()?.uid();
        self.0.iter().position(|p| p.uid == uid)
    }

    /// Whose name `text` bears: equal to it, or before an underscore, as panels do; the longest name.
    /// True: equal.
    pub(super) fn by_name(&self, text: &str) -> Option<(usize, bool)> {
        let bears = |name: &str| {
            text.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        };
        let found = self.0.iter().enumerate().filter(|(_, p)| bears(&p.name));
        let (index, person) = found.max_by_key(|(_, p)| p.name.len())?;
        Some((index, person.name == text))
    }
}

/// Absolute, without `..`.
pub(super) fn is_normal(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
}

fn groups(database: &Database, user: &str) -> Vec<(String, u32)> {
    let member = |name: &str| database.group(name).map(|g| (g.name.clone(), g.gid));
    database.groups_of(user).filter_map(member).collect()
}

fn range(layout: &Layout) -> (u32, u32) {
    let bytes = durable::read(&layout.path("/etc/login.defs"), DEFS_CAP).ok().flatten();
    let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
    let value = |key: &str| {
        let mut values = text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(key)).then(|| words.next()?.parse().ok()).flatten()
        });
        values.next()
    };
    (value("UID_MIN").unwrap_or(RANGE.0).max(100), value("UID_MAX").unwrap_or(RANGE.1))
}
