//! Ends all processes of users: first asked, then killed, until none remains. By pidfd, so that no
//! stranger who got the number of one that ended is hit; against those that fork faster than they
//! are killed, by the user's control group and by one kill of everything that the user may signal.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ferry_failpoints::around;
use ferry_proto::{Fault, FaultClass};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::table::{Process, Status, of_users, pids};
use crate::run::Run;
use crate::{Layout, systemd};

/// How long killing may take before it is given up.
const KILLING: Duration = Duration::from_secs(10);
/// How long one look at the processes may wait for changes.
const ROUND: Duration = Duration::from_millis(50);

/// What `stop_all` did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopReport {
    /// Processes that ended when they were asked to.
    pub ended: Vec<Process>,
    /// Processes that had to be killed.
    pub killed: Vec<Process>,
}

/// A process held so that its number cannot come to mean another.
struct Held {
    process: Process,
    pidfd: OwnedFd,
}

/// Ends all processes of `uids` except `exclude`: SIGTERM, and after `grace` SIGKILL. Returns when none
/// is left. What starts them (units, cron, PHP pools, logins) must have been closed before.
///
/// # Errors
/// Transient, naming them, if some are still there after ten more seconds.
pub fn stop_all(
    layout: &Layout,
    uids: &[u32],
    exclude: &[u32],
    grace: Duration,
) -> Result<StopReport, Fault> {
    if uids.iter().any(|uid| *uid < 100) {
        return Err(Fault::bug("the processes of a system user were to be stopped"));
    }
    let failed = |e| Fault::io("the account's processes could not be ended", &e);
    let stop = || ask_then_kill(layout, uids, exclude, grace);
    around(|| "processes.stop".to_owned(), failed, stop)
}

fn ask_then_kill(
    layout: &Layout,
    uids: &[u32],
    exclude: &[u32],
    grace: Duration,
) -> Result<StopReport, Fault> {
    let mut seen: BTreeMap<u32, Process> = BTreeMap::new();
    let left = ask(uids, exclude, grace, &mut seen)?;
    let mut report = StopReport::default();
    let killed = kill(layout, uids, exclude, left)?;
    for (pid, process) in seen {
        if !killed.contains_key(&pid) {
            report.ended.push(process);
        }
    }
    report.killed = killed.into_values().collect();
    if systemd::is_booted(layout) {
        for uid in uids {
            // What is left of the sessions; without processes it ends at once. It may not exist.
            if let Err(fault) = systemd::stop_soon(layout, &format!("user-{uid}.slice")) {
                tracing::warn!(uid, %fault, "the user's slice could not be stopped");
            }
        }
    }
    Ok(report)
}

/// Takes hold of all processes of `uids`.
fn hold(uids: &[u32], exclude: &[u32]) -> Result<Vec<Held>, Fault> {
    let mut held = Vec::new();
    for pid in pids()? {
        if exclude.contains(&pid) || !Status::read(pid).is_some_and(|s| s.is_of(uids)) {
            continue;
        }
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            continue;
        };
        let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => continue,
            Err(e) => {
                return Err(Fault::io(format!("process {pid} could not be held"), &e.into()));
            }
        };
        // The number may have passed to another process before it was held: look again.
        if let Some(status) = Status::read(pid).filter(|s| s.is_of(uids)) {
            held.push(Held { process: status.describe(pid), pidfd });
        }
    }
    Ok(held)
}

/// Kills a process if it is still the one that `is_meant` finds it to be.
pub(crate) fn kill_one(pid: u32, is_meant: impl Fn(u32) -> bool) {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let held = number.and_then(|number| pidfd_open(number, PidfdFlags::empty()).ok());
    if let Some(pidfd) = held.filter(|_| is_meant(pid)) {
        // Gone already is what is wanted.
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }
}

fn signal(held: &[Held], signal: Signal) {
    for one in held {
        match pidfd_send_signal(&one.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(e) => tracing::warn!(process = %one.process, error = %e, "a signal was refused"),
        }
    }
}

