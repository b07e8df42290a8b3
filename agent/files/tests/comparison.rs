//! The comparison names each kind of difference, and the tests' own comparisons do too.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use ferry_files::Comparison;
use support::{GID, Trees, UID, mkdir, own, run, write};

fn tree(root: &Path) {
    for name in ["content", "mode", "group", "time", "size", "attribute", "acl", "missing", "kept"]
    {
        write(&root.join(name), "content");
    }
    write(&root.join("link-1"), "x");
    std::fs::hard_link(root.join("link-1"), root.join("link-2")).expect("link");
    write(&root.join("own-1"), "x");
    write(&root.join("own-2"), "x");
    std::os::unix::fs::symlink("there", root.join("symlink")).expect("symlink");
    own(&root.join("symlink"));
    mkdir(&root.join("type"));
    mkdir(&root.join("dir-mode"));
    run(Command::new("find").arg(root).args([
        "-exec",
        "touch",
        "-h",
        "-d",
        "2020-01-01",
        "{}",
        "+",
    ]));
}

fn found(comparison: &Comparison) -> Vec<(&str, &str)> {
    let mut all: Vec<_> =
        comparison.differences.items.iter().map(|d| (d.path.as_str(), d.what.as_str())).collect();
    all.sort_unstable();
    all
}

#[tokio::test]
async fn each_difference_is_named() {
    let trees = Trees::new();
    tree(&trees.source);
    trees.pass().await;
    let equal = trees.compare().await;
    assert!(equal.is_equal(), "{:?}", equal.differences);
    let at = |name: &str| trees.target.join(name);
    let touch = |name: &str| {
        run(Command::new("touch").args(["-h", "-d", "2020-01-01"]).arg(at(name)));
    };
    let mode = |name: &str, bits| {
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(bits)).expect("chmod");
    };
    std::fs::write(at("content"), "CONTENT").expect("write");
    std::fs::write(at("size"), "longer content").expect("write");
    mode("mode", 0o600);
    mode("dir-mode", 0o700);
    std::os::unix::fs::chown(at("group"), Some(UID), Some(GID)).expect("chown");
    run(Command::new("touch").args(["-d", "2020-01-01 00:00:00.000000001"]).arg(at("time")));
    xattr::set(at("attribute"), "user.x", b"1").expect("xattr");
    run(Command::new("setfacl").args(["-m", &format!("u:{UID}:r")]).arg(at("acl")));
    std::fs::remove_file(at("missing")).expect("rm");
    write(&at("extra"), "x");
    std::fs::remove_file(at("symlink")).expect("rm");
    std::os::unix::fs::symlink("elsewhere", at("symlink")).expect("symlink");
    own(&at("symlink"));
    std::fs::remove_dir(at("type")).expect("rmdir");
    write(&at("type"), "x");
    std::fs::remove_file(at("link-2")).expect("rm");
    write(&at("link-2"), "x");
    std::fs::remove_file(at("own-2")).expect("rm");
    std::fs::hard_link(at("own-1"), at("own-2")).expect("link");
    for name in ["content", "size", "symlink", "link-2", "type", ""] {
        touch(name);
    }
    let comparison = trees.compare().await;
    let expected = [
        ("acl", "attributes"),
        ("attribute", "attributes"),
        ("content", "content"),
        ("dir-mode", "mode"),
        ("extra", "extra"),
        ("group", "group"),
        ("link-2", "hard link"),
        ("missing", "missing"),
        ("mode", "mode"),
        ("own-2", "hard link"),
        ("size", "size"),
        ("symlink", "symlink"),
        ("time", "time"),
        ("type", "type"),
    ];
    assert_eq!(found(&comparison), expected);
    assert_eq!(comparison.manifest, equal.manifest, "the manifest is the source's");
    let said = support::rsync_differences(&trees.source, &trees.target);
    let known = |root: &Path, path: &str| support::inventory(root).remove(Path::new(path));
    for (path, _) in expected {
        assert_ne!(known(&trees.source, path), known(&trees.target, path), "{path}");
        // rsync does not break a hard link that only the target has.
        assert!(path == "own-2" || said.contains(path), "rsync does not see {path}:\n{said}");
    }
    trees.pass().await;
    // Content that changed under an equal size and time is what only a comparison finds.
    assert_eq!(found(&trees.compare().await), [("content", "content")]);
    let mut source = support::source_options();
    source.changed_since = Some(std::time::SystemTime::UNIX_EPOCH);
    let (sent, _) = trees.pass_with(source, support::target_options()).await;
    assert!(sent.expect("source").files_sent > 5);
    assert!(trees.compare().await.is_equal());
    trees.assert_equal();
}

#[tokio::test]
async fn the_manifest_changes_with_the_content_alone() {
    let trees = Trees::new();
    tree(&trees.source);
    trees.pass().await;
    let before = trees.compare().await.manifest;
    assert_eq!(trees.compare().await.manifest, before);
    write(&trees.source.join("content"), "CONTENT");
    run(Command::new("touch").args(["-d", "2020-01-01"]).arg(trees.source.join("content")));
    assert_ne!(trees.compare().await.manifest, before);
}
