//! What inotify tells of a tree whose file system cannot be watched as a whole, and what it does not.

mod support;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use ferry_files::journal::{Backend, Changes, Extent, Lost, Plan, Watch, Watched, Whose};
use support::{Trees, mkdir, run, write};

fn open(path: &Path) -> OwnedFd {
    std::fs::File::open(path).expect("open").into()
}

fn watch(root: &Path) -> Watched {
    let watch = Watch::start(open(root), Backend::Inotify, Whose::Everybodys).expect("inotify");
    Arc::new(watch).tree(root).expect("watched")
}

fn does(root: &Path, script: &str) {
    run(Command::new("sh").args(["-euc", script]).current_dir(root));
}

/// Whether a pass after these changes goes to each of these paths; the others it leaves alone.
fn expect(root: &Path, changes: &Changes, paths: &[(&str, bool)]) {
    assert_eq!(changes.lost(), None);
    let plan = Plan::of(changes, root, []).expect("the root").expect("a plan");
    for (path, expected) in paths {
        assert_eq!(plan.goes_to(Path::new(path)), *expected, "{path}");
    }
}

#[test]
fn what_changes_is_told_by_its_name_and_in_the_place_of_its_directory() {
    let trees = Trees::quick();
    let root = &trees.source;
    mkdir(&root.join("a/b"));
    mkdir(&root.join("quiet"));
    for path in ["a/old", "a/b/kept", "a/b/still", "gone"] {
        write(&root.join(path), path);
    }
    let watched = watch(root);
    assert!(watched.take().is_empty());
    does(root, "echo more >> a/old; chmod 600 a/b/kept; rm gone; ln -s x a/link; touch quiet");
    let all = [
        ("a/old", true),
        ("a/b/kept", true),
        ("a/b/still", false),
        ("gone", true),
        ("a/link", true),
        ("quiet", true),
    ];
    let changes = watched.take();
    expect(root, &changes, &all);
    assert!(watched.take().is_empty());
    watched.put_back(changes);
    expect(root, &watched.take(), &all);
}

#[test]
fn what_is_in_a_directory_that_comes_is_looked_at_until_it_is_watched() {
    let trees = Trees::quick();
    let root = &trees.source;
    mkdir(&trees.target.join("coming/deep"));
    mkdir(&root.join("from/moving/deep"));
    write(&root.join("from/moving/deep/unchanged"), "");
    let watched = watch(root);
    does(
        root,
        "mkdir -p new/deep; echo 1 > new/deep/file; mv ../target/coming come;
        mv from/moving moved",
    );
    let everything = [
        ("new/deep/file", true),
        ("come/deep", true),
        ("moved/deep/unchanged", true),
        ("from/moving", true),
        ("from", true),
    ];
    expect(root, &watched.take(), &everything);
    // From then on by name.
    does(root, "echo 2 > new/deep/other; echo 3 > moved/deep/other; echo 4 > come/deep/other");
    expect(
        root,
        &watched.take(),
        &[
            ("new/deep/other", true),
            ("moved/deep/other", true),
            ("come/deep/other", true),
            ("new/deep/file", false),
            ("moved/deep/unchanged", false),
        ],
    );
    // What has left is not told of, also if something else has come to its place.
    does(root, "mv moved ../target/left; mkdir moved; echo 5 > ../target/left/deep/out");
    expect(root, &watched.take(), &[("moved", true), ("new", false)]);
    does(root, "echo 6 > ../target/left/deep/out; rm -r new");
    expect(root, &watched.take(), &[("new", true), ("moved", false), ("come", false)]);
}

#[test]
fn a_file_that_changed_is_looked_for_under_its_other_names() {
    let trees = Trees::quick();
    let root = &trees.source;
    mkdir(&root.join("a"));
    mkdir(&root.join("b"));
    write(&root.join("a/one"), "");
    std::fs::hard_link(root.join("a/one"), root.join("b/two")).expect("link");
    write(&root.join("b/other"), "");
    let watched = watch(root);
    does(root, "echo 1 >> a/one");
    expect(root, &watched.take(), &[("a/one", true), ("b/two", true), ("b/other", false)]);
    // What a name was given to may have been written by it, and lost it again.
    does(root, "ln b/other a/third");
    assert_eq!(watched.take().lost(), Some(Lost::Unplaced));
    does(root, "echo 2 >> b/other");
    expect(root, &watched.take(), &[("a/third", true), ("b/other", true), ("b/two", false)]);
}

#[test]
fn it_is_not_asked_for_what_it_cannot_tell() {
    let trees = Trees::quick();
    let start = |root: &Path, whose| Watch::start(open(root), Backend::Inotify, whose).err();
    let ours = start(&trees.source, Whose::Others).expect("a fault");
    assert!(ours.to_string().contains("whose"), "{ours}");
    let others = start(Path::new("/proc"), Whose::Everybodys).expect("a fault");
    assert!(others.to_string().contains("others than this kernel"), "{others}");
}

#[test]
fn how_much_has_changed_is_told_without_taking_it() {
    let trees = Trees::quick();
    let root = &trees.source;
    mkdir(&root.join("a/b"));
    write(&root.join("a/gone"), "gone");
    let watched = watch(root);
    let extent = || Extent::of(&watched, root).expect("the root");
    assert_eq!(extent(), Some(Extent::default()));
    does(root, "rm a/gone; printf 12345 > a/b/new; printf 123 > more");
    assert_eq!(extent(), Some(Extent { paths: 3, bytes: 8, is_least: false }));
    assert!(!watched.take().is_empty());
    assert_eq!(extent(), Some(Extent::default()));
}
