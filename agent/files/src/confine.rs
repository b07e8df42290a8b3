//! Confinement: a tree is opened once, and everything in it is reached through the descriptor of the
//! directory that holds it, one name at a time, never through a path. No symlink is followed, no
//! mount is crossed. It must not know what the tree is walked for.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ferry_proto::Fault;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

use crate::metadata::{Identity, Stat};
use crate::projects;

/// How many directories stay open beside those in use. Descriptors are bounded by it, however deep
/// or wide the tree is.
const RECENT: usize = 48;

/// Directories deeper than this are not walked: reopening one takes a step per level.
pub const MAX_DEPTH: u32 = 4096;

/// Whether a directory that was met cannot be opened because its name has gone, or is something else by now.
pub fn has_vanished(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE)
}

/// How often a resolution that was disturbed by a rename is tried again.
const RETRIES: u32 = 8;

const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A tree below one root.
#[derive(Debug)]
pub struct Tree {
    root: Arc<OwnedFd>,
    recent: Mutex<VecDeque<Arc<OwnedFd>>>,
    uses_projects: bool,
    holds_projects: bool,
}

/// A directory of a tree: where it is, and which inode it was when first opened.
#[derive(Debug)]
pub struct Node {
    parent: Option<Arc<Node>>,
    name: Box<[u8]>,
    depth: u32,
    open: Mutex<Opened>,
}

#[derive(Debug, Default)]
struct Opened {
    identity: Option<Identity>,
    fd: Weak<OwnedFd>,
}

impl Node {
    /// The root of a tree.
    pub fn root() -> Arc<Self> {
        Arc::new(Self { parent: None, name: Box::default(), depth: 0, open: Mutex::default() })
    }

    /// The directory `name` in this one.
    pub fn child(self: &Arc<Self>, name: &[u8]) -> Arc<Self> {
        Arc::new(Self {
            parent: Some(Arc::clone(self)),
            name: name.into(),
            depth: self.depth.saturating_add(1),
            open: Mutex::default(),
        })
    }

    /// Its parent and its name there; none for the root.
    pub fn place(&self) -> Option<(&Arc<Self>, &[u8])> {
        self.parent.as_ref().map(|parent| (parent, &*self.name))
    }

    /// Levels below the root.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// The path below the root; empty for the root.
    pub fn path(&self) -> Vec<u8> {
        let mut names = Vec::new();
        let mut node = Some(self);
        while let Some(at) = node {
            if at.parent.is_some() {
                names.push(&*at.name);
            }
            node = at.parent.as_deref();
        }
        names.reverse();
        names.join(&b'/')
    }

    /// The path of `name` in this directory.
    pub fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut path = self.path();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    fn opened(&self) -> std::sync::MutexGuard<'_, Opened> {
        // The value is replaced as a whole, so a panic elsewhere cannot have left it half done.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Node {
    /// A chain of a thousand parents must not be dropped by recursion.
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(node) = next {
            match Arc::try_unwrap(node) {
                Ok(mut alone) => next = alone.parent.take(),
                Err(_) => break,
            }
        }
    }
}

