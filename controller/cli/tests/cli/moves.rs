//! Moving, rolling back, aborting: what is asked of the controller, and the exit codes.

use serde_json::json;

use crate::fake::{Controller, Script};
use crate::{JOB, moving, plan};

#[tokio::test]
async fn a_move_is_planned_started_and_watched() {
    let controller = Controller::start(moving("done", "done")).await;
    let ran =
        controller.run(&["move", "shop", "--to", "transit1", "--deadline", "90s", "--yes"]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let expected = ["plan shop transit1 outbound 90", "start p1", &format!("watch {JOB}")];
    assert_eq!(controller.calls(), expected);
    assert!(ran.out.contains("Make the account"), "{}", ran.out);
    assert!(ran.out.contains("about 7.2 s"), "{}", ran.out);
    assert!(ran.out.contains("transit1 serves shop now"), "{}", ran.out);
    assert!(ran.err.contains("[1/1] Make the account on transit1"), "{}", ran.err);
    assert!(ran.err.contains("[1/1] Make the account: done"), "{}", ran.err);
}

#[tokio::test]
async fn the_end_of_a_move_is_its_exit_code() {
    for (phase, step, code, text) in [
        ("undone", "undone", 5, "web1 serves shop, as before"),
        ("stuck", "stuck", 6, "a person must look"),
    ] {
        let controller = Controller::start(moving(phase, step)).await;
        for line in [&["move", "shop", "--to", "transit1", "-y"][..], &["rollback", "shop", "-y"]] {
            let ran = controller.run(line).await;
            assert_eq!(ran.code, code, "{}", ran.err);
            let parts = [
                text,
                "the disk of transit1 is full",
                "No space left",
                "to do   free some space",
                "Nothing is lost.",
            ];
            for part in parts {
                assert!(ran.out.contains(part), "{part}: {}", ran.out);
            }
        }
        assert_eq!(controller.calls()[3], "plan shop  rollback 0");
    }
}

#[tokio::test]
async fn blockers_stop_a_move_before_it_starts() {
    let controller = Controller::start(Script { plan: plan(true), ..Script::default() }).await;
    let ran = controller.run(&["move", "shop", "--to", "transit1", "--yes"]).await;
    assert_eq!(ran.code, 3);
    assert!(ran.out.contains("blocker  transit1  the user shop is taken"), "{}", ran.out);
    assert!(ran.out.contains("to do: rename it"), "{}", ran.out);
    assert!(ran.err.contains("1 blocker above"), "{}", ran.err);
    let ran = controller.run(&["move", "shop", "--to", "transit1", "--yes", "--json"]).await;
    assert_eq!((ran.code, ran.json()), (3, plan(true)));
    assert_eq!(controller.calls().len(), 2, "nothing but planning: {:?}", controller.calls());
}

#[tokio::test]
async fn a_dry_run_shows_the_plan_and_starts_nothing() {
    let controller = Controller::start(moving("done", "done")).await;
    let ran = controller.run(&["move", "shop", "--to", "transit1", "--return", "--dry-run"]).await;
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("Forecast"));
    let ran = controller.run(&["rollback", "shop", "--dry-run", "--json"]).await;
    assert_eq!((ran.code, ran.json()), (0, plan(false)));
    controller.run(&["rollback", "shop", "--to", "web1", "--dry-run"]).await;
    let calls =
        ["plan shop transit1 return 0", "plan shop  rollback 0", "plan shop web1 rollback 0"];
    assert_eq!(controller.calls(), calls);
}

