//! Waiting for a condition of the world, with a limit and an ear for signals.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::interrupt;

const PAUSE: Duration = Duration::from_millis(50);

/// Asks `probe` again and again until it answers, for at most `limit`.
///
/// `what` completes the sentence "waited N s for ..." when it never does.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        interrupt::check()?;
        if Instant::now() >= deadline {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        thread::sleep(PAUSE);
    }
}
