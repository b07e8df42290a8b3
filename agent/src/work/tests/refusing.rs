//! A target that cannot open refuses for good, and the source takes the account back.

use std::fs;
use std::path::PathBuf;

use ferry_proto::FaultClass;
use ferry_proto::channel::Listener;
use ferry_proto::command::{CommitRecord, Receipt, Refusal};
use ferry_proto::ids::{Epoch, JobId};
use ferry_traffic::control::RouteState;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::delivery::{is_released, until};
use super::host::{Server, World, a_move, account, alone};
use crate::ledger::failing::{ENOSPC, after_power_cut, on_failing};
use crate::ledger::{Ledger, Standing};
use crate::work::{Job, arm, commit, fence, open, provision, unfence};

/// A home on a file system of its own, which is full.
struct FullHome(PathBuf);

impl FullHome {
    fn of(server: &Server) -> Self {
        let home = server.home();
        let size = Some("size=64k");
        mount(Some("none"), &home, Some("tmpfs"), MsFlags::empty(), size).unwrap();
        Self(home)
    }
}

impl Drop for FullHome {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Source and target of a move that was committed, of which the target has not heard.
async fn committed(world: &World) -> (Server, Server, Listener, Job, CommitRecord) {
    let (source, target, listener, job) = world.armed_pair().await;
    fence::fence(&job, 600, 0).await.unwrap();
    // Without a grant nobody tells the target.
    let record = record_of(commit::commit(&Job { grant: None, ..job.clone() }).await.unwrap());
    (source, target, listener, job, record)
}

fn record_of(receipt: Receipt) -> CommitRecord {
    match receipt {
        Receipt::Committed(record) => record,
        other => panic!("not committed: {other:?}"),
    }
}

async fn refused(target: &Server, record: &CommitRecord) -> Refusal {
    let full = FullHome::of(target);
    let fault = open::open(&target.agent, record.job, record).await.unwrap_err();
    drop(full);
    fault.final_refusal().unwrap_or_else(|| panic!("no refusal: {fault}")).clone()
}

fn ledger(server: &Server) -> Ledger {
    Ledger::open(&server.dir.join("ledger")).unwrap()
}

#[test]
fn what_does_not_open_is_refused_for_good_and_that_is_recorded_before_it_is_told() {
    alone(async |world| {
        let (_source, target, _listener, job, record) = committed(&world).await;
        let refusal = refused(&target, &record).await;
        assert!(refusal.is_of(&record) && refusal.reason.contains("is full"), "{refusal:?}");
        let known = ledger(&target).account(&account()).unwrap().clone();
        assert!(matches!(known.standing, Standing::Refused { refusal: r, .. } if r == refusal));
        // There is room now, and the agent has forgotten all but its ledger: it stays refused.
        drop(job);
        let target = world.restarted(target);
        open::resume(&target.agent, &account()).await.unwrap();
        let fault = open::open(&target.agent, record.job, &record).await.unwrap_err();
        assert_eq!(fault.final_refusal(), Some(&refusal));
        assert_eq!(fault.class, FaultClass::Fenced);
    });
}

/// The source and the controller both tell the target: who comes second is told what the first was.
#[test]
fn who_waits_while_an_account_is_refused_does_not_look_for_himself() {
    alone(async |world| {
        let (_source, target, _listener, _job, record) = committed(&world).await;
        let full = FullHome::of(&target);
        let open = || open::open(&target.agent, record.job, &record);
        let (one, other) = tokio::join!(open(), open());
        drop(full);
        let (one, other) = (one.unwrap_err(), other.unwrap_err());
        assert!(one.final_refusal().is_some(), "{one}");
        assert_eq!(one.final_refusal(), other.final_refusal());
    });
}

#[test]
fn a_refusal_that_cannot_be_recorded_is_not_told() {
    alone(async |world| {
        let (ledger, disk) = on_failing();
        let (_source, other, _listener, _job, record) = committed(&world).await;
        let target = world.server_on("transit1-too", ledger);
        target.agent.set_account(&account(), other.agent.account(&account())).await.unwrap();
        let full = FullHome::of(&target);
        // That the commit has arrived is recorded; then the disk takes nothing more.
        disk.lock().unwrap().writes = [Ok(())].into();
        disk.lock().unwrap().broken_after_planned = Some(ENOSPC);
        let fault = open::open(&target.agent, record.job, &record).await.unwrap_err();
        assert_eq!((fault.class, fault.final_refusal()), (FaultClass::Transient, None), "{fault}");
        disk.lock().unwrap().broken_after_planned = None;
        drop(full);
        // Nothing was refused: it opens.
        open::open(&target.agent, record.job, &record).await.unwrap();
        assert!(matches!(target.standing(), Standing::Serving));
        let found = after_power_cut(&disk);
        assert!(matches!(found.account(&account()).unwrap().standing, Standing::Serving));
    });
}

#[test]
fn a_target_that_has_accepted_never_refuses() {
    alone(async |world| {
        let (_source, target, _listener, _job, record) = committed(&world).await;
        // Its passwords cannot be changed: opening fails, but not before it was accepted.
        let shadow = target.dir.join("etc/shadow");
        let kept = fs::read(&shadow).unwrap();
        fs::remove_file(&shadow).unwrap();
        fs::create_dir(&shadow).unwrap();
        let fault = open::open(&target.agent, record.job, &record).await.unwrap_err();
        assert_eq!(fault.final_refusal(), None, "{fault}");
        assert!(matches!(target.standing(), Standing::Opening { accepts: true, .. }));
        let full = FullHome::of(&target);
        let fault = open::open(&target.agent, record.job, &record).await.unwrap_err();
        assert_eq!(fault.final_refusal(), None, "{fault}");
        drop(full);
        fs::remove_dir(&shadow).unwrap();
        fs::write(&shadow, kept).unwrap();
        open::open(&target.agent, record.job, &record).await.unwrap();
        assert!(matches!(target.standing(), Standing::Serving));
    });
}

#[test]
fn the_source_takes_back_what_its_target_refuses_and_the_move_can_be_undone() {
    alone(async |world| {
        let (source, target, listener, job) = world.armed_pair().await;
        fence::fence(&job, 600, 0).await.unwrap();
        let full = FullHome::of(&target);
        target.listen(listener);
        let record = record_of(commit::commit(&job).await.unwrap());
        until(&source, |s| matches!(s, Standing::Armed { .. })).await;
        drop(full);
        let again = record.epoch.next();
        assert_eq!(source.agent.account(&account()).unwrap().epoch, again);
        assert_eq!(source.route().await, RouteState::Local);
        // The record is void wherever it turns up, and the move neither commits nor fences again.
        let late = open::open(&target.agent, record.job, &record).await.unwrap_err();
        assert!(late.final_refusal().is_some());
        for refused in [commit::commit(&job).await, fence::fence(&job, 600, 0).await] {
            assert_eq!(refused.unwrap_err().class, FaultClass::Fenced);
        }
        // The controller, which hears of it later, undoes the move; each command twice.
        let refusal = late.final_refusal().unwrap();
        for _ in 0..2 {
            unfence::after_refusal(&job, refusal).await.unwrap();
            unfence::unfence(&job).await.unwrap();
            arm::disarm(&job).await.unwrap();
            provision::deprovision(&world.job(&target, &job.of)).await.unwrap();
            for server in [&source, &target] {
                crate::work::check_epoch(&server.agent, &job.of).unwrap();
            }
        }
        let served = source.agent.account(&account()).unwrap();
        assert!(matches!(served.standing, Standing::Serving) && served.epoch == again);
        assert!(target.agent.account(&account()).is_none(), "the copy is gone");
        let late = open::open(&target.agent, record.job, &record).await.unwrap_err();
        assert_eq!(late.class, FaultClass::Fenced, "{late}");
    });
}

#[test]
fn a_refused_copy_that_lived_there_before_stands_as_before_and_can_be_received_again() {
    alone(async |world| {
        let (_source, target, _listener, job, record) = committed(&world).await;
        let mut known = target.agent.account(&account()).unwrap();
        let Standing::Receiving { before, .. } = &mut known.standing else {
            panic!("not received")
        };
        let finalized = serde_json::json!({ "is": "finalized", "to": "web1", "since_unix_ms": 1 });
        *before = Some(Box::new(serde_json::from_value(finalized).unwrap()));
        target.agent.set_account(&account(), Some(known)).await.unwrap();
        refused(&target, &record).await;
        let undo = world.job(&target, &job.of);
        for _ in 0..2 {
            provision::deprovision(&undo).await.unwrap();
            crate::work::check_epoch(&target.agent, &job.of).unwrap();
        }
        let known = target.agent.account(&account()).unwrap();
        assert!(matches!(known.standing, Standing::Finalized { .. }));
        // As the source serves it: a later move from there may come.
        assert_eq!(known.epoch, record.epoch.next());
        let mut later = a_move(job.of.target_peer);
        later.epoch = record.epoch.next();
        crate::work::check_epoch(&target.agent, &later).unwrap();
        let fault = open::open(&target.agent, record.job, &record).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
    });
}

#[test]
fn taking_back_goes_on_wherever_a_write_of_the_ledger_fails_or_the_power_goes() {
    alone(async |world| {
        // The last of these is one more than there are.
        for failing in 0..4 {
            let (ledger, disk) = on_failing();
            let source = world.server_on(&format!("web1-{failing}"), ledger);
            let job = world.moved_away(&source).await;
            let Standing::Moved { record, .. } = source.standing() else { panic!("not moved") };
            let refusal = refusal_of(&record);
            let mut writes = vec![Ok(()); failing];
            writes.push(Err(ENOSPC));
            disk.lock().unwrap().writes = writes.into();
            let taken = unfence::after_refusal(&job, &refusal).await;
            assert_eq!(taken.is_ok(), failing == 3, "{failing}: {taken:?}");
            disk.lock().unwrap().writes.clear();
            // Never served before it is recorded that it is taken back.
            let found = after_power_cut(&disk);
            let found = found.account(&account()).unwrap();
            match failing {
                0 => assert!(matches!(found.standing, Standing::Moved { .. }), "{found:?}"),
                _ => assert_eq!(found.epoch, record.epoch.next()),
            }
            let route = source.route().await;
            assert_eq!(route == RouteState::Local, failing > 0, "{failing}: {route:?}");
            // The agent starts again and hears of it again, or its watch goes on by itself.
            if failing == 0 {
                unfence::after_refusal(&job, &refusal).await.unwrap();
            } else {
                unfence::at_deadline(&source.agent, &account()).await.unwrap();
            }
            assert!(matches!(source.standing(), Standing::Armed { .. }));
            assert_eq!(source.route().await, RouteState::Local);
            drop((job, source));
        }
    });
}

fn refusal_of(record: &CommitRecord) -> Refusal {
    Refusal {
        job: record.job,
        account: record.account.clone(),
        source: record.source.clone(),
        target: record.target.clone(),
        epoch: record.epoch,
        reason: "it does not start".into(),
        at_unix_ms: 0,
    }
}

impl World {
    /// Moves the account away from `source`, without telling the target.
    async fn moved_away(&self, source: &Server) -> Job {
        let of = super::host::a_move_to_nowhere();
        source.stands(Standing::Armed { of: of.clone() }).await;
        let job = self.job(source, &of);
        fence::fence(&job, 600, 0).await.unwrap();
        commit::commit(&Job { grant: None, ..job.clone() }).await.unwrap();
        job
    }
}

#[test]
fn a_refusal_of_another_commit_or_after_the_release_changes_nothing() {
    alone(async |world| {
        let source = world.server("web1").await;
        let job = world.moved_away(&source).await;
        let Standing::Moved { record, .. } = source.standing() else { panic!("not moved") };
        let right = refusal_of(&record);
        let others = [
            Refusal { job: JobId::new_now(), ..right.clone() },
            Refusal { epoch: Epoch(7), ..right.clone() },
            Refusal { target: "transit2".parse().unwrap(), ..right.clone() },
        ];
        for wrong in others {
            let fault = unfence::after_refusal(&job, &wrong).await.unwrap_err();
            assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        }
        assert!(matches!(source.standing(), Standing::Moved { .. }));
        let mut known = source.agent.account(&account()).unwrap();
        let Standing::Moved { released_unix_ms, .. } = &mut known.standing else { panic!() };
        *released_unix_ms = Some(1);
        source.agent.set_account(&account(), Some(known)).await.unwrap();
        let fault = unfence::after_refusal(&job, &right).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        assert!(is_released(&source.standing()));
    });
}
