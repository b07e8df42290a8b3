//! The checker: reads databases, files and mail where they are, compares them with what visitors were
//! told, and believes nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result, ensure};

use crate::host::Host;
use crate::sample::{self, Sample};
use crate::visitors::{Kind, Log, Outcome, Visit};

/// One kept row, wherever it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The visit's id.
    pub id: String,
    /// The server that kept it.
    pub server: String,
    /// When, Unix microseconds.
    pub at_us: i64,
}

/// What is kept on the server that serves the account in the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct World {
    /// In MariaDB.
    pub mariadb: Vec<Row>,
    /// In PostgreSQL.
    pub postgresql: Vec<Row>,
    /// In the file.
    pub file: Vec<Row>,
    /// Message-IDs in the Maildirs.
    pub mail: Vec<String>,
    /// Message-IDs of what lies in the Maildirs' `tmp`: its delivery is under way, or was cut short.
    pub half_delivered: Vec<String>,
    /// What cron wrote: minute and server.
    pub cron: Vec<(String, String)>,
}

impl World {
    /// Reads all that is kept of the sample account on this host.
    pub fn read(host: &Host) -> Result<World> {
        World::of(host, &sample::DEMO)
    }

    /// Reads all that is kept of an account on this host.
    pub fn of(host: &Host, account: &Sample) -> Result<World> {
        let select = "SELECT id, server, at_us FROM visits ORDER BY n";
        let mariadb =
            host.exec(&["mariadb", "-N", "-B", &account.named("demo_shop"), "-e", select])?.ok()?;
        let psql = ["runuser", "-u", "postgres", "--", "psql", "-At", "-F", "\t"];
        let postgresql =
            host.exec(&[&psql[..], &[&account.named("demo_app"), "-c", select]].concat())?.ok()?;
        let text = |path: &str| -> Result<String> {
            let content = host.read_file(&account.named(path))?;
            Ok(String::from_utf8_lossy(&content).into_owned())
        };
        let file = text("/home/demo/data/visits.log")?;
        let cron = text("/home/demo/data/cron.log")?;
        let mail = |folders: &str| -> Result<Vec<String>> {
            let ids = format!(
                // One that is delivered at this moment leaves tmp meanwhile.
                "cd /home/demo/mail; find . -regex '.*/{folders}/.*' -type f -print0 | sort -z | \
                 xargs -0r grep -sihm1 '^message-id:' | sed 's/.*<\\(.*\\)>.*/\\1/'"
            );
            Ok(host.sh(&account.named(&ids))?.lines().map(str::to_owned).collect())
        };
        Ok(World {
            mariadb: rows(&mariadb, '\t').context("MariaDB")?,
            postgresql: rows(&postgresql, '\t').context("PostgreSQL")?,
            file: rows(&file, ' ').context("the file")?,
            // In this order: what is delivered meanwhile is seen twice rather than not at all.
            half_delivered: mail("tmp")?,
            mail: mail("\\(new\\|cur\\)")?,
            cron: cron
                .lines()
                .filter_map(|l| l.split_once(' '))
                .map(|(minute, server)| (minute.to_owned(), server.to_owned()))
                .collect(),
        })
    }

    /// What is wrong with a server that stopped serving: what it kept after the commit (at this time, in
    /// this minute as cron's lines tell it), or since it was looked at before.
    pub fn since(&self, before: &World, commit_us: i64, commit_minute: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (place, rows) in self.places() {
            let late = rows.iter().filter(|row| row.at_us > commit_us);
            found.extend(late.map(|row| format!("{} in {place} by {}", row.id, row.server)));
        }
        let late = self.cron.iter().filter(|(minute, _)| minute.as_str() > commit_minute);
        found.extend(late.map(|(minute, server)| format!("cron at {minute} by {server}")));
        if self != before {
            found.push(format!("it changed: {} before, {} now", before.count(), self.count()));
        }
        found
    }

    fn count(&self) -> String {
        let [m, p, f] = self.places().map(|(_, rows)| rows.len());
        format!("{m}/{p}/{f} rows, {} mails, {} cron lines", self.mail.len(), self.cron.len())
    }

