//! What a target's file system cannot hold is known before anything is copied.

mod support;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use ferry_proto::command::TreeNeeds;
use support::{Trees, ids, in_own_mounts, own, run, source_options, write};
use tokio_util::sync::CancellationToken;

fn mount(root: &Path, make: &[&str]) {
    let image = root.with_extension("image");
    run(Command::new("truncate").args(["-s", "400M"]).arg(&image));
    run(Command::new(make[0]).args(&make[1..]).arg("-q").arg(&image));
    run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(root));
    own(root);
}

fn needs(root: &Path) -> TreeNeeds {
    let cancel = CancellationToken::new();
    ferry_files::survey(root, &source_options(), &ids(), &cancel).expect("survey").needs
}

fn lacks(place: &Path, needs: &TreeNeeds) -> Vec<String> {
    let lacks = ferry_files::cannot_hold(place, needs).expect("tried").expect("can be tried");
    assert!(fs::read_dir(place).expect("readdir").all(|e| {
        let name = e.expect("entry").file_name();
        name != "lost+found" || place.join(name).is_dir()
    }));
    lacks
}

#[test]
fn what_a_file_system_cannot_hold_is_named_with_a_path() {
    in_own_mounts(async || {
        let trees = Trees::new();
        let (large, small) = (&trees.source, &trees.target);
        mount(large, &["mkfs.xfs"]);
        mount(small, &["mkfs.ext4", "-b", "4096"]);
        let plain = trees.dir.path().join("plain");
        fs::create_dir(&plain).expect("mkdir");
        run(Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(&plain));
        for path in ["many", "shared", "fixed"] {
            write(&large.join(path), "x");
        }
        xattr::set(large.join("many"), "user.note", &[b'x'; 10_000]).expect("setxattr");
        run(Command::new("setfacl").args(["-m", "u:1:r"]).arg(large.join("shared")));
        let huge = File::create(large.join("huge")).expect("create");
        huge.set_len(20 << 40).expect("a hole of 20 TiB");
        own(&large.join("huge"));
        run(Command::new("chattr").arg("+i").arg(large.join("fixed")));
        let of_large = needs(large);
        assert_eq!(lacks(large, &of_large), Vec::<String>::new());
        let expected = |place, expected: &[(&str, &str)]| {
            let lacked = lacks(place, &of_large);
            for (what, path) in expected {
                let found = lacked.iter().any(|lack| lack.contains(what) && lack.contains(path));
                assert!(found, "{what} {path}: {lacked:?}");
            }
            assert_eq!(lacked.len(), expected.len(), "{lacked:?}");
        };
        expected(small, &[("files", "huge"), ("attributes", "many")]);
        expected(&plain, &[("attributes", "many"), ("ACLs", "shared"), ("flags", "fixed")]);

        std::os::unix::fs::symlink("x".repeat(2000), small.join("far")).expect("symlink");
        own(&small.join("far"));
        write(&small.join("n".repeat(255)), "x");
        let of_small = needs(small);
        assert_eq!(of_small.name.as_ref().map(|name| name.amount), Some(255));
        assert_eq!(lacks(small, &of_small), Vec::<String>::new());
        let lacked = lacks(large, &of_small);
        assert!(lacked.len() == 1 && lacked[0].contains("far has 2000"), "{lacked:?}");
    });
}

#[test]
fn where_nothing_can_be_tried_that_is_said() {
    let tried = ferry_files::cannot_hold(Path::new("/proc"), &TreeNeeds::default());
    assert_eq!(tried.expect("tried"), None);
}
