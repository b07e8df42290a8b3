//! Unix users and groups of accounts: what they are at the source, how they are made at the
//! target, and whether they may log in. Knows nothing of what is in a home tree.

mod deprovision;
mod groups;
mod logins;
pub(crate) mod passwd;
mod provision;
mod refresh;
mod web;

pub use deprovision::deprovision;
pub(crate) use deprovision::deprovision_user;
pub(crate) use logins::CLOSED;
pub use logins::{LoginRecord, close_logins, may_log_in, open_logins, plan_close_logins};
pub use provision::{Existing, Policy, Provision, plan_provision, provision};
pub use refresh::{FormerUser, former, refresh, restore};
pub use web::{WebIds, web_ids};

use std::fmt;
use std::path::PathBuf;

use ferry_proto::Fault;
use ferry_proto::account::Definition;
use ferry_proto::approval::FIXED_IDS;
use ferry_proto::ids::UnixName;
use serde::{Deserialize, Serialize};

use crate::{Finding, Layout};
use passwd::Database;

/// The user that web servers run as on Debian.
pub(crate) const WEB_USER: &str = "www-data";
/// Ids below this belong to the system.
pub(crate) const FIRST_ID: u32 = 1000;
/// Where Ferry begins to look for an id when the account's own is taken.
const FIRST_MAPPED_ID: u32 = 10_000;
/// Ids above this belong to containers and dynamic users.
const LAST_ID: u32 = 60_000;

/// A password hash as `/etc/shadow` holds it. Debug output hides it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// The text for `/etc/shadow`.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(hidden)")
    }
}

/// The days of `/etc/shadow` that age a password or an account; none: not set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aging {
    /// Day of the last password change.
    pub last_change: Option<i64>,
    /// Days before the password may be changed.
    pub minimum: Option<i64>,
    /// Days after which it must be changed.
    pub maximum: Option<i64>,
    /// Days of warning before that.
    pub warning: Option<i64>,
    /// Days of grace after that.
    pub inactive: Option<i64>,
    /// The day on which the account ends, as its owner has set it.
    pub expire: Option<i64>,
}

/// A supplementary group and its numeric id here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: UnixName,
    /// Its id.
    pub gid: u32,
}

/// What a server knows of an account's user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    /// Its name.
    pub name: UnixName,
    /// Its id.
    pub uid: u32,
    /// Its primary group.
    pub group: Group,
    /// The comment field.
    pub gecos: String,
    /// The login shell.
    pub shell: PathBuf,
    /// The home of the definition.
    pub home: PathBuf,
    /// The hash in `/etc/shadow`.
    pub password_hash: PasswordHash,
    /// Password and account ages.
    pub aging: Aging,
    /// The supplementary groups of the definition that exist.
    pub groups: Vec<Group>,
    /// Whether the web server's user is in the primary group, which is how it reads many homes.
    pub web_group_member: bool,
    /// What a person should know.
    pub findings: Vec<Finding>,
}

/// The numeric ids that the account has at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdPlan {
    /// The user's.
    pub uid: u32,
    /// The primary group's.
    pub gid: u32,
    /// Whether one of them differs from the source's.
    pub mapped: bool,
}

/// For the fuzz target `user_record`.
pub(crate) fn fuzz(record: &UserRecord) {
    provision::fuzz(record);
}

/// Describes the account's user on this server.
///
/// # Errors
/// Precondition if the user is missing or belongs to the system; otherwise what reading failed of.
pub fn describe(layout: &Layout, definition: &Definition) -> Result<UserRecord, Fault> {
    let database = Database::read(layout)?;
    let name = &definition.user;
    let user = database.user(name.as_str()).ok_or_else(|| {
        Fault::precondition(format!(
            "account {}: there is no user {name} in /etc/passwd",
            definition.name
        ))
        .remedy("make the user, or correct `user` in the account's definition")
    })?;
    if user.uid < FIXED_IDS {
        return Err(Fault::precondition(format!(
            "account {}: user {name} has id {} and belongs to the system",
            definition.name, user.uid
        ))
        .remedy("name the account's own user in its definition"));
    }
    let group = database.group_by_id(user.gid).ok_or_else(|| {
        Fault::precondition(format!("the primary group {} of user {name} does not exist", user.gid))
            .remedy("make the group, or give the user another primary group")
    })?;
    let group_name = group.name.parse().map_err(|e: ferry_proto::ids::InvalidName| {
        Fault::precondition(format!("the primary group of user {name} cannot be moved"))
            .caused_by(&e)
            .remedy("rename the group")
    })?;
    let shadow = database.shadow(name.as_str());
    let (groups, findings) = groups_of(&database, definition);
    Ok(UserRecord {
        name: name.clone(),
        uid: user.uid,
        group: Group { name: group_name, gid: user.gid },
        gecos: user.gecos.clone(),
        shell: PathBuf::from(user.shell()),
        home: definition.home.clone(),
        password_hash: PasswordHash(shadow.map_or("!".to_owned(), |s| s.hash.clone())),
        aging: shadow.map(|s| s.aging).unwrap_or_default(),
        groups,
        web_group_member: group.members.iter().any(|m| m == WEB_USER),
        findings,
    })
}

