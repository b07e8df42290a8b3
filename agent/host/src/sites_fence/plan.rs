//! Finds what serves an account's sites on this server, and refuses where it cannot be told apart
//! from what serves others. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use ferry_proto::Fault;
use ferry_proto::account::Definition;

use super::{AsideFile, FencePlan, Moved, Pool, Stub, VersionPools};
use crate::nginx_config::Summary;
use crate::sites::{CONFIG_CAP, label, summaries};
use crate::{Finding, Layout, durable, php};

/// What fencing the account's sites on this server will change.
///
/// # Errors
/// Precondition if a file serves others too, if something that the definition does not name serves
/// the account, or if a service is not supported.
pub fn plan_fence(layout: &Layout, definition: &Definition) -> Result<FencePlan, Fault> {
    let mut findings = Vec::new();
    let named = named(layout, definition, &mut findings)?;
    let enabled = summaries(layout)?;
    let servers = servers(definition, &named, &enabled)?;
    let (pools, pool_files) = pools(layout, definition, &named, &mut findings)?;
    let mut files = Vec::new();
    let paths = servers.iter().map(|moved| moved.path.to_owned()).chain(pool_files);
    for (index, path) in paths.enumerate() {
        files.push(aside(layout, definition, index, path)?);
    }
    let mut stubs = Vec::new();
    for (index, moved) in servers.iter().enumerate() {
        findings.extend(unreached(layout, &moved.path.display().to_string(), moved.summary));
        stubs.push(Stub::new(layout, &definition.name, index, moved));
    }
    Ok(FencePlan { account: definition.name.clone(), files, stubs, pools, findings })
}

/// The files of this server that belong to the account: those that the definition names and that exist,
/// and those that Ferry has made when the account came here.
fn named(
    layout: &Layout,
    definition: &Definition,
    findings: &mut Vec<Finding>,
) -> Result<BTreeSet<PathBuf>, Fault> {
    let mut named = BTreeSet::new();
    for site in &definition.sites {
        for path in &site.config {
            let supported = path.starts_with("/etc/nginx") || path.starts_with("/etc/php");
            if !supported {
                return Err(Fault::precondition(format!(
                    "site {} of account {} is served by {}, a service that Ferry does not support yet",
                    site.name,
                    definition.name,
                    path.display()
                ))
                .remedy("serve it by nginx and PHP-FPM, or move it by hand"));
            }
            let here = layout.path(path);
            if durable::exists(&here)? {
                named.insert(here);
            } else {
                findings.push(Finding::new(
                    format!(
                        "{} of site {} does not exist on this server",
                        path.display(),
                        site.name
                    ),
                    "correct `config` in the definition, unless the account came here by a move",
                ));
            }
        }
        let label = label(definition, site);
        named.insert(layout.path(format!("/etc/nginx/sites-enabled/{label}.conf")));
        for version in php::versions(layout) {
            named.insert(php::pools(layout, &version).join(format!("{label}.conf")));
        }
    }
    Ok(named)
}

/// The web server's enabled files that are the account's. A file that is named itself or that leads to
/// a named one is; a file that serves one of its domains and is not named is an error.
fn servers<'a>(
    definition: &Definition,
    named: &BTreeSet<PathBuf>,
    enabled: &'a [(PathBuf, Summary)],
) -> Result<Vec<Moved<'a>>, Fault> {
    let real: BTreeSet<PathBuf> = named.iter().filter_map(|p| fs::canonicalize(p).ok()).collect();
    let domains: BTreeSet<&str> = definition.domains().map(|d| d.as_str()).collect();
    let mut found = Vec::new();
    for (path, summary) in enabled {
        if Stub::is_of(&definition.name, path) {
            continue;
        }
        let ours = named.contains(path) || fs::canonicalize(path).is_ok_and(|p| real.contains(&p));
        if !ours {
            if let Some(domain) = summary.names.iter().find(|n| domains.contains(n.as_str())) {
                return Err(Fault::precondition(format!(
                    "{domain} of account {} is served by {}, which the definition does not name",
                    definition.name,
                    path.display()
                ))
                .remedy("add the file to `config` of the site in the definition"));
            }
            continue;
        }
        let stranger = summary
            .names
            .iter()
            .find(|n| !domains.contains(n.as_str()) && !["_", ""].contains(&n.as_str()));
        if let Some(stranger) = stranger {
            return Err(Fault::precondition(format!(
                "{} serves {stranger} too, which is not among the domains of account {}",
                path.display(),
                definition.name
            ))
            .remedy("add it to `domains` of the site if it is the account's, or give it a file of its own"));
        }
        found.push(Moved { path, summary, names: names(summary, &domains) });
    }
    Ok(found)
}

