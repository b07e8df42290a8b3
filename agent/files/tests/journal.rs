//! The change journal tells what others do below the trees that are watched, and nothing else.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ferry_files::journal::{
    Backend, Changes, Extent, Handed, Lost, Names, Watch, Watched, Whose, handle_of,
};
use support::{Trees, in_own_mounts, mkdir, run, write};

const BACKENDS: [Backend; 2] = [Backend::Renames, Backend::Names];

fn open(path: &Path) -> OwnedFd {
    std::fs::File::open(path).expect("open").into()
}

fn watch(root: &Path, backend: Backend) -> Watched {
    file_system(root, backend).tree(root).expect("watched")
}

fn file_system(root: &Path, backend: Backend) -> Arc<Watch> {
    let watch = Watch::start(open(root), backend, Whose::Others).expect("fanotify");
    assert_eq!(watch.backend(), backend, "another backend than the one that is tested");
    Arc::new(watch)
}

/// What a program of its own does; what this process does is not noted.
fn does(root: &Path, script: &str) {
    run(Command::new("sh").args(["-euc", script]).current_dir(root));
}

/// The changes by path; directories that are gone are left out.
fn told(root: &Path, changes: &Changes) -> BTreeMap<PathBuf, BTreeSet<String>> {
    let mount = open(root);
    let mut told = BTreeMap::new();
    for (handle, names) in changes.directories() {
        let Ok(fd) = fanotify_fid::handle::open_by_handle_at(&mount, handle) else { continue };
        let path =
            std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd)));
        let path = path.expect("a path");
        // What was noted while it was in the tree may be of one that has left it.
        let Ok(path) = path.strip_prefix(root) else { continue };
        let Names::Some(names) = names else { panic!("too many names") };
        let names = names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        told.insert(path.to_owned(), names);
    }
    told
}

fn expect(root: &Path, changes: &Changes, expected: &[(&str, &[&str])]) {
    assert_eq!(changes.lost(), None);
    let expected: BTreeMap<PathBuf, BTreeSet<String>> = expected
        .iter()
        .map(|(path, names)| (PathBuf::from(path), names.iter().map(|n| (*n).to_owned()).collect()))
        .collect();
    assert_eq!(told(root, changes), expected);
}

#[test]
fn what_happens_below_the_root_is_told_by_directory_and_name() {
    for backend in BACKENDS {
        let trees = Trees::quick();
        let root = &trees.source;
        mkdir(&root.join("a/b"));
        write(&root.join("a/old"), "old");
        write(&root.join("a/b/kept"), "kept");
        let watch = watch(root, backend);
        does(
            root,
            "echo new > a/new; echo more >> a/old; chmod 600 a/b/kept; mkdir c; ln -s x c/link",
        );
        does(&trees.target, "echo elsewhere > file");
        std::fs::write(root.join("ours"), "not noted").expect("write");
        let changes = watch.take();
        expect(
            root,
            &changes,
            &[("", &["c"]), ("a", &["new", "old"]), ("a/b", &["kept"]), ("c", &["link"])],
        );
        assert!(watch.take().is_empty());
        does(root, "rm a/old");
        let later = watch.take();
        expect(root, &later, &[("a", &["old"])]);
        watch.put_back(later);
        does(root, "touch a/b");
        let both = watch.take();
        assert_eq!(told(root, &both)[Path::new("a")], ["old".to_owned()].into());
    }
}

#[test]
fn a_directory_that_is_renamed_is_told_with_what_happens_in_it_afterwards() {
    for backend in BACKENDS {
        let trees = Trees::quick();
        let root = &trees.source;
        mkdir(&root.join("from/moving/deep"));
        mkdir(&root.join("to"));
        let watch = watch(root, backend);
        does(
            root,
            "echo 1 > from/moving/deep/one; mv from/moving to/moved; echo 2 > to/moved/deep/two",
        );
        let changes = watch.take();
        expect(
            root,
            &changes,
            &[("from", &["moving"]), ("to", &["moved"]), ("to/moved/deep", &["one", "two"])],
        );
        if backend == Backend::Renames {
            let own = handle_of(open(&root.join("to/moved"))).expect("handle");
            let was = changes.was(&own).expect("it was elsewhere");
            let from = handle_of(open(&root.join("from"))).expect("handle");
            assert_eq!((&*was.parent, &*was.name), (&*from, b"moving".as_slice()));
        }
    }
}

#[test]
fn what_moves_in_from_elsewhere_is_told_by_its_name() {
    for backend in BACKENDS {
        let trees = Trees::quick();
        let root = &trees.source;
        mkdir(&trees.target.join("coming/deep"));
        let watch = watch(root, backend);
        does(&trees.target, "echo 1 > coming/deep/before");
        does(&trees.target, &format!("mv coming {}/come", root.display()));
        does(
            root,
            "echo 2 > come/deep/after; mv come/deep ../target/gone; echo 3 > ../target/gone/out",
        );
        let told = told(root, &watch.take());
        assert_eq!(told[Path::new("")], ["come".to_owned()].into());
        assert!(told[Path::new("come")].contains("deep"));
    }
}

#[test]
fn each_tree_has_its_own_changes() {
    for backend in BACKENDS {
        let trees = Trees::quick();
        let (one, other) = (&trees.source, &trees.target);
        mkdir(&one.join("goes"));
        let watch = file_system(one, backend);
        let (here, there) = (watch.tree(one).expect("one"), watch.tree(other).expect("other"));
        does(one, "echo 1 > here; mv goes ../target/came; echo 2 > ../target/came/in");
        let came = there.take();
        expect(other, &came, &[("", &["came"]), ("came", &["in"])]);
        assert_eq!(came.moved().count(), 0, "it comes from elsewhere");
        expect(one, &here.take(), &[("", &["goes", "here"])]);
        assert!(here.take().is_empty() && there.take().is_empty());
    }
}

