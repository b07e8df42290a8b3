use std::fs;
use std::process::Command;

use ferry_host::{Layout, processes, sites_fence, users};
use ferry_proto::artefact::Kind;
use ferry_traffic::client::Redirector;
use ferry_traffic::firewall::{self, Rules};
use ferry_traffic::mail::{Mail, MailConfig, Programs};
use ferry_traffic::observe::Redirection;
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::clock::Deadline;
use crate::ledger::{Account, AfterOpen, Closed, Ledger};
use crate::testing::{a_move, account, fenced, moved, opening, receiving};

/// Of no user of the machine: its processes are looked for.
const UID: u32 = 58_232;

/// A server in a directory, without databases, with a network of its own.
struct Server {
    dir: tempfile::TempDir,
    world: World,
}

/// Runs `work` on such a server.
fn alone<F: Future<Output = ()>>(work: impl FnOnce(Server) -> F + Send + 'static) {
    let ran = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests run as root");
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.is_ok_and(|s| s.success()), "the package iproute2 is needed");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work(Server::new()));
    });
    if let Err(panic) = ran.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Server {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let put = |path: &str, text: &str| {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        };
        put(
            "etc/passwd",
            &format!("root:x:0:0::/root:/bin/sh\nshop:x:{UID}:{UID}::/home/shop:/bin/sh\n"),
        );
        put("etc/group", &format!("root:x:0:\nshop:x:{UID}:\n"));
        put("etc/shadow", "root:*:1:0:9:7:::\nshop:*:19000:0:99999:7:::\n");
        put("home/shop/index.html", "the shop");
        fs::create_dir_all(root.join("var/spool/cron/crontabs")).unwrap();
        fs::create_dir_all(root.join("state/identity")).unwrap();
        put("redirector.toml", &format!("state_dir = {:?}\n", root.join("redirector")));
        fs::create_dir_all(root.join("redirector")).unwrap();
        let nothing = root.join("nothing");
        let mail = MailConfig {
            state_dir: root.join("mail"),
            dovecot_dir: root.join("dovecot"),
            dovecot_snippet: root.join("05-ferry.conf"),
            programs: Programs {
                postfix: nothing.clone(),
                postconf: nothing.clone(),
                postqueue: nothing.clone(),
                postmap: nothing.clone(),
                dovecot: nothing.clone(),
                doveadm: nothing.clone(),
                doveconf: nothing.clone(),
            },
            ..MailConfig::default()
        };
        let mut layout = Layout::below(root);
        layout.programs.nginx = nothing;
        let world = World {
            state_directory: root.join("state"),
            layout,
            mail: Mail::new(mail),
            redirection: Redirection::of(
                &root.join("redirector.toml"),
                Redirector::at(root.join("control")),
            ),
            engines: Vec::new(),
            service: format!("/ferry-doctor-{}.service", std::process::id()),
            definitions: Vec::new(),
        };
        let server = Self { dir, world };
        server.ledger();
        server
    }

    fn ledger(&self) -> Ledger {
        Ledger::open(&self.world.state_directory.join("ledger")).unwrap()
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.dir.path().join(path)).is_ok()
    }

    /// The ledger says that `shop` stands so here.
    fn stands(&self, standing: &Standing) -> Account {
        let mut shop = account("shop", standing);
        (shop.uid, shop.gid) = (UID, UID);
        let closed = matches!(
            standing,
            Standing::Fenced { .. } | Standing::Moved { .. } | Standing::Finalized { .. }
        );
        shop.closed = closed.then(|| Box::new(self.closed()));
        self.records(shop.clone());
        shop
    }

    fn records(&self, shop: Account) {
        self.ledger().set_account(&"shop".parse().unwrap(), Some(shop)).unwrap();
    }

    fn closed(&self) -> Closed {
        let user: ferry_proto::ids::UnixName = "shop".parse().unwrap();
        Closed {
            sites: sites_fence::FencePlan {
                account: "shop".parse().unwrap(),
                files: vec![sites_fence::AsideFile {
                    path: self.dir.path().join("etc/nginx/conf.d/shop.conf"),
                    aside: self.dir.path().join("etc/ferry/aside/shop/00-shop.conf"),
                    owner: (0, 0, 0o644),
                    target: None,
                }],
                stubs: Vec::new(),
                pools: Vec::new(),
                findings: Vec::new(),
            },
            logins: users::LoginRecord { user: user.clone(), expire: None },
            units: processes::KeptStopped {
                user,
                uid: UID,
                linger: true,
                manager_active: false,
                units: Vec::new(),
            },
            databases: Vec::new(),
        }
    }

    /// As a fence leaves the host.
    fn close(&self) {
        let closed = self.closed();
        self.put("etc/ferry/aside/shop/00-shop.conf", "server { server_name shop.example; }");
        self.put("var/spool/cron/crontabs/.ferry-aside-shop", "* * * * * true\n");
        self.put("var/lib/systemd/linger/shop", "");
        users::close_logins(&self.world.layout, &closed.logins).unwrap();
        processes::keep_stopped(&self.world.layout, &closed.units).unwrap();
    }

    async fn look(&self) -> Report {
        let (report, _) = super::look(&self.world).await;
        assert_eq!(report.unseen, Vec::new());
        report
    }

    async fn found(&self) -> Vec<(Verdict, Kind)> {
        self.look().await.findings.iter().map(|f| (f.verdict, f.artefact.kind)).collect()
    }
}

