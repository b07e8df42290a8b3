//! The accounts of this host: the definitions in `accounts.d`, and what the executables in
//! `inventory.d` print. A bad definition is a problem with its file, line and remedy, and disturbs
//! no other. Knows nothing of how an account is moved.

mod conflicts;
mod inventory;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ferry_proto::account::Definition;
use ferry_proto::ids::AccountName;
use serde::{Deserialize, Serialize};

use crate::durable;

/// Where definitions are.
pub const ACCOUNTS_DIRECTORY: &str = "/etc/ferry/accounts.d";
/// Where executables that print definitions are.
pub const INVENTORY_DIRECTORY: &str = "/etc/ferry/inventory.d";

/// What to do about a field that is not right.
const EXAMPLE: &str =
    "mend this line; /usr/share/doc/ferry-agent/examples/account.toml shows every field";

/// The largest definition file.
const FILE_CAP: u64 = 1 << 20;
/// The most entries of a directory that are looked at.
const ENTRIES_CAP: usize = 100_000;

/// All accounts, and all that is wrong with definitions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The accounts whose definitions are good.
    pub accounts: BTreeMap<AccountName, Definition>,
    /// What is wrong with the others.
    pub problems: Vec<Problem>,
    /// Whether a whole source could not be asked (an executable failed, a directory could not be
    /// read). An account that is missing is then not known to be gone.
    pub incomplete: bool,
}

/// Something wrong with a definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The file, or the executable that printed the definition.
    pub file: PathBuf,
    /// The line, counted from 1, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// What is wrong, one sentence.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.file.display().fmt(f)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {} ({})", self.message, self.remedy)
    }
}

impl Problem {
    fn new(file: &Path, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: None, message: message.into(), remedy: remedy.into() }
    }

    fn at(mut self, line: Option<usize>) -> Self {
        self.line = line;
        self
    }
}

/// A good definition and where it came from.
#[derive(Debug)]
struct Sourced {
    definition: Definition,
    file: PathBuf,
}

/// What a run of `load` has gathered so far.
#[derive(Debug, Default)]
struct Gathered {
    good: Vec<Sourced>,
    problems: Vec<Problem>,
    incomplete: bool,
}

/// Loads every definition. Directories that do not exist are empty.
pub fn load(accounts: &Path, inventory: &Path) -> Inventory {
    let mut gathered = Gathered::default();
    for file in entries(accounts, &mut gathered) {
        if file.extension().is_some_and(|e| e == "toml") {
            match load_file(&file) {
                Ok(definition) => gathered.good.push(Sourced { definition, file }),
                Err(problem) => gathered.problems.push(problem),
            }
        }
    }
    for file in entries(inventory, &mut gathered) {
        inventory::ask(&file, &mut gathered);
    }
    let (good, conflicts) = conflicts::sort_out(gathered.good);
    gathered.problems.extend(conflicts);
    Inventory {
        accounts: good.into_iter().map(|d| (d.name.clone(), d)).collect(),
        problems: gathered.problems,
        incomplete: gathered.incomplete,
    }
}

/// What several of these definitions claim, so that neither could be moved: by account.
pub(crate) fn clashing(all: &[Definition]) -> Vec<(AccountName, String)> {
    let named = |d: &Definition| PathBuf::from(format!("{}.toml", d.name));
    let sourced = all.iter().map(|d| Sourced { definition: d.clone(), file: named(d) }).collect();
    let (_, problems) = conflicts::sort_out(sourced);
    let of = |p: &Problem| all.iter().find(|d| named(d) == p.file).map(|d| d.name.clone());
    problems.iter().filter_map(|p| Some((of(p)?, p.message.clone()))).collect()
}

