//! Deadlines that no change of the wall clock moves: CLOCK_BOOTTIME and the boot id. After a reboot
//! a deadline has passed, whatever its number says.

use std::time::Duration;

use ferry_proto::Fault;
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
        // If the boot cannot be told, the deadline counts as passed: the account goes back to where
        // it was served.
        if boot_id().is_ok_and(|id| id == self.boot_id) {
            Duration::from_millis(self.boottime_ms.saturating_sub(boottime_ms()))
        } else {
            Duration::ZERO
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
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_of_another_boot_has_passed() {
        let mut deadline = Deadline::after(Duration::from_secs(60)).unwrap();
        assert!(deadline.left() > Duration::from_secs(50));
        deadline.boot_id = "another".to_owned();
        assert!(deadline.has_passed());
    }
}
