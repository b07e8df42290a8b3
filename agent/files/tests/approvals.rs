//! What support has approved goes to the target as it was seen, and nothing else does in its place.

mod support;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use ferry_files::{Approvals, Comparison, PassReport};
use ferry_proto::approval::Sight;
use support::{Trees, UID, ids, mkdir, own, run, source_options, target_options, write};
use tokio_util::sync::CancellationToken;

/// One of each that an account may not have, and what is in a directory of root's.
fn privileged_things(root: &Path) {
    write(&root.join("plain"), "p");
    tool(root);
    write(&root.join("capable"), "c");
    run(Command::new("setcap").arg("cap_net_raw+ep").arg(root.join("capable")));
    write(&root.join("trusted"), "t");
    xattr::set(root.join("trusted"), "trusted.secret", b"x").expect("xattr");
    std::fs::write(root.join("foreign"), "f").expect("write");
    std::os::unix::fs::chown(root.join("foreign"), Some(7), Some(8)).expect("chown");
    run(Command::new("mknod").arg("-m666").arg(root.join("null")).args(["c", "1", "3"]));
    run(Command::new("mkfifo").arg(root.join("fifo")));
    std::os::unix::fs::symlink("plain", root.join("link")).expect("symlink");
    write(&root.join("acl"), "x");
    run(Command::new("setfacl").args(["-m", "u:12:r"]).arg(root.join("acl")));
    let odd = std::ffi::OsStr::from_bytes(b"odd\xff\n\\");
    std::fs::write(root.join(odd), "o").expect("write");
    std::fs::create_dir(root.join("rootdir")).expect("mkdir");
    mkdir(&root.join("rootdir/below"));
    std::fs::write(root.join("rootdir/below/inside"), "i").expect("write");
}

/// A setuid program of root's, of a day on which nothing else happens.
fn tool(root: &Path) {
    std::fs::write(root.join("tool"), "#!/bin/true\n").expect("write");
    mode(&root.join("tool"), 0o4755);
    run(Command::new("touch").args(["-d", "2020-01-01"]).arg(root.join("tool")));
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
}

const PATHS: [&str; 11] = [
    "acl",
    "capable",
    "fifo",
    "foreign",
    "link",
    "null",
    r"odd\xff\x0a\x5c",
    "rootdir",
    "rootdir/below/inside",
    "tool",
    "trusted",
];

fn looked_at(trees: &Trees, paths: &[&str]) -> Result<Vec<Sight>, ferry_proto::Fault> {
    let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
    ferry_files::approve(&trees.source, &paths, &ids(), &CancellationToken::new())
}

fn approved(trees: &Trees, paths: &[&str]) -> Arc<Approvals> {
    let sights = looked_at(trees, paths).expect("all can be approved");
    Arc::new(Approvals::of(&sights).expect("paths"))
}

async fn pass(trees: &Trees, approved: &Arc<Approvals>) -> PassReport {
    let (mut source, mut target) = (source_options(), target_options());
    (source.approved, target.approved) = (approved.clone(), approved.clone());
    let (sent, received) = trees.pass_with(source, target).await;
    assert_eq!(sent.expect("the source's end"), *received.as_ref().expect("the target's end"));
    received.expect("the target's end")
}

async fn compare(trees: &Trees, approved: &Arc<Approvals>) -> Comparison {
    let (mut source, mut target) = (source_options(), target_options());
    (source.approved, target.approved) = (approved.clone(), approved.clone());
    trees.compare_between(source, target).await
}

#[tokio::test]
async fn what_is_approved_arrives_whole_and_stays() {
    let trees = Trees::new();
    privileged_things(&trees.source);
    let refused = trees.pass().await.refused;
    let named: Vec<_> = refused.items.iter().map(|r| r.path.as_str()).collect();
    for path in PATHS.iter().filter(|path| !path.starts_with("rootdir/")) {
        assert!(named.contains(path), "{path} is typed as it is shown: {named:?}");
    }
    let approved = approved(&trees, &PATHS);
    let report = pass(&trees, &approved).await;
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    trees.assert_equal();
    let comparison = compare(&trees, &approved).await;
    assert!(comparison.is_equal() && comparison.refused.is_empty(), "{comparison:?}");
    // And it holds: nothing is to be done the second time.
    let report = pass(&trees, &approved).await;
    assert_eq!((report.unchanged, report.files_sent), (report.entries, 0), "{report:?}");
    // Nothing of it is let in without.
    let report = trees.pass().await;
    assert_eq!(report.refused.total, refused.total, "{:?}", report.refused);
}

#[tokio::test]
async fn a_survey_refuses_no_more_what_is_approved() {
    let trees = Trees::new();
    privileged_things(&trees.source);
    let mut options = source_options();
    options.approved = approved(&trees, &PATHS);
    let survey = ferry_files::survey(&trees.source, &options, &ids(), &CancellationToken::new());
    assert!(survey.expect("survey").refused.is_empty());
}