/// Waits until one of `held` has ended, at most `limit`; those that have are taken out.
fn wait(held: &mut Vec<Held>, limit: Duration) -> Result<(), Fault> {
    let mut watched: Vec<PollFd<'_>> =
        held.iter().map(|h| PollFd::new(h.pidfd.as_fd(), PollFlags::POLLIN)).collect();
    let millis = u16::try_from(limit.as_millis().max(1)).unwrap_or(u16::MAX);
    match poll(&mut watched, PollTimeout::from(millis)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(e) => return Err(Fault::io("processes could not be waited for", &e.into())),
    }
    let ended: Vec<bool> = watched.iter().map(|fd| fd.any().unwrap_or(false)).collect();
    drop(watched);
    let mut ended = ended.into_iter();
    held.retain(|_| !ended.next().unwrap_or(false));
    Ok(())
}

/// Asks all of them to end, those that appear meanwhile too; those left at the end of the grace.
fn ask(
    uids: &[u32],
    exclude: &[u32],
    grace: Duration,
    seen: &mut BTreeMap<u32, Process>,
) -> Result<Vec<Held>, Fault> {
    let deadline = Instant::now() + grace;
    let mut asked: Vec<Held> = Vec::new();
    loop {
        let new: Vec<Held> = hold(uids, exclude)?
            .into_iter()
            .filter(|h| !asked.iter().any(|a| a.process.pid == h.process.pid))
            .collect();
        signal(&new, Signal::TERM);
        // A stopped process would not hear it.
        signal(&new, Signal::CONT);
        seen.extend(new.iter().map(|h| (h.process.pid, h.process.clone())));
        asked.extend(new);
        let left = deadline.saturating_duration_since(Instant::now());
        if asked.is_empty() || left.is_zero() {
            return Ok(asked);
        }
        wait(&mut asked, left.min(ROUND))?;
    }
}

fn kill(
    layout: &Layout,
    uids: &[u32],
    exclude: &[u32],
    left: Vec<Held>,
) -> Result<BTreeMap<u32, Process>, Fault> {
    let mut killed = BTreeMap::new();
    let deadline = Instant::now() + KILLING;
    let mut held = left;
    loop {
        if held.is_empty() {
            held = hold(uids, exclude)?;
        }
        if held.is_empty() {
            return Ok(killed);
        }
        killed.extend(held.iter().map(|h| (h.process.pid, h.process.clone())));
        signal(&held, Signal::KILL);
        for uid in uids {
            kill_group(layout, *uid);
            if exclude.is_empty() {
                kill_everything_of(*uid);
            }
        }
        if Instant::now() >= deadline {
            return Err(still_there(&of_users(uids, exclude)?));
        }
        wait(&mut held, ROUND)?;
        held = hold(uids, exclude)?;
    }
}

fn still_there(left: &[Process]) -> Fault {
    let names: Vec<String> = left.iter().take(5).map(Process::to_string).collect();
    Fault::new(
        FaultClass::Transient,
        format!("{} processes do not end or come back: {}", left.len(), names.join(", ")),
    )
    .remedy("find what starts them, or what they wait for (state D in ps), and end it")
}

/// Kills the user's control group at once, where the kernel can (5.14).
fn kill_group(layout: &Layout, uid: u32) {
    let file = layout.path(format!("/sys/fs/cgroup/user.slice/user-{uid}.slice/cgroup.kill"));
    if let Err(e) = std::fs::write(&file, "1")
        && !matches!(e.kind(), std::io::ErrorKind::NotFound)
    {
        tracing::debug!(uid, error = %e, "the user's control group could not be killed at once");
    }
}

/// Kills everything that `uid` may signal, in one call that no fork escapes: as that user, which cannot
/// hit anybody else.
fn kill_everything_of(uid: u32) {
    let result = Run::new("/usr/bin/setpriv")
        .named("processes.kill")
        .arguments(["--reuid", &uid.to_string(), "--clear-groups", "--"])
        .arguments(["/bin/sh", "-c", "kill -s KILL -- -1"])
        .timeout(Duration::from_secs(5))
        .output();
    if let Err(e) = result {
        tracing::warn!(uid, error = ?e, "the user's processes could not be killed at once");
    }
}
