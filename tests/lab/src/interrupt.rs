//! Ctrl-C and SIGTERM: noticed by a flag, so that the work stops at a place where
//! it can clean up after itself.
//!
//! Nothing here ends the process. Everything that waits calls [`check`], which turns
//! the signal into an error; the error unwinds through the guards that take the lab
//! down. Those guards run [`shielded`], so that an impatient second Ctrl-C does not
//! leave half a lab behind.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

thread_local! {
    static SHIELDED: Cell<bool> = const { Cell::new(false) };
}

/// The error that a signal becomes.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted by a signal")
    }
}

impl std::error::Error for Interrupted {}

/// Starts to notice signals. Once per process, before anything is made.
pub fn install() -> Result<()> {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag))
            .with_context(|| format!("watching for signal {signal}"))?;
    }
    Ok(())
}

/// Fails once a signal has come, unless this thread is cleaning up.
pub fn check() -> Result<()> {
    let interrupted = INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed));
    if interrupted && !SHIELDED.get() {
        return Err(Interrupted.into());
    }
    Ok(())
}

/// Runs a clean-up that a signal must not cut short, on this thread.
pub fn shielded<T>(clean_up: impl FnOnce() -> T) -> T {
    let before = SHIELDED.replace(true);
    let result = clean_up();
    SHIELDED.set(before);
    result
}
