//! Which file systems stamp every write. Times prove that a content has not changed only where each write,
//! through a mapping too, gives the inode a new change time, by the clock of this machine. It must not
//! know what is concluded from them.

use std::path::Path;

use rustix::fs::FsWord;

use crate::confine::Tree;

/// ext2, ext3 and ext4; XFS; btrfs: they are told of the first write to a clean page of a mapping. Not
/// among them: tmpfs and FUSE, which are not; NFS, whose server has a clock of its own; overlayfs, which
/// does not say what it lies on.
const STAMPING: [FsWord; 3] = [0xef53, 0x5846_5342, 0x9123_683e];

/// Whether the file system of the tree at `root` stamps every write. No for one that cannot be asked.
pub fn stamps_every_write(root: &Path) -> bool {
    Tree::open_root(root).is_ok_and(|tree| {
        rustix::fs::fstatfs(tree.root_fd()).is_ok_and(|of| is_stamping(of.f_type))
    })
}

fn is_stamping(kind: FsWord) -> bool {
    STAMPING.contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_stamp_counts() {
        assert!(STAMPING.into_iter().all(is_stamping));
        for kind in [rustix::fs::NFS_SUPER_MAGIC, rustix::fs::PROC_SUPER_MAGIC] {
            assert!(!is_stamping(kind));
        }
        assert!(!stamps_every_write(Path::new("/dev/shm")), "memory");
        assert!(!stamps_every_write(Path::new("/nowhere")));
    }
}
