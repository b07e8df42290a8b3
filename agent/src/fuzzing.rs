//! Doors for the fuzz targets (`fuzz/`): each reads bytes as the agent reads them from a peer, from the
//! controller, or from its own disk, and panics if what was read breaks a promise.

use ferry_proto::fuzzing::Target;

use crate::{ledger, link, peer};

/// The targets by name.
pub const TARGETS: &[Target] =
    &[("peer_messages", peer::fuzz), ("session_commands", link::fuzz), ("ledger", ledger::fuzz)];
