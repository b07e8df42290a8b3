//! Small files that hold keys and certificates: read only if nobody else can read them, written
//! so that a crash leaves the old file or the new one. It knows nothing of what is in them.
//!
//! These calls block; call them before the runtime starts or inside `spawn_blocking`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::Fault;

/// No key, certificate or bundle of them is larger.
const MAX_LEN: u64 = 64 * 1024;

/// Permission bits that let somebody else read, write or run.
const OTHERS: u32 = 0o077;

/// Permission bits that let somebody else write.
const OTHERS_WRITE: u32 = 0o022;

/// Reads a secret file: a regular file of our own that nobody else can read.
///
/// # Errors
/// It does not exist, is not ours alone, or is too large.
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let mut file = open_no_follow(path)?;
    let meta = file.metadata().map_err(|e| unreadable(path, &e))?;
    if !meta.is_file() {
        return Err(Fault::precondition(format!("{} is not a regular file", path.display()))
            .remedy("put the key back as a plain file"));
    }
    owned_by_us(path, meta.uid())?;
    if meta.mode() & OTHERS != 0 {
        return Err(Fault::precondition(format!(
            "{} can be read by others (mode {:04o})",
            path.display(),
            meta.mode() & 0o7777
        ))
        .remedy(format!(
            "find out who could have read it; if nobody did: chmod 0600 {}",
            path.display()
        )));
    }
    read_bounded(&mut file, path)
}

/// Reads a file that is no secret, but that nobody else may have changed.
///
/// # Errors
/// It does not exist, others can write to it, or it is too large.
pub fn read_public(path: &Path) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let mut file = open_no_follow(path)?;
    let meta = file.metadata().map_err(|e| unreadable(path, &e))?;
    owned_by_us(path, meta.uid())?;
    if !meta.is_file() || meta.mode() & OTHERS_WRITE != 0 {
        return Err(Fault::precondition(format!(
            "{} can be changed by others (mode {:04o})",
            path.display(),
            meta.mode() & 0o7777
        ))
        .remedy(format!("compare it with a backup, then chmod 0644 {}", path.display())));
    }
    read_bounded(&mut file, path)
}

/// Writes a secret file (mode 0600) in one piece: after a crash it is the old one or the new one.
///
/// # Errors
/// The directory cannot be written to or has no space.
pub fn write_private(path: &Path, contents: &[u8]) -> Result<(), Fault> {
    replace(path, contents, 0o600)
}

/// Writes a file that anybody may read (mode 0644) in one piece.
///
/// # Errors
/// The directory cannot be written to or has no space.
pub fn write_public(path: &Path, contents: &[u8]) -> Result<(), Fault> {
    replace(path, contents, 0o644)
}

/// Creates a file that must not exist yet, with its mode from the very beginning, on disk when
/// this returns (its directory is not synced).
///
/// # Errors
/// It exists, or cannot be written.
pub fn create_new(path: &Path, contents: &[u8], mode: u32) -> Result<(), Fault> {
    let fill = |mut file: File| {
        // The umask may have taken bits away that were asked for.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        file.write_all(contents)?;
        file.sync_all()
    };
    let write = || {
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        fill(file).inspect_err(|_| {
            // Half a key would be taken for a whole one later; the error itself is told.
            let _ = fs::remove_file(path);
        })
    };
    write().map_err(|e| Fault::io(format!("cannot create {}", path.display()), &e))
}

/// Creates a directory of our own (mode 0700); one that exists is left as it is.
///
/// # Errors
/// It cannot be created.
pub fn create_directory(path: &Path) -> Result<(), Fault> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| Fault::io(format!("cannot create the directory {}", path.display()), &e))
}

/// Checks that a directory that holds keys is ours and that nobody else can replace them.
///
/// # Errors
/// It is no directory, not ours, or others can write to it.
pub fn check_directory(path: &Path) -> Result<(), Fault> {
    let meta = fs::symlink_metadata(path).map_err(|e| unreadable(path, &e))?;
    if !meta.is_dir() {
        return Err(Fault::precondition(format!("{} is not a directory", path.display())));
    }
    owned_by_us(path, meta.uid())?;
    if meta.mode() & OTHERS_WRITE != 0 {
        return Err(Fault::precondition(format!(
            "others can replace the keys in {} (mode {:04o})",
            path.display(),
            meta.mode() & 0o7777
        ))
        .remedy(format!("check what is in it, then chmod 0700 {}", path.display())));
    }
    Ok(())
}

