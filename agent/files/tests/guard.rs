//! What an account may not have is refused path by path, and the rest arrives.

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use ferry_files::{IdMap, PassReport, SourceOptions, TargetOptions};
use ferry_proto::FaultClass;
use support::{
    GID, Trees, UID, ids, in_own_mounts, mkdir, own, own_all, run, source_options, target_options,
    write,
};

fn refusals(report: &PassReport) -> Vec<(&str, &str)> {
    let mut all: Vec<_> =
        report.refused.items.iter().map(|r| (r.path.as_str(), r.reason.as_str())).collect();
    all.sort_unstable();
    all
}

fn assert_refused(report: &PassReport, expected: &[(&str, &str)]) {
    let refused = refusals(report);
    assert_eq!(refused.len(), expected.len(), "{refused:?}");
    for ((path, reason), (expected_path, word)) in refused.iter().zip(expected) {
        assert_eq!(path, expected_path);
        assert!(reason.contains(word), "{path}: {reason} lacks {word:?}");
    }
}

/// Files that only root can have made, and a plain one.
fn foreign_things(root: &Path) {
    write(&root.join("plain"), "p");
    write(&root.join("capable"), "c");
    run(Command::new("setcap").arg("cap_net_raw+ep").arg(root.join("capable")));
    write(&root.join("trusted"), "t");
    xattr::set(root.join("trusted"), "trusted.secret", b"x").expect("xattr");
    std::fs::write(root.join("owned-by-root"), "secret").expect("write");
    write(&root.join("group-root"), "x");
    std::os::unix::fs::chown(root.join("group-root"), Some(UID), Some(0)).expect("chown");
    run(Command::new("mknod").arg(root.join("null")).args(["c", "1", "3"]));
    own(&root.join("null"));
    write(&root.join("acl"), "x");
    run(Command::new("setfacl").args(["-m", "u:12345:r"]).arg(root.join("acl")));
    std::fs::create_dir(root.join("rootdir")).expect("mkdir");
    write(&root.join("rootdir/inside"), "x");
}

#[tokio::test]
async fn privileges_are_refused_and_the_rest_arrives() {
    let trees = Trees::new();
    foreign_things(&trees.source);
    let report = trees.pass().await;
    let expected = [
        ("acl", "user 12345"),
        ("capable", "capabilities"),
        ("group-root", "group 0"),
        ("null", "device"),
        ("owned-by-root", "owner 0"),
        ("rootdir", "owner 0"),
        ("trusted", "trusted.secret"),
    ];
    assert_refused(&report, &expected);
    let names: Vec<_> = std::fs::read_dir(&trees.target).expect("readdir").collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let comparison = trees.compare().await;
    assert!(comparison.is_equal(), "{:?}", comparison.differences);
    assert_eq!(comparison.refused.total, 7);
}

#[tokio::test]
async fn a_survey_names_what_a_pass_would_refuse() {
    let trees = Trees::new();
    foreign_things(&trees.source);
    mkdir(&trees.source.join("in"));
    write(&trees.source.join("in/shared"), "www");
    std::os::unix::fs::chown(trees.source.join("in/shared"), Some(33), Some(33)).expect("chown");
    let cancel = tokio_util::sync::CancellationToken::new();
    let survey =
        |options, ids| ferry_files::survey(&trees.source, &options, &ids, &cancel).expect("survey");
    let named = |refused: &ferry_files::Bounded<ferry_files::Refusal>| {
        let mut all: Vec<_> =
            refused.items.iter().map(|r| (r.path.clone(), r.reason.clone())).collect();
        all.sort_unstable();
        all
    };
    let report = trees.pass().await;
    let ferry_files::Survey { stats, refused, .. } = survey(source_options(), ids());
    assert_eq!(named(&refused), named(&report.refused));
    assert_eq!(refused.total, 8);
    assert_eq!(stats.skipped, 1, "what is refused is not entered");
    // The web server's own files below the home are let through, as shared.
    let (mut options, mut ids) = (source_options(), ids());
    options.shared_uids.insert(33);
    ids.uids.insert(33, 33);
    ids.gids.insert(33, 33);
    ids.shared_uids.insert(33);
    ids.shared_gids.insert(33);
    assert_eq!(survey(options, ids).refused.total, 7);
}

#[tokio::test]
async fn a_scan_names_what_changed_last_whatever_its_mtime_says() {
    let trees = Trees::quick();
    mkdir(&trees.source.join("in"));
    write(&trees.source.join("in/old"), "o");
    write(&trees.source.join("new"), "n");
    let latest = || {
        let cancel = tokio_util::sync::CancellationToken::new();
        ferry_files::scan(&trees.source, &cancel).expect("scan").latest.expect("an entry")
    };
    let (_, before) = latest();
    // A later tick of the clock of file systems, then a change that puts mtime back.
    while latest().1 == before {
        let file = std::fs::File::options().write(true).open(trees.source.join("in/old"));
        file.expect("open").set_modified(std::time::UNIX_EPOCH).expect("mtime");
    }
    assert_eq!(latest().0, "in/old");
}

