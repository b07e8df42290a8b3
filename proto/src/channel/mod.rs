//! The mutually authenticated channel.
