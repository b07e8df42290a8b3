//! Immutable and append-only flags are part of a tree: they are carried, and do not stand in the way of a pass.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use ferry_files::Comparison;
use support::{Trees, ids, mkdir, run, source_options, target_options, write};

/// Trees of which nothing is locked any more when they go.
struct Unlocked(Trees);

impl Drop for Unlocked {
    fn drop(&mut self) {
        run(Command::new("chattr").args(["-R", "-f", "-i", "-a"]).arg(self.0.dir.path()));
    }
}

fn flag(change: &str, path: &Path) {
    run(Command::new("chattr").arg(change).arg(path));
}

/// Of all below a root that can have flags: which of the two it has, by lsattr.
fn flags(root: &Path) -> Vec<(String, String)> {
    let said = run(Command::new("lsattr").args(["-R", "-a"]).arg(root));
    let root = root.to_str().expect("UTF-8");
    let mut all: Vec<_> = said
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, path)| path.starts_with('/') && !path.ends_with("/.."))
        .map(|(flags, path)| {
            let flags: String = flags.chars().filter(|c| "ia".contains(*c)).collect();
            (path.trim_end_matches("/.").replacen(root, "", 1), flags)
        })
        .collect();
    all.sort();
    all.dedup();
    all
}

fn assert_equal(trees: &Trees) {
    trees.assert_equal();
    let source = flags(&trees.source);
    assert!(source.iter().any(|(_, flags)| !flags.is_empty()), "nothing is locked: {source:?}");
    assert_eq!(source, flags(&trees.target));
}

fn differences(comparison: &Comparison) -> Vec<(&str, &str)> {
    comparison.differences.items.iter().map(|d| (d.path.as_str(), d.what.as_str())).collect()
}

#[tokio::test]
async fn flags_are_carried_and_kept_current() {
    let trees = Unlocked(Trees::new());
    let source = &trees.0.source;
    mkdir(&source.join("fixed"));
    mkdir(&source.join("grows"));
    for (path, content) in
        [("still", "1"), ("fixed/in", "2"), ("grows/log", "3"), ("one", "4"), ("large", "")]
    {
        write(&source.join(path), content);
    }
    fs::write(source.join("large"), vec![7; 3 << 20]).expect("write");
    fs::hard_link(source.join("one"), source.join("fixed/other")).expect("link");
    fs::hard_link(source.join("one"), source.join("third")).expect("link");
    let locked = [
        ("i", "still"),
        ("i", "one"),
        ("i", "large"),
        ("a", "grows/log"),
        ("a", "grows"),
        ("i", "fixed"),
    ];
    let all = |sign: &str| {
        // The directory is locked last, and unlocked first.
        let mut order = locked.to_vec();
        if sign == "-" {
            order.reverse();
        }
        for (letter, path) in order {
            flag(&format!("{sign}{letter}"), &source.join(path));
        }
    };
    all("+");
    let report = trees.0.pass().await;
    assert!(report.refused.is_empty() && report.notes.is_empty(), "{report:?}");
    assert_equal(&trees.0);
    let report = trees.0.pass().await;
    assert_eq!(
        (report.files_sent, report.metadata_changed, report.created),
        (0, 0, 0),
        "{report:?}"
    );
    assert!(trees.0.compare().await.is_equal());

    // Everything that is locked changes, and is locked again.
    all("-");
    write(&source.join("still"), "new");
    fs::remove_file(source.join("fixed/in")).expect("rm");
    write(&source.join("fixed/more"), "5");
    fs::remove_file(source.join("grows/log")).expect("rm");
    mkdir(&source.join("grows/log"));
    fs::remove_file(source.join("third")).expect("rm");
    write(&source.join("third"), "its own");
    fs::hard_link(source.join("one"), source.join("fourth")).expect("link");
    let mut large = fs::read(source.join("large")).expect("read");
    large[2 << 20] = 8;
    fs::write(source.join("large"), large).expect("write");
    flag("+i", &source.join("grows/log"));
    for (letter, path) in locked.into_iter().filter(|(_, path)| *path != "grows/log") {
        flag(&format!("+{letter}"), &source.join(path));
    }
    let report = trees.0.pass().await;
    assert!(report.refused.is_empty() && report.bytes_kept > 0, "{report:?}");
    assert_equal(&trees.0);
}

