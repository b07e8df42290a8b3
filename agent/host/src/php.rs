//! PHP-FPM on this host: its versions, its pools, and making it take a new configuration. Knows no
//! accounts.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};

use crate::processes::{is_roots, kill_one, parent, pids, title};
use crate::run::Run;
use crate::{Finding, Layout, durable, systemd};

/// How long a reload may take to show.
const TURNOVER: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);
/// How long a reload should wait for running requests at most: well within [`TURNOVER`].
const ADVISED: Duration = Duration::from_secs(10);
/// How long PHP-FPM may take to hear a signal. It does within a millisecond unless it is stopped.
const HEARING: Duration = Duration::from_millis(500);

/// The versions of PHP-FPM that are installed, the newest first.
pub(crate) fn versions(layout: &Layout) -> Vec<String> {
    let mut found: Vec<(u32, u32)> = fs::read_dir(layout.path("/etc/php"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| parse(entry.file_name().to_str()?))
        .filter(|(major, minor)| {
            let version = format!("{major}.{minor}");
            pools(layout, &version).is_dir() && program(layout, &version).exists()
        })
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.into_iter().map(|(major, minor)| format!("{major}.{minor}")).collect()
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Where the pools of a version are.
pub(crate) fn pools(layout: &Layout, version: &str) -> PathBuf {
    layout.path(format!("/etc/php/{version}/fpm/pool.d"))
}

fn program(layout: &Layout, version: &str) -> PathBuf {
    let mut name = layout.programs.php_fpm.clone().into_os_string();
    name.push(version);
    PathBuf::from(name)
}

fn unit(version: &str) -> String {
    format!("php{version}-fpm.service")
}

/// Checks the configuration of a version as it is on disk.
pub(crate) fn check(layout: &Layout, version: &str) -> Result<(), Fault> {
    test(layout, version, &[])
}

/// Checks another configuration: it has no effect.
pub(crate) fn check_file(layout: &Layout, version: &str, file: &Path) -> Result<(), Fault> {
    test(layout, version, &["-y".as_ref(), file.as_os_str()])
}

fn test(layout: &Layout, version: &str, more: &[&OsStr]) -> Result<(), Fault> {
    Run::new(program(layout, version))
        .argument("-t")
        .arguments(more)
        .looking()
        .succeed(&format!("PHP-FPM {version} does not accept its configuration"))
        .map(|_| ())
        .map_err(|fault| fault.remedy(format!("run php-fpm{version} -t and mend what it names")))
}

/// A finding if a reload ends the running requests of all sites, as Debian's configuration has it, or
/// waits so long for them that a site which is to be opened might be given up.
pub(crate) fn harshness(layout: &Layout, version: &str) -> Option<Finding> {
    let file = layout.path(format!("/etc/php/{version}/fpm/php-fpm.conf"));
    let text = durable::read(&file, 1 << 20).ok().flatten().unwrap_or_default();
    let does = match control_timeout(&String::from_utf8_lossy(&text)) {
        0 => "ends running requests of all sites when it is reloaded".to_owned(),
        seconds if seconds <= ADVISED.as_secs() => return None,
        seconds => format!(
            "answers nobody for up to {seconds} s when it is reloaded while requests of any site run"
        ),
    };
    Some(Finding::new(
        format!("PHP-FPM {version} {does}, which a move does"),
        format!(
            "set process_control_timeout = {}s in /etc/php/{version}/fpm/php-fpm.conf",
            ADVISED.as_secs()
        ),
    ))
}

/// For how many seconds a reload waits for running requests.
fn control_timeout(text: &str) -> u64 {
    let mut settings = text.lines().filter_map(|line| line.split(';').next()?.split_once('='));
    // The last one counts.
    let value = settings.rfind(|(key, _)| key.trim() == "process_control_timeout");
    let value = value.map_or("0", |(_, value)| value.trim().trim_matches('"'));
    let number = value.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &value[number.len()..] {
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => 1,
    };
    number.parse::<u64>().unwrap_or_default().saturating_mul(unit)
}

/// Whether it runs.
pub(crate) fn is_active(layout: &Layout, version: &str) -> Result<bool, Fault> {
    systemd::is_active(layout, &unit(version))
}

/// Makes it take the configuration on disk, which has been checked; starts it if it does not run.
/// Returns before it has: wait for a pool to come or go.
pub(crate) fn apply(layout: &Layout, version: &str) -> Result<(), Fault> {
    if is_active(layout, version)? {
        systemd::reload(layout, &unit(version))
    } else {
        systemd::start(layout, &unit(version))
    }
    .map_err(|f| f.remedy(format!("look at: journalctl -u php{version}-fpm")))
}

/// What sockets do at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Somebody takes connections.
    Listening,
    /// Connections that have been taken, or wait for it.
    Connected,
}

/// Whether a socket is `doing` that at `address`: a socket's path, `PORT` or `HOST:PORT`. Looked up in the
/// kernel's tables: a connection would make an on-demand pool start a process.
fn any(address: &str, doing: Doing) -> bool {
    let table = |name: &str| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    if address.starts_with('/') {
        return table("unix").lines().any(|line| unix(line, doing) == Some(address));
    }
    let Some(Ok(port)) = address.rsplit(':').next().map(str::parse::<u16>) else {
        return false;
    };
    let port = format!(":{port:04X}");
    let state = match doing {
        Doing::Listening => "0A",
        Doing::Connected => "01",
    };
    ["tcp", "tcp6"].iter().any(|name| {
        table(name).lines().any(|line| {
            let mut fields = line.split_whitespace();
            fields.nth(1).is_some_and(|a| a.ends_with(&port)) && fields.nth(1) == Some(state)
        })
    })
}

/// The path of the socket in a line of /proc/net/unix, if it is `doing` that.
fn unix(line: &str, doing: Doing) -> Option<&str> {
    /// SO_ACCEPTCON in the kernel's flags.
    const LISTENING: u32 = 0x1_0000;
    let mut fields = line.split_whitespace();
    let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
    // SS_CONNECTING, or SS_CONNECTED.
    let connected = matches!(fields.nth(1)?, "02" | "03");
    let path = fields.nth(1)?;
    let fits = match doing {
        Doing::Listening => flags & LISTENING != 0,
        Doing::Connected => connected,
    };
    fits.then_some(path)
}

/// Whether somebody takes connections at `address`.
pub(crate) fn is_listening(address: &str) -> bool {
    any(address, Doing::Listening)
}

/// Waits until a pool has answered all that it was asked, at most until `deadline`; true if it has. The
/// web server opens a connection for each request and closes it after the answer.
pub(crate) fn wait_idle(address: &str, deadline: Instant) -> bool {
    loop {
        if !any(address, Doing::Connected) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}

fn wait(what: &str, mut done: impl FnMut() -> Result<bool, Fault>) -> Result<(), Fault> {
    let deadline = Instant::now() + TURNOVER;
    while !done()? {
        if Instant::now() >= deadline {
            return Err(Fault::transient(format!("{what} within {} s", TURNOVER.as_secs()))
                .remedy("look at the journal of PHP-FPM"));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Waits until a pool takes connections.
pub(crate) fn wait_listening(address: &str) -> Result<(), Fault> {
    let what = format!("the PHP pool at {address} does not take connections");
    wait(&what, || Ok(is_listening(address)))
}

/// Waits until a pool that PHP-FPM has just been told to let go of is gone, or cannot work any more;
/// requests that still run are ended.
///
/// While PHP-FPM waits for other pools' running requests (`process_control_timeout`) it still holds
/// the socket, but starts no process for any pool; so others' requests do not hold this up.
pub(crate) fn wait_gone(pool: &Pool) -> Result<(), Fault> {
    let told = Instant::now();
    wait(&format!("PHP-FPM has not let go of its pool {}", pool.name), || {
        if told.elapsed() < HEARING {
            return is_gone(pool);
        }
        let working = workers(pool)?;
        for pid in &working {
            kill_one(*pid, |pid| is_worker(pid, pool));
        }
        Ok(working.is_empty())
    })
}

/// Whether nobody listens for a pool and nothing works for it.
pub(crate) fn is_gone(pool: &Pool) -> Result<bool, Fault> {
    Ok(!pool.listen.as_deref().is_some_and(is_listening) && workers(pool)?.is_empty())
}

/// The processes that work for a pool.
pub(crate) fn workers(pool: &Pool) -> Result<Vec<u32>, Fault> {
    Ok(pids()?.into_iter().filter(|pid| is_worker(*pid, pool)).collect())
}

/// By its title and its parent: any process can call itself a worker, but not be root's child.
fn is_worker(pid: u32, pool: &Pool) -> bool {
    title(pid).is_some_and(|t| t == format!("php-fpm: pool {}", pool.name))
        && parent(pid).is_some_and(|master| {
            is_roots(master) && title(master).is_some_and(|t| t.starts_with("php-fpm: master"))
        })
}

/// A pool, as its configuration file defines it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pool {
    pub(crate) name: String,
    pub(crate) listen: Option<String>,
}

/// The pools that a configuration file defines.
pub(crate) fn pools_in(text: &str) -> Vec<Pool> {
    let mut found: Vec<Pool> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some((name, _)) = line.strip_prefix('[').and_then(|l| l.split_once(']')) {
            found.push(Pool { name: name.trim().to_owned(), listen: None });
        } else if let Some((key, value)) = line.split_once('=')
            && key.trim() == "listen"
            && let Some(pool) = found.last_mut()
        {
            let value = value.split(';').next().unwrap_or_default();
            let value = value.trim().trim_matches('"').replace("$pool", &pool.name);
            pool.listen = Some(value);
        }
    }
    found.retain(|pool| pool.name != "global");
    found
}

/// A pool that does nothing: PHP-FPM does not run without one.
pub(crate) fn idle_pool(name: &str, layout: &Layout) -> String {
    let socket = layout.path(format!("/run/php/{name}.sock"));
    format!(
        "; Made by Ferry: PHP-FPM does not run without a pool. Nothing connects to it.\n\
         [{name}]\nuser = www-data\ngroup = www-data\nlisten = {}\nlisten.mode = 0600\n\
         pm = ondemand\npm.max_children = 1\n",
        socket.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_of_a_usual_file_are_found() {
        let text = "; [none]\n[global]\npid = x\n[shop]\nuser = shop\n\
                    listen.owner = a\nlisten = /run/php/$pool.sock ; here\n[api]\nlisten=127.0.0.1:9001\n";
        let pool = |name: &str, listen: &str| Pool {
            name: name.to_owned(),
            listen: Some(listen.to_owned()),
        };
        assert_eq!(
            pools_in(text),
            [pool("shop", "/run/php/shop.sock"), pool("api", "127.0.0.1:9001")]
        );
    }

    #[test]
    fn a_reload_should_wait_for_running_requests_but_not_for_long() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::below(directory.path());
        let file = layout.path("/etc/php/8.2/fpm/php-fpm.conf");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        for (value, said) in [
            (";process_control_timeout = 10", Some("ends running requests")),
            ("process_control_timeout = 0", Some("ends running requests")),
            ("process_control_timeout=10", None),
            ("process_control_timeout = 10s ; as advised", None),
            ("process_control_timeout = \"10s\"", None),
            ("process_control_timeout = 1m", Some("up to 60 s")),
            ("process_control_timeout = 3h", Some("up to 10800 s")),
        ] {
            fs::write(&file, format!("[global]\npid = /run/x\n{value}\n")).unwrap();
            let finding = harshness(&layout, "8.2").map(|f| f.message);
            match said {
                Some(said) => {
                    assert!(finding.as_ref().is_some_and(|f| f.contains(said)), "{value}")
                }
                None => assert_eq!(finding, None, "{value}"),
            }
        }
    }

    #[test]
    fn listeners_are_seen_without_connecting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let path = path.to_str().unwrap();
        assert!(!is_listening(path));
        let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        assert!(is_listening(path));
        assert!(wait_idle(path, Instant::now()));
        let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        let taken = listener.accept().unwrap();
        assert!(!wait_idle(path, Instant::now()));
        drop((stream, taken));
        assert!(wait_idle(path, Instant::now()));
        drop(listener);
        assert!(!is_listening(path));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert!(is_listening(&address) && wait_idle(&address, Instant::now()));
        let stream = std::net::TcpStream::connect(&address).unwrap();
        let taken = listener.accept().unwrap();
        assert!(!wait_idle(&address, Instant::now()));
        drop((taken, stream, listener));
        assert!(!is_listening(&address));
    }
}
