//! Makes an account's user, groups and home at the target, closed, and takes them away again.
//!
//! The record comes from another server, which may be hostile: ids of the system, groups that
//! would give power here, foreign homes and unknown shells are refused.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ferry_proto::Fault;
use ferry_proto::account::Definition;
use ferry_proto::approval::FIXED_IDS;
use ferry_proto::ids::UnixName;
use serde::{Deserialize, Serialize};

use super::groups::{group_id, join, make_group};
use super::logins::{CLOSED, tree};
use super::passwd::{self, Database};
use super::refresh::refresh;
use super::{Group, IdPlan, UserRecord, ids_in};
use crate::run::Run;
use crate::{Finding, Layout, durable};

/// What to think of a user and a home that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Existing {
    /// They are not this account's: refuse.
    Refuse,
    /// This agent's ledger says that the account lived here: keep them.
    Keep,
}

/// What this server lets an account from elsewhere have.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Existing groups that an account may join, though they are the system's or another user's.
    pub allow_groups: Vec<UnixName>,
    /// Numeric ids that other moves to this server have planned.
    pub reserved_ids: Vec<u32>,
}

/// All that is made for an account's user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provision {
    /// The user as it is at the source, with the target's shell and home.
    pub record: UserRecord,
    /// The numeric ids here.
    pub ids: IdPlan,
    /// Whether the user, its primary group and its home are made; otherwise they are kept.
    pub create: bool,
    /// Supplementary groups that are made.
    pub create_groups: Vec<Group>,
    /// Supplementary groups that the user joins, with their ids here.
    pub groups: Vec<Group>,
    /// Directories above the home that are made.
    pub create_parents: Vec<PathBuf>,
    /// What a person should know.
    pub findings: Vec<Finding>,
}

impl Provision {
    /// This plan, made again for a user that `first` may have made already: what is made here, and may
    /// be taken away again, stays what was planned first.
    #[must_use]
    pub fn again(mut self, first: &Self) -> Self {
        self.ids = first.ids;
        self.create = first.create;
        self.create_parents.clone_from(&first.create_parents);
        for group in &first.create_groups {
            self.create_groups.retain(|g| g.name != group.name);
            self.create_groups.push(group.clone());
        }
        self
    }
}

/// What making the account's user here would change.
///
/// # Errors
/// Precondition if the user or the home is taken, or the record asks for what this server refuses.
pub fn plan_provision(
    layout: &Layout,
    definition: &Definition,
    record: &UserRecord,
    existing: Existing,
    policy: &Policy,
) -> Result<Provision, Fault> {
    let database = Database::read(layout)?;
    if record.name != definition.user || record.home != definition.home {
        return Err(Fault::permanent(format!(
            "the user record is not the one of account {}",
            definition.name
        )));
    }
    check_ids(record)?;
    check_text(record)?;
    let mut findings = Vec::new();
    let mut taken: BTreeSet<u32> = policy.reserved_ids.iter().copied().collect();
    let (ids, create) = match (existing, database.user(record.name.as_str())) {
        (Existing::Keep, Some(user)) => {
            let (uid, gid) = (user.uid, user.gid);
            let mapped = uid != record.uid || gid != record.group.gid;
            (IdPlan { uid, gid, mapped }, false)
        }
        _ => {
            refuse_taken(layout, &database, record)?;
            (ids_in(&database, record, &policy.reserved_ids)?, true)
        }
    };
    // What it has here already gives it nothing new.
    let kept = database.user(record.name.as_str()).filter(|_| !create);
    check_shell(layout, record, kept)?;
    taken.insert(ids.gid);
    if ids.mapped {
        findings.push(Finding::new(
            format!(
                "user {} gets the ids {}:{} here instead of {}:{}",
                record.name, ids.uid, ids.gid, record.uid, record.group.gid
            ),
            "",
        ));
    }
    let mut create_groups = Vec::new();
    let mut groups = Vec::new();
    for group in &record.groups {
        match join(&database, group, kept, policy)? {
            Some(gid) => groups.push(Group { name: group.name.clone(), gid }),
            None => {
                let gid = group_id(&database, group, &taken)?;
                taken.insert(gid);
                let made = Group { name: group.name.clone(), gid };
                groups.push(made.clone());
                create_groups.push(made);
            }
        }
    }
    let create_parents = if create { parents(layout, &record.home)? } else { Vec::new() };
    let record = record.clone();
    Ok(Provision { record, ids, create, create_groups, groups, create_parents, findings })
}

fn refuse_taken(layout: &Layout, database: &Database, record: &UserRecord) -> Result<(), Fault> {
    let name = record.name.as_str();
    if database.user(name).is_some() {
        return Err(Fault::precondition(format!("there is a user {name} at the target already"))
            .remedy("rename one of the two, or remove the one at the target if it is not needed"));
    }
    if database.group(record.group.name.as_str()).is_some() {
        return Err(Fault::precondition(format!(
            "there is a group {} at the target already",
            record.group.name
        ))
        .remedy("rename one of the two, or remove the one at the target if it is not needed"));
    }
    if durable::exists(&layout.path(&record.home))? {
        return Err(Fault::precondition(format!(
            "the home {} exists at the target already",
            record.home.display()
        ))
        .remedy("move it away at the target if it is not needed"));
    }
    Ok(())
}

/// No numbers of the system: what is root's there would be the account's here.
fn check_ids(record: &UserRecord) -> Result<(), Fault> {
    let (uid, gid) = (record.uid, record.group.gid);
    if uid.min(gid) >= FIXED_IDS {
        return Ok(());
    }
    Err(Fault::precondition(format!(
        "user {} is {uid}:{gid} at the source, which is the system's",
        record.name
    ))
    .remedy("give the account a user and a primary group of its own at the source"))
}

