//! Keeps what was decided, durably: one file per account, and the tables made from them. Replaces
//! files as a whole, and still can when the disk is full. Blocks: callers are off the async threads.
//!
//! Knows nothing of what the files mean.

use std::collections::BTreeMap;
use std::convert::identity;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_failpoints::{around, reach};
use ferry_proto::Fault;
use ferry_proto::ids::AccountName;
use nix::fcntl::{Flock, FlockArg};

use super::standing::Standing;

/// The largest file read back: some 10,000 mailboxes with their hashes.
const MAX_STANDING: u64 = 8 << 20;
/// What follows a text that is shorter than its file: to every reader of these files, nothing.
const FILLER: u8 = b'\n';
/// How long one operation waits for another.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// The directory of standings and tables.
#[derive(Debug, Clone)]
pub(super) struct Store {
    pub dir: PathBuf,
}

/// Holds off every other operation on the same directory, in this process and in others.
#[derive(Debug, Clone)]
pub(super) struct Lock(
    #[expect(dead_code, reason = "held, and released when dropped")] Arc<Flock<File>>,
);

impl Lock {
    /// Changes something, off the async threads. A thread cannot be stopped: the lock is held until it has
    /// ended, also when nobody waits for it any more, lest it overtake the operation that comes next.
    pub async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let held = self.clone();
        blocking(move || {
            let done = work();
            drop(held);
            done
        })
        .await
    }
}

impl Store {
    fn accounts(&self) -> PathBuf {
        self.dir.join("accounts")
    }

    pub fn file(&self, account: &AccountName) -> PathBuf {
        self.accounts().join(format!("{account}.json"))
    }

    /// Makes the directories: tables can be read by the mail servers, standings by root only.
    pub fn prepare(&self) -> Result<(), Fault> {
        make_directory(&self.dir, 0o755)?;
        make_directory(&self.accounts(), 0o700)
    }

    /// Whether anything was ever kept here.
    pub fn exists(&self) -> bool {
        self.accounts().is_dir()
    }

    /// Waits for the other operations to end.
    pub fn lock(&self) -> Result<Lock, Fault> {
        let path = self.dir.join(".lock");
        let deadline = Instant::now() + LOCK_WAIT;
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| Fault::io(format!("{} cannot be opened", path.display()), &e))?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Lock(Arc::new(lock))),
                Err((back, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                    file = back;
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err((_, e)) => {
                    return Err(Fault::transient(format!("{} is held", path.display()))
                        .caused_by(&e)
                        .remedy("another mail operation runs on this server; try again"));
                }
            }
        }
    }

    /// Every standing.
    pub fn load(&self) -> Result<BTreeMap<AccountName, Standing>, Fault> {
        let mut standings = BTreeMap::new();
        let dir = self.accounts();
        let unreadable = |path: &Path, e: &std::io::Error| {
            Fault::io(format!("{} cannot be read", path.display()), e)
        };
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(standings),
            Err(e) => return Err(unreadable(&dir, &e)),
        };
        for entry in entries {
            let path = entry.map_err(|e| unreadable(&dir, &e))?.path();
            let name = path.file_name().and_then(|n| n.to_str());
            let Some(name) = name.and_then(|n| n.strip_suffix(".json")) else {
                continue;
            };
            let Ok(account) = name.parse::<AccountName>() else {
                continue;
            };
            let mut text = String::new();
            File::open(&path)
                .and_then(|f| f.take(MAX_STANDING).read_to_string(&mut text))
                .map_err(|e| unreadable(&path, &e))?;
            let standing = serde_json::from_str(&text).map_err(|e| {
                Fault::permanent(format!("{} is damaged", path.display()))
                    .caused_by(&e)
                    .remedy("it is never guessed: restore it from a backup, or remove it and repeat the step")
            })?;
            standings.insert(account, standing);
        }
        Ok(standings)
    }

    /// Keeps a standing.
    pub fn save(&self, account: &AccountName, standing: &Standing) -> Result<(), Fault> {
        let text = serde_json::to_string(standing)
            .map_err(|e| Fault::bug("a mail standing cannot be written").caused_by(&e))?;
        Wanted { path: self.file(account), text, mode: 0o600, gid: None, age: Age::Newer }.write()
    }

    /// Forgets a standing.
    pub fn remove(&self, account: &AccountName) -> Result<(), Fault> {
        remove(&self.file(account))
    }
}

