//! The order of a move's steps is the design's critical section; findings block what cannot work.

use ferry_plan::{Heard, Inputs, Plan, Policy, finalize, plan};
use ferry_proto::account::{Definition, EngineKind};
use ferry_proto::approval::Approval;
use ferry_proto::command::{
    AccountFacts, DatabaseSummary, Direction, Move, Room, ServerFacts, Severity, TargetFacts,
    TreeNeeds,
};
use ferry_proto::ids::{Epoch, JobId};

/// Room on a file system of its own, named like the path.
fn room(engine: Option<EngineKind>, path: &str, free_bytes: u64) -> Room {
    let file_system = path.to_owned();
    Room {
        engine,
        path: path.to_owned(),
        file_system,
        free_bytes,
        present_bytes: 0,
        free_files: None,
        present_files: 0,
    }
}

fn database(engine: EngineKind, bytes: u64) -> DatabaseSummary {
    DatabaseSummary {
        engine,
        name: "big".into(),
        bytes,
        tables: 1,
        mode: "dump".into(),
        mode_reason: "binlog is off".into(),
    }
}

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
            needs: TreeNeeds::default(),
            approvable: vec![],
            databases: vec![],
            server: ServerFacts::default(),
            findings: vec![],
        },
        target: TargetFacts {
            server: ServerFacts::default(),
            uid: 1000,
            gid: 1000,
            rooms: vec![room(None, "/home", 1 << 40)],
            findings: vec![],
        },
        heard: Heard { source_unix_ms: 0, target_unix_ms: 0 },
        policy: Policy::default(),
        approvals: vec![],
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
fn what_is_approved_is_warned_of_and_goes_with_the_steps_that_see_files() {
    let approval: Approval = serde_json::from_value(serde_json::json!({
        "what": {"path": "bin/tool", "seen": {
            "kind": {"file": {"size": 5, "digest": "00"}}, "mode": 0o4755, "uid": 0, "gid": 0}},
        "ids": {"uid": 1000, "gid": 1000}, "by": "an operator", "at_unix_ms": 7,
    }))
    .unwrap();
    let mut inputs = inputs();
    inputs.approvals.push(approval.clone());
    let with = plan(&inputs);
    assert!(!with.blocked);
    let finding = with.findings.iter().find(|f| f.severity == Severity::Warning).unwrap();
    assert_eq!(finding.server.as_str(), "client");
    assert_eq!(
        finding.message,
        "approved by an operator: bin/tool: file of 5 bytes, owner 0, group 0, mode 4755, setuid to user 0"
    );
    let steps = with.steps.iter().filter(|s| s.approvals == [approval.clone()]);
    assert_eq!(
        steps.map(|s| s.name.as_str()).collect::<Vec<_>>(),
        ["precopy", "final_pass", "verify"]
    );
    // Kept and read again; a plan of before has none, and a plan without does not mention them.
    let text = serde_json::to_string(&with).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap().approvals, [approval]);
    inputs.approvals.clear();
    let text = serde_json::to_string(&plan(&inputs)).unwrap();
    assert!(!text.contains("approvals"));
    assert!(serde_json::from_str::<Plan>(&text).unwrap().approvals.is_empty());
}

