//! Has what a thread creates belong to somebody from the beginning, so that its owner need not be changed: a file
//! system writes each such change once more. It must not know what is created.
//!
//! Linux gives what a thread creates the thread's file system user and group (setfsuid(2), path_resolution(7)), and takes
//! the capabilities over files from whoever is not root there; those are taken back (capabilities(7)), so nothing
//! else is different for the thread.

use std::marker::PhantomData;
use std::os::fd::BorrowedFd;

use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

use crate::holding::{BTRFS, EXT4};

/// Whether files below `root` may be created so. Only where this kernel alone decides who may do what (NFS and FUSE ask
/// somebody who does not know of the capabilities), and where what is over the account's quota comes all the same, as
/// it does by a change of the owner (not on XFS).
pub fn is_possible(root: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(root).is_ok_and(|system| [EXT4, BTRFS].contains(&(system.f_type as u64)))
}

/// Whose is what the thread that has this creates, and whose are the threads that it begins. Dropped, it is root's again.
#[derive(Debug)]
pub struct Creator {
    /// What the thread may; nothing if it is not root, or it cannot be told.
    rights: Option<CapabilitySets>,
    /// Whose it is, unless root's.
    owner: Option<(u32, u32)>,
    /// Each thread has a user of its own.
    here: PhantomData<*const ()>,
}

impl Default for Creator {
    fn default() -> Self {
        let rights = geteuid().is_root().then(|| capabilities(None).ok()).flatten();
        Self { rights, owner: None, here: PhantomData }
    }
}

impl Creator {
    /// From now on it is theirs, where that can be had: whoever creates looks whose it has become.
    pub fn be(&mut self, uid: u32, gid: u32) {
        let Some(rights) = self.rights else { return };
        if self.owner == Some((uid, gid)) {
            return;
        }
        self.owner = Some((uid, gid));
        setfsgid(Gid::from_raw(gid));
        setfsuid(Uid::from_raw(uid));
        // Neither says that it failed; asked for nobody, each tells who it is.
        let is_theirs = setfsgid(Gid::from_raw(u32::MAX)).as_raw() == gid
            && setfsuid(Uid::from_raw(u32::MAX)).as_raw() == uid;
        if !is_theirs {
            self.be_root();
        } else if set_capabilities(None, rights).is_err() {
            self.be_root();
            self.rights = None;
        }
    }

    /// From now on it is root's.
    pub fn be_root(&mut self) {
        if self.owner.take().is_some() {
            // With it come the capabilities.
            setfsuid(Uid::from_raw(0));
            setfsgid(Gid::from_raw(0));
        }
    }
}

impl Drop for Creator {
    fn drop(&mut self) {
        self.be_root();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

    use super::*;

    fn owner_of_new(dir: &std::path::Path) -> (u32, u32) {
        let path = dir.join("new");
        fs::write(&path, b"").unwrap();
        let found = fs::metadata(&path).unwrap();
        fs::remove_file(&path).unwrap();
        (found.uid(), found.gid())
    }

    #[test]
    fn what_is_created_is_theirs_and_the_thread_may_what_it_could() {
        let dir = tempfile::tempdir().unwrap();
        // Neither of them may enter it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let before = capabilities(None).unwrap();
        {
            let mut creator = Creator::default();
            assert_eq!(owner_of_new(dir.path()), (0, 0));
            for (uid, gid) in [(64_001, 64_002), (64_003, 0), (0, 64_002), (64_001, 64_002)] {
                creator.be(uid, gid);
                assert_eq!(owner_of_new(dir.path()), (uid, gid));
                assert_eq!(capabilities(None).unwrap(), before);
            }
            let file = dir.path().join("theirs");
            fs::write(&file, b"").unwrap();
            chown(&file, Some(64_009), Some(64_009)).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o4000)).unwrap();
            fs::read(&file).unwrap();
            creator.be_root();
            assert_eq!(owner_of_new(dir.path()), (0, 0));
            creator.be(64_001, 64_002);
        }
        assert_eq!(owner_of_new(dir.path()), (0, 0));
        assert_eq!(capabilities(None).unwrap(), before);
    }

    #[test]
    fn where_it_cannot_be_theirs_it_is_not_the_last_ones() {
        let dir = tempfile::tempdir().unwrap();
        let mut creator = Creator::default();
        for (uid, gid) in [(u32::MAX, 64_001), (64_001, u32::MAX)] {
            creator.be(64_001, 64_002);
            creator.be(uid, gid);
            assert_eq!(owner_of_new(dir.path()), (0, 0));
        }
    }

    #[test]
    fn other_threads_are_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let (began, begins) = std::sync::mpsc::channel();
        let (over, ends) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut creator = Creator::default();
                creator.be(64_001, 64_001);
                began.send(()).unwrap();
                let _ = ends.recv();
            });
            begins.recv().unwrap();
            assert_eq!(owner_of_new(dir.path()), (0, 0));
            drop(over);
        });
    }
}