    fn places(&self) -> [(&'static str, &[Row]); 3] {
        [("MariaDB", &self.mariadb), ("PostgreSQL", &self.postgresql), ("the file", &self.file)]
    }
}

fn rows(text: &str, separator: char) -> Result<Vec<Row>> {
    text.lines()
        .map(|line| {
            let mut fields = line.split(separator);
            let mut next = || fields.next().with_context(|| format!("not a row: {line:?}"));
            let (id, server, at) = (next()?, next()?, next()?);
            Ok(Row { id: id.to_owned(), server: server.to_owned(), at_us: at.parse()? })
        })
        .collect()
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Requests that were acknowledged.
    pub acknowledged: usize,
    /// Mails that were accepted.
    pub mails: usize,
    /// Requests that failed, by reason.
    pub failed: BTreeMap<String, usize>,
    /// Requests whose kept connection ended before any answer, by reason: asked again, under another id.
    pub retried: BTreeMap<String, usize>,
    /// Mails that were not accepted, by reason: their senders come again.
    pub deferred: BTreeMap<String, usize>,
    /// Acknowledged ids that are missing somewhere, with the place.
    pub lost: Vec<String>,
    /// Ids that are somewhere more than once.
    pub doubled: Vec<String>,
    /// Answers and rows of a server that did not own the account at that time.
    pub misanswered: Vec<String>,
    /// Minutes that cron served twice.
    pub cron_doubled: Vec<String>,
}

impl Verdict {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty()
            && self.doubled.is_empty()
            && self.misanswered.is_empty()
            && self.cron_doubled.is_empty()
    }

    /// Fails unless nothing is wrong.
    pub fn expect_clean(&self) -> Result<()> {
        ensure!(self.acknowledged > 0, "no visitor was answered, so nothing was checked");
        ensure!(self.is_clean(), "{self}");
        Ok(())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |reasons: &BTreeMap<String, usize>| reasons.values().sum::<usize>();
        write!(
            f,
            "{} requests and {} mails acknowledged; {} requests failed, {} were asked again, {} mails \
             deferred; lost {}, doubled {}, answered by \
             the wrong server {}, cron minutes doubled {}",
            self.acknowledged,
            self.mails,
            sum(&self.failed),
            sum(&self.retried),
            sum(&self.deferred),
            self.lost.len(),
            self.doubled.len(),
            self.misanswered.len(),
            self.cron_doubled.len(),
        )?;
        for (what, list) in [
            ("lost", &self.lost),
            ("doubled", &self.doubled),
            ("wrong server", &self.misanswered),
            ("cron", &self.cron_doubled),
        ] {
            for one in list.iter().take(5) {
                write!(f, "\n    {what}: {one}")?;
            }
        }
        Ok(())
    }
}

/// Compares what visitors were told with what is kept. `owners` are the servers that served the
/// account, in order; each change of owner may happen once.
pub fn check(log: &Log, world: &World, owners: &[&str]) -> Verdict {
    let mut verdict = Verdict::default();
    for visit in &log.visits {
        match (&visit.outcome, visit.kind) {
            (Outcome::Acknowledged { .. }, Kind::Mail) => verdict.mails += 1,
            (Outcome::Acknowledged { .. }, _) => verdict.acknowledged += 1,
            (Outcome::Failed(why), Kind::Mail) => {
                *verdict.deferred.entry(why.clone()).or_default() += 1
            }
            (Outcome::Failed(why), _) => *verdict.failed.entry(why.clone()).or_default() += 1,
            (Outcome::Retried(why), _) => *verdict.retried.entry(why.clone()).or_default() += 1,
        }
    }
    let runs = runs(log);
    for (place, rows) in world.places() {
        let is_ours = |id: &str| run(id).is_some_and(|run| runs.contains(run));
        let rows: Vec<&Row> = rows.iter().filter(|row| is_ours(&row.id)).collect();
        let count = counts(rows.iter().map(|row| row.id.as_str()));
        for visit in log.acknowledged() {
            if !count.contains_key(visit.id.as_str()) {
                verdict.lost.push(format!("{} in {place}", visit.id));
            }
        }
        verdict.doubled.extend(twice(&count).map(|id| format!("{id} in {place}")));
        verdict.misanswered.extend(intruders(place, rows.into_iter().map(stamp), owners));
    }
    check_mail(log, world, &mut verdict);
    let answers = log.acknowledged().filter_map(answer);
    verdict.misanswered.extend(intruders("the answers", answers, owners));
    verdict.misanswered.extend(late(log, owners));
    let minutes = counts(world.cron.iter().map(|(minute, _)| minute.as_str()));
    verdict.cron_doubled = twice(&minutes).map(str::to_owned).collect();
    verdict
}

