use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use super::*;
use crate::processes::{KeptStopped, allow, keep_stopped};
use crate::sites_fence::{self, Services};
use crate::users::CLOSED;
use crate::web_fixture::Web;
use crate::{cron, sites};

/// A host's tree with a user `shop`, and one that is gone: `ghost`.
struct Tree {
    _directory: tempfile::TempDir,
    layout: Layout,
    homes: Vec<Home>,
}

impl Tree {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut layout = Layout::below(directory.path());
        // The host's own services are not this tree's.
        layout.programs.nginx = "/nonexistent/nginx".into();
        // No unit is active.
        layout.programs.systemctl = "/bin/true".into();
        let tree = Self {
            homes: vec![Home { account: "shop".parse().unwrap(), path: layout.path("/home/shop") }],
            layout,
            _directory: directory,
        };
        tree.put(
            "/etc/passwd",
            "root:x:0:0::/root:/bin/sh\nshop:x:58231:58231::/home/shop:/bin/sh\n",
        );
        tree.put("/etc/group", "root:x:0:\nshop:x:58231:\n");
        tree.put("/etc/shadow", "root:*:1:0:9:7:::\nshop:*:19000:0:99999:7:::\n");
        tree.put("/etc/gshadow", "root:*::\nshop:!::\n");
        tree.put("/home/shop/www/index.html", "the shop");
        for place in ["/var/spool/cron/crontabs", "/etc/php/8.4/fpm/pool.d", "/etc/nginx/conf.d"] {
            fs::create_dir_all(tree.layout.path(place)).unwrap();
        }
        tree
    }

    fn put(&self, path: &str, text: &str) -> PathBuf {
        let path = self.layout.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn observed(&self) -> Vec<Artefact> {
        let seen = observe(&self.layout, &self.homes);
        assert_eq!(seen.unseen, Vec::new());
        seen.artefacts
    }

    fn found(&self, kind: Kind) -> Vec<Artefact> {
        self.observed().into_iter().filter(|a| a.kind == kind).collect()
    }

    /// Plants a file and sees that exactly it is found, as `kind`, and gone once it is removed.
    fn found_and_removed(&self, path: &str, text: &str, kind: Kind) {
        let planted = self.put(path, text);
        let found = self.observed();
        assert_eq!(found.len(), 1, "{path}: {found:?}");
        assert_eq!((found[0].kind, found[0].place.as_str()), (kind, planted.to_str().unwrap()));
        assert_eq!(found[0].by_hand, None, "{path}");
        for _ in 0..2 {
            remove(&self.layout, &self.homes, &found[0]).unwrap();
        }
        assert!(!planted.exists(), "{path}");
        assert_eq!(self.observed(), Vec::new(), "{path}");
    }
}

const SITE: &str =
    "# Made by Ferry for site main of account ghost. Changes are overwritten.\nserver {}\n";
const POOL: &str =
    "; Made by Ferry for site main of account ghost. Changes are overwritten.\n[x]\n";
const STUB: &str =
    "# Made by Ferry: this account is fenced, or served by another server.\nserver {}\n";

#[test]
fn a_host_without_anything_of_ferrys_gives_nothing() {
    let tree = Tree::new();
    assert_eq!(tree.observed(), Vec::new());
    // Named like Ferry's, but somebody else's.
    tree.put("/etc/nginx/sites-enabled/ferry-boats.example.conf", "server { }");
    tree.put("/etc/nginx/sites-enabled/ferry-fence-shop.0.conf", "server { }");
    tree.put("/etc/php/8.4/fpm/pool.d/ferry-shop.main.conf", "[shop]");
    tree.put("/etc/systemd/system/x.service.d/zzz-ferry-fence.conf", "[Unit]\n");
    tree.put("/home/shop/.ferry-tmp.mine", "the account's own");
    // Closed by an administrator.
    tree.put("/etc/shadow", "root:*:1:0:9:7:::\nshop:*:19000:0:99999:7::1:\n");
    assert_eq!(tree.observed(), Vec::new());
}

