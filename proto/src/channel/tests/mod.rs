//! Real TLS over loopback, against an authority made for each test.

mod support;

mod controller;
mod limits;
mod peers;
mod revocation;
mod rotation;
mod stored;
