//! A target is opened by force, and the source that was lost comes back.

use std::fs;

use ferry_proto::FaultClass;
use ferry_proto::command::{CommitRecord, Forced, Receipt};
use ferry_proto::ids::JobId;
use ferry_traffic::control::RouteState;

use super::delivery::{is_released, until};
use super::host::{Server, World, a_move_to_nowhere, account, alone};
use crate::ledger::failing::{ENOSPC, after_power_cut, on_failing};
use crate::ledger::{Ledger, Standing};
use crate::work::{Job, arm, commit, fence, finalize, give_up, open, unfence};

fn word() -> Forced {
    Forced { by: "an operator".into(), at_unix_ms: 1 }
}

/// The record that stands for the one of which nobody has heard.
fn forced(job: &Job) -> CommitRecord {
    CommitRecord {
        job: job.of.job,
        account: job.of.account.clone(),
        source: job.of.source.clone(),
        target: job.of.target.clone(),
        epoch: job.of.epoch.next(),
        fenced_at_unix: 1,
        committed_at_unix_ms: 1,
        forced: Some(word()),
    }
}

fn ledger(server: &Server) -> Ledger {
    Ledger::open(&server.dir.join("ledger")).unwrap()
}

#[test]
fn a_target_opens_by_force_only_on_a_signed_word_and_remembers_whose_it_was() {
    alone(async |world| {
        let (_source, target, _listener, job) = world.armed_pair().await;
        let record = forced(&job);
        let another = Forced { by: "somebody".into(), at_unix_ms: 1 };
        for unsigned in [
            world.job(&target, &job.of),
            world.forcing(&target, &job.of, another),
            Job { grant: None, ..world.job(&target, &job.of) },
        ] {
            let fault = open::on_command(&unsigned, Some(&record)).await.unwrap_err();
            assert_eq!(fault.class, FaultClass::Permanent, "{fault}");
        }
        let signed = world.forcing(&target, &job.of, word());
        let elsewhere = CommitRecord { job: JobId::new_now(), ..record.clone() };
        let fault = open::on_command(&signed, Some(&elsewhere)).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        assert!(matches!(target.standing(), Standing::Receiving { .. }), "nothing has changed");
        for _ in 0..2 {
            open::on_command(&signed, Some(&record)).await.unwrap();
            let known = ledger(&target).account(&account()).unwrap().clone();
            assert!(matches!(known.standing, Standing::Serving));
            assert_eq!((known.epoch, known.forced), (record.epoch, Some(word())));
        }
        // The source had committed after all, and tells the target itself: it serves already.
        let own = CommitRecord { forced: None, ..record.clone() };
        open::open(&target.agent, record.job, &own).await.unwrap();
    });
}

/// Nobody else can serve the account: what does not open is tried again, and was recorded as forced before.
#[test]
fn what_is_opened_by_force_is_not_refused() {
    alone(async |world| {
        let (_source, target, _listener, job) = world.armed_pair().await;
        let record = forced(&job);
        let shadow = target.dir.join("etc/shadow");
        let kept = fs::read(&shadow).unwrap();
        fs::remove_file(&shadow).unwrap();
        fs::create_dir(&shadow).unwrap();
        let signed = world.forcing(&target, &job.of, word());
        let fault = open::on_command(&signed, Some(&record)).await.unwrap_err();
        assert_eq!(fault.final_refusal(), None, "{fault}");
        let known = ledger(&target).account(&account()).unwrap().clone();
        assert!(
            matches!(&known.standing, Standing::Opening { accepts: true, record: r, .. } if *r == record),
            "{known:?}"
        );
        fs::remove_dir(&shadow).unwrap();
        fs::write(&shadow, kept).unwrap();
        open::on_command(&signed, Some(&record)).await.unwrap();
    });
}

/// The source's own record had come, and the agent died before it looked: that may not be refused now.
#[test]
fn what_had_come_by_the_sources_own_record_is_not_refused_either() {
    alone(async |world| {
        let (_source, target, _listener, job) = world.armed_pair().await;
        let record = forced(&job);
        let mut known = target.agent.account(&account()).unwrap();
        let Standing::Receiving { of, source, before } = known.standing else { panic!() };
        let own = CommitRecord { forced: None, ..record.clone() };
        known.standing = Standing::Opening { of, source, before, record: own, accepts: false };
        known.epoch = record.epoch;
        target.agent.set_account(&account(), Some(known)).await.unwrap();
        fs::remove_dir_all(target.home()).unwrap();
        let signed = world.forcing(&target, &job.of, word());
        let opened = open::on_command(&signed, Some(&record)).await;
        assert_eq!(opened.err().and_then(|f| f.final_refusal().cloned()), None);
        let known = ledger(&target).account(&account()).unwrap().clone();
        assert!(!matches!(known.standing, Standing::Opening { accepts: false, .. }), "{known:?}");
    });
}

