//! How fast bytes go, and how long the rest will take, from what a step reports now and then. Pure:
//! the caller brings the clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The rate is that of so long ago until now.
const WINDOW: Duration = Duration::from_secs(15);

/// Reports closer together than this count as one, so that the window holds a bounded number.
const APART: Duration = Duration::from_millis(250);

/// Measures one step.
#[derive(Debug, Default)]
pub struct Meter {
    samples: VecDeque<(Instant, u64)>,
}

impl Meter {
    /// Takes a report.
    pub fn report(&mut self, now: Instant, bytes: u64) {
        // Another pass begins at nothing again.
        if self.samples.back().is_some_and(|(_, last)| bytes < *last) {
            self.samples.clear();
        }
        let before_last = self.samples.len().checked_sub(2).map(|i| self.samples[i].0);
        if before_last.is_some_and(|at| now.duration_since(at) < APART) {
            self.samples.pop_back();
        }
        self.samples.push_back((now, bytes));
        // One sample from before the window stays: the rate needs two ends.
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Bytes a second; none as long as nobody can tell.
    #[allow(clippy::cast_precision_loss)]
    pub fn rate(&self) -> Option<f64> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let seconds = last.0.duration_since(first.0).as_secs_f64();
        (seconds >= 0.5 && last.1 > first.1).then(|| (last.1 - first.1) as f64 / seconds)
    }

    /// Seconds until `total` is reached; none as long as nobody can tell.
    #[allow(clippy::cast_precision_loss)]
    pub fn seconds_left(&self, total: u64) -> Option<f64> {
        let (_, done) = self.samples.back()?;
        Some(total.checked_sub(*done)? as f64 / self.rate()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_rest_come_from_the_last_while() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut meter = Meter::default();
        assert_eq!(meter.rate(), None);
        meter.report(at(0), 0);
        assert_eq!(meter.rate(), None);
        meter.report(at(10), 1000);
        assert_eq!(meter.rate(), Some(100.0));
        assert_eq!(meter.seconds_left(3000), Some(20.0));
        assert_eq!(meter.seconds_left(500), None);
        // Much faster since: the slow beginning is forgotten.
        for s in 11..60 {
            meter.report(at(s), 1000 + (s - 10) * 5000);
        }
        assert_eq!(meter.rate(), Some(5000.0));
        // Another pass.
        meter.report(at(60), 10);
        assert_eq!(meter.rate(), None);
    }

    #[test]
    fn reports_in_quick_succession_are_bounded() {
        let start = Instant::now();
        let mut meter = Meter::default();
        for ms in 0..100_000 {
            meter.report(start + Duration::from_millis(ms), ms);
        }
        assert!(meter.samples.len() < 70, "{}", meter.samples.len());
        assert!((meter.rate().unwrap() - 1000.0).abs() < 1.0);
    }
}
