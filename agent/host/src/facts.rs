//! Facts of this server that plans need: what it is, what is installed, how much room there is, and
//! its clocks. Changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};
use sysinfo::System;

use crate::run::Run;
use crate::{Layout, durable, php, processes};

/// The packages whose versions matter for a move.
const PACKAGES: &[&str] = &[
    "cron",
    "dovecot-core",
    "dovecot-imapd",
    "dovecot-pop3d",
    "mariadb-server",
    "nginx",
    "nginx-extras",
    "nginx-full",
    "nginx-light",
    "openssh-server",
    "php-fpm",
    "postfix",
    "postgresql",
    "rspamd",
    "systemd",
];

/// Room of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Bytes that an ordinary user may still write.
    pub free_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
    /// Files that can still be made; none: the filesystem does not count them.
    pub free_inodes: Option<u64>,
    /// Whether it takes no writes.
    pub read_only: bool,
}

/// What a server is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// `PRETTY_NAME` of os-release.
    pub os: String,
    /// `VERSION_ID` of os-release: `12` for Debian 12.
    pub os_version: String,
    /// The kernel's release.
    pub kernel: String,
    /// The machine's architecture, as the kernel says it.
    pub architecture: String,
    /// Processors.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Memory in bytes that programs can still get.
    pub memory_available_bytes: u64,
    /// Room where homes and databases are; those of paths that do not exist are the room of the
    /// nearest directory above.
    pub space: BTreeMap<PathBuf, Space>,
    /// Installed packages and their versions.
    pub packages: BTreeMap<String, String>,
    /// The versions of PHP-FPM, the newest first.
    pub php: Vec<String>,
    /// The wall clock, nanoseconds since 1970.
    pub clock_unix_ns: u64,
    /// Which boot this is.
    pub boot_id: String,
    /// When the host booted, seconds since 1970.
    pub booted_at: u64,
}

/// Gathers the facts; `homes` are directories whose room is of interest beside the databases'.
///
/// # Errors
/// What reading failed of.
pub fn server(layout: &Layout, homes: &[PathBuf]) -> Result<ServerFacts, Fault> {
    let release = os_release(layout)?;
    let get = |key: &str| release.get(key).cloned().unwrap_or_default();
    let unknown = |e: sysinfo::Error| {
        Fault::transient("the memory and boot time of this host are not known").caused_by(&e)
    };
    let mut system = System::new().map_err(unknown)?;
    system.refresh_memory();
    let databases = ["/var/lib/mysql", "/var/lib/postgresql"].map(PathBuf::from);
    let mut room = BTreeMap::new();
    for path in homes.iter().chain(&databases) {
        room.insert(path.clone(), space(&layout.path(path))?);
    }
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(ServerFacts {
        os: get("PRETTY_NAME"),
        os_version: get("VERSION_ID"),
        kernel: System::kernel_version().unwrap_or_default(),
        architecture: System::cpu_arch(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: system.total_memory(),
        memory_available_bytes: system.available_memory(),
        space: room,
        packages: packages()?,
        php: php::versions(layout),
        clock_unix_ns: u64::try_from(clock.as_nanos()).unwrap_or(u64::MAX),
        boot_id: boot_id()?,
        booted_at: System::boot_time().map_err(unknown)?,
    })
}

fn os_release(layout: &Layout) -> Result<BTreeMap<String, String>, Fault> {
    let etc = durable_text(&layout.path("/etc/os-release"))?;
    let text = match etc {
        Some(text) => text,
        None => durable_text(&layout.path("/usr/lib/os-release"))?.unwrap_or_default(),
    };
    Ok(text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.trim_matches(['"', '\'']).to_owned()))
        .collect())
}

/// The file's text; `/etc/os-release` is a symlink, which `durable::read` does not follow.
fn durable_text(path: &Path) -> Result<Option<String>, Fault> {
    let Ok(real) = fs::canonicalize(path) else {
        return Ok(None);
    };
    let bytes = durable::read(&real, 1 << 16)?;
    Ok(bytes.map(|b| String::from_utf8_lossy(&b).into_owned()))
}

