//! Fence, commit, and taking back.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ferry_proto::FaultClass;
use ferry_proto::command::Receipt;
use ferry_traffic::control::RouteState;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::host::{Server, World, a_move_to_nowhere, account, alone};
use crate::clock::Deadline;
use crate::ledger::failing::{EIO, ENOSPC, EROFS, on_failing};
use crate::ledger::{Ledger, Standing};
use crate::testing::moved;
use crate::work::{Job, commit, fence, unfence};

/// An account armed by a move, and that move's commands.
pub async fn armed(world: &World) -> (Server, Job) {
    let server = world.server("web1").await;
    let of = a_move_to_nowhere();
    server.stands(Standing::Armed { of: of.clone() }).await;
    let job = world.job(&server, &of);
    (server, job)
}

pub async fn fenced(world: &World) -> (Server, Job) {
    let (server, job) = armed(world).await;
    fence::fence(&job, 600, 0).await.unwrap();
    (server, job)
}

/// The fence's deadline passes.
async fn deadline_passes(server: &Server) {
    ends_after(server, Duration::ZERO).await;
}

/// The fence ends so soon.
pub async fn ends_after(server: &Server, left: Duration) {
    let mut account = server.agent.account(&account()).unwrap();
    let Standing::Fenced { deadline, .. } = &mut account.standing else { panic!("not fenced") };
    *deadline = Deadline::after(left).unwrap();
    server.agent.set_account(&account.definition.name.clone(), Some(account)).await.unwrap();
}

/// A commit that the disk may hold, though nobody can tell: neither yes nor no.
#[test]
fn an_account_that_may_be_committed_is_not_taken_back() {
    alone(async |world| {
        let (ledger, disk) = on_failing();
        let server = world.server_on("web1", ledger);
        let of = a_move_to_nowhere();
        server.stands(Standing::Armed { of: of.clone() }).await;
        let job = world.job(&server, &of);
        fence::fence(&job, 600, 0).await.unwrap();
        deadline_passes(&server).await;
        // Written in time; nobody knows what came of it until now.
        disk.lock().unwrap().syncs = [Err(EIO), Err(EIO)].into();
        let mut away = server.agent.account(&account()).unwrap();
        away.standing = moved(&of);
        job.set(away).await.unwrap_err();
        disk.lock().unwrap().broken = Some(EIO);
        unfence::at_deadline(&server.agent, &account()).await.unwrap_err();
        assert!(matches!(server.route().await, RouteState::Hold { .. }));
        // It would be refused for its deadline, were it not made already, perhaps.
        let fault = commit::commit(&job).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Transient, "{fault}");
        // The disk recovers: what it holds is what counts.
        disk.lock().unwrap().broken = None;
        unfence::at_deadline(&server.agent, &account()).await.unwrap_err();
        assert!(matches!(server.standing(), Standing::Moved { .. }));
        assert!(matches!(server.route().await, RouteState::Hold { .. }));
        committed(commit::commit(&job).await.unwrap());
    });
}

/// Whatever would keep it from being committed now: it may be committed already.
#[test]
fn a_commit_in_doubt_is_never_called_surely_none_and_found_once_the_disk_is_read() {
    alone(async |world| {
        let (ledger, disk) = on_failing();
        let server = world.server_on("web1", ledger);
        let of = a_move_to_nowhere();
        server.stands(Standing::Armed { of: of.clone() }).await;
        let job = world.job(&server, &of);
        fence::fence(&job, 600, 0).await.unwrap();
        disk.lock().unwrap().syncs = [Err(EIO), Err(EIO)].into();
        commit::commit(&job).await.unwrap_err();
        let _back = Running::of_account(&world);
        disk.lock().unwrap().broken = Some(EIO);
        let fault = commit::commit(&job).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Transient, "{fault}");
        disk.lock().unwrap().broken = None;
        committed(commit::commit(&job).await.unwrap());
    });
}

