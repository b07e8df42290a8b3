//! What root on this server has allowed a peer without a controller's grant: to make one directory here
//! equal to one of the peer's, or to compare both, for a time. Each is a file beside the ledger, and read
//! when the peer comes. It must not know how files are copied.

use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use ferry_proto::Fault;
use ferry_proto::ids::ServerName;
use serde::{Deserialize, Serialize};

use crate::clock::unix_ms;
use crate::config::Config;
use crate::ledger::Ledger;
use crate::small_file::{self, Lasting};

/// Directories that hold the system itself, or other systems: never a target, nor anything above the agent's
/// own state.
const NEVER: [&str; 11] =
    ["/", "/boot", "/dev", "/etc", "/home", "/proc", "/root", "/run", "/sys", "/usr", "/var"];

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowance {
    /// Whose agent may do it.
    pub peer: ServerName,
    /// Which directory.
    pub directory: PathBuf,
    /// Not after this, in Unix milliseconds. What has begun goes on.
    pub until_unix_ms: i64,
}

impl Allowance {
    /// Checks what is to be allowed.
    ///
    /// # Errors
    /// The directory is not one that may be.
    pub fn new(
        config: &Config,
        peer: ServerName,
        directory: &Path,
        seconds: u32,
    ) -> Result<Self, Fault> {
        check(config, directory)?;
        let until_unix_ms = unix_ms().saturating_add(i64::from(seconds) * 1000);
        Ok(Self { peer, directory: directory.to_owned(), until_unix_ms })
    }

    /// Keeps it; one for the same peer and directory is replaced.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&self, config: &Config) -> Result<(), Fault> {
        let path = self.path(config);
        let json = serde_json::to_vec(self)
            .map_err(|e| Fault::bug("an allowance has no JSON").caused_by(&e))?;
        small_file::replace("allowance.kept", &path, &json, Lasting::AtOnce)
            .map_err(|e| Fault::io(format!("cannot write {}", path.display()), &e))
    }

    /// Takes it back.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, config: &Config) -> Result<(), Fault> {
        let path = self.path(config);
        small_file::remove("allowance.removed", &path)
            .map_err(|e| Fault::io(format!("cannot remove {}", path.display()), &e))
    }

    /// Whether its time is over.
    pub fn has_expired(&self) -> bool {
        unix_ms() > self.until_unix_ms
    }

    fn path(&self, config: &Config) -> PathBuf {
        let mut name = blake3::Hasher::new();
        name.update(self.peer.as_str().as_bytes());
        name.update(&[0]);
        name.update(self.directory.as_os_str().as_bytes());
        place(config).join(format!("{}.json", name.finalize().to_hex()))
    }
}

fn place(config: &Config) -> PathBuf {
    config.state_directory.join("allowances")
}

/// All of them.
///
/// # Errors
/// They cannot be read.
pub fn all(config: &Config) -> Result<Vec<Allowance>, Fault> {
    let place = place(config);
    let failed = |e: &std::io::Error| Fault::io(format!("cannot read {}", place.display()), e);
    let entries = match std::fs::read_dir(&place) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| failed(&e))?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| failed(&e))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let bytes = std::fs::read(&path).map_err(|e| failed(&e))?;
        all.push(serde_json::from_slice(&bytes).map_err(|e| {
            Fault::permanent(format!("{} cannot be understood", path.display()))
                .caused_by(&e)
                .remedy("remove the file, then allow the peer again")
        })?);
    }
    all.sort_by(|a: &Allowance, b| (&a.directory, &a.peer).cmp(&(&b.directory, &b.peer)));
    Ok(all)
}

/// Whether `peer` may write to `directory` now.
///
/// # Errors
/// It may not.
pub fn allowed(config: &Config, peer: &ServerName, directory: &Path) -> Result<Allowance, Fault> {
    let found = all(config)?.into_iter().find(|a| a.peer == *peer && a.directory == directory);
    let remedy = || {
        format!("on the target, as root: ferry-agent files allow {peer} {}", directory.display())
    };
    let Some(found) = found else {
        return Err(Fault::precondition(format!(
            "nobody has allowed {peer} to copy to {}",
            directory.display()
        ))
        .remedy(remedy()));
    };
    if found.has_expired() {
        return Err(Fault::precondition(format!(
            "what allowed {peer} to copy to {} has expired",
            directory.display()
        ))
        .remedy(remedy()));
    }
    // An account may have come to live there since.
    check(config, directory)?;
    Ok(found)
}

/// Whether a directory may be made equal to a peer's at all.
fn check(config: &Config, directory: &Path) -> Result<(), Fault> {
    let shown = directory.display();
    let is_plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if !directory.is_absolute() || !directory.components().all(is_plain) {
        return Err(Fault::precondition(format!("{shown} is not an absolute path without `..`"))
            .remedy("name the directory's whole path (realpath shows it)"));
    }
    let holds = |other: &Path| other.starts_with(directory) || directory.starts_with(other);
    if NEVER.iter().any(|never| Path::new(never) == directory) || holds(&config.state_directory) {
        return Err(Fault::precondition(format!("{shown} is the system's own"))
            .remedy("choose a directory that holds nothing else, such as one below /srv"));
    }
    let of_account = |name: &dyn std::fmt::Display| {
        Fault::precondition(format!("{shown} overlaps the home of account {name}"))
            .remedy("move the account with `ferry move`: that fences it first")
    };
    let inventory =
        ferry_host::accounts::load(&config.accounts_directory, &config.inventory_directory);
    if let Some((name, _)) = inventory.accounts.iter().find(|(_, d)| holds(&d.home)) {
        return Err(of_account(name));
    }
    let said = Ledger::read_at(&config.state_directory.join("ledger"))?;
    match said.accounts.iter().find(|(_, account)| holds(&account.definition.home)) {
        Some((name, _)) => Err(of_account(name)),
        None => Ok(()),
    }
}
