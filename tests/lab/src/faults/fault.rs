//! What can go wrong, as data: each fault by its name.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Error, Result, anyhow};

/// The deadline that all journeys are given: the shortest there is.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// How long a fault lasts that is to outlast the deadline.
const OUTLASTS: Duration = Duration::from_secs(36);
/// How long one lasts that is over before the deadline.
const BRIEF: Duration = Duration::from_secs(5);
/// How much longer than its deadline, or than the fault itself, nobody may be served: a stopped agent is
/// found after 10 s and comes back after 2, and then databases, sites and redirects are opened one by one
/// on a machine that does as much for three hosts.
const SLACK: Duration = Duration::from_secs(15);
/// How long a host may take to boot, until its services answer.
const BOOT: Duration = Duration::from_secs(25);

/// A host, by its part in a journey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Leads.
    Controller,
    /// Serves the account when the journey begins.
    Source,
    /// Is to serve it.
    Target,
}

/// A program of Ferry's on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Victim {
    /// The controller.
    Controller,
    /// The source's agent.
    SourceAgent,
    /// The target's agent.
    TargetAgent,
    /// The source's redirector.
    SourceRedirector,
    /// The target's redirector.
    TargetRedirector,
}

impl Victim {
    /// Where it runs, and its file.
    pub const fn program(self) -> (Role, &'static str) {
        match self {
            Victim::Controller => (Role::Controller, "ferry-controller"),
            Victim::SourceAgent => (Role::Source, "ferry-agent"),
            Victim::TargetAgent => (Role::Target, "ferry-agent"),
            Victim::SourceRedirector => (Role::Source, "ferry-redirector"),
            Victim::TargetRedirector => (Role::Target, "ferry-redirector"),
        }
    }
}

/// Between whom a network is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Between {
    /// The controller and the source.
    ControllerSource,
    /// The controller and the target.
    ControllerTarget,
    /// The two servers.
    Ends,
    /// Each two hosts.
    All,
}

/// A service that an account needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// MariaDB.
    Mariadb,
    /// PostgreSQL.
    Postgresql,
    /// nginx.
    Nginx,
    /// Dovecot.
    Dovecot,
    /// Postfix.
    Postfix,
}

impl Service {
    /// Its unit, and what all units of it are called.
    pub const fn units(self) -> (&'static str, &'static str) {
        match self {
            Service::Mariadb => ("mariadb", "mariadb.service"),
            Service::Postgresql => ("postgresql", "postgresql@*.service"),
            Service::Nginx => ("nginx", "nginx.service"),
            Service::Dovecot => ("dovecot", "dovecot.service"),
            Service::Postfix => ("postfix", "postfix*.service"),
        }
    }

    /// Whether a site is not served without it.
    const fn serves_sites(self) -> bool {
        matches!(self, Service::Mariadb | Service::Postgresql | Service::Nginx)
    }
}

/// How a service fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failing {
    /// All its processes are killed; somebody starts it some seconds later.
    Killed,
    /// Somebody restarts it.
    Restarted,
    /// Somebody stops it until after the deadline.
    Dead,
}

/// How long a network stays cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lasting {
    /// Some seconds.
    Brief,
    /// Until after the deadline.
    Long,
}

/// A file system that can be filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Disk {
    /// That of the system, and of the ledger.
    Ledger,
    /// That of the account's home.
    Home,
    /// That of the databases.
    Databases,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// `kill -9`.
    Kill(Victim),
    /// `kill -STOP`, and nobody lets it go on.
    Stop(Victim),
    /// The power of a host fails, and what it had not synced is lost; it boots again at once.
    Power(Role),
    /// A host is rebooted in good order.
    Reboot(Role),
    /// Nothing passes between hosts.
    Cut(Between, Lasting),
    /// A service of a server fails.
    Service(Service, Role, Failing),
    /// A file system of a server is full until after the deadline.
    Full(Disk, Role),
    /// The write of a record fails with this error, at that very point.
    Errno(&'static str),
    /// While the source has no power, something opens again what is closed there.
    Reopened,
    /// The source's agent's clock is minutes ahead of the target's, or behind it, all the time.
    Clocks(Drift),
}

/// How two clocks differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Drift {
    /// The source's is ahead.
    Ahead,
    /// The source's is behind.
    Behind,
}