/// A process that says when it has begun, and is gone when dropped.
pub struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut begun = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut begun).unwrap();
        assert_eq!(begun, "begun\n");
        Self(child)
    }

    /// Of the account, and deaf to SIGTERM.
    pub fn of_account(world: &World) -> Self {
        // `read` waits until the test ends and closes its end.
        let script = "trap '' TERM; echo begun; read never";
        Self::start(Command::new("/bin/sh").args(["-c", script]).uid(world.uid).gid(world.uid))
    }

    /// Of another user, which does nothing.
    pub fn of_another() -> Self {
        Self::start(Command::new("/bin/sh").args(["-c", "echo begun; read never"]))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn committed(receipt: Receipt) -> ferry_proto::command::CommitRecord {
    match receipt {
        Receipt::Committed(record) => record,
        other => panic!("not committed: {other:?}"),
    }
}

#[test]
fn a_commit_repeated_gives_the_same_record() {
    alone(async |world| {
        let (server, job) = fenced(&world).await;
        assert!(matches!(server.route().await, RouteState::Hold { .. }));
        let first = committed(commit::commit(&job).await.unwrap());
        assert_eq!(first.epoch, job.of.epoch.next());
        let again = world.job(&server, &job.of);
        assert_eq!(committed(commit::commit(&again).await.unwrap()), first);
    });
}

#[test]
fn a_commit_after_the_deadline_is_refused() {
    alone(async |world| {
        let (server, job) = fenced(&world).await;
        deadline_passes(&server).await;
        let fault = commit::commit(&job).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        unfence::at_deadline(&server.agent, &account()).await.unwrap();
        assert!(matches!(server.standing(), Standing::Armed { .. }));
        assert_eq!(server.route().await, RouteState::Local);
        let fault = commit::commit(&job).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
    });
}

#[test]
fn a_commit_of_an_account_that_does_not_move_is_surely_none() {
    alone(async |world| {
        let server = world.server("web1").await;
        let job = world.job(&server, &a_move_to_nowhere());
        let fault = commit::commit(&job).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
    });
}

#[test]
fn a_move_that_was_taken_back_neither_commits_nor_fences_again() {
    alone(async |world| {
        let (server, job) = fenced(&world).await;
        unfence::unfence(&job).await.unwrap();
        for refused in [commit::commit(&job).await, fence::fence(&job, 600, 0).await] {
            let fault = refused.unwrap_err();
            assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        }
        assert!(matches!(server.standing(), Standing::Armed { .. }));
        assert_eq!(server.route().await, RouteState::Local);
        // So it is after a restart; another move may fence.
        let server = world.restarted_after(server, job).await;
        let of = a_move_to_nowhere();
        let mut account = server.agent.account(&account()).unwrap();
        account.standing = Standing::Armed { of: of.clone() };
        server.agent.set_account(&of.account, Some(account)).await.unwrap();
        fence::fence(&world.job(&server, &of), 600, 0).await.unwrap();
    });
}

impl World {
    /// The server after a restart, which has not forgotten that the move was taken back.
    async fn restarted_after(&self, server: Server, job: Job) -> Server {
        let of = job.of.clone();
        drop(job);
        let server = self.restarted(server);
        let fault = fence::fence(&self.job(&server, &of), 600, 0).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        server
    }
}

#[test]
fn a_committed_account_is_not_taken_back() {
    alone(async |world| {
        let (server, job) = fenced(&world).await;
        let record = committed(commit::commit(&job).await.unwrap());
        let fault = unfence::unfence(&job).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        unfence::at_deadline(&server.agent, &account()).await.unwrap();
        assert!(matches!(server.standing(), Standing::Moved { record: r, .. } if r == record));
        assert!(matches!(server.route().await, RouteState::Hold { .. }));
    });
}

#[test]
fn a_process_of_the_account_keeps_it_from_being_committed() {
    alone(async |world| {
        let (_server, job) = fenced(&world).await;
        let back = Running::of_account(&world);
        let fault = commit::commit(&job).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        let named = format!("sh (pid {}, user {})", back.0.id(), world.uid);
        assert!(fault.causes.contains(&named), "{fault}");
        drop(back);
        commit::commit(&job).await.unwrap();
    });
}

#[test]
fn a_writer_of_another_user_keeps_it_from_being_committed() {
    alone(async |world| {
        let (server, job) = fenced(&world).await;
        let file = server.home().join("upload");
        let script = "exec 3>\"$0\"; echo begun; read never";
        let writer = Running::start(Command::new("/bin/sh").args(["-c", script]).arg(&file));
        let fault = commit::commit(&job).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        let named = format!("sh (pid {}, user 0) writes {file:?}", writer.0.id());
        assert!(fault.causes.contains(&named), "{fault}");
        drop(writer);
        commit::commit(&job).await.unwrap();
    });
}

#[test]
fn mail_that_is_not_fenced_keeps_it_from_being_committed() {
    alone(async |world| {
        let (server, job) = fenced(&world).await;
        let mut changed = server.agent.account(&account()).unwrap();
        let domain =
            serde_json::json!({ "domain": "shop.example", "root": "mail", "mailboxes": [] });
        changed.definition.mail = vec![serde_json::from_value(domain).unwrap()];
        server.agent.set_account(&account(), Some(changed)).await.unwrap();
        let fault = commit::commit(&job).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        assert_eq!(fault.causes, ["its mail is local"]);
    });
}

#[test]
fn closing_has_ended_when_the_fence_gives_up_at_its_deadline() {
    alone(async |world| {
        let (server, job) = armed(&world).await;
        let mut deaf = Running::of_account(&world);
        // Closing waits for this process; the deadline passes meanwhile.
        let fault = fence::fence(&job, 1, 3000).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        assert!(deaf.has_ended(), "closing goes on though the fence has answered");
        unfence::at_deadline(&server.agent, &account()).await.unwrap();
        let shadow = fs::read_to_string(server.dir.join("etc/shadow")).unwrap();
        assert!(shadow.contains("\nshop:*:19000:0:99999:7:::\n"), "{shadow}");
    });
}

/// A disk that holds everything of a server: its ledger, its /etc, its crontabs, its redirector's routes.
struct Disk(PathBuf);

impl Disk {
    fn under(world: &World, name: &str) -> Self {
        let dir = world.place(name);
        fs::create_dir_all(&dir).unwrap();
        let size = Some("size=24m");
        mount(Some("none"), &dir, Some("tmpfs"), MsFlags::empty(), size).unwrap();
        Self(dir)
    }

    /// Until not one more byte can be written.
    fn fill(&self) {
        let mut ballast = fs::File::create(self.0.join("ballast")).unwrap();
        for chunk in [1 << 16, 1 << 12, 1] {
            while ballast.write_all(&vec![0; chunk]).is_ok() {}
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Nobody helps: no controller, no target, and no room on any disk.
#[test]
fn a_full_disk_does_not_keep_visitors_from_being_served_again_at_the_deadline() {
    alone(async |world| {
        let disk = Disk::under(&world, "web1");
        let ledger = Ledger::open(&world.place("web1").join("ledger")).unwrap();
        let server = world.server_on("web1", ledger);
        let of = a_move_to_nowhere();
        server.stands(Standing::Armed { of: of.clone() }).await;
        let crontab = server.dir.join("var/spool/cron/crontabs/shop");
        fs::write(&crontab, "* * * * * true\n").unwrap();
        let job = world.job(&server, &of);
        fence::fence(&job, 600, 0).await.unwrap();
        deadline_passes(&server).await;
        disk.fill();
        // What is not open for want of room is tried again.
        let _ = unfence::at_deadline(&server.agent, &account()).await;
        assert_eq!(server.route().await, RouteState::Local);
        assert_eq!(fs::read_to_string(&crontab).unwrap(), "* * * * * true\n");
        let fault = commit::commit(&job).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        disk.make_room();
        unfence::at_deadline(&server.agent, &account()).await.unwrap();
        assert!(matches!(server.standing(), Standing::Armed { .. }));
        let shadow = fs::read_to_string(server.dir.join("etc/shadow")).unwrap();
        assert!(shadow.contains("\nshop:*:19000:0:99999:7:::\n"), "{shadow}");
        drop((job, server));
    });
}

/// Nor does a ledger that takes nothing any more.
#[test]
fn a_ledger_that_cannot_be_written_does_not_keep_visitors_from_being_served_again() {
    alone(async |world| {
        for code in [EIO, ENOSPC, EROFS] {
            let (ledger, disk) = on_failing();
            let server = world.server_on(&format!("web1-{code}"), ledger);
            let of = a_move_to_nowhere();
            server.stands(Standing::Armed { of: of.clone() }).await;
            let job = world.job(&server, &of);
            fence::fence(&job, 600, 0).await.unwrap();
            deadline_passes(&server).await;
            disk.lock().unwrap().broken = Some(code);
            unfence::at_deadline(&server.agent, &account()).await.unwrap_err();
            assert_eq!(server.route().await, RouteState::Local);
            let fault = commit::commit(&job).await.unwrap_err();
            assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
            disk.lock().unwrap().broken = None;
            unfence::at_deadline(&server.agent, &account()).await.unwrap();
            assert!(matches!(server.standing(), Standing::Armed { .. }));
        }
    });
}

#[test]
fn visitors_do_not_wait_for_what_does_not_open() {
    alone(async |world| {
        let (server, job) = armed(&world).await;
        let crontab = server.dir.join("var/spool/cron/crontabs/shop");
        fs::write(&crontab, "* * * * * true\n").unwrap();
        fence::fence(&job, 600, 0).await.unwrap();
        assert!(!crontab.exists());
        // The crontab cannot come back: something is in its place.
        fs::create_dir_all(crontab.join("in-the-way")).unwrap();
        unfence::unfence(&job).await.unwrap_err();
        assert_eq!(server.route().await, RouteState::Local);
        crate::work::arm::reconcile(&server.agent).await.unwrap();
        assert_eq!(server.route().await, RouteState::Local);
        assert!(matches!(server.standing(), Standing::Fenced { ending: true, open: true, .. }));
        let fault = commit::commit(&job).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        fs::remove_dir_all(&crontab).unwrap();
        unfence::at_deadline(&server.agent, &account()).await.unwrap();
        assert!(matches!(server.standing(), Standing::Armed { .. }));
        assert_eq!(fs::read_to_string(&crontab).unwrap(), "* * * * * true\n");
    });
}
