//! Questions: at a terminal, and where there is none.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fake::Controller;
use crate::{job, moving};

#[tokio::test]
async fn whoever_cannot_be_asked_is_told_what_to_do() {
    let controller = Controller::start(moving("done", "done")).await;
    for line in [
        &["move", "shop", "--to", "transit1"][..],
        &["rollback", "shop", "--json"],
        &["finalize", "shop"],
        &["finalize", "shop", "--erase"],
    ] {
        let ran = controller.run(line).await;
        assert_eq!(ran.code, 1, "{line:?}");
        assert!(ran.err.contains("--yes"), "{}", ran.err);
    }
    let calls = controller.calls();
    assert!(calls.iter().all(|call| call.starts_with("plan")), "{calls:?}");
}

/// Runs the program on a terminal of its own, and types `typed` when it has asked `prompt`.
async fn on_a_terminal(controller: &Controller, line: &str, prompt: &str, typed: &str) -> i32 {
    // Not as a child of the shell: some shells take an interruption too, and end by it.
    let line = format!("exec {} {line}", env!("CARGO_BIN_EXE_ferry"));
    shell_on_a_terminal(controller, &line, prompt, typed).await
}

async fn shell_on_a_terminal(
    controller: &Controller,
    line: &str,
    prompt: &str,
    typed: &str,
) -> i32 {
    let mut command = tokio::process::Command::new("script");
    command.args(["-qefc", line, "/dev/null"]);
    controller.point(&mut command);
    command
        .env("TERM", "xterm")
        .env("SHELL", "/bin/sh")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().expect("`script`, of the package bsdutils");
    // Kept open: the end of its input would end the terminal.
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let talk = async {
        let mut said = Vec::new();
        while !String::from_utf8_lossy(&said).contains(prompt) {
            let read = stdout.read_buf(&mut said).await.unwrap();
            assert!(read > 0, "no {prompt:?} in {:?}", String::from_utf8_lossy(&said));
        }
        stdin.write_all(typed.as_bytes()).await.unwrap();
        stdout.read_to_end(&mut said).await.unwrap();
        child.wait().await.unwrap().code().unwrap()
    };
    tokio::time::timeout(Duration::from_secs(30), talk).await.expect("an end")
}

#[tokio::test]
async fn at_a_terminal_one_is_asked() {
    let controller = Controller::start(moving("done", "done")).await;
    let answer =
        async |typed| on_a_terminal(&controller, "move shop --to transit1", "[y/N]", typed).await;
    for no in ["n\r", "\r", "\x03", "\x04"] {
        assert_eq!(answer(no).await, 4, "{no:?}");
    }
    assert!(!controller.calls().contains(&"start p1".to_owned()));
    assert_eq!(answer("what\ry\r").await, 0);
    assert!(controller.calls().contains(&"start p1".to_owned()));
}

#[tokio::test]
async fn erasing_wants_the_name_typed() {
    let controller = Controller::start(moving("done", "done")).await;
    let answer =
        async |typed| on_a_terminal(&controller, "finalize shop --erase", "to go on", typed).await;
    for no in ["y\r", "\r", "\x03", "\x04"] {
        assert_eq!(answer(no).await, 4, "{no:?}");
    }
    assert_eq!(controller.calls(), [] as [&str; 0]);
    assert_eq!(answer("shop\r").await, 0);
    assert_eq!(controller.calls()[0], "finalize shop true");
}

/// A move whose source was lost with the only word on its commit, or that was heard of.
fn lost(unheard: bool) -> crate::fake::Script {
    let mut unheard_of = job("running", "running");
    unheard_of["commit_unknown"] = true.into();
    unheard_of["commit_unheard"] = unheard.into();
    let mut open = job("running", "running");
    open["steps"][0]["name"] = "open".into();
    open["steps"][0]["phase"] = "done".into();
    crate::fake::Script {
        jobs: vec![unheard_of],
        watch: vec![vec![open]],
        hang: true,
        ..Default::default()
    }
}

#[tokio::test]
async fn opening_by_force_wants_the_name_of_the_source_typed() {
    let controller = Controller::start(lost(true)).await;
    let answer = async |typed| {
        on_a_terminal(&controller, "force-open shop", "off and isolated: ", typed).await
    };
    // Neither a yes, nor the target, nor the account.
    for no in ["y\r", "yes\r", "transit1\r", "shop\r", "web\r", "\r", "\x03", "\x04"] {
        assert_eq!(answer(no).await, 4, "{no:?}");
    }
    assert!(controller.calls().iter().all(|call| call.starts_with("jobs")), "nothing is forced");
    // Watched until it is open: the job goes on waiting for the source.
    assert_eq!(answer("web1\r").await, 0);
    assert!(controller.calls().contains(&"force shop web1".to_owned()));
}

#[tokio::test]
async fn opening_by_force_takes_no_yes_but_a_name_that_was_typed() {
    let controller = Controller::start(lost(true)).await;
    let ran = controller.run(&["force-open", "shop"]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("--source-is-off"), "{}", ran.err);
    assert_eq!(controller.run(&["force-open", "shop", "--yes"]).await.code, 2);
    let ran = controller.run(&["force-open", "shop", "--source-is-off", "web1"]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(
        controller.calls()[1..],
        ["force shop web1".to_owned(), "watch ".to_owned() + crate::JOB]
    );
    let heard_of = Controller::start(lost(false)).await;
    let ran = heard_of.run(&["force-open", "shop"]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("not committed, unheard"), "{}", ran.err);
    assert_eq!(heard_of.calls().len(), 1, "nothing is forced");
}

/// However a question ends, the person's terminal is as it was: nothing makes it raw.
#[tokio::test]
async fn a_question_leaves_the_terminal_as_it_is() {
    let controller = Controller::start(moving("done", "done")).await;
    let ferry = format!("{} move shop --to transit1", env!("CARGO_BIN_EXE_ferry"));
    let line = format!(
        "trap : INT; before=$(stty -g); {ferry}; code=$?; \
         [ \"$(stty -g)\" = \"$before\" ] && exit $code; exit 99"
    );
    for typed in ["n\r", "\x03"] {
        let code = shell_on_a_terminal(&controller, &line, "[y/N]", typed).await;
        assert_eq!(code, 4, "{typed:?}");
    }
}
