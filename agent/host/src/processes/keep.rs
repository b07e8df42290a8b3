//! Keeps systemd from starting an account's processes again: its user manager, lingering, and the
//! system's units that run as the account. Each such unit gets a drop-in with a condition, which holds
//! for every way of starting it, across reboots, wherever its file lies and without touching it.
//!
//! The condition is that a flag file does not exist. So the drop-ins, which systemd takes a tenth of a
//! second or more to read, can be there before the fence, and closing and opening is one file.

use std::fs;
use std::path::{Path, PathBuf};

use ferry_proto::Fault;
use ferry_proto::ids::UnixName;
use serde::{Deserialize, Serialize};

use super::linger;
use crate::durable::{self, Ownership};
use crate::{Finding, Layout, Services, systemd};

const UNITS: &str = "/etc/systemd/system";
const UNIT_DIRECTORIES: &[&str] =
    &[UNITS, "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
/// The most entries of a directory of units, and the largest unit, that are looked at.
const ENTRIES_CAP: usize = 10_000;
const FILE_CAP: u64 = 1 << 20;
pub(crate) const FLAGS: &str = "/etc/ferry/fenced";
/// Sorted after every other drop-in, which could take the condition back.
pub(crate) const DROP_IN: &str = "zzz-ferry-fence.conf";

/// A unit that is kept stopped, and what it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppedUnit {
    /// Its name.
    pub name: String,
    /// Whether it was running.
    pub active: bool,
}

/// All that is kept stopped for an account, and what it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptStopped {
    /// The user.
    pub user: UnixName,
    /// Its id.
    pub uid: u32,
    /// Whether its units run without a login.
    pub linger: bool,
    /// Whether its user manager was running.
    pub manager_active: bool,
    /// The system's units that run as the user.
    pub units: Vec<StoppedUnit>,
}

impl KeptStopped {
    fn manager(&self) -> String {
        format!("user@{}.service", self.uid)
    }

    /// The units of the plan, the user manager first.
    fn names(&self) -> impl Iterator<Item = String> + '_ {
        std::iter::once(self.manager()).chain(self.units.iter().map(|u| u.name.clone()))
    }
}

/// What keeping the processes of `user` stopped will change.
///
/// # Errors
/// If systemd does not answer.
pub fn plan_keep_stopped(layout: &Layout, user: &UnixName, uid: u32) -> Result<KeptStopped, Fault> {
    let linger = linger::lingers(layout, user)?;
    let mut plan =
        KeptStopped { user: user.clone(), uid, linger, manager_active: false, units: Vec::new() };
    if !systemd::is_booted(layout) {
        return Ok(plan);
    }
    plan.manager_active = systemd::is_active(layout, &plan.manager())?;
    let wanted = ["Id", "User", "ActiveState"];
    let loaded = systemd::properties(layout, &["*.service".to_owned()], &wanted)?;
    let mut installed = installed(layout, user, uid);
    installed.retain(|name| !loaded.iter().any(|unit| unit.get("Id") == Some(name)));
    let others = systemd::properties(layout, &installed, &wanted)?;
    for unit in loaded.iter().chain(&others) {
        let get = |key: &str| unit.get(key).map_or("", String::as_str);
        let name = get("Id");
        if name != plan.manager() && is_user(get("User"), user, uid) {
            let active = ["active", "activating", "reloading"].contains(&get("ActiveState"));
            plan.units.push(StoppedUnit { name: name.to_owned(), active });
        }
    }
    plan.units.sort_by(|a, b| a.name.cmp(&b.name));
    plan.units.dedup_by(|a, b| a.name == b.name);
    Ok(plan)
}

fn is_user(value: &str, user: &UnixName, uid: u32) -> bool {
    value == user.as_str() || value == uid.to_string()
}

/// Services that are installed and name the user, whether systemd has loaded them or not. It would
/// take half a second to ask systemd for all.
pub(crate) fn installed(layout: &Layout, user: &UnixName, uid: u32) -> Vec<String> {
    let mut names = Vec::new();
    for directory in UNIT_DIRECTORIES {
        let entries = fs::read_dir(layout.path(directory)).into_iter().flatten().flatten();
        for entry in entries.take(ENTRIES_CAP) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let unit = name.strip_suffix(".d").unwrap_or(&name);
            if !unit.ends_with(".service") || unit.contains("@.") || unit.starts_with('-') {
                continue;
            }
            let files = if unit == name {
                vec![entry.path()]
            } else {
                let files = fs::read_dir(entry.path()).into_iter().flatten().flatten();
                files.take(ENTRIES_CAP).map(|e| e.path()).collect()
            };
            if files.iter().any(|file| names_user(file, user, uid)) {
                names.push(unit.to_owned());
            }
        }
    }
    names.sort();
    names.dedup();
    names
}