#[test]
fn each_file_that_is_left_is_found_and_removed() {
    let tree = Tree::new();
    let temporary = "/home/shop/.ferry-tmp.0123456789abcdef0123456789abcdef";
    for path in [
        "/etc/nginx/sites-enabled/.ferry-tmp-shop.conf",
        "/etc/nginx/sites.d/deep/.ferry-tmp-x",
        "/etc/php/8.4/fpm/pool.d/.ferry-tmp-shop.conf",
        "/var/spool/cron/crontabs/.ferry-tmp-shop",
        "/var/lib/systemd/linger/.ferry-tmp-shop",
        "/etc/systemd/system/x.service.d/.ferry-tmp-zzz-ferry-fence.conf",
        "/etc/ferry/fenced/.ferry-tmp-shop",
        temporary,
    ] {
        tree.found_and_removed(path, "half", Kind::Temporary);
    }
    for (path, text, kind) in [
        ("/etc/nginx/sites-available/ferry-ghost.main.conf", SITE, Kind::Site),
        ("/etc/nginx/sites-enabled/ferry-ghost.main.rehearsal.conf", SITE, Kind::Rehearsal),
        ("/etc/nginx/sites-enabled/ferry-fence-ghost.0.conf", STUB, Kind::FenceBlock),
        ("/etc/nginx/conf.d/ferry-fence-ghost.1.conf", STUB, Kind::FenceBlock),
        ("/etc/php/8.4/fpm/pool.d/ferry-ghost.main.conf.disabled", POOL, Kind::Site),
        ("/etc/nginx/.ferry-rehearsal-ghost.conf", "http {}", Kind::Rehearsal),
        ("/run/ferry/rehearsal/ferry-ghost.main.tls.sock", "", Kind::Rehearsal),
        ("/etc/ferry/fenced/ghost", "", Kind::Flag),
        ("/var/lib/systemd/linger/.ferry-aside-ghost", "", Kind::Linger),
        ("/var/spool/cron/crontabs/.ferry-aside-ghost", "* * * * * true", Kind::Crontab),
        ("/var/spool/cron/crontabs/.ferry-found-ghost", "* * * * * true", Kind::KeptCrontab),
    ] {
        tree.found_and_removed(path, text, kind);
    }
    // With the directory that was made for it.
    for (path, kind) in [
        ("/etc/ferry/certificates/ghost/main.key", Kind::Certificate),
        ("/etc/ferry/aside/ghost/00-ferry-ghost.main.conf", Kind::Aside),
    ] {
        tree.found_and_removed(path, "text", kind);
        assert!(!tree.layout.path(path).parent().unwrap().exists());
    }
    let condition = "# Made by Ferry, …\n[Unit]\nConditionPathExists=!/nonexistent/fenced/ghost\n";
    tree.found_and_removed(
        "/etc/systemd/system/x.service.d/zzz-ferry-fence.conf",
        condition,
        Kind::DropIn,
    );
    assert!(!tree.layout.path("/etc/systemd/system/x.service.d").exists());
}

#[test]
fn links_directories_and_pools_are_found_and_removed() {
    let tree = Tree::new();
    let enabled = tree.layout.path("/etc/nginx/sites-enabled");
    fs::create_dir_all(&enabled).unwrap();
    symlink("../sites-available/ferry-ghost.main.conf", enabled.join("ferry-ghost.main.conf"))
        .unwrap();
    symlink("/elsewhere/ferry-ghost.main.conf", enabled.join("ferry-ghost.other.conf")).unwrap();
    fs::create_dir_all(tree.layout.path("/run/ferry/rehearsal/ghost.aside/pools.0")).unwrap();
    fs::create_dir_all(tree.layout.path("/etc/ferry/aside/ghost")).unwrap();
    let idle = tree
        .put("/etc/php/8.4/fpm/pool.d/ferry-idle-ghost.conf", "; Made by Ferry: PHP-FPM does\n");
    let mut found = tree.observed();
    found.sort_unstable();
    let kinds: Vec<_> = found.iter().map(|a| a.kind).collect();
    assert_eq!(kinds, [Kind::Aside, Kind::IdlePool, Kind::Site, Kind::Rehearsal]);
    // The only pool must stay.
    let fault = remove(&tree.layout, &[], &found[1]).unwrap_err();
    assert!(fault.message.contains("does not run without one") && idle.exists(), "{fault}");
    tree.put("/etc/php/8.4/fpm/pool.d/www.conf", "[www]");
    for artefact in &found {
        remove(&tree.layout, &[], artefact).unwrap();
    }
    assert_eq!(tree.observed(), Vec::new());
    assert!(fs::symlink_metadata(enabled.join("ferry-ghost.other.conf")).is_ok());
}

#[test]
fn the_only_copy_of_a_providers_file_is_left_to_a_person() {
    let tree = Tree::new();
    let aside =
        tree.put("/etc/ferry/aside/shop/00-shop.conf", "server { server_name shop.example; }");
    let found = tree.found(Kind::Aside);
    assert!(found[0].by_hand.as_ref().is_some_and(|h| h.contains("move it back")), "{found:?}");
    // It is in its place again.
    fs::copy(&aside, tree.layout.path("/etc/nginx/conf.d/shop.conf")).unwrap();
    assert_eq!(tree.found(Kind::Aside)[0].by_hand, None);
    fs::write(tree.layout.path("/etc/nginx/conf.d/shop.conf"), "another").unwrap();
    assert!(tree.found(Kind::Aside)[0].by_hand.is_some());
}

#[test]
fn what_came_in_a_closed_accounts_place_goes_if_it_is_what_is_there_and_else_by_hand() {
    let tree = Tree::new();
    let enabled = tree.put("/etc/nginx/sites-enabled/shop.conf", "server { }");
    tree.put("/etc/ferry/aside/shop/00-shop.conf.found", "server { }");
    let found = tree.found(Kind::Aside);
    assert_eq!(found[0].by_hand, None, "{found:?}");
    fs::write(enabled, "server { server_name shop.example; }").unwrap();
    let found = tree.found(Kind::Aside);
    let compare = "compare it with shop.conf";
    assert!(found[0].by_hand.as_ref().is_some_and(|h| h.contains(compare)), "{found:?}");
    // Of a site that Ferry renders, it is still somebody's own.
    tree.put("/etc/ferry/aside/ghost/00-ferry-ghost.main.conf.found", SITE);
    tree.put("/etc/ferry/aside/shop/found-nginx-conf.d-copy.conf", "server { }");
    let found = tree.found(Kind::Aside);
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|a| a.by_hand.is_some()), "{found:?}");
    let strange = found.iter().find(|a| a.place.contains("copy.conf")).unwrap();
    let said = strange.by_hand.as_ref().unwrap();
    assert!(said.contains("served the account while"), "{said}");
    assert!(!said.contains("only copy of"), "{said}");
}