#[tokio::test]
async fn what_changed_since_is_counted_and_the_last_of_it_named() {
    let trees = Trees::quick();
    mkdir(&trees.source.join("in"));
    let cancel = tokio_util::sync::CancellationToken::new();
    let all = ferry_files::changed_since(&trees.source, 0, 100, &cancel).expect("changed");
    let last = all.latest[0].1;
    // Later ticks of the clock of file systems.
    let write_later = |name: &str, than: i64| loop {
        write(&trees.source.join(name), "n");
        let now = ferry_files::scan(&trees.source, &cancel).expect("scan").latest.expect("one").1;
        if now > than {
            return now;
        }
    };
    let first = write_later("in/first", last);
    write_later("second", first);
    let since = ferry_files::changed_since(&trees.source, last + 1, 100, &cancel).expect("changed");
    let names: Vec<_> = since.latest.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(since.total as usize, names.len(), "{names:?}");
    assert!(names.contains(&"in/first") && names.contains(&"second"), "{names:?}");
    let few = ferry_files::changed_since(&trees.source, first + 1, 1, &cancel).expect("changed");
    assert!(few.total >= 1 && few.latest.len() == 1, "{few:?}");
    assert!(
        few.latest[0].0 == "second" || few.latest[0].0.is_empty() || few.latest[0].0 == ".",
        "{few:?}"
    );
}

#[tokio::test]
async fn a_root_that_is_not_the_accounts_is_named_too() {
    let trees = Trees::quick();
    std::os::unix::fs::chown(&trees.source, Some(0), Some(0)).expect("chown");
    let cancel = tokio_util::sync::CancellationToken::new();
    let refused = ferry_files::survey(&trees.source, &source_options(), &ids(), &cancel)
        .expect("survey")
        .refused;
    assert_eq!(refused.items[0].path, ".");
    assert!(refused.items[0].reason.contains("owner 0"), "{refused:?}");
}

#[tokio::test]
async fn a_source_that_gives_everything_away_is_refused_by_the_target() {
    // As a stolen source would: it withholds nothing.
    let trees = Trees::new();
    foreign_things(&trees.source);
    let mut source = source_options();
    source.uids.get_or_insert_default().insert(0);
    let (sent, received) = trees.pass_with(source, target_options()).await;
    let report = received.expect("target");
    assert_eq!(sent.expect("source"), report);
    assert_eq!(report.refused.total, 7, "{:?}", report.refused);
    assert_eq!(std::fs::read_dir(&trees.target).expect("readdir").count(), 1);
}

#[tokio::test]
async fn a_hard_link_to_a_foreign_file_is_neither_read_nor_changed() {
    for owner in [0, 64_150] {
        hard_link_to_a_file_of(owner).await;
    }
}

async fn hard_link_to_a_file_of(owner: u32) {
    let trees = Trees::new();
    let secret = trees.dir.path().join("secret");
    std::fs::write(&secret, "secret").expect("write");
    std::os::unix::fs::chown(&secret, Some(owner), Some(owner)).expect("chown");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    std::fs::hard_link(&secret, trees.source.join("mine")).expect("link");
    let report = trees.pass().await;
    assert_refused(&report, &[("mine", &format!("owner {owner}"))]);

    // At the target: a name of that file stands where the source has a file of its own that
    // looks the same but for the owner. Mending that in place would give that file away.
    std::fs::remove_file(trees.source.join("mine")).expect("rm");
    std::fs::hard_link(&secret, trees.target.join("mine")).expect("link");
    write(&trees.source.join("mine"), "theirs");
    let copy_time =
        Command::new("touch").arg("-r").arg(&secret).arg(trees.source.join("mine")).status();
    assert!(copy_time.expect("touch").success());
    let report = trees.pass().await;
    assert!(report.refused.is_empty() && report.files_sent == 1, "{report:?}");
    let meta = secret.metadata().expect("metadata");
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (owner, 0o600));
    assert_eq!(std::fs::read_to_string(&secret).expect("read"), "secret");
    assert_eq!(std::fs::read_to_string(trees.target.join("mine")).expect("read"), "theirs");
}

