//! The lab tests itself: what every scenario takes for granted must be so on every host.

use std::collections::BTreeSet;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::host::Host;
use crate::image::Image;
use crate::lab::Lab;
use crate::progress::Task;
use crate::{run, wait};

/// What a hosting server runs; the names differ from release to release.
const SERVICES: &[&str] = &[
    "cron.service",
    "dovecot.service",
    "mariadb.service",
    "nginx.service",
    "php*-fpm.service",
    "postfix*.service",
    "postgresql@*-main.service",
    "ssh.service",
];

/// How long a network change may take to be felt.
const NETWORK_LIMIT: Duration = Duration::from_secs(20);

/// Redirects a port as the agent does.
const NFT: &str = r"nft -f - <<'END'
table inet selfcheck {
    set held { type ipv4_addr; flags interval; }
    chain incoming { type nat hook prerouting priority dstnat; tcp dport 80 redirect to :8080; }
    chain local { type filter hook output priority filter; meta skuid 33 ip daddr @held counter reject; }
}
END
nft delete table inet selfcheck";

/// Asks the kernel for what the file engine and the change journal stand on: openat2 with
/// RESOLVE_BENEATH, and fanotify marks with file ids on all of /home.
const SYSCALLS: &str = r#"perl -e '
    my $how = pack("QQQ", 0, 0, 8);
    my ($here, $up, $home) = ("etc", "../etc", "/home");
    chdir "/" or die;
    syscall(437, -100, $here, $how, 24) >= 0 or die "openat2: $!";
    syscall(437, -100, $up, $how, 24) < 0 or die "openat2 let a path escape";
    my $fan = syscall(300, 0xc00, 0);
    $fan >= 0 or die "fanotify_init: $!";
    syscall(301, $fan, 0x101, 0x100, -100, $home) == 0 or die "fanotify_mark: $!";
'"#;

/// Checks a lab whose hosts include the three usual ones. Reboots some of them.
pub fn run(lab: &Lab) -> Result<()> {
    let task = Task::start("the lab checks itself");
    for host in lab.hosts() {
        task.detail(host.name());
        check_host(host).with_context(|| format!("on {}", host.name()))?;
    }
    task.detail("identity");
    check_identity(lab)?;
    task.detail("network");
    check_network(lab)?;
    let [client, transit] = [lab.host("client")?, lab.host("transit")?];
    task.detail("cuts");
    check_cuts(lab, client, transit)?;
    task.detail("reboot and power failure");
    check_life(client, transit)?;
    task.done();
    Ok(())
}

fn check_host(host: &Host) -> Result<()> {
    let health = host.health();
    ensure!(health.state == "running", "systemd is {}: {:?}", health.state, health.failed);
    if host.spec().image != Image::Controller {
        let list = ["systemctl", "list-units", "--plain", "--no-legend", "--state=active"];
        for service in SERVICES {
            let active = host.exec(&[&list[..], &[service]].concat())?.ok()?;
            ensure!(!active.trim().is_empty(), "{service} is not active");
        }
    }
    host.sh(NFT).context("nftables")?;
    host.sh(SYSCALLS).context("system calls")?;
    check_exec(host)?;
    check_pin(host)
}

fn check_exec(host: &Host) -> Result<()> {
    let content: Vec<u8> =
        (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let path = "/home/selfcheck/a file's name";
    host.write_file(path, 0o640, &content)?;
    ensure!(host.read_file(path)? == content, "a file came back changed");
    ensure!(host.sh("stat -c %a /home/selfcheck/*")?.trim() == "640", "a mode was not kept");
    ensure!(host.rootfs().join("home/selfcheck").is_dir(), "/home is not seen from outside");
    let output = host.exec(&["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure!(output.status.code() == Some(7), "an exit code was lost: {}", output.status);
    ensure!(output.text() == "out\n" && output.error_text() == "err\n", "output was mixed up");
    ensure!(host.read_file("/nonexistent").is_err(), "a missing file could be read");
    host.sh("rm -r /home/selfcheck")?;
    Ok(())
}

/// A command of ours is not yet the host's when it starts: what systemd starts is.
fn check_pin(host: &Host) -> Result<()> {
    let cores = || host.sh("systemd-run --quiet --wait --pipe nproc");
    let all = cores()?;
    host.pin("0")?;
    ensure!(cores()?.trim() == "1", "a pinned host has more than one core");
    host.pin(&format!("0-{}", available_parallelism()?.get() - 1))?;
    ensure!(cores()? == all, "a host did not get its cores back");
    Ok(())
}

fn check_identity(lab: &Lab) -> Result<()> {
    let identity = "cat /etc/machine-id; cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub";
    let mut seen = BTreeSet::new();
    for host in lab.hosts() {
        for line in host.sh(identity)?.lines() {
            ensure!(seen.insert(line.to_owned()), "{} shares {line}", host.name());
        }
    }
    Ok(())
}

fn check_network(lab: &Lab) -> Result<()> {
    for from in lab.hosts() {
        for to in lab.hosts() {
            ensure!(reaches(from, to)?, "{} does not reach {}", from.name(), to.name());
        }
    }
    for address in lab.hosts().iter().filter_map(|host| host.spec().service_address) {
        let mut curl = lab.netns_command("curl");
        run::check(curl.args(["-sf", "-m", "5", "-o", "/dev/null"]).arg(address.to_string()))?;
    }
    Ok(())
}

fn check_cuts(lab: &Lab, one: &Host, other: &Host) -> Result<()> {
    let controller = lab.host("controller")?;
    one.cut_network()?;
    await_link(controller, one, false)?;
    one.heal_network()?;
    await_link(controller, one, true)?;
    lab.block(one, other)?;
    await_link(one, other, false)?;
    await_link(other, one, false)?;
    await_link(controller, one, true)?;
    lab.unblock_all()?;
    await_link(one, other, true)
}

fn check_life(one: &Host, other: &Host) -> Result<()> {
    let boot_id = |host: &Host| host.sh("cat /proc/sys/kernel/random/boot_id");
    let before = [boot_id(one)?, boot_id(other)?];
    one.write_file("/var/tmp/kept", 0o600, b"kept")?;
    other.write_file("/home/kept", 0o600, b"kept")?;
    let health = one.reboot()?;
    ensure!(health.state == "running", "after a reboot: {health:?}");
    other.kill_power()?;
    ensure!(!other.is_on(), "{} is on without power", other.name());
    other.start().context("after a power failure")?;
    ensure!(boot_id(one)? != before[0] && boot_id(other)? != before[1], "a boot id stayed");
    ensure!(one.read_file("/var/tmp/kept")? == b"kept", "a reboot lost a file");
    ensure!(other.read_file("/home/kept")? == b"kept", "a power failure lost a file");
    await_link(one, other, true)
}

fn reaches(from: &Host, to: &Host) -> Result<bool> {
    let address = to.spec().address.to_string();
    Ok(from.exec(&["ping", "-q", "-c", "1", "-W", "1", &address])?.status.success())
}

fn await_link(from: &Host, to: &Host, up: bool) -> Result<()> {
    let what = format!("{} {} {}", from.name(), if up { "to reach" } else { "to lose" }, to.name());
    wait::until(&what, NETWORK_LIMIT, || Ok((reaches(from, to)? == up).then_some(())))
}
