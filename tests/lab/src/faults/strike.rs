//! Strikes: a fault becomes true, and is mended again.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ferry_failpoints::CLOCK;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::ears::Held;
use super::fault::{Between, Disk, Drift, Failing, Fault, Role, Service, Victim};
use super::journeys::Journey;
use crate::host::Host;
use crate::lab::Lab;
use crate::scenarios::REOPEN;
use crate::{sample, wait};

/// Starts the database servers that have failed.
const REVIVE: &str = "
failed=$(systemctl list-units --plain --no-legend --state=failed 'postgresql@*' 'mariadb*' | cut -d' ' -f1)
[ -z \"$failed\" ] || { systemctl reset-failed $failed; systemctl start $failed; }
";

/// How far the source's agent's clock is from the target's, either way.
const APART_MS: i64 = 300_000;
/// How long a host that was told to reboot may take to go down.
const DOWN: Duration = Duration::from_secs(60);

/// Where a fault strikes.
#[derive(Debug, Clone, Copy)]
pub struct Field<'a> {
    /// The hosts.
    pub lab: &'a Lab,
    /// What goes on on them.
    pub journey: Journey,
}

impl<'a> Field<'a> {
    fn host(&self, role: Role) -> Result<&'a Host> {
        self.lab.host(self.journey.host(role))
    }

    /// What must be true before the journey begins.
    pub fn prepare(&self, fault: Fault) -> Result<()> {
        let Fault::Clocks(drift) = fault else { return Ok(()) };
        let half = if drift == Drift::Ahead { APART_MS / 2 } else { -APART_MS / 2 };
        for (role, offset) in [(Role::Source, half), (Role::Target, -half)] {
            self.host(role)?.write_file(CLOCK, 0o644, offset.to_string().as_bytes())?;
        }
        Ok(())
    }

    /// Strikes while a program waits, which then goes on, if it still is there.
    pub fn strike(&self, fault: Fault, held: Held) -> Result<()> {
        match fault {
            Fault::Kill(victim) => self.signal(victim, &held, Signal::KILL)?,
            Fault::Stop(victim) => self.signal(victim, &held, Signal::STOP)?,
            Fault::Power(role) => {
                let host = self.host(role)?;
                self.lab.lose_power(host)?;
                drop(held);
                return self.lab.power_on(host);
            }
            Fault::Reopened => {
                let host = self.host(Role::Source)?;
                host.sh(REOPEN)?;
                self.lab.lose_power(host)?;
                drop(held);
                return self.lab.power_on(host);
            }
            Fault::Reboot(role) => return reboot(self.host(role)?, held),
            Fault::Cut(between, _) => self.cut(between)?,
            Fault::Service(service, role, failing) => fail(self.host(role)?, service, failing)?,
            Fault::Full(disk, role) => self.host(role)?.fill(name(disk))?,
            Fault::Errno(_) | Fault::Clocks(_) => {}
        }
        held.go();
        Ok(())
    }

    /// Waits until a stopped program runs again. It is systemd's watchdog's to end, also where the journey has
    /// come to its end without it: what it comes back to is what is looked at.
    pub fn outlast(&self, fault: Fault) -> Result<()> {
        let Fault::Stop(victim) = fault else { return Ok(()) };
        let (role, program) = victim.program();
        let host = self.host(role)?;
        wait::until(&format!("{program} on {} to run again", host.name()), DOWN, || {
            Ok(service(host, program)?.filter(|process| !is_stopped(*process)).map(drop))
        })
    }

    /// Mends what does not mend itself.
    pub fn mend(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Cut(..) => self.lab.unblock_all(),
            Fault::Service(service, role, Failing::Killed | Failing::Dead) => {
                let (unit, all) = service.units();
                let host = self.host(role)?;
                host.sh(&format!("systemctl reset-failed '{all}' || :; systemctl start {unit}"))?;
                Ok(())
            }
            Fault::Full(disk, role) => {
                let host = self.host(role)?;
                host.unfill(name(disk))?;
                // PostgreSQL ends where its log finds no room: whoever makes room starts it again.
                host.sh(REVIVE).map(drop)
            }
            Fault::Reopened => {
                // What the guard finds and sets aside is for a person, who has no use for it here.
                let found = format!("rm -f /etc/ferry/aside/{}/*.found", sample::ACCOUNT);
                self.host(Role::Source)?.sh(&found).map(drop)
            }
            Fault::Clocks(_) => [Role::Source, Role::Target]
                .into_iter()
                .try_for_each(|role| self.host(role)?.sh(&format!("rm -f {CLOCK}")).map(drop)),
            _ => Ok(()),
        }
    }

    fn signal(&self, victim: Victim, held: &Held, signal: Signal) -> Result<()> {
        if self.journey.program_at(&held.point) == Some(victim) {
            return send(held.process, signal);
        }
        let (role, program) = victim.program();
        let host = self.host(role)?;
        // One that just starts again after an earlier fault is hit when it is there.
        let found =
            wait::until(&format!("{program} on {}", host.name()), DOWN, || service(host, program))?;
        send(found, signal)
    }

    fn cut(&self, between: Between) -> Result<()> {
        let [controller, source, target] =
            [self.host(Role::Controller)?, self.host(Role::Source)?, self.host(Role::Target)?];
        let pairs = match between {
            Between::ControllerSource => vec![(controller, source)],
            Between::ControllerTarget => vec![(controller, target)],
            Between::Ends => vec![(source, target)],
            Between::All => vec![(controller, source), (controller, target), (source, target)],
        };
        pairs.into_iter().try_for_each(|(one, other)| self.lab.block(one, other))
    }
}

fn send(process: Pid, signal: Signal) -> Result<()> {
    match kill_process(process, signal) {
        // Killed by a fault before this one, or ended by itself.
        Err(Errno::SRCH) => Ok(()),
        other => other.context("sending a signal"),
    }
}

/// The service that runs this program on a host: the process whose parent is the host's first one.
fn service(host: &Host, program: &str) -> Result<Option<Pid>> {
    let leader = host.leader()?;
    let is = |pid: &u32| {
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        exe.file_name().is_some_and(|name| name == program)
            && parent.is_some_and(|parent| parent.trim() == leader.to_string())
    };
    let found = host.pids().into_iter().find(is);
    Ok(found.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw))
}

fn is_stopped(process: Pid) -> bool {
    let status = format!("/proc/{}/status", process.as_raw_nonzero());
    fs::read_to_string(status).is_ok_and(|status| status.contains("State:\tT"))
}

fn reboot(host: &Host, held: Held) -> Result<()> {
    let before = host.begin_reboot()?;
    held.go();
    let begun = Instant::now();
    host.await_reboot(before, DOWN)
        .map(drop)
        .with_context(|| format!("{} s after the reboot", begun.elapsed().as_secs()))
}

fn fail(host: &Host, service: Service, failing: Failing) -> Result<()> {
    let (unit, all) = service.units();
    let script = match failing {
        Failing::Killed => format!("systemctl kill -s KILL '{all}'"),
        Failing::Restarted => format!("systemctl restart {unit}"),
        Failing::Dead => format!("systemctl stop {unit}"),
    };
    host.sh(&script).map(drop)
}

/// As the lab's disks are named.
const fn name(disk: Disk) -> &'static str {
    match disk {
        Disk::Ledger => "system",
        Disk::Home => "home",
        Disk::Databases => "databases",
    }
}
