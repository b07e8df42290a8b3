//! The arrows between our crates: `proto` knows nobody; agent and controller know `proto`, never each
//! other; the parts inside the agent do not know each other; planning knows no clock and no disk. The
//! failpoints are everybody's.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run;

/// Whom each crate may know of ours.
const ALLOWED: &[(&str, &[&str])] = &[
    ("ferry-proto", &[]),
    ("ferry-files", &["ferry-proto"]),
    ("ferry-databases", &["ferry-proto"]),
    ("ferry-traffic", &["ferry-proto"]),
    ("ferry-host", &["ferry-proto"]),
    (
        "ferry-agent",
        &["ferry-proto", "ferry-files", "ferry-databases", "ferry-traffic", "ferry-host"],
    ),
    ("ferry-plan", &["ferry-proto"]),
    ("ferry-engine", &["ferry-proto"]),
    ("ferry-store", &["ferry-proto"]),
    ("ferry-fleet", &["ferry-proto", "ferry-store"]),
    ("ferry-steps", &["ferry-proto", "ferry-engine", "ferry-plan", "ferry-fleet"]),
    (
        "ferry-api",
        &["ferry-proto", "ferry-plan", "ferry-engine", "ferry-steps", "ferry-store", "ferry-fleet"],
    ),
    ("ferry-controller", &["ferry-proto", "ferry-store", "ferry-fleet", "ferry-api"]),
    ("ferry-cli", &["ferry-proto"]),
    ("ferry-failpoints", &[]),
    (
        "ferry-fuzz-targets",
        &[
            "ferry-proto",
            "ferry-files",
            "ferry-databases",
            "ferry-traffic",
            "ferry-host",
            "ferry-agent",
        ],
    ),
    ("ferry-lab", &["ferry-proto"]),
];

/// Whom every crate may know: the failpoints, which are nothing in what is shipped.
const ANYBODYS: &str = "ferry-failpoints";

/// What planning must not reach for: it is pure.
const IMPURE: &[&str] = &["tokio", "async-trait", "sqlx", "tonic", "rustix", "nix", "time"];

/// Checks every edge of the workspace.
pub fn check() -> Result<()> {
    let mut metadata = Command::new("cargo");
    let text = run::check(metadata.args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&text).context("reading cargo's metadata")?;
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            wrong.push(format!("{name} is new: say in tests/lab/src/edges.rs whom it may know"));
            continue;
        };
        for known in dependencies(package) {
            let ours = known.starts_with("ferry-");
            if (ours && known != ANYBODYS && !allowed.contains(&known.as_str()))
                || (name == "ferry-plan" && IMPURE.contains(&known.as_str()))
            {
                wrong.push(format!("{name} must not know {known}"));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("; ")) }
}

fn dependencies(package: &Value) -> BTreeSet<String> {
    let list = package["dependencies"].as_array().into_iter().flatten();
    list.filter_map(|d| d["name"].as_str()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn our_crates_know_only_whom_they_may() {
        super::check().unwrap();
    }
}