fn names_user(file: &Path, user: &UnixName, uid: u32) -> bool {
    // Units are often symlinks, aliases of others.
    let bytes =
        fs::canonicalize(file).ok().and_then(|f| durable::read(&f, FILE_CAP).ok().flatten());
    String::from_utf8_lossy(&bytes.unwrap_or_default())
        .lines()
        .filter_map(|line| line.trim().strip_prefix("User")?.trim_start().strip_prefix('='))
        .any(|value| is_user(value.trim(), user, uid))
}

fn drop_in(layout: &Layout, unit: &str) -> Result<PathBuf, Fault> {
    // Unit names come from systemd; they hold no separator, but a path is made of this one.
    if unit.contains('/') || unit.starts_with('.') {
        return Err(Fault::permanent(format!("{unit:?} is no unit name")));
    }
    Ok(layout.path(UNITS).join(format!("{unit}.d")))
}

/// Where the drop-ins of a plan are.
pub(crate) fn drop_in_places(layout: &Layout, plan: &KeptStopped) -> Vec<PathBuf> {
    plan.names()
        .filter_map(|name| drop_in(layout, &name).ok())
        .map(|directory| directory.join(DROP_IN))
        .collect()
}

fn flag(layout: &Layout, plan: &KeptStopped) -> PathBuf {
    layout.path(FLAGS).join(plan.user.as_str())
}

/// What holds a unit for as long as the flag is there.
fn condition(layout: &Layout, plan: &KeptStopped) -> String {
    format!("ConditionPathExists=!{}", flag(layout, plan).display())
}

/// Prepares `keep_stopped`, so that it is quick: changes nothing yet for the account. Undone by `allow`.
///
/// # Errors
/// What writing or systemd failed of.
pub fn prepare_keep_stopped(layout: &Layout, plan: &KeptStopped) -> Result<(), Fault> {
    let text = format!(
        "# Made by Ferry, which removes it: while the file named here exists, the unit's account is\n\
         # fenced, or served by another server.\n[Unit]\n{}\n",
        condition(layout, plan)
    );
    for name in plan.names() {
        let directory = drop_in(layout, &name)?;
        durable::make_directory(&directory, 0o755)?;
        let file = directory.join(DROP_IN);
        durable::write_if_changed(&file, text.as_bytes(), Ownership::root(0o644))?;
    }
    if !systemd::is_booted(layout) {
        return Ok(());
    }
    // Asked, not remembered: a crash may have come between writing and the reload.
    if unread(layout, plan)?.is_none() {
        return Ok(());
    }
    systemd::reload_units(layout)?;
    match unread(layout, plan)? {
        None => Ok(()),
        Some(unit) => Err(Fault::permanent(format!(
            "systemd does not read the condition that Ferry has added to {unit}"
        ))
        .remedy(format!("look at: systemctl cat {unit}"))),
    }
}

/// A unit of the plan for which systemd has not read the condition. (`NeedDaemonReload` does not tell: it
/// overlooks a directory that is new.)
fn unread(layout: &Layout, plan: &KeptStopped) -> Result<Option<String>, Fault> {
    let names: Vec<String> = plan.names().collect();
    for unit in systemd::properties(layout, &names, &["Id", "LoadState", "DropInPaths"])? {
        let get = |key: &str| unit.get(key).map_or("", String::as_str);
        let file = drop_in(layout, get("Id"))?.join(DROP_IN);
        // What is gone since, or masked, cannot start either.
        if ["not-found", "masked"].contains(&get("LoadState")) {
            continue;
        }
        if !get("DropInPaths").split(' ').any(|path| Path::new(path) == file) {
            return Ok(Some(get("Id").to_owned()));
        }
    }
    Ok(None)
}

/// Keeps the plan's units stopped and asks systemd to stop them; `stop_all` ends their processes, and
/// those of the user manager.
///
/// # Errors
/// What writing or systemd failed of.
pub fn keep_stopped(layout: &Layout, plan: &KeptStopped) -> Result<(), Fault> {
    prepare_keep_stopped(layout, plan)?;
    shut(layout, plan)?;
    if !systemd::is_booted(layout) {
        return Ok(());
    }
    for unit in &plan.units {
        // Not waited for: a worker may take its time, and its processes are ended as the user's.
        systemd::stop_soon(layout, &unit.name)?;
    }
    Ok(())
}

/// Keeps the user's units stopped again, where something has let them start behind the fence's back: the
/// flag or a condition was taken away, lingering was given back, or a unit has come that the fence did
/// not know. Closes what it can before it fails. Tells what was open; at boot nothing is told to stop,
/// for nothing runs.
///
/// # Errors
/// What writing or systemd failed of.
pub fn keep_stopped_again(
    layout: &Layout,
    plan: &KeptStopped,
    services: Services,
) -> Result<Vec<String>, Fault> {
    let mut plan = plan.clone();
    for name in installed(layout, &plan.user, plan.uid) {
        if plan.names().all(|known| known != name) {
            plan.units.push(StoppedUnit { name, active: false });
        }
    }
    let found = may_start(layout, &plan)?;
    if found.is_empty() {
        return Ok(found);
    }
    // First the doors, then what systemd has to be asked.
    shut(layout, &plan)?;
    prepare_keep_stopped(layout, &plan)?;
    if services == Services::Running && systemd::is_booted(layout) {
        plan.units.iter().try_for_each(|unit| systemd::stop_soon(layout, &unit.name))?;
    }
    Ok(found)
}