impl Tree {
    /// Opens the tree at the absolute path `root`.
    ///
    /// # Errors
    /// It is not there, not a directory, or its path has a symlink in it.
    pub fn open_root(root: &Path) -> std::result::Result<Self, Fault> {
        let shown = root.display();
        let relative = root.strip_prefix("/").map_err(|_| {
            Fault::permanent(format!("the root {shown} of the tree is not an absolute path"))
        })?;
        let relative = match relative.as_os_str().as_bytes() {
            b"" => b".".as_slice(),
            path => path,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened = rustix::fs::open("/", flags, Mode::empty()).and_then(|top| {
            retried(|| rustix::fs::openat2(&top, relative, flags, Mode::empty(), resolve))
        });
        match opened {
            Ok(fd) => {
                let uses_projects = projects::are_used(fd.as_fd());
                let holds_projects = uses_projects || projects::are_held(fd.as_fd());
                let (root, recent) = (Arc::new(fd), Mutex::default());
                Ok(Self { root, recent, uses_projects, holds_projects })
            }
            Err(errno) => Err(root_fault(&shown.to_string(), errno)),
        }
    }

    /// The root's descriptor.
    pub fn root_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Whether what is in it belongs to projects.
    pub fn uses_projects(&self) -> bool {
        self.uses_projects
    }

    /// Whether what is in it can be given to projects.
    pub fn holds_projects(&self) -> bool {
        self.holds_projects
    }

    /// The descriptor of a directory. Opened again if it was closed meanwhile; then it must be
    /// the same inode as before.
    ///
    /// # Errors
    /// `ESTALE` if another directory stands in its place, and what opening gives.
    pub fn open(&self, node: &Node) -> Result<Arc<OwnedFd>> {
        let mut closed = Vec::new();
        let mut at = node;
        let mut fd = loop {
            let Some(parent) = at.parent.as_deref() else {
                break Arc::clone(&self.root);
            };
            if let Some(fd) = at.opened().fd.upgrade() {
                break fd;
            }
            closed.push(at);
            at = parent;
        };
        for step in closed.into_iter().rev() {
            fd = self.open_step(&fd, step)?;
        }
        Ok(fd)
    }

    fn open_step(&self, parent: &OwnedFd, step: &Node) -> Result<Arc<OwnedFd>> {
        let fd = open_directory(parent, &step.name)?;
        let identity = Stat::of_fd(&fd)?.identity();
        let fd = Arc::new(fd);
        let mut opened = step.opened();
        match opened.identity {
            Some(before) if before != identity => return Err(Errno::STALE),
            _ => opened.identity = Some(identity),
        }
        opened.fd = Arc::downgrade(&fd);
        drop(opened);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(Arc::clone(&fd));
        Ok(fd)
    }
}

fn root_fault(shown: &str, errno: Errno) -> Fault {
    let fault = match errno {
        Errno::NOENT => Fault::precondition(format!("the root {shown} of the tree is not there"))
            .remedy("check that the account's home exists and that its file system is mounted"),
        Errno::LOOP | Errno::NOTDIR => Fault::precondition(format!(
            "the root {shown} of the tree is not a directory reached without symlinks"
        ))
        .remedy("name the real path (readlink -f) as the account's home"),
        Errno::NOSYS => Fault::precondition("the kernel cannot confine file access (openat2)")
            .remedy("run the agent on Linux 5.10 or later"),
        _ => Fault::io(format!("the root {shown} of the tree cannot be opened"), &errno.into()),
    };
    if fault.causes.is_empty() { fault.caused_by(&std::io::Error::from(errno)) } else { fault }
}

/// Opens the directory `name` for reading.
pub fn open_directory(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    open_quietly(dir.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)
}

/// Opens the file `name` for reading. The caller checks what it is: a FIFO does not block, a
/// terminal is not taken over.
pub fn open_file(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    open_quietly(dir.as_fd(), name, flags)
}

/// Opens the file `name` for reading and writing. The caller checks what it is.
pub fn open_to_write(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = flags | OFlags::CLOEXEC;
    retried(|| rustix::fs::openat2(dir.as_fd(), name, flags, Mode::empty(), INSIDE))
}

/// A descriptor that names `name`, whatever it is, without opening it.
pub fn open_handle(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    retried(|| rustix::fs::openat2(dir.as_fd(), name, flags, Mode::empty(), INSIDE))
}

/// Creates the file `name`, which must not exist, with this mode as far as the umask lets it, for reading and
/// writing by us.
pub fn create_file(dir: impl AsFd, name: &[u8], mode: Mode) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    retried(|| rustix::fs::openat2(dir.as_fd(), name, flags, mode, INSIDE))
}

/// Opens without leaving a trace in the access time where we may.
fn open_quietly(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let open = |flags| retried(|| rustix::fs::openat2(dir, name, flags, Mode::empty(), INSIDE));
    match open(flags | OFlags::CLOEXEC | OFlags::NOATIME) {
        Err(Errno::PERM) => open(flags | OFlags::CLOEXEC),
        other => other,
    }
}

/// `openat2` answers EAGAIN when a rename elsewhere disturbed it.
fn retried<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    let mut left = RETRIES;
    loop {
        match call() {
            Err(Errno::AGAIN | Errno::INTR) if left > 0 => left -= 1,
            other => return other,
        }
    }
}
