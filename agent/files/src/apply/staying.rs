//! What was found in an entry's place: whether it may stay, or at least be mended. It must not know what is done
//! with it.

use std::convert::identity;
use std::os::fd::AsFd;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::Applier;
use crate::blocks::SMALLEST;
use crate::confine;
use crate::digest;
use crate::entries::{Entry, What};
use crate::guard::Wanted;
use crate::make;
use crate::metadata::{Kind, Stat};
use crate::mirror::Here;
use crate::options::Others;

impl Applier {
    /// Whether what was found holds what the entry does, as far as can be told without reading it.
    fn is_same(&self, here: Here<'_>, entry: &Entry, found: &Stat) -> bool {
        match (&entry.what, found.kind) {
            (What::File(size), Kind::File) => {
                let is_distrusted = self.distrusted_since.is_some_and(|since| found.ctime >= since);
                found.size == *size
                    && found.mtime == entry.mtime
                    && !entry.doubtful
                    && !is_distrusted
            }
            (What::Symlink(target), Kind::Symlink) => {
                rustix::fs::readlinkat(here.fd, entry.name.as_slice(), Vec::new())
                    .is_ok_and(|have| have.as_bytes() == target.as_slice())
            }
            (What::Fifo, Kind::Fifo) => true,
            (What::Device(device), Kind::Device(have)) => *device == have,
            _ => false,
        }
    }

    /// Whether what was found is already all that was approved: nothing is made of what was there before.
    fn stands_as_approved(
        &self,
        here: Here<'_>,
        name: &[u8],
        wanted: &Wanted,
        found: &Stat,
    ) -> bool {
        let has_content = |digest: &str| {
            let opened = confine::open_file(here.fd, name).and_then(|fd| {
                let is_it = Stat::of_fd(&fd)?.identity() == found.identity();
                if is_it { Ok(fd) } else { Err(Errno::STALE) }
            });
            let used = |bytes| self.disks.used(bytes);
            opened.is_ok_and(|fd| {
                digest::in_hex(&fd, &self.halt, used).is_ok_and(|have| have == digest)
            })
        };
        make::is_dressed_itself(here.fd.as_fd(), name, found, wanted).is_ok_and(identity)
            && wanted.digest().is_none_or(has_content)
    }

    /// Whether what was found may stay and be mended: it has the right content, and nobody else's
    /// inode changes with it.
    pub(super) fn may_stay(
        &self,
        here: Here<'_>,
        entry: &Entry,
        wanted: &Wanted,
        found: &Stat,
    ) -> bool {
        let ids = &self.options.ids;
        let same = self.is_same(here, entry, found);
        if wanted.approved.is_some() {
            return same && self.stands_as_approved(here, &entry.name, wanted, found);
        }
        // A name in the home may be one of a file that is not the account's.
        if !same || !ids.has_uid(found.uid) {
            return false;
        }
        if found.nlink == 1 {
            return true;
        }
        // Of the names that are one inode here the source may have listed only this one, which is its own there.
        if entry.link.is_none() && self.is_partial.load(Ordering::Relaxed) {
            return false;
        }
        let needs_nothing =
            || make::is_dressed(here.fd.as_fd(), &entry.name, found, wanted).is_ok_and(identity);
        if ids.is_shared_uid(found.uid) && (ids.others == Others::Refused || !needs_nothing()) {
            return false;
        }
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner).insert(found.identity())
    }

    /// Whether only what differs of its content need come: it is large, and nobody else's.
    pub(super) fn may_be_mended(&self, size: u64, found: &Stat) -> bool {
        found.kind == Kind::File
            && found.nlink == 1
            && size.min(found.size) >= SMALLEST
            && self.options.ids.has_uid(found.uid)
    }
}