#[tokio::test]
async fn what_is_not_what_was_approved_any_more_is_refused_and_never_stands() {
    type Change = fn(&Path);
    let changes: [(&str, Change, &str); 8] = [
        ("content", |tool| std::fs::write(tool, "#!/bin/evil\n").expect("write"), "content"),
        ("size", |tool| std::fs::write(tool, "longer than before").expect("write"), "owner 0"),
        ("mode", |tool| mode(tool, 0o6755), "owner 0"),
        ("owner", |tool| std::os::unix::fs::chown(tool, Some(7), None).expect("chown"), "owner 7"),
        ("given away", own, "mode"),
        (
            "capability",
            |tool| drop(run(Command::new("setcap").arg("cap_net_raw+ep").arg(tool))),
            "attributes",
        ),
        (
            "symlink",
            |tool| {
                std::fs::remove_file(tool).expect("rm");
                std::os::unix::fs::symlink("/bin/sh", tool).expect("symlink");
                own(tool);
            },
            "a symlink to /bin/sh, not a file",
        ),
        (
            "another name",
            |tool| std::fs::hard_link(tool, tool.with_extension("2")).expect("link"),
            "owner 0",
        ),
    ];
    for (what, change, word) in changes {
        let trees = Trees::new();
        tool(&trees.source);
        let approved = approved(&trees, &["tool"]);
        change(&trees.source.join("tool"));
        if what == "content" {
            // Nothing but the content itself tells.
            mode(&trees.source.join("tool"), 0o4755);
            run(Command::new("touch").args(["-d", "2020-01-01"]).arg(trees.source.join("tool")));
        }
        let report = pass(&trees, &approved).await;
        let reason = report.refused.items.iter().find(|r| r.path == "tool").map(|r| &r.reason);
        let reason = reason.unwrap_or_else(|| panic!("{what}: {report:?}"));
        assert!(reason.starts_with("it is not what was approved any more: "), "{what}: {reason}");
        assert!(reason.contains(word), "{what}: {reason}");
        let left = std::fs::read_dir(&trees.target).expect("readdir").count();
        assert_eq!(left, 0, "{what}");
        // What was let in before is not taken for what is there now.
        tool(&trees.target);
        let found = compare(&trees, &approved).await.refused;
        assert!(found.items.iter().any(|r| r.path == "tool"), "{what}: {found:?}");
    }
}

#[tokio::test]
async fn what_stands_at_the_target_is_made_anew_unless_it_is_what_was_approved() {
    let trees = Trees::new();
    tool(&trees.source);
    let approved = approved(&trees, &["tool"]);
    let at = trees.target.join("tool");
    // Of the same size and time, as somebody may have put there; another name of a system's file; what is not
    // privileged; and what has more than was approved.
    for spoil in 0..4 {
        let outside = trees.dir.path().join("outside");
        tool(trees.dir.path());
        std::fs::rename(trees.dir.path().join("tool"), &outside).expect("rename");
        let _ = std::fs::remove_file(&at);
        match spoil {
            0 => {
                tool(&trees.target);
                std::fs::write(&at, "#!/bin/evil\n").expect("write");
                run(Command::new("touch").args(["-d", "2020-01-01"]).arg(&at));
            }
            1 => std::fs::hard_link(&outside, &at).expect("link"),
            2 => write(&at, "#!/bin/true\n"),
            _ => {
                tool(&trees.target);
                xattr::set(&at, "trusted.secret", b"x").expect("xattr");
            }
        }
        let found = compare(&trees, &approved).await;
        assert!(!found.differences.items.is_empty(), "{spoil}: {found:?}");
        let before = at.metadata().expect("metadata").ino();
        let report = pass(&trees, &approved).await;
        assert_eq!((report.files_sent, report.refused.total), (1, 0), "{spoil}: {report:?}");
        assert_ne!(at.metadata().expect("metadata").ino(), before, "{spoil}");
        assert_eq!(outside.metadata().expect("metadata").nlink(), 1, "{spoil}");
        trees.assert_equal();
    }
}

#[tokio::test]
async fn what_was_approved_and_is_not_privileged_any_more_is_neither_at_the_target() {
    let trees = Trees::new();
    let old = "2020-01-01";
    write(&trees.source.join("file"), "x");
    run(Command::new("touch").args(["-d", old]).arg(trees.source.join("file")));
    trees.pass().await;
    // What a move has left that brought it as it was approved then.
    for name in ["trusted.secret", "security.other", "user.own"] {
        xattr::set(trees.target.join("file"), name, b"x").expect("xattr");
    }
    let found = trees.compare().await.differences;
    assert_eq!(found.items.iter().map(|d| d.what.as_str()).collect::<Vec<_>>(), ["attributes"]);
    let report = trees.pass().await;
    assert_eq!((report.metadata_changed, report.files_sent), (1, 0), "{report:?}");
    trees.assert_equal();
}

