//! Failpoints, as the lab names them: on which host which program came where, and for which time.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result};

/// One coming of a program to a failpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Point {
    /// The host.
    pub host: String,
    /// The program's file.
    pub program: String,
    /// The failpoint.
    pub name: String,
    /// For which time since the journey began, from 1.
    pub nth: u32,
}

impl Point {
    /// Whether it is one of a pair around a change, before it.
    pub fn is_before(&self) -> bool {
        self.name.ends_with(".before")
    }

    /// Whether something is written here that a program reads again after a crash: by an agent of itself
    /// or by the controller of a job.
    pub fn is_record(&self) -> bool {
        self.name.starts_with("ledger.") || self.name.starts_with("journal.")
    }

    /// What the ledger is told here of how an account stands, if it is.
    pub fn standing(&self) -> Option<&str> {
        self.name.strip_prefix("ledger.account.")?.rsplit_once('.').map(|(standing, _)| standing)
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}#{}", self.host, self.program, self.name, self.nth)
    }
}

impl FromStr for Point {
    type Err = Error;

    fn from_str(text: &str) -> Result<Point> {
        let strange = || format!("{text:?} is no failpoint: HOST:PROGRAM:POINT#N is");
        let (host, rest) = text.split_once(':').with_context(strange)?;
        let (program, rest) = rest.split_once(':').with_context(strange)?;
        let (name, nth) = rest.rsplit_once('#').with_context(strange)?;
        Ok(Point {
            host: host.to_owned(),
            program: program.to_owned(),
            name: name.to_owned(),
            nth: nth.parse().with_context(strange)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_read_as_it_is_written() {
        let text = "client:ferry-agent:file./etc/nginx/sites-enabled/demo.conf.after#2";
        let point: Point = text.parse().unwrap();
        assert_eq!((point.host.as_str(), point.nth), ("client", 2));
        assert_eq!(point.name, "file./etc/nginx/sites-enabled/demo.conf.after");
        assert_eq!(point.to_string(), text);
        for strange in ["", "client:ferry-agent", "client:ferry-agent:a", "a:b:c#x"] {
            assert!(strange.parse::<Point>().is_err(), "{strange}");
        }
    }

    #[test]
    fn what_is_written_at_a_point_is_told_by_its_name() {
        let point = |name: &str| format!("client:ferry-agent:{name}#1").parse::<Point>().unwrap();
        let fenced = point("ledger.account.fenced.complete.after");
        assert_eq!(fenced.standing(), Some("fenced.complete"));
        assert!(fenced.is_record() && !fenced.is_before());
        assert!(point("journal.step_started.fence.before").is_before());
        assert_eq!(point("ledger.taken.fence.after").standing(), None);
        assert!(!point("redirector.hold.after").is_record());
    }
}
