//! Runs other programs: by argument vector, with a clean environment, a deadline, and a bound on
//! what they may say. Knows nothing of what the programs do, but whether they change something: each that
//! does not say otherwise does, and is run between two failpoints.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ferry_failpoints::around;
use ferry_proto::{Fault, FaultClass};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long output may still arrive after the program itself has ended: a child of it may hold the
/// pipes for ever.
const AFTERMATH: Duration = Duration::from_millis(200);

/// The PATH of every program that Ferry runs.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to run.
#[derive(Debug)]
pub(crate) struct Run {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    input: Vec<u8>,
    timeout: Duration,
    cap: usize,
    change: Change,
}

/// What fault tests know a run by.
#[derive(Debug)]
enum Change {
    /// It changes nothing.
    None,
    /// By the program.
    Program,
    /// By this name.
    Named(String),
}

/// What a program that ended has left.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Whether one of the two was longer than the bound and was cut.
    pub(crate) cut: bool,
}

/// Why a program has no result.
#[derive(Debug)]
pub(crate) enum RunError {
    /// It could not be started or listened to.
    Io(io::Error),
    /// It was still running at its deadline and was killed, with its process group.
    Timeout,
}

impl Run {
    pub(crate) fn new(program: impl AsRef<Path>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: vec![
                ("PATH".into(), PATH.into()),
                ("LC_ALL".into(), "C".into()),
                ("HOME".into(), "/".into()),
            ],
            directory: None,
            input: Vec::new(),
            timeout: Duration::from_secs(30),
            cap: 64 * 1024,
            change: Change::Program,
        }
    }

    /// It only looks: it changes nothing.
    pub(crate) fn looking(mut self) -> Self {
        self.change = Change::None;
        self
    }

    /// What fault tests know the change by, if the program's name does not say it.
    pub(crate) fn named(mut self, change: impl Into<String>) -> Self {
        self.change = Change::Named(change.into());
        self
    }

    pub(crate) fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub(crate) fn arguments<S: AsRef<OsStr>>(mut self, all: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(all.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Replaces the environment.
    pub(crate) fn environment(mut self, all: Vec<(OsString, OsString)>) -> Self {
        self.environment = all;
        self
    }

    pub(crate) fn directory(mut self, directory: PathBuf) -> Self {
        self.directory = Some(directory);
        self
    }

    /// What the program reads on its standard input: nothing, unless told.
    pub(crate) fn input(mut self, input: Vec<u8>) -> Self {
        self.input = input;
        self
    }

    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How much of each of the two outputs is kept.
    pub(crate) fn cap(mut self, cap: usize) -> Self {
        self.cap = cap;
        self
    }

    /// Runs it to its end.
    pub(crate) fn output(self) -> Result<Output, RunError> {
        self.output_telling(|| {})
    }

    /// The same; says when there is a process.
    pub(crate) fn output_telling(self, begun: impl FnOnce()) -> Result<Output, RunError> {
        let name = match &self.change {
            Change::None => return self.run(begun),
            Change::Program => {
                let program = self.program.file_name().unwrap_or_default();
                format!("program.{}", program.to_string_lossy())
            }
            Change::Named(name) => name.clone(),
        };
        around(|| name, RunError::Io, || self.run(begun))
    }

    fn run(self, begun: impl FnOnce()) -> Result<Output, RunError> {
        let mut child = self.spawn().map_err(RunError::Io)?;
        begun();
        let deadline = Instant::now() + self.timeout;
        let talk = Talk::begin(&mut child, self.input, self.cap)
            .and_then(|mut talk| talk.until(deadline).map(|ended| (talk, ended)));
        if !matches!(talk, Ok((_, true))) {
            end_group(&child);
        }
        // The child has ended or was just killed: this does not wait for long.
        let status = child.wait().map_err(RunError::Io)?;
        match talk.map_err(RunError::Io)? {
            (_, false) => Err(RunError::Timeout),
            (talk, true) => Ok(Output {
                status,
                stdout: talk.stdout.bytes,
                stderr: talk.stderr.bytes,
                cut: talk.stdout.cut || talk.stderr.cut,
            }),
        }
    }

    /// Runs it; any end but success is a fault that says `what` could not be done.
    pub(crate) fn succeed(self, what: &str) -> Result<Output, Fault> {
        let program = self.program.display().to_string();
        let timeout = self.timeout;
        let output = self.output().map_err(|e| e.fault(what, &program, timeout))?;
        if output.status.success() {
            return Ok(output);
        }
        let mut fault = Fault::permanent(what.to_owned());
        fault.causes.push(format!("{program}: {}", output.status));
        let said = output.said();
        if !said.is_empty() {
            fault.causes.push(said);
        }
        Err(fault)
    }

    fn spawn(&self) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().process_group(0);
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        let input = if self.input.is_empty() { Stdio::null() } else { Stdio::piped() };
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    }
}

