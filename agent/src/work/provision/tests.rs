use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use ferry_host::Layout;
use ferry_host::sites_wind_down::{self, WindDown, WoundFile};
use ferry_proto::command::{CommitRecord, Progress};
use ferry_proto::ids::AccountName;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::testing::authority::Authority;
use crate::testing::{a_move, account, agent, grant, receiving, source_record};

const SPOOL: &str = "var/spool/cron/crontabs";
const OWN_CRONTAB: &str = "17 3 * * * the client's own\n";

/// A server on which `shop` lived, closed, before it moved away; it is about to come back.
struct Server {
    dir: TempDir,
    agent: Arc<Agent>,
    authority: Authority,
    of: Move,
}

impl Server {
    async fn new(crontab: bool) -> Self {
        let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut agent = agent(&authority, dir.path());
        Arc::get_mut(&mut agent).unwrap().layout = Layout::below(dir.path());
        let server = Self { dir, agent, authority, of: a_move() };
        server.put(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\nshop:x:1777:1777:Own:/home/shop:/bin/sh\n",
        );
        server.put("etc/shadow", "root:*:19000::::::\nshop:$y$own:18000:1:90:6::74:\n");
        server.put("etc/group", "root:x:0:\nshop:x:1777:\nsftponly:x:990:shop\ncrontab:x:117:\n");
        server.put("etc/gshadow", "root:*::\nshop:!::\nsftponly:!::shop\ncrontab:!::\n");
        server.put("etc/shells", "/bin/sh\n/bin/bash\n");
        server.put(&format!("{SPOOL}/.ferry-aside-shop"), OWN_CRONTAB);
        let mut account = account("shop", &moved(&server.of));
        account.definition = definition(crontab);
        (account.uid, account.gid) = (1777, 1777);
        server.agent.set_account(&name(), Some(account)).await.unwrap();
        server
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.dir.path().join(path)).unwrap_or_default()
    }

    fn line(&self, file: &str) -> String {
        let text = self.read(&format!("etc/{file}"));
        text.lines().find(|l| l.starts_with("shop:")).unwrap_or_default().to_owned()
    }

    fn crontab(&self) -> String {
        self.read(&format!("{SPOOL}/.ferry-aside-shop"))
    }

    /// What of the host a move may change.
    fn state(&self) -> Vec<String> {
        let mut lines: Vec<String> = ["passwd", "shadow", "group", "gshadow"]
            .iter()
            .flat_map(|f| {
                self.read(&format!("etc/{f}"))
                    .lines()
                    .map(|l| format!("{f} {l}"))
                    .collect::<Vec<_>>()
            })
            .collect();
        lines.sort();
        lines.push(self.crontab());
        lines
    }

    /// As [`provision`] does once the source has said what it has.
    async fn provision(&self, source: &SourceRecord) -> Result<(), Fault> {
        let account = plan(&self.agent, &self.of, source.clone()).await?;
        self.agent.set_account(&name(), Some(account.clone())).await?;
        make(&self.agent, &account, source).await
    }

    async fn update(&self, source: &SourceRecord) -> Result<(), Fault> {
        let grant = grant(&self.authority, &self.of);
        let grant = grant.verify_signature(&self.authority.grant_key()).unwrap();
        update(&self.agent, &grant, source.clone()).await
    }

    async fn undo(&self) {
        let job = Job {
            agent: self.agent.clone(),
            of: self.of.clone(),
            grant: None,
            cancel: CancellationToken::new(),
            progress: watch::channel(Progress::default()).0,
        };
        deprovision(&job).await.unwrap();
    }

    fn account(&self) -> Account {
        self.agent.account(&name()).unwrap()
    }
}

fn name() -> AccountName {
    "shop".parse().unwrap()
}

fn definition(crontab: bool) -> Definition {
    let value = json!({
        "name": "shop", "user": "shop", "home": "/home/shop", "groups": ["sftponly"],
        "crontab": crontab,
    });
    serde_json::from_value(value).unwrap()
}

fn moved(of: &Move) -> Standing {
    let record = CommitRecord {
        job: of.job,
        account: of.account.clone(),
        source: of.source.clone(),
        target: of.target.clone(),
        epoch: of.epoch,
        fenced_at_unix: 0,
        committed_at_unix_ms: 0,
        forced: None,
    };
    let standing = json!({
        "is": "moved", "of": of, "record": record, "fenced_unix_ms": 0, "released_unix_ms": 1,
    });
    serde_json::from_value(standing).unwrap()
}