#[test]
fn what_closes_a_user_that_is_here_is_left_to_who_knows_how_the_account_stands() {
    let tree = Tree::new();
    let user = "shop".parse().unwrap();
    tree.put("/var/spool/cron/crontabs/shop", "* * * * * true\n");
    tree.put("/var/lib/systemd/linger/shop", "");
    let plan = KeptStopped {
        user: "shop".parse().unwrap(),
        uid: 58_231,
        linger: true,
        manager_active: false,
        units: Vec::new(),
    };
    keep_stopped(&tree.layout, &plan).unwrap();
    cron::disable(&tree.layout, &user).unwrap();
    let mut found = tree.observed();
    found.sort_unstable();
    let kinds: Vec<_> = found.iter().map(|a| a.kind).collect();
    assert_eq!(kinds, [Kind::Flag, Kind::DropIn, Kind::Linger, Kind::Crontab]);
    assert!(found.iter().all(|a| a.by_hand.is_some() && a.user.as_deref() == Some("shop")));
    for artefact in found.iter().filter(|a| a.kind != Kind::Crontab) {
        assert!(is_kept_stopped(&tree.layout, &plan, Path::new(&artefact.place)), "{artefact}");
    }
    // Who knows that it is served here has it opened again.
    for artefact in &found {
        remove(&tree.layout, &[], artefact).unwrap();
    }
    assert_eq!(tree.observed(), Vec::new());
    assert!(tree.layout.path("/var/spool/cron/crontabs/shop").exists());
    assert!(tree.layout.path("/var/lib/systemd/linger/shop").exists());
    allow(&tree.layout, &plan).unwrap();
}

#[test]
fn a_user_that_came_to_nothing_is_removed_and_one_with_files_is_not() {
    let tree = Tree::new();
    tree.put("/etc/shadow", &format!("root:*:1:0:9:7:::\nshop:*:19000:0:99999:7::{CLOSED}:\n"));
    let found = tree.found(Kind::ClosedLogin);
    assert!(found[0].by_hand.as_ref().is_some_and(|h| h.contains("userdel")), "{found:?}");
    remove(&tree.layout, &[], &found[0]).unwrap_err();
    fs::remove_dir_all(tree.layout.path("/home/shop/www")).unwrap();
    let found = tree.found(Kind::ClosedLogin);
    assert_eq!(found[0].by_hand, None);
    for _ in 0..2 {
        remove(&tree.layout, &[], &found[0]).unwrap();
    }
    assert_eq!(tree.observed(), Vec::new());
    let left = fs::read_to_string(tree.layout.path("/etc/passwd")).unwrap();
    assert!(!left.contains("shop") && !tree.layout.path("/home/shop").exists(), "{left}");
    assert!(!fs::read_to_string(tree.layout.path("/etc/group")).unwrap().contains("shop"));
}

#[test]
fn what_real_services_have_of_an_account_is_known_by_its_plans() {
    let web = Web::start();
    let definition = web.definition(serde_json::json!({"sites": [
        {"name": "main", "domains": ["shop.example"], "root": "www", "php": {}},
    ]}));
    let everything = || {
        let seen = observe(&web.layout, &[]);
        assert_eq!(seen.unseen, Vec::new());
        seen.artefacts
    };
    assert_eq!(everything(), Vec::new());
    web.put_home("www/index.php", "<?php echo 1;");
    let plan = sites::plan(&web.layout, &definition).unwrap();
    sites::open(&web.layout, &plan).unwrap();
    let of_sites = |a: &Artefact| is_of_sites(&web.layout, &plan, Path::new(&a.place));
    assert!(everything().len() == 3 && everything().iter().all(of_sites), "{:?}", everything());

    let fence = sites_fence::plan_fence(&web.layout, &definition).unwrap();
    sites_fence::fence(&web.layout, &fence, Services::Running, std::time::Duration::ZERO).unwrap();
    let of_fence = |a: &Artefact| is_of_fence(&web.layout, &fence, Path::new(&a.place));
    let found = everything();
    assert!(found.iter().any(|a| a.kind == Kind::FenceBlock) && found.iter().any(of_sites));
    assert!(found.iter().all(|a| of_sites(a) || of_fence(a)), "{found:?}");

    // Nobody knows the account any more: all of it goes, and the services go on.
    let mut found = everything();
    found.sort_unstable();
    for artefact in &found {
        remove(&web.layout, &[], artefact).unwrap_or_else(|fault| panic!("{artefact}: {fault}"));
    }
    assert_eq!(everything(), Vec::new());
}