impl RunError {
    /// As a fault: `what` could not be done, by `program`.
    pub(crate) fn fault(self, what: &str, program: &str, timeout: Duration) -> Fault {
        match self {
            Self::Io(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut fault = Fault::precondition(what.to_owned())
                    .remedy("install the Debian package that holds the program");
                fault.causes.push(format!("{program} is not installed"));
                fault
            }
            Self::Io(e) => {
                let mut fault = Fault::io(what.to_owned(), &e);
                fault.causes.insert(0, format!("{program} could not be run"));
                fault
            }
            Self::Timeout => {
                let mut fault = Fault::new(FaultClass::Transient, what.to_owned());
                fault.causes.push(format!("{program} did not end within {} s", timeout.as_secs()));
                fault
            }
        }
    }
}

impl Output {
    /// What it said, for a person: standard error, else standard output; control characters
    /// removed, at most 2,000 characters.
    pub(crate) fn said(&self) -> String {
        let bytes = if self.stderr.trim_ascii().is_empty() { &self.stdout } else { &self.stderr };
        printable(bytes, 2000)
    }

    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Text that is safe to show: one line's worth of `bytes`, control characters as spaces.
pub(crate) fn printable(bytes: &[u8], limit: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let clean: String =
        text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(limit).collect();
    clean.trim_end().to_owned()
}

fn end_group(child: &Child) {
    // The leader has not been waited for: its process group id cannot belong to another.
    if let Ok(pid) = i32::try_from(child.id()) {
        let group = nix::unistd::Pid::from_raw(pid);
        // An error says that nobody is left in the group, which is what is wanted.
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
    }
}

/// One output pipe.
#[derive(Debug)]
struct Listener<P> {
    pipe: Option<P>,
    bytes: Vec<u8>,
    cut: bool,
}

impl<P: Read + AsFd> Listener<P> {
    fn new(pipe: Option<P>) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            set_nonblocking(pipe)?;
        }
        Ok(Self { pipe, bytes: Vec::new(), cut: false })
    }

    /// Takes what has arrived. Beyond the cap it is read and dropped, so that the program is not
    /// stopped by a full pipe.
    fn listen(&mut self, cap: usize) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        let mut buffer = [0; 16 * 1024];
        match pipe.read(&mut buffer) {
            Ok(0) => self.pipe = None,
            Ok(n) => {
                let keep = n.min(cap - self.bytes.len());
                self.bytes.extend_from_slice(&buffer[..keep]);
                self.cut |= keep < n;
            }
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

/// The talk with a running child.
struct Talk {
    pidfd: Option<OwnedFd>,
    stdin: Option<std::process::ChildStdin>,
    input: Vec<u8>,
    written: usize,
    stdout: Listener<std::process::ChildStdout>,
    stderr: Listener<std::process::ChildStderr>,
    cap: usize,
}

impl Talk {
    fn begin(child: &mut Child, input: Vec<u8>, cap: usize) -> io::Result<Self> {
        let stdin = child.stdin.take();
        if let Some(stdin) = &stdin {
            set_nonblocking(stdin)?;
        }
        let pid = rustix::process::Pid::from_child(child);
        let flags = rustix::process::PidfdFlags::empty();
        Ok(Self {
            pidfd: Some(rustix::process::pidfd_open(pid, flags)?),
            stdin,
            input,
            written: 0,
            stdout: Listener::new(child.stdout.take())?,
            stderr: Listener::new(child.stderr.take())?,
            cap,
        })
    }

    /// Talks until the child has ended (true) or the deadline has passed (false).
    fn until(&mut self, deadline: Instant) -> io::Result<bool> {
        let mut last = None;
        loop {
            let limit = last.unwrap_or(deadline);
            if self.pidfd.is_none() && self.stdout.pipe.is_none() && self.stderr.pipe.is_none() {
                return Ok(true);
            }
            let left = limit.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(self.pidfd.is_none());
            }
            if self.wait(left)? && last.is_none() {
                self.pidfd = None;
                last = Some(Instant::now() + AFTERMATH);
            }
            self.speak()?;
            self.stdout.listen(self.cap)?;
            self.stderr.listen(self.cap)?;
        }
    }

    /// Waits until something can be done; true if the child has ended.
    fn wait(&self, left: Duration) -> io::Result<bool> {
        let mut watched = Vec::with_capacity(4);
        if let Some(pidfd) = &self.pidfd {
            watched.push(PollFd::new(pidfd.as_fd(), PollFlags::POLLIN));
        }
        if let Some(stdin) = &self.stdin {
            watched.push(PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
        }
        if let Some(pipe) = &self.stdout.pipe {
            watched.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        }
        if let Some(pipe) = &self.stderr.pipe {
            watched.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        }
        let millis = u16::try_from(left.as_millis().max(1)).unwrap_or(u16::MAX);
        match poll(&mut watched, PollTimeout::from(millis)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ended = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        Ok(self.pidfd.is_some() && watched.first().is_some_and(ended))
    }

    fn speak(&mut self) -> io::Result<()> {
        let Some(stdin) = &mut self.stdin else {
            return Ok(());
        };
        match stdin.write(&self.input[self.written..]) {
            Ok(n) => self.written += n,
            // It does not want to hear the rest.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.written = self.input.len(),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
        if self.written == self.input.len() {
            self.stdin = None;
        }
        Ok(())
    }
}

fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Run {
        Run::new("/bin/sh").argument("-c").argument(script)
    }

    #[test]
    fn input_and_both_outputs_pass() {
        let out = sh("cat; echo err >&2; exit 3").input(b"hello".to_vec()).output().unwrap();
        assert_eq!(out.stdout, b"hello");
        assert_eq!(out.stderr, b"err\n");
        assert_eq!(out.status.code(), Some(3));
    }

    #[test]
    fn a_large_input_is_not_a_deadlock_and_output_is_cut() {
        let input = vec![b'x'; 1 << 20];
        let out = sh("cat").input(input).cap(1000).output().unwrap();
        assert_eq!(out.stdout.len(), 1000);
        assert!(out.cut);
    }

    #[test]
    fn the_deadline_kills_the_whole_group() {
        let begin = Instant::now();
        let run = sh("sleep 1000 & sleep 1000").timeout(Duration::from_millis(100));
        assert!(matches!(run.output(), Err(RunError::Timeout)));
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_child_that_keeps_the_pipe_does_not_hold_us() {
        let begin = Instant::now();
        let out = sh("sleep 20 & echo done").output().unwrap();
        assert_eq!(out.stdout, b"done\n");
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_missing_program_is_a_precondition() {
        let fault = Run::new("/nonexistent/program").succeed("it cannot be done").unwrap_err();
        assert_eq!(fault.class, FaultClass::Precondition);
        assert_eq!(fault.message, "it cannot be done");
    }

    #[test]
    fn the_environment_is_clean() {
        let out = Run::new("/usr/bin/env").output().unwrap();
        let text = out.text();
        let mut names: Vec<_> = text.lines().filter_map(|l| l.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["HOME", "LC_ALL", "PATH"]);
    }

    #[test]
    fn what_changes_something_is_between_two_points_and_what_only_looks_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let lab = ferry_failpoints::FakeLab::listen(dir.path(), |point| {
            if point == "service.x.stop.before" { "errno 5".to_owned() } else { "go".to_owned() }
        })
        .unwrap();
        Run::new("/bin/true").looking().output().unwrap();
        Run::new("/bin/true").output().unwrap();
        let ran = dir.path().join("ran");
        let stop = Run::new("/bin/touch").argument(&ran).named("service.x.stop");
        stop.succeed("x could not be stopped").unwrap_err();
        assert!(!ran.exists());
        let points = ["program.true.before", "program.true.after", "service.x.stop.before"];
        assert_eq!(lab.heard(), points);
    }
}
