//! Lists, status, events, and what needs no controller.

use ferry_proto::account::Definition;
use ferry_proto::v1::{Account, ListAccountsResponse, ListEventsResponse, Server};
use serde_json::json;

use crate::fake::{Controller, Script};
use crate::{JOB, job};

#[tokio::test]
async fn servers_are_added_listed_and_revoked() {
    let server = Server {
        name: "web1".to_owned(),
        role: "client".to_owned(),
        state: "enrolled".to_owned(),
        connected: true,
        version: "0.1.0\u{1b}[2J".to_owned(),
        peer_address: "192.0.2.1:7401".to_owned(),
        certificate_not_after_unix: 1_795_398_180,
        last_seen_unix: 1_795_398_180,
        system: "Debian GNU/Linux 12 (bookworm)".to_owned(),
    };
    let controller = Controller::start(Script { servers: vec![server], ..Script::default() }).await;
    let ran = controller
        .run(&["server", "add", "web1", "--role", "shared-transit", "--valid", "2h"])
        .await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "fry1-abc\n"));
    assert!(ran.err.contains("ferry-agent enroll"), "{}", ran.err);
    let ran = controller.run(&["server", "add", "web1", "--role", "client", "--json"]).await;
    assert_eq!(ran.json()["token"], "fry1-abc");
    assert_eq!(controller.calls(), ["add web1 shared-transit 7200", "add web1 client 0"]);

    let ran = controller.run(&["server", "list"]).await;
    assert!(ran.out.contains("bookworm") && !ran.out.contains('\u{1b}'), "{}", ran.out);
    let ran = controller.run(&["server", "list", "--json"]).await;
    assert_eq!(ran.json()[0]["connected"], true);
    let ran = controller.run(&["server", "revoke", "web1", "--json"]).await;
    assert_eq!(ran.json(), json!({"name": "web1", "was_connected": true}));
}

#[tokio::test]
async fn accounts_are_listed_with_what_is_wrong() {
    let accounts = ListAccountsResponse {
        accounts: vec![Account {
            name: "shop".to_owned(),
            server: "web1".to_owned(),
            standing: "serving".to_owned(),
            epoch: 3,
            domains: ["a", "b", "c", "d"].map(|d| format!("{d}.example.com")).to_vec(),
            connected: true,
            ..Account::default()
        }],
        problems: vec!["web1: blog.toml line 3: no home".to_owned()],
    };
    let controller = Controller::start(Script { accounts, ..Script::default() }).await;
    let ran = controller.run(&["account", "list"]).await;
    assert!(ran.out.contains("c.example.com and 1 more"), "{}", ran.out);
    assert!(ran.err.contains("blog.toml line 3"), "{}", ran.err);
    let ran = controller.run(&["account", "list", "--json"]).await;
    assert_eq!(ran.json()["accounts"][0]["epoch"], 3);
    assert_eq!(ran.json()["problems"][0], "web1: blog.toml line 3: no home");
}

#[tokio::test]
async fn status_is_of_all_of_an_account_or_of_a_job() {
    let jobs = vec![job("running", "running"), job("done", "done")];
    let watch = vec![vec![job("undone", "undone")]];
    let controller = Controller::start(Script { jobs, watch, ..Script::default() }).await;
    let ran = controller.run(&["status"]).await;
    assert_eq!(ran.code, 0);
    assert_eq!(ran.out.lines().count(), 3, "{}", ran.out);
    let ran = controller.run(&["status", "--json"]).await;
    assert_eq!(ran.json().as_array().unwrap().len(), 2);
    assert!(controller.run(&["status", "shop"]).await.out.contains("transit1"));
    let ran = controller.run(&["status", JOB, "--json"]).await;
    // Showing is not judging: the code is about the command.
    assert_eq!((ran.code, ran.json()["phase"].as_str()), (0, Some("undone")));
    assert_eq!(controller.run(&["status", JOB, "--watch"]).await.code, 5);

    // Nothing happens any more until somebody wants it.
    let jobs = vec![job("paused", "waiting")];
    let controller = Controller::start(Script { jobs, ..Script::default() }).await;
    let ran = controller.run(&["status", "--watch"]).await;
    assert!(ran.code == 0 && ran.out.contains("paused"), "{}", ran.out);

    let controller = Controller::start(Script::default()).await;
    let ran = controller.run(&["status", "shop"]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("ferry account list"), "{}", ran.err);
    assert_eq!(controller.run(&["status", "--watch"]).await.code, 0);
}

#[tokio::test]
async fn a_damaged_job_does_not_hide_the_others() {
    let jobs = vec![job("done", "done")];
    let problems = vec!["job 7 of account blog: its journal is\u{1b} damaged".to_owned()];
    let controller = Controller::start(Script { jobs, problems, ..Script::default() }).await;
    let ran = controller.run(&["status"]).await;
    assert_eq!((ran.code, ran.out.lines().count()), (0, 2), "{}", ran.out);
    assert!(
        ran.err.contains("job 7 of account blog") && !ran.err.contains('\u{1b}'),
        "{}",
        ran.err
    );
    let ran = controller.run(&["status", "--json"]).await;
    assert_eq!(ran.json().as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn events_are_lines() {
    let event = ListEventsResponse {
        number: 7,
        at_unix_ms: 1_795_398_180_999,
        job: JOB.to_owned(),
        account: "shop".to_owned(),
        text: "provision\u{1b}[31m done".to_owned(),
        event: br#"{"kind":"step"}"#.to_vec(),
    };
    let controller = Controller::start(Script { events: vec![event], ..Script::default() }).await;
    let ran = controller.run(&["events", "--account", "shop", "--job", JOB, "--after", "6"]).await;
    assert_eq!(ran.out, "2026-11-23 01:43:00 UTC  shop  provision\\u{1b}[31m done\n");
    assert_eq!(controller.calls(), [format!("events shop {JOB} false 6")]);
    let lines = controller.run(&["events", "--json"]).await.json_lines();
    assert_eq!(lines[0]["number"], 7);
    assert_eq!(lines[0]["event"], json!({"kind": "step"}));
}

#[tokio::test]
async fn completions_and_the_manual_need_no_controller() {
    for args in [&["completions", "bash"][..], &["man"], &["help"], &["help", "move"]] {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ferry"));
        command.args(args).env("FERRY_TOKEN_FILE", "/nonexistent");
        let output = command.output().await.unwrap();
        assert!(output.status.success() && output.stdout.len() > 1000);
    }
}

/// What the packages carry as an example must be what Ferry reads.
#[test]
fn the_packaged_example_account_is_right() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/examples/account.toml");
    let account: Definition = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    account.check().unwrap();
    assert_eq!(account.sites.len(), 1);
}
