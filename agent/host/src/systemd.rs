//! Speaks to systemd by `systemctl`. Knows units by name, and nothing of accounts.

use std::collections::BTreeMap;
use std::time::Duration;

use ferry_proto::Fault;

use crate::Layout;
use crate::run::Run;

/// How long systemd may take for an ordinary request.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long a unit may take to stop or start.
const JOB_TIMEOUT: Duration = Duration::from_secs(100);

/// Whether systemd runs this host. A private tree says so by having the same directory.
pub(crate) fn is_booted(layout: &Layout) -> bool {
    layout.path("/run/systemd/system").is_dir()
}

fn systemctl(layout: &Layout) -> Run {
    Run::new(&layout.programs.systemctl)
        .arguments(["--no-pager", "--no-ask-password"])
        .timeout(TIMEOUT)
        .cap(8 << 20)
}

/// Makes systemd read the unit files again.
pub(crate) fn reload_units(layout: &Layout) -> Result<(), Fault> {
    if !is_booted(layout) {
        return Ok(());
    }
    let what = "systemd could not read the unit files again";
    systemctl(layout)
        .argument("daemon-reload")
        .named("service.systemd.daemon-reload")
        .succeed(what)?;
    Ok(())
}

/// What fault tests know a change of a unit by.
fn change(unit: &str, verb: &str) -> String {
    format!("service.{}.{verb}", unit.strip_suffix(".service").unwrap_or(unit))
}

fn job(layout: &Layout, verb: &str, done: &str, unit: &str) -> Result<(), Fault> {
    systemctl(layout)
        .timeout(JOB_TIMEOUT)
        .arguments([verb, "--", unit])
        .named(change(unit, verb))
        .succeed(&format!("{unit} could not be {done}"))
        .map(|_| ())
}

/// Asks for a unit to be stopped, and does not wait for it.
pub(crate) fn stop_soon(layout: &Layout, unit: &str) -> Result<(), Fault> {
    systemctl(layout)
        .arguments(["stop", "--no-block", "--", unit])
        .named(change(unit, "stop"))
        .succeed(&format!("{unit} could not be stopped"))
        .map(|_| ())
}

/// Starts a unit and waits for it.
pub(crate) fn start(layout: &Layout, unit: &str) -> Result<(), Fault> {
    job(layout, "start", "started", unit)
}

/// Asks for a unit to be started, and does not wait for it.
pub(crate) fn start_soon(layout: &Layout, unit: &str) -> Result<(), Fault> {
    systemctl(layout)
        .arguments(["start", "--no-block", "--", unit])
        .named(change(unit, "start"))
        .succeed(&format!("{unit} could not be started"))
        .map(|_| ())
}

/// Makes a service read its configuration again.
pub(crate) fn reload(layout: &Layout, unit: &str) -> Result<(), Fault> {
    job(layout, "reload", "reloaded", unit)
}

/// Whether a unit is active (or just starting or reloading).
pub(crate) fn is_active(layout: &Layout, unit: &str) -> Result<bool, Fault> {
    let state = properties(layout, &[unit.to_owned()], &["Id", "ActiveState"])?;
    Ok(state.iter().any(|unit| {
        let state = unit.get("ActiveState").map_or("", String::as_str);
        ["active", "activating", "reloading"].contains(&state)
    }))
}

/// Properties of units, one map per unit. A pattern stands for the loaded units that fit it.
pub(crate) fn properties(
    layout: &Layout,
    units: &[String],
    wanted: &[&str],
) -> Result<Vec<BTreeMap<String, String>>, Fault> {
    let mut found = Vec::new();
    // A bounded number of arguments a time.
    for units in units.chunks(200) {
        let output = systemctl(layout)
            .argument("show")
            .looking()
            .arguments(wanted.iter().map(|p| format!("--property={p}")))
            .argument("--")
            .arguments(units)
            .succeed("the state of units could not be read")?;
        for block in output.text().split("\n\n") {
            let unit: BTreeMap<String, String> = block
                .lines()
                .filter_map(|line| line.split_once('='))
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect();
            if !unit.is_empty() {
                found.push(unit);
            }
        }
    }
    Ok(found)
}
