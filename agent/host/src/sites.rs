//! Sites at the target: rendered from the definition's typed fields, installed closed, rehearsed,
//! opened and closed. Nothing of another server's configuration is copied as text. Knows no moves.

mod certificates;
mod change;
mod rehearse;
mod render;

pub use change::{close, close_again, install_closed, open, remove};
pub use rehearse::{Rehearsal, Smoke, rehearse};
pub use render::{RenderedFile, Role, render};

use std::fs;
use std::path::{Path, PathBuf};

use ferry_proto::Fault;
use ferry_proto::account::{Definition, Site};
use serde::{Deserialize, Serialize};

use crate::{Finding, Layout, durable, nginx_config, php};

/// The largest configuration file that is read.
pub(crate) const CONFIG_CAP: u64 = 1 << 20;

/// An account's sites as they will be at this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SitesPlan {
    /// The account.
    pub definition: Definition,
    /// The version of PHP for its pools; none if no site has one.
    pub php: Option<String>,
    /// Whether the sites listen on IPv6 too.
    pub ipv6: bool,
    /// What a person should know.
    pub findings: Vec<Finding>,
}

/// What installing the account's sites here would need.
///
/// # Errors
/// Precondition if the web server or PHP is missing, or a domain is served here by something else.
pub fn plan(layout: &Layout, definition: &Definition) -> Result<SitesPlan, Fault> {
    let ipv6 = Path::new("/proc/net/if_inet6").exists();
    let mut plan =
        SitesPlan { definition: definition.clone(), php: None, ipv6, findings: Vec::new() };
    if definition.sites.is_empty() {
        return Ok(plan);
    }
    if !layout.path("/etc/nginx/sites-enabled").is_dir() || !layout.programs.nginx.exists() {
        return Err(Fault::precondition("there is no nginx on this server")
            .remedy("install the Debian package nginx"));
    }
    if definition.sites.iter().any(|s| s.php.is_some()) {
        let newest = php::versions(layout).into_iter().next();
        let newest = newest.ok_or_else(|| {
            Fault::precondition("there is no PHP-FPM on this server")
                .remedy("install the Debian package php-fpm")
        })?;
        plan.findings.extend(php::harshness(layout, &newest));
        plan.php = Some(newest);
    }
    for (file, summary) in summaries(layout)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if definition.sites.iter().any(|s| name == file_name(definition, s)) {
            continue;
        }
        if let Some(domain) =
            definition.domains().find(|d| summary.names.iter().any(|n| n == d.as_str()))
        {
            return Err(Fault::precondition(format!(
                "{domain} of account {} is served on this server by {} already",
                definition.name,
                file.display()
            ))
            .remedy("remove that server block if it is not needed"));
        }
    }
    Ok(plan)
}

/// What each enabled file of the web server serves.
pub(crate) fn summaries(layout: &Layout) -> Result<Vec<(PathBuf, nginx_config::Summary)>, Fault> {
    let mut found = Vec::new();
    for directory in ["/etc/nginx/sites-enabled", "/etc/nginx/conf.d"] {
        let entries = fs::read_dir(layout.path(directory)).into_iter().flatten().flatten();
        for file in entries.map(|e| e.path()) {
            // Enabled files are symlinks; what they point to is root's.
            let Ok(real) = fs::canonicalize(&file) else {
                continue;
            };
            if let Ok(Some(bytes)) = durable::read(&real, CONFIG_CAP) {
                found.push((file, nginx_config::summarise(&String::from_utf8_lossy(&bytes))));
            }
        }
    }
    Ok(found)
}

/// What the names of a site's files and of its pool are made of. The dot is in neither name, so two
/// sites never share one.
pub(crate) fn label(definition: &Definition, site: &Site) -> String {
    format!("ferry-{}.{}", definition.name, site.name)
}

fn file_name(definition: &Definition, site: &Site) -> String {
    format!("{}.conf", label(definition, site))
}

fn available(layout: &Layout, definition: &Definition, site: &Site) -> PathBuf {
    layout.path("/etc/nginx/sites-available").join(file_name(definition, site))
}

fn enabled(layout: &Layout, definition: &Definition, site: &Site) -> PathBuf {
    layout.path("/etc/nginx/sites-enabled").join(file_name(definition, site))
}

/// Where the site's pool takes connections.
fn socket(layout: &Layout, definition: &Definition, site: &Site) -> PathBuf {
    layout.path("/run/php").join(format!("{}.sock", label(definition, site)))
}

/// Every file that the plan's sites can have, open, closed or rehearsed.
pub(crate) fn places(layout: &Layout, plan: &SitesPlan) -> Vec<PathBuf> {
    let mut places = Vec::new();
    for file in render(layout, plan).into_iter().filter(|f| f.role == Role::Pool) {
        places.push(change::disabled(&file.path));
        places.push(file.path);
    }
    for site in &plan.definition.sites {
        places.push(available(layout, &plan.definition, site));
        places.push(enabled(layout, &plan.definition, site));
        places.extend(rehearse::places(layout, plan, site));
        let (certificate, key) = render::certificate_files(layout, &plan.definition, site);
        places.extend([certificate, key]);
    }
    places
}

#[cfg(test)]
mod tests;