/// The runs that made this log, as their ids begin: earlier runs went other ways.
fn runs(log: &Log) -> BTreeSet<&str> {
    log.visits.iter().filter_map(|visit| run(&visit.id)).collect()
}

fn run(id: &str) -> Option<&str> {
    id.rsplit_once('-').map(|(run, _)| run)
}

fn check_mail(log: &Log, world: &World, verdict: &mut Verdict) {
    let mut kept: BTreeMap<&str, usize> = BTreeMap::new();
    for id in &world.mail {
        *kept.entry(id.split('@').next().unwrap_or_default()).or_default() += 1;
    }
    for visit in log.visits.iter().filter(|v| v.kind == Kind::Mail && v.is_acknowledged()) {
        if !kept.contains_key(visit.id.as_str()) {
            verdict.lost.push(format!("{} in the mailboxes", visit.id));
        }
    }
    verdict.doubled.extend(twice(&kept).map(|id| format!("{id} in the mailboxes")));
}

fn counts<'a>(ids: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for id in ids {
        *counts.entry(id).or_default() += 1;
    }
    counts
}

fn twice<'a>(counts: &BTreeMap<&'a str, usize>) -> impl Iterator<Item = &'a str> {
    counts.iter().filter(|(_, n)| **n > 1).map(|(id, _)| *id)
}

/// When, by whom, what.
type Stamp<'a> = (i64, &'a str, &'a str);

fn stamp(row: &Row) -> Stamp<'_> {
    (row.at_us, &row.server, &row.id)
}

fn answer(visit: &Visit) -> Option<Stamp<'_>> {
    match &visit.outcome {
        Outcome::Acknowledged { server, kept_at_us } => Some((*kept_at_us, server, &visit.id)),
        Outcome::Failed(_) | Outcome::Retried(_) => None,
    }
}

/// Sorted by the clock that all hosts share, the servers must follow one another as the owners do: a
/// row that an earlier owner wrote after a later one's is an intruder.
fn intruders<'a>(
    place: &str,
    stamps: impl Iterator<Item = Stamp<'a>>,
    owners: &[&str],
) -> Vec<String> {
    let mut stamps: Vec<Stamp<'_>> = stamps.collect();
    stamps.sort_unstable();
    let mut owner = 0;
    let mut found = Vec::new();
    for (at, server, id) in stamps {
        match owners.iter().skip(owner).position(|o| *o == server) {
            // One step at most: nobody may be skipped.
            Some(steps) if steps <= 1 => owner += steps,
            _ => found.push(format!("{id} by {server} at {at} in {place}")),
        }
    }
    found
}

/// Answers that were asked for after a later owner's first answer had arrived, and yet came from an
/// earlier one. (With the account back at the first server both are the same: then the stamps tell.)
fn late(log: &Log, owners: &[&str]) -> Vec<String> {
    let &[old, new] = owners else { return Vec::new() };
    let is_by =
        |visit: &Visit, name: &str| answer(visit).is_some_and(|(_, server, _)| server == name);
    let answers_of_new = log.acknowledged().filter(|v| is_by(v, new));
    let Some(first) = answers_of_new.map(|v| v.ended_us).min() else { return Vec::new() };
    log.acknowledged()
        .filter(|v| is_by(v, old) && v.began_us > first)
        .map(|v| format!("{} was asked after {new} had answered, and {old} answered", v.id))
        .collect()
}

