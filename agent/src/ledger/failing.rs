//! A disk for tests, as the kernel shows one: what was written is read back at once, but only a sync
//! that succeeds makes it durable; a failed one forgets what it was to write, and says so once.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::Ledger;
use super::file::{Disk, LogFile};

/// Numbers of errors.
pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;
pub const EROFS: i32 = 30;

#[derive(Debug)]
struct Failing(Arc<Mutex<Kernel>>);

/// What the kernel has in memory and what the disk has.
#[derive(Debug, Default)]
pub struct Kernel {
    memory: Vec<u8>,
    durable: Vec<u8>,
    unwritten: Vec<(u64, Vec<u8>)>,
    /// What the next syncs answer; then all is well.
    pub syncs: VecDeque<Result<(), i32>>,
    /// What the next writes answer; then all is well.
    pub writes: VecDeque<Result<(), i32>>,
    /// What every write answers, if it is not none.
    pub broken: Option<i32>,
    /// The same once what is planned has been answered.
    pub broken_after_planned: Option<i32>,
}

impl Disk for Failing {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().unwrap().memory.clone())
    }

    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut kernel = self.0.lock().unwrap();
        let planned = kernel.writes.pop_front();
        let then = kernel.broken_after_planned.map_or(Ok(()), Err);
        if let Some(code) = planned.unwrap_or(then).err().or(kernel.broken) {
            return Err(io::Error::from_raw_os_error(code));
        }
        put(&mut kernel.memory, at, bytes);
        kernel.unwritten.push((at, bytes.to_vec()));
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let mut kernel = self.0.lock().unwrap();
        kernel.memory.resize(usize::try_from(len).unwrap(), 0);
        kernel.durable.truncate(usize::try_from(len).unwrap());
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut kernel = self.0.lock().unwrap();
        let unwritten = std::mem::take(&mut kernel.unwritten);
        if let Some(Err(code)) = kernel.syncs.pop_front() {
            return Err(io::Error::from_raw_os_error(code));
        }
        for (at, bytes) in unwritten {
            put(&mut kernel.durable, at, &bytes);
        }
        Ok(())
    }

    fn reserve(&mut self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

fn put(bytes: &mut Vec<u8>, at: u64, new: &[u8]) {
    let at = usize::try_from(at).unwrap();
    let end = at + new.len();
    bytes.resize(bytes.len().max(end), 0);
    bytes[at..end].copy_from_slice(new);
}

fn on(kernel: Arc<Mutex<Kernel>>) -> Ledger {
    let (log, documents) = LogFile::on(Box::new(Failing(kernel)), Path::new("ledger")).unwrap();
    Ledger::of(log, &documents).unwrap()
}

/// An empty ledger on such a disk.
pub fn on_failing() -> (Ledger, Arc<Mutex<Kernel>>) {
    let kernel = Arc::new(Mutex::new(Kernel::default()));
    (on(kernel.clone()), kernel)
}

/// The ledger after the power went and came back.
pub fn after_power_cut(kernel: &Mutex<Kernel>) -> Ledger {
    let durable = kernel.lock().unwrap().durable.clone();
    let restarted = Kernel { memory: durable.clone(), durable, ..Kernel::default() };
    on(Arc::new(Mutex::new(restarted)))
}
