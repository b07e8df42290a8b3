//! The Debian trees that hosts are overlaid on: made once, then taken from the cache.
//!
//! A tree's name holds a digest of all that went into it, so that a changed package list
//! makes a new tree. A tree is made under another name and renamed when it is whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::mirror::Mirror;
use crate::mounts;
use crate::progress::{Task, say};
use crate::{cache, interrupt, run};

/// What a host is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Image {
    /// Debian 11 with the services of a hosting server.
    Debian11,
    /// Debian 12 with the services of a hosting server.
    Debian12,
    /// Debian 13 with the services of a hosting server.
    Debian13,
    /// Debian 12 without services, for the controller.
    Controller,
}

/// Every host has these.
const BASE: &[&str] = &[
    "acl",
    "attr",
    "ca-certificates",
    "curl",
    "dbus",
    "e2fsprogs",
    "ifupdown",
    "iproute2",
    "iputils-ping",
    "less",
    "libpam-systemd",
    "nftables",
    "openssh-server",
    "openssl",
    "procps",
    "sudo",
    "systemd",
    "systemd-sysv",
];

/// A hosting server has these as well.
const SERVICES: &[&str] = &[
    "bsdextrautils",
    "cron",
    "dbus-user-session",
    "dovecot-imapd",
    "dovecot-lmtpd",
    "dovecot-managesieved",
    "dovecot-pop3d",
    "dovecot-sieve",
    "mariadb-client",
    "mariadb-server",
    "nginx",
    "php-cli",
    "php-fpm",
    "php-mysql",
    "php-pgsql",
    "postfix",
    "postgresql",
    "python3-minimal",
    "rsync",
    "ssl-cert",
];

/// The controller has these as well.
const CONTROLLER: &[&str] = &["sqlite3"];

/// Options for dpkg while a tree is made: a tree that a power cut spoils is made again.
const DPKG_OPTIONS: &[&str] = &[
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
];

/// mmdebstrap in mount and process namespaces of its own, ended with this process: whatever
/// happens, no mount and no process of a half-made tree stays behind.
const APART: &str = "--pdeathsig KILL unshare --mount --propagation slave --pid --mount-proc \
                     --fork --kill-child";
const MMDEBSTRAP: &str = "mmdebstrap --mode=root --format=directory --variant=minbase \
                          --components=main --verbose";

/// What a tree needs before hosts can be made of it. No identity may be shared by all hosts;
/// timers that reach for the network would only fail; a getty would have nobody to talk to.
const FINISH: &str = r"
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id /etc/hostname /etc/resolv.conf
rm -f /etc/dpkg/dpkg.cfg.d/99mmdebstrap /etc/apt/apt.conf.d/99mmdebstrap
: > /etc/machine-id
: > /etc/resolv.conf
mkdir -p /var/log/journal
echo force-unsafe-io > /etc/dpkg/dpkg.cfg.d/lab
systemctl set-default multi-user.target
systemctl mask apt-daily.timer apt-daily-upgrade.timer apt-daily.service \
    apt-daily-upgrade.service console-getty.service
";

const BUILD_LIMIT: Duration = Duration::from_secs(1800);

impl Image {
    /// The trees' short name.
    pub fn name(self) -> &'static str {
        match self {
            Image::Debian11 => "debian11",
            Image::Debian12 => "debian12",
            Image::Debian13 => "debian13",
            Image::Controller => "controller",
        }
    }

    fn suite(self) -> &'static str {
        match self {
            Image::Debian11 => "bullseye",
            Image::Debian12 | Image::Controller => "bookworm",
            Image::Debian13 => "trixie",
        }
    }

    /// Whether the security archive is used. Debian 11's is closed, and its index names
    /// packages that are no longer there.
    fn has_security(self) -> bool {
        self != Image::Debian11
    }

    /// Debian 11's installer put /bin into /usr, but its packages do not: link them first.
    fn hook(self) -> Option<&'static str> {
        let merge_usr = r#"--setup-hook=for dir in bin sbin lib lib32 lib64 libx32; do
            mkdir -p "$1/usr/$dir"; ln -s "usr/$dir" "$1/$dir"; done"#;
        (self == Image::Debian11).then_some(merge_usr)
    }

    fn packages(self) -> String {
        let own = if self == Image::Controller { CONTROLLER } else { SERVICES };
        [BASE, own].concat().join(",")
    }

    /// The same for the same content, on every machine.
    fn digest(self) -> u64 {
        let security = if self.has_security() { "security" } else { "" };
        let packages = self.packages();
        let options = [DPKG_OPTIONS.join(" "), self.hook().unwrap_or_default().into()].concat();
        fnv1a(&[self.suite(), security, &packages, &options, FINISH].join("\n"))
    }

    /// Where the tree is, or will be, in the directory of all trees.
    fn path(self, images: &Path) -> PathBuf {
        images.join(format!("{}-{:016x}", self.name(), self.digest()))
    }
}

