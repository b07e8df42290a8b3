//! Random trees and random changes between passes: both ends are equal after each, by comparisons that
//! know nothing of ours, and by ours.

mod support;

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use support::{GID, Trees, UID};

/// Few paths, so that changes meet: a name is now a file, now a directory.
const PATHS: &[&str] = &[
    "a", "b", "c", "a/a", "a/b", "a/c", "b/a", "b/b", "c/a", "a/a/a", "a/a/b", "a/b/a", "b/a/b",
    "b/a/a", "c/a/a", "a/a/a/a",
];

#[derive(Debug, Clone)]
enum Change {
    Write(usize, usize, u8),
    Append(usize, u8),
    Sparse(usize, u64),
    Directory(usize),
    Symlink(usize, usize),
    Link(usize, usize),
    Rename(usize, usize),
    Remove(usize),
    Mode(usize, u32),
    Group(usize, bool),
    Attribute(usize, u8),
    Acl(usize, u8),
    Fifo(usize),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let path = || 0..PATHS.len();
    let change = prop_oneof![
        4 => (path(), prop_oneof![Just(0), 1..100_usize, 100_000..400_000_usize], any::<u8>())
            .prop_map(|(p, n, b)| Change::Write(p, n, b)),
        1 => (path(), any::<u8>()).prop_map(|(p, b)| Change::Append(p, b)),
        1 => (path(), 0..3_000_000_u64).prop_map(|(p, n)| Change::Sparse(p, n)),
        4 => path().prop_map(Change::Directory),
        1 => (path(), path()).prop_map(|(p, q)| Change::Symlink(p, q)),
        3 => (path(), path()).prop_map(|(p, q)| Change::Link(p, q)),
        2 => (path(), path()).prop_map(|(p, q)| Change::Rename(p, q)),
        2 => path().prop_map(Change::Remove),
        1 => (path(), 0..0o10000_u32).prop_map(|(p, m)| Change::Mode(p, m)),
        1 => (path(), any::<bool>()).prop_map(|(p, g)| Change::Group(p, g)),
        1 => (path(), any::<u8>()).prop_map(|(p, v)| Change::Attribute(p, v)),
        1 => (path(), 0..8_u8).prop_map(|(p, v)| Change::Acl(p, v)),
        1 => path().prop_map(Change::Fifo),
    ];
    proptest::collection::vec(change, 1..40)
}

/// Carries out one change; most fail now and then, since the paths clash.
fn apply(root: &Path, change: &Change) {
    let at = |index: &usize| -> PathBuf { root.join(PATHS[*index]) };
    let is_file = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.is_file());
    match change {
        Change::Write(path, length, byte) => {
            if at(path).symlink_metadata().is_ok_and(|m| !m.is_file()) {
                return;
            }
            let _ = std::fs::write(at(path), vec![*byte; *length]);
        }
        Change::Append(path, byte) if is_file(&at(path)) => {
            let file = std::fs::OpenOptions::new().write(true).open(at(path)).expect("open");
            let end = file.metadata().expect("metadata").len();
            file.write_all_at(&[*byte], end).expect("append");
        }
        Change::Sparse(path, offset) => {
            if at(path).symlink_metadata().is_ok_and(|m| !m.is_file()) {
                return;
            }
            if let Ok(file) = std::fs::File::create(at(path)) {
                file.write_all_at(b"data", *offset).expect("write");
                file.set_len(offset * 2).expect("length");
            }
        }
        Change::Directory(path) => drop(std::fs::create_dir(at(path))),
        Change::Symlink(path, target) => {
            let _ = std::os::unix::fs::symlink(PATHS[*target], at(path));
        }
        Change::Link(from, to) => drop(std::fs::hard_link(at(from), at(to))),
        Change::Rename(from, to) => drop(std::fs::rename(at(from), at(to))),
        Change::Remove(path) => {
            let _ = std::fs::remove_file(at(path)).or_else(|_| std::fs::remove_dir_all(at(path)));
        }
        Change::Mode(path, mode) if at(path).symlink_metadata().is_ok_and(|m| !m.is_symlink()) => {
            let permissions = std::fs::Permissions::from_mode(*mode);
            let _ = std::fs::set_permissions(at(path), permissions);
        }
        Change::Group(path, other) => {
            let group = if *other { GID } else { UID };
            let _ = std::os::unix::fs::lchown(at(path), Some(UID), Some(group));
        }
        Change::Attribute(path, value)
            if at(path).symlink_metadata().is_ok_and(|m| m.is_file() || m.is_dir()) =>
        {
            let name = format!("user.{}", value % 3);
            let _ = if value % 4 == 0 {
                xattr::remove(at(path), name)
            } else {
                xattr::set(at(path), name, &[*value])
            };
        }
        Change::Acl(path, bits)
            if at(path).symlink_metadata().is_ok_and(|m| m.is_file() || m.is_dir()) =>
        {
            let spec = format!("u:{UID}:{bits}");
            let _ = Command::new("setfacl").args(["-m", &spec]).arg(at(path)).output();
        }
        Change::Fifo(path) => drop(nix::unistd::mkfifo(&at(path), nix::sys::stat::Mode::S_IRWXU)),
        _ => {}
    }
}

/// New inodes are root's, who runs the test; the account's keep the group that they have.
fn give_away(root: &Path) {
    support::run(Command::new("chown").args(["-RhP", &UID.to_string()]).arg(root));
    let root_group = ["-h", "-group", "0", "-exec", "chgrp", "-h", "--", "GROUP", "{}", "+"];
    let group = UID.to_string();
    let arguments =
        root_group.iter().skip(1).map(|arg| if *arg == "GROUP" { group.as_str() } else { arg });
    support::run(Command::new("find").arg(root).args(arguments));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_pass_ends_equal(rounds in proptest::collection::vec(changes(), 1..4)) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let trees = Trees::new();
        for round in &rounds {
            // Never empty: that would be a halt.
            support::write(&trees.source.join("kept"), "k");
            round.iter().for_each(|change| apply(&trees.source, change));
            give_away(&trees.source);
            let report = runtime.block_on(trees.pass());
            prop_assert!(report.refused.is_empty(), "{:?}", report.refused);
            prop_assert_eq!(report.changed_while_read, 0);
            trees.assert_equal();
            let comparison = runtime.block_on(trees.compare());
            prop_assert!(comparison.is_equal(), "{:?}", comparison.differences);
            let again = runtime.block_on(trees.pass());
            prop_assert_eq!(again.unchanged, again.entries, "{:?}", again);
        }
    }
}
