//! Small files of the agent's own beside the ledger: replaced as a whole, and removed, between points for
//! fault tests. It must not know what is in them.

use std::convert::identity;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ferry_failpoints::around;

/// When what was written is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// Before it is said to be written.
    AtOnce,
    /// Some time: what is lost of it is found out anew.
    InTime,
}

/// Makes `bytes` the content of the file at `path`, which only root may read; the directory is made.
///
/// # Errors
/// What cannot be written. The file is then as before, and nothing is left beside it.
pub fn replace(point: &str, path: &Path, bytes: &[u8], lasting: Lasting) -> io::Result<()> {
    around(
        || point.to_owned(),
        identity,
        || {
            let new = path.with_extension("new");
            let directory = path.parent().unwrap_or(Path::new("/"));
            make_directory(directory, lasting)?;
            let written = write(&new, bytes, lasting)
                .and_then(|()| std::fs::rename(&new, path))
                .and_then(|()| sync_directory(directory, lasting));
            if written.is_err() {
                // Half of it only takes space away, of which there may be none; the error itself is told.
                let _ = std::fs::remove_file(&new);
            }
            written
        },
    )
}

/// Removes the file at `path`, if it is there.
///
/// # Errors
/// It cannot be removed.
pub fn remove(point: &str, path: &Path) -> io::Result<()> {
    if !path.try_exists()? {
        return Ok(());
    }
    around(
        || point.to_owned(),
        identity,
        || match std::fs::remove_file(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed,
        },
    )
}

fn make_directory(directory: &Path, lasting: Lasting) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(directory)?;
    directory.parent().map_or(Ok(()), |above| sync_directory(above, lasting))
}

fn write(path: &Path, bytes: &[u8], lasting: Lasting) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    if lasting == Lasting::AtOnce { file.sync_all() } else { Ok(()) }
}

fn sync_directory(directory: &Path, lasting: Lasting) -> io::Result<()> {
    if lasting == Lasting::AtOnce { File::open(directory)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_removed_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some/file.json");
        for (bytes, lasting) in [(&b"one"[..], Lasting::AtOnce), (b"another", Lasting::InTime)] {
            replace("point", &path, bytes, lasting).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        // Something stands in its place: it stays, and nothing is left beside it.
        let taken = dir.path().join("some/taken.json");
        std::fs::create_dir(&taken).unwrap();
        replace("point", &taken, b"x", Lasting::AtOnce).unwrap_err();
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
        for _ in 0..2 {
            remove("point", &path).unwrap();
        }
        assert!(!path.exists());
    }
    #[test]
    fn changes_are_between_points() {
        let dir = tempfile::tempdir().unwrap();
        let lab = ferry_failpoints::FakeLab::listen(dir.path(), |_| "go".to_owned()).unwrap();
        let path = dir.path().join("copies/shop.json");
        remove("forgotten", &path).unwrap();
        replace("kept", &path, b"{}", Lasting::InTime).unwrap();
        remove("forgotten", &path).unwrap();
        remove("forgotten", &path).unwrap();
        let points = ["kept.before", "kept.after", "forgotten.before", "forgotten.after"];
        assert_eq!(lab.heard(), points);
    }
}
