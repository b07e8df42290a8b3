use std::fs;

use super::*;
use crate::sites_fence::plan_fence;

/// A host with a user that has a crontab, lingers and may log in.
fn host() -> (tempfile::TempDir, Layout, Definition) {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::below(directory.path());
    for path in
        ["/etc", "/var/spool/cron/crontabs", "/var/lib/systemd/linger", "/etc/systemd/system"]
    {
        fs::create_dir_all(layout.path(path)).unwrap();
    }
    let put = |path: &str, text: &str| fs::write(layout.path(path), text).unwrap();
    put("/etc/passwd", "root:x:0:0::/root:/bin/sh\nshop:x:1501:1501::/home/shop:/bin/sh\n");
    put("/etc/group", "root:x:0:\nshop:x:1501:\n");
    put("/etc/shadow", "root:*:19000:0:99999:7:::\nshop:!:19000:0:99999:7:::\n");
    put("/etc/gshadow", "root:*::\nshop:!::\n");
    let definition = serde_json::json!({"name": "shop", "user": "shop", "home": "/home/shop"});
    (directory, layout, serde_json::from_value(definition).unwrap())
}

fn open(layout: &Layout) {
    fs::write(layout.path("/var/spool/cron/crontabs/shop"), "* * * * * true\n").unwrap();
    fs::write(layout.path("/var/lib/systemd/linger/shop"), "").unwrap();
    let shadow = "root:*:19000:0:99999:7:::\nshop:!:19000:0:99999:7:::\n";
    fs::write(layout.path("/etc/shadow"), shadow).unwrap();
}

fn is_open(layout: &Layout) -> [bool; 3] {
    let user = "shop".parse().unwrap();
    [
        cron::is_visible(layout, &user).unwrap(),
        users::may_log_in(layout, &user).unwrap(),
        processes::lingers_now(layout, &user).unwrap(),
    ]
}

#[test]
fn everything_that_was_opened_is_closed_again_and_told() {
    let (_keep, layout, definition) = host();
    let user = &definition.user;
    let units = processes::plan_keep_stopped(&layout, user, 1501).unwrap();
    let fenced = plan_fence(&layout, &definition).unwrap();
    for units in [Some(&units), None] {
        open(&layout);
        let account =
            ClosedAccount { definition: &definition, fenced: Some(&fenced), rendered: None, units };
        let enabled = Enabled::default();
        let all = close_again(&layout, &account, &enabled, Services::Booting);
        assert!(all.faults.is_empty() && all.found.len() >= 3, "{all:?}");
        assert_eq!(is_open(&layout), [false; 3]);
        let again = close_again(&layout, &account, &enabled, Services::Booting);
        assert!(again.found.is_empty() && again.faults.is_empty(), "{again:?}");
    }
    assert_eq!(reopened(&layout, &definition, &fenced, &units).unwrap(), [""; 0]);
    open(&layout);
    assert_eq!(reopened(&layout, &definition, &fenced, &units).unwrap().len(), 3);
    assert_eq!(is_open(&layout), [true; 3], "looking changes nothing");
}

#[test]
fn what_cannot_be_closed_keeps_nothing_else_open() {
    let (_keep, layout, _) = host();
    open(&layout);
    // Not to be read, and so not to be closed: what it says is not known.
    fs::remove_file(layout.path("/etc/shadow")).unwrap();
    fs::create_dir(layout.path("/etc/shadow")).unwrap();
    let all = close_user_again(&layout, &"shop".parse().unwrap());
    assert_eq!((all.found.len(), all.faults.len()), (2, 1), "{all:?}");
}

#[test]
fn a_user_that_is_gone_has_nothing_to_close() {
    let (_keep, layout, _) = host();
    fs::write(layout.path("/etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    let all = close_user_again(&layout, &"shop".parse().unwrap());
    assert!(all.found.is_empty() && all.faults.is_empty(), "{all:?}");
}
