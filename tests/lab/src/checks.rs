//! What is checked without hosts: format, lints, the edges between crates, and every unit and
//! integration test against real servers of this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::progress::Task;
use crate::{build, cache, edges, packages, run};

/// What the tests start: servers, on private sockets, and the tools that look at what they did.
const TEST_PACKAGES: &[&str] = &[
    "acl",
    "attr",
    "bsdutils",
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
];
const NEXTEST: &str = "0.9.143";
const LIMIT: Duration = Duration::from_secs(3600);

/// How many tests passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// As expected.
    pub passed: u32,
    /// Not so.
    pub failed: u32,
}

impl Counts {
    /// Counts one test.
    pub fn count(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                self.failed += 1;
                eprintln!("FAILED {name}: {error:#}");
            }
        }
    }
}

/// Runs all checks. Each counts as a test; those of nextest count as its own line says.
pub fn run(counts: &mut Counts) -> Result<()> {
    let logs = build::target_dir()?.join("lab-checks");
    fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    counts.count("format", cargo(&logs, "format", &["fmt", "--all", "--check"]));
    counts.count("edges", edges::check());
    let lints =
        ["clippy", "--locked", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    counts.count("lints", cargo(&logs, "lints", &lints));
    packages::ensure(TEST_PACKAGES)?;
    let tests = nextest(&logs)?;
    counts.passed += tests.passed;
    counts.failed += tests.failed;
    Ok(())
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

/// Runs every test of the workspace, installing nextest if this machine has none.
fn nextest(logs: &Path) -> Result<Counts> {
    let present = Command::new("cargo").args(["nextest", "--version"]).output();
    let tools = cache::dir()?.join("tools");
    if !present.is_ok_and(|o| o.status.success()) && !tools.join("bin/cargo-nextest").exists() {
        let version = format!("cargo-nextest@{NEXTEST}");
        let root = tools.display().to_string();
        cargo(logs, "installing nextest", &["install", "--locked", &version, "--root", &root])?;
    }
    let task = Task::start("unit and integration tests");
    let log = log(logs, "tests");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut tests = Command::new("cargo");
    tests
        .args(["nextest", "run", "--locked", "--workspace", "--no-fail-fast", "--color=never"])
        .env("PATH", format!("{}:{path}", tools.join("bin").display()));
    let ended = run::logged(&mut tests, &log, &task, LIMIT);
    let text = fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
    let counts = summary(&text);
    if counts.failed > 0 {
        for line in text.lines().filter(|l| l.trim_start().starts_with("FAIL")) {
            eprintln!("{line}");
        }
        eprintln!("the tests' whole output is in {}", log.display());
    } else {
        // Not one test, or a build that failed: no summary to count by.
        ended?;
        ensure!(counts.passed > 0, "no test was run; see {}", log.display());
    }
    task.done();
    Ok(counts)
}

/// Reads nextest's closing line: `Summary [ 9.1s] 12 tests run: 11 passed (1 slow), 1 failed`.
fn summary(text: &str) -> Counts {
    let mut counts = Counts::default();
    let Some(line) = text.lines().rev().find(|l| l.trim_start().starts_with("Summary [")) else {
        return counts;
    };
    let Some((_, results)) = line.split_once("run:") else { return counts };
    for part in results.split(',') {
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
        assert_eq!(summary(text), Counts { passed: 9, failed: 3 });
        assert_eq!(summary("error: could not compile"), Counts::default());
    }
}
