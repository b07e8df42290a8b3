//! Passes of files that write here and are not known to be on the disk. A pass that ends is flushed before it
//! is reported; one that was cut off is not, and if the power fails then, files may have the right length and
//! time and the wrong content. So a record is on the disk while a pass writes, and the pass after it takes
//! nothing for equal that was written since. It must not know what is copied.

use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};

use crate::clock::{boot_id, unix_ms};
use crate::small_file::{self, Lasting};

/// File systems stamp with a clock that may be a tick behind.
const MARGIN_MS: i64 = 1_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// When the first of the passes began whose writes may not be on the disk, in Unix milliseconds.
    since_unix_ms: i64,
    /// In which boot the last of them began.
    boot_id: String,
    /// The power failed or the host was rebooted after one of them.
    lost: bool,
    /// The last of them: only its end is the end of all.
    pass: u64,
}

/// The record of one directory.
#[derive(Debug, Clone)]
pub struct Unsynced {
    path: PathBuf,
}

/// A pass that writes.
#[derive(Debug)]
pub struct Writing {
    record: Unsynced,
    pass: u64,
    /// Since when files here are not to be trusted, if any are not.
    pub distrusted_since: Option<SystemTime>,
}

impl Unsynced {
    /// The record for what is copied to `directory`.
    pub fn of(state_directory: &Path, directory: &Path) -> Self {
        let digest = blake3::hash(directory.as_os_str().as_bytes()).to_hex();
        Self { path: state_directory.join("unsynced").join(format!("{digest}.json")) }
    }

    /// A pass begins to write.
    ///
    /// # Errors
    /// The record cannot be read or written: the pass must not begin.
    pub fn begin(&self) -> Result<Writing, Fault> {
        let boot_id = boot_id()?;
        let (now, pass) = (unix_ms().saturating_sub(MARGIN_MS), rand::random());
        let record = match self.read()? {
            None => Record { since_unix_ms: now, boot_id, lost: false, pass },
            Some(before) => {
                let lost = before.lost || before.boot_id != boot_id;
                Record { since_unix_ms: before.since_unix_ms.min(now), boot_id, lost, pass }
            }
        };
        self.write(&record)
            .map_err(|e| Fault::io(format!("cannot write {}", self.path.display()), &e))?;
        let since = UNIX_EPOCH + Duration::from_millis(record.since_unix_ms.max(0).unsigned_abs());
        let distrusted_since = record.lost.then_some(since);
        Ok(Writing { record: self.clone(), pass, distrusted_since })
    }

    /// What was copied is no more.
    ///
    /// # Errors
    /// The record cannot be removed: the next pass trusts less than it could.
    pub fn forget(&self) -> Result<(), Fault> {
        small_file::remove("unsynced.ended", &self.path)
            .map_err(|e| Fault::io(format!("cannot remove {}", self.path.display()), &e))
    }

    fn read(&self) -> Result<Option<Record>, Fault> {
        let bytes = match std::fs::read(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            read => {
                read.map_err(|e| Fault::io(format!("cannot read {}", self.path.display()), &e))?
            }
        };
        // Damaged, it says at least that something was under way.
        let unknown = Record { since_unix_ms: 0, boot_id: String::new(), lost: true, pass: 0 };
        Ok(Some(serde_json::from_slice(&bytes).unwrap_or(unknown)))
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        let json = serde_json::to_vec(record)?;
        small_file::replace("unsynced.begun", &self.path, &json, Lasting::AtOnce)
    }
}

impl Writing {
    /// It has ended, and all of it is on the disk.
    ///
    /// # Errors
    /// As [`Unsynced::forget`].
    pub fn end(self) -> Result<(), Fault> {
        match self.record.read()? {
            // Another one has begun meanwhile, and is not on the disk.
            Some(record) if record.pass != self.pass => Ok(()),
            _ => self.record.forget(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(unsynced: &Unsynced) -> Record {
        unsynced.read().unwrap().unwrap()
    }

    #[test]
    fn what_was_written_in_an_earlier_boot_is_not_trusted_until_a_pass_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let unsynced = Unsynced::of(dir.path(), Path::new("/home/shop"));
        assert_eq!(unsynced.begin().unwrap().distrusted_since, None);
        let first = record(&unsynced);
        // Cut off and begun again while the system goes on: nothing is lost.
        assert_eq!(unsynced.begin().unwrap().distrusted_since, None);
        assert_eq!(record(&unsynced).since_unix_ms, first.since_unix_ms);
        // The system has gone down since.
        unsynced.write(&Record { boot_id: "another".to_owned(), ..first.clone() }).unwrap();
        let since = UNIX_EPOCH + Duration::from_millis(first.since_unix_ms.unsigned_abs());
        assert_eq!(unsynced.begin().unwrap().distrusted_since, Some(since));
        // Cut off once more: still not.
        let last = unsynced.begin().unwrap();
        assert_eq!(last.distrusted_since, Some(since));
        last.end().unwrap();
        assert_eq!(unsynced.begin().unwrap().distrusted_since, None);
        unsynced.forget().unwrap();
        unsynced.forget().unwrap();
    }

    #[test]
    fn a_pass_that_was_overtaken_does_not_end_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let unsynced = Unsynced::of(dir.path(), Path::new("/home/shop"));
        let (one, other) = (unsynced.begin().unwrap(), unsynced.begin().unwrap());
        one.end().unwrap();
        assert_eq!(record(&unsynced).pass, other.pass);
        other.end().unwrap();
        assert_eq!(unsynced.read().unwrap(), None);
    }

    #[test]
    fn a_damaged_record_trusts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let unsynced = Unsynced::of(dir.path(), Path::new("/home/shop"));
        unsynced.begin().unwrap();
        std::fs::write(&unsynced.path, "{").unwrap();
        assert_eq!(unsynced.begin().unwrap().distrusted_since, Some(UNIX_EPOCH));
        let other = Unsynced::of(dir.path(), Path::new("/home/blog"));
        assert_eq!(other.begin().unwrap().distrusted_since, None);
    }
}
