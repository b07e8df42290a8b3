//! The cache: what is slow to make and the same for every lab, outside the repository.

use std::env;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::progress::say;
use crate::wait;

const DEFAULT: &str = "/var/cache/ferry-lab";
/// As long as the longest thing that is made under a lock.
const WAIT: Duration = Duration::from_secs(1800);

/// The cache's directory, made if need be.
pub fn dir() -> Result<PathBuf> {
    let dir = env::var_os("FERRY_LAB_CACHE").map_or_else(|| PathBuf::from(DEFAULT), PathBuf::from);
    fs::create_dir_all(&dir)
        .with_context(|| format!("making the cache {}; FERRY_LAB_CACHE moves it", dir.display()))?;
    Ok(dir)
}

/// Holds one part of the cache against other lab commands while something is made in it.
///
/// The lock is the directory itself: it ends with this process, however that ends.
pub fn lock(part: &str) -> Result<(PathBuf, File)> {
    let dir = dir()?.join(part);
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let lock = File::open(&dir).with_context(|| format!("opening {}", dir.display()))?;
    if lock.try_lock().is_err() {
        say(format!("waiting for another lab command that is at work in {}", dir.display()));
        wait::until("the other lab command", WAIT, || Ok(lock.try_lock().ok()))?;
    }
    Ok((dir, lock))
}
