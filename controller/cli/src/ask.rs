//! Questions to the person at the terminal. Whoever cannot be asked is told how to agree in
//! advance.

use std::io::ErrorKind;

use dialoguer::console::Term;
use dialoguer::{Confirm, Input};
use ferry_proto::Fault;
use ferry_proto::ids::AccountName;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::{Exit, Failure};
use crate::screen::Screen;

/// Whether the person says yes. The usual answer is no.
pub async fn yes(screen: &Screen, question: String) -> Result<bool, Failure> {
    refuse_unless_askable(screen)?;
    in_a_thread(move || Confirm::new().with_prompt(question).default(false).interact()).await
}

/// Whether the person types the account's name.
pub async fn typed(screen: &Screen, account: &AccountName) -> Result<bool, Failure> {
    refuse_unless_askable(screen)?;
    let prompt = "Type the account's name to go on";
    let name = account.to_string();
    in_a_thread(move || {
        let typed: String = Input::new().with_prompt(prompt).allow_empty(true).interact_text()?;
        Ok(typed.trim() == name)
    })
    .await
}

/// What a refusal ends with.
pub fn declined(screen: &Screen) -> Exit {
    screen.note("Nothing was changed.");
    Exit::Declined
}

fn refuse_unless_askable(screen: &Screen) -> Result<(), Failure> {
    if screen.can_ask() && !screen.json() {
        return Ok(());
    }
    let why = if screen.json() {
        "with --json nothing is asked"
    } else {
        "there is no terminal to ask at"
    };
    Err(Fault::precondition(format!("this needs a yes, and {why}"))
        .remedy("look at what it would do (--dry-run shows a move's plan), then say --yes")
        .into())
}

/// The terminal is read by blocking calls. Interrupting a question is saying no; its thread may be
/// left reading, and the cursor is hidden meanwhile.
async fn in_a_thread(
    question: impl FnOnce() -> dialoguer::Result<bool> + Send + 'static,
) -> Result<bool, Failure> {
    // Before anything is asked: from here on an interruption is an answer.
    let mut interrupted = signal(SignalKind::interrupt())
        .map_err(|e| Failure::io("interruptions cannot be received", &e))?;
    let answer = tokio::task::spawn_blocking(question);
    let answer = tokio::select! {
        answer = answer => answer,
        _ = interrupted.recv() => {
            // A cursor that cannot be shown was not hidden.
            let _ = Term::stderr().show_cursor();
            return Ok(false);
        }
    };
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(dialoguer::Error::IO(e))) if e.kind() == ErrorKind::Interrupted => Ok(false),
        Ok(Err(dialoguer::Error::IO(e))) => Err(Failure::io("the answer cannot be read", &e)),
        Err(e) => Err(Fault::bug("the question failed").caused_by(&e).into()),
    }
}
