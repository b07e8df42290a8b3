//! Changes of files that survive a power cut: written aside, synced, renamed, and the directory
//! synced, each between two failpoints. Knows nothing of what the files mean. Never follows a symlink in
//! the last component.

use std::convert::identity;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ferry_failpoints::around;
use ferry_proto::Fault;

/// Who a written file belongs to, and its mode.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ownership {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
}

impl Ownership {
    /// A file of root with `mode`.
    pub(crate) const fn root(mode: u32) -> Self {
        Self { uid: 0, gid: 0, mode }
    }
}

/// The directory of `path`; an entry of a host's tree always has one.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}

/// What temporary names begin with; the file's own follows.
const TEMPORARY: &str = ".ferry-tmp-";

/// Whether a file of this name was being written.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY)
}

/// The name under which `path` is written before it takes its place. A dot file: nginx's and
/// PHP-FPM's include patterns, run-parts and cron all pass over it.
fn temporary(path: &Path) -> PathBuf {
    let mut name = OsString::from(TEMPORARY);
    name.push(path.file_name().unwrap_or_default());
    parent(path).join(name)
}

/// Changes what is at `path`; fault tests know the change by it.
fn change<T>(path: &Path, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    around(|| format!("file.{}", path.display()), identity, act)
}

/// Makes something aside and puts it in the place of what is at `path`.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let aside = temporary(path);
    match fs::remove_file(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let replaced = make(&aside).and_then(|()| fs::rename(&aside, path));
    if replaced.is_err() {
        // Half a file only takes space away, of which there may be none; the error itself is told.
        let _ = fs::remove_file(&aside);
    }
    replaced.and_then(|()| sync_parent(path))
}

/// Writes `bytes` as `path`, replacing what is there.
pub(crate) fn write(path: &Path, bytes: &[u8], owner: Ownership) -> Result<(), Fault> {
    let make = |aside: &Path| -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(aside)?;
        file.write_all(bytes)?;
        rustix::fs::fchown(
            &file,
            Some(rustix::fs::Uid::from_raw(owner.uid)),
            Some(rustix::fs::Gid::from_raw(owner.gid)),
        )?;
        file.set_permissions(Permissions::from_mode(owner.mode))?;
        file.sync_all()
    };
    change(path, || replace(path, make))
        .map_err(|e| Fault::io(format!("{} could not be written", path.display()), &e))
}

/// Writes only if the content differs. True if it was written.
pub(crate) fn write_if_changed(path: &Path, bytes: &[u8], owner: Ownership) -> Result<bool, Fault> {
    if let Ok(Some(now)) = read(path, bytes.len() as u64 + 1)
        && now == bytes
        && fs::symlink_metadata(path).is_ok_and(|m| m.permissions().mode() & 0o7777 == owner.mode)
    {
        return Ok(false);
    }
    write(path, bytes, owner)?;
    Ok(true)
}

/// Reads a regular file of at most `cap` bytes; `None` if it does not exist.
pub(crate) fn read(path: &Path, cap: u64) -> Result<Option<Vec<u8>>, Fault> {
    let failed = |e: &io::Error| Fault::io(format!("{} could not be read", path.display()), e);
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path) {
        Ok(file) => file,
        Err(e) if is_absent(&e) => return Ok(None),
        Err(e) => return Err(failed(&e)),
    };
    read_open(&file, path, cap).map(Some)
}

/// Reads an open regular file of at most `cap` bytes; `path` is for messages.
pub(crate) fn read_open(file: &File, path: &Path, cap: u64) -> Result<Vec<u8>, Fault> {
    let failed = |e: &io::Error| Fault::io(format!("{} could not be read", path.display()), e);
    if !file.metadata().map_err(|e| failed(&e))?.is_file() {
        return Err(Fault::precondition(format!("{} is not a regular file", path.display()))
            .remedy("put a regular file there"));
    }
    let mut bytes = Vec::new();
    file.take(cap + 1).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
    if bytes.len() as u64 > cap {
        return Err(Fault::precondition(format!(
            "{} is larger than the {cap} bytes that Ferry accepts",
            path.display()
        ))
        .remedy("make the file smaller"));
    }
    Ok(bytes)
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether there is an entry at `path`, a dangling symlink included.
pub(crate) fn exists(path: &Path) -> Result<bool, Fault> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if is_absent(&e) => Ok(false),
        Err(e) => Err(Fault::io(format!("{} could not be examined", path.display()), &e)),
    }
}

/// Renames; both directories are synced.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Fault> {
    rename_by(from, to, || fs::rename(from, to))
}

/// The same, but never over what is there.
pub(crate) fn rename_to_free(from: &Path, to: &Path) -> Result<(), Fault> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    rename_by(from, to, || match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems cannot: then what was there a moment ago is what is known.
        Err(Errno::INVAL | Errno::NOSYS)
            if fs::symlink_metadata(to).is_err_and(|e| is_absent(&e)) =>
        {
            fs::rename(from, to)
        }
        renamed => renamed.map_err(io::Error::from),
    })
}

fn rename_by(from: &Path, to: &Path, rename: impl FnOnce() -> io::Result<()>) -> Result<(), Fault> {
    let act = || -> io::Result<()> {
        rename()?;
        sync_parent(to)?;
        if parent(from) != parent(to) { sync_parent(from) } else { Ok(()) }
    };
    change(to, act).map_err(|e| {
        Fault::io(format!("{} could not be renamed to {}", from.display(), to.display()), &e)
    })
}

