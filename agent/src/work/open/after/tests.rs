use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;

use ferry_host::Layout;
use tempfile::TempDir;

use super::*;
use crate::testing::authority::Authority;
use crate::testing::{a_move, account, agent, before_the_reboot, fenced};

const UID: u32 = 51_744;

/// An agent whose server has account `shop`: closed cron, a hook that writes down that it ran, and a
/// `systemctl` that writes down what it is asked.
struct Server {
    dir: TempDir,
    agent: Arc<Agent>,
}

impl Server {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let server = Self { agent: start(&dir), dir };
        let line = format!("shop:x:{UID}:{UID}::/home/shop:/bin/sh\n");
        server.put("etc/passwd", &line);
        server.put("etc/group", &format!("shop:x:{UID}:\n"));
        server.put("var/spool/cron/crontabs/.ferry-aside-shop", "* * * * * true\n");
        server.put("run/systemd/system/.keep", "");
        let root = server.dir.path().display();
        server.program("systemctl", &format!("echo \"$@\" >> {root}/asked"));
        server.program("home/hook", "echo ran >> ran");
        for path in ["home", "home/hook"] {
            chown(server.path(path), Some(UID), Some(UID)).unwrap();
        }
        server
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn program(&self, path: &str, script: &str) {
        self.put(path, &format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// As after a restart of the agent.
    fn restarted(self) -> Self {
        let Self { dir, agent } = self;
        drop(agent);
        Self { agent: start(&dir), dir }
    }

    /// An account that was opened, with what follows due in `due_ms`.
    async fn opened(&self, due_ms: i64, standing: Standing) {
        let mut account = account("shop", &standing);
        account.definition.home = self.path("home");
        account.definition.hooks.after_open = Some("hook".to_owned().try_into().unwrap());
        let due_unix_ms = unix_ms() + due_ms;
        account.after_open = Some(Box::new(AfterOpen {
            due_unix_ms,
            fence_minute: due_unix_ms.div_euclid(MINUTE_MS) - 1,
            missed_minutes: 0,
            units: KeptStopped {
                user: "shop".parse().unwrap(),
                uid: UID,
                linger: true,
                manager_active: false,
                units: Vec::new(),
            },
            started: false,
            done: false,
        }));
        self.agent.set_account(&name(), Some(account)).await.unwrap();
    }

    async fn go_on(&self) -> Option<Duration> {
        go_on(&self.agent, &name()).await.unwrap()
    }

    fn cron_is_on(&self) -> bool {
        self.path("var/spool/cron/crontabs/shop").exists()
    }

    fn lingers(&self) -> bool {
        self.path("var/lib/systemd/linger/shop").exists()
    }

    /// A hook that says that it has begun, and ends with the exit code that it is told.
    fn hook_that_is_told(&self) -> ToldHook {
        self.program(
            "home/hook",
            "echo ran >> ran; echo begun > begun; read code < told; exit $code",
        );
        chown(self.path("home/hook"), Some(UID), Some(UID)).unwrap();
        let fifo = |name: &str| {
            let path = self.path("home").join(name);
            let _ = fs::remove_file(&path);
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            chown(&path, Some(UID), Some(UID)).unwrap();
            path
        };
        ToldHook { begun: fifo("begun"), told: fifo("told") }
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_default()
    }

    fn assert_nothing_ran(&self) {
        assert!(!self.cron_is_on() && !self.lingers());
        assert_eq!(self.read("home/ran") + &self.read("asked"), "");
    }

    fn assert_all_ran_once(&self) {
        assert!(self.cron_is_on() && self.lingers());
        assert_eq!(self.read("home/ran"), "ran\n");
        let manager = format!("start --no-block -- user@{UID}.service");
        assert_eq!(self.read("asked").matches(&manager).count(), 1, "{}", self.read("asked"));
    }
}

/// See [`Server::hook_that_is_told`].
struct ToldHook {
    begun: PathBuf,
    told: PathBuf,
}

impl ToldHook {
    async fn begun(&self) {
        let begun = self.begun.clone();
        let read = blocking(move || Ok(fs::read_to_string(begun).unwrap()));
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("it begins").unwrap();
    }

    async fn ends_with(&self, code: u8) {
        let told = self.told.clone();
        let write = move || {
            fs::write(told, format!("{code}\n")).unwrap();
            Ok(())
        };
        blocking(write).await.unwrap();
    }
}

fn start(dir: &TempDir) -> Arc<Agent> {
    let mut agent = agent(&Authority::new(), dir.path());
    let mut layout = Layout::below(dir.path());
    layout.programs.systemctl = dir.path().join("systemctl");
    Arc::get_mut(&mut agent).unwrap().layout = layout;
    agent
}

fn name() -> AccountName {
    "shop".parse().unwrap()
}

#[tokio::test]
async fn what_follows_an_open_waits_for_its_minute_and_survives_a_restart() {
    let server = Server::new();
    server.opened(3_600_000, Standing::Serving).await;
    assert!(server.go_on().await.is_some());
    server.assert_nothing_ran();
    let server = server.restarted();
    assert!(server.go_on().await.is_some(), "after a restart it still waits");
    server.assert_nothing_ran();
    server.opened(-1, Standing::Serving).await;
    let server = server.restarted();
    assert_eq!(server.go_on().await, None);
    server.assert_all_ran_once();
    let server = server.restarted();
    assert_eq!(server.go_on().await, None);
    server.assert_all_ran_once();
}

#[tokio::test]
async fn resuming_does_what_a_restart_found_pending() {
    let server = Server::new();
    server.opened(-1, Standing::Serving).await;
    let server = server.restarted();
    let mut changed = server.agent.changed.subscribe();
    crate::work::open::resume(&server.agent, &name()).await.unwrap();
    let done = async {
        while !server.agent.account(&name()).unwrap().after_open.unwrap().done {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), done).await.unwrap();
    server.assert_all_ran_once();
}

#[tokio::test]
async fn nothing_starts_while_the_account_is_fenced_again_and_all_of_it_when_it_is_back() {
    let server = Server::new();
    let of = a_move();
    server.opened(-1, fenced(&of, &before_the_reboot())).await;
    assert!(server.go_on().await.is_some());
    server.assert_nothing_ran();
    server.opened(-1, Standing::Armed { of }).await;
    assert_eq!(server.go_on().await, None);
    server.assert_all_ran_once();
}

#[tokio::test]
async fn a_hook_that_fails_does_not_keep_cron_from_running() {
    let server = Server::new();
    server.program("home/hook", "echo ran >> ran; exit 1");
    chown(server.path("home/hook"), Some(UID), Some(UID)).unwrap();
    server.opened(-1, Standing::Serving).await;
    assert_eq!(server.go_on().await, None);
    assert_eq!(server.go_on().await, None);
    server.assert_all_ran_once();
}

#[tokio::test]
async fn a_crontab_installed_before_its_minute_stays() {
    let server = Server::new();
    server.opened(3_600_000, Standing::Serving).await;
    assert!(server.go_on().await.is_some());
    server.put("var/spool/cron/crontabs/shop", "5 * * * * the user's new one\n");
    server.opened(-1, Standing::Serving).await;
    assert_eq!(server.go_on().await, None);
    let crontab = server.read("var/spool/cron/crontabs/shop");
    assert_eq!(crontab, "5 * * * * the user's new one\n");
}

#[tokio::test]
async fn nobody_waits_for_the_hook() {
    let server = Server::new();
    let hook = server.hook_that_is_told();
    server.opened(-1, Standing::Serving).await;
    let others = async {
        hook.begun().await;
        let order = async { drop(server.agent.order(&name()).await) };
        let free = tokio::time::timeout(Duration::from_secs(10), order).await.is_ok();
        assert!(server.cron_is_on());
        assert!(!server.agent.account(&name()).unwrap().after_open.unwrap().done);
        hook.ends_with(0).await;
        free
    };
    // Whoever asks once more meanwhile does not run it again.
    let (first, again, free) = tokio::join!(server.go_on(), server.go_on(), others);
    assert!(free, "the account's order is held while its hook runs");
    assert_eq!((first, again), (None, None));
    server.assert_all_ran_once();
}

#[tokio::test]
async fn a_hook_that_a_fence_has_ended_runs_again_when_the_account_is_back() {
    let server = Server::new();
    let hook = server.hook_that_is_told();
    server.opened(-1, Standing::Serving).await;
    let of = a_move();
    let stands = async |standing: Standing| {
        let _order = server.agent.order(&name()).await;
        let mut account = server.agent.account(&name()).unwrap();
        account.standing = standing;
        server.agent.set_account(&name(), Some(account)).await.unwrap();
    };
    let fence = async {
        hook.begun().await;
        stands(fenced(&of, &before_the_reboot())).await;
        hook.ends_with(1).await;
    };
    let (wait, ()) = tokio::join!(server.go_on(), fence);
    assert!(wait.is_some(), "what the fence has cut off is done");
    stands(Standing::Armed { of: of.clone() }).await;
    let ends = async {
        hook.begun().await;
        hook.ends_with(0).await;
    };
    let (wait, ()) = tokio::join!(server.go_on(), ends);
    assert_eq!(wait, None);
    assert_eq!(server.read("home/ran"), "ran\nran\n");
    assert!(server.agent.account(&name()).unwrap().after_open.unwrap().done);
}

#[test]
fn the_first_whole_minute_after_the_fence_runs_and_later_ones_are_counted() {
    let minute = |n: i64| n * MINUTE_MS;
    // Shown as the next minute begins, before cron looks: no job is missed.
    assert_eq!(missed(100, minute(101)), 0);
    assert_eq!(missed(100, minute(101) + 900), 0);
    // Cron may have looked already.
    assert_eq!(missed(100, minute(101) + 1_000), 1);
    assert_eq!(missed(100, minute(104) + 30_000), 4);
    // A clock that is behind.
    assert_eq!(missed(100, minute(99)), 0);
}

#[test]
fn the_minute_of_the_fence_must_have_passed_here() {
    let mut account = account("shop", &Standing::Serving);
    account.uid = UID;
    let source: SourceRecord = serde_json::from_value(crate::testing::source_record()).unwrap();
    let of = a_move();
    let commit = CommitRecord {
        job: of.job,
        account: of.account,
        source: of.source,
        target: of.target,
        epoch: of.epoch.next(),
        fenced_at_unix: 6_059,
        committed_at_unix_ms: 0,
        forced: None,
    };
    let after = plan(&account, &SourceRecord { linger: Some(true), ..source }, &commit, 6_059_000);
    assert_eq!((after.due_unix_ms, after.missed_minutes), (102 * MINUTE_MS - MINUTE_MS, 0));
    assert!(after.units.linger && after.units.uid == UID);
}
