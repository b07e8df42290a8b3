//! The vendors' client programs as child processes: a cleared environment, a user of their own,
//! an argument array (never a shell), bounded error output, and no life beyond the caller's.
//! It knows no engine.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use ferry_proto::Fault;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

/// As much of a program's error output as is kept: the end is dropped, since the first error is
/// the one that matters.
const MAX_STDERR: usize = 16 * 1024;

/// The longest that a client, here or at the other end, may neither take nor give a byte: one statement (an index on a large
/// table) can take long.
pub(crate) const STALL: Duration = Duration::from_secs(2 * 60 * 60);

/// What runs a program within limits: part of util-linux, which every Debian has.
const PRLIMIT: &str = "/usr/bin/prlimit";

/// Who a program runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunAs {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A program about to be run.
pub(crate) struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
    run_as: Option<RunAs>,
    confined: bool,
}

impl Program {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), args: Vec::new(), env: Vec::new(), run_as: None, confined: false }
    }

    pub(crate) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn args<I: IntoIterator<Item = S>, S: Into<OsString>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn run_as(mut self, run_as: RunAs) -> Self {
        self.run_as = Some(run_as);
        self
    }

    /// For a client that reads hostile input: it cannot start a process, write to a file, or dump
    /// core. (The limits bind because it does not run as root.)
    pub(crate) fn confined(mut self) -> Self {
        self.confined = true;
        self
    }

    fn command(&self) -> Command {
        let mut command = if self.confined {
            let mut command = Command::new(PRLIMIT);
            command.args(["--nproc=0:0", "--fsize=0:0", "--core=0:0", "--"]).arg(&self.path);
            command
        } else {
            Command::new(&self.path)
        };
        command
            .args(&self.args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", "/nonexistent")
            .env("LC_ALL", "C.UTF-8")
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(run_as) = self.run_as {
            // As root this also drops the supplementary groups.
            command.uid(run_as.uid).gid(run_as.gid);
        }
        command
    }

    /// Starts it.
    pub(crate) fn start(self) -> Result<Running, Fault> {
        let name = self.path.display().to_string();
        let mut child = self
            .command()
            .spawn()
            .map_err(|e| Fault::io(format!("{name} cannot be started"), &e))?;
        let stderr = tokio::spawn(first_errors(child.stderr.take()));
        Ok(Running { stdin: child.stdin.take(), stdout: child.stdout.take(), name, child, stderr })
    }

    /// Runs it without input and returns its output, at most `limit` bytes of it.
    pub(crate) async fn output(self, limit: usize) -> Result<Vec<u8>, Fault> {
        let mut running = self.start()?;
        running.close_input();
        let mut output = Vec::new();
        while let Some(part) = running.read().await? {
            if output.len() + part.len() > limit {
                return Err(Fault::permanent(format!(
                    "{} printed more than {limit} bytes",
                    running.name
                )));
            }
            output.extend_from_slice(&part);
        }
        running.finish().await?;
        Ok(output)
    }
}

async fn first_errors(stderr: Option<ChildStderr>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n) = stderr.read(&mut buffer).await {
        if n == 0 {
            break;
        }
        let room = MAX_STDERR.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..n.min(room)]);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

/// A started program. Dropping it kills the program.
pub(crate) struct Running {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: JoinHandle<String>,
}

