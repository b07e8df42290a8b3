//! Deadlines that no change of the wall clock moves: CLOCK_BOOTTIME and the boot id. After a reboot
//! a deadline has passed, whatever its number says.

use std::os::fd::OwnedFd;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferry_failpoints::{Promise, broken, clock_offset_ms};
use ferry_proto::Fault;
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::{Deserialize, Serialize};

/// An instant in the future of one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Milliseconds of CLOCK_BOOTTIME.
    pub boottime_ms: u64,
}

impl Deadline {
    /// `after` from now.
    ///
    /// # Errors
    /// If the kernel does not say which boot this is.
    pub fn after(after: Duration) -> Result<Self, Fault> {
        let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        Ok(Self { boot_id: boot_id()?, boottime_ms: boottime_ms().saturating_add(after) })
    }

    /// How long is left; zero if it has passed, or was of another boot.
    pub fn left(&self) -> Duration {
        if broken(Promise::Deadline) {
            return Duration::MAX;
        }
        // If the boot cannot be told, the deadline counts as passed: the account goes back to where
        // it was served.
        if boot_id().is_ok_and(|id| id == self.boot_id) {
            Duration::from_millis(self.boottime_ms.saturating_sub(boottime_ms()))
        } else {
            Duration::ZERO
        }
    }

    /// How long ago it passed: zero if it has not, without end if it was of another boot.
    pub fn passed_for(&self) -> Duration {
        if !self.has_passed() {
            return Duration::ZERO;
        }
        if boot_id().is_ok_and(|id| id == self.boot_id) {
            Duration::from_millis(boottime_ms().saturating_sub(self.boottime_ms))
        } else {
            Duration::MAX
        }
    }

    /// Whether it has passed.
    pub fn has_passed(&self) -> bool {
        self.left().is_zero()
    }
}

/// The id of this boot.
///
/// # Errors
/// If the kernel does not tell.
pub fn boot_id() -> Result<String, Fault> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .map_err(|e| Fault::io("cannot read the boot id", &e))
}

/// Milliseconds of CLOCK_BOOTTIME.
pub fn boottime_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Milliseconds since 1970, by the wall clock.
pub fn unix_ms() -> i64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
    now.saturating_add(clock_offset_ms())
}

/// Moments with the same one are of one process of ours, or of some of which each went on where the one before had
/// stopped, and nobody has set the wall clock between them: what it stamped is in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Era {
    process: u64,
    sets: u64,
}

static WATCH: LazyLock<Option<Mutex<Watch>>> =
    LazyLock::new(|| Watch::until(NEVER).ok().map(Mutex::new));

/// The era now; none if the kernel does not tell when the clock is set.
pub fn era() -> Option<Era> {
    WATCH.as_ref().map(|watch| lock(watch).look())
}

/// Ends this process's part of the era. Answers it, and what the next one is told by when the clock is set.
pub fn hand_over() -> Option<(Era, OwnedFd)> {
    let next = Watch::until(NEVER).ok()?;
    let mut ended = WATCH.as_ref().map(|watch| std::mem::replace(&mut *lock(watch), next))?;
    Some((ended.look(), ended.timer))
}

/// Goes on with the era of the process before.
pub fn take_over(era: Era, timer: OwnedFd) {
    if let Some(watch) = WATCH.as_ref() {
        *lock(watch) = Watch { timer, era };
    }
}

fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In some hundred years, in seconds since 1970.
const NEVER: i64 = 1 << 33;

/// Is told when the wall clock is set, also when it is set back again before anyone looks.
struct Watch {
    timer: OwnedFd,
    era: Era,
}

impl Watch {
    /// By a timer that rings at `seconds` since 1970.
    fn until(seconds: i64) -> rustix::io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        let at = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: seconds, tv_nsec: 0 },
        };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        timerfd_settime(&timer, flags, &at)?;
        Ok(Self { timer, era: Era { process: rand::random(), sets: 0 } })
    }

    fn look(&mut self) -> Era {
        // Nothing to read: it neither rang nor was cancelled. All else counts as set.
        if rustix::io::read(&self.timer, &mut [0; 8]) != Err(Errno::AGAIN) {
            self.era.sets += 1;
        }
        self.era
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_era_lasts_until_the_timer_says_something() {
        let mut watch = Watch::until(NEVER).unwrap();
        assert_eq!(watch.look(), watch.look());
        assert_ne!(watch.look(), Watch::until(NEVER).unwrap().look());
        let mut rang = Watch::until(1).unwrap();
        let before = rang.era;
        assert_ne!(rang.look(), before);
    }

    #[test]
    fn a_deadline_of_another_boot_has_passed() {
        let mut deadline = Deadline::after(Duration::from_secs(60)).unwrap();
        assert!(deadline.left() > Duration::from_secs(50));
        assert_eq!(deadline.passed_for(), Duration::ZERO);
        deadline.boottime_ms = 0;
        let up = Duration::from_millis(boottime_ms());
        assert!(
            deadline.passed_for() >= up && deadline.passed_for() < up + Duration::from_secs(60)
        );
        deadline.boottime_ms = u64::MAX;
        deadline.boot_id = "another".to_owned();
        assert!(deadline.has_passed());
        assert_eq!(deadline.passed_for(), Duration::MAX);
    }

    #[test]
    fn a_deadline_passes_unless_a_test_says_that_it_never_does() {
        let dir = tempfile::tempdir().unwrap();
        let deadline = Deadline { boot_id: "another".to_owned(), boottime_ms: 0 };
        let _lab = ferry_failpoints::FakeLab::listen(dir.path(), |_| "go".to_owned()).unwrap();
        assert!(deadline.has_passed());
        std::fs::create_dir(dir.path().join("broken")).unwrap();
        std::fs::write(dir.path().join("broken/deadline"), "").unwrap();
        assert!(!deadline.has_passed());
    }
}
