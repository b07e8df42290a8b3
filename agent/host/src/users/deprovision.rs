//! Takes away what was made for an account's user, and nothing else.

use std::fs;
use std::os::unix::fs::MetadataExt;

use ferry_proto::Fault;

use super::groups::remove_group;
use super::logins::tree;
use super::passwd::{self, Database};
use super::{Group, Provision};
use crate::run::Run;
use crate::{Layout, durable};

/// Takes away what `provision` has made, and nothing else. The account's processes must be gone.
///
/// # Errors
/// What the tools say, for instance that a process of the user is still there.
pub fn deprovision(layout: &Layout, plan: &Provision) -> Result<(), Fault> {
    if plan.create {
        remove_user(layout, plan)?;
    }
    for group in &plan.create_groups {
        remove_group(layout, group)?;
    }
    Ok(())
}

/// A user of another id, or a home of another owner, is not what Ferry made: it stays.
fn remove_user(layout: &Layout, plan: &Provision) -> Result<(), Fault> {
    let name = plan.record.name.as_str();
    let ours = |u: &passwd::User| u.uid == plan.ids.uid && u.gid == plan.ids.gid;
    if Database::read(layout)?.user(name).is_some_and(|u| !ours(u)) {
        return Ok(());
    }
    // The home first: as long as the user is there, the next attempt knows whose it is.
    let home = layout.path(&plan.record.home);
    match fs::symlink_metadata(&home) {
        Ok(m) if m.is_dir() && m.uid() == plan.ids.uid => durable::remove_tree(&home)?,
        // An attempt that did not come to the owner has left it empty.
        Ok(m) if m.is_dir() && m.uid() == 0 => {
            durable::remove_empty_directory(&home)?;
        }
        _ => {}
    }
    for parent in plan.create_parents.iter().rev() {
        durable::remove_empty_directory(&layout.path(parent))?;
    }
    let own = Group { name: plan.record.group.name.clone(), gid: plan.ids.gid };
    deprovision_user(layout, name, Some(&own))
}

/// Takes the user and its own group away; the home is gone already.
pub(crate) fn deprovision_user(
    layout: &Layout,
    name: &str,
    own: Option<&Group>,
) -> Result<(), Fault> {
    if Database::read(layout)?.user(name).is_some() {
        Run::new("/usr/sbin/userdel")
            .arguments(tree(layout))
            .argument(name)
            .succeed(&format!("user {name} could not be removed"))?;
    }
    own.map_or(Ok(()), |group| remove_group(layout, group))
}
