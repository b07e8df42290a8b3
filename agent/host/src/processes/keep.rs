//! Keeps systemd from starting an account's processes again: its user manager, lingering, and the
//! system's units that run as the account. Each such unit gets a drop-in with a condition that is
//! never met, which holds for every way of starting it, across reboots, wherever its file lies and
//! without touching it.

use std::path::PathBuf;

use ferry_proto::Fault;
use ferry_proto::ids::UnixName;
use serde::{Deserialize, Serialize};

use crate::durable::{self, Ownership};
use crate::{Finding, Layout, systemd};

const UNITS: &str = "/etc/systemd/system";
const LINGER: &str = "/var/lib/systemd/linger";
/// Sorted after every other drop-in, which could take the condition back.
const DROP_IN: &str = "zzz-ferry-fence.conf";
const TEXT: &[u8] =
    b"# Ferry keeps this unit stopped: its account is fenced, or served by another server.\n\
# Ferry removes this file when it opens the account.\n\
[Unit]\nConditionPathExists=!/\n";

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
    let linger = durable::exists(&layout.path(LINGER).join(user.as_str()))?;
    let mut plan =
        KeptStopped { user: user.clone(), uid, linger, manager_active: false, units: Vec::new() };
    if !systemd::is_booted(layout) {
        return Ok(plan);
    }
    plan.manager_active = systemd::is_active(layout, &plan.manager())?;
    let names = systemd::names(layout, "service")?;
    for unit in systemd::properties(layout, &names, &["Id", "User", "ActiveState"])? {
        let get = |key: &str| unit.get(key).map_or("", String::as_str);
        let runs_as = get("User");
        let name = get("Id");
        let own = name == plan.manager();
        if !own && !runs_as.is_empty() && (runs_as == user.as_str() || runs_as == uid.to_string()) {
            let active = ["active", "activating", "reloading"].contains(&get("ActiveState"));
            plan.units.push(StoppedUnit { name: name.to_owned(), active });
        }
    }
    plan.units.sort_by(|a, b| a.name.cmp(&b.name));
    plan.units.dedup_by(|a, b| a.name == b.name);
    Ok(plan)
}

fn drop_in(layout: &Layout, unit: &str) -> Result<PathBuf, Fault> {
    // Unit names come from systemd; they hold no separator, but a path is made of this one.
    if unit.contains('/') || unit.starts_with('.') {
        return Err(Fault::permanent(format!("{unit:?} is no unit name")));
    }
    Ok(layout.path(UNITS).join(format!("{unit}.d")))
}

/// Keeps the plan's units stopped and asks systemd to stop them; `stop_all` ends their processes, and
/// those of the user manager.
///
/// # Errors
/// What writing or systemd failed of.
pub fn keep_stopped(layout: &Layout, plan: &KeptStopped) -> Result<(), Fault> {
    let mut changed = false;
    for name in plan.names() {
        let directory = drop_in(layout, &name)?;
        durable::make_directory(&directory, 0o755)?;
        changed |=
            durable::write_if_changed(&directory.join(DROP_IN), TEXT, Ownership::root(0o644))?;
    }
    durable::remove(&layout.path(LINGER).join(plan.user.as_str()))?;
    if !systemd::is_booted(layout) {
        return Ok(());
    }
    if changed {
        systemd::reload_units(layout)?;
    }
    for unit in &plan.units {
        // Not waited for: a worker may take its time, and its processes are ended as the user's.
        systemd::stop_soon(layout, &unit.name)?;
    }
    Ok(())
}

/// Lets the plan's units start again, starts those that were running, without waiting for them, and
/// restores lingering. Units that would not start are findings.
///
/// # Errors
/// What writing or systemd failed of.
pub fn allow(layout: &Layout, plan: &KeptStopped) -> Result<Vec<Finding>, Fault> {
    let mut changed = false;
    for name in plan.names() {
        let directory = drop_in(layout, &name)?;
        changed |= durable::remove(&directory.join(DROP_IN))?;
        durable::remove_empty_directory(&directory)?;
    }
    let linger = layout.path(LINGER).join(plan.user.as_str());
    if plan.linger && !durable::exists(&linger)? {
        durable::make_directory(durable::parent(&linger), 0o755)?;
        durable::write(&linger, b"", Ownership::root(0o644))?;
    }
    if !systemd::is_booted(layout) {
        return Ok(Vec::new());
    }
    if changed {
        systemd::reload_units(layout)?;
    }
    let mut findings = Vec::new();
    let active = plan.units.iter().filter(|u| u.active).map(|u| u.name.clone());
    for name in plan.linger.then(|| plan.manager()).into_iter().chain(active) {
        // A worker that cannot start must not keep the account from being served.
        if let Err(fault) = systemd::start_soon(layout, &name) {
            findings
                .push(Finding::new(fault.to_string(), format!("look at: systemctl status {name}")));
        }
    }
    Ok(findings)
}