fn packages() -> Result<BTreeMap<String, String>, Fault> {
    // dpkg-query ends with 1 if it does not know one of them: that is no failure.
    let output = Run::new("/usr/bin/dpkg-query")
        .looking()
        .arguments(["--show", "--showformat=${Package}\\t${Version}\\t${db:Status-Status}\\n"])
        .arguments(PACKAGES)
        .output()
        .map_err(|e| {
            e.fault(
                "the installed packages could not be read",
                "dpkg-query",
                Duration::from_secs(30),
            )
        })?;
    let text = output.text();
    let installed = text.lines().filter_map(|line| {
        let mut fields = line.split('\t');
        let (name, version) = (fields.next()?, fields.next()?);
        (fields.next()? == "installed").then(|| (name.to_owned(), version.to_owned()))
    });
    Ok(installed.collect())
}

/// The room of the filesystem that holds `path`, or would hold it.
///
/// # Errors
/// What asking the filesystem failed of.
pub fn space(path: &Path) -> Result<Space, Fault> {
    let there = nearest(path);
    let stat = rustix::fs::statvfs(there).map_err(|e| {
        Fault::io(format!("the free space of {} is not known", path.display()), &e.into())
    })?;
    Ok(Space {
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        // btrfs makes inodes as it needs them and says 0 of 0.
        free_inodes: (stat.f_files > 0).then_some(stat.f_favail),
        read_only: stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
    })
}

/// Which filesystem holds `path`, or would hold it: equal for paths that share their room.
///
/// # Errors
/// If the mounts cannot be read.
pub fn file_system(path: &Path) -> Result<String, Fault> {
    let there = nearest(path);
    // A symlink may lead to another filesystem.
    let real = fs::canonicalize(there)
        .map_err(|e| Fault::io(format!("{} could not be followed", there.display()), &e))?;
    processes::device_of(&real)
}

/// The path itself or the nearest directory above it that exists.
pub fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"))
}

/// The time since boot, suspended time included: the clock of deadlines.
pub fn boottime_now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // The kernel gives no negative values here.
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Which boot this is: a deadline on the boot clock means nothing after another one.
///
/// # Errors
/// If the kernel does not say.
pub fn boot_id() -> Result<String, Fault> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .map_err(|e| Fault::io("the boot id could not be read", &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_of_this_host_are_plausible() {
        let home = PathBuf::from("/home/nobody-has-this/deep");
        let facts = server(&Layout::system(), std::slice::from_ref(&home)).unwrap();
        assert!(facts.os.contains("Debian"), "{}", facts.os);
        assert!(!facts.os_version.is_empty() && !facts.kernel.is_empty());
        assert!(facts.cpus >= 1 && facts.memory_bytes > facts.memory_available_bytes);
        assert!(facts.space[&home].total_bytes > 0);
        assert!(facts.clock_unix_ns > 1_700_000_000_000_000_000);
        assert_eq!(facts.boot_id.len(), 36);
        assert!(facts.booted_at > 0);
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<ServerFacts>(&text).unwrap(), facts);
    }

    #[test]
    fn paths_of_one_filesystem_share_their_room() {
        let directory = tempfile::tempdir().unwrap();
        let here = file_system(directory.path()).unwrap();
        assert_eq!(file_system(&directory.path().join("not/yet/made")).unwrap(), here);
        assert_ne!(file_system(Path::new("/proc")).unwrap(), here);
        let link = directory.path().join("elsewhere");
        std::os::unix::fs::symlink("/proc", &link).unwrap();
        assert_eq!(file_system(&link).unwrap(), file_system(Path::new("/proc")).unwrap());
    }

    #[test]
    fn the_boot_clock_runs() {
        let before = boottime_now();
        assert!(before > Duration::ZERO);
        assert!(boottime_now() >= before);
    }
}
