//! The program as a person or a script meets it: exit codes, what is asked of the controller, and
//! what is printed, against a controller that answers what the test says.

mod asking;
mod failing;
mod fake;
mod moves;
mod showing;

use serde_json::{Value, json};

use crate::fake::Script;

const JOB: &str = "01900000-0000-7000-8000-000000000000";

fn plan(blocked: bool) -> Value {
    let severity = if blocked { "blocker" } else { "note" };
    json!({
        "job": JOB, "account": "shop", "direction": "outbound", "source": "web1", "target": "transit1",
        "epoch": 3, "deadline_seconds": 30, "blocked": blocked,
        "forecast": {"precopy_seconds": 12.0, "outage_seconds": 7.2, "bytes": 1_300_000_000_u64},
        "findings": [{"severity": severity, "server": "transit1", "message": "the user shop is taken",
                      "remedy": "rename it"}],
        "steps": [{"name": "provision", "title": "Make the account", "server": "transit1",
                   "intent": {"kind": "provision"}, "timeout_seconds": 600, "commit_point": false}],
    })
}

fn job(phase: &str, step: &str) -> Value {
    let ended = matches!(phase, "done" | "undone" | "stuck");
    let fault = matches!(phase, "undone" | "stuck").then(|| {
        json!({"class": "permanent", "message": "the disk of transit1 is full",
               "causes": ["No space left on device"], "remedy": "free some space"})
    });
    json!({
        "job": JOB, "account": "shop", "direction": "outbound", "source": "web1", "target": "transit1",
        "phase": phase, "committed": phase == "done", "advice": "Nothing is lost.",
        "paused": (phase == "paused").then(|| json!({"by": "an operator", "since_unix_ms": 1_795_398_180_000_i64})),
        "started_unix_ms": 1_795_398_180_000_i64,
        "ended_unix_ms": ended.then_some(1_795_398_200_000_i64),
        "steps": [{"name": "provision", "title": "Make the account", "server": "transit1", "phase": step,
                   "attempts": 1, "started_unix_ms": 1, "ended_unix_ms": null, "receipt": null,
                   "fault": fault, "progress": {"doing": "users", "bytes_done": 5}}],
    })
}

/// A move that can start, and ends so.
fn moving(ends: &str, step: &str) -> Script {
    let watch = vec![vec![job("running", "running"), job(ends, step)]];
    Script { plan: plan(false), watch, ..Script::default() }
}
