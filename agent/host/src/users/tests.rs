use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::*;

const HASH: &str = "$y$j9T$abcdefgh$ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefg";

/// A tree with the files of a user database.
struct Tree {
    directory: tempfile::TempDir,
    layout: Layout,
}

impl Tree {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let layout = Layout::below(directory.path());
        for path in ["/etc", "/home"] {
            fs::create_dir(layout.path(path)).unwrap();
        }
        let tree = Self { directory, layout };
        tree.put(
            "passwd",
            "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33::/var/www:/usr/sbin/nologin\n",
        );
        tree.put("group", "root:x:0:\nsudo:x:27:\nwww-data:x:33:\nsftponly:x:1900:\n");
        tree.put("shadow", "root:*:19000:0:99999:7:::\nwww-data:*:19000:0:99999:7:::\n");
        tree.put("gshadow", "root:*::\nsudo:*::\nwww-data:*::\nsftponly:!::\n");
        tree.put("shells", "# shells\n/bin/sh\n/bin/bash\n");
        tree.put("subuid", "");
        tree
    }

    fn put(&self, file: &str, text: &str) {
        fs::write(self.directory.path().join("etc").join(file), text).unwrap();
    }

    fn add(&self, file: &str, line: &str) {
        let text = self.get(file) + line + "\n";
        self.put(file, &text);
    }

    fn get(&self, file: &str) -> String {
        fs::read_to_string(self.directory.path().join("etc").join(file)).unwrap()
    }

    fn line(&self, file: &str, name: &str) -> String {
        let start = format!("{name}:");
        self.get(file).lines().find(|l| l.starts_with(&start)).unwrap_or_default().to_owned()
    }

    /// Everything that the tools may change.
    fn snapshot(&self) -> Vec<String> {
        let mut all: Vec<String> = ["passwd", "group", "shadow", "gshadow"]
            .iter()
            .flat_map(|f| self.get(f).lines().map(|l| format!("{f} {l}")).collect::<Vec<_>>())
            .collect();
        all.sort();
        all
    }

    fn plan(&self, record: &UserRecord) -> Result<Provision, Fault> {
        plan_provision(&self.layout, &definition(), record, Existing::Refuse, &Policy::default())
    }
}

fn definition() -> Definition {
    let value = serde_json::json!({
        "name": "shop", "user": "shop", "home": "/home/clients/shop", "groups": ["sftponly", "crew"]
    });
    serde_json::from_value(value).unwrap()
}

fn record() -> UserRecord {
    UserRecord {
        name: "shop".parse().unwrap(),
        uid: 1501,
        group: Group { name: "shop".parse().unwrap(), gid: 1501 },
        gecos: "The shop,,,".to_owned(),
        shell: "/bin/bash".into(),
        home: "/home/clients/shop".into(),
        password_hash: PasswordHash(HASH.to_owned()),
        aging: Aging {
            last_change: Some(19_500),
            minimum: Some(0),
            maximum: Some(99_999),
            warning: Some(7),
            inactive: None,
            expire: Some(22_000),
        },
        groups: vec![
            Group { name: "sftponly".parse().unwrap(), gid: 1800 },
            Group { name: "crew".parse().unwrap(), gid: 1700 },
        ],
        web_group_member: true,
        findings: Vec::new(),
    }
}

#[test]
fn a_user_is_described() {
    let tree = Tree::new();
    tree.add("passwd", "shop:x:1501:1501:The shop,,,:/home/clients/shop:/bin/bash");
    tree.add("group", "shop:x:1501:www-data\ncrew:x:1700:shop\ndevs:x:1800:shop");
    tree.add("shadow", &format!("shop:{HASH}:19500:0:99999:7::22000:"));
    let found = describe(&tree.layout, &definition()).unwrap();
    let mut expected = record();
    expected.groups[0].gid = 1900;
    assert_eq!(found.findings.len(), 1, "{:?}", found.findings);
    assert!(found.findings[0].message.contains("devs"));
    expected.findings = found.findings.clone();
    assert_eq!(found, expected);
    assert!(!format!("{found:?}").contains("$y$"));
    assert!(serde_json::to_string(&found).unwrap().contains("$y$"));
}

#[test]
fn a_missing_or_system_user_is_a_precondition() {
    let tree = Tree::new();
    let fault = describe(&tree.layout, &definition()).unwrap_err();
    assert!(fault.message.contains("no user shop"));
    let mut web = definition();
    web.user = "www-data".parse().unwrap();
    assert!(describe(&tree.layout, &web).unwrap_err().message.contains("system"));
}

