//! Contents on their way in: each into a new file under a temporary name, in the order in which they were
//! wanted, and into place when complete. It must not know how it was decided that they are wanted.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::rc::Rc;

use ferry_proto::Fault;
use rustix::io::Errno;

use crate::apply::{Applier, DirState};
use crate::codec::Malformed;
use crate::guard::{self, Wanted};
use crate::halt::protocol_fault;
use crate::make::{self, Fresh};
use crate::metadata::{Handle, Stat};
use crate::mirror::Here;
use crate::protocol::{Ending, Frame, Place};
use crate::report::NoteKind;

/// A file whose content is to come.
#[derive(Debug)]
pub struct Awaited {
    /// Which entry.
    pub place: Place,
    /// Its directory.
    pub dir: Rc<DirState>,
    /// Its name there.
    pub name: Vec<u8>,
    /// Its metadata.
    pub wanted: Wanted,
    /// The group of its other names.
    pub group: Option<u64>,
}

/// A file whose content is coming.
#[derive(Debug)]
struct Current {
    awaited: Awaited,
    /// None if it was refused: the rest of it is passed over.
    fresh: Option<Fresh>,
    size: u64,
    at: u64,
    /// How long the file is without the hole at its end.
    written: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Incoming {
    awaited: VecDeque<Awaited>,
    current: Option<Current>,
}

impl Incoming {
    /// A content was wanted.
    pub fn expect(&mut self, awaited: Awaited) {
        self.awaited.push_back(awaited);
    }

    fn next(&mut self, place: Place) -> Result<Awaited, Fault> {
        let next = self.awaited.pop_front().filter(|next| next.place == place);
        next.filter(|_| self.current.is_none()).ok_or_else(out_of_turn)
    }
}

fn out_of_turn() -> Fault {
    protocol_fault(&Malformed("a content out of turn"))
}

impl Applier {
    /// A frame of a content.
    pub(crate) fn receive(&mut self, frame: Frame<'_>) -> Result<(), Fault> {
        match frame {
            Frame::File(place, size) => {
                let awaited = self.incoming.next(place)?;
                let fresh = self.begin(&awaited)?;
                self.incoming.current = Some(Current { awaited, fresh, size, at: 0, written: 0 });
                Ok(())
            }
            Frame::Data(bytes) => self.data(bytes),
            Frame::Hole(length) => {
                let current = self.incoming.current.as_mut().ok_or_else(out_of_turn)?;
                current.at = advance(current, length)?;
                Ok(())
            }
            Frame::FileEnd(ending) => {
                let current = self.incoming.current.take().ok_or_else(out_of_turn)?;
                self.end(current, ending)
            }
            Frame::Skip(place, ending) => {
                let awaited = self.incoming.next(place)?;
                self.came_not(&awaited, ending);
                self.came(&awaited, None)
            }
            _ => Err(out_of_turn()),
        }
    }

    fn begin(&mut self, awaited: &Awaited) -> Result<Option<Fresh>, Fault> {
        match self.tree.open(&awaited.dir.node).and_then(|dir| make::file(dir.as_fd())) {
            Ok(fresh) => Ok(Some(fresh)),
            Err(errno) => {
                self.trouble(&awaited.dir.node.path_of(&awaited.name), "created", errno)?;
                Ok(None)
            }
        }
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let current = self.incoming.current.as_mut().ok_or_else(out_of_turn)?;
        let end = advance(current, bytes.len() as u64)?;
        self.counters.bytes_done(bytes.len() as u64);
        self.report.bytes_sent += bytes.len() as u64;
        let at = std::mem::replace(&mut current.at, end);
        current.written = end;
        let Some(fresh) = &current.fresh else {
            return Ok(());
        };
        let written = write_all(fresh, bytes, at);
        let Err(errno) = written else { return Ok(()) };
        let path = current.awaited.dir.node.path_of(&current.awaited.name);
        if let Some(fresh) = current.fresh.take() {
            let dir = std::rc::Rc::clone(&current.awaited.dir);
            self.discard(&dir, &fresh);
        }
        self.trouble(&path, "written", errno)
    }

    fn discard(&self, dir: &DirState, fresh: &Fresh) {
        if let Ok(fd) = self.tree.open(&dir.node) {
            make::discard(fd.as_fd(), &fresh.name);
        }
    }

    fn end(&mut self, current: Current, ending: Ending) -> Result<(), Fault> {
        let Current { mut awaited, fresh, size, at, written } = current;
        if ending == Ending::Settled && at != size {
            return Err(protocol_fault(&Malformed("a content of another length than announced")));
        }
        let path = awaited.dir.node.path_of(&awaited.name);
        let Some(fresh) = fresh else {
            return self.came(&awaited, None);
        };
        match ending {
            Ending::Settled => {}
            Ending::Changed => {
                // The next pass must not take it for equal, whatever time the source's file has.
                awaited.wanted.mtime = awaited.wanted.mtime.disturbed();
                self.note(NoteKind::Changed, &path, "it changed while it was read");
                self.report.changed_while_read += 1;
            }
            Ending::Vanished | Ending::Unreadable(_) => {
                self.discard(&awaited.dir, &fresh);
                self.came_not(&awaited, ending);
                return self.came(&awaited, None);
            }
        }
        let truncated = if at > written { rustix::fs::ftruncate(&fresh.fd, at) } else { Ok(()) };
        let dressed = truncated
            .and_then(|()| make::dress(Handle::Open(fresh.fd.as_fd()), &awaited.wanted))
            .and_then(|_| Stat::of_fd(&fresh.fd))
            .and_then(|stat| Ok((stat, self.tree.open(&awaited.dir.node)?)));
        let identity = match dressed {
            Ok((stat, fd)) => {
                let here = Here { node: &awaited.dir.node, fd: &fd };
                self.put(here, &fresh.name, &awaited.name)?.then(|| stat.identity())
            }
            Err(errno) => {
                self.discard(&awaited.dir, &fresh);
                self.trouble(&path, "given its metadata", errno)?;
                None
            }
        };
        if identity.is_some() {
            self.report.files_sent += 1;
        }
        self.came(&awaited, identity)
    }

    /// Writes down why a content did not come.
    fn came_not(&mut self, awaited: &Awaited, ending: Ending) {
        let path = awaited.dir.node.path_of(&awaited.name);
        match ending {
            Ending::Unreadable(errno) => {
                let why = guard::errno_text(errno);
                self.refuse(&path, format!("it cannot be read at the source: {why}"));
            }
            Ending::Vanished => {
                self.note(NoteKind::Vanished, &path, "it was gone when it was to be read");
                self.report.changed_while_read += 1;
            }
            Ending::Changed | Ending::Settled => {
                self.note(NoteKind::Changed, &path, "another file took its place");
                self.report.changed_while_read += 1;
            }
        }
    }

    /// A content came, or will not.
    fn came(
        &mut self,
        awaited: &Awaited,
        identity: Option<crate::metadata::Identity>,
    ) -> Result<(), Fault> {
        self.counters.file_done();
        let dir = &awaited.dir;
        self.first_done(awaited.group, &dir.node, &awaited.name, identity)?;
        self.one_done(dir)
    }
}

fn advance(current: &Current, length: u64) -> Result<u64, Fault> {
    let end = current.at.checked_add(length).filter(|end| *end <= current.size);
    end.ok_or_else(|| protocol_fault(&Malformed("a content longer than announced")))
}

fn write_all(fresh: &Fresh, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&fresh.fd, bytes, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(length) => {
                bytes = &bytes[length..];
                at += length as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
