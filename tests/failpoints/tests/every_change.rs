//! Fault tests learn their points from what the programs do: a change that comes by no point is never struck.
//! So what changes something outside a program is written in few places, and each of them is known here, with why
//! it is covered. A new one makes this fail: give it points, or say here why it needs none.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The agent's crates. Not `agent/files`: a point for each file of a home would be thousands; what peers ask of
/// each other is between points, whole.
const CRATES: [&str; 4] =
    ["agent/src", "agent/host/src", "agent/traffic/src", "agent/databases/src"];

/// What changes files, processes or services by itself.
const CHANGES: [&str; 22] = [
    "fs::write(",
    "fs::rename(",
    "fs::copy(",
    "fs::hard_link(",
    "set_permissions(",
    "fs::symlink(",
    "fs::remove_file",
    "fs::remove_dir",
    "fs::create_dir",
    "chown(",
    "OpenOptions::new",
    "File::create",
    "DirBuilder::new",
    "renameat_with(",
    "NamedTempFile::new",
    ".persist(",
    "Command::new(",
    "signal::kill(",
    "killpg(",
    "send_signal(",
    "set_len(",
    "rustix::fs::unlink",
];

/// Where they are, how many, and why that is enough.
const KNOWN: &[(&str, usize, &str)] = &[
    (
        "agent/databases/src/child.rs",
        2,
        "clients that dump and load: `Points` stands around the whole",
    ),
    (
        "agent/databases/src/mariadb/files.rs",
        1,
        "what a crash of MariaDB has left; before and after it a drop, which has points",
    ),
    ("agent/host/src/durable.rs", 17, "each function goes by `change`, which has the points"),
    (
        "agent/host/src/processes/stop.rs",
        3,
        "`stop_all` has points; `kill_one` ends what a reload was to end, which has points",
    ),
    ("agent/host/src/run.rs", 2, "each run that changes something is between points"),
    ("agent/src/discover.rs", 2, "proposals of definitions, for a person"),
    ("agent/src/doctor/own.rs", 2, "what a person has told the doctor to remove"),
    (
        "agent/src/ledger/file.rs",
        9,
        "records, rereading and compaction are between points; an empty ledger says nothing yet",
    ),
    ("agent/src/small_file.rs", 5, "both changes are between points"),
    ("agent/src/upgraded.rs", 1, "it only asks"),
    (
        "agent/traffic/src/firewall/kernel.rs",
        1,
        "what changes something goes by `change`, which has the points",
    ),
    (
        "agent/traffic/src/mail/dovecot.rs",
        1,
        "an empty directory, after its files, which have points",
    ),
    (
        "agent/traffic/src/mail/postfix.rs",
        1,
        "ends a process that a reload has ended, which has points",
    ),
    (
        "agent/traffic/src/mail/run.rs",
        1,
        "what changes something goes by `change`, which has the points",
    ),
    (
        "agent/traffic/src/mail/store.rs",
        11,
        "files go by `change`, which has the points; directories say nothing, and the lock neither",
    ),
    (
        "agent/traffic/src/redirector/sockets.rs",
        2,
        "the sockets of a redirector that systemd does not start",
    ),
    (
        "agent/traffic/src/redirector/store.rs",
        3,
        "saving is between points; the rest is what a crash has left",
    ),
];

#[test]
fn every_change_is_written_where_there_are_points() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = BTreeMap::new();
    for directory in CRATES {
        for file in sources(&root.join(directory)) {
            let changes = changes(&fs::read_to_string(&file).unwrap());
            if changes > 0 {
                let name = file.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                found.insert(name, changes);
            }
        }
    }
    let known: BTreeMap<String, usize> =
        KNOWN.iter().map(|(file, count, _)| ((*file).to_owned(), *count)).collect();
    assert_eq!(found, known);
}

/// What is compiled into programs, below a directory.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let of_tests = ["tests", "testing", "hostile", "tests.rs", "web_fixture.rs", "failing.rs"];
        if of_tests.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            all.extend(sources(&path));
        } else if name.ends_with(".rs") {
            all.push(path);
        }
    }
    all
}

/// How many changes a source names, its comments, imports and tests apart.
fn changes(text: &str) -> usize {
    let program = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = program.lines().map(str::trim_start);
    let code = lines.filter(|line| !line.starts_with("//") && !line.starts_with("use "));
    code.map(|line| CHANGES.iter().map(|change| line.matches(change).count()).sum::<usize>()).sum()
}

#[test]
fn what_is_a_change_is_seen_and_what_is_not_is_not() {
    let text = "//! fs::write(\nuse std::fs;\nfn f() {\n    fs::write(a, b)?;\n    fs::remove_file(a);\n}\n\
                #[cfg(test)]\nmod tests {\n    fs::write(c, d);\n}\n";
    assert_eq!(changes(text), 2);
}
