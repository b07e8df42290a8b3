//! What Ferry knows of a host: accounts, users, processes, cron, sites, hooks and facts.
//!
//! The crate acts on the one host it runs on and knows neither other servers nor moves: the agent
//! joins it with files, databases and traffic.
//!
//! **Every function blocks.** The agent calls them on its blocking threads, and the boot guard
//! without any runtime. Everything that waits has a deadline.
//!
//! **Plan, act, undo.** What changes the host does so from a plan: plain data that names every
//! change and every former state, made by a `plan…` function that changes nothing. The caller
//! journals the plan first; acting on it and undoing it may both be repeated after a crash at any
//! point, and undoing what never happened succeeds.

pub mod accounts;
pub mod closed;
pub mod cron;
pub mod discover;
mod durable;
pub mod facts;
#[doc(hidden)]
pub mod fuzzing;
pub mod hooks;
mod http;
pub mod layout;
mod nginx;
mod nginx_config;
pub mod observe;
mod php;
pub mod processes;
mod run;
pub mod sites;
pub mod sites_fence;
pub mod sites_wind_down;
mod systemd;
pub mod users;

pub use http::PROBE_MARK;
pub use layout::{Layout, Programs};

use serde::{Deserialize, Serialize};

/// Something about an account or the host that a person should know before saying yes. It does not
/// stop a move by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was found, one sentence.
    pub message: String,
    /// What to do about it; empty if there is nothing to do.
    pub remedy: String,
}

impl Finding {
    pub(crate) fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into() }
    }
}

/// Whether a unit of systemd is active, or just starting.
///
/// # Errors
/// If systemd does not answer.
pub fn is_unit_active(layout: &Layout, unit: &str) -> Result<bool, ferry_proto::Fault> {
    systemd::is_active(layout, unit)
}

/// Whether the services run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Services {
    /// They may: they are made to take the change.
    Running,
    /// The host is booting, and none has started: only files are changed.
    Booting,
}

#[cfg(test)]
mod web_fixture;