/// What the server that has it says: password `hash`, and the group that is its own there.
fn at_the_source(crontab: bool, hash: &str) -> SourceRecord {
    let mut value = source_record();
    value["definition"] = serde_json::to_value(definition(crontab)).unwrap();
    value["user"]["password_hash"] = json!(hash);
    value["user"]["gecos"] = json!("Changed there");
    value["user"]["aging"]["last_change"] = json!(20_000);
    value["user"]["groups"] = json!([{ "name": "sftponly", "gid": 1001 }]);
    value["cron"]["content"] = json!(b"5 * * * * theirs\n");
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn a_password_changed_while_the_account_was_away_comes_back_with_it() {
    let server = Server::new(true).await;
    server.provision(&at_the_source(true, "$y$there")).await.unwrap();
    assert_eq!(server.line("shadow"), "shop:$y$there:20000:::::74:");
    assert_eq!(server.line("passwd"), "shop:x:1777:1777:Changed there:/home/shop:/bin/sh");
    assert_eq!(server.crontab(), "5 * * * * theirs\n");
    // Changed once more between the copy and the fence.
    server.update(&at_the_source(true, "$y$later")).await.unwrap();
    assert_eq!(server.line("shadow"), "shop:$y$later:20000:::::74:");
    assert_eq!((server.account().uid, server.account().gid), (1777, 1777));
}

#[tokio::test]
async fn an_undone_rollback_leaves_what_the_client_had() {
    let server = Server::new(true).await;
    let before = server.state();
    for _ in 0..2 {
        server.provision(&at_the_source(true, "$y$there")).await.unwrap();
    }
    server.update(&at_the_source(true, "$y$later")).await.unwrap();
    assert_ne!(server.state(), before);
    for _ in 0..2 {
        server.undo().await;
        assert_eq!(server.state(), before);
        assert!(matches!(server.account().standing, Standing::Moved { .. }));
        assert!(server.account().refreshed.is_none());
    }
}

#[tokio::test]
async fn an_account_that_comes_back_unsettled_is_wound_down_no_longer() {
    let server = Server::new(true).await;
    let site = "server { keepalive_timeout 65; location / { return 200; } }\n";
    server.put("etc/nginx/shop.conf", site);
    server.put("aside/.keep", "");
    let path = |path: &str| server.dir.path().join(path);
    let file = WoundFile {
        path: path("etc/nginx/shop.conf"),
        aside: path("aside/open-00"),
        owner: (0, 0, 0o644),
    };
    let plan = WindDown { account: name(), files: vec![file] };
    let mut layout = server.agent.layout.clone();
    layout.programs.nginx = "/bin/true".into();
    sites_wind_down::wind_down(&layout, &plan).unwrap();
    assert_ne!(server.read("etc/nginx/shop.conf"), site);
    // Its release got no further.
    let mut account = server.account();
    account.wound_down = Some(Box::new(plan));
    server.agent.set_account(&name(), Some(account)).await.unwrap();
    for _ in 0..2 {
        server.provision(&at_the_source(true, "$y$there")).await.unwrap();
        assert_eq!(server.read("etc/nginx/shop.conf"), site);
        assert!(server.account().wound_down.is_none());
    }
    server.undo().await;
    assert!(server.account().wound_down.is_none());
}

#[tokio::test]
async fn a_crontab_that_does_not_move_is_left_alone() {
    let server = Server::new(false).await;
    for crontab in [None, Some(b"5 * * * * theirs\n".to_vec())] {
        let mut source = at_the_source(false, "$y$there");
        source.cron.content = crontab;
        server.provision(&source).await.unwrap();
        assert_eq!(server.crontab(), OWN_CRONTAB);
        server.update(&source).await.unwrap();
        assert_eq!(server.crontab(), OWN_CRONTAB);
        server.undo().await;
        assert_eq!(server.crontab(), OWN_CRONTAB);
    }
}

#[tokio::test]
async fn a_user_that_ferry_made_becomes_what_it_is_now_at_the_next_move() {
    let server = Server::new(true).await;
    // The server made it for the first move, when the password was another one.
    let mut account = server.account();
    let first: ferry_host::users::Provision = serde_json::from_value(json!({
        "record": serde_json::to_value(&at_the_source(true, "$y$first").user).unwrap(),
        "ids": { "uid": 1777, "gid": 1777, "mapped": true },
        "create": true, "create_groups": [], "groups": [], "create_parents": [], "findings": [],
    }))
    .unwrap();
    account.made = Some(Made { user: Some(first), ..Made::default() });
    server.agent.set_account(&name(), Some(account)).await.unwrap();
    server.provision(&at_the_source(true, "$y$second")).await.unwrap();
    assert_eq!(server.line("shadow"), "shop:$y$second:20000:::::74:");
    let made = server.account().made.unwrap().user.unwrap();
    assert_eq!((made.create, made.ids.uid), (true, 1777), "what may be removed stays planned");
}

#[tokio::test]
async fn another_definition_than_when_it_was_here_is_refused() {
    let server = Server::new(true).await;
    let mut source = at_the_source(true, "$y$there");
    source.definition.hooks.after_open = Some("hook".to_owned().try_into().unwrap());
    let before = server.state();
    let fault = server.provision(&source).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Precondition);
    assert!(fault.message.contains("hooks differ"), "{fault}");
    assert_eq!(server.state(), before);
    server.provision(&at_the_source(true, "$y$there")).await.unwrap();
    let fault = server.update(&source).await.unwrap_err();
    assert!(fault.message.contains("hooks differ"), "{fault}");
}

