//! Fences and unfences by a plan. Both may be repeated after a crash at any point.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ferry_proto::Fault;

use super::{AsideFile, FencePlan, Stub, VersionPools};
use crate::durable::{self, Ownership};
use crate::nginx::{self, IfDown};
use crate::sites::CONFIG_CAP;
use crate::{Layout, Services, php};

/// Fences the account's sites. Returns when nothing serves them any more. Requests that its pools are
/// answering get `grace` to end; true is returned if all have. (A worker of the web server may still
/// be sending a file.)
///
/// # Errors
/// Precondition with what nginx or PHP-FPM say against it; everything is as before then, as far as
/// the services let it be.
pub fn fence(
    layout: &Layout,
    plan: &FencePlan,
    services: Services,
    grace: Duration,
) -> Result<bool, Fault> {
    if plan.files.is_empty() {
        return Ok(true);
    }
    let _guard = nginx::lock();
    fence_locked(layout, plan, services, grace).map_err(|fault| {
        if let Err(second) = unfence_locked(layout, plan, services) {
            tracing::warn!(fault = %second, "the sites could not be opened again");
        }
        fault.context(format!("the sites of account {} could not be fenced", plan.account))
    })
}

fn fence_locked(
    layout: &Layout,
    plan: &FencePlan,
    services: Services,
    grace: Duration,
) -> Result<bool, Fault> {
    durable::make_directory(&layout.aside(&plan.account), 0o700)?;
    let mut changed = false;
    for file in &plan.files {
        changed |= put_aside(file)?;
    }
    take_effect(layout, plan, services, grace, changed)
}

/// What is aside is served no more: stubs answer in its place, and its pools end.
pub(super) fn take_effect(
    layout: &Layout,
    plan: &FencePlan,
    services: Services,
    grace: Duration,
    mut changed: bool,
) -> Result<bool, Fault> {
    for pools in &plan.pools {
        stand_in(layout, pools)?;
    }
    let mut secure = true;
    for stub in &plan.stubs {
        secure &= copy_certificate(stub)?;
    }
    let mut tokens = write_stubs(plan, secure, &mut changed)?;
    if services == Services::Booting {
        return Ok(true);
    }
    if let Err(fault) = nginx::check(layout) {
        // A certificate that has become unusable must not keep the fence from being made.
        if !secure || !plan.stubs.iter().any(|s| s.secure.contains(&true)) {
            return Err(fault);
        }
        tracing::warn!(%fault, "the fence is made without TLS");
        tokens = write_stubs(plan, false, &mut changed)?;
        nginx::check(layout)?;
    }
    let answers = |(stub, token): (&Stub, &String)| match (stub.port, stub.host()) {
        (Some(port), Some(host)) => nginx::probe(port, host, token),
        _ => false,
    };
    if changed || !plan.stubs.iter().zip(&tokens).all(answers) {
        nginx::apply(layout, IfDown::Leave)?;
    }
    if nginx::is_running(layout) {
        for (stub, token) in plan.stubs.iter().zip(&tokens) {
            if let Some(port) = stub.port {
                let hosts = stub.names.iter().filter(|n| *n != "_" && !n.starts_with('~'));
                hosts.into_iter().try_for_each(|host| nginx::wait_probe(port, host, token))?;
            }
        }
    }
    let deadline = Instant::now() + grace;
    let mut listens = plan.pools.iter().flat_map(|p| &p.pools).filter_map(|p| p.listen.as_deref());
    let idle = listens.all(|listen| php::wait_idle(listen, deadline));
    for pools in &plan.pools {
        end_pools(layout, pools)?;
    }
    Ok(idle)
}

/// Moves a file aside. True if it was there.
fn put_aside(file: &AsideFile) -> Result<bool, Fault> {
    match (durable::exists(&file.path)?, durable::exists(&file.aside)?) {
        (true, false) => durable::rename(&file.path, &file.aside).map(|()| true),
        (false, _) => Ok(false),
        (true, true) => Err(Fault::precondition(format!(
            "{} has appeared again while the former file was aside",
            file.path.display()
        ))
        .remedy("keep configuration management from writing it while the account is moved")),
    }
}

/// Puts a file back. What somebody has put in its place meanwhile is kept beside it, not read by any
/// service.
fn put_back(file: &AsideFile) -> Result<bool, Fault> {
    if !durable::exists(&file.aside)? {
        return Ok(false);
    }
    if durable::exists(&file.path)? {
        tracing::warn!(file = %file.path.display(), "a file that appeared during the fence is kept aside");
        durable::rename(&file.path, &file.found())?;
    }
    durable::rename(&file.aside, &file.path).map(|()| true)
}

