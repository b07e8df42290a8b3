//! Looks, changes nothing: what the account is, and what stands in the way at either end. What the
//! steps would refuse is refused here, before anybody says yes: the same plans and checks are made,
//! and thrown away.

mod findings;
mod reach;
mod room;
mod source;
mod target;

pub use room::writable;
pub use source::{Asked, source};
pub use target::target;

use ferry_host::facts;
use ferry_proto::Fault;
use ferry_proto::command::{HoldLimit, ServerFacts};

use crate::agent::{Agent, blocking};
use crate::clock::unix_ms;

/// What this server is.
///
/// # Errors
/// If the host does not say.
pub async fn server_facts(agent: &Agent) -> Result<ServerFacts, Fault> {
    let layout = agent.layout.clone();
    let hold = agent.config.hold.limits();
    let facts = blocking(move || facts::server(&layout, &[])).await?;
    Ok(ServerFacts {
        system: facts.os,
        kernel: facts.kernel,
        cpus: u32::try_from(facts.cpus).unwrap_or(u32::MAX),
        memory_bytes: facts.memory_bytes,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        services: facts.packages,
        hold: HoldLimit { wait_ms: hold.wait_ms, requests: hold.requests, bytes: hold.bytes },
        // Read last: the controller compares it with its own when the answer arrives.
        clock_unix_ms: unix_ms(),
    })
}
