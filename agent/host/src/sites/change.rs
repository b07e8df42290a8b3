//! Installs, opens, closes and removes an account's sites. Each may be repeated. What the services
//! do not accept is taken back before they are reloaded, so that no other account's site suffers.

use std::path::{Path, PathBuf};

use ferry_proto::Fault;
use ferry_proto::account::Site;

use super::render::{Role, certificate_files, pool_file, server};
use super::{SitesPlan, available, certificates, enabled, label, rehearse, render, socket};
use crate::durable::{self, Ownership};
use crate::nginx::{self, IfDown};
use crate::{Layout, Services, php};

/// The name of a pool's file while the account is closed: PHP-FPM includes only `*.conf`.
pub(super) fn disabled(pool: &Path) -> PathBuf {
    pool.with_extension("conf.disabled")
}

fn pool_sites(plan: &SitesPlan) -> impl Iterator<Item = &Site> {
    plan.definition.sites.iter().filter(|s| s.php.is_some())
}

/// Writes the files of all sites so that no service reads them.
///
/// # Errors
/// What writing failed of.
pub fn install_closed(layout: &Layout, plan: &SitesPlan) -> Result<(), Fault> {
    for file in render(layout, plan) {
        let path = match file.role {
            Role::Server => file.path,
            Role::Pool if durable::exists(&file.path)? => continue,
            Role::Pool => disabled(&file.path),
        };
        durable::write_if_changed(&path, file.text.as_bytes(), Ownership::root(0o644))?;
    }
    Ok(())
}

/// Opens all sites for visitors: returns when each is answered by its new configuration.
///
/// # Errors
/// Precondition with what nginx or PHP-FPM say against it; everything is closed again then.
pub fn open(layout: &Layout, plan: &SitesPlan) -> Result<(), Fault> {
    if plan.definition.sites.is_empty() {
        return Ok(());
    }
    let _guard = nginx::lock();
    open_locked(layout, plan).map_err(|fault| {
        if let Err(second) = close_locked(layout, plan) {
            tracing::warn!(fault = %second, "the sites could not be closed again");
        }
        fault.context(format!("the sites of account {} could not be opened", plan.definition.name))
    })
}

fn open_locked(layout: &Layout, plan: &SitesPlan) -> Result<(), Fault> {
    install_closed(layout, plan)?;
    start_pools(layout, plan)?;
    let definition = &plan.definition;
    let mut changed = rehearse::tear_down_files(layout, plan)?;
    for site in &definition.sites {
        changed |= certificates::refresh(layout, definition, site)?;
        let link = enabled(layout, definition, site);
        changed |= !durable::exists(&link)?;
        durable::symlink(
            &Path::new("../sites-available").join(super::file_name(definition, site)),
            &link,
        )?;
    }
    let tokens: Vec<(&Site, String)> =
        definition.sites.iter().map(|site| (site, server(layout, plan, site).1)).collect();
    let answers = |(site, token): &(&Site, String)| {
        nginx::probe(layout.http_port, site.domains[0].as_str(), token)
    };
    if !changed && tokens.iter().all(answers) {
        return Ok(());
    }
    nginx::check(layout)?;
    nginx::apply(layout, IfDown::Start)?;
    for (site, token) in &tokens {
        for domain in &site.domains {
            nginx::wait_probe(layout.http_port, domain.as_str(), token)?;
        }
    }
    Ok(())
}

/// Starts the pools: they are still closed, for nothing passes requests to them. The web server's lock
/// must be held.
pub(super) fn start_pools(layout: &Layout, plan: &SitesPlan) -> Result<(), Fault> {
    let Some(version) = &plan.php else {
        return Ok(());
    };
    let mut changed = false;
    for file in render(layout, plan).into_iter().filter(|f| f.role == Role::Pool) {
        changed |=
            durable::write_if_changed(&file.path, file.text.as_bytes(), Ownership::root(0o644))?;
        durable::remove(&disabled(&file.path))?;
    }
    let sockets: Vec<String> = pool_sites(plan)
        .map(|site| socket(layout, &plan.definition, site).display().to_string())
        .collect();
    if !changed && sockets.iter().all(|s| php::is_listening(s)) {
        return Ok(());
    }
    php::check(layout, version).inspect_err(|_| {
        // What is not accepted must not be there when something else reloads PHP-FPM.
        if let Err(fault) = hide_pools(layout, plan, version) {
            tracing::warn!(%fault, "the pools could not be disabled again");
        }
    })?;
    php::apply(layout, version)?;
    sockets.iter().try_for_each(|s| php::wait_listening(s))
}