/// The user's numeric id here, if there is such a user.
///
/// # Errors
/// What reading failed of.
pub fn uid_of(layout: &Layout, user: &UnixName) -> Result<Option<u32>, Fault> {
    Ok(Database::read(layout)?.user(user.as_str()).map(|u| u.uid))
}

fn groups_of(database: &Database, definition: &Definition) -> (Vec<Group>, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut groups = Vec::new();
    for name in &definition.groups {
        match database.group(name.as_str()) {
            Some(group) => groups.push(Group { name: name.clone(), gid: group.gid }),
            None => findings.push(Finding::new(
                format!("group {name} of account {} does not exist here", definition.name),
                "make the group or remove it from the definition",
            )),
        }
    }
    let user = definition.user.as_str();
    for group in database.groups() {
        let defined = definition.groups.iter().any(|g| g.as_str() == group.name);
        if !defined && group.members.iter().any(|m| m == user) {
            findings.push(Finding::new(
                format!(
                    "user {user} is also in group {}, which the definition does not name",
                    group.name
                ),
                "add it to `groups` in the definition if it is to move",
            ));
        }
    }
    if let Some(entry) = database.user(user)
        && std::path::Path::new(&entry.home) != definition.home
    {
        findings.push(Finding::new(
            format!(
                "user {user} has the home {} in /etc/passwd, but the definition says {}",
                entry.home,
                definition.home.display()
            ),
            "at the target the user gets the home of the definition",
        ));
    }
    (groups, findings)
}

/// The ids for `record` on this server: its own where they are free and belong to accounts, else the
/// next free ones from 10,000. `reserved` are ids that other moves have planned.
///
/// # Errors
/// Precondition if none is left.
pub fn plan_ids(layout: &Layout, record: &UserRecord, reserved: &[u32]) -> Result<IdPlan, Fault> {
    let database = Database::read(layout)?;
    ids_in(&database, record, reserved)
}

fn ids_in(database: &Database, record: &UserRecord, reserved: &[u32]) -> Result<IdPlan, Fault> {
    let (uid, gid) = (record.uid, record.group.gid);
    let free_uid = |id: u32| !reserved.contains(&id) && database.uid_is_free(id);
    let free_gid = |id: u32| !reserved.contains(&id) && database.gid_is_free(id);
    if is_account_id(uid) && is_account_id(gid) && free_uid(uid) && free_gid(gid) {
        return Ok(IdPlan { uid, gid, mapped: false });
    }
    // One number for both where both change: easier for people.
    let both = || (FIRST_MAPPED_ID..=LAST_ID).find(|id| free_uid(*id) && free_gid(*id));
    let keep_uid = is_account_id(uid) && free_uid(uid);
    let keep_gid = is_account_id(gid) && free_gid(gid);
    let next = both().ok_or_else(|| {
        Fault::precondition(format!(
            "no user id between {FIRST_MAPPED_ID} and {LAST_ID} is free for user {}",
            record.name
        ))
        .remedy("remove users that are no longer needed")
    })?;
    Ok(IdPlan {
        uid: if keep_uid { uid } else { next },
        gid: if keep_gid { gid } else { next },
        mapped: true,
    })
}

/// Whether `id` may be an account's: neither the system's nor a container's.
pub(crate) fn is_account_id(id: u32) -> bool {
    (FIRST_ID..=LAST_ID).contains(&id)
}

#[cfg(test)]
mod tests;
