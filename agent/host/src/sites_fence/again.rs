//! Closes again what something has opened behind a fence's back: a backup that was restored, configuration
//! management, a package. Whatever fails, nothing is opened. What is found is kept aside, read by no
//! service.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::account::Definition;

use super::act::{answers_as_stub, stand_in, take_effect};
use super::plan::runs_as;
use super::{FencePlan, Stub};
use crate::durable::{self, Ownership};
use crate::sites::{CONFIG_CAP, summaries};
use crate::{Layout, Services, nginx, php};

/// Between two questions to the web server.
const PAUSE: Duration = Duration::from_millis(100);

/// What the web server and PHP-FPM of this host read, whosever it is: read once for all accounts.
#[derive(Debug, Default)]
pub struct Enabled {
    servers: Vec<(PathBuf, Vec<String>)>,
    pools: Vec<PoolFile>,
}

/// A file of pools.
#[derive(Debug)]
struct PoolFile {
    version: String,
    path: PathBuf,
    text: String,
}

impl Enabled {
    /// Reads it.
    ///
    /// # Errors
    /// What reading failed of.
    pub fn read(layout: &Layout) -> Result<Self, Fault> {
        let servers = summaries(layout)?.into_iter().map(|(path, s)| (path, s.names)).collect();
        let mut pools = Vec::new();
        for version in php::versions(layout) {
            let entries = fs::read_dir(php::pools(layout, &version)).into_iter().flatten();
            let paths = entries.flatten().map(|e| e.path());
            for path in paths.filter(|p| p.extension().is_some_and(|e| e == "conf")) {
                let Ok(real) = fs::canonicalize(&path) else { continue };
                let bytes = durable::read(&real, CONFIG_CAP)?.unwrap_or_default();
                let text = String::from_utf8_lossy(&bytes).into_owned();
                pools.push(PoolFile { version: version.clone(), path, text });
            }
        }
        Ok(Self { servers, pools })
    }
}

/// What was found open.
#[derive(Debug, Default)]
struct Found {
    /// What it is, for people.
    said: Vec<String>,
    /// Pools that no plan names, by version of PHP.
    pools: Vec<(String, php::Pool)>,
    /// What serves others too, and so cannot be closed.
    shared: Vec<PathBuf>,
}

/// Closes the account's sites again. Tells what was open. `plan` is what a fence has closed here; none
/// for an account that was never served here.
///
/// # Errors
/// Precondition if something serves others too, and so is left; else what writing or the services failed
/// of. What could be closed is closed then.
pub fn close_again(
    layout: &Layout,
    definition: &Definition,
    plan: Option<&FencePlan>,
    enabled: &Enabled,
    services: Services,
) -> Result<Vec<String>, Fault> {
    let _guard = nginx::lock();
    let mut found = Found::default();
    if let Some(plan) = plan {
        own_files(layout, plan, &mut found)?;
    }
    strange_servers(layout, definition, enabled, &mut found)?;
    strange_pools(layout, definition, enabled, &mut found)?;
    match (services, plan) {
        (Services::Booting, Some(plan)) => stand_in_plainly(layout, plan)?,
        (Services::Booting, None) => {}
        (Services::Running, plan) => tell_services(layout, plan, &mut found)?,
    }
    match found.shared.first() {
        None => Ok(found.said),
        Some(file) => Err(Fault::precondition(format!(
            "{} serves account {}, which is closed here, and others too",
            file.display(),
            definition.name
        ))
        .remedy("take the account's domains out of that file, then reload nginx")),
    }
}

/// What of the account's own sites is open though a fence has closed it. Looks at files only, and changes
/// nothing.
///
/// # Errors
/// What looking failed of.
pub fn reopened(plan: &FencePlan) -> Result<Vec<String>, Fault> {
    let mut found = Vec::new();
    for file in &plan.files {
        if durable::exists(&file.path)? {
            found.push(format!("{} is back", file.path.display()));
        }
    }
    Ok(found)
}

/// Moves the plan's own files aside again. The former file, if it still is aside, is the account's; what
/// has come in its place is kept beside it.
fn own_files(layout: &Layout, plan: &FencePlan, found: &mut Found) -> Result<(), Fault> {
    found.said.extend(reopened(plan)?);
    if found.said.is_empty() {
        return Ok(());
    }
    durable::make_directory(&layout.aside(&plan.account), 0o700)?;
    for file in &plan.files {
        if !durable::exists(&file.path)? {
            continue;
        }
        let to = if durable::exists(&file.aside)? { file.found() } else { file.aside.clone() };
        durable::rename(&file.path, &to)?;
    }
    Ok(())
}

