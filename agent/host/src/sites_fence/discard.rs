//! Ends a fence of sites that never come back: their account is erased here.

use ferry_proto::Fault;

use super::act::answers_as_stub;
use super::{FencePlan, VersionPools};
use crate::nginx::{self, IfDown};
use crate::{Layout, durable, php};

/// Removes what was moved aside and what stands in its place. Nothing of the account is served
/// meanwhile or afterwards, and no pool is started. May be repeated.
///
/// # Errors
/// What the web server says against its configuration without the stubs, or what removing failed of.
pub fn discard(layout: &Layout, plan: &FencePlan) -> Result<(), Fault> {
    let _guard = nginx::lock();
    discard_locked(layout, plan).map_err(|fault| {
        fault.context(format!(
            "what the fence left of the sites of account {} could not be removed",
            plan.account
        ))
    })
}

fn discard_locked(layout: &Layout, plan: &FencePlan) -> Result<(), Fault> {
    // First what could be served if it were put back.
    for file in &plan.files {
        durable::remove(&file.aside)?;
    }
    let mut changed = false;
    for stub in &plan.stubs {
        changed |= durable::remove(&stub.path)?;
    }
    if changed || plan.stubs.iter().any(answers_as_stub) {
        nginx::check(layout)?;
        nginx::apply(layout, IfDown::Leave)?;
    }
    for stub in &plan.stubs {
        durable::remove(&stub.copies.0)?;
        durable::remove(&stub.copies.1)?;
    }
    for pools in &plan.pools {
        remove_idle(layout, pools)?;
    }
    durable::remove_empty_directory(&layout.certificates(&plan.account))?;
    durable::remove_empty_directory(&layout.aside(&plan.account)).map(|_| ())
}

/// Removes the pool that stood in, unless it is the only one: PHP-FPM would not start again.
fn remove_idle(layout: &Layout, pools: &VersionPools) -> Result<(), Fault> {
    let others = std::fs::read_dir(php::pools(layout, &pools.version))
        .into_iter()
        .flatten()
        .flatten()
        .any(|e| e.path().extension().is_some_and(|x| x == "conf") && e.path() != pools.idle);
    if others && durable::remove(&pools.idle)? && php::is_active(layout, &pools.version)? {
        php::check(layout, &pools.version)?;
        php::apply(layout, &pools.version)?;
    }
    Ok(())
}
