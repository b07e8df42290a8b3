//! What is checked without hosts: format, lints, the edges between crates, and every unit and
//! integration test against real servers of this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::progress::Task;
use crate::{build, edges, interrupt, packages, run};

/// What the tests start: servers, on private sockets, and the tools that look at what they did.
const TEST_PACKAGES: &[&str] = &[
    "acl",
    "attr",
    "bsdutils",
    "btrfs-progs",
    "cron",
    "dovecot-imapd",
    "dovecot-lmtpd",
    "dovecot-pop3d",
    "e2fsprogs",
    "iproute2",
    "libcap2-bin",
    "mariadb-server",
    "nftables",
    "nginx",
    "openssl",
    "perl-base",
    "php-fpm",
    "postfix",
    "postgresql",
    "procps",
    "rsync",
    "systemd",
    "util-linux",
    "xfsprogs",
];
const LIMIT: Duration = Duration::from_secs(3600);
/// Characters of what is said in short.
const SHORT: usize = 500;

/// How many tests passed and failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// As expected.
    pub passed: u32,
    /// Not so.
    pub failed: u32,
    /// What failed, as far as it is told by name, and why in short: said once more in the end, where it is seen.
    pub failures: Vec<String>,
}

impl Counts {
    /// Counts one test.
    pub fn count(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                self.failed += 1;
                eprintln!("FAILED {name}: {error:#}");
                let cause = error.root_cause().to_string();
                let short = cause.lines().next().unwrap_or_default().chars().take(SHORT);
                self.failures.push(format!("FAILED {name}: {}", short.collect::<String>()));
            }
        }
    }
}

/// Runs all checks, each a test; those of the workspace count as their runner's own lines say. What
/// fails does not keep the rest from being tried.
pub fn run(counts: &mut Counts) -> Result<()> {
    let logs = build::target_dir()?.join("lab-checks");
    fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    counts.count("format", cargo(&logs, "format", &["fmt", "--all", "--check"]));
    counts.count("edges", edges::check());
    let lints =
        ["clippy", "--locked", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    counts.count("lints", cargo(&logs, "lints", &lints));
    if let Err(error) = packages::ensure(TEST_PACKAGES) {
        counts.count("packages for the tests", Err(error));
    }
    interrupt::check()?;
    match tests(&logs) {
        Ok(tests) => {
            counts.passed += tests.passed;
            counts.failed += tests.failed;
            counts.failures.extend(tests.failures);
        }
        Err(error) => counts.count("unit and integration tests", Err(error)),
    }
    interrupt::check()
}

fn cargo(logs: &Path, name: &str, argv: &[&str]) -> Result<()> {
    let task = Task::start(name);
    run::logged(Command::new("cargo").args(argv), &log(logs, name), &task, LIMIT)?;
    task.done();
    Ok(())
}

fn log(logs: &Path, name: &str) -> PathBuf {
    logs.join(format!("{name}.log"))
}

/// Runs every test of the workspace: with nextest where this machine has it, which runs them side by
/// side and ends one that hangs.
fn tests(logs: &Path) -> Result<Counts> {
    let present = Command::new("cargo").args(["nextest", "--version"]).output();
    let nextest = present.is_ok_and(|output| output.status.success());
    let log = log(logs, "tests");
    let task = Task::start("unit and integration tests");
    let mut tests = Command::new("cargo");
    tests.args(if nextest { &["nextest", "run"][..] } else { &["test"] });
    tests.args(["--locked", "--workspace", "--no-fail-fast", "--color=never"]);
    let ended = run::logged(&mut tests, &log, &task, LIMIT);
    let text = fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
    let mut counts = if nextest { nextest_summary(&text) } else { cargo_summary(&text) };
    // Nextest names each twice.
    for line in text.lines().filter(|l| is_failure(l)).map(|l| l.trim().to_owned()) {
        if !counts.failures.contains(&line) {
            eprintln!("{line}");
            counts.failures.push(line);
        }
    }
    if counts.failed == 0 {
        // Not one test, or a build that failed: nothing to count by.
        ended?;
        ensure!(counts.passed > 0, "no test was run; see {}", log.display());
    } else {
        eprintln!("the tests' whole output is in {}", log.display());
    }
    task.done();
    Ok(counts)
}

/// Whether a line of either runner names a test that failed.
fn is_failure(line: &str) -> bool {
    let line = line.trim();
    let nextest = ["FAIL [", "TIMEOUT [", "SIGABRT [", "SIGSEGV ["];
    nextest.iter().any(|word| line.starts_with(word))
        || (line.starts_with("test ") && line.ends_with("... FAILED"))
}

/// Reads nextest's closing line: `Summary [ 9.1s] 12 tests run: 11 passed (1 slow), 1 failed`.
fn nextest_summary(text: &str) -> Counts {
    let line = text.lines().rev().find(|l| l.trim_start().starts_with("Summary ["));
    line.and_then(|l| l.split_once("run:")).map_or_else(Counts::default, |(_, all)| sum(all, ','))
}

/// Adds up cargo's own: `test result: FAILED. 3 passed; 1 failed; 0 ignored; ...`, one for each program.
fn cargo_summary(text: &str) -> Counts {
    let results = text.lines().filter_map(|l| l.strip_prefix("test result: "));
    results.filter_map(|l| l.split_once(". ")).fold(Counts::default(), |so_far, (_, all)| {
        let these = sum(all, ';');
        Counts {
            passed: so_far.passed + these.passed,
            failed: so_far.failed + these.failed,
            failures: Vec::new(),
        }
    })
}

/// Reads `3 passed, 1 failed, 1 timed out`.
fn sum(results: &str, separator: char) -> Counts {
    let mut counts = Counts::default();
    for part in results.split(separator) {
        let mut words = part.split_whitespace();
        let (Some(number), Some(what)) = (words.next(), words.next()) else { continue };
        let number = number.parse().unwrap_or(0);
        match what {
            "passed" => counts.passed = number,
            "failed" | "timed" | "exec" => counts.failed += number,
            _ => {}
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_of_nextest_is_read() {
        let text = "...\n     Summary [   9.1s] 12 tests run: 9 passed (1 slow), 2 failed, 1 timed out, 3 skipped\n";
        assert_eq!(nextest_summary(text), Counts { passed: 9, failed: 3, ..Counts::default() });
        assert_eq!(nextest_summary("error: could not compile"), Counts::default());
    }

    #[test]
    fn the_lines_of_cargo_are_added_up() {
        let text = "running 4 tests\ntest a ... ok\ntest b ... FAILED\n\ntest result: FAILED. 3 passed; 1 failed; \
                    2 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\ntest result: ok. 2 passed; 0 failed; \
                    0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(cargo_summary(text), Counts { passed: 5, failed: 1, ..Counts::default() });
        assert!(is_failure("test b ... FAILED") && !is_failure("test a ... ok"));
        assert!(is_failure("        FAIL [   0.1s] ferry-lab checks::tests::b"));
        assert_eq!(cargo_summary("error: could not compile"), Counts::default());
    }
}
