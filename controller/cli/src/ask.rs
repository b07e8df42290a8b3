//! Questions to the person at the terminal. Whoever cannot be asked is told how to agree in
//! advance.
//!
//! The terminal stays as it is: an answer is a line, edited by the terminal itself. Nothing has to
//! be restored, whenever and however the program ends.

use std::io::{self, BufRead, Write};

use ferry_proto::Fault;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::{Exit, Failure};
use crate::screen::Screen;

/// How to agree in advance to what a yes agrees to.
pub const SAY_YES: &str =
    "look at what it would do (--dry-run shows a move's plan), then say --yes";

/// Whether the person says yes. The usual answer is no.
pub async fn yes(screen: &Screen, question: String) -> Result<bool, Failure> {
    refuse_unless_askable(screen, SAY_YES)?;
    in_a_thread(move || {
        loop {
            let answer = line(&format!("{question} [y/N] "))?;
            match answer.as_deref().map(|text| text.trim().to_ascii_lowercase()).as_deref() {
                Some("y" | "yes") => return Ok(true),
                Some("" | "n" | "no") | None => return Ok(false),
                Some(_) => {}
            }
        }
    })
    .await
}

/// Whether the person types `name` when asked by `prompt`; `else_say` is how to agree in advance.
pub async fn typed(
    screen: &Screen,
    prompt: &'static str,
    name: String,
    else_say: &str,
) -> Result<bool, Failure> {
    refuse_unless_askable(screen, else_say)?;
    in_a_thread(move || {
        let typed = line(prompt)?;
        Ok(typed.is_some_and(|typed| typed.trim() == name))
    })
    .await
}

/// What a refusal ends with.
pub fn declined(screen: &Screen) -> Exit {
    screen.note("Nothing was changed.");
    Exit::Declined
}

fn refuse_unless_askable(screen: &Screen, else_say: &str) -> Result<(), Failure> {
    if screen.can_ask() && !screen.json() {
        return Ok(());
    }
    let why = if screen.json() {
        "with --json nothing is asked"
    } else {
        "there is no terminal to ask at"
    };
    Err(Fault::precondition(format!("this needs a yes, and {why}")).remedy(else_say).into())
}

/// The line that answers `prompt`; none if the input has ended.
fn line(prompt: &str) -> io::Result<Option<String>> {
    let mut screen = io::stderr();
    write!(screen, "{prompt}")?;
    screen.flush()?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer)?;
    Ok((read > 0).then_some(answer))
}

/// Reading a line blocks. Interrupting a question is saying no; its thread may be left reading,
/// which changes nothing of the terminal.
async fn in_a_thread(
    question: impl FnOnce() -> io::Result<bool> + Send + 'static,
) -> Result<bool, Failure> {
    // Before anything is asked: from here on an interruption is an answer.
    let mut interrupted = signal(SignalKind::interrupt())
        .map_err(|e| Failure::io("interruptions cannot be received", &e))?;
    let answer = tokio::task::spawn_blocking(question);
    let answer = tokio::select! {
        answer = answer => answer,
        _ = interrupted.recv() => {
            // The terminal has shown ^C behind the question.
            eprintln!();
            return Ok(false);
        }
    };
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) => Err(Failure::io("the answer cannot be read", &e)),
        Err(e) => Err(Fault::bug("the question failed").caused_by(&e).into()),
    }
}