const ROLES: [Role; 3] = [Role::Controller, Role::Source, Role::Target];
const SERVERS: [Role; 2] = [Role::Source, Role::Target];
const VICTIMS: [Victim; 5] = [
    Victim::Controller,
    Victim::SourceAgent,
    Victim::TargetAgent,
    Victim::SourceRedirector,
    Victim::TargetRedirector,
];
const CUTS: [Between; 4] =
    [Between::ControllerSource, Between::ControllerTarget, Between::Ends, Between::All];
const SERVICES: [Service; 5] =
    [Service::Mariadb, Service::Postgresql, Service::Nginx, Service::Dovecot, Service::Postfix];
const FAILINGS: [Failing; 3] = [Failing::Killed, Failing::Restarted, Failing::Dead];
const DISKS: [Disk; 3] = [Disk::Ledger, Disk::Home, Disk::Databases];
/// The errors that a record's write can fail with.
pub const ERRORS: [&str; 2] = ["EIO", "ENOSPC"];

/// What faults have in common, for the rules and for the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`Fault::Kill`].
    Kill,
    /// [`Fault::Stop`].
    Stop,
    /// [`Fault::Power`].
    Power,
    /// [`Fault::Reboot`].
    Reboot,
    /// [`Fault::Cut`].
    Cut,
    /// [`Fault::Service`].
    Service,
    /// [`Fault::Full`].
    Full,
    /// [`Fault::Errno`].
    Errno,
    /// [`Fault::Reopened`].
    Reopened,
    /// [`Fault::Clocks`].
    Clocks,
}

impl Fault {
    /// Every fault that there is.
    pub fn all() -> Vec<Fault> {
        let mut all: Vec<Fault> = VICTIMS.into_iter().map(Fault::Kill).collect();
        all.extend(VICTIMS.into_iter().map(Fault::Stop));
        all.extend(ROLES.into_iter().map(Fault::Power));
        all.extend(ROLES.into_iter().map(Fault::Reboot));
        let lastings = [Lasting::Brief, Lasting::Long];
        all.extend(CUTS.into_iter().flat_map(|cut| lastings.map(|l| Fault::Cut(cut, l))));
        for (service, role) in SERVICES.into_iter().flat_map(|s| SERVERS.map(|role| (s, role))) {
            all.extend(FAILINGS.map(|failing| Fault::Service(service, role, failing)));
        }
        all.extend(DISKS.into_iter().flat_map(|disk| SERVERS.map(|r| Fault::Full(disk, r))));
        all.extend(ERRORS.map(Fault::Errno));
        all.push(Fault::Reopened);
        all.extend([Fault::Clocks(Drift::Ahead), Fault::Clocks(Drift::Behind)]);
        all
    }

    /// What it has in common with others.
    pub const fn kind(self) -> Kind {
        match self {
            Fault::Kill(_) => Kind::Kill,
            Fault::Stop(_) => Kind::Stop,
            Fault::Power(_) => Kind::Power,
            Fault::Reboot(_) => Kind::Reboot,
            Fault::Cut(..) => Kind::Cut,
            Fault::Service(..) => Kind::Service,
            Fault::Full(..) => Kind::Full,
            Fault::Errno(_) => Kind::Errno,
            Fault::Reopened => Kind::Reopened,
            Fault::Clocks(_) => Kind::Clocks,
        }
    }

    /// How long after it struck somebody mends it; none where it mends itself.
    pub fn lasts(self) -> Option<Duration> {
        match self {
            Fault::Cut(_, Lasting::Brief) | Fault::Service(_, _, Failing::Killed) => Some(BRIEF),
            Fault::Cut(_, Lasting::Long)
            | Fault::Service(_, _, Failing::Dead)
            | Fault::Full(..) => Some(OUTLASTS),
            Fault::Reopened => Some(Duration::ZERO),
            _ => None,
        }
    }

    /// For how long at most nobody may be served: until the deadline, for any fault of Ferry's own
    /// programs. Where the fault itself keeps the server that serves (or the way to it, through the
    /// former one) from answering, also until it is over, if it `lasted` longer: a boot, for as long as it took.
    pub fn unserved_at_most(self, lasted: Duration) -> Duration {
        let itself = match self {
            Fault::Reopened
            | Fault::Power(Role::Source | Role::Target)
            | Fault::Reboot(Role::Source | Role::Target) => BOOT.max(lasted),
            Fault::Cut(Between::Ends | Between::All, _) | Fault::Full(..) => lasted,
            Fault::Service(service, ..) if service.serves_sites() => lasted,
            _ => Duration::ZERO,
        };
        DEADLINE.max(itself) + SLACK
    }

