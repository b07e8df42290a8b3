//! Lingering: whether an account's user units run without a login. systemd-logind keeps it as a file of
//! the user's name, and looks at the file itself.

use std::path::PathBuf;

use ferry_proto::Fault;
use ferry_proto::ids::UnixName;

use crate::Layout;
use crate::durable::{self, Ownership};

pub(crate) const LINGER: &str = "/var/lib/systemd/linger";

/// Begins the name of a mark that is aside; the user follows. systemd passes over hidden files.
pub(crate) const ASIDE: &str = ".ferry-aside-";

fn file(layout: &Layout, user: &UnixName) -> PathBuf {
    layout.path(LINGER).join(user.as_str())
}

fn aside(layout: &Layout, user: &UnixName) -> PathBuf {
    layout.path(LINGER).join(format!("{ASIDE}{user}"))
}

/// Whether the user's units run without a login, or would if it were not fenced.
///
/// # Errors
/// If that cannot be looked up.
pub fn lingers(layout: &Layout, user: &UnixName) -> Result<bool, Fault> {
    Ok(durable::exists(&file(layout, user))? || durable::exists(&aside(layout, user))?)
}

/// Whether the user's units would start without a login, whatever their conditions say.
///
/// # Errors
/// If that cannot be looked up.
pub fn is_visible(layout: &Layout, user: &UnixName) -> Result<bool, Fault> {
    durable::exists(&file(layout, user))
}

/// Ends lingering for as long as a fence lasts.
///
/// # Errors
/// What renaming failed of.
pub fn put_aside(layout: &Layout, user: &UnixName) -> Result<(), Fault> {
    let file = file(layout, user);
    if durable::exists(&file)? { durable::rename(&file, &aside(layout, user)) } else { Ok(()) }
}

/// Makes lingering what it shall be when the account is served. Needs no free disk to be what it was.
pub(super) fn set(layout: &Layout, user: &UnixName, linger: bool) -> Result<(), Fault> {
    let (file, aside) = (file(layout, user), aside(layout, user));
    if !linger {
        return remove(layout, user);
    }
    if durable::exists(&aside)? {
        return durable::rename(&aside, &file);
    }
    if durable::exists(&file)? {
        return Ok(());
    }
    durable::make_directory(durable::parent(&file), 0o755)?;
    durable::write(&file, b"", Ownership::root(0o644))
}

/// Undo of putting aside, where no plan says how it was before.
pub(crate) fn put_back(layout: &Layout, user: &UnixName) -> Result<(), Fault> {
    set(layout, user, true)
}

/// Ends lingering for good.
///
/// # Errors
/// What removing failed of.
pub fn remove(layout: &Layout, user: &UnixName) -> Result<(), Fault> {
    durable::remove(&file(layout, user))?;
    durable::remove(&aside(layout, user)).map(|_| ())
}