#[test]
fn ids_are_kept_where_free_and_mapped_where_not() {
    let tree = Tree::new();
    let ids =
        |record: &UserRecord, reserved: &[u32]| plan_ids(&tree.layout, record, reserved).unwrap();
    assert_eq!(ids(&record(), &[]), IdPlan { uid: 1501, gid: 1501, mapped: false });
    assert_eq!(ids(&record(), &[1501]), IdPlan { uid: 10_000, gid: 10_000, mapped: true });
    tree.add("passwd", "other:x:1501:1600::/home/other:/bin/sh");
    assert_eq!(ids(&record(), &[]), IdPlan { uid: 10_000, gid: 1501, mapped: true });
    tree.add("subuid", "other:10000:5");
    assert_eq!(ids(&record(), &[10_005]).uid, 10_006);
    for hostile in [0, 33, 999, 65_534, 100_000, u32::MAX] {
        let mut record = record();
        (record.uid, record.group.gid) = (hostile, hostile);
        assert_eq!(ids(&record, &[]), IdPlan { uid: 10_005, gid: 10_005, mapped: true });
    }
}

#[test]
fn a_user_is_made_closed_and_taken_away_without_a_trace() {
    let tree = Tree::new();
    let before = tree.snapshot();
    let plan = tree.plan(&record()).unwrap();
    assert_eq!(plan.create_parents, [Path::new("/home/clients")]);
    assert_eq!(plan.create_groups.len(), 1);
    for _ in 0..2 {
        provision(&tree.layout, &plan).unwrap();
        let line = "shop:x:1501:1501:The shop,,,:/home/clients/shop:/bin/bash";
        assert_eq!(tree.line("passwd", "shop"), line);
        assert_eq!(tree.line("shadow", "shop"), format!("shop:{HASH}:19500:0:99999:7::74:"));
        assert_eq!(tree.line("group", "shop"), "shop:x:1501:www-data");
        assert_eq!(tree.line("group", "crew"), "crew:x:1700:shop");
        assert_eq!(tree.line("group", "sftponly"), "sftponly:x:1900:shop");
        let home = fs::metadata(tree.layout.path("/home/clients/shop")).unwrap();
        assert_eq!((home.uid(), home.gid(), home.mode() & 0o7777), (1501, 1501, 0o700));
    }
    // It is there now, and this is what keeps another one from being laid over it.
    assert!(tree.plan(&record()).unwrap_err().message.contains("user shop"));
    let outside = tree.layout.path("/outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    std::os::unix::fs::symlink(&outside, tree.layout.path("/home/clients/shop/link")).unwrap();
    for _ in 0..2 {
        deprovision(&tree.layout, &plan).unwrap();
        assert!(!tree.layout.path("/home/clients").exists());
        assert!(outside.join("precious").exists());
    }
    assert_eq!(tree.snapshot(), before);
}

#[test]
fn undoing_what_never_happened_changes_nothing() {
    let tree = Tree::new();
    let plan = tree.plan(&record()).unwrap();
    // Somebody else's user of the same name, made since.
    tree.add("passwd", "shop:x:1777:1777::/home/clients/shop:/bin/sh");
    tree.add("group", "shop:x:1777:");
    fs::create_dir_all(tree.layout.path("/home/clients/shop")).unwrap();
    fs::write(tree.layout.path("/home/clients/shop/file"), "x").unwrap();
    let before = tree.snapshot();
    deprovision(&tree.layout, &plan).unwrap();
    assert_eq!(tree.snapshot(), before);
    assert!(tree.layout.path("/home/clients/shop/file").exists());
    assert_eq!(
        provision(&tree.layout, &plan).unwrap_err().class,
        ferry_proto::FaultClass::Precondition
    );
}

#[test]
fn what_is_taken_is_refused() {
    let tree = Tree::new();
    let mut record = record();
    record.groups.clear();
    fs::create_dir_all(tree.layout.path("/home/clients/shop")).unwrap();
    assert!(tree.plan(&record).unwrap_err().message.contains("the home"));
    fs::remove_dir(tree.layout.path("/home/clients/shop")).unwrap();
    fs::set_permissions(tree.layout.path("/home/clients"), fs::Permissions::from_mode(0o777))
        .unwrap();
    assert!(tree.plan(&record).unwrap_err().message.contains("only root can write"));
    fs::remove_dir(tree.layout.path("/home/clients")).unwrap();
    let outside = tree.layout.path("/outside");
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, tree.layout.path("/home/clients")).unwrap();
    assert!(tree.plan(&record).unwrap_err().message.contains("only root can write"));
    fs::remove_file(tree.layout.path("/home/clients")).unwrap();
    tree.add("group", "shop:x:1444:");
    assert!(tree.plan(&record).unwrap_err().message.contains("group shop"));
}

