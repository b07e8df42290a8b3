//! The agents: registry, sessions, epochs, certificates.
