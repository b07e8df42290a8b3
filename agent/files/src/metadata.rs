//! What an inode says about itself, and putting it there: type, mode, owner, times. It must not
//! know which metadata an account may have; that is `guard`.

use std::os::fd::{AsFd, BorrowedFd};

use ferry_proto::approval::Device;
use rustix::fs::{
    AtFlags, Gid, Mode, Statx, StatxAttributes, StatxFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
};
use rustix::io::Result;

use crate::locks::Locks;

/// Bits of the mode that are carried.
pub const MODE_BITS: u16 = 0o7777;

/// A moment to the nanosecond; before 1970 the seconds are negative.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since 1970.
    pub sec: i64,
    /// Nanoseconds of the second, below 1,000,000,000.
    pub nsec: u32,
}

impl Time {
    /// The beginning of 1970.
    pub const EPOCH: Self = Self { sec: 0, nsec: 0 };

    /// The clock that file systems stamp with: coarse, a few milliseconds behind.
    pub fn now_coarse() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        Self { sec: now.tv_sec, nsec: u32::try_from(now.tv_nsec).unwrap_or(0) }
    }

    /// Of the system's type.
    pub fn from_system(time: std::time::SystemTime) -> Self {
        match time.duration_since(std::time::UNIX_EPOCH) {
            Ok(after) => Self {
                sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                nsec: after.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                match before.subsec_nanos() {
                    0 => Self { sec: -whole, nsec: 0 },
                    part => Self { sec: -whole - 1, nsec: 1_000_000_000 - part },
                }
            }
        }
    }

    /// Milliseconds from `earlier` to this; negative if it is before.
    pub fn millis_since(self, earlier: Self) -> i64 {
        let nanos = |time: Self| i128::from(time.sec) * 1_000_000_000 + i128::from(time.nsec);
        let millis = (nanos(self) - nanos(earlier)) / 1_000_000;
        i64::try_from(millis).unwrap_or(if millis < 0 { i64::MIN } else { i64::MAX })
    }

    /// A moment that no comparison takes for this one.
    pub fn disturbed(self) -> Self {
        Self { nsec: self.nsec ^ 1, ..self }
    }
}

/// Which inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Device.
    pub dev: (u32, u32),
    /// Inode number.
    pub ino: u64,
}

/// What kind of inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
    /// Block or character device.
    Device(Device),
}

impl Kind {
    /// With an article, for sentences.
    pub fn name(self) -> String {
        let name = match self {
            Self::File => "a file",
            Self::Directory => "a directory",
            Self::Symlink => "a symlink",
            Self::Fifo => "a FIFO",
            Self::Socket => "a socket",
            Self::Device(device) => return format!("a {device}"),
        };
        name.to_owned()
    }
}

/// What an inode says about itself.
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    /// Its kind.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// 512-byte blocks on disk.
    pub blocks: u64,
    /// Content changed.
    pub mtime: Time,
    /// Inode changed.
    pub ctime: Time,
    /// Names that it has.
    pub nlink: u32,
    /// Something is mounted here.
    pub is_mount: bool,
    /// Immutable or append-only.
    pub locks: Locks,
    dev: (u32, u32),
    ino: u64,
}

impl Stat {
    /// Of `name` in `dir`, not following a symlink.
    pub fn of(dir: impl AsFd, name: &[u8]) -> Result<Self> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS).map(|x| Self::from(&x))
    }

    /// Of an open inode.
    pub fn of_fd(fd: impl AsFd) -> Result<Self> {
        rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
            .map(|x| Self::from(&x))
    }

    /// Which inode it is.
    pub fn identity(&self) -> Identity {
        Identity { dev: self.dev, ino: self.ino }
    }
}

impl From<&Statx> for Stat {
    fn from(x: &Statx) -> Self {
        use rustix::fs::FileType as F;
        let kind = match F::from_raw_mode(u32::from(x.stx_mode)) {
            F::RegularFile => Kind::File,
            F::Directory => Kind::Directory,
            F::Symlink => Kind::Symlink,
            F::Fifo => Kind::Fifo,
            F::Socket => Kind::Socket,
            other => Kind::Device(Device {
                block: other == F::BlockDevice,
                major: x.stx_rdev_major,
                minor: x.stx_rdev_minor,
            }),
        };
        let time = |t: &rustix::fs::StatxTimestamp| Time { sec: t.tv_sec, nsec: t.tv_nsec };
        let flags = x.stx_attributes;
        Self {
            kind,
            mode: x.stx_mode & MODE_BITS,
            uid: x.stx_uid,
            gid: x.stx_gid,
            size: x.stx_size,
            blocks: x.stx_blocks,
            mtime: time(&x.stx_mtime),
            ctime: time(&x.stx_ctime),
            nlink: x.stx_nlink,
            is_mount: flags.contains(StatxAttributes::MOUNT_ROOT),
            locks: Locks::of(flags),
            dev: (x.stx_dev_major, x.stx_dev_minor),
            ino: x.stx_ino,
        }
    }
}

/// An inode by a descriptor, so that what is put on it lands on it and not on what took its name.
#[derive(Debug, Clone, Copy)]
pub enum Handle<'a> {
    /// Opened for reading or writing: files and directories.
    Open(BorrowedFd<'a>),
    /// Only named: symlinks, FIFOs and devices.
    Named(BorrowedFd<'a>),
}

impl<'a> Handle<'a> {
    /// The descriptor.
    pub fn fd(self) -> BorrowedFd<'a> {
        match self {
            Self::Open(fd) | Self::Named(fd) => fd,
        }
    }

    /// Gives it to `uid` and `gid`.
    pub fn chown(self, uid: u32, gid: u32) -> Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match self {
            Self::Open(fd) => rustix::fs::fchown(fd, uid, gid),
            Self::Named(fd) => rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    /// Sets the mode. Not for symlinks.
    pub fn chmod(self, mode: u16) -> Result<()> {
        let mode = Mode::from_raw_mode(u32::from(mode & MODE_BITS));
        match self {
            Self::Open(fd) => rustix::fs::fchmod(fd, mode),
            // fchmod refuses a descriptor that only names; its entry in /proc leads to the inode.
            Self::Named(fd) => rustix::fs::chmod(proc_path(fd), mode),
        }
    }

    /// Sets the modification time and leaves the access time.
    pub fn set_mtime(self, mtime: Time) -> Result<()> {
        let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps {
            last_access: omit,
            last_modification: Timespec { tv_sec: mtime.sec, tv_nsec: i64::from(mtime.nsec) },
        };
        match self {
            Self::Open(fd) => rustix::fs::futimens(fd, &times),
            Self::Named(fd) => rustix::fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH),
        }
    }
}

/// The path in /proc that leads to the very inode of a descriptor.
pub fn proc_path(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let time = Time::from_system(UNIX_EPOCH - Duration::from_nanos(1));
        assert_eq!(time, Time { sec: -1, nsec: 999_999_999 });
        assert_eq!(
            Time::from_system(UNIX_EPOCH - Duration::from_secs(2)),
            Time { sec: -2, nsec: 0 }
        );
        assert_eq!(Time::default().millis_since(time), 0);
        assert_ne!(time.disturbed(), time);
        assert!(time.disturbed().nsec < 1_000_000_000);
        assert!(Time { sec: 0, nsec: 999_999_999 }.disturbed().nsec < 1_000_000_000);
    }
}
