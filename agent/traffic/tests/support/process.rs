//! The real `ferry-redirector`, as a process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ferry_traffic::client::Redirector as Client;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_ferry-redirector");

/// A running process, ended when dropped.
pub struct Process {
    pub child: Child,
}

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        Self { child: command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")) }
    }

    /// Asks it to end, and returns how long that took.
    pub fn terminate(&mut self) -> Duration {
        let begun = Instant::now();
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        begun.elapsed()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a configuration below `dir`.
pub fn write_config(dir: &Path, rest: &str) -> PathBuf {
    let path = dir.join("redirector.toml");
    let text = format!("control = '{0}/control.sock'\nstate_dir = '{0}'\n{rest}\n", dir.display());
    std::fs::write(&path, text).unwrap();
    path
}

/// Waits until it answers.
pub async fn connect(dir: &Path) -> Client {
    let begun = Instant::now();
    loop {
        match Client::connect(dir.join("control.sock")).await {
            Ok(client) => return client,
            Err(fault) if begun.elapsed() > super::LONG => panic!("it does not start: {fault}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