    fn lasts_or_zero(self) -> Duration {
        self.lasts().unwrap_or_default()
    }

    /// Whether a person may have to say `ferry resume` afterwards: what the job needed was not there
    /// for longer than it tries.
    pub fn may_stick(self) -> bool {
        matches!(self, Fault::Service(_, _, Failing::Dead) | Fault::Full(..) | Fault::Errno(_))
    }

    /// About how long a case takes, to fill a given time with cases.
    pub fn costs(self) -> Duration {
        let seconds = match self {
            Fault::Stop(_) => 45,
            Fault::Power(_) | Fault::Reboot(_) | Fault::Reopened => 40,
            _ => 25,
        };
        Duration::from_secs(seconds) + self.lasts_or_zero()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Controller => "controller",
            Role::Source => "source",
            Role::Target => "target",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let victim = |victim: &Victim| match victim {
            Victim::Controller => "controller",
            Victim::SourceAgent => "source-agent",
            Victim::TargetAgent => "target-agent",
            Victim::SourceRedirector => "source-redirector",
            Victim::TargetRedirector => "target-redirector",
        };
        match self {
            Fault::Kill(v) => write!(f, "kill-{}", victim(v)),
            Fault::Stop(v) => write!(f, "stop-{}", victim(v)),
            Fault::Power(role) => write!(f, "power-{role}"),
            Fault::Reboot(role) => write!(f, "reboot-{role}"),
            Fault::Cut(between, lasting) => {
                let between = match between {
                    Between::ControllerSource => "controller-source",
                    Between::ControllerTarget => "controller-target",
                    Between::Ends => "source-target",
                    Between::All => "all",
                };
                let lasting = if *lasting == Lasting::Brief { "brief" } else { "long" };
                write!(f, "cut-{between}-{lasting}")
            }
            Fault::Service(service, role, failing) => {
                let failing = match failing {
                    Failing::Killed => "killed",
                    Failing::Restarted => "restarted",
                    Failing::Dead => "dead",
                };
                write!(f, "{}-{role}-{failing}", service.units().0)
            }
            Fault::Full(disk, role) => {
                let disk = match disk {
                    Disk::Ledger => "ledger",
                    Disk::Home => "home",
                    Disk::Databases => "databases",
                };
                write!(f, "full-{disk}-{role}")
            }
            Fault::Errno(error) => write!(f, "errno-{error}"),
            Fault::Reopened => f.write_str("reopened-source"),
            Fault::Clocks(Drift::Ahead) => f.write_str("clocks-ahead"),
            Fault::Clocks(Drift::Behind) => f.write_str("clocks-behind"),
        }
    }
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(text: &str) -> Result<Fault> {
        let found = Fault::all().into_iter().find(|fault| fault.to_string() == text);
        found.ok_or_else(|| anyhow!("no fault is called {text:?}"))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Kill => "kill -9",
            Kind::Stop => "SIGSTOP",
            Kind::Power => "power lost",
            Kind::Reboot => "reboot",
            Kind::Cut => "network cut",
            Kind::Service => "service fails",
            Kind::Full => "disk full",
            Kind::Errno => "record not written",
            Kind::Reopened => "opened behind it",
            Kind::Clocks => "clocks apart",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_name_of_its_own_and_is_found_by_it() {
        let all = Fault::all();
        for fault in &all {
            assert_eq!(fault.to_string().parse::<Fault>().unwrap(), *fault);
        }
        assert_eq!(all.len(), 5 + 5 + 3 + 3 + 8 + 30 + 6 + 2 + 1 + 2);
        assert!("kill-nobody".parse::<Fault>().is_err());
    }

    #[test]
    fn only_a_fault_that_keeps_the_account_from_being_served_may_do_so_longer_than_the_deadline() {
        let strict = DEADLINE + SLACK;
        for fault in Fault::all() {
            let limit = fault.unserved_at_most(OUTLASTS);
            match fault.kind() {
                Kind::Kill | Kind::Stop | Kind::Errno | Kind::Clocks => assert_eq!(limit, strict),
                _ => assert!(limit <= OUTLASTS + SLACK, "{fault}"),
            }
        }
        let controller = Fault::Cut(Between::ControllerSource, Lasting::Long);
        assert_eq!(controller.unserved_at_most(OUTLASTS), strict);
    }
}