#[test]
fn a_hostile_record_is_refused() {
    let tree = Tree::new();
    let refused = |change: &dyn Fn(&mut UserRecord)| {
        let mut record = record();
        change(&mut record);
        tree.plan(&record).unwrap_err().message
    };
    let joined = |name: &str| {
        let group = Group { name: name.parse().unwrap(), gid: 1950 };
        refused(&move |r| r.groups = vec![group.clone()])
    };
    assert!(joined("sudo").contains("sudo"));
    assert!(joined("docker").contains("docker"));
    tree.add("passwd", "other:x:1601:1601::/home/other:/bin/sh");
    tree.add("group", "other:x:1601:\nprinters:x:111:");
    assert!(joined("other").contains("another user's own"));
    assert!(joined("printers").contains("system"));
    assert!(refused(&|r| r.gecos = "a:b".into()).contains("cannot"));
    assert!(refused(&|r| r.gecos = "a\nroot2:x:0:0::/:/bin/sh".into()).contains("cannot"));
    assert!(refused(&|r| r.password_hash = PasswordHash("x\nroot:y".into())).contains("cannot"));
    assert!(refused(&|r| r.shell = "/bin/zsh".into()).contains("/bin/zsh"));
    assert!(refused(&|r| r.home = "/etc".into()).contains("not the one"));
}

#[test]
fn the_policy_allows_a_group() {
    let tree = Tree::new();
    tree.add("group", "printers:x:111:");
    let mut record = record();
    record.groups = vec![Group { name: "printers".parse().unwrap(), gid: 120 }];
    let policy = Policy { allow_groups: vec!["printers".parse().unwrap()], ..Policy::default() };
    let plan =
        plan_provision(&tree.layout, &definition(), &record, Existing::Refuse, &policy).unwrap();
    assert_eq!((plan.groups[0].gid, plan.create_groups.len()), (111, 0));
}

#[test]
fn an_account_that_lived_here_keeps_its_user() {
    let tree = Tree::new();
    tree.add("passwd", "shop:x:1777:1777::/home/clients/shop:/bin/bash");
    tree.add("group", "shop:x:1777:");
    tree.add("shadow", "shop:!:19000::::::");
    let keep = |record: &UserRecord| {
        plan_provision(&tree.layout, &definition(), record, Existing::Keep, &Policy::default())
    };
    let mut record = record();
    record.groups.clear();
    record.web_group_member = false;
    let plan = keep(&record).unwrap();
    assert_eq!(plan.ids, IdPlan { uid: 1777, gid: 1777, mapped: true });
    provision(&tree.layout, &plan).unwrap();
    deprovision(&tree.layout, &plan).unwrap();
    assert!(tree.line("passwd", "shop").contains(":1777:1777:"));
}

/// The user as the former server of an account has it: closed, with values of its own.
fn lived_here() -> (Tree, Vec<String>) {
    let tree = Tree::new();
    tree.add("passwd", "shop:x:1777:1777:Old:/home/clients/shop:/bin/sh");
    tree.add("group", "shop:x:1777:");
    tree.add("gshadow", "shop:!::");
    tree.add("shadow", "shop:$y$j9T$old$old:18000:1:90:6:5:74:");
    let before = tree.snapshot();
    (tree, before)
}

