//! What has changed on a file system since somebody last asked: names in directories, each directory by its
//! handle, so that noting costs no look at the disk and a directory that moves meanwhile stays what it is. In
//! bounded memory: what would be more is remembered less exactly. It must not know where the events come from.

mod saved;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::known_names::KnownNames;

/// A directory of which more names than this have changed is looked at as a whole.
const MAX_NAMES: usize = 10_000;
/// Bytes of handles and names, roughly. Beyond it directories are looked at as a whole, and beyond it still
/// the tree is.
const MAX_BYTES: usize = 64 << 20;
/// Looking through all directories is to gain this much, lest it be done again for every few changes.
const WORTHWHILE: usize = MAX_BYTES / 8;
/// What an item costs beside its bytes, roughly.
const ITEM: usize = 48;

/// What a directory or a file is known by: a `struct file_handle`, as the kernel gives it, or a key that stands for
/// one.
pub type Handle = Box<[u8]>;

/// Names in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// These.
    Some(HashSet<Box<[u8]>>),
    /// Any.
    All,
}

/// Where a directory was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// In which directory.
    pub parent: Handle,
    /// Under which name.
    pub name: Box<[u8]>,
}

/// Why more may have changed than was noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The kernel had more events than it keeps.
    Overflow,
    /// There were more changes than are kept.
    TooMany,
    /// An event did not say where, or a file that was changed has gone that may have other names.
    Unplaced,
    /// The events could not be read.
    Unreadable,
    /// There are more directories than are watched.
    Unwatched,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    directories: HashMap<Handle, Names>,
    /// Directories that were given another place, by their own handles: where each was first.
    moved: HashMap<Handle, Place>,
    /// Directories that were made, or came from elsewhere: whoever asked before has never seen them.
    fresh: HashSet<Handle>,
    /// There were too many of both: those that follow are not noted either.
    without_moves: bool,
    /// Files that changed, by their own handles: one may have lost the name that it was changed by, and have
    /// another one.
    files: HashSet<Handle>,
    /// Something may have left the tree with files in it of which others have stayed under other names.
    has_left: bool,
    /// The tree had files with several names.
    has_links: bool,
    /// Where those were.
    names: Arc<KnownNames>,
    /// Names in directories that are looked at as a whole by now: roughly, and as many as there were until then.
    unnamed: usize,
    bytes: usize,
    lost: Option<Lost>,
}

impl Changes {
    /// Something happened to `name` in `directory`; to the directory itself, if that is `.`.
    pub fn note(&mut self, directory: &[u8], name: &[u8]) {
        if self.lost.is_some() {
            return;
        }
        let names = match self.directories.get_mut(directory) {
            Some(names) => names,
            None => {
                self.bytes += directory.len() + ITEM;
                let none = Names::Some(HashSet::new());
                self.directories.entry(directory.into()).or_insert(none)
            }
        };
        let Names::Some(some) = names else { return };
        if some.contains(name) {
            return;
        }
        self.bytes += name.len() + ITEM;
        some.insert(name.into());
        if some.len() > MAX_NAMES {
            self.widen(directory);
        }
        if self.bytes > MAX_BYTES {
            self.shrink();
        }
    }

    /// Anything may have happened in `directory`, not below it.
    fn note_all(&mut self, directory: &[u8]) {
        self.note(directory, b".");
        self.widen(directory);
    }

    /// What was noted in `directory` is remembered as a whole.
    fn widen(&mut self, directory: &[u8]) {
        let Some(names) = self.directories.get_mut(directory) else { return };
        if let Names::Some(some) = std::mem::replace(names, Names::All) {
            let bytes: usize = some.iter().map(|name| name.len() + ITEM).sum();
            self.bytes = self.bytes.saturating_sub(bytes);
            self.unnamed += some.len();
        }
    }

    /// Remembers less: whole directories, none of which was elsewhere; and if those are too many, nothing.
    fn shrink(&mut self) {
        let all: Vec<Handle> = self.directories.keys().cloned().collect();
        all.iter().for_each(|directory| self.widen(directory));
        let Self { moved, fresh, .. } = self;
        let moved = moved.drain().map(|(own, place)| weight(&own, &place)).sum::<usize>();
        let fresh = fresh.drain().map(|own| own.len() + ITEM).sum::<usize>();
        self.bytes = self.bytes.saturating_sub(moved + fresh);
        self.without_moves = true;
        if self.bytes > MAX_BYTES - WORTHWHILE {
            self.lose(Lost::TooMany);
        }
    }