#[tokio::test]
async fn a_locked_inode_keeps_its_flags_when_it_loses_a_name() {
    let trees = Unlocked(Trees::new());
    let source = &trees.0.source;
    write(&source.join("one"), "1");
    for name in ["other", "replaced", "removed"] {
        fs::hard_link(source.join("one"), source.join(name)).expect("link");
    }
    flag("+i", &source.join("one"));
    let report = trees.0.pass().await;
    assert!(report.refused.is_empty(), "{report:?}");
    assert_equal(&trees.0);
    flag("-i", &source.join("one"));
    fs::remove_file(source.join("removed")).expect("rm");
    fs::remove_file(source.join("replaced")).expect("rm");
    write(&source.join("replaced"), "its own");
    flag("+i", &source.join("one"));
    // A pass was killed when it had just given it another name.
    let target = &trees.0.target;
    flag("-i", &target.join("one"));
    let leftover = target.join(".ferry-tmp.ffffffffffffffffffffffffffffffff");
    fs::hard_link(target.join("one"), leftover).expect("link");
    flag("+i", &target.join("one"));
    let report = trees.0.pass().await;
    assert!(report.refused.is_empty(), "{report:?}");
    assert_equal(&trees.0);
}

#[tokio::test]
async fn a_locked_inode_keeps_its_flags_whoever_gives_it_another_name_meanwhile() {
    let trees = Unlocked(Trees::new());
    let source = &trees.0.source;
    let names: Vec<_> =
        (0..40).flat_map(|dir| (0..10).map(move |n| format!("{dir:02}/{n}"))).collect();
    for dir in 0..40 {
        mkdir(&source.join(format!("{dir:02}")));
    }
    write(&source.join(&names[0]), "1");
    for name in &names[1..] {
        fs::hard_link(source.join(&names[0]), source.join(name)).expect("link");
    }
    flag("+i", &source.join(&names[0]));
    let report = trees.0.pass().await;
    assert!(report.refused.is_empty(), "{report:?}");
    assert_equal(&trees.0);
    // Now the inode is there, and several workers at once give it the names that it has lost.
    let target = &trees.0.target;
    flag("-i", &target.join(&names[0]));
    for dir in 1..40 {
        fs::remove_dir_all(target.join(format!("{dir:02}"))).expect("rm");
    }
    flag("+i", &target.join(&names[0]));
    let report = trees.0.pass().await;
    assert!(report.refused.is_empty(), "{report:?}");
    assert_equal(&trees.0);
}

#[tokio::test]
async fn what_is_locked_only_at_the_target_does_not_stay() {
    let trees = Unlocked(Trees::new());
    let (source, target) = (&trees.0.source, &trees.0.target);
    write(&source.join("kept"), "1");
    write(&source.join("changed"), "1");
    mkdir(&source.join("dir"));
    write(&source.join("dir/file"), "1");
    trees.0.pass().await;
    mkdir(&target.join("extra"));
    write(&target.join("extra/file"), "x");
    for path in ["kept", "changed", "dir/file", "dir", "extra/file", "extra"] {
        flag("+i", &target.join(path));
    }
    write(&source.join("changed"), "new");
    write(&source.join("dir/another"), "2");
    flag("+a", &source.join("kept"));
    let comparison = trees.0.compare().await;
    let found = differences(&comparison);
    for different in [("kept", "flags"), ("dir/file", "flags"), ("dir", "flags")] {
        assert!(found.contains(&different), "{different:?} is not in {found:?}");
    }
    let report = trees.0.pass().await;
    assert!(report.refused.is_empty(), "{report:?}");
    assert_equal(&trees.0);
    assert!(trees.0.compare().await.is_equal());
}

#[tokio::test]
async fn what_is_locked_and_not_the_accounts_stays() {
    let trees = Unlocked(Trees::new());
    fs::write(trees.0.target.join("roots"), "x").expect("write");
    write(&trees.0.source.join("some"), "x");
    flag("+i", &trees.0.target.join("roots"));
    let (_, received) = trees.0.pass_with(source_options(), target_options()).await;
    let report = received.expect("the pass goes on");
    assert_eq!(report.refused.total, 1, "{report:?}");
    assert!(report.refused.items[0].reason.contains("immutable"), "{report:?}");
    assert_eq!(flags(&trees.0.target).iter().filter(|(_, f)| f == "i").count(), 1);
}

#[test]
fn a_tree_is_emptied_whatever_flags_it_has() {
    let trees = Unlocked(Trees::new());
    let root = &trees.0.target;
    mkdir(&root.join("dir"));
    for path in ["file", "dir/file"] {
        write(&root.join(path), "x");
        flag("+i", &root.join(path));
    }
    flag("+a", &root.join("dir"));
    flag("+i", root);
    ferry_files::empty(root, &ids()).expect("emptied");
    assert_eq!(fs::read_dir(root).expect("readdir").count(), 0);
    fs::write(root.join("roots"), "x").expect("write");
    flag("+i", &root.join("roots"));
    let fault = ferry_files::empty(root, &ids()).expect_err("not the account's");
    assert!(fault.to_string().contains("roots"), "{fault}");
}
