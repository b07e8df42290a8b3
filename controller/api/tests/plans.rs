//! The plans that Ferry really makes, as the jobs that they become, against every row of cases of
//! the engine's harness: each step and each undo fails in each way, the controller crashes at each
//! write, executes and undos are repeated, aborts come at each write.

#[path = "../../engine/tests/harness/mod.rs"]
mod harness;

use ferry_engine::JobSpec;
use ferry_plan::{Heard, Inputs, Plan, Policy};
use ferry_proto::account::EngineKind;
use ferry_proto::command::{
    AccountFacts, DatabaseSummary, Direction, Move, ServerFacts, TargetFacts,
};
use ferry_proto::ids::{Epoch, JobId};

fn of(direction: Direction) -> Move {
    Move {
        job: JobId::new_now(),
        account: "demo".parse().unwrap(),
        direction,
        source: "client".parse().unwrap(),
        target: "transit".parse().unwrap(),
        source_peer: "192.0.2.1:7401".parse().unwrap(),
        target_peer: "192.0.2.2:7401".parse().unwrap(),
        epoch: Epoch(4),
    }
}

/// The plan of a move of an account with nothing but a home, or with mail and databases.
fn planned(direction: Direction, rich: bool) -> Plan {
    let mut definition = serde_json::json!({"name": "demo", "user": "demo", "home": "/home/demo"});
    if rich {
        definition["mail"] = serde_json::json!([{"domain": "demo.example", "root": "mail"}]);
    }
    let database = DatabaseSummary {
        engine: EngineKind::Mariadb,
        name: "demo".into(),
        bytes: 1 << 20,
        tables: 1,
        mode: "dump".into(),
        mode_reason: String::new(),
    };
    let server = ServerFacts::default;
    ferry_plan::plan(&Inputs {
        of: of(direction),
        source: AccountFacts {
            definition: serde_json::from_value(definition).unwrap(),
            epoch: Epoch(4),
            uid: 1000,
            gid: 1000,
            files: 1000,
            bytes: 10_000_000,
            needs: ferry_proto::command::TreeNeeds::default(),
            approvable: vec![],
            databases: if rich { vec![database] } else { vec![] },
            server: server(),
            findings: vec![],
        },
        target: TargetFacts {
            server: server(),
            uid: 1000,
            gid: 1000,
            rooms: vec![],
            findings: vec![],
        },
        heard: Heard { source_unix_ms: 0, target_unix_ms: 0 },
        policy: Policy::default(),
        approvals: vec![],
    })
}

/// Every plan that Ferry makes, as its job. Plans whose jobs have the same steps, with the same
/// points of no return, are one case to the engine.
fn jobs() -> Vec<JobSpec> {
    let mut jobs: Vec<JobSpec> = Vec::new();
    let moves = [Direction::Outbound, Direction::Rollback, Direction::Return]
        .into_iter()
        .flat_map(|direction| [planned(direction, false), planned(direction, true)]);
    let ends = [false, true].map(|erase| ferry_plan::finalize(&of(Direction::Outbound), erase));
    for plan in moves.chain(ends) {
        let job = ferry_steps::job(&plan).unwrap();
        let shape = |job: &JobSpec| {
            let steps = job.steps.iter();
            steps.map(|s| (s.name.clone(), s.commit_point, s.forward_only)).collect::<Vec<_>>()
        };
        if jobs.iter().all(|known| shape(known) != shape(&job)) {
            jobs.push(job);
        }
    }
    jobs
}

#[test]
fn a_move_has_a_point_of_no_return_and_its_end_has_no_way_back() {
    let jobs = jobs();
    assert!(jobs.len() >= 2, "moves, and ends of moves");
    for job in jobs {
        let forward = job.steps.iter().position(|s| s.forward_only);
        assert!(job.commit_point().is_some() != forward.is_some(), "{job:?}");
        // A proof that is refused leaves everything as it was.
        let proof = job.steps.iter().rposition(|s| s.kind.starts_with("prove"));
        assert!(proof < forward || forward.is_none(), "{job:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_step_failing_in_each_way_ends_at_start_target_or_stuck() {
    for job in jobs() {
        harness::each_step_fails_in_each_way(&job).await;
    }
}

#[tokio::test(start_paused = true)]
async fn each_undo_failing_in_each_way_ends_at_the_start_once_resumed() {
    for job in jobs() {
        harness::each_undo_fails_in_each_way(&job).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_each_journal_write_changes_nothing_of_the_end() {
    for job in jobs() {
        harness::crashes_at_each_write(&job).await;
    }
}

#[tokio::test(start_paused = true)]
async fn looking_that_fails_after_a_crash_is_a_failure_of_the_step() {
    for job in jobs() {
        harness::observing_fails_after_a_crash(&job).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_is_refused_for_good_is_undone_whatever_is_lost_on_the_way() {
    let voidable = |job: &JobSpec| job.steps.iter().any(|s| s.may_void_commit);
    assert!(jobs().iter().any(voidable), "no move can be refused");
    for job in jobs() {
        harness::refused_for_good_after_the_commit(&job).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_at_each_write_stops_the_job_or_lapses_and_survives_the_controller() {
    for job in jobs() {
        harness::pauses_at_each_write(&job).await;
    }
}

#[test]
fn only_what_a_served_account_does_not_feel_is_paused() {
    let jobs = jobs();
    let steps = || jobs.iter().flat_map(|job| &job.steps);
    let pausable: Vec<_> = steps().filter(|s| s.pausable).map(|s| &s.name).collect();
    assert_eq!(pausable, ["provision", "precopy"]);
    let again: Vec<_> = steps().filter(|s| s.again_after_pause).map(|s| &s.name).collect();
    assert_eq!(again, ["precopy"]);
}

#[tokio::test(start_paused = true)]
async fn an_abort_at_each_write_ends_at_the_start_or_after_the_commit_at_the_target() {
    for job in jobs() {
        harness::aborts_at_each_write(&job).await;
    }
}
