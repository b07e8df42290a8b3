//! Looking for those that write takes as long as they make it: the account does not wait for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_proto::{Fault, FaultClass};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use super::fencing::{Running, armed, ends_after, fenced};
use super::host::{Server, World, account, alone};
use crate::ledger::Standing;
use crate::work::{commit, fence, unfence};

/// In which everything must have come that does not wait for the look.
const SOON: Duration = Duration::from_secs(30);

/// A process that nobody can finish looking at, until this is dropped: its memory's list does not open. Only
/// among the mounts of this test.
struct Endless {
    pipe: PathBuf,
    list: PathBuf,
    _process: Running,
}

impl Endless {
    fn new(world: &World) -> Self {
        let pipe = world.place("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        let process = Running::of_another();
        let list = PathBuf::from(format!("/proc/{0}/task/{0}/maps", process.pid()));
        mount(Some(&pipe), &list, None::<&Path>, MsFlags::MS_BIND, None::<&Path>).unwrap();
        Self { pipe, list, _process: process }
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        let _ = umount2(&self.list, MntFlags::MNT_DETACH);
        // Whoever waits for it to open finds it empty.
        let _ = fs::OpenOptions::new().read(true).write(true).open(&self.pipe);
    }
}

async fn is_taken_back(server: &Server) {
    let name = account();
    let back = unfence::at_deadline(&server.agent, &name);
    tokio::time::timeout(SOON, back).await.expect("the account waits for the look").unwrap();
    assert!(matches!(server.standing(), Standing::Armed { .. }));
}

fn refused<T>(answer: Result<Result<T, Fault>, tokio::time::error::Elapsed>) {
    let fault = answer.expect("the deadline waits for the look").err().expect("refused");
    assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
}

#[test]
fn a_fence_whose_look_does_not_end_gives_the_account_back_at_its_deadline() {
    alone(async |world| {
        let (server, job) = armed(&world).await;
        let _endless = Endless::new(&world);
        refused(tokio::time::timeout(SOON, fence::fence(&job, 2, 0)).await);
        is_taken_back(&server).await;
    });
}

#[test]
fn a_commit_whose_look_does_not_end_is_none_and_the_account_is_given_back() {
    alone(async |world| {
        let (server, job) = fenced(&world).await;
        let _endless = Endless::new(&world);
        ends_after(&server, Duration::from_secs(2)).await;
        refused(tokio::time::timeout(SOON, commit::commit(&job)).await);
        is_taken_back(&server).await;
    });
}