    /// The directory `own` was `name` in `parent` and is elsewhere now.
    pub fn note_moved(&mut self, own: &[u8], parent: &[u8], name: &[u8]) {
        let is_known = self.moved.contains_key(own) || self.fresh.contains(own);
        if self.lost.is_some() || self.without_moves || is_known {
            return;
        }
        let place = Place { parent: parent.into(), name: name.into() };
        self.bytes += weight(own, &place);
        self.moved.insert(own.into(), place);
        if self.bytes > MAX_BYTES {
            self.shrink();
        }
    }

    /// The directory `own` was made, or came from where nothing is noted.
    pub fn note_fresh(&mut self, own: &[u8]) {
        // One that went away and came back is what it was.
        let is_known = self.moved.contains_key(own) || self.fresh.contains(own);
        if self.lost.is_some() || self.without_moves || is_known {
            return;
        }
        self.bytes += own.len() + ITEM;
        self.fresh.insert(own.into());
        if self.bytes > MAX_BYTES {
            self.shrink();
        }
    }

    /// The file `own` has changed, under whichever name.
    pub fn note_file(&mut self, own: &[u8]) {
        if self.lost.is_some() || self.files.contains(own) {
            return;
        }
        self.bytes += own.len() + ITEM;
        self.files.insert(own.into());
        if self.bytes > MAX_BYTES {
            self.shrink();
        }
    }

    /// A directory has left the tree, or may have: a file in it that has another name here can be changed from there.
    pub fn note_left(&mut self) {
        self.has_left = true;
        self.lose_if_divided();
    }

    /// There are files with several names.
    pub fn note_links(&mut self) {
        self.has_links = true;
        self.lose_if_divided();
    }

    /// Under which names files that have several were met.
    pub(crate) fn know(&mut self, names: KnownNames) {
        self.names = Arc::new(names);
    }

    /// Where files with several names were, as far as that is known.
    pub(crate) fn known_names(&self) -> &Arc<KnownNames> {
        &self.names
    }

    fn lose_if_divided(&mut self) {
        if self.has_left && self.has_links {
            self.lose(Lost::Unplaced);
        }
    }

    /// Whether there are files with several names.
    pub fn has_links(&self) -> bool {
        self.has_links
    }

    /// More may have changed than is noted.
    pub fn lose(&mut self, why: Lost) {
        *self = Self { lost: Some(self.lost.unwrap_or(why)), ..Self::default() };
    }

    /// Why more may have changed than is noted, if so: then all must be looked at.
    pub fn lost(&self) -> Option<Lost> {
        self.lost
    }

    /// Whether something is noted of `name` in `directory`.
    pub fn is_noted(&self, directory: &[u8], name: &[u8]) -> bool {
        match self.directories.get(directory) {
            Some(Names::Some(some)) => some.contains(name),
            Some(Names::All) => true,
            None => false,
        }
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.lost.is_none() && self.directories.is_empty() && self.moved.is_empty()
    }

    /// How many names have changed, those of directories that are looked at as a whole as far as they were counted.
    pub fn count(&self) -> usize {
        let named = self.directories.values().map(|names| match names {
            Names::Some(some) => some.len(),
            Names::All => 0,
        });
        self.unnamed + named.sum::<usize>()
    }

    /// The directories in which something has changed.
    pub fn directories(&self) -> impl Iterator<Item = (&[u8], &Names)> {
        self.directories.iter().map(|(handle, names)| (&**handle, names))
    }

    /// Where a directory was before it was given another place.
    pub fn was(&self, own: &[u8]) -> Option<&Place> {
        self.moved.get(own)
    }

    /// The directories that were given another place.
    pub fn moved(&self) -> impl Iterator<Item = (&[u8], &Place)> {
        self.moved.iter().map(|(handle, place)| (&**handle, place))
    }

    /// The files that changed.
    pub fn files(&self) -> impl Iterator<Item = &[u8]> {
        self.files.iter().map(|handle| &**handle)
    }

    /// Adds what had been taken before, which was not dealt with after all.
    pub fn put_back(&mut self, earlier: Self) {
        self.has_links |= earlier.has_links;
        if let Some(why) = earlier.lost {
            return self.lose(why);
        }
        // What is known later has what was known before in it.
        if self.names.is_empty() {
            self.names = earlier.names;
        }
        for (directory, names) in earlier.directories {
            match names {
                Names::Some(some) => some.iter().for_each(|name| self.note(&directory, name)),
                Names::All => self.note_all(&directory),
            }
        }
        self.unnamed += earlier.unnamed;
        earlier.files.iter().for_each(|own| self.note_file(own));
        self.without_moves |= earlier.without_moves;
        for (own, place) in earlier.moved {
            // Where it was earlier is where it was first.
            self.forget_move(&own);
            self.note_moved(&own, &place.parent, &place.name);
        }
        for own in earlier.fresh {
            self.forget_move(&own);
            self.note_fresh(&own);
        }
        if self.without_moves {
            self.shrink();
        }
        self.has_left |= earlier.has_left;
        self.lose_if_divided();
    }

