//! What is told of the cases: the table in the end, and of each that failed all that helps to find out
//! why.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};

use super::cases::Case;
use super::fault::Kind;
use super::ground::Ground;
use super::guests;
use super::play::{Missed, Seen};
use crate::build;
use crate::checks::Counts;
use crate::progress::say;
use crate::sample;

/// So many lines of what was wrong are shown.
const SHOWN: usize = 6;

/// One case in so many may miss its point.
const MISSED_AT_MOST: usize = 20;

/// What came of the cases of one kind of fault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Row {
    cases: u32,
    passed: u32,
    missed: u32,
    resumed: u32,
    unserved: Duration,
}

/// What came of all cases.
#[derive(Debug, Default)]
pub struct Table {
    rows: BTreeMap<Kind, Row>,
    failed: Vec<String>,
    missed: Vec<String>,
    /// What kept the rest from being played.
    short: Vec<Error>,
}

impl Table {
    /// Counts a case.
    pub fn count(&mut self, case: &Case, result: &Result<Seen>) {
        let row = self.rows.entry(case.fault.kind()).or_default();
        row.cases += 1;
        if let Ok(seen) = result {
            row.unserved = row.unserved.max(seen.unserved);
            row.resumed += u32::from(seen.resumed);
        }
        match result {
            Ok(seen) if seen.wrong.is_empty() => row.passed += 1,
            Err(error) if Missed::is_why(error) => {
                row.missed += 1;
                self.missed.push(case.to_string());
            }
            _ => self.failed.push(case.to_string()),
        }
    }

    /// Notes what kept some of the cases from being played.
    pub fn cut_short(&mut self, error: Error) {
        self.short.push(error);
    }

    /// Fails if some could not be played, or so many missed their points that this says little.
    pub fn ended(mut self) -> Result<()> {
        let (missed, cases) =
            (self.missed.len(), self.rows.values().map(|row| row.cases).sum::<u32>());
        ensure!(
            missed * MISSED_AT_MOST <= cases as usize,
            "{missed} of {cases} cases missed their points: what journeys do differs each time"
        );
        self.short.pop().map_or(Ok(()), Err)
    }

    /// How many passed and failed.
    pub fn counts(&self) -> Counts {
        let sum = |of: fn(&Row) -> u32| self.rows.values().map(of).sum::<u32>();
        let passed = sum(|row| row.passed);
        let failed = sum(|row| row.cases - row.missed) - passed;
        Counts { passed, failed, ..Counts::default() }
    }

    /// For people.
    pub fn print(&self, all: usize) {
        println!(
            "\n{:20} {:>6} {:>6} {:>6} {:>8} {:>18}",
            "fault", "cases", "passed", "missed", "resumed", "longest unserved"
        );
        for (kind, row) in &self.rows {
            let unserved = format!("{:.1} s", row.unserved.as_secs_f64());
            println!(
                "{kind:20} {:>6} {:>6} {:>6} {:>8} {unserved:>18}",
                row.cases, row.passed, row.missed, row.resumed
            );
        }
        for id in &self.failed {
            println!("failed: {id}");
        }
        for id in &self.missed {
            println!("missed its point: {id}");
        }
        if all > 0 {
            println!("`cargo lab test faults --all` has {all} cases");
        }
    }
}

/// Says what went wrong in a case, and keeps what was logged meanwhile.
pub fn failed(ground: &Ground, case: &Case, result: &Result<Seen>, seed: u64, since_us: i64) {
    match result {
        Ok(seen) => seen.wrong.iter().for_each(|wrong| say(format!("    {}", short(wrong)))),
        Err(error) => say(format!("    {}", short(&format!("{error:#}")))),
    }
    say(format!("    seed {seed}; again: cargo lab test faults --case '{case}'"));
    match keep(ground, case, result, since_us) {
        Ok(place) => say(format!("    what was logged is in {}", place.display())),
        Err(error) => say(format!("    what was logged could not be kept: {error:#}")),
    }
}

/// What was wrong may be all that a command has printed: its beginning and its end are shown.
pub fn short(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    match lines.as_slice() {
        [first, .., one, last] if lines.len() > SHOWN => format!("{first} ... {one} {last}"),
        _ => lines.join("; "),
    }
}

fn keep(ground: &Ground, case: &Case, result: &Result<Seen>, since_us: i64) -> Result<PathBuf> {
    let place = place()?.join(case.to_string().replace('/', "_"));
    fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    let write = |name: &str, text: &str| {
        fs::write(place.join(name), text).with_context(|| format!("writing {name}"))
    };
    write("wrong.txt", &format!("{case}\n{result:#?}\n"))?;
    let points: Vec<String> = ground.ears.trace().iter().map(|p| p.to_string()).collect();
    write("points.txt", &points.join("\n"))?;
    let since = format!("@{}", since_us / 1_000_000);
    for host in ground.lab().hosts() {
        let argv = ["journalctl", "--no-pager", "-o", "short-precise", "--since", &since];
        let said = host.exec(&argv).map_or_else(|error| format!("{error:#}"), |said| said.text());
        write(&format!("{}.log", host.name()), &said)?;
    }
    let events = ground.fleet()?.ferry(&["events", "--account", sample::ACCOUNT]);
    write("events.txt", &events.map_or_else(|error| format!("{error:#}"), |said| said.text()))?;
    for log in guests::logs(ground, case.journey)? {
        let to = place.join(log.file_name().unwrap_or_default());
        fs::copy(&log, to).with_context(|| format!("copying {}", log.display()))?;
    }
    Ok(place)
}

/// Where what failed is kept.
pub fn place() -> Result<PathBuf> {
    Ok(build::target_dir()?.join("lab/faults"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wrong_is_shown_short() {
        assert_eq!(short("one\ntwo"), "one; two");
        assert_eq!(short("1\n2\n3\n4\n5\n6\n7"), "1 ... 6 7");
    }

    #[test]
    fn a_case_passes_only_if_its_end_was_seen_and_nothing_was_wrong() {
        let case: Case =
            "move.kill-controller@controller:ferry-controller:a.before#1".parse().unwrap();
        let mut table = Table::default();
        let unserved = Duration::from_secs(3);
        table.count(&case, &Ok(Seen { unserved, ..Seen::default() }));
        table.count(&case, &Ok(Seen { wrong: vec!["lost".to_owned()], ..Seen::default() }));
        table.count(&case, &Err(anyhow::anyhow!("not ended")));
        assert_eq!(table.counts(), Counts { passed: 1, failed: 2, ..Counts::default() });
        assert_eq!(table.failed.len(), 2);
        assert_eq!(table.rows[&Kind::Kill].unserved, unserved);
    }

    #[test]
    fn a_case_that_missed_its_point_is_neither_and_few_may() {
        let case: Case =
            "move.kill-controller@controller:ferry-controller:a.after#1".parse().unwrap();
        let missed =
            || Err(anyhow::Error::from(Missed::of(case.point.clone())).context("striking"));
        let mut table = Table::default();
        for _ in 1..MISSED_AT_MOST {
            table.count(&case, &Ok(Seen::default()));
        }
        table.count(&case, &missed());
        assert_eq!(table.counts(), Counts { passed: 19, failed: 0, ..Counts::default() });
        table.count(&case, &missed());
        assert!(table.ended().is_err());
        assert!(Table::default().ended().is_ok());
    }
}