/// How a source stands when it comes back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Back {
    /// It never heard of the commit, and its fence goes on.
    Fenced,
    /// It has committed; nobody has heard.
    Committed,
    /// Its fence has passed its deadline: the account was taken back.
    Served,
    /// It was being taken back.
    Ending,
    /// Its deadline has passed, and its disk does not say whether it was taken back.
    Overdue,
    /// The move was undone on it.
    Disarmed,
}

const BACK: [Back; 6] =
    [Back::Fenced, Back::Committed, Back::Served, Back::Ending, Back::Overdue, Back::Disarmed];

/// Brings the source there; the command that it is told then.
async fn comes_back(world: &World, source: &Server, how: Back) -> Job {
    let of = a_move_to_nowhere();
    source.stands(Standing::Armed { of: of.clone() }).await;
    let job = world.job(source, &of);
    fence::fence(&job, 600, 0).await.unwrap();
    match how {
        Back::Fenced => {}
        Back::Committed => {
            commit::commit(&Job { grant: None, ..job.clone() }).await.unwrap();
        }
        Back::Served | Back::Disarmed => {
            unfence::unfence(&job).await.unwrap();
            if how == Back::Disarmed {
                let mut known = source.agent.account(&account()).unwrap();
                // One that came here by a move is not the inventory's.
                known.made = Some(crate::ledger::Made::default());
                source.agent.set_account(&account(), Some(known)).await.unwrap();
                arm::disarm(&job).await.unwrap();
            }
        }
        Back::Ending | Back::Overdue => {
            let mut known = source.agent.account(&account()).unwrap();
            let Standing::Fenced { ending, deadline, .. } = &mut known.standing else { panic!() };
            *ending = how == Back::Ending;
            *deadline = crate::testing::before_the_reboot();
            source.agent.set_account(&account(), Some(known)).await.unwrap();
        }
    }
    world.forcing(source, &of, word())
}

/// What it says that it found, and the paths that were written there.
async fn given_up(job: &Job) -> (String, Vec<String>) {
    match give_up::give_up(job, &forced(job)).await.unwrap() {
        Receipt::GivenUp { found, written, .. } => (found, written),
        other => panic!("{other:?}"),
    }
}

fn is_closed(source: &Server) -> bool {
    let shadow = fs::read_to_string(source.dir.join("etc/shadow")).unwrap();
    !shadow.contains("\nshop:*:19000:0:99999:7:::\n")
}

#[test]
fn a_source_that_comes_back_closes_its_copy_however_it_stands_and_names_what_was_written() {
    alone(async |world| {
        for how in BACK {
            let source = world.server(&format!("web1-{how:?}").to_lowercase()).await;
            let job = comes_back(&world, &source, how).await;
            let served = !matches!(how, Back::Fenced | Back::Committed);
            let was_open = matches!(how, Back::Served | Back::Disarmed);
            assert_eq!(is_closed(&source), !was_open, "{how:?}");
            if served {
                fs::write(source.home().join("order-4711"), "1").unwrap();
            }
            let (found, written) = given_up(&job).await;
            let names_it = written.iter().any(|path| path.contains("order-4711"));
            assert_eq!(names_it, served, "{how:?}: {found}: {written:?}");
            assert_eq!(found.contains("had committed"), how == Back::Committed, "{how:?}: {found}");
            let known = ledger(&source).account(&account()).unwrap().clone();
            assert!(is_released(&known.standing), "{how:?}: {known:?}");
            assert_eq!(known.epoch, job.of.epoch.next());
            assert!(is_closed(&source), "{how:?}: logins are open");
            assert!(matches!(source.route().await, RouteState::Remote { .. }), "{how:?}");
            // Told again after a restart: the same is said, and nothing else moves it.
            let of = job.of.clone();
            drop(job);
            let source = world.restarted(source);
            let job = world.forcing(&source, &of, word());
            assert_eq!(given_up(&job).await, (found, written), "{how:?}");
            unfence::at_deadline(&source.agent, &account()).await.unwrap();
            assert!(is_released(&source.standing()), "{how:?}");
        }
    });
}

