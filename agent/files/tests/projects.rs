//! Project ids follow a tree between file systems that count them.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Trees, in_own_mounts, mkdir, mount_new, run, write};

/// A file system that has project ids: XFS, since not every kernel can mount an ext4 that has.
fn mount(root: &Path) {
    mount_new("mkfs.xfs", "loop", root);
}

fn set(path: &Path, project: u32, inherits: bool) {
    let sign = if inherits { "+P" } else { "-P" };
    run(Command::new("chattr").args(["-p", &project.to_string()]).arg(path));
    if path.is_dir() {
        run(Command::new("chattr").arg(sign).arg(path));
    }
}

/// Project and flag of each path, by lsattr.
fn projects(root: &Path) -> Vec<(PathBuf, String, bool)> {
    let said = run(Command::new("lsattr").args(["-R", "-a", "-p"]).arg(root));
    let mut all: Vec<_> = said
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (project, flags, path) = (fields.next()?, fields.next()?, fields.next()?);
            let below = Path::new(path).strip_prefix(root).ok()?;
            (!path.ends_with("/.") && !path.ends_with("/.."))
                .then(|| (below.to_owned(), project.to_owned(), flags.contains('P')))
        })
        .collect();
    all.sort();
    all
}

#[test]
fn projects_are_carried_between_file_systems_that_count_them() {
    in_own_mounts(async || {
        let trees = Trees::new();
        mount(&trees.source);
        mount(&trees.target);
        let source = &trees.source;
        set(source, 3, true);
        for dir in ["counted", "counted/below", "plain"] {
            mkdir(&source.join(dir));
        }
        set(&source.join("counted"), 7, true);
        set(&source.join("counted/below"), 8, true);
        for file in ["counted/inherits", "counted/below/inherits", "counted/other", "plain/own"] {
            write(&source.join(file), "x");
        }
        set(&source.join("counted/other"), 9, false);
        set(&source.join("plain/own"), 10, false);
        trees.pass().await;
        trees.assert_equal();
        let there = projects(&trees.target);
        assert_eq!(projects(source), there);
        assert!(
            there.iter().any(|(path, id, inherits)| {
                (path.to_str(), id.as_str(), *inherits) == (Some("counted"), "7", true)
            }),
            "{there:?}"
        );
        let report = trees.pass().await;
        assert_eq!((report.files_sent, report.metadata_changed), (0, 0), "{report:?}");

        set(&source.join("plain"), 11, true);
        set(&source.join("counted"), 0, false);
        set(&source.join("counted/inherits"), 12, false);
        write(&source.join("counted/below/inherits"), "longer");
        let found = trees.compare().await;
        let projects_differ = found.differences.items.iter().filter(|d| d.what == "project");
        assert_eq!(projects_differ.count(), 3, "{found:?}");
        trees.pass().await;
        assert_eq!(projects(source), projects(&trees.target));
        assert!(trees.compare().await.is_equal());
    });
}

#[test]
fn a_target_that_cannot_hold_projects_says_so_and_takes_the_rest() {
    in_own_mounts(async || {
        let trees = Trees::new();
        mount(&trees.source);
        set(&trees.source, 3, true);
        write(&trees.source.join("file"), "x");
        set(&trees.source.join("file"), 7, false);
        let report = trees.pass().await;
        assert!(report.refused.is_empty(), "{report:?}");
        assert!(report.notes.items.iter().any(|note| note.text.contains("project")), "{report:?}");
        trees.assert_equal();
        assert!(trees.compare().await.is_equal());
    });
}