/// Makes what was created or renamed in a directory durable.
///
/// # Errors
/// The directory cannot be synced.
pub fn sync_directory(path: &Path) -> Result<(), Fault> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Fault::io(format!("cannot sync the directory {}", path.display()), &e))
}

/// Removes a file durably; one that is not there is success.
///
/// # Errors
/// It exists and cannot be removed.
pub fn remove(path: &Path) -> Result<(), Fault> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory(&parent(path)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Fault::io(format!("cannot remove {}", path.display()), &e)),
    }
}

fn replace(path: &Path, contents: &[u8], mode: u32) -> Result<(), Fault> {
    let dir = parent(path);
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    // One fixed name, so that what a crash left is found and not multiplied.
    let new = dir.join(format!(".{name}.new"));
    match fs::remove_file(&new) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Fault::io(format!("cannot remove {}", new.display()), &e)),
    }
    create_new(&new, contents, mode)?;
    fs::rename(&new, path).map_err(|e| {
        // A key that does not take its place is not left beside it.
        let _ = fs::remove_file(&new);
        Fault::io(format!("cannot replace {}", path.display()), &e)
    })?;
    sync_directory(&dir)
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn open_no_follow(path: &Path) -> Result<File, Fault> {
    // NONBLOCK: opening a FIFO that somebody put there must not hang the daemon.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|e| unreadable(path, &e))
}

fn read_bounded(file: &mut File, path: &Path) -> Result<Zeroizing<Vec<u8>>, Fault> {
    // Room for everything at once: growing would leave copies of a key in freed memory.
    let mut contents = Zeroizing::new(Vec::with_capacity(MAX_LEN as usize + 1));
    file.take(MAX_LEN + 1).read_to_end(&mut contents).map_err(|e| unreadable(path, &e))?;
    if contents.len() as u64 > MAX_LEN {
        return Err(Fault::precondition(format!(
            "{} is larger than {MAX_LEN} bytes, so it is no key or certificate",
            path.display()
        )));
    }
    Ok(contents)
}

fn owned_by_us(path: &Path, owner: u32) -> Result<(), Fault> {
    let us = rustix::process::geteuid().as_raw();
    if owner == us {
        return Ok(());
    }
    Err(Fault::precondition(format!(
        "{} belongs to user id {owner}, not to {us} who reads it",
        path.display()
    ))
    .remedy(format!("find out why, then chown {us} {}", path.display())))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Fault {
    let fault = Fault::io(format!("cannot read {}", path.display()), error);
    if error.kind() == std::io::ErrorKind::NotFound {
        // Not there is a state of the world that a person or an earlier step mends.
        Fault { class: crate::FaultClass::Precondition, ..fault }
    } else {
        fault
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_private_file_is_private_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_private(&path, b"one").unwrap();
        fs::write(dir.path().join(".key.new"), b"left by a crash").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(&*read_private(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(create_new(&path, b"three", 0o600).is_err());
    }

    #[test]
    fn what_cannot_take_its_place_is_not_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("key");
        fs::create_dir(&taken).unwrap();
        write_private(&taken, b"secret").unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_others_can_read_or_point_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_private(&path, b"secret").unwrap();
        for mode in [0o640, 0o604, 0o660, 0o610] {
            chmod(&path, mode);
            let fault = read_private(&path).unwrap_err();
            assert!(fault.message.contains("can be read by others"), "{fault}");
        }
        chmod(&path, 0o600);
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(read_private(&link).is_err());
        assert!(read_private(dir.path()).unwrap_err().message.contains("not a regular file"));
        write_private(&path, &vec![b'x'; 70_000]).unwrap();
        assert!(read_private(&path).unwrap_err().message.contains("larger"));
        chmod(dir.path(), 0o770);
        assert!(check_directory(dir.path()).unwrap_err().message.contains("replace the keys"));
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
