//! Private database servers for tests: real ones, in temporary directories, run by an unprivileged
//! user, on sockets of their own.
#![allow(dead_code, missing_docs, reason = "each test file uses a part of it")]

pub mod frames;
pub mod mariadb;
pub mod postgresql;

use std::fs::{File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// The Unix user of the account in tests: `games`, who is on every Debian.
pub const ACCOUNT: (u32, u32) = (5, 60);

/// A directory that everybody can enter.
pub fn directory() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("ferry-db").tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("opens it");
    dir
}

/// An id from the user database: `user` or, by `-g`, its group.
pub fn id(option: &str, user: &str) -> u32 {
    let out = Command::new("id").args([option, user]).output().expect("id runs");
    let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    text.parse()
        .unwrap_or_else(|_| panic!("there is no Unix user {user}: install the server's package"))
}

/// A program as an unprivileged user.
pub fn program(path: &Path, user: (u32, u32)) -> Command {
    assert!(path.exists(), "{} is missing: install the server's package", path.display());
    let mut command = Command::new("/usr/bin/setpriv");
    command
        .arg(format!("--reuid={}", user.0))
        .arg(format!("--regid={}", user.1))
        // A test that is killed leaves no server behind.
        .args(["--clear-groups", "--pdeathsig=QUIT", "--"])
        .arg(path)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C.UTF-8");
    command.current_dir("/");
    command
}

pub fn run(mut command: Command) {
    let out = command.output().expect("starts");
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A copy, for this test, of a data directory that is made once for all tests.
pub fn from_template(name: &str, to: &Path, user: (u32, u32), make: impl FnOnce(&Path)) {
    let templates = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let lock = File::create(templates.join(format!("{name}.lock"))).expect("a lock");
    lock.lock().expect("the lock");
    let done = templates.join(name);
    if !done.exists() {
        let making = directory();
        chown(making.path(), Some(user.0), Some(user.1)).expect("given away");
        make(&making.path().join("data"));
        let copying = templates.join(format!("{name}.copying"));
        let _ = std::fs::remove_dir_all(&copying);
        run(copy(&making.path().join("data"), &copying));
        std::fs::rename(&copying, &done).expect("renamed");
    }
    run(copy(&done, to));
}

fn copy(from: &Path, to: &Path) -> Command {
    let mut command = Command::new("cp");
    command.args(["-a", "--sparse=always"]).arg(from).arg(to);
    command
}

/// Waits for a condition of a starting server.
pub fn wait(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} does not come up");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A started server, killed at the end.
pub struct Server(Child);

impl Server {
    pub fn start(mut command: Command, log: &Path) -> Self {
        let log = File::create(log).expect("a log");
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("the server starts");
        Self(child)
    }

    pub fn gone(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(_)))
    }

    pub fn kill(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("and gone");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // PostgreSQL takes it as an order to end at once, its children included.
        let _ = signal::kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGQUIT);
        let start = Instant::now();
        while !self.gone() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes through a pipe with little room, from a dump to a load at the same time.
pub async fn transfer(
    source: &dyn ferry_databases::Engine,
    target: &dyn ferry_databases::Engine,
    spec: &ferry_databases::Spec,
    record: &ferry_databases::Record,
) -> Result<(), ferry_proto::Fault> {
    for database in &spec.databases {
        let (mut near, mut far) = tokio::io::duplex(64 * 1024);
        let dumping = async {
            let report = source.dump(spec, database, &mut near, &|_| ()).await;
            drop(near);
            report
        };
        let loading = async {
            let report = target.load(spec, record, database, &mut far, &|_| ()).await;
            drop(far);
            report
        };
        let (dumped, loaded) = tokio::join!(dumping, loading);
        let (dumped, loaded) = match (dumped, loaded) {
            (Err(fault), Err(other)) => return Err(fault.context(format!("load: {other}"))),
            (dumped, loaded) => (dumped?, loaded?),
        };
        assert_eq!(dumped.bytes, loaded.bytes);
    }
    Ok(())
}

/// Differences between both ends, of every database.
pub async fn differences(
    source: &dyn ferry_databases::Engine,
    target: &dyn ferry_databases::Engine,
    spec: &ferry_databases::Spec,
) -> Vec<String> {
    let mut all = Vec::new();
    for database in &spec.databases {
        let a = source.manifest(spec, database).await.expect("the source's manifest");
        let b = target.manifest(spec, database).await.expect("the target's manifest");
        all.extend(ferry_databases::compare(&a, &b).iter().map(ToString::to_string));
    }
    all
}
