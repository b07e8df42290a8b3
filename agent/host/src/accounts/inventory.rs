//! Definitions that an executable prints as JSON, for providers with a panel. It runs as root with
//! a clean environment, so only root may be able to write it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use ferry_proto::account::Definition;
use serde_json::Value;

use super::{Gathered, Problem, Sourced, safe};
use crate::run::{Run, RunError};

/// How long an executable may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How much it may print.
const OUTPUT_CAP: usize = 16 << 20;

/// Asks one executable. What fails as a whole makes the inventory incomplete.
pub(super) fn ask(file: &Path, gathered: &mut Gathered) {
    match printed(file) {
        Ok(values) => {
            for (index, value) in values.into_iter().enumerate() {
                match definition(file, index, value) {
                    Ok(definition) => {
                        gathered.good.push(Sourced { definition, file: file.to_owned() });
                    }
                    Err(problem) => gathered.problems.push(problem),
                }
            }
        }
        Err(problem) => {
            gathered.problems.push(*problem);
            gathered.incomplete = true;
        }
    }
}

fn printed(file: &Path) -> Result<Vec<Value>, Box<Problem>> {
    let problem = |message: String, remedy: &str| Box::new(Problem::new(file, message, remedy));
    safe(file, "file")
        .map_err(|found| found.unwrap_or_else(|| problem("it has gone".into(), "load again")))?;
    let executable = fs::metadata(file).is_ok_and(|m| m.permissions().mode() & 0o100 != 0);
    if !executable {
        return Err(problem(
            "the file is not executable".to_owned(),
            "make it executable, or move it out of this directory",
        ));
    }
    let output = Run::new(file).looking().timeout(TIMEOUT).cap(OUTPUT_CAP).output().map_err(
        |e| match e {
            RunError::Timeout => problem(
                format!("it did not end within {} s and was killed", TIMEOUT.as_secs()),
                "make it faster",
            ),
            RunError::Io(e) => problem(format!("it could not be run: {e}"), "mend the executable"),
        },
    )?;
    if !output.status.success() {
        let message = format!("it ended with {}: {}", output.status, output.said());
        return Err(problem(message, "run it by hand as root and mend it"));
    }
    if output.cut {
        return Err(problem(
            format!("it printed more than {OUTPUT_CAP} bytes"),
            "let it print only the accounts of this server",
        ));
    }
    let value: Value = serde_json::from_slice(&output.stdout).map_err(|e| {
        let mut found = problem(
            format!("it printed no valid JSON: {e}"),
            "run it by hand as root and mend what it prints",
        );
        // The line of what it printed, not of the executable: said in the message only.
        found.line = None;
        found
    })?;
    list(value).ok_or_else(|| {
        problem(
            "it printed JSON that is not a list of definitions".to_owned(),
            "let it print an array of definitions, or an object with the array \"accounts\"",
        )
    })
}

fn list(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(values) => Some(values),
        Value::Object(mut object) if object.len() == 1 => match object.remove("accounts")? {
            Value::Array(values) => Some(values),
            _ => None,
        },
        _ => None,
    }
}

fn definition(file: &Path, index: usize, value: Value) -> Result<Definition, Problem> {
    let name = match value.get("name").and_then(Value::as_str) {
        Some(name) => {
            format!("accounts[{index}] ({:?})", name.chars().take(40).collect::<String>())
        }
        None => format!("accounts[{index}]"),
    };
    let remedy = "mend what the executable prints for this account";
    let definition: Definition = serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        let place = if path == "." { String::new() } else { format!(" at {path}") };
        Problem::new(file, format!("{name}{place}: {}", e.inner()), remedy)
    })?;
    definition.check().map_err(|e| Problem::new(file, format!("{name}: {e}"), remedy))?;
    Ok(definition)
}
