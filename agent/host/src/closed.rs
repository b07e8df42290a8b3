//! What an account is closed by that this server must not serve: its sites, its logins, its crontab, its
//! units. Sees whether all of it still is closed, and closes again what something has opened behind
//! Ferry's back. Knows neither moves nor why an account is closed.

use ferry_proto::Fault;
use ferry_proto::account::Definition;
use ferry_proto::ids::UnixName;

use crate::processes::{self, KeptStopped};
use crate::sites::{self, SitesPlan};
use crate::sites_fence::{self, Enabled, FencePlan};
use crate::users::LoginRecord;
use crate::{Layout, Services, cron, users};

/// An account that is closed here.
#[derive(Debug, Clone, Copy)]
pub struct ClosedAccount<'a> {
    /// Its definition.
    pub definition: &'a Definition,
    /// What a fence has closed of its sites; none: it was never served here.
    pub fenced: Option<&'a FencePlan>,
    /// What Ferry has rendered for it, closed; none if that was served here since.
    pub rendered: Option<&'a SitesPlan>,
    /// What a fence keeps stopped; none: it was never served here.
    pub units: Option<&'a KeptStopped>,
}

/// What was seen, and what was done about it.
#[derive(Debug, Default)]
pub struct ClosedAgain {
    /// What was open.
    pub found: Vec<String>,
    /// What could not be looked at or closed.
    pub faults: Vec<Fault>,
}

impl ClosedAgain {
    /// Adds what one part has come to.
    pub fn add(&mut self, part: Result<Vec<String>, Fault>) {
        match part {
            Ok(found) => self.found.extend(found),
            Err(fault) => self.faults.push(fault),
        }
    }
}

/// Closes again whatever is open of the account. No part waits for another's success.
pub fn close_again(
    layout: &Layout,
    account: &ClosedAccount<'_>,
    enabled: &Enabled,
    services: Services,
) -> ClosedAgain {
    let definition = account.definition;
    let mut all = ClosedAgain::default();
    // First what could start by itself.
    all.add(close_crontab(layout, &definition.user));
    all.add(close_logins(layout, &definition.user));
    all.add(match account.units {
        Some(units) => processes::keep_stopped_again(layout, units, services),
        None => end_lingering(layout, &definition.user),
    });
    if let Some(rendered) = account.rendered {
        all.add(sites::close_again(layout, rendered, services));
    }
    let fenced = account.fenced;
    all.add(sites_fence::close_again(layout, definition, fenced, enabled, services));
    all
}

/// Closes again what belongs to a user of whom only the name is known: logins, crontab, lingering.
pub fn close_user_again(layout: &Layout, user: &UnixName) -> ClosedAgain {
    let mut all = ClosedAgain::default();
    all.add(close_crontab(layout, user));
    all.add(close_logins(layout, user));
    all.add(end_lingering(layout, user));
    all
}

fn close_crontab(layout: &Layout, user: &UnixName) -> Result<Vec<String>, Fault> {
    if !cron::is_visible(layout, user)? {
        return Ok(Vec::new());
    }
    cron::disable(layout, user)?;
    Ok(vec![format!("cron saw a crontab of user {user}")])
}

fn close_logins(layout: &Layout, user: &UnixName) -> Result<Vec<String>, Fault> {
    if !users::may_log_in(layout, user)? {
        return Ok(Vec::new());
    }
    users::close_logins(layout, &LoginRecord { user: user.clone(), expire: None })?;
    Ok(vec![format!("user {user} could log in")])
}

/// Of a user whose units no fence keeps stopped. It may linger again where it is served again: the server
/// that serves it now says whether.
fn end_lingering(layout: &Layout, user: &UnixName) -> Result<Vec<String>, Fault> {
    if !processes::lingers_now(layout, user)? {
        return Ok(Vec::new());
    }
    processes::put_linger_aside(layout, user)?;
    Ok(vec![format!("user {user} lingered")])
}

/// What is open of an account that a fence has closed. Changes nothing.
///
/// # Errors
/// What looking failed of.
pub fn reopened(
    layout: &Layout,
    definition: &Definition,
    fenced: &FencePlan,
    units: &KeptStopped,
) -> Result<Vec<String>, Fault> {
    let user = &definition.user;
    let mut found = sites_fence::reopened(fenced)?;
    found.extend(processes::may_start(layout, units)?);
    if cron::is_visible(layout, user)? {
        found.push(format!("cron sees a crontab of user {user}"));
    }
    if users::may_log_in(layout, user)? {
        found.push(format!("user {user} may log in"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
