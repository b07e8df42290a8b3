//! What the agent itself leaves: files beside its ledger, and programs that it started.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::artefact::{Artefact, Kind};
use ferry_proto::ids::JobId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Deserialize;

use crate::ledger::{Account, Said, Standing};

/// The control group that the agent and its children are in, at the end of its path.
pub const SERVICE: &str = "/ferry-agent.service";
/// A move's copying and arming are not that far apart.
const LONG: Duration = Duration::from_secs(30 * 86_400);

/// What is in the state directory besides what belongs there.
///
/// # Errors
/// If it cannot be looked into.
pub fn files(state_directory: &Path) -> Result<Vec<Artefact>, Fault> {
    let mut found = Vec::new();
    let next = state_directory.join("ledger.next");
    if next.exists() {
        found.push(Artefact::new(Kind::Temporary, next.display()));
    }
    for path in paths(&state_directory.join("copies"))? {
        let account = path.file_stem().unwrap_or_default().to_string_lossy();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => found.push(Artefact::new(Kind::Copy, path.display()).of(&account)),
            Some("new") => found.push(Artefact::new(Kind::Temporary, path.display())),
            _ => {}
        }
    }
    // Records of passes and of allowances are replaced by a rename, too, and so is what an agent leaves to the next
    // one, which takes it away.
    for directory in ["unsynced", "allowances", "handover"] {
        let all = paths(&state_directory.join(directory))?;
        let half = all.iter().filter(|path| path.extension().is_some_and(|e| e == "new"));
        found.extend(half.map(|path| Artefact::new(Kind::Temporary, path.display())));
    }
    for path in paths(&state_directory.join("identity"))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') && name.ends_with(".new") {
            found.push(Artefact::new(Kind::Temporary, path.display()));
        }
    }
    Ok(found)
}

fn paths(directory: &Path) -> Result<Vec<PathBuf>, Fault> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Fault::io(format!("cannot look into {}", directory.display()), &e)),
    }
}

/// Whether what is known of a copy can still be of a move: one that has copied and not yet armed shows
/// nowhere else.
pub fn may_be_of_a_move(said: &Said, account: Option<&Account>, copy: &Path) -> bool {
    #[derive(Deserialize)]
    struct Of {
        job: JobId,
    }
    match account.map(|a| &a.standing) {
        Some(Standing::Armed { .. } | Standing::Fenced { .. }) => return true,
        None | Some(Standing::Serving) => {}
        Some(_) => return false,
    }
    let of = fs::read(copy).ok().and_then(|bytes| serde_json::from_slice::<Of>(&bytes).ok());
    let age = fs::metadata(copy).and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
    of.is_some_and(|of| !said.undone.contains(&of.job)) && age.is_none_or(|age| age < LONG)
}

/// Programs of the agent's service that are still there though it is not.
///
/// # Errors
/// If the process table cannot be read.
pub fn children(service: &str) -> Result<Vec<Artefact>, Fault> {
    let all = fs::read_dir("/proc").map_err(|e| Fault::io("cannot read the process table", &e))?;
    let numbers = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let members: Vec<i32> = numbers.filter(|pid| is_of(*pid, service)).collect();
    if members.iter().any(|pid| is_agent(*pid)) {
        return Ok(Vec::new());
    }
    let own = std::process::id().cast_signed();
    let left = members.into_iter().filter(|pid| *pid != own);
    Ok(left.map(|pid| Artefact::new(Kind::Child, format!("{pid} {}", name(pid)))).collect())
}

/// Whether it runs in the service's control group. One that has ended and is not waited for yet has no
/// program any more.
fn is_of(pid: i32, service: &str) -> bool {
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    cgroup.lines().any(|line| line.ends_with(service))
        && fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

fn is_agent(pid: i32) -> bool {
    name(pid) == "ferry-agent"
}

fn name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Removes a file that was found.
///
/// # Errors
/// What removing failed of.
pub fn remove(state_directory: &Path, artefact: &Artefact) -> Result<(), Fault> {
    // Only what is found again.
    if !files(state_directory)?.contains(artefact) {
        return Ok(());
    }
    match fs::remove_file(&artefact.place) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Fault::io(format!("cannot remove {}", artefact.place), &e))
        }
        _ => Ok(()),
    }
}

/// How long a killed program may take to end, in milliseconds.
const END_MS: u16 = 5000;

/// Ends a program, held so that its number cannot come to mean another.
///
/// # Errors
/// If it may not be signalled.
pub fn end(service: &str, artefact: &Artefact) -> Result<(), Fault> {
    let number = artefact.place.split(' ').next().and_then(|n| n.parse().ok());
    let held = number.and_then(Pid::from_raw).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let Some(Ok(held)) = held else { return Ok(()) };
    if !children(service)?.contains(artefact) {
        return Ok(());
    }
    match pidfd_send_signal(&held, Signal::KILL) {
        Ok(()) => {}
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(e) => return Err(Fault::io(format!("cannot end {artefact}"), &e.into())),
    }
    // Whoever looks again must not meet it while it ends. If it does not, it is found again.
    let mut ended = [PollFd::new(held.as_fd(), PollFlags::POLLIN)];
    poll(&mut ended, PollTimeout::from(END_MS))
        .map(drop)
        .map_err(|e| Fault::io(format!("cannot wait for the end of {artefact}"), &e.into()))
}
