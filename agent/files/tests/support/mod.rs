//! What the tests share: two trees, passes between them over a pipe in memory, and two comparisons that
//! know nothing of Ferry's own.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use ferry_files::journal::{Backend, Whose};
use ferry_files::{Comparison, IdMap, PassReport, Progress, SourceOptions, Streams, TargetOptions};
use ferry_proto::Fault;
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The account's user and group in these tests.
pub const UID: u32 = 64_101;
/// A second group of the account.
pub const GID: u32 = 64_102;

/// Two trees.
pub struct Trees {
    /// Removed when dropped.
    pub dir: tempfile::TempDir,
    /// The source's root.
    pub source: PathBuf,
    /// The target's root.
    pub target: PathBuf,
}

impl Trees {
    /// Two empty trees, both the account's.
    pub fn new() -> Self {
        Self::at(tempfile::tempdir().expect("a temporary directory"))
    }

    /// Two empty trees in memory, for many files without ACLs and the like.
    pub fn quick() -> Self {
        Self::at(tempfile::tempdir_in("/dev/shm").expect("a temporary directory in /dev/shm"))
    }

    fn at(dir: tempfile::TempDir) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests change owners: run them as root");
        let path = dir.path().canonicalize().expect("the temporary directory's real path");
        let (source, target) = (path.join("source"), path.join("target"));
        for root in [&source, &target] {
            std::fs::create_dir(root).expect("a root");
            own(root);
        }
        Self { dir, source, target }
    }

    /// One pass that must succeed at both ends with the same report.
    pub async fn pass(&self) -> PassReport {
        let (sent, received) = self.pass_with(source_options(), target_options()).await;
        let (sent, received) =
            (sent.expect("the source's end"), received.expect("the target's end"));
        assert_eq!(sent, received);
        received
    }

    /// One pass.
    pub async fn pass_with(
        &self,
        source: SourceOptions,
        target: TargetOptions,
    ) -> (Result<PassReport, Fault>, Result<PassReport, Fault>) {
        let (near, far) = pipes(64 * 1024);
        let cancel = CancellationToken::new();
        tokio::join!(
            ferry_files::send_pass(&self.source, near, source, progress(), cancel.clone()),
            ferry_files::receive_pass(&self.target, far, target, progress(), cancel.clone()),
        )
    }

    /// A comparison that must succeed at both ends with the same outcome.
    pub async fn compare(&self) -> Comparison {
        self.compare_with(source_options()).await
    }

    /// A comparison that must succeed at both ends with the same outcome.
    pub async fn compare_with(&self, options: SourceOptions) -> Comparison {
        self.compare_between(options, target_options()).await
    }

    /// The same, with the target's options too.
    pub async fn compare_between(
        &self,
        options: SourceOptions,
        target: TargetOptions,
    ) -> Comparison {
        let (near, far) = pipes(64 * 1024);
        let cancel = CancellationToken::new();
        let (source, target) = tokio::join!(
            ferry_files::verify_source(&self.source, near, options, progress(), cancel.clone()),
            ferry_files::verify_target(&self.target, far, target, progress(), cancel.clone()),
        );
        let (source, target) = (source.expect("the source's end"), target.expect("the target's"));
        assert_eq!(source, target);
        target
    }

    /// Both trees are the same by rsync and by our own walk.
    pub fn assert_equal(&self) {
        let said = rsync_differences(&self.source, &self.target);
        assert!(said.is_empty(), "rsync finds differences:\n{said}");
        let (source, target) = (inventory(&self.source), inventory(&self.target));
        for (path, entry) in &source {
            assert_eq!(Some(entry), target.get(path), "{}", path.display());
        }
        for path in target.keys() {
            assert!(source.contains_key(path), "only at the target: {}", path.display());
        }
    }
}

/// Streams in memory between two ends; each holds so many bytes.
pub fn pipes(size: usize) -> (Streams<DuplexStream>, Streams<DuplexStream>) {
    let (control, far) = tokio::io::duplex(size);
    let (data, data_far) = (0..2).map(|_| tokio::io::duplex(size)).unzip();
    (Streams { control, data }, Streams { control: far, data: data_far })
}

/// A place for progress that nobody looks at.
pub fn progress() -> watch::Sender<Progress> {
    watch::channel(Progress::default()).0
}

/// The source's options in these tests: nobody writes, so nothing need be flushed.
pub fn source_options() -> SourceOptions {
    let mut options = SourceOptions::new([UID]);
    options.settle = false;
    options
}

/// The ids of the account, the same at both ends.
pub fn ids() -> IdMap {
    let mut ids = IdMap::of((UID, UID), (UID, UID));
    ids.gids.insert(GID, GID);
    ids
}

/// The target's options in these tests.
pub fn target_options() -> TargetOptions {
    let mut options = TargetOptions::new(ids());
    options.durable = false;
    options
}

