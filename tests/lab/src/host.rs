//! One host: its life from the first boot to its end. [`crate::exec`] works inside it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::cgroup::Cgroup;
use crate::disk::Disk;
use crate::network::{BRIDGE, Network};
use crate::spec::HostSpec;
use crate::{mounts, run, wait};

/// How long a host may take to boot, or to go down in good order.
pub const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// System calls that systemd-nspawn withholds unless told otherwise. Without them the kernel
/// answers EPERM and an agent would quietly do without fanotify.
const SYSTEM_CALLS: &str =
    "fanotify_init fanotify_mark open_by_handle_at name_to_handle_at quotactl";

/// Where systemd-nspawn keeps directories by machine name, and leaves them when it is killed.
const NSPAWN_RUN: &str = "/run/systemd/nspawn";

/// Runs systemd-nspawn until the host is switched off. It ends with 133 when the host asks for
/// a reboot, and leaves the next start to its caller. Arguments: the control group's door, then
/// the command.
const SUPERVISE: &str = r#"
door=$1; shift
echo 0 > "$door" || exit
while :; do
    "$@"
    [ $? -eq 133 ] || exit
done
"#;

/// A host of the lab.
#[derive(Debug, Clone)]
pub struct Host {
    spec: HostSpec,
    /// Its name among all machines on this machine.
    machine: String,
    disk: Disk,
    cgroup: Cgroup,
    network: Network,
}

/// What systemd says about a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// `running`, `degraded`, `starting`, ... or `off`.
    pub state: String,
    /// The units that failed.
    pub failed: Vec<String>,
}

impl Host {
    pub(crate) fn new(
        spec: HostSpec,
        lab: &str,
        dir: &Path,
        cgroup: &Cgroup,
        net: &Network,
    ) -> Host {
        Host {
            machine: format!("{lab}-{}", spec.name),
            disk: Disk::at(dir.join("hosts").join(&spec.name)),
            cgroup: cgroup.child(&spec.name),
            network: net.clone(),
            spec,
        }
    }

