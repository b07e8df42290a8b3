//! Waits between attempts: doubled each time and jittered, so that many agents do not come back to one
//! controller at once.

use std::time::Duration;

use ferry_proto::Fault;
use tokio_util::sync::CancellationToken;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// The waits of one row of attempts.
#[derive(Debug)]
pub struct Backoff {
    wait: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { wait: FIRST }
    }
}

impl Backoff {
    /// The next wait: between half of the doubled one and all of it.
    pub fn next(&mut self) -> Duration {
        let pause = self.wait.mul_f64(rand::random_range(0.5..1.0));
        self.wait = (self.wait * 2).min(LONGEST);
        pause
    }
}

/// Tries until it succeeds; none if `stop` fires first. Each failure is logged.
pub async fn until_done<T, F: Future<Output = Result<T, Fault>>>(
    stop: &CancellationToken,
    attempt: impl Fn() -> F,
) -> Option<T> {
    let mut backoff = Backoff::default();
    loop {
        let fault = match stop.run_until_cancelled(attempt()).await? {
            Ok(done) => return Some(done),
            Err(fault) => fault,
        };
        let pause = backoff.next();
        tracing::error!(again_in_ms = pause.as_millis(), class = %fault.class, "{fault}");
        stop.run_until_cancelled(tokio::time::sleep(pause)).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_are_jittered_and_bounded() {
        let rows: Vec<Vec<Duration>> = (0..20)
            .map(|_| {
                let mut backoff = Backoff::default();
                (0..10).map(|_| backoff.next()).collect()
            })
            .collect();
        for row in &rows {
            for (n, pause) in row.iter().enumerate() {
                let whole = (FIRST * (1 << n)).min(LONGEST);
                assert!(*pause >= whole / 2 && *pause < whole, "{n}: {pause:?} of {whole:?}");
            }
        }
        for n in 0..10 {
            let waits: std::collections::HashSet<_> = rows.iter().map(|r| r[n]).collect();
            assert!(waits.len() > 10, "agents come back together: {waits:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_go_on_until_one_succeeds_or_stop_fires() {
        let stop = CancellationToken::new();
        let tried = std::cell::Cell::new(0);
        let attempt = || async {
            tried.set(tried.get() + 1);
            if tried.get() < 5 { Err(Fault::transient("not yet")) } else { Ok(tried.get()) }
        };
        assert_eq!(until_done(&stop, attempt).await, Some(5));
        stop.cancel();
        let never = || async { Err::<(), _>(Fault::transient("never")) };
        assert_eq!(until_done(&stop, never).await, None);
    }
}
