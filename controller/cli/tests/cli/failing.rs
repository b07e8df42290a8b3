//! Faults, lost connections, interruptions.

use std::time::Duration;

use ferry_proto::Fault;
use serde_json::json;
use tonic::Code;

use crate::fake::{Controller, Ran, Script};
use crate::{job, plan};

#[tokio::test]
async fn a_lost_connection_is_made_again() {
    let watch = vec![vec![job("running", "running")], vec![], vec![job("done", "done")]];
    let script = Script { plan: plan(false), watch, ..Script::default() };
    let controller = Controller::start(script).await;
    let ran = controller.run(&["move", "shop", "--to", "transit1", "--yes"]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    let told = |text| ran.err.matches(text).count();
    assert_eq!(told("The connection to the controller was lost"), 1, "{}", ran.err);
    assert_eq!(told("The controller is back."), 1, "{}", ran.err);
    assert_eq!(controller.calls().len(), 5);
}

#[tokio::test]
async fn interrupting_leaves_the_move_alone_and_says_so() {
    let watch = vec![vec![job("running", "running")]];
    let script = Script { plan: plan(false), watch, hang: true, ..Script::default() };
    let controller = Controller::start(script).await;
    let mut child =
        controller.command(&["move", "shop", "--to", "transit1", "--yes"]).spawn().unwrap();
    // Its first line tells that it watches, and so that it minds interruptions.
    let mut lines = Lines::of(child.stderr.take().unwrap());
    lines.until("[1/1] Make the account on transit1").await;
    let pid = child.id().unwrap().to_string();
    let kill = tokio::process::Command::new("kill").args(["-INT", &pid]).status().await;
    assert!(kill.unwrap().success());
    lines.until("goes on").await;
    assert_eq!(Ran::of(&child.wait_with_output().await.unwrap()).code, 130);
    assert!(!controller.calls().iter().any(|call| call.starts_with("abort")));
}

/// What a running program says.
struct Lines(tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStderr>>);

impl Lines {
    fn of(stderr: tokio::process::ChildStderr) -> Self {
        use tokio::io::AsyncBufReadExt;
        Self(tokio::io::BufReader::new(stderr).lines())
    }

    /// Reads until a line holds `text`.
    async fn until(&mut self, text: &str) {
        let reading = async {
            loop {
                let line = self.0.next_line().await.unwrap();
                let line = line.unwrap_or_else(|| panic!("ended without {text:?}"));
                if line.contains(text) {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), reading).await.expect(text);
    }
}

#[tokio::test]
async fn the_controllers_faults_are_shown_whole() {
    let mut fault = Fault::precondition("the agent of web1 is not connected").remedy("start it");
    fault.causes = vec!["last seen \u{1b}[2Jyesterday".to_owned()];
    let script = Script { fault: Some((Code::Unavailable, fault.clone())), ..Script::default() };
    let controller = Controller::start(script).await;
    let ran = controller.run(&["move", "shop", "--to", "transit1"]).await;
    assert_eq!(ran.code, 1);
    for part in
        ["error: the agent of web1", "because last seen \\u{1b}[2Jyesterday", "to do   start it"]
    {
        assert!(ran.err.contains(part), "{part}: {}", ran.err);
    }
    let ran = controller.run(&["account", "list", "--json"]).await;
    assert_eq!(ran.code, 1);
    assert_eq!(ran.json(), json!({"error": fault, "exit_code": 1}));
}

#[tokio::test]
async fn no_controller_and_no_right_are_told_apart() {
    let controller = Controller::start(Script::default()).await;
    let other = Controller::start(Script::default()).await;
    let list =
        async |option: &str, value: &str| controller.run(&["server", "list", option, value]).await;
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();

    std::fs::write(controller.path("wrong"), "another-token").unwrap();
    let ran = list("--token-file", &text(controller.path("wrong"))).await;
    assert_eq!(ran.code, 8, "{}", ran.err);
    let missing = text(controller.path("missing"));
    let ran = list("--token-file", &missing).await;
    assert_eq!(ran.code, 8, "{}", ran.err);
    assert!(ran.err.contains("ferry-operators"), "{}", ran.err);

    let ran = list("--ca", &text(other.path("ca.pem"))).await;
    assert_eq!(ran.code, 7, "{}", ran.err);
    assert!(ran.err.contains("authority"), "{}", ran.err);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ran = list("--controller", &closed.to_string()).await;
    assert_eq!(ran.code, 7, "{}", ran.err);

    let ran = list("--ca", &missing).await;
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert_eq!(controller.run(&["move", "shop"]).await.code, 2);
    assert!(controller.calls().is_empty(), "{:?}", controller.calls());
}
