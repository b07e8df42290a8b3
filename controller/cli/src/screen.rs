//! Where output goes: results to standard output, everything else to standard error. With `--json`
//! standard output carries JSON and nothing else.

use std::io::{self, Write};

use console::style;
use ferry_proto::Fault;
use serde::Serialize;

use crate::exit::{Exit, Failure};
use crate::text::{escape_json, safe};

/// Both outputs.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    json: bool,
}

/// An error as `--json` shows it.
#[derive(Serialize)]
struct ErrorDocument<'a> {
    error: &'a Fault,
    exit_code: u8,
}

impl Screen {
    /// For people, or as JSON.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether standard output carries JSON.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether a person can be asked.
    pub fn can_ask(&self) -> bool {
        use std::io::IsTerminal;
        io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Whether what is shown may move.
    pub fn is_live(&self) -> bool {
        use std::io::IsTerminal;
        io::stderr().is_terminal()
    }

    /// Text of a result. Lines end themselves.
    pub fn text(&self, text: &str) -> Result<(), Failure> {
        write(text)
    }

    /// A result as one JSON document.
    pub fn document(&self, value: &impl Serialize) -> Result<(), Failure> {
        let json = serde_json::to_string_pretty(value).map_err(|e| unserialisable(&e))?;
        write(&(escape_json(&json) + "\n"))
    }

    /// One of several results, as a line of JSON.
    pub fn json_line(&self, value: &impl Serialize) -> Result<(), Failure> {
        let json = serde_json::to_string(value).map_err(|e| unserialisable(&e))?;
        write(&(escape_json(&json) + "\n"))
    }

    /// A line that is no result.
    pub fn note(&self, line: &str) {
        // There is nowhere to say that standard error is closed.
        let _ = writeln!(io::stderr(), "{line}");
    }

    /// Tells a failure; returns the code to end with.
    pub fn failure(&self, failure: &Failure) -> Exit {
        let Failure::Told { exit, fault } = failure else {
            return failure.exit();
        };
        if self.json {
            let document = ErrorDocument { error: fault, exit_code: *exit as u8 };
            // The code says it as well.
            let _ = self.json_line(&document);
        }
        self.note(&format!("{} {}", style("error:").for_stderr().red().bold(), fault_text(fault)));
        *exit
    }
}

/// A fault in lines: what happened, why, what to do.
pub fn fault_text(fault: &Fault) -> String {
    let mut text = safe(&fault.message);
    for (i, cause) in fault.causes.iter().enumerate() {
        let label = if i == 0 { "because" } else { "" };
        text.push_str(&format!("\n  {label:8}{}", safe(cause)));
    }
    if !fault.remedy.is_empty() {
        text.push_str(&format!("\n  {:8}{}", "to do", safe(&fault.remedy)));
    }
    text
}

fn write(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::io("the output cannot be written", &e),
    })
}

fn unserialisable(error: &serde_json::Error) -> Failure {
    Fault::bug("the answer cannot be shown as JSON").caused_by(error).into()
}