#[test]
fn the_deadline_is_twice_the_forecast_unless_asked() {
    let mut inputs = inputs();
    inputs.source.databases.push(database(EngineKind::Mariadb, 8_000_000_000));
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
fn each_file_system_of_the_target_must_have_room_for_what_goes_there() {
    // A full data directory is not made up for by an empty home.
    let mut inputs = inputs();
    inputs.source.databases.push(database(EngineKind::Mariadb, 60_000_000));
    inputs.target.rooms.push(room(Some(EngineKind::Mariadb), "/var/lib/mysql", 5_000_000));
    let full = plan(&inputs);
    assert!(full.blocked);
    let text = "transit has 5 MB free at /var/lib/mysql for account demo, which needs 72 MB there";
    assert_eq!(full.findings[0].message, text);
    assert!(!full.findings[0].remedy.is_empty());

    // On one file system both parts count against what is free once.
    for room in &mut inputs.target.rooms {
        room.file_system = "8:1".into();
        room.free_bytes = 80_000_000;
    }
    let shared = plan(&inputs);
    let text = "80 MB free at /home and /var/lib/mysql for account demo, which needs 84 MB";
    assert!(shared.findings[0].message.contains(text), "{:?}", shared.findings);
    inputs.target.rooms[0].file_system = "8:2".into();
    assert!(!plan(&inputs).blocked);
}

#[test]
fn a_target_must_be_able_to_make_so_many_files() {
    let mut inputs = inputs();
    let home = |inputs: &mut Inputs, free, present| {
        (inputs.target.rooms[0].free_files, inputs.target.rooms[0].present_files) = (free, present);
    };
    home(&mut inputs, Some(999), 0);
    let plan_of = plan(&inputs);
    let found = plan_of.findings.iter().find(|f| f.message.contains("999 more files"));
    assert!(found.is_some_and(|f| f.severity == Severity::Blocker), "{:?}", plan_of.findings);
    for (free, present) in [(Some(999), 1), (Some(1000), 0), (None, 0)] {
        home(&mut inputs, free, present);
        assert!(plan(&inputs).findings.is_empty(), "{free:?} {present}");
    }
}

#[test]
fn what_is_there_already_needs_no_room() {
    let mut inputs = inputs();
    inputs.source.bytes = 60_000_000_000;
    inputs.target.rooms = vec![room(None, "/home", 40_000_000_000)];
    assert!(plan(&inputs).blocked);
    inputs.target.rooms[0].present_bytes = 58_000_000_000;
    assert!(!plan(&inputs).blocked, "{:?}", plan(&inputs).findings);
}

#[test]
fn a_clock_is_compared_with_the_controllers_when_its_reading_arrives() {
    // The target was asked a minute after the source; both clocks are right.
    let mut inputs = inputs();
    inputs.heard = Heard { source_unix_ms: 1_000_000, target_unix_ms: 1_060_000 };
    inputs.source.server.clock_unix_ms = 1_000_000;
    inputs.target.server.clock_unix_ms = 1_060_000;
    assert!(plan(&inputs).findings.is_empty(), "{:?}", plan(&inputs).findings);
    inputs.target.server.clock_unix_ms = 1_000_000;
    let off = plan(&inputs);
    assert_eq!(off.findings[0].severity, Severity::Warning);
    assert!(off.findings[0].message.contains("-60.0 s off"), "{:?}", off.findings);
    assert!(!off.blocked);
}

#[test]
fn an_outage_beyond_the_hold_limit_is_told_to_those_with_visitors() {
    let mut inputs = inputs();
    inputs.source.databases.push(database(EngineKind::Postgresql, 800_000_000));
    assert!(plan(&inputs).findings.is_empty(), "nobody visits it");
    inputs.source.definition.sites = serde_json::from_value(serde_json::json!([
        {"name": "main", "domains": ["demo.example"], "root": "www"},
    ]))
    .unwrap();
    let long = plan(&inputs);
    assert_eq!(long.findings[0].severity, Severity::Warning);
    for text in ["106 s", "30 s, 1000 requests, 64 MiB", "503"] {
        assert!(long.findings[0].message.contains(text), "{text}: {:?}", long.findings);
    }
    inputs.source.server.hold.wait_ms = 120_000;
    assert!(plan(&inputs).findings.is_empty(), "the source holds them so long");
}

#[test]
fn nothing_is_taken_down_before_the_server_that_serves_has_proved_it() {
    let [plain, erasing] = [false, true].map(|erase| finalize(&inputs().of, erase));
    let steps = |plan: &Plan| -> Vec<_> {
        plan.steps.iter().map(|s| (s.name.clone(), s.server.to_string())).collect()
    };
    let [prove, erasable, end] =
        [("prove", "transit"), ("prove_erasable", "client"), ("finalize", "client")]
            .map(|(name, server)| (name.to_owned(), server.to_owned()));
    assert_eq!(steps(&plain), [prove.clone(), end.clone()]);
    assert_eq!(steps(&erasing), [prove, erasable, end], "nor before the copy may go");
}

#[test]
fn the_plan_says_how_each_database_is_copied_and_what_a_rollback_would_take() {
    let mut inputs = inputs();
    inputs.source.databases.push(database(EngineKind::Postgresql, 80_000_000));
    let plan = plan(&inputs);
    let planned = &plan.databases[0];
    assert_eq!((planned.engine, planned.name.as_str()), (EngineKind::Postgresql, "big"));
    assert_eq!((planned.mode.as_str(), planned.bytes), ("dump", 80_000_000));
    assert_eq!(planned.reason, "binlog is off");
    assert!(plan.forecast.rollback_outage_seconds >= 16.0, "{:?}", plan.forecast);
}