impl Running {
    /// Gives it `bytes`. `Ok(false)`: it takes no more; [`Running::finish`] says why.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<bool, Fault> {
        let Some(stdin) = self.stdin.as_mut() else { return Ok(false) };
        match tokio::time::timeout(STALL, stdin.write_all(bytes)).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                self.stdin = None;
                Ok(false)
            }
            Ok(Err(error)) => Err(Fault::io(format!("{} takes no input", self.name), &error)),
            Err(_) => Err(self.stalled()),
        }
    }

    /// The next part of its output; none at the end.
    pub(crate) async fn read(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        let Some(stdout) = self.stdout.as_mut() else { return Ok(None) };
        let mut buffer = vec![0; 128 * 1024];
        match tokio::time::timeout(STALL, stdout.read(&mut buffer)).await {
            Ok(Ok(0)) => Ok(None),
            Ok(Ok(n)) => {
                buffer.truncate(n);
                Ok(Some(buffer))
            }
            Ok(Err(error)) => Err(Fault::io(format!("{} gives no output", self.name), &error)),
            Err(_) => Err(self.stalled()),
        }
    }

    /// Tells it that there is no more input.
    pub(crate) fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Its output, to be read beside the writing.
    pub(crate) fn take_output(&mut self) -> Option<ChildStdout> {
        self.stdout.take()
    }

    fn stalled(&self) -> Fault {
        Fault::transient(format!(
            "{} has not moved a byte for {} minutes",
            self.name,
            STALL.as_secs() / 60
        ))
        .remedy("look for a lock or a full disk on the database server, then try again")
    }

    /// Waits for its end. A fault if it failed, with what it said.
    pub(crate) async fn finish(mut self) -> Result<(), Fault> {
        self.stdin = None;
        let status = match tokio::time::timeout(STALL, self.child.wait()).await {
            Ok(status) => {
                status.map_err(|e| Fault::io(format!("{} cannot be waited for", self.name), &e))?
            }
            Err(_) => return Err(self.stalled()),
        };
        let said = self.stderr.await.unwrap_or_default();
        if status.success() {
            if !said.is_empty() {
                tracing::debug!(
                    program = self.name,
                    said,
                    "a database client had something to say"
                );
            }
            return Ok(());
        }
        let mut fault = Fault::permanent(format!("{} ended with {status}", self.name));
        fault.causes.extend(said.lines().take(8).map(|line| line.chars().take(400).collect()));
        Err(fault)
    }
}

/// The first of `candidates` that exists.
pub(crate) async fn first_existing(candidates: &[PathBuf]) -> Option<PathBuf> {
    for path in candidates {
        if tokio::fs::try_exists(path).await.unwrap_or(false) {
            return Some(path.clone());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: RunAs = RunAs { uid: 65534, gid: 65534 };

    #[tokio::test]
    async fn output_and_errors_are_kept_apart_and_bounded() {
        let out = Program::new("/bin/echo").arg("a b").output(100).await.expect("runs");
        assert_eq!(out, b"a b\n");
        assert!(Program::new("/bin/echo").arg("a b").output(2).await.is_err());
        let fault = Program::new("/bin/ls").arg("/no such").output(100).await.expect_err("fails");
        assert!(fault.causes.iter().any(|c| c.contains("no such")), "{fault}");
    }

    #[tokio::test]
    async fn the_environment_is_cleared_and_the_user_is_set() {
        let out = Program::new("/usr/bin/env").run_as(NOBODY).output(1000).await.expect("runs");
        let text = String::from_utf8(out).expect("text");
        assert!(!text.contains("CARGO"), "{text}");
        let out = Program::new("/usr/bin/id").run_as(NOBODY).output(1000).await.expect("runs");
        let text = String::from_utf8(out).expect("text");
        assert!(text.starts_with("uid=65534(") && !text.contains("root"), "{text}");
    }

    #[tokio::test]
    async fn a_confined_program_can_neither_start_others_nor_write_files() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .expect("opens it");
        let file = dir.path().join("x");
        // The shell's own words stand for what a client's escape would do.
        let script = "/bin/true || exit 3; echo x > \"$0\"";
        let run = |program: Program| {
            program.args(["-c", script]).arg(file.as_os_str()).run_as(NOBODY).output(100)
        };
        run(Program::new("/bin/sh")).await.expect("unconfined, it works");
        std::fs::remove_file(&file).expect("was written");
        run(Program::new("/bin/sh").confined()).await.expect_err("confined, it does not");
        assert!(!file.exists() || std::fs::read(&file).expect("readable").is_empty());
    }
}
