//! Watching trees by the best that the kernel offers for their file system. It must not know how events come.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferry_proto::Fault;

use super::changes::Changes;
use super::fanotify::{FileSystem, Part};
use super::handed::Handed;
use super::inotify;

/// What the kernel can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// fanotify with both names of a rename and the handle of what was renamed: Linux 5.17.
    Renames,
    /// fanotify with names alone: Linux 5.9.
    Names,
    /// inotify: a watch on each directory. Where the file system has no handles, or fanotify is not allowed.
    Inotify,
}

/// The best first.
const ALL: [Backend; 3] = [Backend::Renames, Backend::Names, Backend::Inotify];

impl Backend {
    /// For people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Renames => "fanotify, renames",
            Self::Names => "fanotify, names",
            Self::Inotify => "inotify",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|backend| backend.name() == name)
    }

    /// Whether what it tells may be relied on where nothing else proves it. inotify tells names alone: of a file that
    /// was changed and has gone, it cannot be known which other names it has.
    pub fn is_complete(self) -> bool {
        self != Self::Inotify
    }
}

/// Whose changes are noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whose {
    /// Everybody's.
    Everybodys,
    /// Everybody's but this process's own.
    Others,
}

/// A watched file system.
#[derive(Debug)]
pub struct Watch(Kind);

#[derive(Debug)]
enum Kind {
    FileSystem(Arc<FileSystem>),
    /// Each tree has a queue of its own.
    Trees,
}

impl Watch {
    /// Watches the file system that `root` is on, from now on; `best` is the most that is asked of the kernel.
    ///
    /// # Errors
    /// The kernel or the file system cannot do it.
    pub fn start(root: OwnedFd, best: Backend, whose: Whose) -> Result<Self, Fault> {
        let mut refused = None;
        for backend in ALL.into_iter().skip_while(|backend| *backend != best) {
            match Self::start_one(&root, backend, whose) {
                Ok(watch) => return Ok(watch),
                Err(fault) => refused = refused.or(Some(fault)),
            }
        }
        let refused = refused.unwrap_or_else(|| Fault::bug("there is no such backend"));
        Err(refused.remedy("nothing need be done: every pass looks at the whole tree instead"))
    }

    fn start_one(root: &OwnedFd, backend: Backend, whose: Whose) -> Result<Self, Fault> {
        if backend == Backend::Inotify {
            inotify::can_watch(root.as_fd(), whose)?;
            return Ok(Self(Kind::Trees));
        }
        let root = root.try_clone().map_err(|e| Fault::io("a root cannot be held open", &e))?;
        Ok(Self(Kind::FileSystem(Arc::new(FileSystem::start(root, backend, whose)?))))
    }

    /// Goes on with these trees, of which this was noted, where another process has handed over. The directories at
    /// their roots must be the same.
    ///
    /// # Errors
    /// What has happened in between is not known.
    pub fn take_over(
        root: OwnedFd,
        handed: Handed,
        whose: Whose,
        trees: Vec<(PathBuf, Changes)>,
    ) -> Result<(Arc<Self>, Vec<Watched>), Fault> {
        let (watched, parts) = FileSystem::take_over(root, handed, whose, trees)?;
        let watch = Arc::new(Self(Kind::FileSystem(watched)));
        let watched = |part| Watched { of: Of::Part(part), watch: Arc::clone(&watch) };
        let parts = parts.into_iter().map(watched).collect();
        Ok((watch, parts))
    }

    /// What happens from now on, for another process. What is noted until now is taken from the trees afterwards.
    ///
    /// # Errors
    /// It cannot be handed over.
    pub fn hand_over(&self) -> Result<Handed, Fault> {
        match &self.0 {
            Kind::FileSystem(watched) => watched.hand_over(),
            Kind::Trees => Err(Fault::precondition("what inotify watches is not handed over")),
        }
    }

    /// What the kernel tells.
    pub fn backend(&self) -> Backend {
        match &self.0 {
            Kind::FileSystem(watched) => watched.backend(),
            Kind::Trees => Backend::Inotify,
        }
    }

    /// Notes changes of the tree at `root`, which is on this file system, from now on until it is dropped.
    ///
    /// # Errors
    /// It cannot be watched: it has too many directories.
    pub fn tree(self: &Arc<Self>, root: &Path) -> Result<Watched, Fault> {
        let of = match &self.0 {
            Kind::FileSystem(watched) => Of::Part(watched.tree(root)),
            Kind::Trees => Of::Alone(inotify::Watching::start(root)?),
        };
        Ok(Watched { of, watch: Arc::clone(self) })
    }
}

/// A tree that is watched.
#[derive(Debug)]
pub struct Watched {
    of: Of,
    watch: Arc<Watch>,
}

#[derive(Debug)]
enum Of {
    /// A part of what is watched.
    Part(Part),
    /// It is watched by itself.
    Alone(inotify::Watching),
}

impl Watched {
    /// What the kernel tells.
    pub fn backend(&self) -> Backend {
        self.watch.backend()
    }

    /// Whether it is watched by this.
    pub fn is_of(&self, watch: &Arc<Watch>) -> bool {
        Arc::ptr_eq(&self.watch, watch)
    }

    /// What has changed in it since the last time: all that was done before this call is in it.
    pub fn take(&self) -> Changes {
        match &self.of {
            Of::Part(part) => part.take(),
            Of::Alone(watching) => watching.take(),
        }
    }

    /// Watches anew what was given up because it got too much, for a pass that looks at everything. It takes time.
    pub fn renew(&self) {
        if let Of::Alone(watching) = &self.of {
            watching.renew();
        }
    }

    /// Looks at what there is to take, and leaves it there. Nothing is noted meanwhile: it has to be short.
    pub fn look<R>(&self, at: impl FnOnce(&Changes) -> R) -> R {
        match &self.of {
            Of::Part(part) => part.look(at),
            Of::Alone(watching) => watching.look(at),
        }
    }

    /// What was taken was not dealt with.
    pub fn put_back(&self, changes: Changes) {
        match &self.of {
            Of::Part(part) => part.put_back(changes),
            Of::Alone(watching) => watching.put_back(changes),
        }
    }
}