#[test]
fn a_name_that_is_not_text_is_told_as_it_is() {
    let trees = Trees::quick();
    let root = &trees.source;
    let watch = watch(root, Backend::Renames);
    does(root, "touch \"$(printf 'x\\377\\ny')\"");
    let changes = watch.take();
    let (_, Names::Some(names)) = changes.directories().next().expect("one") else { panic!("all") };
    assert!(names.contains(b"x\xff\ny".as_slice()), "{names:?}");
}

/// What is left of a watch whose process ends in order: its queue, and what was noted until then.
fn handed_over(root: &Path, backend: Backend, before: &str) -> (Handed, Changes) {
    let watch = file_system(root, backend);
    let tree = watch.tree(root).expect("watched");
    does(root, before);
    let handed = watch.hand_over().expect("a queue");
    let changes = tree.take();
    (handed, Changes::saved(&changes.save()).expect("what was saved"))
}

fn taken_over(root: &Path, handed: Handed, changes: Changes) -> Option<Changes> {
    let trees = vec![(root.to_owned(), changes)];
    let taken = Watch::take_over(open(root), handed, Whose::Others, trees).ok();
    taken.map(|(_, trees)| trees[0].take())
}

#[test]
fn whoever_takes_over_is_told_what_happened_before_meanwhile_and_afterwards() {
    for backend in BACKENDS {
        let trees = Trees::quick();
        let root = &trees.source;
        mkdir(&root.join("a/b"));
        let (handed, changes) = handed_over(root, backend, "echo 1 > a/before; mv a/b moved");
        does(root, "echo 2 > moved/meanwhile; mv moved a/again; mkdir made");
        let all = vec![(root.clone(), changes)];
        let (watch, trees) =
            Watch::take_over(open(root), handed, Whose::Others, all).expect("the same queue");
        assert_eq!(watch.backend(), backend);
        does(root, "echo 3 > made/afterwards; mv made a/made");
        let changes = trees[0].take();
        expect(
            root,
            &changes,
            &[
                ("", &["moved", "made"]),
                ("a", &["before", "b", "again", "made"]),
                ("a/again", &["meanwhile"]),
                ("a/made", &["afterwards"]),
            ],
        );
        if backend == Backend::Renames {
            let was = |path: &str| changes.was(&handle_of(open(&root.join(path))).expect("handle"));
            assert_eq!(was("a/again").map(|place| &*place.name), Some(b"b".as_slice()));
            assert_eq!(was("a/made"), None, "it was made since");
        }
    }
}

#[test]
fn whoever_had_our_number_before_us_was_somebody_else() {
    let trees = Trees::quick();
    let root = &trees.source;
    let (handed, changes) = handed_over(root, Backend::Renames, ":");
    write(&root.join("meanwhile"), "by a process of this number");
    let trees = vec![(root.clone(), changes)];
    let (_watch, trees) =
        Watch::take_over(open(root), handed, Whose::Others, trees).expect("the same queue");
    write(&root.join("afterwards"), "by this process");
    expect(root, &trees[0].take(), &[("", &["meanwhile"])]);
}

#[test]
fn nobody_who_stays_away_fills_the_kernel() {
    let trees = Trees::quick();
    let root = &trees.source;
    let limit = std::fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events");
    let limit: u32 = limit.expect("a limit").trim().parse().expect("a number");
    let (handed, changes) = handed_over(root, Backend::Renames, ":");
    does(root, &format!("i=0; while [ $i -le {limit} ]; do : > f$i; i=$((i+1)); done"));
    let taken = taken_over(root, handed, changes).expect("the same queue");
    assert_eq!(taken.lost(), Some(Lost::Overflow));
}

#[test]
fn a_queue_is_not_believed_that_was_not_marked_all_the_time() {
    in_own_mounts(async || {
        let trees = Trees::quick();
        let root = &trees.source;
        let mounted = || {
            run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(root));
        };
        mounted();
        let (handed, changes) = handed_over(root, Backend::Renames, "echo 1 > before");
        // The thread of the watch lets go of it by and by.
        while !Command::new("umount").arg("-q").arg(root).status().expect("umount").success() {}
        mounted();
        assert_eq!(taken_over(root, handed, changes), None);
        // Something else came back by its name.
        let (handed, changes) = handed_over(root, Backend::Renames, "echo 1 > before");
        let other = Handed { queue: open(root), ..handed };
        assert_eq!(taken_over(root, other, changes), None);
    });
}

#[test]
fn how_much_has_changed_is_told_without_taking_it() {
    for backend in BACKENDS {
        let trees = Trees::quick();
        let root = &trees.source;
        mkdir(&root.join("a/b"));
        write(&root.join("a/gone"), "gone");
        write(&root.join("a/same"), "the same");
        let watch = watch(root, backend);
        let extent = || Extent::of(&watch, root).expect("the root");
        assert_eq!(extent(), Some(Extent::default()));
        does(root, "rm a/gone; printf 12345 > a/b/new; printf 123 > more; printf x > more");
        let told = extent().expect("noted");
        assert_eq!(told, Extent { paths: 3, bytes: 6, is_least: false });
        assert_eq!(extent(), Some(told));
        assert!(!watch.take().is_empty());
        assert_eq!(extent(), Some(Extent::default()));
    }
}
