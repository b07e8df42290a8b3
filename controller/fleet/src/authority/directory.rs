//! The authority on disk: `ca.key`, `ca.pem` and `grant.key` in one directory that appears as a
//! whole. Either nothing is there yet or everything is: a key that is missing beside a certificate
//! is a loss to be told, never a reason to make a new authority that no agent trusts.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::Ed25519KeyPair;
use ferry_proto::Fault;
use ferry_proto::channel::files;
use rcgen::KeyPair;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use zeroize::{Zeroize, Zeroizing};

use super::profile::{self, NewKey};

const CA_KEY: &str = "ca.key";
const CA_PEM: &str = "ca.pem";
const GRANT_KEY: &str = "grant.key";
const ALL: [&str; 3] = [CA_KEY, CA_PEM, GRANT_KEY];

/// What the directory holds.
pub(super) struct Files {
    pub(super) ca_key: KeyPair,
    pub(super) ca_pem: String,
    pub(super) grant_key: Ed25519KeyPair,
}

/// Reads the authority, made before if there is none.
pub(super) fn open_or_make(dir: &Path) -> Result<Files, Fault> {
    if is_absent(dir)? {
        make(dir)?;
    }
    read(dir)
}

/// Whether nothing of an authority is there. An empty directory, made by the package say, is
/// nothing.
fn is_absent(dir: &Path) -> Result<bool, Fault> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(Fault::io(format!("cannot look into {}", dir.display()), &e)),
    }
}

fn read(dir: &Path) -> Result<Files, Fault> {
    files::check_directory(dir)?;
    if let Some(missing) = ALL.into_iter().find(|name| !dir.join(name).exists()) {
        return Err(Fault::precondition(format!(
            "the certificate authority in {} is incomplete: {missing} is missing",
            dir.display()
        ))
        .remedy("put the whole directory back from a backup; only if no server was ever enrolled, empty it"));
    }
    let broken = |name: &str| {
        Fault::precondition(format!("{} cannot be used", dir.join(name).display()))
            .remedy("put the whole directory back from a backup")
    };
    let ca_key = read_text(&dir.join(CA_KEY), files::read_private)?;
    let ca_key = KeyPair::from_pem(&ca_key).map_err(|e| broken(CA_KEY).caused_by(&e))?;
    let ca_pem = read_text(&dir.join(CA_PEM), files::read_public)?.to_string();
    let grant_pem = files::read_private(&dir.join(GRANT_KEY))?;
    let mut grant_der = PrivatePkcs8KeyDer::from_pem_slice(&grant_pem)
        .map_err(|e| broken(GRANT_KEY).caused_by(&e))?;
    let grant_key = Ed25519KeyPair::from_pkcs8(grant_der.secret_pkcs8_der())
        .map_err(|e| broken(GRANT_KEY).caused_by(&e));
    grant_der.zeroize();
    Ok(Files { ca_key, ca_pem, grant_key: grant_key? })
}

fn read_text(
    path: &Path,
    read: impl Fn(&Path) -> Result<Zeroizing<Vec<u8>>, Fault>,
) -> Result<Zeroizing<String>, Fault> {
    let contents = read(path)?;
    std::str::from_utf8(&contents).map(|text| Zeroizing::new(text.to_owned())).map_err(|e| {
        Fault::precondition(format!("{} is not PEM text", path.display())).caused_by(&e)
    })
}

/// Makes the authority beside its place and renames it there, so that a crash leaves nothing or
/// everything.
fn make(dir: &Path) -> Result<(), Fault> {
    let (parent, staging) = staging(dir)?;
    files::create_directory(&parent)?;
    // Two controllers that start for the first time at once must not stage in the same place.
    let lock = File::open(&parent)
        .map_err(|e| Fault::io(format!("cannot open {}", parent.display()), &e))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Fault::transient(format!(
                "another controller is making the certificate authority in {}",
                parent.display()
            ))
            .remedy("start only one"));
        }
        Err(TryLockError::Error(e)) => {
            return Err(Fault::io(format!("cannot lock {}", parent.display()), &e));
        }
    }
    if !is_absent(dir)? {
        return Ok(());
    }
    match fs::remove_dir_all(&staging) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Fault::io(format!("cannot remove {}", staging.display()), &e));
        }
        _ => {}
    }
    files::create_directory(&staging)?;
    fill(&staging)?;
    files::sync_directory(&staging)?;
    // Onto an empty directory, or none.
    fs::rename(&staging, dir)
        .map_err(|e| Fault::io(format!("cannot put the authority at {}", dir.display()), &e))?;
    files::sync_directory(&parent)?;
    tracing::info!(directory = %dir.display(), "a new certificate authority was made");
    Ok(())
}

fn staging(dir: &Path) -> Result<(PathBuf, PathBuf), Fault> {
    match (dir.parent(), dir.file_name()) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => {
            let staging = parent.join(format!(".{}.new", name.to_string_lossy()));
            Ok((parent.to_owned(), staging))
        }
        _ => Err(Fault::precondition(format!(
            "{} is no place for a certificate authority",
            dir.display()
        ))
        .remedy("configure an absolute path, /var/lib/ferry-controller/ca say")),
    }
}

fn fill(dir: &Path) -> Result<(), Fault> {
    let ca_key = NewKey::p256()?;
    let grant_key = NewKey::ed25519()?;
    let ca_pem = profile::self_signed(ca_key.pair())?;
    files::create_new(&dir.join(CA_KEY), ca_key.pem().as_bytes(), 0o600)?;
    files::create_new(&dir.join(GRANT_KEY), grant_key.pem().as_bytes(), 0o600)?;
    files::create_new(&dir.join(CA_PEM), ca_pem.as_bytes(), 0o644)
}
