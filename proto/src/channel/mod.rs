//! The mutually authenticated channel: TLS 1.3 between the controller and the agents, and between
//! agents. It answers one question, *who is calling*, and answers it the same for everybody.
//!
//! - Each end checks the other by name, against Ferry's own authority and nothing else: the
//!   system's certificates are never asked, and the address that was dialled proves nothing.
//! - A server takes callers without a certificate (to enrol, and operators with a token); then the
//!   caller is [`Caller::Anonymous`], and each service decides what such a one may do.
//! - Such a connection ends after a while, unless the service keeps it ([`Connection::keep`]).
//! - What is revoked is refused in the handshake, and connections that stand are cut.
//!   Sessions are never resumed: a resumed session would skip that check.
//!
//! It must not know what is said over a channel: no service, no command, no account.

pub mod files;
pub mod token;

mod accept;
mod admitted;
mod certificate;
mod client;
mod connections;
mod credentials;
mod handshakes;
mod names;
mod peer;
mod refusal;
mod source;
mod stream;
mod verify;

use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;

pub use accept::{Incoming, Listener};
pub use certificate::{CaCertificate, Fingerprint, Leaf, Serial, renewal_due, unix_now};
pub use client::{connect, connect_anonymous, pinned_connect};
pub use connections::{Connections, Limits, Revocations};
pub use credentials::{Credentials, Identity, NewKey, new_key_and_csr, pending_key_and_csr};
pub use names::{CONTROLLER_DNS_NAME, Party};
pub use peer::{PeerConnection, PeerListener, peer_connect};
pub use refusal::status_fault;
pub use stream::{Caller, Connection, SecureStream, caller, connection, require_agent};

/// The protocol between an agent and the controller, as negotiated in the handshake.
const ALPN_CONTROLLER: &[u8] = b"h2";

/// The protocol between agents.
const ALPN_PEER: &[u8] = b"ferry-peer/1";

/// Makes aws-lc-rs the process's cryptography, once; to be called first in each `main` and test
/// that uses TLS other than through this module. May be repeated.
pub fn install_crypto_provider() {
    // Refused only if one is installed already, and then by an earlier call of this function:
    // no other provider is linked.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// The cryptography of every configuration made here, whatever a process has installed.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

#[cfg(test)]
mod tests;
