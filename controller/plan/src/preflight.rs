//! What stands in the way of a move, from what both ends said. Each finding says what to do.

use std::collections::BTreeMap;

use ferry_proto::command::{AccountFacts, Finding, Room, Severity, TargetFacts};

use crate::forecast::{Forecast, LONGEST_DEADLINE_SECONDS, Policy, SHORTEST_DEADLINE_SECONDS};
use crate::plan::{Heard, Inputs};

/// What each missing byte of the account takes at the target: dumps are streamed, but file systems
/// and databases keep books.
const SPACE_MARGIN: f64 = 1.2;
/// Offset between the clocks that is worth telling, in milliseconds. Cron and certificates read
/// the clock.
const CLOCK_OFFSET_MS: i64 = 2000;

/// Every finding of both ends, and those that only both together show; gravest first.
pub fn findings(inputs: &Inputs, forecast: &Forecast) -> Vec<Finding> {
    let mut found: Vec<Finding> = inputs.source.findings.clone();
    found.extend(inputs.target.findings.iter().cloned());
    let to = |severity, message: String, remedy: &str| Finding {
        severity,
        server: inputs.of.target.clone(),
        message,
        remedy: remedy.to_owned(),
    };
    found.extend(inputs.approvals.iter().map(|approval| Finding {
        server: inputs.of.source.clone(),
        ..to(Severity::Warning, format!("approved by {}: {}", approval.by, approval.what), "")
    }));
    found.extend(space(inputs).into_iter().map(|message| {
        to(Severity::Blocker, message, "free space on the target, or choose a larger server")
    }));
    found.extend(files(inputs).map(|message| {
        to(
            Severity::Blocker,
            message,
            "remove files on the target, or make its file system anew with more inodes",
        )
    }));
    found.extend(clocks(inputs.heard, &inputs.source, &inputs.target).map(|message| {
        to(Severity::Warning, message, "set both servers' clocks (chrony or systemd-timesyncd)")
    }));
    found.extend(deadline(&inputs.policy, forecast).map(|(severity, message)| {
        to(severity, message, "leave --deadline out, or give a longer one")
    }));
    found.extend(holding(&inputs.source, forecast).map(|message| Finding {
        server: inputs.of.source.clone(),
        ..to(
            Severity::Warning,
            message,
            "move the account when few visitors come, or have its owner make its databases smaller",
        )
    }));
    found.sort_by_key(|f| std::cmp::Reverse(f.severity));
    found
}

/// A sentence for each file system of the target that lacks room for what is missing there.
#[allow(clippy::cast_precision_loss)]
fn space(inputs: &Inputs) -> Vec<String> {
    let mut shared: BTreeMap<&str, Vec<&Room>> = BTreeMap::new();
    for room in &inputs.target.rooms {
        shared.entry(&room.file_system).or_default().push(room);
    }
    let lacks = |rooms: &Vec<&Room>| {
        let missing: u64 = rooms.iter().map(|room| missing(&inputs.source, room)).sum();
        let needed = missing as f64 * SPACE_MARGIN;
        let free = rooms.iter().map(|r| r.free_bytes).min().unwrap_or(0);
        let paths: Vec<&str> = rooms.iter().map(|r| r.path.as_str()).collect();
        ((free as f64) < needed).then(|| {
            format!(
                "{} has {} MB free at {} for account {}, which needs {:.0} MB there",
                inputs.of.target,
                free / 1_000_000,
                paths.join(" and "),
                inputs.of.account,
                needed / 1e6
            )
        })
    };
    shared.values().filter_map(lacks).collect()
}

/// A sentence if so many files cannot be made on the target.
fn files(inputs: &Inputs) -> Option<String> {
    let home = inputs.target.rooms.iter().find(|room| room.engine.is_none())?;
    let missing = inputs.source.files.saturating_sub(home.present_files);
    let free = home.free_files.filter(|free| *free < missing)?;
    Some(format!(
        "{} can make {free} more files at {}, and account {} needs {missing}",
        inputs.of.target, home.path, inputs.of.account
    ))
}

/// What the source has of a part of the account beyond what is there.
fn missing(source: &AccountFacts, room: &Room) -> u64 {
    let whole = match room.engine {
        None => source.bytes,
        Some(kind) => source.databases.iter().filter(|d| d.engine == kind).map(|d| d.bytes).sum(),
    };
    whole.saturating_sub(room.present_bytes)
}

/// Each clock is compared with the controller's own at the moment that its reading arrived, so that
/// neither an inspection's length nor the time between the two counts.
fn clocks(heard: Heard, source: &AccountFacts, target: &TargetFacts) -> Option<String> {
    let offset = (target.server.clock_unix_ms - heard.target_unix_ms)
        - (source.server.clock_unix_ms - heard.source_unix_ms);
    (offset.abs() > CLOCK_OFFSET_MS)
        .then(|| format!("its clock is about {:.1} s off the source's", offset as f64 / 1000.0))
}

/// Beyond the hold limit visitors are refused, not held.
#[allow(clippy::cast_precision_loss)]
fn holding(source: &AccountFacts, forecast: &Forecast) -> Option<String> {
    let has_visitors = !source.definition.sites.is_empty();
    let hold = source.server.hold;
    let seconds = hold.wait_ms as f64 / 1000.0;
    (has_visitors && forecast.outage_seconds > seconds).then(|| {
        format!(
            "the forecast outage of {:.0} s is longer than visitors are held ({seconds:.0} s, {} requests, {} MiB): those beyond get the answer 503 with Retry-After",
            forecast.outage_seconds,
            hold.requests,
            hold.bytes >> 20
        )
    })
}

fn deadline(policy: &Policy, forecast: &Forecast) -> Option<(Severity, String)> {
    let asked = policy.deadline_seconds?;
    if !(SHORTEST_DEADLINE_SECONDS..=LONGEST_DEADLINE_SECONDS).contains(&asked) {
        return Some((
            Severity::Blocker,
            format!(
                "a fence deadline of {asked} s is outside {SHORTEST_DEADLINE_SECONDS} to {LONGEST_DEADLINE_SECONDS} s"
            ),
        ));
    }
    (f64::from(asked) < forecast.outage_seconds).then(|| {
        (
            Severity::Warning,
            format!(
                "a fence deadline of {asked} s is shorter than the forecast outage of {:.0} s: the move will probably be undone by its deadline",
                forecast.outage_seconds
            ),
        )
    })
}
