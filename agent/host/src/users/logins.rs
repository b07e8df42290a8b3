//! Whether an account may log in. Closed means: the account has expired (`/etc/shadow`), which PAM
//! and sshd check for passwords and keys alike, and cron and at for their jobs. It is state of the
//! system itself and holds across reboots.

use ferry_proto::Fault;
use ferry_proto::ids::UnixName;
use serde::{Deserialize, Serialize};

use super::passwd::Database;
use crate::Layout;
use crate::run::Run;

/// The day that closes an account: 16 March 1970. Nobody else sets it, so that logins which Ferry has
/// closed can be told from those that an administrator has (who sets 0 or 1).
pub(crate) const CLOSED: i64 = 74;

/// What the logins of a user were before they were closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginRecord {
    /// The user.
    pub user: UnixName,
    /// The day on which the account ends by its owner's will; none: never.
    pub expire: Option<i64>,
}

/// What closing the logins of `user` will change.
///
/// # Errors
/// Precondition if there is no such user.
pub fn plan_close_logins(layout: &Layout, user: &UnixName) -> Result<LoginRecord, Fault> {
    let expire = expiry(layout, user)?;
    Ok(LoginRecord { user: user.clone(), expire })
}

/// Closes the logins: passwords, keys, cron and at.
///
/// # Errors
/// Precondition if there is no such user; permanent if the change does not show.
pub fn close_logins(layout: &Layout, record: &LoginRecord) -> Result<(), Fault> {
    set(layout, &record.user, Some(CLOSED))
}

/// Whether the user can log in: it is here, and not closed.
///
/// # Errors
/// What reading failed of.
pub fn may_log_in(layout: &Layout, user: &UnixName) -> Result<bool, Fault> {
    let database = Database::read(layout)?;
    // One of whom nothing is said in /etc/shadow cannot be closed there.
    let shadow = database.shadow(user.as_str());
    Ok(database.user(user.as_str()).is_some()
        && shadow.is_none_or(|s| s.aging.expire != Some(CLOSED)))
}

/// Opens the logins as they were. A user that is gone has none to open.
///
/// # Errors
/// Permanent if the change does not show.
pub fn open_logins(layout: &Layout, record: &LoginRecord) -> Result<(), Fault> {
    if Database::read(layout)?.shadow(record.user.as_str()).is_none() {
        return Ok(());
    }
    set(layout, &record.user, record.expire)
}

fn expiry(layout: &Layout, user: &UnixName) -> Result<Option<i64>, Fault> {
    let database = Database::read(layout)?;
    match database.shadow(user.as_str()) {
        Some(shadow) => Ok(shadow.aging.expire),
        None => Err(Fault::precondition(format!("there is no user {user} in /etc/shadow"))
            .remedy("make the user with Debian's tools, so that it has an entry there")),
    }
}

/// Sets the day on which the account ends, and looks whether it is so.
fn set(layout: &Layout, user: &UnixName, expire: Option<i64>) -> Result<(), Fault> {
    if expiry(layout, user)? == expire {
        return Ok(());
    }
    let day = expire.map(|d| d.to_string()).unwrap_or_default();
    Run::new("/usr/sbin/usermod")
        .arguments(tree(layout))
        .argument("--expiredate")
        .argument(day)
        .argument(user.as_str())
        .succeed(&format!("the account expiry of user {user} could not be changed"))?;
    if expiry(layout, user)? == expire {
        Ok(())
    } else {
        Err(Fault::permanent(format!("usermod did not change the account expiry of user {user}"))
            .remedy("look at /etc/shadow and at the system's journal"))
    }
}

/// The arguments by which useradd and its kin work on a private tree.
pub(super) fn tree(layout: &Layout) -> Vec<std::ffi::OsString> {
    if layout.is_system() { Vec::new() } else { vec!["--prefix".into(), layout.root().into()] }
}

/// chpasswd, chage and gpasswd know no prefix, only another root.
pub(super) fn chroot(layout: &Layout) -> Vec<std::ffi::OsString> {
    if layout.is_system() { Vec::new() } else { vec!["--root".into(), layout.root().into()] }
}
