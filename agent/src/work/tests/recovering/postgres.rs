//! The same with PostgreSQL, which while it recovers refuses, and says nothing only if it is stopped.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;

use super::*;

const SOCKET: &str = "/run/postgresql/.s.PGSQL.5432";

/// A PostgreSQL server in the system's place, with a database and a role of the account.
struct Postgres {
    bin: PathBuf,
    data: PathBuf,
    running: Option<Child>,
}

impl Postgres {
    async fn of_the_account(world: &World) -> Self {
        mount(Some("none"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let releases = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is needed").flatten();
        let bins = releases.map(|release| release.path().join("bin"));
        let bin = bins.filter(|bin| bin.join("initdb").exists()).max();
        let bin = bin.expect("the package postgresql is needed");
        let data = world.place("postgresql");
        for directory in [&data, Path::new("/run/postgresql")] {
            fs::create_dir_all(directory).unwrap();
            chown(directory, Some(postgres().0), Some(postgres().1)).unwrap();
        }
        let made = as_postgres(&bin.join("initdb"))
            .args(["--auth-local=peer", "--auth-host=scram-sha-256", "--locale=C.UTF-8"])
            .args(["--username=postgres", "--no-sync", "--pgdata"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut this = Self { bin, data, running: None };
        this.start().await;
        for sql in ["CREATE ROLE shop LOGIN PASSWORD 'secret'", "CREATE DATABASE shop OWNER shop"] {
            assert!(this.asked(sql), "{sql}");
        }
        this
    }

    /// Starts it, and waits until it answers.
    async fn start(&mut self) {
        let mut command = as_postgres(&self.bin.join("postgres"));
        command
            .arg("-D")
            .arg(&self.data)
            .args(["-k", "/run/postgresql", "-h", "127.0.0.1", "-c", "shared_buffers=16MB"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.running = Some(command.spawn().unwrap());
        until("PostgreSQL answers", LONG, async || self.asked("SELECT 1")).await;
    }

    /// Whether the server does what its superuser asks it to.
    fn asked(&self, sql: &str) -> bool {
        let mut client = as_postgres(&self.bin.join("psql"));
        let asked = client.args(["-h", "/run/postgresql", "-qc", sql]).output();
        asked.unwrap().status.success()
    }

    fn lets_the_account_in(&self) -> bool {
        let site = "postgresql://shop:secret@127.0.0.1/shop";
        let client = Command::new(self.bin.join("psql")).args([site, "-c", "SELECT 1"]).output();
        client.unwrap().status.success()
    }

    /// Without a word to anybody: an immediate shutdown, as a loss of power would leave it.
    fn stops(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        let pid = nix::unistd::Pid::from_raw(i32::try_from(running.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT).unwrap();
        running.wait().unwrap();
        let _ = fs::remove_file(SOCKET);
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stops();
    }
}

/// The user and the group that the package has made.
fn postgres() -> (u32, u32) {
    let user = nix::unistd::User::from_name("postgres").unwrap();
    user.map(|user| (user.uid.as_raw(), user.gid.as_raw())).expect("a user postgres")
}

fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.uid(postgres().0).gid(postgres().1).current_dir("/");
    command
}

#[test]
fn a_fence_found_at_boot_ends_while_a_stopped_database_says_nothing() {
    alone(async |world| {
        let mut database = Postgres::of_the_account(&world).await;
        let (server, job) = armed(&world, "postgresql").await;
        assert!(database.lets_the_account_in());
        fence::fence(&job, 600, 0).await.unwrap();
        assert!(!database.lets_the_account_in());
        drop(job);
        database.stops();
        let server = at_boot(&world, server).await;
        let silent = UnixListener::bind(SOCKET).unwrap();
        let agent = Part::watching(&server);
        visitors_do_not_wait(&server).await;
        drop(silent);
        fs::remove_file(SOCKET).unwrap();
        database.start().await;
        is_taken_back(&server).await;
        assert!(database.lets_the_account_in());
        agent.stops().await;
    });
}
