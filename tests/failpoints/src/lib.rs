//! Failpoints: places in Ferry's programs at which the lab's fault tests strike. Without the feature
//! `enabled`, which only the lab's own builds have, a failpoint is nothing: it costs no instruction.
//!
//! A program that comes to a failpoint tells the lab, which listens on [`SOCKET`], one line,
//! `PROGRAM POINT`, and waits for the answer, one line: `go`, or `errno N`, an error of the operating
//! system that what follows is to fail with. So whatever the lab does to the host before it answers (it
//! kills the program, cuts the power, fills the disk) strikes exactly there. Where nobody listens the
//! program goes on: hosts on which no fault is tested run the same build.
//!
//! Points are named after what is about to be written or changed, `ledger.account.fenced.before`: the
//! lab learns them from a run without faults, so that a new write is a new test. So they stand where all
//! writes and changes of a kind come by, and a name holds nothing that differs from run to run: no ids,
//! no numbers of processes, no names of temporary files.

#[cfg(feature = "enabled")]
mod enabled;
#[cfg(feature = "enabled")]
mod fake;

use std::fmt::Arguments;
use std::io;

#[cfg(feature = "enabled")]
pub use fake::FakeLab;

/// What of the lab is on a host.
pub const DIRECTORY: &str = "/run/ferry-faults";
/// Where the lab listens.
pub const SOCKET: &str = "/run/ferry-faults/lab.sock";
/// Where a file named after a [`Promise`] says that it is not kept.
pub const BROKEN: &str = "/run/ferry-faults/broken";
/// Where a number says how many milliseconds an agent's clock is ahead of its host's, which cannot be set.
pub const CLOCK: &str = "/run/ferry-faults/clock_offset_ms";
/// Whether there are failpoints in this build.
pub const ENABLED: bool = cfg!(feature = "enabled");

/// What keeps an account whole. The lab breaks each to see that its tests find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// A fence closes what it says.
    Fence,
    /// A fence ends at its deadline.
    Deadline,
    /// The guard closes at boot what the ledger calls closed.
    Guard,
    /// A command of an older epoch, or of an older generation of the controller, is refused.
    Epoch,
}

impl Promise {
    /// As the file is named.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fence => "fence",
            Self::Deadline => "deadline",
            Self::Guard => "guard",
            Self::Epoch => "epoch",
        }
    }
}

/// Comes to a failpoint, whose name is formatted as by `format!`. Gives `io::Result<()>`: the error
/// with which the lab wants what follows to fail.
#[macro_export]
macro_rules! reach {
    ($($name:tt)*) => {
        if $crate::ENABLED {
            $crate::reach(format_args!($($name)*))
        } else {
            ::std::io::Result::Ok(())
        }
    };
}

/// What [`reach!`] does where there are failpoints. Blocks until the lab answers.
///
/// # Errors
/// The one that the lab asks for.
pub fn reach(point: Arguments<'_>) -> io::Result<()> {
    told(&point)
}

/// Does `work` between the failpoints `NAME.before` and `NAME.after`. An error that the lab asks for at
/// the first takes the place of the work, at the second that of its success; `failed` says what it is
/// to whoever wanted the work done.
///
/// # Errors
/// The work's, and the lab's.
pub fn around<T, E>(
    name: impl FnOnce() -> String,
    failed: impl Fn(io::Error) -> E,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    if !ENABLED {
        return work();
    }
    let name = name();
    reach(format_args!("{name}.before")).map_err(&failed)?;
    let done = work()?;
    reach(format_args!("{name}.after")).map_err(&failed)?;
    Ok(done)
}

/// The same for work that is awaited. While the lab does not answer a thread of its own waits: what
/// else the program does goes on, its deadlines among it.
///
/// # Errors
/// The work's, and the lab's.
pub fn around_async<T, E>(
    name: impl FnOnce() -> String,
    failed: impl Fn(io::Error) -> E,
    work: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>> {
    #[cfg(feature = "enabled")]
    {
        // Apart: whoever awaits it must not become larger by it.
        Box::pin(enabled::around(name, failed, work))
    }
    #[cfg(not(feature = "enabled"))]
    {
        drop((name, failed));
        work
    }
}

/// Whether a promise is to be broken, to show that the tests find out.
pub fn broken(promise: Promise) -> bool {
    ENABLED && is_broken(promise)
}

/// How many milliseconds the clock is to be ahead of the host's.
pub fn clock_offset_ms() -> i64 {
    if ENABLED { clock_offset() } else { 0 }
}

#[cfg(feature = "enabled")]
use enabled::{clock_offset, is_broken, told};

#[cfg(not(feature = "enabled"))]
fn clock_offset() -> i64 {
    0
}

#[cfg(not(feature = "enabled"))]
fn told(_: &Arguments<'_>) -> io::Result<()> {
    Ok(())
}

#[cfg(not(feature = "enabled"))]
fn is_broken(_: Promise) -> bool {
    false
}
