//! Runs the mail servers' own programs: arguments as an array, a bound on time and on output.
//! Knows nothing of what they are for.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use ferry_failpoints::around_async;
use ferry_proto::Fault;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::process::Command;

/// The most that is kept of each stream; `doveconf -n` and `postconf -n` stay far below.
const MAX_OUTPUT: u64 = 4 << 20;

/// What a program that ran said.
#[derive(Debug)]
pub(super) struct Output {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }
}

/// A program with its first arguments (`-c` and the configuration of a private instance).
#[derive(Debug, Clone)]
pub(super) struct Program<'a> {
    pub path: &'a Path,
    pub config: Option<&'a Path>,
    pub timeout: Duration,
}

impl Program<'_> {
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.path);
        if let Some(config) = self.config {
            command.arg("-c").arg(config);
        }
        command
            .args(args.iter().map(OsString::from))
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs it to its end. None: the program is not installed.
    ///
    /// # Errors
    /// When it cannot be started, or takes longer than its bound.
    pub async fn try_run(&self, args: &[&str]) -> Result<Option<Output>, Fault> {
        self.start(self.command(args), args, "").await
    }

    /// Runs it to its end with `input` on its standard input, whatever its exit code.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub async fn feed(&self, args: &[&str], input: &str) -> Result<Output, Fault> {
        let mut command = self.command(args);
        command.stdin(Stdio::piped());
        self.start(command, args, input).await?.ok_or_else(|| self.absent())
    }

    async fn start(
        &self,
        mut command: Command,
        args: &[&str],
        input: &str,
    ) -> Result<Option<Output>, Fault> {
        let name = self.path.display();
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Fault::io(format!("{name} cannot be started"), &e)),
        };
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let ends =
            async { tokio::join!(write(stdin, input), read(stdout), read(stderr), child.wait()) };
        let ((), stdout, stderr, status) =
            tokio::time::timeout(self.timeout, ends).await.map_err(|_| {
                Fault::transient(format!(
                    "{name} {} did not end within {} s",
                    args.first().unwrap_or(&""),
                    self.timeout.as_secs()
                ))
            })?;
        let status =
            status.map_err(|e| Fault::io(format!("the end of {name} was not seen"), &e))?;
        Ok(Some(Output { code: status.code(), stdout, stderr }))
    }

    /// Runs it to its end, whatever its exit code.
    ///
    /// # Errors
    /// As [`Program::try_run`], and when it is not installed.
    pub async fn run(&self, args: &[&str]) -> Result<Output, Fault> {
        self.try_run(args).await?.ok_or_else(|| self.absent())
    }

    pub fn absent(&self) -> Fault {
        Fault::precondition(format!("{} is not installed", self.path.display()))
            .remedy("install Postfix and Dovecot on this server")
    }

    /// Runs it, and takes an exit code other than 0 for a failure.
    ///
    /// # Errors
    /// As [`Program::run`], and when it fails.
    pub async fn succeed(&self, args: &[&str]) -> Result<String, Fault> {
        self.try_succeed(args).await?.ok_or_else(|| self.absent())
    }

    /// [`Program::succeed`]; none: it is not installed.
    ///
    /// # Errors
    /// As [`Program::try_run`], and when it fails.
    pub async fn try_succeed(&self, args: &[&str]) -> Result<Option<String>, Fault> {
        let Some(output) = self.try_run(args).await? else { return Ok(None) };
        if output.ok() {
            return Ok(Some(output.stdout));
        }
        let mut fault = Fault::permanent(format!(
            "{} {} failed with {}",
            self.path.display(),
            args.first().unwrap_or(&""),
            output.code.map_or("a signal".to_owned(), |c| format!("exit code {c}"))
        ));
        fault.causes.extend(output.stderr.lines().take(5).map(str::to_owned));
        Err(fault)
    }

    /// [`Program::succeed`] of what changes something; fault tests know the change by `name`.
    ///
    /// # Errors
    /// As [`Program::succeed`].
    pub async fn change(&self, name: &str, args: &[&str]) -> Result<(), Fault> {
        let failed = |e| Fault::io(format!("{} cannot be run", self.path.display()), &e);
        around_async(|| name.to_owned(), failed, self.succeed(args)).await.map(drop)
    }
}

async fn write(stream: Option<impl AsyncWrite + Unpin>, input: &str) {
    let Some(mut stream) = stream else { return };
    // A program that ends before it has read all says so by its exit code.
    let _ = stream.write_all(input.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// Reads to the end, keeping no more than the bound, so that the program is never blocked.
async fn read(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else {
        return String::new();
    };
    let mut kept = Vec::new();
    // What cannot be read is seen in the exit code.
    let _ = (&mut stream).take(MAX_OUTPUT).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}
