//! Passes over trees that hold everything a Unix tree can, from nothing and again.

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use ferry_files::SourceOptions;
use support::{GID, Trees, UID, mkdir, own, own_all, run, write};

/// One of everything that an account may have.
fn torture(root: &Path) {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    write(&root.join("empty"), "");
    write(&root.join("small"), "hello");
    write(&root.join("large"), vec![7_u8; 3_000_001]);
    write(&root.join(OsStr::from_bytes(b"not \xff\xfe utf-8 \n")), "bytes");
    write(&root.join("n".repeat(255)), "longest name");
    write(&root.join("CASE"), "upper");
    write(&root.join("case"), "lower");
    mkdir(&root.join("emptydir"));
    mkdir(&root.join("readonly"));
    write(&root.join("readonly/inside"), "r");
    mkdir(&root.join("a"));
    mkdir(&root.join("b"));
    write(&root.join("b/one"), "linked");
    for other in ["a/two", "zz-three", "b/four"] {
        std::fs::hard_link(root.join("b/one"), root.join(other)).expect("link");
    }
    for (target, name) in [
        ("small", "link"),
        ("../../../../etc/passwd", "escape"),
        ("/etc", "absolute"),
        ("nowhere", "dangling"),
        ("link-to-self", "link-to-self"),
    ] {
        std::os::unix::fs::symlink(target, root.join(name)).expect("symlink");
    }
    std::fs::hard_link(root.join("link"), root.join("a/link-too")).expect("link to a symlink");
    run(Command::new("mkfifo").arg(root.join("fifo")));
    run(Command::new("truncate").args(["-s", "50M"]).arg(root.join("sparse")));
    sparse_middle(&root.join("sparse-middle"));
    std::os::unix::net::UnixListener::bind(root.join("socket")).expect("socket");
    own_all(root);
    dress(root);
}

fn sparse_middle(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).expect("create");
    file.write_all_at(b"begin", 0).expect("write");
    file.write_all_at(b"middle", 10_000_000).expect("write");
    file.set_len(20_000_003).expect("length");
}

fn dress(root: &Path) {
    let mode = |path: &str, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(root.join(path), permissions).expect("chmod");
    };
    std::os::unix::fs::lchown(root.join("small"), Some(UID), Some(GID)).expect("chown");
    for (path, bits) in
        [("small", 0o4755), ("empty", 0), ("a", 0o3770), ("fifo", 0o640), ("large", 0o2711)]
    {
        mode(path, bits);
    }
    let acl = |spec: &str, path: &str| {
        run(Command::new("setfacl").args(["-m", spec]).arg(root.join(path)));
    };
    acl(&format!("u:{UID}:rwx,g:{GID}:r-x"), "b/one");
    acl(&format!("d:u:{UID}:rwx,d:g:{GID}:r--,u:{UID}:rwx"), "emptydir");
    acl(&format!("d:u:{UID}:rwx"), "a");
    xattr::set(root.join("small"), "user.mime", b"text/plain\0binary").expect("xattr");
    xattr::set(root.join("a"), "user.empty", b"").expect("xattr");
    xattr::set(root.join("large"), "user.long", &[9; 2000]).expect("xattr");
    let touch = |path: &str, when: &str| {
        run(Command::new("touch").args(["-h", "-d", when]).arg(root.join(path)));
    };
    touch("empty", "1961-04-12 06:07:00.123456789");
    touch("CASE", "2099-12-31 23:59:59.999999999");
    touch("link", "2001-02-03 04:05:06.000000007");
    touch("fifo", "2002-02-03 04:05:06.7");
    touch("emptydir", "1999-02-03 04:05:06.7");
    touch("a", "1999-02-03 04:05:06.000000001");
    mode("readonly", 0o555);
}