    fn forget_move(&mut self, own: &[u8]) {
        if let Some(later) = self.moved.remove(own) {
            self.bytes = self.bytes.saturating_sub(weight(own, &later));
        }
    }
}

/// What a move costs, roughly.
fn weight(own: &[u8], place: &Place) -> usize {
    own.len() + place.parent.len() + place.name.len() + 2 * ITEM
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(changes: &Changes, directory: &[u8]) -> Option<Names> {
        changes
            .directories()
            .find(|(handle, _)| *handle == directory)
            .map(|(_, names)| names.clone())
    }

    #[test]
    fn each_name_is_noted_once() {
        let mut changes = Changes::default();
        assert!(changes.is_empty());
        for name in [b"a", b"b", b"a"] {
            changes.note(b"dir", name);
        }
        let both = [b"a", b"b"].map(|name| name.as_slice().into());
        assert_eq!(names(&changes, b"dir"), Some(Names::Some(both.into())));
        assert_eq!(changes.count(), 2);
        assert!(!changes.is_empty() && changes.lost().is_none());
    }

    #[test]
    fn too_many_names_are_a_whole_directory() {
        let mut changes = Changes::default();
        for number in 0..=MAX_NAMES {
            changes.note(b"dir", format!("{number}").as_bytes());
        }
        changes.note(b"other", b"x");
        assert_eq!(names(&changes, b"dir"), Some(Names::All));
        assert_eq!(changes.count(), MAX_NAMES + 2, "what is looked at as a whole counts still");
        assert!(matches!(names(&changes, b"other"), Some(Names::Some(_))));
        assert!(changes.bytes < 1000, "{}", changes.bytes);
    }

    #[test]
    fn too_many_directories_are_the_whole_tree() {
        let mut changes = Changes::default();
        // The longest handle that the kernel gives.
        let (mut handle, mut number) = ([0; 128], 0_u64);
        while changes.lost().is_none() {
            handle[..8].copy_from_slice(&number.to_le_bytes());
            changes.note(&handle, &[b'x'; 200]);
            number += 1;
            assert!(changes.bytes <= MAX_BYTES, "{}", changes.bytes);
            assert!(number < 1_000_000);
        }
        assert!(number > 200_000, "{number}");
        assert_eq!(changes.lost(), Some(Lost::TooMany));
        changes.note(b"dir", b"x");
        assert_eq!(changes.directories().count(), 0);
    }

    #[test]
    fn what_has_left_a_tree_of_files_with_several_names_is_lost() {
        let (mut left, mut links) = (Changes::default(), Changes::default());
        left.note_left();
        links.note_links();
        assert_eq!((left.lost(), links.lost()), (None, None));
        let mut both = links.clone();
        both.put_back(left.clone());
        assert_eq!(both.lost(), Some(Lost::Unplaced));
        left.put_back(links);
        assert_eq!(left.lost(), Some(Lost::Unplaced));
    }

    #[test]
    fn a_directory_was_where_it_was_first() {
        let mut changes = Changes::default();
        changes.note_moved(b"own", b"first", b"a");
        changes.note_moved(b"own", b"second", b"b");
        assert_eq!(changes.was(b"own").map(|place| &*place.name), Some(b"a".as_slice()));
        let mut later = Changes::default();
        later.note_moved(b"own", b"third", b"c");
        later.note(b"dir", b"new");
        changes.note(b"dir", b"old");
        later.put_back(changes);
        assert_eq!(later.was(b"own").map(|place| &*place.name), Some(b"a".as_slice()));
        assert!(matches!(names(&later, b"dir"), Some(Names::Some(some)) if some.len() == 2));
        // What was made since somebody asked was nowhere then.
        let mut made = Changes::default();
        made.note_fresh(b"made");
        made.note_moved(b"made", b"dir", b"tmp");
        assert_eq!(made.was(b"made"), None);
        let mut afterwards = Changes::default();
        afterwards.note_moved(b"made", b"dir", b"final");
        afterwards.put_back(made);
        assert_eq!(afterwards.was(b"made"), None);
        let mut lost = Changes::default();
        lost.lose(Lost::Overflow);
        lost.lose(Lost::Unplaced);
        later.put_back(lost);
        assert_eq!(later.lost(), Some(Lost::Overflow));
    }
}
