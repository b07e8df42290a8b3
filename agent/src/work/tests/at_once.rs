//! Commands for one account that come at once are carried out one after the other: each finds the account
//! as the one before left it.

use std::fs;

use ferry_proto::ids::JobId;
use ferry_traffic::control::RouteState;

use super::host::{World, a_move_to_nowhere, account, alone};
use crate::ledger::Standing;
use crate::work::{arm, fence};

#[test]
fn of_moves_that_arm_an_account_at_once_one_has_it_and_the_others_change_nothing() {
    alone(async |world: World| {
        let server = world.server("web1").await;
        let definitions = &server.agent.config.accounts_directory;
        fs::create_dir_all(definitions).unwrap();
        let definition = toml::to_string(&server.definition()).unwrap();
        fs::write(definitions.join("shop.toml"), definition).unwrap();
        let job = || {
            let mut of = a_move_to_nowhere();
            of.job = JobId::new_now();
            world.job(&server, &of)
        };
        let jobs = [job(), job(), job()];
        let outcomes = tokio::join!(arm::arm(&jobs[0]), arm::arm(&jobs[1]), arm::arm(&jobs[2]));
        let outcomes = [outcomes.0, outcomes.1, outcomes.2];
        let armed: Vec<_> = (0..3).filter(|i| outcomes[*i].is_ok()).collect();
        assert_eq!(armed.len(), 1, "{outcomes:?}");
        let Standing::Armed { of } = server.standing() else { panic!("{:?}", server.standing()) };
        assert_eq!(of.job, jobs[armed[0]].of.job);
        // Whoever was refused takes nothing of the winner's down.
        for loser in (0..3).filter(|i| *i != armed[0]) {
            arm::disarm(&jobs[loser]).await.unwrap_err();
        }
        assert!(matches!(server.standing(), Standing::Armed { .. }));
    });
}

/// Whichever came first, ledger and redirector agree in the end, and the other is refused.
#[test]
fn a_fence_and_the_undo_of_its_move_at_once_leave_one_of_both() {
    for disarm_first in [true, false] {
        alone(async move |world: World| {
            let server = world.server("web1").await;
            let of = a_move_to_nowhere();
            server.stands(Standing::Armed { of: of.clone() }).await;
            let job = world.job(&server, &of);
            let (fenced, disarmed) = if disarm_first {
                let (disarmed, fenced) =
                    tokio::join!(arm::disarm(&job), fence::fence(&job, 600, 0));
                (fenced, disarmed)
            } else {
                tokio::join!(fence::fence(&job, 600, 0), arm::disarm(&job))
            };
            assert_eq!(fenced.is_ok(), !disarm_first, "{fenced:?}");
            assert_eq!(disarmed.is_ok(), disarm_first, "{disarmed:?}");
            if disarm_first {
                // An account that never moved is the inventory's again.
                assert!(server.agent.account(&account()).is_none());
                assert!(server.agent.redirector.status().await.unwrap().is_empty());
            } else {
                assert!(matches!(server.standing(), Standing::Fenced { .. }));
                assert!(matches!(server.route().await, RouteState::Hold { .. }));
            }
        });
    }
}