/// Writes the stubs, with or without TLS; their tokens.
fn write_stubs(plan: &FencePlan, secure: bool, changed: &mut bool) -> Result<Vec<String>, Fault> {
    let mut tokens = Vec::new();
    for stub in &plan.stubs {
        let (text, token) = stub.text(secure);
        // Without a listen it would take port 80, which its names may not have had.
        if text.contains("    listen ") {
            *changed |=
                durable::write_if_changed(&stub.path, text.as_bytes(), Ownership::root(0o644))?;
        } else {
            *changed |= durable::remove(&stub.path)?;
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// Copies the certificate that the stub needs. False if it needs one and there is none that could be
/// used.
fn copy_certificate(stub: &Stub) -> Result<bool, Fault> {
    if !stub.secure.contains(&true) {
        return Ok(true);
    }
    let Some((certificate, key)) = &stub.certificate else {
        return Ok(false);
    };
    let read = |path: &Path| {
        let real = fs::canonicalize(path).ok()?;
        durable::read(&real, CONFIG_CAP).ok().flatten()
    };
    let (Some(certificate), Some(key)) = (read(certificate), read(key)) else {
        // Already copied, and the home has gone since: the copies serve.
        return Ok(durable::exists(&stub.copies.0)? && durable::exists(&stub.copies.1)?);
    };
    durable::make_directory(durable::parent(&stub.copies.0), 0o700)?;
    durable::write_if_changed(&stub.copies.0, &certificate, Ownership::root(0o600))?;
    durable::write_if_changed(&stub.copies.1, &key, Ownership::root(0o600))?;
    Ok(true)
}

/// Gives PHP-FPM a pool that does nothing if no other is left.
pub(super) fn stand_in(layout: &Layout, pools: &VersionPools) -> Result<(), Fault> {
    let directory = php::pools(layout, &pools.version);
    let others = fs::read_dir(&directory)
        .map_err(|e| Fault::io(format!("{} could not be read", directory.display()), &e))?
        .flatten()
        .any(|e| e.path().extension().is_some_and(|x| x == "conf") && e.path() != pools.idle);
    if others {
        return Ok(());
    }
    let name = pools.idle.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let text = php::idle_pool(&name, layout);
    durable::write_if_changed(&pools.idle, text.as_bytes(), Ownership::root(0o644)).map(|_| ())
}

/// Makes PHP-FPM let go of the pools, whose files are aside.
fn end_pools(layout: &Layout, pools: &VersionPools) -> Result<(), Fault> {
    if !php::is_active(layout, &pools.version)? {
        return Ok(());
    }
    let mut gone = true;
    for pool in &pools.pools {
        gone &= php::is_gone(&pool.known())?;
    }
    if gone {
        return Ok(());
    }
    php::check(layout, &pools.version)?;
    php::apply(layout, &pools.version)?;
    pools.pools.iter().try_for_each(|pool| php::wait_gone(&pool.known()))
}

/// Puts everything back as it was. Needs no free disk.
///
/// # Errors
/// What the services failed of; the files are back then.
pub fn unfence(layout: &Layout, plan: &FencePlan, services: Services) -> Result<(), Fault> {
    if plan.files.is_empty() {
        return Ok(());
    }
    let _guard = nginx::lock();
    unfence_locked(layout, plan, services).map_err(|fault| {
        fault.context(format!("the sites of account {} could not be unfenced", plan.account))
    })
}

fn unfence_locked(layout: &Layout, plan: &FencePlan, services: Services) -> Result<(), Fault> {
    let mut changed = false;
    for file in &plan.files {
        changed |= put_back(file)?;
    }
    for stub in &plan.stubs {
        changed |= durable::remove(&stub.path)?;
    }
    for pools in &plan.pools {
        durable::remove(&pools.idle)?;
    }
    if services == Services::Running {
        for pools in &plan.pools {
            begin_pools(layout, pools, changed)?;
        }
        let stubbed = plan.stubs.iter().any(answers_as_stub);
        if changed || stubbed {
            nginx::check(layout)?;
            nginx::apply(layout, IfDown::Leave)?;
        }
    }
    for stub in &plan.stubs {
        durable::remove(&stub.copies.0)?;
        durable::remove(&stub.copies.1)?;
    }
    durable::remove_empty_directory(&layout.certificates(&plan.account))?;
    durable::remove_empty_directory(&layout.aside(&plan.account)).map(|_| ())
}

/// Whether the web server still answers by the stub, with or without TLS.
pub(super) fn answers_as_stub(stub: &Stub) -> bool {
    let (Some(port), Some(host)) = (stub.port, stub.host()) else {
        return true;
    };
    [true, false].iter().any(|secure| nginx::probe(port, host, &stub.text(*secure).1))
}

/// Makes PHP-FPM take the pools, whose files are back; `moved`, if they have come back just now.
fn begin_pools(layout: &Layout, pools: &VersionPools, moved: bool) -> Result<(), Fault> {
    let listens: Vec<&str> = pools.pools.iter().filter_map(|p| p.listen.as_deref()).collect();
    if !moved && listens.iter().all(|l| php::is_listening(l)) {
        return Ok(());
    }
    php::check(layout, &pools.version)?;
    php::apply(layout, &pools.version)?;
    listens.iter().try_for_each(|l| php::wait_listening(l))
}
