//! Brings an account's user that is here already up to what its source says of it now, still closed;
//! and back to what it was. Knows nothing of making or removing users.

use std::path::Path;

use ferry_proto::Fault;
use ferry_proto::account::Definition;
use serde::{Deserialize, Serialize};

use super::groups::{join_group, leave_group, remove_group};
use super::logins::{CLOSED, chroot, tree};
use super::passwd::Database;
use super::provision::changed;
use super::{Provision, UserRecord, WEB_USER, describe};
use crate::Layout;
use crate::run::Run;

/// What a user was before it was refreshed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerUser {
    /// Its own values.
    pub record: UserRecord,
    /// The supplementary groups that it was in.
    pub groups: Vec<String>,
}

/// What the account's user is on this server, for [`restore`].
///
/// # Errors
/// Precondition if the user is missing or belongs to the system; otherwise what reading failed of.
pub fn former(layout: &Layout, definition: &Definition) -> Result<FormerUser, Fault> {
    let record = describe(layout, definition)?;
    let database = Database::read(layout)?;
    let groups = database.groups_of(definition.user.as_str()).map(str::to_owned).collect();
    Ok(FormerUser { record, groups })
}

/// Gives the user the plan's password hash, ages, shell, comment and groups. Its numeric ids stay, and
/// so does that it cannot log in.
///
/// # Errors
/// Precondition if the user is not the one that was planned; otherwise what the tools say.
pub fn refresh(layout: &Layout, plan: &Provision) -> Result<(), Fault> {
    check_ids(layout, plan)?;
    apply(layout, &plan.record)?;
    let database = Database::read(layout)?;
    for group in &plan.groups {
        join_group(layout, &database, &group.name, plan.record.name.as_str())?;
    }
    if plan.record.web_group_member && database.user(WEB_USER).is_some() {
        join_group(layout, &database, &plan.record.group.name, WEB_USER)?;
    }
    Ok(())
}

/// Puts back what the user was before [`refresh`], still closed. May be repeated, also if nothing was
/// refreshed.
///
/// # Errors
/// As [`refresh`].
pub fn restore(layout: &Layout, plan: &Provision, former: &FormerUser) -> Result<(), Fault> {
    check_ids(layout, plan)?;
    apply(layout, &former.record)?;
    let user = plan.record.name.as_str();
    let database = Database::read(layout)?;
    for group in plan.groups.iter().filter(|g| !former.groups.iter().any(|f| *f == g.name.as_str()))
    {
        leave_group(layout, &database, &group.name, user)?;
    }
    for group in &plan.create_groups {
        remove_group(layout, group)?;
    }
    if plan.record.web_group_member && !former.record.web_group_member {
        leave_group(layout, &database, &former.record.group.name, WEB_USER)?;
    }
    Ok(())
}

fn check_ids(layout: &Layout, plan: &Provision) -> Result<(), Fault> {
    let name = plan.record.name.as_str();
    match Database::read(layout)?.user(name) {
        Some(user) if user.uid == plan.ids.uid && user.gid == plan.ids.gid => Ok(()),
        Some(_) => Err(changed(&format!("another user {name}"))),
        None => Err(Fault::precondition(format!("there is no user {name} here any more"))
            .remedy(format!("make user {name} again with the id {}", plan.ids.uid))),
    }
}

/// Everything of the record that is the user's own; closed.
fn apply(layout: &Layout, record: &UserRecord) -> Result<(), Fault> {
    set_identity(layout, record)?;
    set_password(layout, record)?;
    set_aging(layout, record)
}

fn set_identity(layout: &Layout, record: &UserRecord) -> Result<(), Fault> {
    let name = record.name.as_str();
    let same = Database::read(layout)?
        .user(name)
        .is_some_and(|u| Path::new(u.shell()) == record.shell && u.gecos == record.gecos);
    if same {
        return Ok(());
    }
    Run::new("/usr/sbin/usermod")
        .arguments(tree(layout))
        .arguments(["--comment", &record.gecos, "--shell"])
        .argument(&record.shell)
        .argument(name)
        .succeed(&format!("the shell and comment of user {name} could not be set"))?;
    Ok(())
}

/// By standard input: the arguments of a program can be read by everybody.
fn set_password(layout: &Layout, record: &UserRecord) -> Result<(), Fault> {
    let name = record.name.as_str();
    // No password at all would let everybody in; a locked one lets nobody in.
    let hash = match record.password_hash.expose() {
        "" => "!",
        hash => hash,
    };
    let is_set = |database: &Database| database.shadow(name).is_some_and(|s| s.hash == hash);
    if is_set(&Database::read(layout)?) {
        return Ok(());
    }
    let what = format!("the password hash of user {name} could not be set");
    Run::new("/usr/sbin/chpasswd")
        .argument("--encrypted")
        .arguments(chroot(layout))
        .input(format!("{name}:{hash}\n").into_bytes())
        .succeed(&what)?;
    if is_set(&Database::read(layout)?) { Ok(()) } else { Err(Fault::permanent(what)) }
}

fn set_aging(layout: &Layout, record: &UserRecord) -> Result<(), Fault> {
    let name = record.name.as_str();
    let wanted = super::Aging { expire: Some(CLOSED), ..record.aging };
    let now = Database::read(layout)?.shadow(name).map(|s| s.aging);
    if now == Some(wanted) {
        return Ok(());
    }
    let day = |day: Option<i64>| day.map_or("-1".to_owned(), |d| d.to_string());
    Run::new("/usr/bin/chage")
        .arguments(chroot(layout))
        .arguments(["--lastday", &day(wanted.last_change), "--mindays", &day(wanted.minimum)])
        .arguments(["--maxdays", &day(wanted.maximum), "--warndays", &day(wanted.warning)])
        .arguments(["--inactive", &day(wanted.inactive), "--expiredate", &day(wanted.expire)])
        .argument(name)
        .succeed(&format!("the password age of user {name} could not be set"))?;
    Ok(())
}