/// The outage as visitors saw it within a span of time: from the beginning of the first request that
/// had to wait, or failed, to the first acknowledgement after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outage {
    /// Longest time without any acknowledgement, milliseconds.
    pub gap_ms: i64,
    /// From the first request that waited or failed until that gap's end, milliseconds.
    pub outage_ms: i64,
    /// Requests that failed in it.
    pub failed: usize,
    /// Requests that were under way through all of the gap's end, and were answered.
    pub waited: usize,
    /// The longest that an acknowledged request took, milliseconds.
    pub slowest_ms: i64,
}

/// Finds the longest outage between two times.
pub fn outage(log: &Log, from_us: i64, to_us: i64) -> Outage {
    let within = |v: &&Visit| v.is_web() && v.ended_us >= from_us && v.began_us <= to_us;
    let visits: Vec<&Visit> = log.visits.iter().filter(within).collect();
    let ends: BTreeSet<i64> =
        visits.iter().filter(|v| v.is_acknowledged()).map(|v| v.ended_us).collect();
    let ends: Vec<i64> = ends.into_iter().collect();
    let Some((start, end)) = ends.windows(2).map(|w| (w[0], w[1])).max_by_key(|(a, b)| b - a)
    else {
        return Outage::default();
    };
    let hit = |v: &&&Visit| {
        let failed = v.is_failed() && v.ended_us > start && v.began_us < end;
        let waited = v.is_acknowledged() && v.began_us <= end && v.ended_us >= end;
        failed || waited
    };
    let first = visits.iter().filter(hit).map(|v| v.began_us).min().unwrap_or(start);
    let slowest = visits.iter().filter(|v| v.is_acknowledged()).map(|v| v.ended_us - v.began_us);
    Outage {
        gap_ms: (end - start) / 1000,
        outage_ms: (end - first).max(0) / 1000,
        failed: visits.iter().filter(hit).filter(|v| v.is_failed()).count(),
        waited: visits.iter().filter(hit).filter(|v| v.is_acknowledged()).count(),
        slowest_ms: slowest.max().unwrap_or(0) / 1000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visit(n: i64, server: &str) -> Visit {
        let outcome = match server {
            "" => Outcome::Failed("status 503".to_owned()),
            server => Outcome::Acknowledged { server: server.to_owned(), kept_at_us: n * 1000 },
        };
        let (began_us, ended_us) = (n * 1000 - 100, n * 1000 + 100);
        Visit { id: format!("v-{n}"), kind: Kind::Http, began_us, ended_us, outcome }
    }

    fn row(n: i64, server: &str) -> Row {
        Row { id: format!("v-{n}"), server: server.to_owned(), at_us: n * 1000 }
    }

    /// Visits 1 to 4: two at each server, one refused between.
    fn good() -> (Log, World) {
        let servers = ["client", "client", "", "transit", "transit"];
        let visits = (1..).zip(servers).map(|(n, s)| visit(n, s)).collect();
        let kept: Vec<Row> =
            (1..).zip(servers).filter(|(_, s)| !s.is_empty()).map(|(n, s)| row(n, s)).collect();
        let world = World {
            mariadb: kept.clone(),
            postgresql: kept.clone(),
            file: kept,
            ..World::default()
        };
        (Log { visits }, world)
    }

    const OWNERS: [&str; 2] = ["client", "transit"];

    #[test]
    fn a_good_move_is_clean() {
        let (log, mut world) = good();
        // Kept but not acknowledged: allowed.
        world.file.push(row(3, "client"));
        let verdict = check(&log, &world, &OWNERS);
        assert!(verdict.is_clean(), "{verdict}");
        assert_eq!((verdict.acknowledged, verdict.failed["status 503"]), (4, 1));
    }

    #[test]
    fn a_missing_row_is_a_loss_in_its_place_alone() {
        let (log, mut world) = good();
        world.postgresql.remove(1);
        let verdict = check(&log, &world, &OWNERS);
        assert_eq!(verdict.lost, ["v-2 in PostgreSQL"]);
        assert!(verdict.expect_clean().is_err());
    }

    #[test]
    fn a_row_twice_is_doubled_even_if_nobody_was_told() {
        let (log, mut world) = good();
        world.file.extend([row(3, "client"), row(3, "client")]);
        assert_eq!(check(&log, &world, &OWNERS).doubled, ["v-3 in the file"]);
    }

    #[test]
    fn an_answer_of_the_old_server_after_the_new_ones_is_found() {
        let (mut log, mut world) = good();
        log.visits.push(visit(9, "client"));
        for rows in [&mut world.mariadb, &mut world.postgresql, &mut world.file] {
            rows.push(row(9, "client"));
        }
        let verdict = check(&log, &world, &OWNERS);
        // Three places, the answers' stamps, and the order in which visitors saw them.
        assert_eq!(verdict.misanswered.len(), 5, "{verdict}");
        // With the way back it is as it should be.
        let back = check(&log, &world, &["client", "transit", "client"]);
        assert!(back.is_clean(), "{back}");
    }

    #[test]
    fn an_accepted_mail_must_be_there_once() {
        let (mut log, mut world) = good();
        let acknowledged = Outcome::Acknowledged { server: String::new(), kept_at_us: 0 };
        for n in [11, 12] {
            log.visits.push(Visit {
                kind: Kind::Mail,
                outcome: acknowledged.clone(),
                ..visit(n, "")
            });
        }
        world.mail = ["v-11@x", "v-11@x"].map(str::to_owned).into();
        let verdict = check(&log, &world, &OWNERS);
        assert_eq!(verdict.lost, ["v-12 in the mailboxes"]);
        assert_eq!(verdict.doubled, ["v-11 in the mailboxes"]);
    }

    #[test]
    fn a_cron_minute_on_both_servers_is_found() {
        let (log, mut world) = good();
        let minute = "2026-01-01T00:01".to_owned();
        world.cron = vec![(minute.clone(), "client".into()), (minute.clone(), "transit".into())];
        assert_eq!(check(&log, &world, &OWNERS).cron_doubled, [minute]);
    }

    #[test]
    fn an_old_server_that_goes_on_writing_is_found() {
        let (log, world) = good();
        drop(log);
        let noon = "2026-01-01T12:00";
        assert!(world.since(&world, 5000, noon).is_empty());
        // Of three rows in each of three places the last two are later than the commit.
        assert_eq!(world.since(&world, 2000, noon).len(), 6);
        let mut now = world.clone();
        now.mail.push("late@x".to_owned());
        now.cron.push(("2026-01-01T12:01".to_owned(), "client".to_owned()));
        let found = now.since(&world, 5000, noon);
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_visit_that_was_asked_again_is_neither_failed_nor_lost() {
        let (mut log, world) = good();
        let outcome = Outcome::Retried("closed".to_owned());
        log.visits.push(Visit { outcome, ..visit(7, "client") });
        let verdict = check(&log, &world, &OWNERS);
        assert!(verdict.is_clean(), "{verdict}");
        assert_eq!((verdict.retried["closed"], verdict.failed.len()), (1, 1));
    }

    #[test]
    fn nobody_answered_is_not_a_success() {
        assert!(check(&Log::default(), &World::default(), &OWNERS).expect_clean().is_err());
    }

    #[test]
    fn the_outage_begins_with_the_first_who_waited() {
        let mut log =
            Log { visits: vec![visit(1, "client"), visit(2, "client"), visit(900, "transit")] };
        // Waited from 100 ms on, answered with the others at 900 ms.
        log.visits.push(Visit { began_us: 100_000, ..visit(900, "transit") });
        let seen = outage(&log, 0, 2_000_000);
        assert_eq!((seen.gap_ms, seen.outage_ms, seen.waited), (898, 800, 2));
    }
}
