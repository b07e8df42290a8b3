//! The journeys on which faults strike.

use std::fmt;
use std::str::FromStr;

use anyhow::{Error, Result, bail};

use super::fault::{Role, Victim};
use super::point::Point;
use crate::sample::{self, Sample};

/// The account that moves beside the sample account.
pub const SECOND: Sample = Sample::small("shop");

/// What an operator sets out to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Journey {
    /// The sample account goes from client to transit.
    Move,
    /// It comes back.
    Rollback,
    /// It sets out for transit, and the move is aborted when it is fenced.
    Abort,
    /// It goes to transit, and another account of the same servers at the same time.
    Two,
}

/// All of them.
pub const ALL: [Journey; 4] = [Journey::Move, Journey::Rollback, Journey::Abort, Journey::Two];

impl Journey {
    /// The host in this part.
    pub const fn host(self, role: Role) -> &'static str {
        match (role, self) {
            (Role::Controller, _) => "controller",
            (Role::Source, Journey::Rollback) => "transit",
            (Role::Target, Journey::Rollback) | (Role::Source, _) => "client",
            (Role::Target, _) => "transit",
        }
    }

    /// The accounts that go.
    pub const fn accounts(self) -> &'static [Sample] {
        match self {
            Journey::Two => &[sample::DEMO, SECOND],
            _ => &[sample::DEMO],
        }
    }

    /// What `ferry` is told for an account.
    pub fn argv(self, account: &Sample) -> Vec<&'static str> {
        let name = account.name;
        let mut argv = match self {
            Journey::Rollback => vec!["rollback", name],
            _ => vec!["move", name, "--to", "transit"],
        };
        argv.extend(["--yes", "--detach", "--deadline", "30s"]);
        argv
    }

    /// Whether it repeats most of a move.
    pub const fn is_variation(self) -> bool {
        matches!(self, Journey::Abort | Journey::Two)
    }

    /// The point at which the operator asks for an abort: everything is closed.
    pub fn abort_at(self) -> Option<Point> {
        (self == Journey::Abort).then(|| Point {
            host: self.host(Role::Source).to_owned(),
            program: "ferry-agent".to_owned(),
            name: "ledger.account.fenced.complete.after".to_owned(),
            nth: 1,
        })
    }

    /// Which of the programs comes to this point; none if it is no service of Ferry's.
    pub fn program_at(self, point: &Point) -> Option<Victim> {
        let victims = [
            Victim::Controller,
            Victim::SourceAgent,
            Victim::TargetAgent,
            Victim::SourceRedirector,
            Victim::TargetRedirector,
        ];
        victims.into_iter().find(|victim| {
            let (role, program) = victim.program();
            point.host == self.host(role) && point.program == program
        })
    }
}

impl fmt::Display for Journey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Journey::Move => "move",
            Journey::Rollback => "rollback",
            Journey::Abort => "abort",
            Journey::Two => "two",
        })
    }
}

impl FromStr for Journey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Journey> {
        match ALL.into_iter().find(|journey| journey.to_string() == text) {
            Some(journey) => Ok(journey),
            None => bail!("no journey is called {text:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_those_of_the_way() {
        let hosts = |j: Journey| [Role::Controller, Role::Source, Role::Target].map(|r| j.host(r));
        for journey in [Journey::Move, Journey::Abort, Journey::Two] {
            assert_eq!(hosts(journey), ["controller", "client", "transit"]);
        }
        assert_eq!(hosts(Journey::Rollback), ["controller", "transit", "client"]);
    }

    #[test]
    fn the_program_at_a_point_is_found_by_its_part() {
        let point = |text: &str| text.parse::<Point>().unwrap();
        let agent = point("client:ferry-agent:a.before#1");
        assert_eq!(Journey::Move.program_at(&agent), Some(Victim::SourceAgent));
        assert_eq!(Journey::Rollback.program_at(&agent), Some(Victim::TargetAgent));
        assert_eq!(Journey::Move.program_at(&point("client:lab:a.before#1")), None);
    }
}
