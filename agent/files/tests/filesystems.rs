//! Passes end equal on every file system that an account may live on, and look only at what has changed: told by
//! fanotify, or where that cannot be had by inotify.

mod support;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ferry_files::SourceOptions;
use ferry_files::journal::{Backend, Plan, Watch, Watched, Whose};
use support::{
    Trees, UID, in_own_mounts, mkdir, mount_new, own, run, source_options, target_options,
};

/// What an account lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Ext4,
    Xfs,
    Btrfs,
    /// A subvolume that is mounted itself, as homes are.
    Subvolume,
    Overlay,
    Tmpfs,
    /// A directory of ext4, mounted in another place; what changes it does so in the first.
    Bind,
}

const ALL: [On; 7] =
    [On::Ext4, On::Xfs, On::Btrfs, On::Subvolume, On::Overlay, On::Tmpfs, On::Bind];

fn mount(options: &[&str], from: &Path, to: &Path) {
    run(Command::new("mount").args(options).arg(from).arg(to));
}

impl On {
    /// Puts the source on it. Answers where its account works.
    fn put(self, trees: &Trees) -> PathBuf {
        let (dir, root) = (trees.dir.path(), &trees.source);
        let beside = |name: &str| {
            let path = dir.join(name);
            mkdir(&path);
            path
        };
        match self {
            On::Ext4 => {
                mount_new("mkfs.ext4", "loop", root);
                run(Command::new("rmdir").arg(root.join("lost+found")));
            }
            On::Xfs => mount_new("mkfs.xfs", "loop", root),
            On::Btrfs => mount_new("mkfs.btrfs", "loop", root),
            On::Subvolume => {
                let top = beside("top");
                mount_new("mkfs.btrfs", "loop", &top);
                run(Command::new("btrfs")
                    .args(["-q", "subvolume", "create"])
                    .arg(top.join("home")));
                let device = run(Command::new("findmnt").args(["-no", "SOURCE"]).arg(&top));
                mount(&["-o", "subvol=home"], Path::new(device.trim()), root);
            }
            On::Overlay => {
                let all = beside("all");
                mount(&["-t", "tmpfs"], Path::new("tmpfs"), &all);
                let [lower, upper, work] = ["lower", "upper", "work"].map(|n| all.join(n));
                [&lower, &upper, &work].into_iter().for_each(|path| mkdir(path));
                let (lower, upper, work) = (lower.display(), upper.display(), work.display());
                let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
                mount(&["-t", "overlay", "-o", &options], Path::new("overlay"), root);
            }
            On::Tmpfs => mount(&["-t", "tmpfs"], Path::new("tmpfs"), root),
            On::Bind => {
                let top = beside("top");
                mount_new("mkfs.ext4", "loop", &top);
                mkdir(&top.join("home"));
                mount(&["--bind"], &top.join("home"), root);
                return top.join("home");
            }
        }
        own(root);
        root.clone()
    }

    /// By what the kernel that the tests run on tells what changes there, if `best` is asked of it.
    fn told_by(self, best: Backend) -> Backend {
        if matches!(self, On::Overlay | On::Subvolume) { Backend::Inotify } else { best }
    }
}

fn watch(root: &Path, best: Backend) -> Watched {
    let fd: OwnedFd = std::fs::File::open(root).expect("open").into();
    // inotify does not tell whose changes they are: they are the account's alone.
    let watch = Watch::start(fd, best, Whose::Everybodys).expect("watched");
    Arc::new(watch).tree(root).expect("watched")
}

fn does(root: &Path, script: &str) {
    let (uid, gid) = (UID.to_string(), UID.to_string());
    run(Command::new("setpriv")
        .args(["--reuid", &uid, "--regid", &gid, "--clear-groups", "sh", "-euc", script])
        .current_dir(root));
}

/// A pass over what is told, or over everything. Answers how many entries were looked at.
async fn pass(trees: &Trees, watched: Option<&Watched>) -> u64 {
    let plan = watched.and_then(|w| Plan::of(&w.take(), &trees.source, []).expect("the root"));
    let options = SourceOptions { plan: plan.map(Arc::new), ..source_options() };
    let (sent, received) = trees.pass_with(options, target_options()).await;
    let report = received.expect("the target's end");
    assert_eq!(sent.expect("the source's end"), report);
    trees.assert_equal();
    report.entries
}

#[test]
fn passes_end_equal_on_every_file_system() {
    for best in [Backend::Renames, Backend::Names, Backend::Inotify] {
        for on in ALL {
            in_own_mounts(async move || {
                let trees = Trees::new();
                run(Command::new("chmod").arg("755").arg(trees.dir.path()));
                let works = on.put(&trees);
                does(&works, "mkdir -p a/b c; for n in $(seq 50); do echo $n > a/b/$n; done");
                let watched = watch(&trees.source, best);
                let backend = watched.backend();
                assert_eq!(backend, on.told_by(best), "{on:?}, {best:?}");
                pass(&trees, None).await;
                does(&works, "echo more >> a/b/7; rm a/b/8; mkdir d; echo n > d/new");
                let looked_at = pass(&trees, Some(&watched)).await;
                assert!(looked_at < 10, "{on:?}, {backend:?}: {looked_at}");
                does(&works, "mv a/b c/moved; echo x > c/moved/9; ln c/moved/10 d/another");
                let looked_at = pass(&trees, Some(&watched)).await;
                let is_short = backend == Backend::Renames;
                assert!(!is_short || looked_at < 12, "{on:?}: {looked_at}");
                does(&works, "rm -r c; chmod 700 d; touch -d 2001-02-03 .");
                pass(&trees, Some(&watched)).await;
            });
        }
    }
}
