//! After a boot a database may recover for minutes. No account waits for another's, nothing is given up
//! meanwhile, and once it is there the account is let in or kept out, as it stands, without anybody's help.

mod postgres;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ferry_proto::command::CommitRecord;
use ferry_traffic::control::RouteState;
use nix::mount::{MsFlags, mount};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::host::{Server, World, a_move_to_nowhere, account, alone};
use crate::clock::{Deadline, unix_ms};
use crate::deadlines;
use crate::guard;
use crate::ledger::{Account, Standing};
use crate::testing::before_the_reboot;
use crate::work::{Job, commit, fence, record};

/// As long as visitors are held unless an operator says otherwise: those who wait are to be served.
const HELD: Duration = Duration::from_secs(30);
/// In which everything must have come.
const LONG: Duration = Duration::from_secs(120);
/// Where the agent looks for the system's server; here it is among the mounts of this test alone.
const SOCKET: &str = "/run/mysqld/mysqld.sock";

/// A directory of its own: a server that starts removes what looks like a temporary table of its predecessor.
const TEMPORARY: &str = "tmp";

/// A MariaDB server in the system's place, with a database and a user of the account.
struct Maria {
    data: PathBuf,
    running: Option<Child>,
}

impl Maria {
    async fn of_the_account(world: &World) -> Self {
        mount(Some("none"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::create_dir("/run/mysqld").unwrap();
        let data = world.place("mariadb");
        fs::create_dir(data.with_extension(TEMPORARY)).unwrap();
        let made = Command::new("/usr/bin/mariadb-install-db")
            .env("TMPDIR", data.with_extension(TEMPORARY))
            .arg("--no-defaults")
            .arg(format!("--datadir={}", data.display()))
            .args(["--user=root", "--skip-test-db", "--innodb-log-file-size=4M"])
            .args(["--auth-root-authentication-method=socket", "--auth-root-socket-user=root"])
            .output()
            .expect("the package mariadb-server is needed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut this = Self { data, running: None };
        this.start().await;
        for sql in [
            "CREATE DATABASE shop",
            "CREATE USER shop@localhost IDENTIFIED BY 'secret'",
            "GRANT ALL ON shop.* TO shop@localhost",
        ] {
            assert!(asked(&["--user=root", "-e", sql]), "{sql}");
        }
        this
    }

    /// Starts it, and waits until it answers.
    async fn start(&mut self) {
        let mut command = Command::new("/usr/sbin/mariadbd");
        command
            .env("TMPDIR", self.data.with_extension(TEMPORARY))
            .arg("--no-defaults")
            .arg(format!("--datadir={}", self.data.display()))
            .arg(format!("--socket={SOCKET}"))
            .arg(format!("--pid-file={}", self.data.join("pid").display()))
            .args(["--user=root", "--skip-networking", "--skip-log-bin"])
            .args(["--innodb-buffer-pool-size=16M", "--innodb-log-file-size=4M"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.running = Some(command.spawn().unwrap());
        until("MariaDB answers", LONG, async || asked(&["--user=root", "-e", "SELECT 1"])).await;
    }

    /// As by a loss of power.
    fn stops(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        running.kill().unwrap();
        running.wait().unwrap();
        let _ = fs::remove_file(SOCKET);
    }
}

impl Drop for Maria {
    fn drop(&mut self) {
        self.stops();
    }
}

/// Whether the server does what it is asked to.
fn asked(arguments: &[&str]) -> bool {
    let client = Command::new("/usr/bin/mariadb")
        .args(["--no-defaults", &format!("--socket={SOCKET}")])
        .args(arguments)
        .output();
    client.unwrap().status.success()
}

fn lets_the_account_in() -> bool {
    asked(&["--user=shop", "--password=secret", "-e", "SELECT 1", "shop"])
}

fn locked_by_a_backup() -> bool {
    let client = Command::new("/usr/bin/mariadb")
        .args(["--no-defaults", &format!("--socket={SOCKET}"), "--user=root", "-Ne"])
        .arg("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE STATE = 'User sleep'")
        .output();
    client.unwrap().stdout.starts_with(b"1")
}

async fn until(what: &str, limit: Duration, wished: impl AsyncFn() -> bool) {
    let wait = async {
        while !wished().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(limit, wait).await.is_ok(), "not in time: {what}");
}

/// The account is armed by a move, and has its database.
async fn armed(world: &World, engine: &str) -> (Server, Job) {
    let (server, of) = (world.server("web1").await, a_move_to_nowhere());
    server.stands(Standing::Armed { of: of.clone() }).await;
    let on = serde_json::json!({ "engine": engine, "name": "shop" });
    change(&server, |known| {
        known.definition.databases = vec![serde_json::from_value(on.clone()).unwrap()];
        known.definition.database_users = vec![serde_json::from_value(on).unwrap()];
    })
    .await;
    let job = world.job(&server, &of);
    (server, job)
}

async fn change(server: &Server, change: impl FnOnce(&mut Account)) {
    let mut known = server.agent.account(&account()).unwrap();
    change(&mut known);
    server.agent.set_account(&account(), Some(known)).await.unwrap();
}

/// The server after a boot that has ended the account's fence.
async fn at_boot(world: &World, server: Server) -> Server {
    change(&server, |known| {
        let Standing::Fenced { deadline, .. } = &mut known.standing else { panic!() };
        *deadline = before_the_reboot();
    })
    .await;
    world.restarted(server)
}

/// They are let in while the database says nothing, and what it denies is not given up.
async fn visitors_do_not_wait(server: &Server) {
    until("visitors are let in", HELD, async || server.route().await == RouteState::Local).await;
    let ends = matches!(server.standing(), Standing::Fenced { ending: true, .. });
    assert!(ends, "what the database denies is not given up: {:?}", server.standing());
}

async fn is_taken_back(server: &Server) {
    let is_back = async || matches!(server.standing(), Standing::Armed { .. });
    until("the account is taken back", LONG, is_back).await;
}

/// A part of the agent that runs.
struct Part {
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Part {
    /// The one that ends fences, and goes on with opens.
    fn watching(server: &Server) -> Self {
        let stop = CancellationToken::new();
        let watch = deadlines::watch(server.agent.clone(), Arc::default(), stop.clone());
        Self { running: tokio::spawn(watch), stop }
    }

    /// The one that looks whether what is closed stays closed.
    fn guarding(server: &Server) -> Self {
        let stop = CancellationToken::new();
        let keep = guard::keep(server.agent.clone(), stop.clone());
        Self { running: tokio::spawn(keep), stop }
    }

    async fn stops(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }
}

#[test]
fn a_fence_found_at_boot_ends_before_the_database_is_there_which_lets_the_account_in_then() {
    alone(async |world| {
        let mut maria = Maria::of_the_account(&world).await;
        let (server, job) = armed(&world, "mariadb").await;
        fence::fence(&job, 600, 0).await.unwrap();
        assert!(!lets_the_account_in());
        drop(job);
        maria.stops();
        let server = at_boot(&world, server).await;
        let silent = UnixListener::bind(SOCKET).unwrap();
        let agent = Part::watching(&server);
        visitors_do_not_wait(&server).await;
        drop(silent);
        fs::remove_file(SOCKET).unwrap();
        maria.start().await;
        is_taken_back(&server).await;
        assert!(lets_the_account_in());
        agent.stops().await;
    });
}

#[test]
fn visitors_do_not_wait_for_a_database_that_answers_and_takes_no_change() {
    alone(async |world| {
        let _maria = Maria::of_the_account(&world).await;
        let (server, job) = armed(&world, "mariadb").await;
        fence::fence(&job, 600, 0).await.unwrap();
        drop(job);
        // As a backup does; on a full disk the server itself waits for room, a minute at a time.
        let mut backup = Command::new("/usr/bin/mariadb")
            .args(["--no-defaults", &format!("--socket={SOCKET}"), "--user=root"])
            .args(["-e", "FLUSH TABLES WITH READ LOCK; SELECT SLEEP(600)"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until("the backup locks all tables", LONG, async || locked_by_a_backup()).await;
        let server = at_boot(&world, server).await;
        let agent = Part::watching(&server);
        visitors_do_not_wait(&server).await;
        backup.kill().unwrap();
        backup.wait().unwrap();
        is_taken_back(&server).await;
        assert!(lets_the_account_in());
        agent.stops().await;
    });
}

#[test]
fn visitors_do_not_wait_for_ever_for_a_database_that_refuses_to_let_the_account_in() {
    alone(async |world| {
        let _maria = Maria::of_the_account(&world).await;
        let (server, job) = armed(&world, "mariadb").await;
        fence::fence(&job, 600, 0).await.unwrap();
        drop(job);
        // As a full disk may leave it: locked in the server's memory, and gone from its table.
        let damage = "DELETE FROM mysql.global_priv WHERE User = 'shop'";
        assert!(asked(&["--user=root", "-e", damage]));
        // It begins to end, and somebody sets the wall clock back.
        change(&server, |known| {
            let Standing::Fenced { ending, deadline, .. } = &mut known.standing else { panic!() };
            (*ending, *deadline) = (true, Deadline::after(Duration::ZERO).unwrap());
            known.served_again_unix_ms = Some(unix_ms() + 3_600_000);
        })
        .await;
        let server = world.restarted(server);
        let agent = Part::watching(&server);
        visitors_do_not_wait(&server).await;
        assert!(asked(&["--user=root", "-e", "FLUSH PRIVILEGES"]));
        is_taken_back(&server).await;
        agent.stops().await;
    });
}

#[test]
fn an_account_that_moved_away_is_shut_out_of_a_database_that_comes_late_and_none_waits_for_it() {
    alone(async |world| {
        let mut maria = Maria::of_the_account(&world).await;
        let (server, job) = armed(&world, "mariadb").await;
        fence::fence(&job, 600, 0).await.unwrap();
        commit::commit(&Job { grant: None, ..job.clone() }).await.unwrap();
        drop(job);
        // Behind Ferry's back, as by a backup of the database that was put back.
        assert!(asked(&["--user=root", "-e", "ALTER USER shop@localhost ACCOUNT UNLOCK"]));
        assert!(lets_the_account_in());
        maria.stops();
        let server = world.restarted(server);
        let last = server.dir.join("var/spool/cron/crontabs/zzz");
        for name in ["aaa", "zzz"] {
            let mut other = server.agent.account(&account()).unwrap();
            other.definition.name = name.parse().unwrap();
            other.definition.user = name.parse().unwrap();
            server.agent.set_account(&name.parse().unwrap(), Some(other)).await.unwrap();
        }
        fs::write(&last, "* * * * * true\n").unwrap();
        let silent = UnixListener::bind(SOCKET).unwrap();
        let agent = Part::guarding(&server);
        until("the last account is closed", HELD, async || !last.exists()).await;
        drop(silent);
        fs::remove_file(SOCKET).unwrap();
        maria.start().await;
        until("the account is shut out", LONG, async || !lets_the_account_in()).await;
        agent.stops().await;
    });
}

#[test]
fn an_open_that_was_accepted_before_a_boot_is_tried_until_the_database_is_there() {
    alone(async |world| {
        let mut maria = Maria::of_the_account(&world).await;
        let (server, job) = armed(&world, "mariadb").await;
        let source = Box::new(record::of_account(&server.agent, &account()).await.unwrap());
        // From here on it stands as a target's copy does: made, and closed.
        assert!(asked(&["--user=root", "-e", "ALTER USER shop@localhost ACCOUNT LOCK"]));
        let of = job.of.clone();
        let record = CommitRecord {
            job: of.job,
            account: account(),
            source: of.source.clone(),
            target: of.target.clone(),
            epoch: of.epoch.next(),
            fenced_at_unix: 0,
            committed_at_unix_ms: 0,
            forced: None,
        };
        change(&server, |known| {
            known.epoch = record.epoch;
            known.standing = Standing::Opening { of, record, source, before: None, accepts: true };
        })
        .await;
        drop(job);
        maria.stops();
        let server = world.restarted(server);
        let silent = UnixListener::bind(SOCKET).unwrap();
        let agent = Part::watching(&server);
        // What is asked hangs up, again and again.
        for _ in 0..2 {
            drop(tokio::time::timeout(LONG, silent.accept()).await.expect("it is asked").unwrap());
        }
        assert!(matches!(server.standing(), Standing::Opening { .. }));
        drop(silent);
        fs::remove_file(SOCKET).unwrap();
        maria.start().await;
        let is_served = async || matches!(server.standing(), Standing::Serving);
        until("the account is served", LONG, is_served).await;
        assert!(lets_the_account_in());
        agent.stops().await;
    });
}