/// Nothing that could add a field or a line to the user database.
fn check_text(record: &UserRecord) -> Result<(), Fault> {
    let plain = |text: &str, limit: usize| {
        text.len() <= limit && !text.chars().any(|c| c.is_control() || c == ':')
    };
    let hash = record.password_hash.expose();
    let shell = record.shell.to_str().unwrap_or(":");
    if plain(&record.gecos, 1024) && plain(hash, 1024) && hash.is_ascii() && plain(shell, 255) {
        return Ok(());
    }
    Err(Fault::permanent(format!(
        "the record of user {} holds what a user database cannot",
        record.name
    ))
    .remedy("look at the user's lines in /etc/passwd and /etc/shadow at the source"))
}

/// For the fuzz target `user_record`: what passes the check stays within its fields.
pub(super) fn fuzz(record: &UserRecord) {
    if check_text(record).is_err() {
        return;
    }
    let shell = record.shell.display();
    passwd::fuzz(&format!("{}:x:1000:1000:{}:/home/x:{shell}", record.name, record.gecos));
    let line = format!("{}:{}:{}:::::::", record.name, record.password_hash.expose(), record.gecos);
    assert!(line.lines().count() == 1 && line.matches(':').count() == 9, "{line:?}");
}

fn check_shell(
    layout: &Layout,
    record: &UserRecord,
    kept: Option<&passwd::User>,
) -> Result<(), Fault> {
    let denying = ["/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false"];
    let has = kept.is_some_and(|user| Path::new(user.shell()) == record.shell);
    if has || denying.iter().any(|s| Path::new(s) == record.shell) {
        return Ok(());
    }
    let shells = durable::read(&layout.path("/etc/shells"), 1 << 20)?.unwrap_or_default();
    let shells = String::from_utf8_lossy(&shells);
    if shells.lines().any(|line| Path::new(line.trim()) == record.shell) {
        return Ok(());
    }
    Err(Fault::precondition(format!(
        "user {} has the shell {}, which is not in the target's /etc/shells",
        record.name,
        record.shell.display()
    ))
    .remedy("install the shell at the target, or give the user another one"))
}

/// The directories above the home that do not exist. Those that do must be root's alone: otherwise
/// somebody could replace the home while root works in it.
fn parents(layout: &Layout, home: &Path) -> Result<Vec<PathBuf>, Fault> {
    let mut missing = Vec::new();
    for directory in home.ancestors().skip(1) {
        let here = layout.path(directory);
        match fs::symlink_metadata(&here) {
            Ok(m) if m.is_dir() && m.uid() == 0 && m.mode() & 0o022 == 0 => {}
            Ok(_) => {
                return Err(Fault::precondition(format!(
                    "{} above the home is not a directory that only root can write",
                    directory.display()
                ))
                .remedy("give it to root and take the write permission of others"));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                missing.push(directory.to_owned())
            }
            Err(e) => {
                return Err(Fault::io(
                    format!("{} could not be examined", directory.display()),
                    &e,
                ));
            }
        }
    }
    missing.reverse();
    Ok(missing)
}

/// Makes what the plan says, and gives a user that is here already what the plan says of it: it cannot
/// log in yet.
///
/// # Errors
/// Precondition if the user database has changed since the plan was made.
pub fn provision(layout: &Layout, plan: &Provision) -> Result<(), Fault> {
    for group in &plan.create_groups {
        make_group(layout, group)?;
    }
    if plan.create {
        let own = Group { name: plan.record.group.name.clone(), gid: plan.ids.gid };
        make_group(layout, &own)?;
        make_user(layout, plan)?;
        make_home(layout, plan)?;
    }
    refresh(layout, plan)
}

pub(super) fn changed(what: &str) -> Fault {
    Fault::precondition(format!("{what} has appeared at the target since the plan was made"))
        .remedy("plan the move again")
}

fn make_user(layout: &Layout, plan: &Provision) -> Result<(), Fault> {
    let (record, ids) = (&plan.record, plan.ids);
    let name = record.name.as_str();
    match Database::read(layout)?.user(name) {
        Some(u) if u.uid == ids.uid && u.gid == ids.gid && Path::new(&u.home) == record.home => {}
        Some(_) => return Err(changed(&format!("user {name}"))),
        None => {
            let mut run = Run::new("/usr/sbin/useradd").arguments(tree(layout));
            if name.contains('.') {
                run = run.argument("--badname");
            }
            run.arguments(["--no-log-init", "--no-create-home", "--no-user-group"])
                .arguments(["--uid", &ids.uid.to_string(), "--gid", &ids.gid.to_string()])
                .arguments(["--expiredate", &CLOSED.to_string(), "--comment", &record.gecos])
                .argument("--home-dir")
                .argument(&record.home)
                .argument("--shell")
                .argument(&record.shell)
                .argument(name)
                .succeed(&format!("user {name} could not be made"))?;
        }
    }
    Ok(())
}

fn make_home(layout: &Layout, plan: &Provision) -> Result<(), Fault> {
    for parent in &plan.create_parents {
        durable::make_directory(&layout.path(parent), 0o755)?;
    }
    let home = layout.path(&plan.record.home);
    match fs::symlink_metadata(&home) {
        Ok(m) if m.is_dir() && [0, plan.ids.uid].contains(&m.uid()) => {
            // Made by an earlier attempt, which may not have come to the owner.
            if m.uid() == plan.ids.uid {
                return Ok(());
            }
        }
        Ok(_) => return Err(changed(&format!("the home {}", plan.record.home.display()))),
        Err(_) => durable::make_directory(&home, 0o700)?,
    }
    durable::give(&home, plan.ids.uid, plan.ids.gid)
}