#[tokio::test]
async fn a_torture_tree_arrives_whole() {
    let trees = Trees::new();
    torture(&trees.source);
    let report = trees.pass().await;
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    assert_eq!(report.changed_while_read, 0);
    assert_eq!(report.notes.total, 1, "{:?}", report.notes);
    assert_eq!(report.notes.items[0].path, "socket");
    trees.assert_equal();
    let blocks = |name: &str| trees.target.join(name).metadata().expect("metadata").blocks();
    assert_eq!(blocks("sparse"), 0);
    assert!(blocks("sparse-middle") < 200, "{}", blocks("sparse-middle"));

    let comparison = trees.compare().await;
    assert!(comparison.is_equal(), "{:?}", comparison.differences);
    assert_eq!(comparison.entries, report.entries);
    assert_eq!(comparison.manifest.len(), 64);
}

#[tokio::test]
async fn an_unchanged_second_pass_sends_no_data() {
    let trees = Trees::new();
    torture(&trees.source);
    trees.pass().await;
    let report = trees.pass().await;
    assert_eq!(
        (report.files_sent, report.bytes_sent, report.created, report.deleted),
        (0, 0, 0, 0),
        "{report:?}"
    );
    assert_eq!(report.metadata_changed, 0);
    assert_eq!(report.unchanged, report.entries);
}