    /// What it was made to be like: name, release, addresses.
    pub fn spec(&self) -> &HostSpec {
        &self.spec
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its root file system as seen from outside, /home included, /tmp and /run not. Symbolic
    /// links in it point into *this* machine when followed from outside.
    pub fn rootfs(&self) -> PathBuf {
        self.disk.root()
    }

    /// Makes the disks of a new host, and who it is.
    pub(crate) fn create(&self, tree: &Path, others: &[HostSpec]) -> Result<()> {
        self.mount(tree)?;
        self.disk.write_identity(&self.spec, others)
    }

    /// Mounts the disks.
    pub(crate) fn mount(&self, tree: &Path) -> Result<()> {
        self.disk
            .mount(tree, &self.spec)
            .with_context(|| format!("preparing the disks of {}", self.name()))
    }

    /// Ends it at once and removes everything of it.
    pub(crate) fn destroy(&self) -> Result<()> {
        self.cgroup.kill()?;
        self.disk.destroy()?;
        self.cgroup.remove()?;
        self.remove_nspawn_leftovers()
    }

    /// Switches it on, unless it is on, and waits until it has booted without a failed unit.
    pub fn start(&self) -> Result<()> {
        let health = self.boot()?;
        if health.state != "running" {
            bail!("{} is {}; failed units: {}", self.name(), health.state, health.failed.join(" "));
        }
        Ok(())
    }

    /// Switches it on, unless it is on, and waits until it has booted, however well.
    pub(crate) fn boot(&self) -> Result<Health> {
        if !self.cgroup.is_populated() {
            self.remove_nspawn_leftovers()?;
            // Anew: the kernel (seen with 6.18) kills what is cloned into a group that
            // was once killed as one, and systemd 257 starts its services that way.
            self.cgroup.remove()?;
            self.cgroup.create()?;
            self.network.unplug(&self.machine)?;
            self.spawn()?;
        }
        self.wait_booted()
    }

    /// Waits until systemd has started all that it will, and tells how that went.
    pub fn wait_booted(&self) -> Result<Health> {
        wait::until(&format!("{} to boot", self.name()), BOOT_LIMIT, || {
            if !self.cgroup.is_populated() {
                let log = run::tail(&self.disk.console_log(), 15);
                bail!("{} is off; the end of its console:\n{log}", self.name());
            }
            // Fails until systemd listens; then it lasts as long as the boot.
            let booted = self.ask(&["systemctl", "is-system-running", "--wait"]);
            Ok(matches!(&*booted, "running" | "degraded" | "maintenance").then(|| self.health()))
        })
    }

    /// What systemd says about it just now.
    pub fn health(&self) -> Health {
        let mut health = Health { state: "off".into(), failed: Vec::new() };
        if self.is_on() {
            health.state = self.ask(&["systemctl", "is-system-running"]);
        }
        if health.state == "degraded" {
            let failed = ["systemctl", "list-units", "--failed", "--plain", "--no-legend"];
            let failed = self.ask(&failed);
            let units = failed.lines().filter_map(|line| line.split(' ').next());
            health.failed = units.map(str::to_owned).collect();
        }
        health
    }

    /// What a command prints, whatever its exit code; nothing where the host is not there.
    fn ask(&self, argv: &[&str]) -> String {
        let output = self.exec_with(argv, &[], BOOT_LIMIT);
        output.map(|output| output.text().trim().to_owned()).unwrap_or_default()
    }

    /// Whether it is switched on.
    pub fn is_on(&self) -> bool {
        self.cgroup.is_populated() && self.leader().is_ok()
    }

    /// Reboots it in good order and waits until it is up again.
    pub fn reboot(&self) -> Result<Health> {
        let before = self.begin_reboot()?;
        self.await_reboot(before, BOOT_LIMIT)
    }

    /// Asks it to reboot in good order. Tells the process that is number 1 until then.
    pub fn begin_reboot(&self) -> Result<u32> {
        let before = self.leader()?;
        self.exec(&["systemctl", "--no-block", "reboot"])?.ok()?;
        Ok(before)
    }

    /// Waits until it is up again after [`Host::begin_reboot`]; it may take so long to go down.
    pub fn await_reboot(&self, before: u32, limit: Duration) -> Result<Health> {
        wait::until(&format!("{} to go down", self.name()), limit, || {
            Ok(self.leader().is_ok_and(|leader| leader != before).then_some(()))
        })
        .with_context(|| self.still_there())?;
        self.wait_booted()
    }

    /// Shuts it down in good order and waits until it is off. [`Host::start`] boots it again.
    pub fn power_off(&self) -> Result<()> {
        self.exec(&["systemctl", "--no-block", "poweroff"])?.ok()?;
        wait::until(&format!("{} to be off", self.name()), BOOT_LIMIT, || {
            Ok((!self.cgroup.is_populated()).then_some(()))
        })
        .with_context(|| self.still_there())
    }

    /// Its processes, for whoever waits in vain for it to go down: number, name and state (proc(5)).
    fn still_there(&self) -> String {
        let process = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some(stat.split(' ').take(3).collect::<Vec<_>>().join(" "))
        };
        let processes: Vec<String> = self.pids().into_iter().filter_map(process).collect();
        format!("still there: {}", processes.join(", "))
    }

    /// Ends all its processes at once, as when the power fails. What programs had written is on
    /// the disk, synced or not. [`Host::start`] boots it again.
    pub fn kill_power(&self) -> Result<()> {
        self.cgroup.kill()
    }

    /// The power fails, on a host with disks of its own: what no program had synced is lost, and all
    /// processes end. [`crate::lab::Lab::power_on`] boots it again.
    pub(crate) fn lose_power(&self) -> Result<()> {
        self.disk.cut().with_context(|| format!("cutting the disks of {}", self.name()))?;
        self.cgroup.kill()?;
        self.disk.unmount()
    }

    /// Fills one of its own disks up: `system`, `databases` or `home`.
    pub fn fill(&self, disk: &str) -> Result<()> {
        self.disk.fill(disk)
    }

    /// Frees what [`Host::fill`] took.
    pub fn unfill(&self, disk: &str) -> Result<()> {
        self.disk.unfill(disk)
    }