/// What lets units of the plan start though they are kept stopped.
///
/// # Errors
/// What looking failed of.
pub fn may_start(layout: &Layout, plan: &KeptStopped) -> Result<Vec<String>, Fault> {
    let mut found = Vec::new();
    if !durable::exists(&flag(layout, plan))? {
        found.push(format!("units of user {} may start", plan.user));
    }
    if linger::is_visible(layout, &plan.user)? {
        found.push(format!("user {} lingers", plan.user));
    }
    for name in plan.names() {
        if !durable::exists(&drop_in(layout, &name)?.join(DROP_IN))? {
            found.push(format!("{name} may start"));
        }
    }
    Ok(found)
}

/// Sets the flag, and ends lingering for as long as the fence lasts.
fn shut(layout: &Layout, plan: &KeptStopped) -> Result<(), Fault> {
    let flag = flag(layout, plan);
    durable::make_directory(durable::parent(&flag), 0o755)?;
    durable::write_if_changed(&flag, b"", Ownership::root(0o644))?;
    linger::put_aside(layout, &plan.user)
}

/// The users whose units are kept stopped, as the flags say it.
///
/// # Errors
/// What reading failed of.
pub fn kept_stopped(layout: &Layout) -> Result<Vec<UnixName>, Fault> {
    let directory = layout.path(FLAGS);
    if !durable::exists(&directory)? {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(&directory)
        .map_err(|e| Fault::io(format!("{} could not be read", directory.display()), &e))?;
    Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
}

/// Lets the plan's units start again, starts those that were running, without waiting for them, and
/// restores lingering. Units that would not start are findings.
///
/// # Errors
/// What removing or systemd failed of.
pub fn allow(layout: &Layout, plan: &KeptStopped) -> Result<Vec<Finding>, Fault> {
    durable::remove(&flag(layout, plan))?;
    linger::set(layout, &plan.user, plan.linger)?;
    let mut findings = Vec::new();
    if systemd::is_booted(layout) {
        let active = plan.units.iter().filter(|u| u.active).map(|u| u.name.clone());
        for name in plan.linger.then(|| plan.manager()).into_iter().chain(active) {
            // A worker that cannot start must not keep the account from being served.
            if let Err(fault) = systemd::start_soon(layout, &name) {
                let remedy = format!("look at: systemctl status {name}");
                findings.push(Finding::new(fault.to_string(), remedy));
            }
        }
    }
    remove_drop_ins(layout, plan)?;
    Ok(findings)
}

/// Removes what keeps the plan's units stopped, starts none of them, and ends lingering: for an account
/// that is erased here.
///
/// # Errors
/// What removing or systemd failed of.
pub fn forget(layout: &Layout, plan: &KeptStopped) -> Result<(), Fault> {
    linger::remove(layout, &plan.user)?;
    remove_drop_ins(layout, plan)?;
    // Last: until systemd has forgotten the condition, it holds.
    durable::remove(&flag(layout, plan)).map(|_| ())
}

fn remove_drop_ins(layout: &Layout, plan: &KeptStopped) -> Result<(), Fault> {
    let mut changed = false;
    for name in plan.names().chain(conditioned(layout, plan)) {
        let directory = drop_in(layout, &name)?;
        changed |= durable::remove(&directory.join(DROP_IN))?;
        durable::remove_empty_directory(&directory)?;
    }
    if changed { systemd::reload_units(layout) } else { Ok(()) }
}

/// Units beyond the plan's that have the plan's condition: they came while the account was fenced.
fn conditioned(layout: &Layout, plan: &KeptStopped) -> Vec<String> {
    let condition = condition(layout, plan);
    let entries = fs::read_dir(layout.path(UNITS)).into_iter().flatten().flatten();
    let units = entries.take(ENTRIES_CAP).filter_map(|entry| {
        let name = entry.file_name().to_str()?.strip_suffix(".d")?.to_owned();
        let text = durable::read(&entry.path().join(DROP_IN), FILE_CAP).ok()??;
        String::from_utf8_lossy(&text).lines().any(|line| line == condition).then_some(name)
    });
    units.filter(|name| plan.names().all(|known| known != *name)).collect()
}

/// The system's units that run as `user`: they are stopped with the account, but do not move.
///
/// # Errors
/// If systemd does not answer.
pub fn unit_findings(layout: &Layout, user: &UnixName, uid: u32) -> Result<Vec<Finding>, Fault> {
    let units = plan_keep_stopped(layout, user, uid)?.units;
    let finding = |unit: StoppedUnit| {
        Finding::new(
            format!(
                "{} of this system runs as user {user}: it is stopped with the account, but does not \
                 move",
                unit.name
            ),
            "install it at the target too, or make it a unit of the user (systemctl --user)",
        )
    };
    Ok(units.into_iter().map(finding).collect())
}