#[tokio::test]
async fn metadata_alone_is_mended_without_sending_content() {
    let trees = Trees::new();
    torture(&trees.source);
    trees.pass().await;
    let small = trees.source.join("small");
    std::fs::set_permissions(&small, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    xattr::set(&small, "user.new", b"1").expect("xattr");
    xattr::remove(&small, "user.mime").expect("xattr");
    run(Command::new("setfacl").arg("-b").arg(trees.source.join("emptydir")));
    let report = trees.pass().await;
    assert_eq!((report.files_sent, report.metadata_changed), (0, 2), "{report:?}");
    trees.assert_equal();
}

#[tokio::test]
async fn deletions_and_changes_of_type_follow() {
    let trees = Trees::new();
    torture(&trees.source);
    mkdir(&trees.source.join("tree/of/directories"));
    write(&trees.source.join("tree/of/file"), "x");
    own_all(&trees.source.join("tree"));
    trees.pass().await;
    let at = |path: &str| trees.source.join(path);
    std::fs::remove_dir_all(at("tree")).expect("rm");
    write(&at("tree"), "now a file");
    std::fs::remove_file(at("small")).expect("rm");
    mkdir(&at("small"));
    write(&at("small/inside"), "now a directory");
    std::fs::remove_file(at("link")).expect("rm");
    write(&at("link"), "no link any more");
    std::fs::remove_dir(at("emptydir")).expect("rm");
    std::os::unix::fs::symlink("a", at("emptydir")).expect("symlink");
    own(&at("emptydir"));
    std::fs::remove_dir_all(at("readonly")).expect("rm");
    std::fs::remove_file(at("fifo")).expect("rm");
    let report = trees.pass().await;
    assert!(report.deleted >= 5, "{report:?}");
    trees.assert_equal();
}

#[tokio::test]
async fn without_deletions_the_target_keeps_what_it_has() {
    let trees = Trees::new();
    write(&trees.source.join("new"), "new");
    write(&trees.source.join("clash"), "file");
    write(&trees.target.join("old"), "old");
    mkdir(&trees.target.join("clash"));
    let mut options = support::target_options();
    options.delete = false;
    let (sent, received) = trees.pass_with(support::source_options(), options).await;
    assert_eq!(sent.expect("source"), received.clone().expect("target"));
    let report = received.expect("target");
    assert!(trees.target.join("old").exists() && trees.target.join("new").exists());
    assert!(trees.target.join("clash").is_dir());
    assert_eq!((report.deleted, report.refused.total), (0, 1), "{report:?}");
}

#[tokio::test]
async fn hard_links_are_broken_and_made_between_passes() {
    let trees = Trees::new();
    let at = |path: &str| trees.source.join(path);
    mkdir(&at("d"));
    for name in ["a", "d/b", "c", "x", "y"] {
        write(&at(name), "same content");
        run(Command::new("touch").args(["-d", "2020-01-01"]).arg(at(name)));
    }
    let link = |from: &str, to: &str| {
        let _ = std::fs::remove_file(at(to));
        std::fs::hard_link(at(from), at(to)).expect("link");
    };
    link("a", "d/b");
    link("a", "c");
    trees.pass().await;
    trees.assert_equal();
    // One leaves with the same content and time, others join.
    let copy = |name: &str| {
        std::fs::remove_file(at(name)).expect("rm");
        write(&at(name), "same content");
        run(Command::new("touch").args(["-d", "2020-01-01"]).arg(at(name)));
    };
    copy("d/b");
    link("x", "y");
    trees.pass().await;
    trees.assert_equal();
    copy("a");
    copy("y");
    link("c", "d/b");
    link("c", "x");
    trees.pass().await;
    trees.assert_equal();
    assert!(trees.compare().await.is_equal());
}

#[tokio::test]
async fn a_new_file_in_a_directory_with_a_default_acl_gets_only_its_own() {
    let trees = Trees::new();
    mkdir(&trees.source.join("d"));
    run(Command::new("setfacl")
        .args(["-m", &format!("d:u:{UID}:rwx")])
        .arg(trees.source.join("d")));
    trees.pass().await;
    write(&trees.source.join("d/plain"), "p");
    run(Command::new("setfacl").arg("-b").arg(trees.source.join("d/plain")));
    mkdir(&trees.source.join("d/sub"));
    run(Command::new("setfacl").arg("-b").arg(trees.source.join("d/sub")));
    run(Command::new("mkfifo").arg(trees.source.join("d/fifo")));
    own(&trees.source.join("d/fifo"));
    run(Command::new("setfacl").arg("-b").arg(trees.source.join("d/fifo")));
    trees.pass().await;
    trees.assert_equal();
}

#[tokio::test]
async fn excluded_paths_are_left_alone_on_both_sides() {
    let trees = Trees::new();
    mkdir(&trees.source.join("cache/deep"));
    own_all(&trees.source);
    write(&trees.source.join("cache/deep/new"), "x");
    write(&trees.source.join("kept"), "x");
    mkdir(&trees.target.join("cache"));
    write(&trees.target.join("cache/old"), "x");
    let mut options = support::source_options();
    options.excludes.push("cache".into());
    let (sent, _) = trees.pass_with(options, support::target_options()).await;
    assert!(sent.expect("source").refused.is_empty());
    assert!(trees.target.join("cache/old").exists() && trees.target.join("kept").exists());
    assert!(!trees.target.join("cache/deep").exists());
}

/// A page of `path` mapped for writing, as databases do.
struct Mapped(std::ptr::NonNull<u8>);

impl Mapped {
    #[allow(unsafe_code, reason = "there is no safe way to map a file")]
    fn new(path: &Path) -> Self {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("open");
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping of a whole page of a file that is longer; nothing else uses it.
        let page =
            unsafe { mmap(std::ptr::null_mut(), 4096, protection, MapFlags::SHARED, &file, 0) };
        let page = page.expect("mmap").cast();
        Self(std::ptr::NonNull::new(page).expect("an address"))
    }

    #[allow(unsafe_code, reason = "see `new`")]
    fn write(&self, byte: u8) {
        // SAFETY: the first byte of the mapping, which lives until the test's process ends.
        unsafe { self.0.as_ptr().write_volatile(byte) };
    }
}

#[tokio::test]
async fn a_write_through_a_mapping_is_seen_by_the_next_pass() {
    let trees = Trees::new();
    let path = trees.source.join("mapped");
    write(&path, vec![b'a'; 8192]);
    let mapped = Mapped::new(&path);
    let mut settling = support::source_options();
    settling.settle = true;
    for byte in *b"bcd" {
        // The page stays mapped and dirty; only a flush makes the next write show in the time.
        mapped.write(byte);
        let (sent, _) = trees.pass_with(settling.clone(), support::target_options()).await;
        assert_eq!(sent.expect("source").files_sent, 1, "{}", char::from(byte));
        let copy = std::fs::read(trees.target.join("mapped")).expect("read");
        assert_eq!(copy[0], byte);
    }
    trees.assert_equal();
}

#[tokio::test]
async fn a_pass_after_another_copies_what_its_times_hide() {
    let trees = Trees::quick();
    for directory in ["live", "next"] {
        mkdir(&trees.source.join(directory));
        write(&trees.source.join(directory).join("page"), directory);
    }
    write(&trees.source.join("edited"), "before");
    let old = |path: &str| {
        run(Command::new("touch").args(["-d", "2020-01-01"]).arg(trees.source.join(path)));
    };
    for path in ["live/page", "next/page", "edited"] {
        old(path);
    }
    let seen = Arc::new(Mutex::new(ferry_files::Directories::default()));
    let first = SourceOptions { seen: Some(Arc::clone(&seen)), ..support::source_options() };
    trees.pass_with(first, support::target_options()).await.0.expect("first pass");
    // Names change places and a content changes, sizes and times do not. `page` itself is as old as
    // before: only its directory tells.
    let until = std::time::SystemTime::now();
    while std::fs::metadata(trees.source.join("edited"))
        .and_then(|m| Ok(m.modified()? <= until))
        .expect("stat")
    {
        write(&trees.source.join("edited"), "behind");
    }
    old("edited");
    let at = |name: &str| trees.source.join(name);
    std::fs::rename(at("live"), at("last")).expect("rename");
    std::fs::rename(at("next"), at("live")).expect("rename");
    let known = Arc::new(seen.lock().expect("no panic").clone());
    let compare = || SourceOptions {
        changed_since: Some(until),
        known: Some(Arc::clone(&known)),
        ..support::source_options()
    };
    let differing = trees.compare_with(compare()).await;
    assert!(differing.differences.items.iter().any(|d| d.path == "live/page"), "{differing:?}");
    trees.pass_with(compare(), support::target_options()).await.0.expect("second pass");
    assert!(trees.compare().await.is_equal());
    assert!(trees.compare_with(compare()).await.is_equal());
    trees.assert_equal();
}

#[tokio::test]
async fn what_is_doubted_is_copied_and_compared_whatever_its_times() {
    let trees = Trees::quick();
    write(&trees.source.join("page"), "source");
    write(&trees.source.join("other"), "source");
    trees.pass().await;
    let mtime = std::fs::metadata(trees.target.join("page")).and_then(|m| m.modified());
    std::fs::write(trees.target.join("page"), "target").expect("write");
    let file = std::fs::File::options().write(true).open(trees.target.join("page"));
    file.expect("open").set_modified(mtime.expect("mtime")).expect("mtime");
    let since = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    let options = |doubted: &[&str]| SourceOptions {
        changed_since: Some(since),
        doubted: doubted.iter().map(std::path::PathBuf::from).collect(),
        ..support::source_options()
    };
    assert!(trees.compare_with(options(&[])).await.is_equal());
    assert_eq!(trees.compare_with(options(&["page"])).await.differences.total, 1);
    let (sent, _) = trees.pass_with(options(&["page"]), support::target_options()).await;
    assert_eq!(sent.expect("pass").files_sent, 1);
    assert!(trees.compare().await.is_equal());
}

#[tokio::test]
async fn another_root_than_before_is_a_fault() {
    let trees = Trees::quick();
    write(&trees.source.join("page"), "content");
    trees.pass().await;
    // What a file system that is no longer mounted looks like.
    let options = SourceOptions {
        changed_since: Some(std::time::UNIX_EPOCH),
        known: Some(Arc::default()),
        ..support::source_options()
    };
    let (sent, _) = trees.pass_with(options, support::target_options()).await;
    let fault = sent.expect_err("another root");
    assert!(fault.message.contains("another directory"), "{fault}");
    assert!(trees.target.join("page").exists());
}

#[tokio::test]
async fn of_a_large_file_only_what_differs_is_sent() {
    use std::os::unix::fs::FileExt;
    let trees = Trees::new();
    let path = trees.source.join("database");
    let content: Vec<u8> =
        (0..70_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    write(&path, &content);
    let report = trees.pass().await;
    assert_eq!((report.bytes_sent, report.bytes_kept), (70_000_000, 0));
    trees.assert_equal();
    let inode = std::fs::metadata(trees.target.join("database")).expect("stat").ino();
    // In the first range, across blocks in the second, at the very end, and beyond it.
    let file = std::fs::File::options().write(true).open(&path).expect("open");
    for (bytes, at) in [(10, 5), (20_000, 40_000_000), (1, 69_999_999), (5_000, 70_000_000)] {
        file.write_all_at(&vec![b'!'; bytes], at).expect("write");
    }
    let report = trees.pass().await;
    assert_eq!(report.files_sent, 1);
    assert_eq!(report.bytes_sent + report.bytes_kept, 70_005_000);
    assert!(report.bytes_sent < 100_000, "{report:?}");
    trees.assert_equal();
    let now = std::fs::metadata(trees.target.join("database")).expect("stat");
    assert_eq!(now.ino(), inode, "it is mended where it is");
    // Shorter, and with holes where there was something.
    let file = std::fs::File::options().write(true).open(&path).expect("open");
    file.set_len(34_000_000).expect("length");
    rustix::fs::fallocate(
        &file,
        rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
        8_192 * 100,
        20_000_000,
    )
    .expect("a hole");
    let report = trees.pass().await;
    assert!(report.bytes_sent < 100_000, "{report:?}");
    trees.assert_equal();
    let blocks = |root: &Path| std::fs::metadata(root.join("database")).expect("stat").blocks();
    assert!(blocks(&trees.target) <= blocks(&trees.source) + 64);
    assert!(trees.compare().await.is_equal());
}

#[tokio::test]
async fn a_large_sparse_file_comes_in_ranges_and_is_mended() {
    use std::os::unix::fs::FileExt;
    let trees = Trees::new();
    let path = trees.source.join("image");
    write(&path, "");
    let file = std::fs::File::options().write(true).open(&path).expect("open");
    file.set_len(300_000_000).expect("length");
    for at in [0, 33_554_430, 299_000_000] {
        file.write_all_at(&[1; 5_000], at).expect("write");
    }
    let report = trees.pass().await;
    assert!(report.bytes_sent < 200_000, "{report:?}");
    trees.assert_equal();
    file.write_all_at(&[2; 5_000], 200_000_000).expect("write");
    let report = trees.pass().await;
    assert!(report.bytes_sent < 20_000, "{report:?}");
    trees.assert_equal();
    assert!(std::fs::metadata(trees.target.join("image")).expect("stat").blocks() < 400);
}

#[tokio::test]
async fn what_was_written_before_the_power_failed_is_not_trusted() {
    let trees = Trees::quick();
    write(&trees.source.join("page"), "right");
    let before = std::time::SystemTime::now() - std::time::Duration::from_secs(1);
    trees.pass().await;
    // As long and as old as it shall be, but its bytes never reached the disk.
    let copy = trees.target.join("page");
    let mtime = std::fs::metadata(&copy).and_then(|m| m.modified()).expect("mtime");
    std::fs::write(&copy, "wrong").expect("write");
    let file = std::fs::File::options().write(true).open(&copy).expect("open");
    file.set_modified(mtime).expect("mtime");
    assert_eq!(trees.pass().await.files_sent, 0);
    let mut target = support::target_options();
    target.distrusted_since = Some(before);
    let (sent, _) = trees.pass_with(support::source_options(), target).await;
    assert_eq!(sent.expect("pass").files_sent, 1);
    trees.assert_equal();
}
