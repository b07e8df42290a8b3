//! Traffic of accounts that move: the redirector (a process of its own, `ferry-redirector`), the
//! firewall rules that put it in front of the web server, and mail.
//!
//! The agent uses [`client`] and [`firewall`]; the redirector's process uses [`redirector`].
//! [`control`] is what the two say to each other. Nothing here knows about moves or steps: a
//! caller says which account is where, and under which epoch.

pub mod client;
pub mod config;
pub mod control;
pub mod firewall;
#[doc(hidden)]
pub mod fuzzing;
pub mod mail;
pub mod observe;
pub mod redirector;
