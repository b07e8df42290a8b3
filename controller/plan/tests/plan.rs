//! The order of a move's steps is the design's critical section; findings block what cannot work.

use ferry_plan::{Inputs, Policy, plan};
use ferry_proto::account::Definition;
use ferry_proto::command::{
    AccountFacts, DatabaseSummary, Direction, Move, ServerFacts, Severity, TargetFacts,
};
use ferry_proto::ids::{Epoch, JobId};

fn inputs() -> Inputs {
    let definition: Definition = serde_json::from_value(serde_json::json!({
        "name": "demo", "user": "demo", "home": "/home/demo",
    }))
    .unwrap();
    Inputs {
        of: Move {
            job: JobId::new_now(),
            account: "demo".parse().unwrap(),
            direction: Direction::Outbound,
            source: "client".parse().unwrap(),
            target: "transit".parse().unwrap(),
            source_peer: "192.0.2.1:7401".parse().unwrap(),
            target_peer: "192.0.2.2:7401".parse().unwrap(),
            epoch: Epoch(4),
        },
        source: AccountFacts {
            definition,
            epoch: Epoch(4),
            uid: 1000,
            gid: 1000,
            files: 1000,
            bytes: 10_000_000,
            databases: vec![],
            server: ServerFacts::default(),
            findings: vec![],
        },
        target: TargetFacts {
            server: ServerFacts::default(),
            uid: 1000,
            gid: 1000,
            free_bytes: 1 << 40,
            findings: vec![],
        },
        policy: Policy::default(),
    }
}

#[test]
fn the_steps_are_the_critical_section_in_its_order() {
    let plan = plan(&inputs());
    let names: Vec<_> = plan.steps.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "provision",
            "precopy",
            "arm",
            "fence",
            "final_pass",
            "copy_databases",
            "verify",
            "rehearse",
            "commit",
            "open",
            "release"
        ]
    );
    let commit: Vec<_> = plan.steps.iter().filter(|s| s.commit_point).map(|s| &s.name).collect();
    assert_eq!(commit, ["commit"]);
    assert!(!plan.blocked);
    assert_eq!(plan.deadline_seconds, 30, "never below 30 s");
}

#[test]
fn the_deadline_is_twice_the_forecast_unless_asked() {
    let mut inputs = inputs();
    inputs.source.databases.push(DatabaseSummary {
        engine: ferry_proto::account::EngineKind::Mariadb,
        name: "big".into(),
        bytes: 8_000_000_000,
        tables: 1,
        mode: "dump".into(),
        mode_reason: String::new(),
    });
    let long = plan(&inputs);
    assert!((long.forecast.outage_seconds - 1006.0).abs() < 1.0, "{:?}", long.forecast);
    assert_eq!(f64::from(long.deadline_seconds), (2.0 * long.forecast.outage_seconds).ceil());

    inputs.policy.deadline_seconds = Some(100);
    let short = plan(&inputs);
    assert_eq!(short.deadline_seconds, 100);
    assert_eq!(short.findings[0].severity, Severity::Warning, "{:?}", short.findings);

    inputs.policy.deadline_seconds = Some(5);
    assert!(plan(&inputs).blocked);
}

#[test]
fn no_space_and_the_same_server_block_and_say_what_to_do() {
    let mut inputs = inputs();
    inputs.target.free_bytes = 5_000_000;
    let plan1 = plan(&inputs);
    assert!(plan1.blocked);
    assert!(plan1.findings[0].message.contains("transit has 5 MB free"), "{:?}", plan1.findings);
    assert!(!plan1.findings[0].remedy.is_empty());

    let mut inputs = self::inputs();
    inputs.of.target = inputs.of.source.clone();
    assert!(plan(&inputs).blocked);
}

#[test]
fn mapped_ids_and_clock_offsets_are_told_but_do_not_block() {
    let mut inputs = inputs();
    inputs.target.uid = 10_007;
    inputs.target.server.clock_unix_ms = 60_000;
    let plan = plan(&inputs);
    assert!(!plan.blocked);
    assert_eq!(plan.findings.len(), 2);
    assert!(plan.findings[0].message.contains("60.0 s off"));
    assert!(plan.findings[1].message.contains("10007"));
}