/// Disables the pools' files. True if one was enabled.
fn hide_pools(layout: &Layout, plan: &SitesPlan, version: &str) -> Result<bool, Fault> {
    let mut changed = false;
    for site in pool_sites(plan) {
        let file = pool_file(layout, version, &plan.definition, site);
        if durable::exists(&file)? {
            durable::rename(&file, &disabled(&file))?;
            changed = true;
        }
    }
    Ok(changed)
}

/// Closes all sites: returns when no process answers for them any more, except for requests that a
/// worker of the web server is just finishing.
///
/// # Errors
/// What the services failed of.
pub fn close(layout: &Layout, plan: &SitesPlan) -> Result<(), Fault> {
    if plan.definition.sites.is_empty() {
        return Ok(());
    }
    let _guard = nginx::lock();
    close_locked(layout, plan).map_err(|fault| {
        fault.context(format!("the sites of account {} could not be closed", plan.definition.name))
    })
}

/// Closes all sites again, where something has opened them behind our back. Tells which were open. At
/// boot the pools of a rehearsal end too: they were reached by nobody, and opening starts them.
///
/// # Errors
/// What writing or the services failed of.
pub fn close_again(
    layout: &Layout,
    plan: &SitesPlan,
    services: Services,
) -> Result<Vec<String>, Fault> {
    let _guard = nginx::lock();
    let mut found = Vec::new();
    for site in &plan.definition.sites {
        let link = enabled(layout, &plan.definition, site);
        if durable::exists(&link)? {
            found.push(format!("{} is enabled", link.display()));
        }
    }
    match services {
        Services::Running if !found.is_empty() => close_locked(layout, plan)?,
        Services::Running => {}
        Services::Booting => {
            disable(layout, plan)?;
            if let Some(version) = &plan.php {
                hide_pools(layout, plan, version)?;
            }
        }
    }
    Ok(found)
}

/// Takes the server blocks away, of a rehearsal too. True if the web server may still have one.
fn disable(layout: &Layout, plan: &SitesPlan) -> Result<bool, Fault> {
    let mut changed = rehearse::tear_down_files(layout, plan)?;
    for site in &plan.definition.sites {
        changed |= durable::remove(&enabled(layout, &plan.definition, site))?;
    }
    Ok(changed)
}

fn close_locked(layout: &Layout, plan: &SitesPlan) -> Result<(), Fault> {
    let definition = &plan.definition;
    let changed = disable(layout, plan)?;
    let answers = |site: &Site| {
        let token = server(layout, plan, site).1;
        nginx::probe(layout.http_port, site.domains[0].as_str(), &token)
    };
    if changed || definition.sites.iter().any(answers) {
        nginx::apply(layout, IfDown::Leave)?;
    }
    let Some(version) = &plan.php else {
        return Ok(());
    };
    let hidden = hide_pools(layout, plan, version)?;
    let pools: Vec<php::Pool> = pool_sites(plan)
        .map(|site| php::Pool {
            name: label(definition, site),
            listen: Some(socket(layout, definition, site).display().to_string()),
        })
        .collect();
    let listening = |pool: &php::Pool| pool.listen.as_deref().is_some_and(php::is_listening);
    if !(hidden || pools.iter().any(listening)) || !php::is_active(layout, version)? {
        return Ok(());
    }
    php::check(layout, version)?;
    php::apply(layout, version)?;
    pools.iter().try_for_each(php::wait_gone)
}

/// Closes all sites and removes every file that Ferry made for them.
///
/// # Errors
/// What the services or removing failed of.
pub fn remove(layout: &Layout, plan: &SitesPlan) -> Result<(), Fault> {
    close(layout, plan)?;
    let definition = &plan.definition;
    for site in &definition.sites {
        durable::remove(&available(layout, definition, site))?;
        let (certificate, key) = certificate_files(layout, definition, site);
        durable::remove(&certificate)?;
        durable::remove(&key)?;
        if let Some(version) = &plan.php {
            durable::remove(&disabled(&pool_file(layout, version, definition, site)))?;
        }
    }
    durable::remove_empty_directory(&layout.certificates(&definition.name)).map(|_| ())
}
