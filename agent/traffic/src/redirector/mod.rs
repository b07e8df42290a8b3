//! The redirector's process.