/// Moves server blocks aside that serve the account and nobody else, whatever their file is called.
fn strange_servers(
    layout: &Layout,
    definition: &Definition,
    enabled: &Enabled,
    found: &mut Found,
) -> Result<(), Fault> {
    let domains: BTreeSet<&str> = definition.domains().map(|d| d.as_str()).collect();
    let own = format!("ferry-{}.", definition.name);
    for (path, names) in &enabled.servers {
        let serves = |name: &String| domains.contains(name.as_str());
        let is_rendered = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&own));
        // It may have gone since it was read.
        if !names.iter().any(serves)
            || is_rendered
            || Stub::is_of(&definition.name, path)
            || !durable::exists(path)?
        {
            continue;
        }
        if names.iter().all(|name| serves(name) || ["_", ""].contains(&name.as_str())) {
            keep_aside(layout, definition, path)?;
            found.said.push(format!("{} serves it", path.display()));
        } else {
            found.shared.push(path.clone());
        }
    }
    Ok(())
}

/// Moves pools aside that run as the account's user.
fn strange_pools(
    layout: &Layout,
    definition: &Definition,
    enabled: &Enabled,
    found: &mut Found,
) -> Result<(), Fault> {
    let own = format!("ferry-{}.", definition.name);
    for file in &enabled.pools {
        // Rehearsed pools run until the open, reached by nobody.
        let is_rendered =
            file.path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&own));
        if is_rendered
            || !runs_as(&file.text, definition.user.as_str())
            || !durable::exists(&file.path)?
        {
            continue;
        }
        keep_aside(layout, definition, &file.path)?;
        found.said.push(format!("{} runs as user {}", file.path.display(), definition.user));
        let pools = php::pools_in(&file.text).into_iter();
        found.pools.extend(pools.map(|pool| (file.version.clone(), pool)));
    }
    Ok(())
}

/// Keeps a file that is no fence's.
fn keep_aside(layout: &Layout, definition: &Definition, file: &Path) -> Result<(), Fault> {
    let aside = layout.aside(&definition.name);
    durable::make_directory(&aside, 0o700)?;
    let inside = file.strip_prefix(layout.path("/etc")).unwrap_or(file);
    let name = inside.to_string_lossy().replace('/', "-");
    durable::rename(file, &aside.join(format!("found-{name}")))
}

/// At boot: nobody can be asked yet whether a stub with a certificate would be accepted, and one that is
/// not would keep the web server from starting, for all. So a stub that is there is left as it is, and
/// one that is gone comes back without TLS; the agent gives it its certificate when it has started.
fn stand_in_plainly(layout: &Layout, plan: &FencePlan) -> Result<(), Fault> {
    for pools in plan.pools.iter().filter(|p| php::pools(layout, &p.version).is_dir()) {
        stand_in(layout, pools)?;
    }
    for stub in &plan.stubs {
        let (text, _) = stub.text(false);
        if text.contains("    listen ") && !durable::exists(&stub.path)? {
            durable::write(&stub.path, text.as_bytes(), Ownership::root(0o644))?;
        }
    }
    Ok(())
}

/// A web server that is just starting or reloading opens nothing: it is asked more than once.
fn comes_to_answer(stub: &Stub) -> bool {
    (0..10).any(|time| {
        if time > 0 {
            std::thread::sleep(PAUSE);
        }
        answers_as_stub(stub)
    })
}

/// Makes the services take what was closed, and stubs answer again where they do not.
fn tell_services(
    layout: &Layout,
    plan: Option<&FencePlan>,
    found: &mut Found,
) -> Result<(), Fault> {
    let stubs = plan.map_or(&[][..], |plan| &plan.stubs);
    for stub in stubs.iter().filter(|_| nginx::is_running(layout)) {
        if !comes_to_answer(stub) {
            found.said.push(format!("{} is not answered by Ferry's stub", stub.names.join(" ")));
        }
    }
    if found.said.is_empty() {
        return Ok(());
    }
    if let Some(plan) = plan.filter(|plan| !plan.files.is_empty()) {
        take_effect(layout, plan, Services::Running, Duration::ZERO, true)?;
    } else {
        nginx::check(layout)?;
        nginx::apply(layout, nginx::IfDown::Leave)?;
    }
    for (version, pool) in &found.pools {
        if php::is_active(layout, version)? && !php::is_gone(pool)? {
            php::check(layout, version)?;
            php::apply(layout, version)?;
            php::wait_gone(pool)?;
        }
    }
    Ok(())
}
