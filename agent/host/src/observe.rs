//! What Ferry has made on this host and left, seen in the host itself whatever any record says: each thing
//! is known by a name, a mark or a first line that nothing else has. And taking it away. It must not
//! know how accounts stand: a caller compares.

mod remove;
mod sites;
#[cfg(test)]
mod tests;
mod users;

pub use remove::remove;
pub use sites::{is_of_fence, is_of_sites, is_of_wind_down};
pub use users::is_kept_stopped;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ferry_proto::Fault;
use ferry_proto::artefact::{Artefact, Kind, Observed};
use ferry_proto::ids::AccountName;

use crate::{Layout, durable};

/// The most entries of a directory that are looked at.
const ENTRIES_CAP: usize = 200_000;
/// How deep the web server's directory is searched for files that were being written.
const DEPTH: usize = 4;
/// The most of a file that is read to know whose it is.
const HEAD_CAP: u64 = 1 << 20;

/// The home of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// The account.
    pub account: AccountName,
    /// Where it is.
    pub path: PathBuf,
}

/// All that Ferry has made on this host; what was being written in the roots of `homes` too. Changes
/// nothing.
pub fn observe(layout: &Layout, homes: &[Home]) -> Observed {
    let mut seen = Observed::default();
    seen.take(temporaries(layout));
    seen.take(in_homes(homes));
    seen.extend([sites::observe(layout), users::observe(layout)]);
    seen
}

/// Names and paths in a directory; none if there is no such directory.
fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>, Fault> {
    let failed = |e: &std::io::Error| {
        Fault::io(format!("{} could not be looked into", directory.display()), e)
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(failed(&e)),
    };
    let mut found = Vec::new();
    for entry in entries.take(ENTRIES_CAP) {
        let entry = entry.map_err(|e| failed(&e))?;
        // Ferry's names are all text.
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// The directories below one; links are not followed.
fn directories(directory: &Path) -> Result<Vec<PathBuf>, Fault> {
    let all = entries(directory)?.into_iter().map(|(_, path)| path);
    Ok(all.filter(|path| fs::symlink_metadata(path).is_ok_and(|m| m.is_dir())).collect())
}

/// The directories of PHP's pools, of every version that there is.
fn pool_directories(layout: &Layout) -> Result<Vec<PathBuf>, Fault> {
    let versions = directories(&layout.path("/etc/php"))?;
    Ok(versions.into_iter().map(|version| version.join("fpm/pool.d")).collect())
}

/// Files that were being written, in every directory in which Ferry writes.
fn temporaries(layout: &Layout) -> Result<Vec<Artefact>, Fault> {
    let mut places = vec![
        layout.path("/etc/ferry/fenced"),
        layout.path("/var/spool/cron/crontabs"),
        layout.path("/var/lib/systemd/linger"),
    ];
    places.extend(pool_directories(layout)?);
    for parent in ["/etc/ferry/aside", "/etc/ferry/certificates", "/etc/systemd/system"] {
        places.extend(directories(&layout.path(parent))?);
    }
    let mut level = vec![layout.path("/etc/nginx")];
    for _ in 0..DEPTH {
        places.extend(level.iter().cloned());
        let below: Result<Vec<_>, _> =
            level.iter().map(|directory| directories(directory)).collect();
        level = below?.concat();
    }
    let mut found = Vec::new();
    for place in places {
        let all = entries(&place)?.into_iter().filter(|(name, _)| durable::is_temporary(name));
        found.extend(all.map(|(_, path)| Artefact::new(Kind::Temporary, path.display())));
    }
    Ok(found)
}

/// Files that a pass was writing, in the roots of homes. Deeper ones end with the next pass, or with the
/// copy.
fn in_homes(homes: &[Home]) -> Result<Vec<Artefact>, Fault> {
    let mut found = Vec::new();
    for home in homes {
        // A home that is a link is not the account's own.
        if !fs::symlink_metadata(&home.path).is_ok_and(|m| m.is_dir()) {
            continue;
        }
        let all = entries(&home.path)?.into_iter().filter(|(name, _)| is_of_a_pass(name));
        found.extend(all.map(|(_, path)| {
            Artefact::new(Kind::Temporary, path.display()).of(home.account.as_str())
        }));
    }
    Ok(found)
}

/// `.ferry-tmp.` and 32 hexadecimal digits: what a pass over files calls what it has not finished.
fn is_of_a_pass(name: &str) -> bool {
    let digits = name.strip_prefix(".ferry-tmp.").unwrap_or_default();
    digits.len() == 32 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The text of a regular file; nothing if it is none, which Ferry makes nothing of.
fn text(path: &Path) -> Result<String, Fault> {
    if !fs::symlink_metadata(path).is_ok_and(|m| m.is_file()) {
        return Ok(String::new());
    }
    let bytes = durable::read(path, HEAD_CAP)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