#[test]
fn a_clean_server_gives_nothing_and_so_does_an_account_in_each_standing() {
    alone(|server| async move {
        assert_eq!(server.found().await, []);
        assert_eq!(examined(&server.world).await.exit_code(), 0);
        let of = a_move();
        server.stands(&Standing::Serving);
        assert_eq!(server.found().await, []);
        server.close();
        let deadline = Deadline::after(Duration::from_secs(600)).unwrap();
        let finalized = Standing::Finalized {
            to: "transit1".parse().unwrap(),
            since_unix_ms: None,
            erasing: false,
        };
        server.stands(&finalized);
        assert_eq!(server.found().await, []);
        firewall::arm(&Rules::usual(64_993)).await.unwrap();
        server.put("state/copies/shop.json", &serde_json::json!({ "job": of.job }).to_string());
        server.stands(&fenced(&of, &deadline));
        assert_eq!(server.found().await, []);
        fs::remove_file(server.dir.path().join("state/copies/shop.json")).unwrap();
        let mut shop = server.stands(&moved(&of));
        assert_eq!(server.found().await, []);
        // It went again before what was to follow its last open here had come: that will not follow now.
        shop.after_open = Some(Box::new(AfterOpen {
            due_unix_ms: 0,
            fence_minute: 0,
            missed_minutes: 0,
            units: server.closed().units,
            started: false,
            done: false,
        }));
        server.records(shop);
        assert_eq!(server.found().await, []);
        firewall::disarm().await.unwrap();
        // Coming back: as closed as it was, and on its way.
        for standing in [receiving(&of), opening(&of)] {
            let mut shop = server.stands(&standing);
            shop.closed = Some(Box::new(server.closed()));
            server.records(shop);
            server.put("home/shop/.ferry-tmp.0123456789abcdef0123456789abcdef", "half");
            assert_eq!(server.found().await, []);
        }
    });
}

#[test]
fn what_is_left_is_found_removed_and_found_gone() {
    alone(|server| async move {
        server.put("etc/nginx/conf.d/.ferry-tmp-shop.conf", "half");
        server.put("etc/ferry/certificates/ghost/main.key", "secret");
        server.put("state/ledger.next", "half");
        server.put("state/copies/ghost.new", "half");
        server.put("state/copies/shop.json", "{}");
        server.put("state/identity/.key.new", "half");
        server.put("state/unsynced/1.new", "half");
        server.put("state/allowances/1.new", "half");
        server.put("state/handover/journals.new", "half");
        server.put("mail/held_recipients", "/x/ 450 no\n");
        firewall::arm(&Rules::usual(64_993)).await.unwrap();
        let report = examined(&server.world).await;
        assert_eq!(report.exit_code(), 1);
        let kinds: std::collections::BTreeSet<_> =
            report.findings.iter().map(|f| f.artefact.kind).collect();
        let expected = [
            Kind::Temporary,
            Kind::Certificate,
            Kind::Firewall,
            Kind::Routing,
            Kind::MailTable,
            Kind::Copy,
        ];
        assert_eq!(kinds, expected.into());
        assert!(report.findings.iter().all(|f| f.verdict == Verdict::Orphan && f.can_be_removed()));

        let after = removed(&server.world).await;
        assert_eq!(
            (after.exit_code(), after.removed.len()),
            (0, report.findings.len()),
            "{after:?}"
        );
        assert_eq!(server.found().await, []);
        assert!(removed(&server.world).await.removed.is_empty());
        assert!(!server.has("state/copies/shop.json") && server.has("state/ledger"));
    });
}

#[test]
fn what_closes_an_account_is_opened_only_where_the_ledger_has_it_served() {
    alone(|server| async move {
        server.close();
        // Nobody knows the account: all of it is left to a person.
        let report = removed(&server.world).await;
        assert_eq!(report.exit_code(), 1);
        assert!(report.removed.is_empty(), "{report:?}");
        assert!(report.findings.len() >= 5 && report.findings.iter().all(|f| !f.can_be_removed()));
        assert!(server.has("etc/ferry/fenced/shop"));
        server.stands(&Standing::Serving);
        let report = removed(&server.world).await;
        let left: Vec<_> = report.findings.iter().map(|f| f.artefact.kind).collect();
        assert_eq!(left, [Kind::Aside, Kind::ClosedLogin], "{report:?}");
        assert!(
            server.has("var/spool/cron/crontabs/shop") && server.has("var/lib/systemd/linger/shop")
        );
        assert!(server.has("etc/ferry/aside/shop/00-shop.conf"));
    });
}

