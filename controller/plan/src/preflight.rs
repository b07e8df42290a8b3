//! What stands in the way of a move, from what both ends said. Each finding says what to do.

use ferry_proto::command::{AccountFacts, Finding, Severity, TargetFacts};

use crate::forecast::{Forecast, LONGEST_DEADLINE_SECONDS, Policy, SHORTEST_DEADLINE_SECONDS};
use crate::plan::Inputs;

/// Free space beyond the account's own bytes that the target must have: dumps are streamed, but
/// databases write logs.
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
    if inputs.of.source == inputs.of.target {
        found.push(to(
            Severity::Blocker,
            format!("{} serves account {} already", inputs.of.target, inputs.of.account),
            "name another server",
        ));
    }
    found.extend(space(inputs, forecast).map(|message| {
        to(Severity::Blocker, message, "free space on the target, or choose a larger server")
    }));
    found.extend(clocks(&inputs.source, &inputs.target).map(|message| {
        to(Severity::Warning, message, "set both servers' clocks (chrony or systemd-timesyncd)")
    }));
    found
        .extend(ids(&inputs.source, &inputs.target).map(|message| to(Severity::Note, message, "")));
    found.extend(deadline(&inputs.policy, forecast).map(|(severity, message)| {
        to(severity, message, "leave --deadline out, or give a longer one")
    }));
    found.sort_by_key(|f| std::cmp::Reverse(f.severity));
    found
}

#[allow(clippy::cast_precision_loss)]
fn space(inputs: &Inputs, forecast: &Forecast) -> Option<String> {
    let needed = forecast.bytes as f64 * SPACE_MARGIN;
    // What is there of an earlier pass is not subtracted: a return or rollback rewrites it.
    let free = inputs.target.free_bytes;
    ((free as f64) < needed).then(|| {
        format!(
            "{} has {} MB free for account {}, which needs {:.0} MB",
            inputs.of.target,
            free / 1_000_000,
            inputs.of.account,
            needed / 1e6
        )
    })
}

fn clocks(source: &AccountFacts, target: &TargetFacts) -> Option<String> {
    let offset = target.server.clock_unix_ms - source.server.clock_unix_ms;
    // Both were asked one after the other; the questions themselves take some of it.
    (offset.abs() > CLOCK_OFFSET_MS)
        .then(|| format!("its clock is about {:.1} s off the source's", offset as f64 / 1000.0))
}

fn ids(source: &AccountFacts, target: &TargetFacts) -> Option<String> {
    ((source.uid, source.gid) != (target.uid, target.gid)).then(|| {
        format!(
            "numeric ids {}:{} are taken there; the account's files will belong to {}:{}",
            source.uid, source.gid, target.uid, target.gid
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
