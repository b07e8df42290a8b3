//! Copies of an account's certificates for the web server, which reads them as root: the account
//! could put a symlink to somebody else's key in their place, so only root's copies are named in
//! configuration.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ferry_proto::Fault;
use ferry_proto::account::{Definition, Site, Tls};
use ferry_proto::ids::HomePath;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::render::certificate_files;
use crate::durable::{self, Ownership};
use crate::users::passwd::Database;
use crate::{Layout, run};

/// The largest certificate chain or key.
const CAP: u64 = 256 * 1024;

/// Copies the site's certificate and key from the home. True if they differ from the last copies.
pub(crate) fn refresh(
    layout: &Layout,
    definition: &Definition,
    site: &Site,
) -> Result<bool, Fault> {
    let Some(Tls { certificate, key }) = &site.tls else {
        return Ok(false);
    };
    let uid = Database::read(layout)?.user(definition.user.as_str()).map(|u| u.uid);
    let from_home = |path: &HomePath, kind: &str| -> Result<Vec<u8>, Fault> {
        let bytes = read(&definition.home, path, uid).map_err(|fault| {
            fault.context(format!(
                "the {kind} of site {} of account {} cannot be used",
                site.name, definition.name
            ))
        })?;
        if bytes.windows(11).any(|w| w == b"-----BEGIN ") {
            return Ok(bytes);
        }
        Err(Fault::precondition(format!(
            "the {kind} of site {} of account {} is not PEM: {path}",
            site.name, definition.name
        ))
        .remedy("write it as PEM, or correct `tls` in the definition"))
    };
    let certificate = from_home(certificate, "certificate")?;
    let key = from_home(key, "key")?;
    let (certificate_file, key_file) = certificate_files(layout, definition, site);
    durable::make_directory(durable::parent(&certificate_file), 0o700)?;
    let owner = Ownership::root(0o600);
    let one = durable::write_if_changed(&certificate_file, &certificate, owner)?;
    let two = durable::write_if_changed(&key_file, &key, owner)?;
    Ok(one || two)
}

/// Reads a file of the account: below its home whatever symlinks say, regular, and its own or root's.
fn read(home: &Path, path: &HomePath, uid: Option<u32>) -> Result<Vec<u8>, Fault> {
    let shown = path.below(home);
    let failed = |e: rustix::io::Errno| {
        let class = if e == rustix::io::Errno::XDEV || e == rustix::io::Errno::LOOP {
            Fault::precondition(format!("{} leads out of the home", shown.display()))
        } else {
            Fault::precondition(format!("{} cannot be opened", shown.display())).caused_by(&e)
        };
        class.remedy("put the file itself below the home")
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let directory =
        rustix::fs::open(home, flags | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
            .map_err(failed)?;
    // Not blocking: a FIFO would wait for a writer.
    let file = openat2(
        &directory,
        path.as_str(),
        flags | OFlags::NONBLOCK | OFlags::NOCTTY,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(failed)?;
    let file = File::from(file);
    let owner = file.metadata().map_err(|e| Fault::io("a file could not be examined", &e))?.uid();
    if owner != 0 && Some(owner) != uid {
        return Err(Fault::precondition(format!(
            "{} belongs to user {owner}, not to the account",
            run::printable(shown.as_os_str().as_encoded_bytes(), 300)
        ))
        .remedy("give it to the account"));
    }
    durable::read_open(&file, &shown, CAP)
}