    /// Mounts another file system of its own, made if it is not there, at a place in it. Space is used as
    /// it is filled. Also while the host is up: it sees what is mounted below its root.
    pub fn attach(&self, name: &str, mib: u32, place: &str) -> Result<()> {
        self.disk.attach(name, mib, place)
    }

    /// Takes away what [`Host::attach`] mounted, and all that is on it.
    pub fn detach(&self, name: &str, place: &str) -> Result<()> {
        self.disk.detach(name, place)
    }

    /// Seconds of processors that its processes have used.
    pub fn processor_seconds(&self) -> Result<f64> {
        self.cgroup.processor_seconds()
    }

    /// All its processes, by their numbers out here.
    pub fn pids(&self) -> Vec<u32> {
        self.cgroup.pids()
    }

    /// Pulls its cable. [`Host::heal_network`] and a reboot plug it in again.
    pub fn cut_network(&self) -> Result<()> {
        self.network.set_link(&self.port()?, false)
    }

    /// Plugs its cable in again.
    pub fn heal_network(&self) -> Result<()> {
        self.network.set_link(&self.port()?, true)
    }

    /// Ties all its processes, and those that they will start, to these cores, such as `0` or
    /// `0-1`: for measurements.
    pub fn pin(&self, cores: &str) -> Result<()> {
        for pid in self.cgroup.pids() {
            let mut taskset = Command::new("taskset");
            let set = run::check(taskset.args(["-acp", cores, &pid.to_string()]));
            // A process that ended meanwhile needs no core.
            if Path::new(&format!("/proc/{pid}")).exists() {
                set?;
            }
        }
        Ok(())
    }

    /// The bridge's port that its cable is in.
    pub(crate) fn port(&self) -> Result<String> {
        self.network.port(&self.machine)
    }

    /// The process that is number 1 inside, by its number out here.
    pub fn leader(&self) -> Result<u32> {
        Ok(self.init()?.0)
    }

    /// The process that is number 1 inside, and its control group.
    pub(crate) fn init(&self) -> Result<(u32, Cgroup)> {
        let payload = self.cgroup.child("payload");
        [payload.child("init.scope"), payload]
            .into_iter()
            .find_map(|group| {
                Some((group.own_pids().into_iter().find(|pid| is_init(*pid))?, group))
            })
            .ok_or_else(|| anyhow!("{} is switched off", self.name()))
    }

    /// Starts systemd-nspawn in the host's group, with no tie to this process.
    fn spawn(&self) -> Result<()> {
        let log = self.disk.console_log();
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening {}", log.display()))?;
        let mut command = Command::new("setsid");
        command.args(["--fork", "sh", "-c", SUPERVISE, "supervise"]).arg(self.cgroup.door());
        command.arg("nsenter").arg(format!("--net={}", self.network.file().display())).arg("--");
        command.args(["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot"]);
        command.args(["--settings=no", "--link-journal=no", "--resolv-conf=off", "--timezone=off"]);
        command.arg(format!("--directory={}", self.disk.root().display()));
        command.arg(format!("--machine={}", self.machine));
        command.arg(format!("--hostname={}", self.spec.name));
        command.arg(format!("--system-call-filter={SYSTEM_CALLS}"));
        command.arg(format!("--network-bridge={BRIDGE}"));
        // The directory is ours and locked; nspawn's own lock files would stay behind.
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1").env("SYSTEMD_NSPAWN_LOCK", "0");
        command.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let status = command.status().context("starting systemd-nspawn")?;
        if !status.success() {
            bail!("setsid could not start {}: {status}", self.name());
        }
        wait::until(&format!("{} to start", self.name()), BOOT_LIMIT, || {
            Ok(self.cgroup.is_populated().then_some(()))
        })
    }

    fn remove_nspawn_leftovers(&self) -> Result<()> {
        for kind in ["propagate", "unix-export"] {
            let dir = Path::new(NSPAWN_RUN).join(kind).join(&self.machine);
            if dir.is_dir() {
                mounts::unmount_below(&dir)?;
                fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
            }
        }
        Ok(())
    }
}

/// Whether a process is number 1 of a process namespace below ours.
fn is_init(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| {
        let numbers: Vec<&str> = numbers.split_whitespace().collect();
        numbers.len() > 1 && numbers.last() == Some(&"1")
    })
}
