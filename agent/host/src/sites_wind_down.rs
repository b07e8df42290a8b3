//! Winds down the kept-alive connections of an account's sites before its fence: the web server
//! closes each of theirs after the answer, and lets go of those that it kept before. So the fence
//! meets few connections that were made earlier. Service configuration is changed for it, file by
//! file, and put back as it was. Knows no redirector.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::account::Definition;
use ferry_proto::ids::AccountName;
use serde::{Deserialize, Serialize};

use crate::durable::{self, Ownership};
use crate::nginx::{self, IfDown};
use crate::sites::{CONFIG_CAP, summaries};
use crate::sites_fence::FencePlan;
use crate::{Layout, nginx_config};

/// How long to wait for connections made before to end. Those that take longer meet the fence.
const OLD_CONNECTIONS: Duration = Duration::from_secs(2);

/// All that winding down changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindDown {
    /// The account.
    pub account: AccountName,
    /// The files that serve its sites.
    pub files: Vec<WoundFile>,
}

/// A file of the web server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WoundFile {
    /// The file itself, not a symlink to it.
    pub path: PathBuf,
    /// Where it is meanwhile, as it was.
    pub aside: PathBuf,
    /// Owner, group and mode.
    pub owner: (u32, u32, u32),
}

/// What winding down the account's sites on this server will change. Files that serve others too are
/// left alone; so are files outside the web server's directory.
///
/// # Errors
/// What reading failed of.
pub fn plan_wind_down(layout: &Layout, definition: &Definition) -> Result<WindDown, Fault> {
    let domains: BTreeSet<&str> = definition.domains().map(|d| d.as_str()).collect();
    let theirs = layout.path("/etc/nginx");
    let mut paths = BTreeSet::new();
    for (path, summary) in summaries(layout)? {
        let ours = summary.names.iter().any(|n| domains.contains(n.as_str()));
        let nameless = |n: &str| ["_", ""].contains(&n);
        let alone = summary.names.iter().all(|n| domains.contains(n.as_str()) || nameless(n));
        if ours
            && alone
            && let Ok(real) = fs::canonicalize(&path)
            && real.starts_with(&theirs)
        {
            paths.insert(real);
        }
    }
    let mut files = Vec::new();
    for (index, path) in paths.into_iter().enumerate() {
        let metadata = fs::symlink_metadata(&path)
            .map_err(|e| Fault::io(format!("{} could not be examined", path.display()), &e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push(WoundFile {
            aside: layout.aside(&definition.name).join(format!("open-{index:02}-{name}")),
            owner: (metadata.uid(), metadata.gid(), metadata.permissions().mode() & 0o7777),
            path,
        });
    }
    Ok(WindDown { account: definition.name.clone(), files })
}

/// Winds down. Returns when no connection made before waits for another request, and those in use are
/// gone or have had their time. A file that the web server does not accept so is left as it was.
///
/// # Errors
/// Precondition if the web server does not accept its configuration anyway; else what writing or
/// reloading failed of.
pub fn wind_down(layout: &Layout, plan: &WindDown) -> Result<(), Fault> {
    if plan.files.is_empty() {
        return Ok(());
    }
    let _guard = nginx::lock();
    durable::make_directory(&layout.aside(&plan.account), 0o700)?;
    plan.files.iter().try_for_each(wind)?;
    if let Err(fault) = nginx::check(layout) {
        restore_all(layout, plan, None)?;
        nginx::check(layout)?;
        tracing::warn!(account = %plan.account, %fault, "connections cannot be closed after each answer");
    }
    nginx::apply(layout, IfDown::Leave)?;
    if !nginx::wait_old_workers(layout, OLD_CONNECTIONS)? {
        tracing::info!(account = %plan.account, "some connections made before are still in use");
    }
    Ok(())
}

/// Puts the closing copy in the file's place; the file itself stays aside.
fn wind(file: &WoundFile) -> Result<(), Fault> {
    let Some(now) = text(&file.path)? else { return Ok(()) };
    let closing = nginx_config::closing(&now);
    // Repeated: the copy made from what is aside is in its place already.
    let done =
        closing == now || text(&file.aside)?.is_some_and(|t| nginx_config::closing(&t) == now);
    if done {
        return Ok(());
    }
    durable::remove(&file.aside)?;
    // The very file if it can be, with all that belongs to it.
    if durable::hard_link(&file.path, &file.aside).is_err() {
        durable::write(&file.aside, now.as_bytes(), file.ownership())?;
    }
    durable::write(&file.path, closing.as_bytes(), file.ownership())
}

/// Puts everything back as it was; `fenced` tells where the fence, if one stands, has put the files.
/// The web server takes it with its next reload; `reload` makes one. Needs no free disk.
///
/// # Errors
/// What putting back failed of.
pub fn end_wind_down(
    layout: &Layout,
    plan: &WindDown,
    fenced: Option<&FencePlan>,
    reload: bool,
) -> Result<(), Fault> {
    if plan.files.is_empty() {
        return Ok(());
    }
    let _guard = nginx::lock();
    restore_all(layout, plan, fenced)?;
    if reload
        && let Err(fault) = nginx::check(layout).and_then(|()| nginx::apply(layout, IfDown::Leave))
    {
        // What is left until the next reload is harmless.
        tracing::warn!(account = %plan.account, %fault, "connections are still closed after each answer");
    }
    Ok(())
}

fn restore_all(layout: &Layout, plan: &WindDown, fenced: Option<&FencePlan>) -> Result<(), Fault> {
    for file in &plan.files {
        restore(file, fenced)?;
    }
    durable::remove_empty_directory(&layout.aside(&plan.account)).map(|_| ())
}

fn restore(file: &WoundFile, fenced: Option<&FencePlan>) -> Result<(), Fault> {
    let Some(original) = text(&file.aside)? else { return Ok(()) };
    let moved = fenced.iter().flat_map(|f| &f.files).find(|f| f.path == file.path);
    let places = [Some(&file.path), moved.map(|f| &f.aside)];
    for place in places.into_iter().flatten() {
        match text(place)? {
            None => {}
            Some(now) if now == nginx_config::closing(&original) => {
                return durable::rename(&file.aside, place);
            }
            Some(_) => {
                tracing::warn!(file = %place.display(), "it was changed meanwhile and stays so");
                break;
            }
        }
    }
    durable::remove(&file.aside).map(|_| ())
}

impl WoundFile {
    fn ownership(&self) -> Ownership {
        let (uid, gid, mode) = self.owner;
        Ownership { uid, gid, mode }
    }
}

/// A file's text; none if it is not there or is none.
fn text(path: &Path) -> Result<Option<String>, Fault> {
    if !durable::exists(path)? {
        return Ok(None);
    }
    Ok(durable::read(path, CONFIG_CAP)?.and_then(|bytes| String::from_utf8(bytes).ok()))
}

#[cfg(test)]
mod tests;
