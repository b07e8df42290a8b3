//! What the lab remembers of itself, in its own directory.
//!
//! It remembers little: which hosts there are, written down *before* each is made. All else is
//! found by asking the kernel, in places that only this lab uses: mounts and loop devices below
//! the directory, the network namespace kept by a file in it, and processes in the control
//! group of its name. So there is no record that a crash could leave wrong, and no process id
//! that could by now be another's.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{env, io};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::spec::HostSpec;

const DEFAULT: &str = "/var/lib/ferry-lab";
const FILE: &str = "state.json";

/// One host in the record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostRecord {
    /// What it is like.
    pub spec: HostSpec,
    /// The tree below its root.
    pub tree: PathBuf,
    /// Whether it has booted once. Until then it is half-made, and is made anew.
    pub ready: bool,
}

/// The record.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct State {
    /// The hosts.
    pub hosts: Vec<HostRecord>,
}

impl State {
    /// Reads the record; a lab without one has no hosts.
    pub fn load(dir: &Path) -> Result<State> {
        let path = dir.join(FILE);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| {
                format!("{} is not ours or damaged: run `lab down`", path.display())
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::default()),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Replaces the record.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let new = dir.join("state.json.new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&new, dir.join(FILE)))
            .with_context(|| format!("writing {}", dir.join(FILE).display()))
    }

    /// The record of one host.
    pub fn host(&self, name: &str) -> Option<&HostRecord> {
        self.hosts.iter().find(|host| host.spec.name == name)
    }

    /// Adds a host, or replaces what was said of it.
    pub fn put(&mut self, record: HostRecord) {
        self.remove(&record.spec.name);
        self.hosts.push(record);
    }

    /// Forgets a host.
    pub fn remove(&mut self, name: &str) {
        self.hosts.retain(|host| host.spec.name != name);
    }
}

/// The lab's directory. `FERRY_LAB_STATE` names another one, for a second lab beside the first.
pub fn dir() -> Result<PathBuf> {
    let dir = env::var_os("FERRY_LAB_STATE").map_or_else(|| PathBuf::from(DEFAULT), PathBuf::from);
    let plain = |name: &str| {
        name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-' || b.is_ascii_digit())
    };
    let named = dir.file_name().and_then(|name| name.to_str()).is_some_and(plain);
    if !named || !dir.is_absolute() || dir.parent() == Some(Path::new("/")) {
        bail!(
            "FERRY_LAB_STATE={} must be an absolute path below some directory, its last part of \
             lower-case letters, digits and dashes",
            dir.display()
        );
    }
    Ok(dir)
}

/// The directory of one of several labs side by side; that of the first is [`dir`].
pub fn numbered(number: usize) -> Result<PathBuf> {
    let first = dir()?;
    if number == 1 {
        return Ok(first);
    }
    let name = first.file_name().unwrap_or_default().to_string_lossy();
    Ok(first.with_file_name(format!("{name}-{number}")))
}

/// The right to change a lab: one command at a time. It ends with the process that holds it.
///
/// The lock is on the directory itself, so that nothing is left when that is removed.
#[derive(Debug)]
pub struct Lock {
    _dir: File,
}

impl Lock {
    /// Makes the directory if need be, and takes the lock.
    pub fn take(dir: &Path) -> Result<Lock> {
        loop {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
            let Some(lock) = Lock::take_existing(dir)? else {
                continue;
            };
            return Ok(lock);
        }
    }

    /// Takes the lock if the directory is there.
    pub fn take_existing(dir: &Path) -> Result<Option<Lock>> {
        let Ok(file) = File::open(dir) else {
            return Ok(None);
        };
        if file.try_lock().is_err() {
            bail!(
                "another lab command is at work in {}; wait for it or end it, or choose another \
                 directory with FERRY_LAB_STATE",
                dir.display()
            );
        }
        // The directory may have been removed, even made anew, before the lock was ours.
        let ours = file.metadata()?.ino();
        let there = fs::metadata(dir).map(|now| now.ino() == ours).unwrap_or(false);
        Ok(there.then_some(Lock { _dir: file }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Image;

    fn record(ready: bool) -> HostRecord {
        let spec = HostSpec::numbered("extra", Image::Debian12, 50);
        HostRecord { spec, tree: PathBuf::from("/tree"), ready }
    }

    #[test]
    fn a_host_is_recorded_once() {
        let mut state = State::default();
        state.put(record(false));
        state.put(record(true));
        assert_eq!(state.hosts.len(), 1);
        assert!(state.host("extra").is_some_and(|host| host.ready));
        state.remove("extra");
        assert!(state.host("extra").is_none());
    }

    #[test]
    fn one_lock_at_a_time_and_the_record_survives() {
        let dir = env::temp_dir().join(format!("ferry-lab-state-{}", std::process::id()));
        let lock = Lock::take(&dir).unwrap();
        assert!(Lock::take(&dir).unwrap_err().to_string().contains("another lab command"));
        let mut state = State::default();
        state.put(record(true));
        state.save(&dir).unwrap();
        assert_eq!(State::load(&dir).unwrap().hosts.len(), 1);
        drop(lock);
        assert!(Lock::take_existing(&dir).unwrap().is_some());
        fs::remove_dir_all(&dir).unwrap();
        assert!(Lock::take_existing(&dir).unwrap().is_none());
    }
}