#[tokio::test]
async fn with_json_a_move_is_lines_of_jobs() {
    let controller = Controller::start(moving("done", "done")).await;
    let line = ["move", "shop", "--to", "transit1", "--yes", "--json", "--detach"];
    let ran = controller.run(&line[..6]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let phases: Vec<_> = ran.json_lines().iter().map(|j| j["phase"].clone()).collect();
    assert_eq!(phases, ["running", "done"]);
    let ran = controller.run(&line).await;
    assert_eq!((ran.code, ran.json()), (0, json!({"job": JOB})));
}

#[tokio::test]
async fn abort_is_done_when_the_move_is_undone() {
    let controller = Controller::start(moving("undone", "undone")).await;
    assert_eq!(controller.run(&["abort", "shop"]).await.code, 0);
    assert_eq!(controller.calls()[0], "abort shop");
    let controller = Controller::start(moving("done", "done")).await;
    let ran = controller.run(&["abort", "shop"]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("ferry rollback shop"), "{}", ran.err);
}

#[tokio::test]
async fn pause_is_done_when_the_move_has_stopped() {
    let controller = Controller::start(moving("paused", "waiting")).await;
    let ran = controller.run(&["pause", "shop"]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(controller.calls(), ["pause shop", &format!("watch {JOB}")]);
    let told = "is paused by an operator since 2026-11-23 01:43:00 UTC";
    assert!(ran.out.contains(told), "{}", ran.out);
    let ran = controller.run(&["pause", "shop", "--json", "--detach"]).await;
    assert_eq!((ran.code, ran.json()), (0, json!({"job": JOB})));
    // Somebody else had it undone.
    let controller = Controller::start(moving("undone", "undone")).await;
    assert_eq!(controller.run(&["pause", "shop"]).await.code, 5);
}

/// Though its stream stays open: it may stay so for days.
#[tokio::test]
async fn whoever_watches_a_move_that_is_paused_is_told_so_and_let_go() {
    let script = Script { hang: true, ..moving("paused", "waiting") };
    let controller = Controller::start(script).await;
    for line in [
        &["move", "shop", "--to", "transit1", "--yes"][..],
        &["resume", "shop"],
        &["status", JOB, "--watch"],
    ] {
        let ran = controller.run(line).await;
        assert_eq!(ran.code, 9, "{line:?}: {}", ran.err);
        assert!(ran.err.contains("Paused: `ferry resume shop` lets it go on"), "{}", ran.err);
        assert!(ran.out.contains("is paused by an operator"), "{}", ran.out);
    }
    let line = ["move", "shop", "--to", "transit1", "--yes", "--json"];
    let ran = controller.run(&line).await;
    let last = ran.json_lines().pop().unwrap();
    assert_eq!((ran.code, last["phase"].as_str()), (9, Some("paused")));
    assert_eq!(last["paused"]["by"], "an operator");
}

#[tokio::test]
async fn a_stuck_job_is_resumed_by_account_or_job_and_watched() {
    for (ends, code) in [("done", 0), ("undone", 5), ("stuck", 6)] {
        let controller = Controller::start(moving(ends, ends)).await;
        assert_eq!(controller.run(&["resume", "shop"]).await.code, code);
        assert_eq!(controller.calls(), ["resume shop", &format!("watch {JOB}")]);
        let ran = controller.run(&["resume", JOB, "--json", "--detach"]).await;
        assert_eq!((ran.code, ran.json()), (0, json!({"job": JOB})));
        assert_eq!(controller.calls()[2], format!("resume {JOB}"));
    }
}

#[tokio::test]
async fn the_server_that_serves_it_can_be_named() {
    let controller = Controller::start(moving("done", "done")).await;
    let line = ["move", "shop", "--from", "web1", "--to", "transit1", "--dry-run"];
    assert_eq!(controller.run(&line).await.code, 0);
    assert_eq!(controller.calls(), ["plan shop transit1 outbound 0 web1"]);
    let line = ["finalize", "shop", "--from", "transit1", "--yes", "--detach"];
    assert_eq!(controller.run(&line).await.code, 0);
    assert_eq!(controller.calls()[1], "finalize shop false transit1");
}

#[tokio::test]
async fn paths_can_be_approved_both_ways() {
    let controller = Controller::start(moving("done", "done")).await;
    let approve = ["--approve", "bin/tool", "--approve", r"odd\xff", "--dry-run"];
    for line in [&["move", "shop", "--to", "transit1"][..], &["rollback", "shop"]] {
        let ran = controller.run(&[line, &approve].concat()).await;
        assert_eq!(ran.code, 0, "{}", ran.err);
    }
    let asked = r"bin/tool,odd\xff";
    assert_eq!(
        controller.calls(),
        [
            format!("plan shop transit1 outbound 0  {asked}"),
            format!("plan shop  rollback 0  {asked}")
        ]
    );
    let ran =
        controller.run(&["move", "shop", "--to", "transit1", "--approve", "/etc/passwd"]).await;
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert_eq!(controller.calls().len(), 2);
}