/// A file as it should be.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub path: PathBuf,
    pub text: String,
    pub mode: u32,
    pub gid: Option<u32>,
    pub age: Age,
}

/// What a file's time of modification is to say. Files are replaced as a whole, so it need not tell
/// when; but its readers draw conclusions from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// Later than the file replaced: Dovecot reads a passwd-file again when its size or the second of
    /// its modification has changed, and two changes may fall into one second.
    Newer,
    /// A while ago: Postfix waits for seconds before it trusts a table that was just modified.
    Old,
}

impl Wanted {
    /// Whether the file is not there, or says something else. The empty lines behind a text that was
    /// written over a longer one say nothing.
    pub fn differs(&self) -> Result<bool, Fault> {
        let now = read(&self.path)?;
        let rest = now.as_deref().and_then(|now| now.strip_prefix(self.text.as_str()));
        Ok(rest.is_none_or(|rest| rest.bytes().any(|b| b != FILLER)))
    }

    /// Makes it so.
    pub fn write(&self) -> Result<(), Fault> {
        if self.differs()? {
            replace(self)?;
        }
        Ok(())
    }
}

/// Runs what blocks off the async threads. What changes standings or tables is a [`Lock`]'s to run.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Fault::bug("a mail operation ended before its time").caused_by(&e)),
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), Fault> {
    let made = std::fs::create_dir_all(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)));
    made.map_err(|e| Fault::io(format!("{} cannot be made", path.display()), &e))
}

/// Makes a directory that `gid` may enter and list.
pub(super) fn make_directory_for(path: &Path, gid: Option<u32>) -> Result<(), Fault> {
    make_directory(path, 0o750)?;
    std::os::unix::fs::chown(path, None, gid)
        .map_err(|e| Fault::io(format!("{} cannot be given away", path.display()), &e))
}

/// Removes a file; one that is not there is removed already.
pub(super) fn remove(path: &Path) -> Result<(), Fault> {
    let act = || std::fs::remove_file(path).and_then(|()| sync_parent(path));
    match std::fs::symlink_metadata(path).and_then(|_| change(path, act)) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Fault::io(format!("{} cannot be removed", path.display()), &e)),
    }
}

/// What a file holds now; none if it is not there.
pub(super) fn read(path: &Path) -> Result<Option<String>, Fault> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Fault::io(format!("{} cannot be read", path.display()), &e)),
    }
}

/// Replaces a file as a whole, durably. On a full disk the old file's own blocks are used, if the new
/// text fits into them: undoing a fence must need no space.
fn replace(wanted: &Wanted) -> Result<(), Fault> {
    let path = &wanted.path;
    let old = std::fs::metadata(path).ok();
    let fits = old.as_ref().is_some_and(|o| o.len() >= wanted.text.len() as u64);
    let act = || {
        match write_beside(wanted, old.as_ref()) {
            Err(e) if is_full(&e) && fits => overwrite(wanted, old.as_ref()),
            other => other,
        }?;
        sync_parent(path)
    };
    change(path, act).map_err(|e| Fault::io(format!("{} cannot be written", path.display()), &e))
}

/// Changes what is at `path`; fault tests know the change by it.
fn change(path: &Path, act: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<()> {
    around(|| format!("file.{}", path.display()), identity, act)
}

fn is_full(e: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(e.kind(), K::StorageFull | K::QuotaExceeded)
}

/// Where a file is written before it takes its place.
pub(super) fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("file");
    path.with_file_name(format!(".{name}.new"))
}

fn write_beside(wanted: &Wanted, old: Option<&std::fs::Metadata>) -> std::io::Result<()> {
    let beside = beside(&wanted.path);
    let result = (|| {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.set_permissions(std::fs::Permissions::from_mode(wanted.mode))?;
        std::os::unix::fs::fchown(&file, None, wanted.gid)?;
        file.write_all(wanted.text.as_bytes())?;
        set_age(&file, wanted.age, old)?;
        file.sync_all()?;
        std::fs::rename(&beside, &wanted.path)
    })();
    if result.is_err() {
        // What was half written only takes space away; the error itself is told.
        let _ = std::fs::remove_file(&beside);
    }
    result
}

