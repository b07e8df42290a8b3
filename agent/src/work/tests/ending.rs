//! A move is ended for good only on proof: by the server that serves, and of the copy that goes.

use std::fs;
use std::time::UNIX_EPOCH;

use ferry_proto::FaultClass;
use ferry_proto::command::{CommitRecord, Move};
use ferry_proto::ids::Epoch;

use super::host::{Server, World, a_move_to_nowhere, account, alone};
use crate::clock::unix_ms;
use crate::ledger::{Made, Standing};
use crate::work::{finalize, prove};

/// A server that the account has just moved away from, and the move that ends that.
async fn moved_away(world: &World) -> (Server, Move) {
    let server = world.server("web1").await;
    let of = a_move_to_nowhere();
    let record = CommitRecord {
        job: of.job,
        account: of.account.clone(),
        source: of.source.clone(),
        target: of.target.clone(),
        epoch: of.epoch.next(),
        fenced_at_unix: 0,
        // A file system's clock may be a tick behind, never ahead.
        committed_at_unix_ms: unix_ms() + 1,
        forced: None,
    };
    let standing = serde_json::json!({
        "is": "moved", "of": of, "record": record, "fenced_unix_ms": 0, "released_unix_ms": 1,
    });
    server.stands(serde_json::from_value(standing).unwrap()).await;
    let mut known = server.agent.account(&account()).unwrap();
    known.epoch = record.epoch;
    server.agent.set_account(&account(), Some(known)).await.unwrap();
    (server, Move { epoch: record.epoch, ..of })
}

/// As if Ferry had made the copy here.
async fn made_by_ferry(server: &Server) {
    let mut known = server.agent.account(&account()).unwrap();
    known.made = Some(Made::default());
    server.agent.set_account(&account(), Some(known)).await.unwrap();
}

#[test]
fn a_copy_is_erased_once_it_is_ferrys_and_unwritten_and_that_can_be_asked_again() {
    alone(async |world| {
        let (server, of) = moved_away(&world).await;
        let job = world.job(&server, &of);
        let refused = finalize::prove_erasable(&job).await.unwrap_err();
        let fault = finalize::finalize(&job, true).await.unwrap_err();
        assert!(fault.message.contains("before Ferry"), "{fault}");
        assert_eq!(refused, fault);
        assert!(matches!(server.standing(), Standing::Moved { .. }), "nothing was changed");
        made_by_ferry(&server).await;
        finalize::prove_erasable(&job).await.unwrap();
        assert!(matches!(server.standing(), Standing::Moved { .. }), "nothing was changed");
        for _ in 0..2 {
            finalize::finalize(&job, false).await.unwrap();
            assert!(matches!(server.standing(), Standing::Finalized { .. }));
        }
        finalize::prove_erasable(&job).await.unwrap();
        finalize::finalize(&job, true).await.unwrap();
        assert!(server.agent.account(&account()).is_none());
        finalize::prove_erasable(&job).await.unwrap();
        finalize::finalize(&job, true).await.unwrap();
    });
}

/// An erasure that was cut off has changed the copy itself: asked again, it goes on.
#[test]
fn an_erasure_that_was_cut_off_goes_on() {
    alone(async |world| {
        let (server, of) = moved_away(&world).await;
        made_by_ferry(&server).await;
        let job = world.job(&server, &of);
        finalize::finalize(&job, false).await.unwrap();
        let mut known = server.agent.account(&account()).unwrap();
        let Standing::Finalized { since_unix_ms: Some(since), erasing, .. } = &mut known.standing
        else {
            panic!("not finalized")
        };
        while unix_ms() <= *since + 20 {
            std::thread::yield_now();
        }
        *erasing = true;
        server.agent.set_account(&account(), Some(known)).await.unwrap();
        fs::remove_file(server.home().join("index.html")).unwrap();
        // Nor does asking without --erase forget that it has begun.
        finalize::finalize(&job, false).await.unwrap();
        finalize::prove_erasable(&job).await.unwrap();
        finalize::finalize(&job, true).await.unwrap();
        assert!(server.agent.account(&account()).is_none());
    });
}

#[test]
fn a_copy_that_was_written_to_is_not_erased() {
    alone(async |world| {
        let (server, of) = moved_away(&world).await;
        made_by_ferry(&server).await;
        let Standing::Moved { record, .. } = server.standing() else { unreachable!() };
        while unix_ms() <= record.committed_at_unix_ms + 20 {
            std::thread::yield_now();
        }
        // Put back where it was, it still shows.
        let page = fs::File::options().write(true).open(server.home().join("index.html")).unwrap();
        page.set_modified(UNIX_EPOCH).unwrap();
        let job = world.job(&server, &of);
        let faults = [
            finalize::prove_erasable(&job).await.unwrap_err(),
            finalize::finalize(&job, true).await.unwrap_err(),
        ];
        for fault in faults {
            assert_eq!(fault.class, FaultClass::Precondition);
            assert!(fault.causes.iter().any(|c| c.contains("index.html")), "{fault}");
        }
        assert!(matches!(server.standing(), Standing::Moved { .. }), "nothing was changed");
    });
}

#[test]
fn only_a_copy_that_moved_away_by_this_move_may_be_erased() {
    alone(async |world| {
        let (server, of) = moved_away(&world).await;
        made_by_ferry(&server).await;
        let earlier = Move { epoch: Epoch(0), ..of.clone() };
        let elsewhere = Move { target: "transit2".parse().unwrap(), ..of.clone() };
        for other in [earlier, elsewhere] {
            let fault = finalize::prove_erasable(&world.job(&server, &other)).await.unwrap_err();
            assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
        }
        server.stands(Standing::Serving).await;
        let fault = finalize::prove_erasable(&world.job(&server, &of)).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
    });
}

#[test]
fn only_the_server_that_serves_at_this_epoch_proves_it() {
    alone(async |world| {
        let server = world.server("transit1").await;
        server.stands(Standing::Serving).await;
        let of = a_move_to_nowhere();
        prove::prove(&world.job(&server, &of)).await.unwrap();
        let later = Move { epoch: of.epoch.next(), ..of.clone() };
        let fault = prove::prove(&world.job(&server, &later)).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fenced);
        server.stands(Standing::Armed { of: of.clone() }).await;
        assert!(prove::prove(&world.job(&server, &of)).await.is_err());
        server.stands(Standing::Serving).await;
        fs::remove_dir_all(server.home()).unwrap();
        assert!(prove::prove(&world.job(&server, &of)).await.is_err(), "its home is gone");
    });
}
