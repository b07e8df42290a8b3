//! Which threads share one table of open files. Those of a process do, as a rule: a thousand of them with
//! a hundred thousand files are one table to look at, not a thousand.

use nix::libc::{SYS_kcmp, c_int, c_ulong, pid_t, syscall};

use super::table::thread_started;

/// Of kcmp(2): compares the tables of open files.
const KCMP_FILES: c_int = 2;

/// A table of open files, known by a thread that has it.
#[derive(Debug)]
pub(super) struct FileTable {
    thread: u32,
    /// The thread's number may pass to another one, which has another table.
    started: u64,
}

impl FileTable {
    /// The one of a process's `thread`; none if it is gone.
    pub(super) fn of(pid: u32, thread: u32) -> Option<Self> {
        Some(Self { thread, started: thread_started(pid, thread)? })
    }

    /// Whether another thread of the same process has this very table. Where the kernel does not tell, it
    /// has not.
    pub(super) fn is_of(&self, pid: u32, thread: u32) -> bool {
        share_files(self.thread, thread) && thread_started(pid, self.thread) == Some(self.started)
    }
}

fn share_files(one: u32, other: u32) -> bool {
    let (Ok(one), Ok(other)) = (pid_t::try_from(one), pid_t::try_from(other)) else { return false };
    let unused: c_ulong = 0;
    #[allow(unsafe_code)]
    // SAFETY: kcmp takes five numbers and neither reads nor writes memory of ours.
    let compared = unsafe { syscall(SYS_kcmp, one, other, KCMP_FILES, unused, unused) };
    compared == 0
}
