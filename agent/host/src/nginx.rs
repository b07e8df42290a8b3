//! The web server of this host: checks its configuration, makes it take a new one, and waits until
//! it has. Knows no accounts.
//!
//! There is one configuration for all accounts, so there is one lock: changing files, checking and
//! reloading is done by one at a time.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferry_proto::Fault;

use crate::processes::{is_roots, now_in_ticks, parent, pids, started, title};
use crate::run::Run;
use crate::{Layout, http, systemd};

const UNIT: &str = "nginx.service";
/// How long workers may take to turn over.
const TURNOVER: Duration = Duration::from_secs(20);
/// The longest pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What to do if the web server does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IfDown {
    /// Leave it so; it reads its configuration when it starts.
    Leave,
    /// Start it.
    Start,
}

/// Keeps others from changing the web server's configuration.
pub(crate) fn lock() -> MutexGuard<'static, ()> {
    // It guards files, not memory: what a thread that panicked has left is found on the disk.
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks the configuration as it is on disk.
pub(crate) fn check(layout: &Layout) -> Result<(), Fault> {
    test(layout, &[])
}

/// Checks another configuration: it has no effect.
pub(crate) fn check_file(layout: &Layout, file: &Path) -> Result<(), Fault> {
    test(layout, &["-c".as_ref(), file.as_os_str()])
}

fn test(layout: &Layout, more: &[&OsStr]) -> Result<(), Fault> {
    Run::new(&layout.programs.nginx)
        .argument("-t")
        .argument("-q")
        .arguments(more)
        .looking()
        .succeed("nginx does not accept its configuration")
        .map(|_| ())
        .map_err(|fault| fault.remedy("run nginx -t and mend what it names"))
}

/// The id of the running master.
fn master(layout: &Layout) -> Option<u32> {
    let pid = fs::read_to_string(layout.path("/run/nginx.pid")).ok()?.trim().parse().ok()?;
    (is_roots(pid) && title(pid)?.starts_with("nginx: master")).then_some(pid)
}

/// Whether the web server runs.
pub(crate) fn is_running(layout: &Layout) -> bool {
    master(layout).is_some()
}

/// Whether the process is a worker of `master`; then, whether it takes no more connections.
fn worker(pid: u32, master: u32) -> Option<bool> {
    let title = title(pid)?;
    // Until it has given itself a title, a worker has its master's.
    let titled = ["nginx: worker process", "nginx: master process"];
    let is_worker = titled.iter().any(|t| title.starts_with(t)) && parent(pid)? == master;
    is_worker.then(|| title.contains("shutting down"))
}

fn workers(master: u32) -> Result<Vec<u32>, Fault> {
    Ok(pids()?.into_iter().filter(|pid| worker(*pid, master).is_some()).collect())
}

/// How many workers there are.
#[cfg(test)]
pub(crate) fn count_workers(layout: &Layout) -> usize {
    master(layout).and_then(|master| workers(master).ok()).map_or(0, |workers| workers.len())
}

/// Makes the web server take the configuration on disk, which has been checked, and waits until every
/// worker that takes connections works by it. Workers of the old configuration may still finish
/// requests.
pub(crate) fn apply(layout: &Layout, if_down: IfDown) -> Result<(), Fault> {
    let Some(master) = master(layout) else {
        if if_down == IfDown::Start {
            systemd::start(layout, UNIT).map_err(|f| f.remedy("look at: journalctl -u nginx"))?;
        }
        return Ok(());
    };
    let deadline = Instant::now() + TURNOVER;
    let mut before = workers(master)?;
    // One that has just started has none yet, and they would come with the old configuration, unseen.
    while before.is_empty() && Instant::now() < deadline {
        std::thread::sleep(PAUSE);
        before = workers(master)?;
    }
    let mark = now_in_ticks();
    systemd::reload(layout, UNIT)?;
    loop {
        // Nor one that the master was still starting when they were counted.
        let old = |pid: &u32| before.contains(pid) || started(*pid).is_some_and(|at| at < mark);
        let takes = |pid: &u32| worker(*pid, master) == Some(false);
        if !before.is_empty() && !workers(master)?.iter().any(|pid| old(pid) && takes(pid)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Fault::transient(format!(
                "nginx has not taken its new configuration within {} s",
                TURNOVER.as_secs()
            ))
            .remedy("look at /var/log/nginx/error.log"));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Waits, at most for `limit`, for the workers of earlier configurations: they close at once the
/// connections that wait for nothing, and the others after the answer that is due. True if none is
/// left.
pub(crate) fn wait_old_workers(layout: &Layout, limit: Duration) -> Result<bool, Fault> {
    let deadline = Instant::now() + limit;
    loop {
        let Some(master) = master(layout) else { return Ok(true) };
        if !workers(master)?.iter().any(|pid| worker(*pid, master) == Some(true)) {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
}

/// The path at which a server block of Ferry says which one it is, to this host only.
pub(crate) const PROBE: &str = "/.well-known/ferry-probe";

/// The location that answers the probe with `token`.
pub(crate) fn probe_location(token: &str) -> String {
    format!(
        "    location = {PROBE} {{\n        if ($remote_addr != 127.0.0.1) {{ return 404; }}\n\
         \x20       default_type text/plain;\n        return 200 \"{token}\";\n    }}\n"
    )
}

/// A token that stands for exactly this text.
pub(crate) fn token(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..24].to_owned()
}

/// Whether `host` is answered by the server block with `token`, on a loopback port.
pub(crate) fn probe(port: u16, host: &str, token: &str) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // Names with a wildcard stand for any name below.
    let host = host.strip_prefix("*.").map_or(host.to_owned(), |h| format!("ferry-probe.{h}"));
    http::get(address, &host, PROBE).is_ok_and(|a| a.status == 200 && a.text.ends_with(token))
}

/// Probes until the right server block answers.
pub(crate) fn wait_probe(port: u16, host: &str, token: &str) -> Result<(), Fault> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !probe(port, host, token) {
        if Instant::now() >= deadline {
            return Err(Fault::precondition(format!(
                "nginx does not answer for {host} by the configuration that Ferry gave it"
            ))
            .remedy(format!(
                "look for another server block with server_name {host}, or one that listens on \
                 an address instead of all: nginx -T"
            )));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