/// A digest to tell versions apart; it guards against no one.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Makes those of the wanted trees that the cache lacks, all at once.
pub fn ensure(wanted: &[Image]) -> Result<()> {
    let missing = |images: &Path| -> Vec<Image> {
        let mut missing: Vec<Image> =
            wanted.iter().copied().filter(|image| !image.path(images).is_dir()).collect();
        missing.sort();
        missing.dedup();
        missing
    };
    if missing(&cache::dir()?.join("images")).is_empty() {
        return Ok(());
    }
    let (images, _lock) = cache::lock("images")?;
    remove_unfinished(&images)?;
    let mirror = Mirror::of_this_machine()?;
    let missing = missing(&images);
    let built = thread::scope(|scope| {
        let builds: Vec<_> =
            missing.iter().map(|image| scope.spawn(|| build(*image, &mirror, &images))).collect();
        builds.into_iter().try_for_each(|build| {
            build.join().map_err(|_| anyhow!("a thread that built an image panicked"))?
        })
    });
    if built.is_err() {
        interrupt::shielded(|| remove_unfinished(&images))?;
    }
    built?;
    missing.iter().try_for_each(|image| prune(*image, &images))
}

/// Removes the trees that a killed run left half-made, unless somebody is making some just now.
pub fn remove_half_made() -> Result<()> {
    let images = cache::dir()?.join("images");
    match File::open(&images) {
        Ok(lock) if lock.try_lock().is_ok() => remove_unfinished(&images),
        _ => Ok(()),
    }
}

/// The finished tree of an image.
pub fn tree(image: Image) -> Result<PathBuf> {
    Ok(image.path(&cache::dir()?.join("images")))
}

fn build(image: Image, mirror: &Mirror, images: &Path) -> Result<()> {
    let target = image.path(images);
    let building = images.join(format!(".building-{}", image.name()));
    let scratch = images.join(format!(".building-{}.tmp", image.name()));
    fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
    let log = images.join(format!("{}.log", image.name()));
    let task = Task::start(format!("image {}", image.name()));
    let mut bootstrap = bootstrap(image, mirror, &building);
    bootstrap.env("TMPDIR", &scratch);
    run::logged(&mut bootstrap, &log, &task, BUILD_LIMIT)
        .with_context(|| format!("making the {} image from {}", image.name(), mirror.archive))?;
    let mut finish = Command::new("chroot");
    finish.arg(&building).args(["sh", "-euc", FINISH]);
    run::check(&mut finish).with_context(|| format!("finishing the {} image", image.name()))?;
    fs::rename(&building, &target)
        .with_context(|| format!("moving the image to {}", target.display()))?;
    fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))?;
    task.done();
    Ok(())
}

/// The command that makes a tree.
fn bootstrap(image: Image, mirror: &Mirror, tree: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(APART.split(' ')).args(MMDEBSTRAP.split(' '));
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    command.args(DPKG_OPTIONS.iter().map(|option| format!("--dpkgopt={option}")));
    if let Some(proxy) = &mirror.proxy {
        command.arg(format!("--aptopt=Acquire::http::Proxy \"{proxy}\""));
    }
    command.args(image.hook());
    command.arg(format!("--include={}", image.packages())).arg(image.suite()).arg(tree);
    command.arg(format!("deb {} {} main", mirror.archive, image.suite()));
    if image.has_security() {
        command.arg(format!("deb {} {}-security main", mirror.security, image.suite()));
    }
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
    command
}

/// Removes what an interrupted run began. The caller holds the lock, so nobody is at it.
fn remove_unfinished(images: &Path) -> Result<()> {
    for entry in fs::read_dir(images)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(".building-") {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("removing the half-made {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Removes an image's older trees, unless a host runs on one.
fn prune(image: Image, images: &Path) -> Result<()> {
    let current = image.path(images);
    let prefix = format!("{}-", image.name());
    for entry in fs::read_dir(images)? {
        let path = entry?.path();
        let ours = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix));
        if ours && path != current && !mounts::uses(&path)? {
            say(format!("removing the outdated image {}", path.display()));
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_same_on_every_machine() {
        // The published test vector of 64-bit FNV-1a.
        assert_eq!(fnv1a("foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn images_with_other_content_have_other_paths() {
        let images = Path::new("/images");
        assert_ne!(Image::Debian12.digest(), Image::Controller.digest());
        assert_ne!(Image::Debian12.path(images), Image::Debian13.path(images));
    }
}