/// A finding if visitors come by ports at which the redirector does not stand.
fn unreached(layout: &Layout, file: &str, summary: &Summary) -> Option<Finding> {
    let usual = [layout.http_port, layout.https_port];
    let other: BTreeSet<u16> = summary
        .listens
        .iter()
        .filter_map(|listen| listen.visitors_port())
        .filter(|port| !usual.contains(port))
        .collect();
    let ports: Vec<String> = other.iter().map(ToString::to_string).collect();
    (!ports.is_empty()).then(|| {
        Finding::new(
            format!(
                "{file} listens on port {} too: who comes there is neither held nor passed on, but \
                 answered 503 from the fence on",
                ports.join(", ")
            ),
            format!("tell who uses it, or serve it on ports {} and {}", usual[0], usual[1]),
        )
    })
}

/// The names for the stub: the file's own; `_` if it has none.
fn names(summary: &Summary, domains: &BTreeSet<&str>) -> Vec<String> {
    let mut names: Vec<String> =
        summary.names.iter().filter(|n| domains.contains(n.as_str())).cloned().collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        names.push("_".to_owned());
    }
    names
}

/// The account's pools and their files. A pool that runs as its user and is not named is an error: it
/// would go on running.
fn pools(
    layout: &Layout,
    definition: &Definition,
    named: &BTreeSet<PathBuf>,
    findings: &mut Vec<Finding>,
) -> Result<(Vec<VersionPools>, Vec<PathBuf>), Fault> {
    let mut by_version: BTreeMap<String, Vec<Pool>> = BTreeMap::new();
    let mut files = Vec::new();
    for version in php::versions(layout) {
        let directory = php::pools(layout, &version);
        let mut paths: Vec<PathBuf> =
            fs::read_dir(&directory).into_iter().flatten().flatten().map(|e| e.path()).collect();
        paths.sort();
        for path in paths.into_iter().filter(|p| p.extension().is_some_and(|e| e == "conf")) {
            let Ok(real) = fs::canonicalize(&path) else {
                continue;
            };
            let bytes = durable::read(&real, CONFIG_CAP)?.unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let runs_as_user = runs_as(&text, definition.user.as_str());
            if !named.contains(&path) {
                if runs_as_user {
                    return Err(Fault::precondition(format!(
                        "{} runs as user {}, but the definition of account {} does not name it",
                        path.display(),
                        definition.user,
                        definition.name
                    ))
                    .remedy("add the file to `config` of the site in the definition"));
                }
                continue;
            }
            let found = php::pools_in(&text);
            let found = found.into_iter().map(|p| Pool { name: p.name, listen: p.listen });
            by_version.entry(version.clone()).or_default().extend(found);
            files.push(path);
        }
        if by_version.contains_key(&version) {
            findings.extend(php::harshness(layout, &version));
        }
    }
    let versions = by_version
        .into_iter()
        .map(|(version, pools)| VersionPools {
            idle: php::pools(layout, &version).join(format!("ferry-idle-{}.conf", definition.name)),
            version,
            pools,
        })
        .collect();
    Ok((versions, files))
}

pub(super) fn runs_as(text: &str, user: &str) -> bool {
    text.lines().filter_map(|line| line.split_once('=')).any(|(key, value)| {
        let value = value.split(';').next().unwrap_or_default().trim().trim_matches('"');
        key.trim() == "user" && value == user
    })
}

fn aside(
    layout: &Layout,
    definition: &Definition,
    index: usize,
    path: PathBuf,
) -> Result<AsideFile, Fault> {
    let metadata = fs::symlink_metadata(&path)
        .map_err(|e| Fault::io(format!("{} could not be examined", path.display()), &e))?;
    if !metadata.is_file() && !metadata.is_symlink() {
        return Err(Fault::precondition(format!("{} is not a file", path.display()))
            .remedy("name the files themselves in `config`"));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(AsideFile {
        aside: layout.aside(&definition.name).join(format!("{index:02}-{name}")),
        owner: (metadata.uid(), metadata.gid(), metadata.permissions().mode() & 0o7777),
        target: if metadata.is_symlink() { fs::read_link(&path).ok() } else { None },
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_without_the_redirector_are_found() {
        let layout = Layout::below(std::path::Path::new("/nowhere"));
        let of =
            |text: &str| unreached(&layout, "shop.conf", &crate::nginx_config::summarise(text));
        let usual = "listen 80; listen [::]:443 ssl; listen 127.0.0.1:7482 proxy_protocol;";
        assert_eq!(of(usual), None);
        let finding = of("listen 80; listen 8443 ssl; listen [::]:8443 ssl; listen 81;").unwrap();
        assert!(finding.message.contains("on port 81, 8443 too"), "{}", finding.message);
        assert!(finding.remedy.contains("80 and 443"), "{}", finding.remedy);
    }
}
