//! The Debian packages that this machine needs, and their installation.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::progress::{Task, say};
use crate::run;

/// What the lab itself needs, and why.
pub const NEEDED: &[(&str, &str)] = &[
    ("mmdebstrap", "makes the Debian trees"),
    ("debian-archive-keyring", "proves that they are Debian's"),
    ("systemd-container", "boots the hosts (systemd-nspawn)"),
    ("iproute2", "the bridge between them"),
    ("nftables", "cuts the network between two hosts"),
    ("curl", "visits them"),
    ("e2fsprogs", "the hosts' /home file systems"),
    ("procps", "looks at the hosts' processes"),
    ("gcc", "links what cargo builds"),
    ("libc6-dev", "links what cargo builds"),
    ("python3", "runs the linker for an old glibc"),
    ("python3-venv", "keeps that linker apart from the system"),
    ("lintian", "checks our packages"),
];

const INSTALL_LIMIT: Duration = Duration::from_secs(900);

/// Fails unless this process may and can make hosts here.
pub fn check_machine() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the lab boots real systems and needs root: run it as root, or with sudo -E");
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !release.lines().any(|line| line == "ID=debian") {
        bail!("the lab needs a Debian 12 or 13 machine: /etc/os-release names another system");
    }
    Ok(())
}

/// Says which of the lab's packages are missing, and installs them.
pub fn ensure_needed() -> Result<()> {
    let missing = missing(NEEDED.iter().map(|(name, _)| *name))?;
    if missing.is_empty() {
        return Ok(());
    }
    say("the lab needs these Debian packages and installs them now with apt-get:");
    for (name, reason) in NEEDED.iter().filter(|(name, _)| missing.contains(name)) {
        say(format!("    {name:24} {reason}"));
    }
    install(&missing)
}

/// Installs those of the named packages that are missing: for a test's or a bench's own needs.
pub fn ensure(names: &[&str]) -> Result<()> {
    let missing = missing(names.iter().copied())?;
    if missing.is_empty() {
        return Ok(());
    }
    say(format!("installing Debian packages with apt-get: {}", missing.join(" ")));
    install(&missing)
}

fn missing<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<&'a str>> {
    let mut query = Command::new("dpkg-query");
    let listed = run::check(query.args(["-W", "-f", "${db:Status-Abbrev}${Package}\n"]))?;
    let installed: HashSet<&str> =
        listed.lines().filter_map(|line| line.strip_prefix("ii ")).collect();
    Ok(names.filter(|name| !installed.contains(name)).collect())
}

/// While it stands, services that packages bring are installed but not started: the lab and the tests
/// start their own, elsewhere. An administrator's own policy is left alone.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn policy() -> Result<NoServices> {
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        if path.exists() || !Path::new("/run/systemd/system").exists() {
            return Ok(NoServices(None));
        }
        say(
            "services of these packages are not started (a policy-rc.d for the time being says so)",
        );
        let guard = NoServices(Some(path.clone()));
        fs::write(&path, "#!/bin/sh\nexit 101\n")
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            say(format!("could not remove {}: {error}; remove it by hand", path.display()));
        }
    }
}

fn install(names: &[&str]) -> Result<()> {
    let _policy = NoServices::policy()?;
    let task = Task::start("installing Debian packages");
    let scratch = std::env::temp_dir().join(format!("ferry-lab-apt-{}.log", std::process::id()));
    let result = run::logged(apt_get().arg("update"), &scratch, &task, INSTALL_LIMIT)
        .context("apt-get cannot read the package lists; are this machine's sources reachable?")
        .and_then(|()| {
            let mut install = apt_get();
            install.args(["install", "-y", "--no-install-recommends"]).args(names);
            run::logged(&mut install, &scratch, &task, INSTALL_LIMIT)
                .context("apt-get cannot install what the lab needs")
        });
    let _ = fs::remove_file(&scratch);
    result?;
    task.done();
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]).env("DEBIAN_FRONTEND", "noninteractive");
    command
}
