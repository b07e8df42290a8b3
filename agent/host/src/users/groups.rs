//! The groups of an account at the target: which it may join, and making and removing them.

use std::collections::BTreeSet;

use ferry_proto::Fault;
use ferry_proto::ids::UnixName;

use super::logins::{chroot, tree};
use super::passwd::{self, Database};
use super::provision::{Policy, changed};
use super::{FIRST_MAPPED_ID, Group, LAST_ID, WEB_USER, is_account_id};
use crate::Layout;
use crate::run::Run;

/// Groups whose members are as good as root, or read other accounts' data.
const POWERFUL: &[&str] = &[
    "adm",
    "admin",
    "backup",
    "daemon",
    "disk",
    "docker",
    "incus",
    "incus-admin",
    "kmem",
    "kvm",
    "libvirt",
    "lxd",
    "mail",
    "mysql",
    "operator",
    "postgres",
    "root",
    "shadow",
    "ssl-cert",
    "staff",
    "sudo",
    "sys",
    "systemd-journal",
    "tty",
    "utmp",
    "vmail",
    "wheel",
    "www-data",
];

/// The id of a group that is here and may be joined; `None` if it has to be made. `kept`: the account's
/// user, if it lived here, which stays in the groups that it is in.
pub(super) fn join(
    database: &Database,
    group: &Group,
    kept: Option<&passwd::User>,
    policy: &Policy,
) -> Result<Option<u32>, Fault> {
    let name = group.name.as_str();
    let is_in = kept.is_some_and(|user| database.groups_of(&user.name).any(|g| g == name));
    let allowed = is_in || policy.allow_groups.contains(&group.name);
    let refuse = |why: &str| {
        Err(Fault::precondition(format!("the account may not join group {name} here: {why}"))
            .remedy(format!(
                "remove {name} from `groups` in the account's definition at the source; or rename \
                 the group at the target, if another thing has the same name there by chance"
            )))
    };
    if POWERFUL.contains(&name) && !allowed {
        return refuse("its members have power over the system or over others");
    }
    let Some(here) = database.group(name) else {
        return Ok(None);
    };
    if !allowed && !is_account_id(here.gid) {
        return refuse("it is a group of the system");
    }
    if !allowed && database.is_primary(here.gid) {
        return refuse("it is another user's own group");
    }
    Ok(Some(here.gid))
}

pub(super) fn group_id(
    database: &Database,
    group: &Group,
    taken: &BTreeSet<u32>,
) -> Result<u32, Fault> {
    let free = |id: &u32| !taken.contains(id) && database.gid_is_free(*id);
    if is_account_id(group.gid) && free(&group.gid) {
        return Ok(group.gid);
    }
    (FIRST_MAPPED_ID..=LAST_ID).find(free).ok_or_else(|| {
        Fault::precondition(format!("no group id is free for group {}", group.name))
            .remedy("remove groups that are no longer needed")
    })
}

pub(super) fn make_group(layout: &Layout, group: &Group) -> Result<(), Fault> {
    match Database::read(layout)?.group(group.name.as_str()) {
        Some(here) if here.gid == group.gid => return Ok(()),
        Some(_) => return Err(changed(&format!("group {}", group.name))),
        None => {}
    }
    Run::new("/usr/sbin/groupadd")
        .arguments(tree(layout))
        .argument("--gid")
        .argument(group.gid.to_string())
        .argument(group.name.as_str())
        .succeed(&format!("group {} could not be made", group.name))?;
    Ok(())
}

pub(super) fn join_group(
    layout: &Layout,
    database: &Database,
    group: &UnixName,
    user: &str,
) -> Result<(), Fault> {
    let member = |g: &passwd::Group| g.members.iter().any(|m| m == user);
    if database.group(group.as_str()).is_some_and(member) {
        return Ok(());
    }
    Run::new("/usr/sbin/usermod")
        .arguments(tree(layout))
        .arguments(["--append", "--groups", group.as_str(), user])
        .succeed(&format!("user {user} could not be added to group {group}"))?;
    Ok(())
}

/// Takes a user out of a group. `database` may be of a moment ago.
pub(super) fn leave_group(
    layout: &Layout,
    database: &Database,
    group: &UnixName,
    user: &str,
) -> Result<(), Fault> {
    if !database.groups_of(user).any(|g| g == group.as_str()) {
        return Ok(());
    }
    Run::new("/usr/bin/gpasswd")
        .arguments(chroot(layout))
        .arguments(["--delete", user, group.as_str()])
        .succeed(&format!("user {user} could not be taken out of group {group}"))?;
    Ok(())
}

/// Removes a group if it is the planned one and nobody else has come to use it.
pub(super) fn remove_group(layout: &Layout, group: &Group) -> Result<(), Fault> {
    let database = Database::read(layout)?;
    let Some(here) = database.group(group.name.as_str()) else {
        return Ok(());
    };
    let others = here.members.iter().any(|m| m != WEB_USER);
    if here.gid != group.gid || others || database.is_primary(here.gid) {
        return Ok(());
    }
    Run::new("/usr/sbin/groupdel")
        .arguments(tree(layout))
        .argument(group.name.as_str())
        .succeed(&format!("group {} could not be removed", group.name))?;
    Ok(())
}