#[tokio::test]
async fn a_shared_owners_file_counts_only_with_one_name() {
    const SHARED: u32 = 64_133;
    let trees = Trees::new();
    for name in ["upload", "linked"] {
        write(&trees.source.join(name), "x");
        std::os::unix::fs::chown(trees.source.join(name), Some(SHARED), Some(UID)).expect("chown");
    }
    std::fs::hard_link(trees.source.join("linked"), trees.dir.path().join("elsewhere"))
        .expect("link");
    write(&trees.source.join("setuid"), "x");
    std::os::unix::fs::chown(trees.source.join("setuid"), Some(SHARED), Some(UID)).expect("chown");
    let permissions = std::fs::Permissions::from_mode(0o4755);
    std::fs::set_permissions(trees.source.join("setuid"), permissions).expect("chmod");
    let mut source = source_options();
    source.shared_uids.insert(SHARED);
    let mut target = target_options();
    target.ids.uids.insert(SHARED, SHARED);
    target.ids.shared_uids.insert(SHARED);
    let (_, received) = trees.pass_with(source, target).await;
    assert_refused(&received.expect("target"), &[("linked", "other names"), ("setuid", "setuid")]);
    assert_eq!(trees.target.join("upload").metadata().expect("metadata").uid(), SHARED);
}

#[tokio::test]
async fn ids_are_translated_everywhere() {
    const THERE: u32 = 64_201;
    const GROUP_THERE: u32 = 64_202;
    let trees = Trees::new();
    mkdir(&trees.source.join("d"));
    write(&trees.source.join("d/file"), "x");
    std::os::unix::fs::chown(trees.source.join("d/file"), Some(UID), Some(GID)).expect("chown");
    std::os::unix::fs::symlink("x", trees.source.join("link")).expect("symlink");
    run(Command::new("mkfifo").arg(trees.source.join("fifo")));
    own(&trees.source.join("link"));
    own(&trees.source.join("fifo"));
    let acl = format!("u:{UID}:rwx,g:{GID}:r,d:u:{UID}:rwx");
    run(Command::new("setfacl").args(["-m", &acl]).arg(trees.source.join("d")));
    let mut target = target_options();
    target.ids = IdMap::of((UID, THERE), (UID, THERE));
    target.ids.gids.insert(GID, GROUP_THERE);
    let (_, received) = trees.pass_with(source_options(), target.clone()).await;
    assert!(received.expect("target").refused.is_empty());
    let owner = |path: &str| {
        let meta = trees.target.join(path).symlink_metadata().expect("metadata");
        (meta.uid(), meta.gid())
    };
    for path in ["", "d", "link", "fifo"] {
        assert_eq!(owner(path), (THERE, THERE), "{path}");
    }
    assert_eq!(owner("d/file"), (THERE, GROUP_THERE));
    let shown = run(Command::new("getfacl").args(["-n", "-p"]).arg(trees.target.join("d")));
    for line in [format!("user:{THERE}:rwx"), format!("group:{GROUP_THERE}:r--")] {
        assert!(shown.contains(&line), "{shown}");
    }
    assert!(shown.contains(&format!("default:user:{THERE}:rwx")), "{shown}");
    // And it holds: nothing is to be done the second time.
    let (_, received) = trees.pass_with(source_options(), target).await;
    let report = received.expect("target");
    assert_eq!((report.unchanged, report.metadata_changed), (report.entries, 0), "{report:?}");
}

#[tokio::test]
async fn an_emptied_root_halts_instead_of_deleting_the_copy() {
    let trees = Trees::new();
    write(&trees.source.join("file"), "x");
    trees.pass().await;
    std::fs::remove_file(trees.source.join("file")).expect("rm");
    let (sent, received) = trees.pass_with(source_options(), target_options()).await;
    for fault in [sent.expect_err("source"), received.expect_err("target")] {
        assert_eq!(fault.class, FaultClass::Precondition);
        assert!(fault.to_string().contains("root emptied"), "{fault}");
    }
    assert!(trees.target.join("file").exists());
    let mut target = target_options();
    target.allow_emptied = true;
    let (_, received) = trees.pass_with(source_options(), target).await;
    assert_eq!(received.expect("target").deleted, 1);
    assert!(!trees.target.join("file").exists());
}

#[tokio::test]
async fn a_root_that_is_gone_or_reached_by_a_symlink_is_a_fault_at_both_ends() {
    let trees = Trees::new();
    write(&trees.target.join("file"), "x");
    for spoil in [0, 1] {
        let elsewhere = trees.dir.path().join("elsewhere");
        if spoil == 0 {
            std::fs::rename(&trees.source, &elsewhere).expect("rename");
        } else {
            std::os::unix::fs::symlink(&elsewhere, &trees.source).expect("symlink");
        }
        let (sent, received) = trees.pass_with(source_options(), target_options()).await;
        for fault in [sent.expect_err("source"), received.expect_err("target")] {
            assert_eq!(fault.class, FaultClass::Precondition, "{fault}");
            assert!(fault.to_string().contains("root"), "{fault}");
        }
        assert!(trees.target.join("file").exists());
    }
}

