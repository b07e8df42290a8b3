//! Processes of accounts: who there is, ending them so that none remains, who may still write below
//! an account's roots, and keeping systemd from starting them again. Knows no sites and no cron:
//! whoever starts such processes has to be closed first.

mod file_table;
mod keep;
mod linger;
mod mounts;
mod stop;
mod table;
mod writers;

pub(crate) use keep::installed as installed_units;
pub(crate) use keep::{DROP_IN, FLAGS, drop_in_places};
pub use keep::{
    KeptStopped, StoppedUnit, allow, forget, keep_stopped, keep_stopped_again, kept_stopped,
    may_start, plan_keep_stopped, prepare_keep_stopped, unit_findings,
};
pub(crate) use linger::{ASIDE as LINGER_ASIDE, LINGER, put_back as put_linger_back};
pub use linger::{
    is_visible as lingers_now, lingers, put_aside as put_linger_aside, remove as remove_linger,
};
pub(crate) use mounts::device_of;
pub(crate) use stop::kill_one;
pub use stop::{StopReport, stop_all};
pub use table::{Process, of_users};
pub(crate) use table::{is_roots, now_in_ticks, parent, pids, started, title};
pub use writers::{How, Stop, Writer, wait_no_writers, writers_below};

#[cfg(test)]
mod tests;