/// The entries of a directory that are not hidden, sorted.
fn entries(directory: &Path, gathered: &mut Gathered) -> Vec<PathBuf> {
    match safe(directory, "directory").and_then(|()| list(directory)) {
        Ok(entries) => entries,
        Err(None) => Vec::new(),
        Err(Some(problem)) => {
            gathered.problems.push(*problem);
            gathered.incomplete = true;
            Vec::new()
        }
    }
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, Option<Box<Problem>>> {
    let failed = |e: io::Error| {
        Some(Box::new(Problem::new(
            directory,
            format!("the directory could not be read: {e}"),
            "mend the directory",
        )))
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            found.push(entry.path());
        }
        if found.len() > ENTRIES_CAP {
            return Err(Some(Box::new(Problem::new(
                directory,
                format!("the directory has more than {ENTRIES_CAP} entries"),
                "remove what does not belong there",
            ))));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether only root can have written `path`. `Err(None)`: it does not exist.
fn safe(path: &Path, kind: &str) -> Result<(), Option<Box<Problem>>> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(None),
        Err(e) => {
            let message = format!("the {kind} could not be examined: {e}");
            return Err(Some(Box::new(Problem::new(path, message, "mend the path"))));
        }
    };
    let right_kind = if kind == "directory" { metadata.is_dir() } else { metadata.is_file() };
    if !right_kind {
        let what = if kind == "directory" { "a directory" } else { "a regular file" };
        let message = format!("this is not {what}");
        return Err(Some(Box::new(Problem::new(path, message, format!("put {what} there")))));
    }
    let mode = metadata.permissions().mode() & 0o7777;
    let group_may_write = mode & 0o020 != 0 && metadata.gid() != 0;
    if metadata.uid() != 0 || group_may_write || mode & 0o002 != 0 {
        return Err(Some(Box::new(Problem::new(
            path,
            format!(
                "the {kind} belongs to user {} and has mode {mode:04o}: others than root may write it",
                metadata.uid()
            ),
            format!("run: chown root:root {0} && chmod go-w {0}", path.display()),
        ))));
    }
    Ok(())
}

fn load_file(file: &Path) -> Result<Definition, Problem> {
    safe(file, "file").map_err(|problem| match problem {
        Some(problem) => *problem,
        None => Problem::new(file, "the file has gone", "load again"),
    })?;
    let bytes = match durable::read(file, FILE_CAP) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(Problem::new(file, "the file has gone", "load again")),
        Err(fault) => return Err(Problem::new(file, fault.to_string(), "mend the file")),
    };
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = line_of(e.as_bytes(), e.utf8_error().valid_up_to());
        Problem::new(file, "the file is not UTF-8", "save it as UTF-8").at(Some(line))
    })?;
    let definition = parse(file, &text)?;
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    if stem != definition.name.as_str() {
        let message =
            format!("the file defines account {}, but is named {stem}.toml", definition.name);
        let remedy = format!("name the file {}.toml, or set name = \"{stem}\"", definition.name);
        return Err(Problem::new(file, message, remedy).at(locate(&text, "name")));
    }
    Ok(definition)
}

pub(crate) fn parse(file: &Path, text: &str) -> Result<Definition, Problem> {
    let definition: Definition = toml::from_str(text).map_err(|e| {
        let line = e.span().map(|span| line_of(text.as_bytes(), span.start));
        let message = e.message().trim().replace('\n', "; ");
        Problem::new(file, message, EXAMPLE).at(line)
    })?;
    definition.check().map_err(|e| {
        let line = locate(text, &e.field);
        Problem::new(file, e.to_string(), format!("mend {} in this file", e.field)).at(line)
    })?;
    Ok(definition)
}

/// The line, counted from 1, of the byte at `offset`.
fn line_of(text: &[u8], offset: usize) -> usize {
    1 + text[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count()
}

/// The line of a field written as `sites[0].php.max_children`, or of the nearest thing around it.
fn locate(text: &str, field: &str) -> Option<usize> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let mut offset = None;
    let mut table = Some(document.get_ref());
    let mut items: Option<&toml::de::DeArray<'_>> = None;
    for part in field.split(['.', '[']) {
        let value = if let Some(index) = part.strip_suffix(']') {
            items.and_then(|items| items.get(index.parse::<usize>().ok()?))
        } else {
            table.and_then(|table| table.iter().find(|(k, _)| k.get_ref() == part).map(|(_, v)| v))
        };
        let Some(value) = value else { break };
        offset = Some(value.span().start);
        table = value.get_ref().as_table();
        items = value.get_ref().as_array();
    }
    offset.map(|offset| line_of(text.as_bytes(), offset))
}

#[cfg(test)]
mod tests;
