//! The critical section on a real ledger, with a real redirector and real firewall rules in
//! namespaces of the test's own. The account has a user, a home and a crontab, no services: those are
//! tested where they are.

mod at_once;
mod copying;
mod delivery;
mod ending;
mod fencing;
mod forcing;
pub mod host;
mod inspecting;
mod looking;
mod recovering;
mod refusing;
mod routing;