#[tokio::test]
async fn reserved_names_are_not_copied_and_leftovers_go() {
    let trees = Trees::new();
    let reserved = ".ferry-tmp.0123456789abcdef0123456789abcdef";
    write(&trees.source.join(reserved), "x");
    write(&trees.source.join(".ferry-tmp.mine"), "not quite reserved");
    write(&trees.target.join(".ferry-tmp.ffffffffffffffffffffffffffffffff"), "killed");
    let mut target = target_options();
    target.delete = false;
    let (_, received) = trees.pass_with(source_options(), target).await;
    assert_eq!(received.expect("target").notes.items[0].path, reserved);
    let names: Vec<_> = std::fs::read_dir(&trees.target)
        .expect("readdir")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert_eq!(names, [".ferry-tmp.mine"]);
}

fn bind(from: &Path, to: &Path) {
    use nix::mount::{MsFlags, mount};
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind mount");
}

#[test]
fn mounts_are_not_crossed_on_either_side() {
    in_own_mounts(async || {
        let trees = Trees::new();
        let outside = trees.dir.path().join("outside");
        mkdir(&outside);
        write(&outside.join("precious"), "x");
        write(&trees.dir.path().join("outside-file"), "x");
        for at in ["source-mount", "target-mount", "gone"] {
            mkdir(&trees.source.join(at));
            mkdir(&trees.target.join(at));
        }
        write(&trees.source.join("file-mount"), "");
        write(&trees.source.join("target-mount/file"), "x");
        std::fs::remove_dir(trees.source.join("gone")).expect("rmdir");
        // Bind mounts keep the device number: only the mount itself tells.
        bind(&outside, &trees.source.join("source-mount"));
        bind(&trees.dir.path().join("outside-file"), &trees.source.join("file-mount"));
        bind(&outside, &trees.target.join("target-mount"));
        bind(&outside, &trees.target.join("gone"));
        let report = trees.pass().await;
        assert_refused(
            &report,
            &[
                ("file-mount", "mount at the source"),
                ("gone", "mounted there at the target"),
                ("source-mount", "mount at the source"),
                ("target-mount", "mounted there at the target"),
            ],
        );
        assert!(outside.join("precious").exists() && !outside.join("file").exists());
    });
}

#[test]
fn a_full_target_is_a_precondition_and_leaves_nothing_behind() {
    in_own_mounts(async || {
        let trees = Trees::new();
        nix::mount::mount(
            Some("tmpfs"),
            &trees.target,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(format!("size=1m,uid={UID},gid={UID}").as_str()),
        )
        .expect("a small file system");
        write(&trees.source.join("a-small"), "x");
        write(&trees.source.join("large"), vec![1; 3_000_000]);
        let (sent, received) = trees.pass_with(source_options(), target_options()).await;
        for fault in [sent.expect_err("source"), received.expect_err("target")] {
            assert_eq!(fault.class, FaultClass::Precondition, "{fault}");
            let text = fault.to_string();
            assert!(text.contains("large") && text.contains("make room"), "{text}");
        }
        std::fs::remove_file(trees.source.join("large")).expect("rm");
        write(&trees.source.join("other"), "fits");
        trees.pass().await;
        trees.assert_equal();
    });
}

#[test]
fn a_root_that_is_a_mount_is_walked() {
    in_own_mounts(async || {
        let trees = Trees::new();
        for root in [&trees.source, &trees.target] {
            let outside = root.with_extension("mounted");
            mkdir(&outside);
            bind(&outside, root);
        }
        write(&trees.source.join("file"), "x");
        let report = trees.pass().await;
        assert!(report.refused.is_empty() && report.files_sent == 1, "{report:?}");
        trees.assert_equal();
    });
}

#[tokio::test]
async fn a_foreign_root_keeps_its_metadata_and_its_content_is_copied() {
    let trees = Trees::new();
    write(&trees.source.join("file"), "x");
    std::os::unix::fs::chown(&trees.source, Some(0), Some(0)).expect("chown");
    let (_, received) = trees.pass_with(source_options(), target_options()).await;
    let report = received.expect("target");
    assert_refused(&report, &[(".", "owner 0")]);
    assert!(trees.target.join("file").exists());
    assert_eq!(trees.target.metadata().expect("metadata").uid(), UID);
}

#[tokio::test]
async fn nothing_is_the_accounts_unless_it_is_said() {
    let trees = Trees::new();
    write(&trees.source.join("file"), "x");
    let mut source = SourceOptions::new([]);
    source.settle = false;
    let mut target = TargetOptions::new(ids());
    target.durable = false;
    let (_, received) = trees.pass_with(source, target).await;
    assert_refused(&received.expect("target"), &[("file", "owner")]);
    own_all(&trees.source);
}