/// Writes into the old file's own blocks, from where the text begins to differ to the old end, at once:
/// whatever ends this process leaves one text or the other, never the one with an end of the other's.
fn overwrite(wanted: &Wanted, old: Option<&std::fs::Metadata>) -> std::io::Result<()> {
    let path = &wanted.path;
    let file = OpenOptions::new().write(true).open(path)?;
    let (before, mut text) = (std::fs::read(path)?, wanted.text.clone().into_bytes());
    text.resize(before.len().max(text.len()), FILLER);
    let same = before.iter().zip(&text).take_while(|(old, new)| old == new).count();
    file.write_all_at(&text[same..], same as u64)?;
    reach!("file.{}.overwritten", path.display())?;
    set_age(&file, wanted.age, old)?;
    file.sync_all()
}

fn set_age(file: &File, age: Age, old: Option<&std::fs::Metadata>) -> std::io::Result<()> {
    let modified = file.metadata()?.modified()?;
    match age {
        Age::Old => file.set_modified(modified - Duration::from_secs(60)),
        Age::Newer => {
            let Some(old) = old else { return Ok(()) };
            let next = old.modified()? + Duration::from_secs(1);
            if modified < next { file.set_modified(next) } else { Ok(()) }
        }
    }
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/"))).and_then(|dir| dir.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use ferry_failpoints::FakeLab;

    use super::super::spec::MailSpec;
    use super::super::standing::{Basis, Gate};
    use super::*;

    fn wanted(dir: &Path, text: &str, age: Age) -> Wanted {
        Wanted { path: dir.join("table"), text: text.to_owned(), mode: 0o640, gid: None, age }
    }

    #[test]
    fn a_replacement_is_whole_and_looks_newer_to_dovecot() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut last = i64::MIN;
        for text in ["one", "two", "six"] {
            let file = wanted(dir.path(), text, Age::Newer);
            file.write().expect("written");
            assert!(!file.differs().expect("read"));
            let meta = std::fs::metadata(&file.path).expect("there");
            assert_eq!(meta.mode() & 0o777, 0o640);
            assert!(meta.mtime() > last, "same size, so the time must tell");
            last = meta.mtime();
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1);
    }

    #[test]
    fn a_replacement_looks_old_to_postfix() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = wanted(dir.path(), "one", Age::Old);
        file.write().expect("written");
        let modified = std::fs::metadata(&file.path).and_then(|m| m.modified()).expect("there");
        assert!(modified.elapsed().expect("in the past") > Duration::from_secs(50));
    }

    /// The two texts differ in length, as those of a standing that is fenced and then is not.
    #[test]
    fn a_standing_is_whole_whatever_ends_its_overwriting() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store { dir: dir.path().to_owned() };
        store.prepare().expect("prepared");
        let account: AccountName = "shop".parse().expect("a literal");
        let spec = MailSpec::new(account.clone(), "/home/shop".into(), 7, 7, vec![]);
        let spec = spec.expect("valid");
        let fenced = Standing { spec, basis: Basis::Provider, gate: Gate::Fenced, unbroken: true };
        let open = Standing { gate: Gate::Open, unbroken: false, ..fenced.clone() };
        store.save(&account, &fenced).expect("saved");
        let text = serde_json::to_string(&open).expect("written");
        let path = store.file(&account);
        let file = Wanted { path, text, mode: 0o600, gid: None, age: Age::Newer };
        {
            let cut = |_: &str| format!("errno {}", nix::libc::EIO);
            let lab = FakeLab::listen(dir.path(), cut).expect("listening");
            overwrite(&file, None).expect_err("cut off");
            assert_eq!(lab.heard().len(), 1);
        }
        assert_eq!(store.load().expect("whole")[&account], open);
        assert!(!file.differs().expect("read"));
    }

    #[test]
    fn overwriting_needs_no_block() {
        let dir = tempfile::tempdir().expect("a directory");
        wanted(dir.path(), "a long text", Age::Newer).write().expect("written");
        let file = wanted(dir.path(), "short", Age::Newer);
        let old = std::fs::metadata(&file.path).expect("there");
        overwrite(&file, Some(&old)).expect("overwritten");
        let new = std::fs::metadata(&file.path).expect("there");
        assert!(!file.differs().expect("read"));
        assert_eq!(new.ino(), old.ino());
        assert!(new.mtime() > old.mtime());
    }
}