#[tokio::test]
async fn another_name_of_what_was_approved_is_a_difference_wherever_it_is() {
    let trees = Trees::new();
    write(&trees.source.join("capable"), "c");
    run(Command::new("setcap").arg("cap_net_raw+ep").arg(trees.source.join("capable")));
    let approved = approved(&trees, &["capable"]);
    pass(&trees, &approved).await;
    assert!(compare(&trees, &approved).await.is_equal());
    let (at, outside) = (trees.target.join("capable"), trees.dir.path().join("outside"));
    std::fs::hard_link(&at, outside).expect("link");
    let found = compare(&trees, &approved).await.differences;
    assert_eq!(found.items.iter().map(|d| d.what.as_str()).collect::<Vec<_>>(), ["hard link"]);
}

#[tokio::test]
async fn numbers_that_are_the_same_everywhere_stay_and_the_accounts_are_translated() {
    const THERE: u32 = 64_201;
    let trees = Trees::new();
    std::fs::write(trees.source.join("foreign"), "f").expect("write");
    std::os::unix::fs::chown(trees.source.join("foreign"), Some(7), Some(UID)).expect("chown");
    let approved = approved(&trees, &["foreign"]);
    let (mut source, mut target) = (source_options(), target_options());
    (source.approved, target.approved) = (approved.clone(), approved);
    target.ids = ferry_files::IdMap::of((UID, THERE), (UID, THERE));
    let (_, received) = trees.pass_with(source, target).await;
    assert!(received.expect("the target's end").refused.is_empty());
    let meta = trees.target.join("foreign").metadata().expect("metadata");
    assert_eq!((meta.uid(), meta.gid()), (7, THERE));
}

#[test]
fn one_path_that_is_typed_in_two_ways_is_approved_once() {
    let trees = Trees::new();
    tool(&trees.source);
    let sights = looked_at(&trees, &["tool", r"\x74ool", "tool"]).expect("one path");
    assert_eq!(sights.iter().map(|s| s.path.as_str()).collect::<Vec<_>>(), ["tool"]);
    let fault = looked_at(&trees, &["a\\", "b\\"]).expect_err("no paths");
    assert_eq!(fault.causes.len(), 2, "{fault}");
}

#[test]
fn what_cannot_be_approved_is_told_with_the_reason() {
    let trees = Trees::new();
    privileged_things(&trees.source);
    std::os::unix::net::UnixListener::bind(trees.source.join("socket")).expect("socket");
    std::fs::write(trees.source.join("one"), "1").expect("write");
    std::fs::hard_link(trees.source.join("one"), trees.source.join("two")).expect("link");
    let large = std::fs::File::create(trees.source.join("large")).expect("create");
    large.set_len((64 << 20) + 1).expect("length");
    std::fs::write(trees.source.join("dynamic"), "d").expect("write");
    std::os::unix::fs::chown(trees.source.join("dynamic"), Some(0), Some(998)).expect("chown");
    write(&trees.source.join("names"), "n");
    run(Command::new("setfacl").args(["-m", "g:12345:r"]).arg(trees.source.join("names")));
    run(Command::new("mknod").arg(trees.source.join("block")).args(["b", "7", "200"]));
    own(&trees.source.join("block"));
    for (path, word) in [
        ("plain", "needs no approval"),
        ("gone", "not there"),
        ("gone/too", "not there"),
        ("plain/below", "not there"),
        ("socket", "socket"),
        ("one", "2 names"),
        ("large", "larger than 64 MiB"),
        ("dynamic", "group 998 is not one of the account's, and such a number means somebody else"),
        (
            "names",
            "group 12345, which is not one of the account's, and such a number means somebody else",
        ),
        ("block", "another device on another server"),
        ("../source/tool", "no path below the home"),
        ("/etc/passwd", "no path below the home"),
        ("rootdir/", "no path below the home"),
        ("a\\", "no path as one is shown"),
        (".ferry-tmp.0123456789abcdef0123456789abcdef", "temporary"),
    ] {
        let fault = looked_at(&trees, &["tool", path]).expect_err(path);
        assert_eq!(fault.class, ferry_proto::FaultClass::Precondition);
        assert_eq!(fault.causes.len(), 1, "{fault}");
        assert!(fault.causes[0].starts_with(path) && fault.causes[0].contains(word), "{fault}");
    }
}

#[tokio::test]
async fn a_home_that_is_roots_can_be_approved() {
    let trees = Trees::new();
    write(&trees.source.join("file"), "x");
    std::os::unix::fs::chown(&trees.source, Some(0), Some(0)).expect("chown");
    let approved = approved(&trees, &["."]);
    let report = pass(&trees, &approved).await;
    assert!(report.refused.is_empty(), "{report:?}");
    trees.assert_equal();
    assert!(compare(&trees, &approved).await.refused.is_empty());
}
