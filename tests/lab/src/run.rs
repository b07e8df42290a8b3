//! Child processes: run to their end, within a limit, ended by a signal to us.
//!
//! Children get a process group of their own. So Ctrl-C on the terminal reaches only
//! this process, which then decides: a build is ended, an unmount is not.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::interrupt;
use crate::progress::Task;

/// How long an ordinary command may take.
pub const LIMIT: Duration = Duration::from_secs(120);
/// How often a wait looks for a signal.
const TICK: Duration = Duration::from_millis(200);
/// A daemon that a command left behind may hold its output open: do not wait for it.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);
/// So many characters of a command are shown.
const SHOWN_LIMIT: usize = 160;
/// So many lines of a failed command's log go into its error.
const LOG_TAIL: usize = 25;

/// What a finished command left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it complained of.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output as text if the command succeeded; else an error with all it said.
    pub fn ok(self) -> Result<String> {
        if self.status.success() {
            return Ok(self.text());
        }
        let said = format!("{}{}", self.error_text(), self.text());
        bail!("{}: {}", self.status, said.trim())
    }
}

/// Runs a command that must succeed and returns what it printed.
pub fn check(command: &mut Command) -> Result<String> {
    let line = shown(command);
    capture(command, &[], LIMIT).and_then(Output::ok).with_context(|| format!("running `{line}`"))
}

/// Runs a command to its end, whatever its exit code, with `input` as its standard input.
pub fn capture(command: &mut Command, input: &[u8], limit: Duration) -> Result<Output> {
    let line = shown(command);
    let mut child = command
        .process_group(0)
        .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{line}`"))?;
    let stdout = Drain::start(child.stdout.take());
    let stderr = Drain::start(child.stderr.take());
    let writer = feed(&mut child, input.to_vec());
    let status = wait(&mut child, limit).with_context(|| format!("waiting for `{line}`"))?;
    drop(writer);
    Ok(Output { status, stdout: stdout.finish(), stderr: stderr.finish() })
}

/// Runs a long command that must succeed. Its output goes to `log`, its last line to `task`.
pub fn logged(command: &mut Command, log: &Path, task: &Task, limit: Duration) -> Result<()> {
    let line = shown(command);
    let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("sharing the log")?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("starting `{line}`"))?;
    let status = wait_reporting(&mut child, limit, || task.detail(&tail(log, 1)))
        .with_context(|| format!("waiting for `{line}`"))?;
    if !status.success() {
        bail!("`{line}`: {status}; the end of {}:\n{}", log.display(), tail(log, LOG_TAIL));
    }
    Ok(())
}

/// The last lines of a log that say something.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let said: Vec<&str> = text.split(['\n', '\r']).filter(|l| !l.trim().is_empty()).collect();
    said[said.len().saturating_sub(lines)..].join("\n")
}

/// A command as a person would type it, for errors, and cut to what a person would read.
fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    let line = words.join(" ");
    match line.char_indices().nth(SHOWN_LIMIT) {
        Some((end, _)) => format!("{} ...", &line[..end]),
        None => line,
    }
}

fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    wait_reporting(child, limit, || ())
}

/// Waits for a child to end; ends it, with its process group, at a signal or at the limit.
fn wait_reporting(
    child: &mut Child,
    limit: Duration,
    mut report: impl FnMut(),
) -> Result<ExitStatus> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("watching a child process")?;
    let deadline = Instant::now() + limit;
    let tick = Timespec { tv_sec: 0, tv_nsec: TICK.as_nanos() as i64 };
    loop {
        // An interrupted poll is just an early look.
        let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&tick));
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        report();
        let verdict = interrupt::check().and_then(|()| match Instant::now() < deadline {
            true => Ok(()),
            false => bail!("it took longer than {} s", limit.as_secs()),
        });
        if let Err(reason) = verdict {
            // The group is the child's own; it cannot have been reaped yet.
            let _ = kill_process_group(pid, Signal::TERM);
            end(child, pid);
            return Err(reason);
        }
    }
}

/// Ends a child that was asked to end: by force if it does not within a few ticks.
fn end(child: &mut Child, group: Pid) {
    for _ in 0..15 {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        thread::sleep(TICK);
    }
    let _ = kill_process_group(group, Signal::KILL);
    let _ = child.wait();
}

/// Writes standard input from a thread of its own: a child may print before it reads.
fn feed(child: &mut Child, input: Vec<u8>) -> Option<JoinHandle<()>> {
    let mut pipe = child.stdin.take()?;
    // A child that closes its input early is not our error: its exit code tells.
    Some(thread::spawn(move || drop(pipe.write_all(&input))))
}

/// Collects one output stream of a child.
struct Drain {
    collected: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Drain {
    fn start(stream: Option<impl Read + Send + 'static>) -> Drain {
        let collected = Arc::<Mutex<Vec<u8>>>::default();
        let shared = Arc::clone(&collected);
        let reader = thread::spawn(move || {
            let Some(mut stream) = stream else { return };
            let mut chunk = vec![0; 64 << 10];
            while let Ok(n @ 1..) = stream.read(&mut chunk) {
                let mut collected = shared.lock().unwrap_or_else(PoisonError::into_inner);
                collected.extend_from_slice(&chunk[..n]);
            }
        });
        Drain { collected, reader }
    }

    fn finish(self) -> Vec<u8> {
        let deadline = Instant::now() + OUTPUT_GRACE;
        while !self.reader.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        std::mem::take(&mut *self.collected.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_input_and_exit_code_come_through() {
        let output = capture(&mut shell("cat; echo no >&2; exit 3"), b"hello", LIMIT).unwrap();
        assert_eq!(output.text(), "hello");
        assert_eq!(output.error_text(), "no\n");
        assert_eq!(output.status.code(), Some(3));
    }

    #[test]
    fn input_and_output_larger_than_a_pipe_do_not_block() {
        let input = vec![b'x'; 1 << 20];
        let output = capture(&mut shell("cat"), &input, LIMIT).unwrap();
        assert_eq!(output.stdout.len(), input.len());
    }

    #[test]
    fn a_command_that_takes_too_long_is_ended() {
        let started = Instant::now();
        let error = capture(&mut shell("sleep 60"), &[], Duration::from_millis(100)).unwrap_err();
        assert!(format!("{error:#}").contains("longer than"), "{error:#}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_daemon_that_holds_the_output_is_not_waited_for() {
        let started = Instant::now();
        let output = capture(&mut shell("sleep 30 & echo started"), &[], LIMIT).unwrap();
        assert_eq!(output.text(), "started\n");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = check(&mut shell("echo broken >&2; exit 1")).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("sh -c") && text.contains("broken"), "{text}");
    }
}