/// Until it is recorded that the account has moved nothing is closed, and from then on it stays moved.
#[test]
fn giving_up_goes_on_wherever_a_write_of_the_ledger_fails_or_the_power_goes() {
    alone(async |world| {
        for how in [Back::Fenced, Back::Served] {
            // The last of these is one more than there are.
            for failing in 0..4 {
                let (ledger, disk) = on_failing();
                let name = format!("web1-{how:?}-{failing}").to_lowercase();
                let source = world.server_on(&name, ledger);
                let job = comes_back(&world, &source, how).await;
                let mut writes = vec![Ok(()); failing];
                writes.push(Err(ENOSPC));
                disk.lock().unwrap().writes = writes.into();
                let told = give_up::give_up(&job, &forced(&job)).await;
                assert_eq!(told.is_ok(), failing == 3, "{how:?} {failing}: {told:?}");
                if let Err(fault) = told {
                    assert_eq!(fault.class, FaultClass::Transient, "{fault}");
                }
                disk.lock().unwrap().writes.clear();
                let found = after_power_cut(&disk).account(&account()).unwrap().clone();
                let moved = matches!(found.standing, Standing::Moved { .. });
                assert_eq!(moved, failing > 0, "{how:?} {failing}: {found:?}");
                if how == Back::Served {
                    assert_eq!(is_closed(&source), moved, "{how:?} {failing}");
                }
                given_up(&job).await;
                assert!(is_released(&source.standing()) && is_closed(&source));
                drop((job, source));
            }
        }
    });
}

/// An agent that dies behind its record needs nobody to tell it again.
#[test]
fn visitors_are_passed_on_by_the_ledger_alone() {
    alone(async |world| {
        let source = world.server("web1").await;
        let job = comes_back(&world, &source, Back::Served).await;
        given_up(&job).await;
        let mut known = source.agent.account(&account()).unwrap();
        let Standing::Moved { released_unix_ms, settled, .. } = &mut known.standing else {
            panic!()
        };
        (*released_unix_ms, *settled) = (None, false);
        source.agent.set_account(&account(), Some(known)).await.unwrap();
        arm::reconcile(&source.agent).await.unwrap();
        assert!(matches!(source.route().await, RouteState::Hold { .. }));
        drop(job);
        let source = world.restarted(source);
        commit::resume(&source.agent, &account());
        until(&source, is_released).await;
        // The release holds the order until the redirector knows.
        drop(source.agent.order(&account()).await);
        assert!(matches!(source.route().await, RouteState::Remote { .. }));
    });
}

#[test]
fn a_word_that_is_not_signed_or_of_another_move_closes_nothing() {
    alone(async |world| {
        let source = world.server("web1").await;
        let job = comes_back(&world, &source, Back::Served).await;
        let right = forced(&job);
        for wrong in [
            CommitRecord { job: JobId::new_now(), ..right.clone() },
            CommitRecord { epoch: right.epoch.next(), ..right.clone() },
            CommitRecord { target: "transit2".parse().unwrap(), ..right.clone() },
        ] {
            let fault = give_up::give_up(&job, &wrong).await.unwrap_err();
            assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        }
        let own = CommitRecord { forced: None, ..right.clone() };
        let unsigned = world.job(&source, &job.of);
        for (job, record) in [(&job, &own), (&unsigned, &right)] {
            let fault = give_up::give_up(job, record).await.unwrap_err();
            assert_eq!(fault.class, FaultClass::Permanent, "{fault}");
        }
        // Served at a later epoch: what was forced is history.
        let mut known = source.agent.account(&account()).unwrap();
        known.epoch = right.epoch.next();
        source.agent.set_account(&account(), Some(known)).await.unwrap();
        let fault = give_up::give_up(&job, &right).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        assert!(matches!(source.standing(), Standing::Armed { .. }) && !is_closed(&source));
    });
}

#[test]
fn a_server_that_has_nothing_of_the_account_says_so() {
    alone(async |world| {
        let source = world.server("web1").await;
        let job = world.forcing(&source, &a_move_to_nowhere(), word());
        let (found, written) = given_up(&job).await;
        assert!(found.contains("nothing of the account") && written.is_empty(), "{found}");
        assert!(source.agent.account(&account()).is_none());
    });
}

/// What was written at the source meanwhile may be nowhere else.
#[test]
fn a_copy_that_was_served_meanwhile_is_not_erased() {
    alone(async |world| {
        for (how, erasable) in [(Back::Fenced, true), (Back::Served, false)] {
            let source = world.server(&format!("web1-{how:?}").to_lowercase()).await;
            let job = comes_back(&world, &source, how).await;
            given_up(&job).await;
            let mut known = source.agent.account(&account()).unwrap();
            known.made = Some(crate::ledger::Made::default());
            if let Standing::Moved { record, .. } = &mut known.standing {
                record.committed_at_unix_ms = i64::MAX;
            }
            source.agent.set_account(&account(), Some(known)).await.unwrap();
            let mut of = job.of.clone();
            of.epoch = of.epoch.next();
            let job = world.job(&source, &of);
            for round in 0..2 {
                let proved = finalize::prove_erasable(&job).await;
                assert_eq!(proved.is_ok(), erasable, "{how:?} {round}: {proved:?}");
                finalize::finalize(&job, false).await.unwrap();
            }
        }
    });
}