/// Removes a file or symlink; one that is not there is no error. True if it was there.
pub(crate) fn remove(path: &Path) -> Result<bool, Fault> {
    let act = || fs::remove_file(path).and_then(|()| sync_parent(path));
    match fs::symlink_metadata(path).and_then(|_| change(path, act)) {
        Ok(()) => Ok(true),
        Err(e) if is_absent(&e) => Ok(false),
        Err(e) => Err(Fault::io(format!("{} could not be removed", path.display()), &e)),
    }
}

/// Removes a directory if it is there and empty. True if it is gone.
pub(crate) fn remove_empty_directory(path: &Path) -> Result<bool, Fault> {
    let act = || fs::remove_dir(path).and_then(|()| sync_parent(path));
    match fs::symlink_metadata(path).and_then(|_| change(path, act)) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(e) => Err(Fault::io(format!("{} could not be removed", path.display()), &e)),
    }
}

/// Removes a directory and all below it; one that is not there is no error. Does not follow symlinks, even
/// ones that are put there while it works.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Fault> {
    let act = || fs::remove_dir_all(path).and_then(|()| sync_parent(path));
    match fs::symlink_metadata(path).and_then(|_| change(path, act)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Fault::io(format!("{} could not be removed", path.display()), &e))
        }
        _ => Ok(()),
    }
}

/// Gives what is at `path` away; a symlink itself, not what it leads to.
pub(crate) fn give(path: &Path, uid: u32, gid: u32) -> Result<(), Fault> {
    change(path, || std::os::unix::fs::lchown(path, Some(uid), Some(gid)))
        .map_err(|e| Fault::io(format!("{} could not be given away", path.display()), &e))
}

/// Gives the very file at `from` a second name, which must be free.
pub(crate) fn hard_link(from: &Path, to: &Path) -> Result<(), Fault> {
    change(to, || fs::hard_link(from, to).and_then(|()| sync_parent(to)))
        .map_err(|e| Fault::io(format!("{} could not be linked", to.display()), &e))
}

/// Makes `path` and what is missing above it, each with `mode`.
pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<(), Fault> {
    let act = || {
        fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
        sync_parent(path)
    };
    // One that is there may have been made a moment before a crash: it is synced all the same.
    let made = if path.is_dir() { sync_parent(path) } else { change(path, act) };
    made.map_err(|e| Fault::io(format!("the directory {} could not be made", path.display()), &e))
}

/// Makes `link` a symlink to `target`, replacing what is there.
pub(crate) fn symlink(target: &Path, link: &Path) -> Result<(), Fault> {
    if fs::read_link(link).is_ok_and(|now| now == target) {
        return Ok(());
    }
    let make = |aside: &Path| std::os::unix::fs::symlink(target, aside);
    change(link, || replace(link, make))
        .map_err(|e| Fault::io(format!("the symlink {} could not be made", link.display()), &e))
}

#[cfg(test)]
mod tests {
    use ferry_failpoints::FakeLab;

    use super::*;

    #[test]
    fn each_change_is_between_two_points_and_what_changes_nothing_comes_to_none() {
        let dir = tempfile::tempdir().unwrap();
        let lab = FakeLab::listen(dir.path(), |_| "go".to_owned()).unwrap();
        let at = |name: &str| dir.path().join(name);
        let owner = Ownership { uid: 0, gid: 0, mode: 0o600 };
        make_directory(&at("d"), 0o700).unwrap();
        make_directory(&at("d"), 0o700).unwrap();
        write(&at("d/a"), b"1", owner).unwrap();
        assert!(!write_if_changed(&at("d/a"), b"1", owner).unwrap());
        rename(&at("d/a"), &at("d/b")).unwrap();
        rename_to_free(&at("d/b"), &at("d/c")).unwrap();
        symlink(&at("d/c"), &at("d/s")).unwrap();
        symlink(&at("d/c"), &at("d/s")).unwrap();
        give(&at("d/c"), 0, 0).unwrap();
        hard_link(&at("d/c"), &at("d/h")).unwrap();
        for name in ["d/s", "d/c"] {
            assert!(remove(&at(name)).unwrap() && !remove(&at(name)).unwrap());
        }
        remove(&at("d/h")).unwrap();
        assert!(remove_empty_directory(&at("d")).unwrap());
        make_directory(&at("t"), 0o700).unwrap();
        write(&at("t/a"), b"1", owner).unwrap();
        remove_tree(&at("t")).unwrap();
        remove_tree(&at("t")).unwrap();
        let changed = [
            "d", "d/a", "d/b", "d/c", "d/s", "d/c", "d/h", "d/s", "d/c", "d/h", "d", "t", "t/a",
            "t",
        ];
        let both =
            |name| ["before", "after"].map(|when| format!("file.{}.{when}", at(name).display()));
        assert_eq!(lab.heard(), changed.map(both).concat());
    }

    #[test]
    fn what_cannot_take_its_place_is_not_left_aside() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("taken");
        fs::create_dir(&taken).unwrap();
        write(&taken, b"1", Ownership { uid: 0, gid: 0, mode: 0o600 }).unwrap_err();
        symlink(dir.path(), &taken).unwrap_err();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(left, [taken]);
    }

    #[test]
    fn a_disk_that_fails_before_a_change_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let owner = Ownership { uid: 0, gid: 0, mode: 0o600 };
        write(&file, b"old", owner).unwrap();
        let _lab = FakeLab::listen(dir.path(), |_| "errno 28".to_owned()).unwrap();
        let fault = write(&file, b"new", owner).unwrap_err();
        assert_eq!(fault.class, ferry_proto::FaultClass::Precondition, "{fault}");
        remove(&file).unwrap_err();
        assert_eq!(fs::read(&file).unwrap(), b"old");
    }
}
