//! Waiting for a condition of the world, with a limit and an ear for signals.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::interrupt;

const PAUSE: Duration = Duration::from_millis(50);
/// A look that takes long is made more seldom: whoever waits leaves most of the machine to what they wait
/// for.
const SHARE: u32 = 5;
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

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
        let began = Instant::now();
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        let pause = (began.elapsed() * SHARE).clamp(PAUSE, LONGEST_PAUSE);
        interrupt::check()?;
        if Instant::now() >= deadline {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        thread::sleep(pause);
    }
}
