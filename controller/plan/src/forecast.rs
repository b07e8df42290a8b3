//! How long a move will take, and what follows from it for the fence deadline.
//!
//! The rates are deliberately cautious figures of a small server (two cores, see the project's
//! benchmarks); what matters is that the deadline is never shorter than the work.

use ferry_proto::command::AccountFacts;
use serde::{Deserialize, Serialize};

/// What may be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// The fence deadline asked for, in seconds; none: max(30 s, 2 x forecast).
    pub deadline_seconds: Option<u32>,
    /// How long running requests may go on when the fence begins, in milliseconds.
    pub grace_ms: u32,
    /// How many precopy passes at most.
    pub max_passes: u32,
    /// A pass that sent fewer bytes than this ends the precopy.
    pub converged_bytes: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { deadline_seconds: None, grace_ms: 1000, max_passes: 5, converged_bytes: 4 << 20 }
    }
}

/// What a person is told before saying yes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// Copying ahead, while the account is served, in seconds.
    pub precopy_seconds: f64,
    /// The outage, in seconds.
    pub outage_seconds: f64,
    /// The outage of a rollback afterwards, in seconds: without replication back, it copies back what
    /// the account is then, and nothing is lost. As the account is now.
    #[serde(default)]
    pub rollback_outage_seconds: f64,
    /// Bytes to move in all.
    pub bytes: u64,
}

/// Files a second, first copy, with everything that a file has.
const FILES_PER_SECOND: f64 = 4000.0;
/// Bytes a second, first copy.
const BYTES_PER_SECOND: f64 = 60e6;
/// Files a second that a pass looks at when nothing changed; it is walked at both ends, and
/// compared afterwards.
const FILES_SEEN_PER_SECOND: f64 = 20_000.0;
/// Bytes of database a second, dumped and loaded.
const DATABASE_BYTES_PER_SECOND: f64 = 8e6;
/// What a cutover takes with nothing in it: services reloaded and asked.
const CUTOVER_SECONDS: f64 = 6.0;
/// The shortest fence deadline.
pub const SHORTEST_DEADLINE_SECONDS: u32 = 30;
/// The longest fence deadline that can be asked for.
pub const LONGEST_DEADLINE_SECONDS: u32 = 24 * 3600;

/// The forecast of a move of `account`.
#[allow(clippy::cast_precision_loss)]
pub fn forecast(account: &AccountFacts) -> Forecast {
    let database_bytes: u64 = account.databases.iter().map(|d| d.bytes).sum();
    let files = account.files as f64;
    let outage_seconds = CUTOVER_SECONDS
        + files / FILES_SEEN_PER_SECOND
        + database_bytes as f64 / DATABASE_BYTES_PER_SECOND;
    Forecast {
        precopy_seconds: (files / FILES_PER_SECOND).max(account.bytes as f64 / BYTES_PER_SECOND)
            + 1.0,
        outage_seconds,
        // The way back is walked, dumped and loaded like the way there.
        rollback_outage_seconds: outage_seconds,
        bytes: account.bytes + database_bytes,
    }
}

/// How long the fence may last: what was asked for, or max(30 s, 2 x forecast).
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn deadline_seconds(policy: &Policy, forecast: &Forecast) -> u32 {
    policy.deadline_seconds.unwrap_or_else(|| {
        // Float to integer casts saturate.
        ((2.0 * forecast.outage_seconds).ceil() as u32)
            .clamp(SHORTEST_DEADLINE_SECONDS, LONGEST_DEADLINE_SECONDS)
    })
}