#[test]
fn a_user_that_lived_here_becomes_what_it_is_at_the_source_and_back() {
    let (tree, before) = lived_here();
    let plan =
        plan_provision(&tree.layout, &definition(), &record(), Existing::Keep, &Policy::default())
            .unwrap();
    let own = former(&tree.layout, &definition()).unwrap();
    for _ in 0..2 {
        provision(&tree.layout, &plan).unwrap();
        let line = "shop:x:1777:1777:The shop,,,:/home/clients/shop:/bin/bash";
        assert_eq!(tree.line("passwd", "shop"), line);
        // Everything but the expiry, which keeps it closed.
        assert_eq!(tree.line("shadow", "shop"), format!("shop:{HASH}:19500:0:99999:7::74:"));
        assert_eq!(tree.line("group", "sftponly"), "sftponly:x:1900:shop");
        assert_eq!(tree.line("group", "crew"), "crew:x:1700:shop");
        assert_eq!(tree.line("group", "shop"), "shop:x:1777:www-data");
    }
    for _ in 0..2 {
        restore(&tree.layout, &plan, &own).unwrap();
        assert_eq!(tree.snapshot(), before);
    }
}

#[test]
fn a_user_made_here_follows_its_source() {
    let tree = Tree::new();
    let first = tree.plan(&record()).unwrap();
    provision(&tree.layout, &first).unwrap();
    let mut later = record();
    later.password_hash = PasswordHash("$y$j9T$new$new".to_owned());
    later.aging.last_change = Some(20_000);
    later.shell = "/bin/sh".into();
    later.gecos = "Renamed".to_owned();
    let again =
        plan_provision(&tree.layout, &definition(), &later, Existing::Keep, &Policy::default())
            .unwrap()
            .again(&first);
    provision(&tree.layout, &again).unwrap();
    let line = "shop:x:1501:1501:Renamed:/home/clients/shop:/bin/sh";
    assert_eq!(tree.line("passwd", "shop"), line);
    assert_eq!(tree.line("shadow", "shop"), "shop:$y$j9T$new$new:20000:0:99999:7::74:");
    // What the first plan made is still what may be taken away.
    assert_eq!((again.create, &again.create_groups), (true, &first.create_groups));
    deprovision(&tree.layout, &again).unwrap();
    assert_eq!(tree.line("passwd", "shop") + &tree.line("group", "crew"), "");
}

#[test]
fn an_account_that_lived_here_stays_in_its_groups() {
    let (tree, _) = lived_here();
    tree.add("group", "jailed:x:111:shop\nothers:x:112:");
    let joined = |name: &str| {
        let mut record = record();
        record.groups = vec![Group { name: name.parse().unwrap(), gid: 1950 }];
        plan_provision(&tree.layout, &definition(), &record, Existing::Keep, &Policy::default())
    };
    // At the other server it is no group of the system, and has another id.
    assert_eq!(joined("jailed").unwrap().groups[0].gid, 111);
    let fault = joined("others").unwrap_err();
    assert!(fault.message.contains("system"), "{fault}");
    assert!(!fault.remedy.contains("agent.toml"), "no such key: {}", fault.remedy);
}

#[test]
fn an_account_that_lived_here_keeps_a_shell_that_is_not_listed() {
    let (tree, _) = lived_here();
    let with = |shell: &str| {
        let mut record = record();
        record.shell = shell.into();
        plan_provision(&tree.layout, &definition(), &record, Existing::Keep, &Policy::default())
    };
    tree.put("shells", "/bin/bash\n");
    with("/bin/sh").unwrap();
    assert!(with("/bin/zsh").is_err());
}

#[test]
fn logins_close_and_open_as_they_were() {
    for former in ["", "22000"] {
        let tree = Tree::new();
        tree.add("passwd", "shop:x:1501:1501::/home/clients/shop:/bin/bash");
        tree.add("group", "shop:x:1501:");
        tree.add("gshadow", "shop:!::");
        tree.add("shadow", &format!("shop:{HASH}:19500:0:99999:7::{former}:"));
        let before = tree.snapshot();
        let plan = plan_close_logins(&tree.layout, &"shop".parse().unwrap()).unwrap();
        for _ in 0..2 {
            close_logins(&tree.layout, &plan).unwrap();
            assert_eq!(tree.line("shadow", "shop"), format!("shop:{HASH}:19500:0:99999:7::74:"));
        }
        for _ in 0..2 {
            open_logins(&tree.layout, &plan).unwrap();
            assert_eq!(tree.snapshot(), before);
        }
    }
}

#[test]
fn opening_the_logins_of_a_user_that_is_gone_is_no_error() {
    let tree = Tree::new();
    let record = LoginRecord { user: "gone".parse().unwrap(), expire: None };
    open_logins(&tree.layout, &record).unwrap();
    assert!(close_logins(&tree.layout, &record).is_err());
}
