//! A plan in lines, as it is shown before somebody says yes. Pure.

use ferry_proto::command::{Finding, Severity};

use crate::plan_view::{PlanView, PlannedDatabaseView};
use crate::text;

/// The whole plan.
pub fn plan(plan: &PlanView) -> String {
    let rows =
        plan.steps.iter().enumerate().map(|(i, step)| {
            vec![format!("{:3}", i + 1), step.title.clone(), step.server.to_string()]
        });
    let mut lines = format!(
        "Move of account {} from {} to {}: {}, epoch {}, then {}\n\n",
        plan.account,
        plan.source,
        plan.target,
        plan.direction,
        plan.epoch,
        plan.epoch.next()
    );
    lines.push_str(&text::table(&["  #", "step", "server"], rows.collect(), &[]));
    lines.push_str(&databases(&plan.databases));
    lines.push_str("\nForecast\n");
    let mut pairs = vec![
        ("to move", text::bytes(plan.forecast.bytes)),
        (
            "copied ahead",
            format!(
                "about {}, while the account is served",
                text::duration(plan.forecast.precopy_seconds)
            ),
        ),
        ("outage", format!("about {}", text::duration(plan.forecast.outage_seconds))),
        (
            "fence deadline",
            format!(
                "{}; if it is not done by then, {} takes the account back by itself",
                text::duration(f64::from(plan.deadline_seconds)),
                plan.source
            ),
        ),
    ];
    if let Some(seconds) = plan.forecast.rollback_outage_seconds {
        let outage = text::duration(seconds);
        pairs.push((
            "rollback",
            format!("an outage of about {outage} again: it copies back, and nothing is lost"),
        ));
    }
    lines.push_str(&text::pairs(&pairs));
    lines.push_str(&findings(&plan.findings));
    lines
}

/// How each database is copied, and why so.
fn databases(databases: &[PlannedDatabaseView]) -> String {
    if databases.is_empty() {
        return String::new();
    }
    let rows = databases.iter().map(|d| {
        vec![
            format!("  {}", d.name),
            d.engine.to_string(),
            text::bytes(d.bytes),
            d.mode.clone(),
            d.reason.clone(),
        ]
    });
    let header = ["  database", "engine", "size", "mode", "why"];
    format!("\n{}", text::table(&header, rows.collect(), &[2]))
}

/// What preflight saw, gravest first.
fn findings(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "\nPreflight found nothing to mention.\n".to_owned();
    }
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    // Stable: within a severity the order is the controller's.
    sorted.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let servers = sorted.iter().map(|f| f.server.as_str().len()).max().unwrap_or(0);
    let mut lines = "\nPreflight\n".to_owned();
    for finding in sorted {
        let severity = match finding.severity {
            Severity::Blocker => "blocker",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        let server = finding.server.as_str();
        lines.push_str(&format!(
            "  {severity:7}  {server:servers$}  {}\n",
            text::safe(&finding.message)
        ));
        if !finding.remedy.is_empty() {
            lines.push_str(&format!(
                "  {:7}  {:servers$}  to do: {}\n",
                "",
                "",
                text::safe(&finding.remedy)
            ));
        }
    }
    lines
}

/// How many findings forbid the move.
pub fn blockers(plan: &PlanView) -> usize {
    plan.findings.iter().filter(|finding| finding.severity == Severity::Blocker).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> PlanView {
        serde_json::from_value(serde_json::json!({
            "job": "01900000-0000-7000-8000-000000000000",
            "account": "shop", "direction": "outbound", "source": "web1", "target": "transit1",
            "epoch": 3, "deadline_seconds": 30, "blocked": true,
            "forecast": {"precopy_seconds": 121.0, "outage_seconds": 7.2,
                         "rollback_outage_seconds": 9.0, "bytes": 1_300_000_000_u64},
            "databases": [
                {"engine": "mariadb", "name": "shop", "mode": "dump", "bytes": 20_000_000,
                 "reason": "this version copies by dump and load"},
            ],
            "findings": [
                {"severity": "note", "server": "web1", "message": "database shop is copied by dump", "remedy": ""},
                {"severity": "blocker", "server": "transit1", "message": "the user \u{1b}[31mshop is taken",
                 "remedy": "rename it"},
            ],
            "steps": [
                {"name": "provision", "title": "Make the account at the target, closed", "server": "transit1",
                 "intent": {"kind": "provision"}, "timeout_seconds": 600},
                {"name": "fence", "title": "Fence: hold connections, stop writes", "server": "web1"},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn a_plan_is_shown_whole_with_blockers_first() {
        insta::assert_snapshot!(plan(&sample()));
        assert_eq!(blockers(&sample()), 1);
    }

    #[test]
    fn a_clean_plan_says_so() {
        let mut clean = sample();
        clean.findings.clear();
        assert!(plan(&clean).ends_with("Preflight found nothing to mention.\n"));
        assert_eq!(blockers(&clean), 0);
    }
}