#[tokio::test]
async fn a_definition_that_changes_during_the_move_is_not_taken() {
    let server = Server::new(true).await;
    server.provision(&at_the_source(true, "$y$there")).await.unwrap();
    let fault = server.update(&at_the_source(false, "$y$there")).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Precondition);
    assert_eq!(server.crontab(), "5 * * * * theirs\n");
}

#[tokio::test]
async fn ids_that_change_during_the_move_are_not_taken() {
    let server = Server::new(true).await;
    let said = at_the_source(true, "$y$there");
    server.provision(&said).await.unwrap();
    let changes: [fn(&mut SourceRecord); 5] = [
        |now| now.user.uid = 5555,
        |now| now.user.group.gid = 5555,
        |now| now.user.groups[0].gid = 5555,
        |now| now.user.groups.clear(),
        |now| now.web = Some(ferry_host::users::WebIds { uid: 1001, gid: 1001 }),
    ];
    for change in changes {
        let mut now = said.clone();
        change(&mut now);
        for fault in [server.update(&now).await, server.provision(&now).await] {
            let fault = fault.unwrap_err();
            assert_eq!(fault.class, FaultClass::Precondition);
            assert!(fault.message.contains("number"), "{fault}");
        }
    }
    server.update(&said).await.unwrap();
    // The next move may bring other ones.
    server.undo().await;
    let mut now = said;
    now.user.uid = 5555;
    server.provision(&now).await.unwrap();
}

#[tokio::test]
async fn no_account_is_the_systems_at_its_source() {
    let server = Server::new(true).await;
    let changes: [fn(&mut SourceRecord); 3] = [
        |record| record.user.uid = 0,
        |record| record.user.uid = 99,
        |record| record.user.group.gid = 8,
    ];
    for change in changes {
        let mut record = at_the_source(true, "$y$there");
        change(&mut record);
        let fault = server.provision(&record).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Precondition);
        assert!(fault.message.contains("the system's"), "{fault}");
    }
}

#[tokio::test]
async fn what_the_source_says_of_ids_makes_no_two_one_and_is_what_was_approved() {
    let server = Server::new(true).await;
    let account = server.account();
    let map = |record: &SourceRecord, approvals: &[_]| {
        crate::work::id_map(&server.agent, &account, record, approvals)
    };
    let said = at_the_source(true, "$y$there");
    // A group of the number of its own is its own.
    assert_eq!(map(&said, &[]).unwrap().gids, BTreeMap::from([(1001, 1777)]));
    let mut other = said.clone();
    other.user.groups[0].gid = 1002;
    assert_eq!(map(&other, &[]).unwrap().gids, BTreeMap::from([(1001, 1777), (1002, 990)]));
    let again = other.user.groups[0].clone();
    other.user.groups.push(ferry_host::users::Group { gid: 1003, ..again });
    let fault = map(&other, &[]).unwrap_err();
    assert!(fault.message.contains("two groups"), "{fault}");
    let approval = |uid, gid| {
        let approval = json!({
            "what": {"path": "a", "seen": {"kind": "fifo", "mode": 0, "uid": 0, "gid": 0}},
            "ids": {"uid": uid, "gid": gid}, "by": "an operator", "at_unix_ms": 7,
        });
        serde_json::from_value::<ferry_proto::approval::Approval>(approval).unwrap()
    };
    map(&said, &[approval(1001, 1001)]).unwrap();
    for (uid, gid) in [(1002, 1001), (1001, 1002)] {
        let fault = map(&said, &[approval(1001, 1001), approval(uid, gid)]).unwrap_err();
        assert!(fault.message.contains("is 1001:1001 at the source now"), "{fault}");
    }
}

#[test]
fn ids_that_other_moves_have_planned_are_reserved() {
    let of = a_move();
    let mut accounts = BTreeMap::new();
    let mut put = |name: &str, standing: &Standing, id: u32| {
        let mut account = account(name, standing);
        (account.uid, account.gid) = (id, id + 1);
        accounts.insert(name.parse().unwrap(), account);
    };
    put("shop", &receiving(&of), 2000);
    put("other", &receiving(&of), 3000);
    put("served", &Standing::Serving, 4000);
    assert_eq!(user::reserved(&accounts, &name()), [3000, 3001]);
}
