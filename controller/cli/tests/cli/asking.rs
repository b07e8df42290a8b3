//! Questions: at a terminal, and where there is none.

use tokio::io::AsyncWriteExt;

use crate::fake::Controller;
use crate::moving;

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
    assert!(
        calls.iter().all(|call| call.starts_with("plan")),
        "{calls:?}"
    );
}

/// Runs the program on a terminal of its own and types `typed`.
async fn on_a_terminal(controller: &Controller, line: &str, typed: &str) -> i32 {
    let mut command = tokio::process::Command::new("script");
    command.args([
        "-qefc",
        &format!("{} {line}", env!("CARGO_BIN_EXE_ferry")),
        "/dev/null",
    ]);
    controller.point(&mut command);
    command
        .env("TERM", "xterm")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::inherit())
        .kill_on_drop(true);
    let mut child = command.spawn().expect("`script`, of the package bsdutils");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(typed.as_bytes()).await.unwrap();
    // Kept open: the end of its input would end the terminal.
    let status = child.wait().await.unwrap();
    drop(stdin);
    status.code().unwrap()
}

#[tokio::test]
async fn at_a_terminal_one_is_asked() {
    let controller = Controller::start(moving("done", "done")).await;
    assert_eq!(
        on_a_terminal(&controller, "move shop --to transit1", "n").await,
        4
    );
    assert_eq!(
        on_a_terminal(&controller, "move shop --to transit1", "\r").await,
        4
    );
    assert!(!controller.calls().contains(&"start p1".to_owned()));
    assert_eq!(
        on_a_terminal(&controller, "move shop --to transit1", "y").await,
        0
    );
    assert!(controller.calls().contains(&"start p1".to_owned()));
}

#[tokio::test]
async fn erasing_wants_the_name_typed() {
    let controller = Controller::start(moving("done", "done")).await;
    assert_eq!(
        on_a_terminal(&controller, "finalize shop --erase", "y\r").await,
        4
    );
    assert_eq!(controller.calls(), [] as [&str; 0]);
    assert_eq!(
        on_a_terminal(&controller, "finalize shop --erase", "shop\r").await,
        0
    );
    assert_eq!(controller.calls()[0], "finalize shop true");
}