#[test]
fn what_is_open_of_a_closed_account_is_worse() {
    alone(|server| async move {
        server.stands(&moved(&a_move()));
        server.put("etc/nginx/conf.d/shop.conf", "server { server_name shop.example; }");
        server.put("var/spool/cron/crontabs/shop", "* * * * * true\n");
        server.put("etc/ferry/aside/ghost/00-ferry-ghost.main.conf", "server { }");
        let report = server.look().await;
        assert!(report.findings[0].verdict == Verdict::Open, "{report:?}");
        let words: Vec<_> = report.findings.iter().map(|f| f.what.as_str()).collect();
        for part in
            ["may log in", "cron sees", "is back", "may start", "do not come by the redirector"]
        {
            assert!(words.iter().any(|w| w.contains(part)), "{part}: {words:?}");
        }
        assert_eq!(report.findings.last().unwrap().verdict, Verdict::Orphan);
        let text = report.text();
        assert!(
            text.contains("OPEN: moved here by the ledger of account shop: user shop may log in"),
            "{text}"
        );
        let json = report.json();
        assert_eq!((&json["format"], &json["exit_code"]), (&1.into(), &1.into()));
        assert_eq!(json["findings"][0]["verdict"], "open");
        let accounts: Vec<_> =
            json["findings"].as_array().unwrap().iter().map(|f| &f["account"]).collect();
        assert!(accounts.contains(&&"shop".into()), "{json}");
    });
}

#[test]
fn nothing_is_removed_in_the_agents_way_or_without_a_ledger() {
    alone(|server| async move {
        server.put("state/copies/ghost.new", "half");
        let turn = turn::of_command(&server.world.state_directory).await.unwrap();
        let report = removed(&server.world).await;
        assert!(
            report.findings[0]
                .not_removed
                .as_ref()
                .is_some_and(|w| w.contains("carries out a command"))
        );
        drop(turn);
        let deadline = Deadline::after(Duration::from_secs(600)).unwrap();
        server.stands(&fenced(&a_move(), &deadline));
        let report = removed(&server.world).await;
        let why = report.findings.iter().find_map(|f| f.not_removed.clone()).unwrap();
        assert!(why.contains("account shop is in its critical section"), "{why}");

        let ledger = server.world.state_directory.join("ledger");
        server.stands(&Standing::Serving);
        let mut bytes = fs::read(&ledger).unwrap();
        bytes[22] ^= 1;
        fs::write(&ledger, &bytes).unwrap();
        let report = removed(&server.world).await;
        assert_eq!(report.exit_code(), 2);
        assert!(report.findings.iter().all(|f| f.verdict == Verdict::NotCompared));
        assert!(report.unseen[0].message.contains("damaged"), "{report:?}");
        assert!(server.has("state/copies/ghost.new"));
        assert_eq!(fs::read(&ledger).unwrap(), bytes, "the ledger was changed");
        fs::remove_file(&ledger).unwrap();
        assert_eq!(removed(&server.world).await.exit_code(), 2);
        assert!(server.has("state/copies/ghost.new"));
    });
}

#[test]
fn a_program_that_outlived_the_agent_is_found_and_ended() {
    alone(|server| async move {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let unified = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let unified = unified.and_then(|line| line.split(' ').nth(4)).expect("cgroup v2 is needed");
        let group = format!("{unified}{}", server.world.service);
        fs::create_dir(&group).unwrap();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        fs::write(format!("{group}/cgroup.procs"), child.id().to_string()).unwrap();
        let found = server.found().await;
        let report = removed(&server.world).await;
        let ended = child.wait().unwrap();
        fs::remove_dir(&group).unwrap();
        assert_eq!(found, [(Verdict::Orphan, Kind::Child)]);
        assert_eq!((report.exit_code(), report.removed.len()), (0, 1), "{report:?}");
        assert!(!ended.success());
    });
}

#[test]
fn only_what_was_seen_twice_counts() {
    let orphan = |place: &str| Finding::orphan(Artefact::new(Kind::Route, place));
    let of = |places: &[&str]| Report {
        findings: places.iter().map(|p| orphan(p)).collect(),
        ..Report::default()
    };
    let both = of(&["stays", "came"]).only_what_is_in(&of(&["went", "stays"]));
    assert_eq!(both.findings, of(&["stays"]).findings);
}
