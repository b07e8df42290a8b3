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
//! lab learns them from a run without faults, so that a new write is a new test.

use std::fmt::Arguments;
use std::io;

/// Where the lab listens.
pub const SOCKET: &str = "/run/ferry-faults/lab.sock";
/// Where a file named after a [`Promise`] says that it is not kept.
pub const BROKEN: &str = "/run/ferry-faults/broken";
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
    /// An older epoch is refused.
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

/// What [`reach!`] does where there are failpoints.
///
/// # Errors
/// The one that the lab asks for.
pub fn reach(point: Arguments<'_>) -> io::Result<()> {
    if ENABLED { told(&point.to_string()) } else { Ok(()) }
}

/// Whether a promise is to be broken, to show that the tests find out.
pub fn broken(promise: Promise) -> bool {
    ENABLED && std::path::Path::new(BROKEN).join(promise.name()).exists()
}

fn told(point: &str) -> io::Result<()> {
    use std::io::{BufRead, BufReader, Write};
    let Ok(mut lab) = std::os::unix::net::UnixStream::connect(SOCKET) else { return Ok(()) };
    let mut answer = String::new();
    let asked = lab
        .write_all(format!("{} {point}\n", program()).as_bytes())
        .and_then(|()| BufReader::new(&lab).read_line(&mut answer));
    let errno = answer.trim_end().strip_prefix("errno ").and_then(|n| n.parse().ok());
    match (asked, errno) {
        (Ok(_), Some(errno)) => Err(io::Error::from_raw_os_error(errno)),
        // The lab has gone, or says `go`.
        _ => Ok(()),
    }
}

/// The name of this program's file.
fn program() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
