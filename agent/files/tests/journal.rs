//! The change journal tells what others do below the trees that are watched, and nothing else.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ferry_files::journal::{Backend, Changes, Names, Watch, Watched, Whose};
use support::{Trees, mkdir, run, write};

const BACKENDS: [Backend; 2] = [Backend::Renames, Backend::Names];

fn open(path: &Path) -> OwnedFd {
    std::fs::File::open(path).expect("open").into()
}

fn watch(root: &Path, backend: Backend) -> Watched {
    let watch = Watch::start(open(root), backend, Whose::Others).expect("fanotify");
    assert_eq!(watch.backend(), backend, "another backend than the one that is tested");
    Arc::new(watch).tree(root)
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
            let own =
                fanotify_fid::handle::handle_from_fd(open(&root.join("to/moved"))).expect("handle");
            let was = changes.was(&own).expect("it was elsewhere");
            let from =
                fanotify_fid::handle::handle_from_fd(open(&root.join("from"))).expect("handle");
            assert_eq!((&*was.parent, &*was.name), (from.as_slice(), b"moving".as_slice()));
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
        let watch =
            Watch::start(open(one), backend, Whose::Others).map(Arc::new).expect("fanotify");
        let (here, there) = (watch.tree(one), watch.tree(other));
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