/// Gives a path to the account.
pub fn own(path: &Path) {
    std::os::unix::fs::lchown(path, Some(UID), Some(UID)).expect("lchown");
}

/// Gives a whole tree to the account.
pub fn own_all(root: &Path) {
    run(Command::new("chown").args(["-RhP", &format!("{UID}:{UID}")]).arg(root));
}

/// Writes a file of the account.
pub fn write(path: &Path, content: impl AsRef<[u8]>) {
    std::fs::write(path, content).expect("write");
    own(path);
}

/// Makes a directory of the account.
pub fn mkdir(path: &Path) {
    std::fs::create_dir_all(path).expect("mkdir");
    own(path);
}

/// Runs a program that must be there and succeed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!(
            "{:?} cannot be started ({error}); install its Debian package",
            command.get_program()
        )
    });
    assert!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What rsync would change; empty if nothing.
pub fn rsync_differences(source: &Path, target: &Path) -> String {
    let slash = |path: &Path| {
        let mut path = OsString::from(path);
        path.push("/");
        path
    };
    run(Command::new("rsync")
        .args([
            "-aHAXSn",
            "--numeric-ids",
            "--delete",
            "--itemize-changes",
            "--modify-window=-1",
            "--checksum",
        ])
        .arg("--no-specials")
        .arg(slash(source))
        .arg(slash(target)))
    .lines()
    .filter(|line| !line.starts_with("skipping non-regular"))
    .map(|line| format!("{line}\n"))
    .collect()
}

/// All that two trees must agree on about one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    content: Vec<u8>,
    attributes: BTreeMap<OsString, Vec<u8>>,
    /// The first path of the same inode.
    first_name: PathBuf,
}

/// All of a tree, sockets left out.
pub fn inventory(root: &Path) -> BTreeMap<PathBuf, Known> {
    let mut all = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    visit(root, Path::new(""), &mut all, &mut inodes);
    all
}

fn visit(
    root: &Path,
    path: &Path,
    all: &mut BTreeMap<PathBuf, Known>,
    inodes: &mut BTreeMap<u64, PathBuf>,
) {
    let full = root.join(path);
    let meta = full.symlink_metadata().expect("metadata");
    let kind = meta.file_type();
    if kind.is_socket() {
        return;
    }
    let (name, content) = if kind.is_dir() {
        ("directory", Vec::new())
    } else if kind.is_symlink() {
        let target = std::fs::read_link(&full).expect("readlink");
        ("symlink", target.as_os_str().as_bytes().to_vec())
    } else if kind.is_fifo() {
        ("fifo", Vec::new())
    } else if kind.is_file() {
        ("file", std::fs::read(&full).expect("read"))
    } else {
        ("device", meta.rdev().to_le_bytes().to_vec())
    };
    let attributes = if kind.is_symlink() {
        BTreeMap::new()
    } else {
        let names = xattr::list(&full).expect("xattr list");
        names
            .map(|n| (n.clone(), xattr::get(&full, &n).expect("xattr").unwrap_or_default()))
            .collect()
    };
    let first_name = if kind.is_dir() {
        path.to_owned()
    } else {
        inodes.entry(meta.ino()).or_insert_with(|| path.to_owned()).clone()
    };
    let mode = if kind.is_symlink() { 0 } else { meta.permissions().mode() & 0o7777 };
    let known = Known {
        kind: name,
        mode,
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        content,
        attributes,
        first_name,
    };
    all.insert(path.to_owned(), known);
    if kind.is_dir() {
        let mut names: Vec<_> = std::fs::read_dir(&full)
            .expect("readdir")
            .map(|e| e.expect("entry").file_name())
            .collect();
        names.sort();
        for name in names {
            visit(root, &path.join(name), all, inodes);
        }
    }
}

/// Whose changes a journal notes in these tests: others' alone, where the kernel tells whose they are.
pub fn whose(backend: Backend) -> Whose {
    if backend == Backend::Inotify { Whose::Everybodys } else { Whose::Others }
}

/// Makes a file system of 400 MiB by `make` and mounts it at `root`, which is the account's.
pub fn mount_new(make: &str, options: &str, root: &Path) {
    let image = root.with_extension("image");
    run(Command::new("truncate").args(["-s", "400M"]).arg(&image));
    run(Command::new(make).arg("-q").arg(&image));
    run(Command::new("mount").args(["-o", options]).arg(&image).arg(root));
    own(root);
}

/// Runs `test` in a mount namespace of its own, where mounts may be made freely.
pub fn in_own_mounts(test: impl AsyncFnOnce() + Send + 'static) {
    use nix::mount::{MsFlags, mount};
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("unshare (run as root)");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test());
    });
    thread.join().expect("the test in its own mounts");
}
