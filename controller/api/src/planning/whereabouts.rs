//! Where an account is, by what the agents said last and by this controller's own jobs: who serves it, who passed
//! it on, and so where a rollback goes and whose copy is finalized. Pure: it must not know where that was read.

use ferry_proto::Fault;
use ferry_proto::approval::Approval;
use ferry_proto::command::{AccountState, Move, StandingKind};
use ferry_proto::ids::{AccountName, ServerName};

/// Which server is meant, of those that say that they serve an account of a name.
#[derive(Debug, Clone, Copy)]
pub(super) enum Serving<'a> {
    /// The only one there is.
    Only,
    /// The only one that another server moved it to.
    AfterMove,
    /// This one.
    On(&'a ServerName),
}

/// Where an account is: who serves it, and who served it before.
#[derive(Debug)]
pub(super) struct Whereabouts {
    /// Serves it now (or holds it fenced).
    pub(super) serving: (ServerName, AccountState),
    /// Passed it on to the one that serves it: by this controller's own job, and by its own word.
    before: Option<(ServerName, AccountState)>,
    /// Say that they did, where that is not known: one agent's word must not draw an account to its server.
    claimants: Vec<ServerName>,
}

/// A move that this controller led, to its commit or until it was overtaken: from where to where.
#[derive(Debug, Clone)]
pub(super) struct PassedOn {
    pub(super) from: ServerName,
    pub(super) to: ServerName,
    /// Else it was overtaken, and may have come to nothing.
    pub(super) committed: bool,
    /// What was approved for it.
    pub(super) approvals: Vec<Approval>,
}

pub(super) fn serves(standing: &StandingKind) -> bool {
    matches!(standing, StandingKind::Serving | StandingKind::Armed | StandingKind::Fenced)
}

pub(super) fn is_leaving(standing: &StandingKind) -> bool {
    matches!(standing, StandingKind::Armed | StandingKind::Fenced)
}

/// Leaves out what was said before a commit that is known by its outcome: a source that died right
/// after it is still known as armed or fenced, while the account is at a higher epoch where its job
/// brought it. Without that job it may be another account of the same name, whatever its epoch.
pub(super) fn without_outdated(
    all: Vec<(ServerName, AccountState)>,
    bound: &[(ServerName, ServerName)],
) -> Vec<(ServerName, AccountState)> {
    let arrived = |server: &ServerName, state: &AccountState| {
        let target = bound.iter().find(|(source, _)| source == server).map(|(_, target)| target);
        all.iter().any(|(at, there)| {
            // What is only provisioned there has not arrived; what has moved on has.
            Some(at) == target
                && there.standing != StandingKind::Provisioned
                && there.epoch > state.epoch
        })
    };
    let current: Vec<_> =
        all.iter().map(|(s, state)| !is_leaving(&state.standing) || !arrived(s, state)).collect();
    all.into_iter().zip(current).filter_map(|(known, is)| is.then_some(known)).collect()
}

/// What was approved of the last move to where the account is, if it goes back where that came from: the word was
/// given for these two servers.
pub(super) fn inherited(of: &Move, passed_on: Vec<PassedOn>) -> Vec<Approval> {
    let last = passed_on.into_iter().find(|known| known.to == of.source);
    let is_way_back = |last: &PassedOn| last.committed && last.from == of.target;
    last.filter(is_way_back).map(|last| last.approvals).unwrap_or_default()
}

/// Picks the server that serves the account, and the one that passed it on to it.
pub(super) fn whereabouts(
    account: &AccountName,
    which: Serving<'_>,
    all: Vec<(ServerName, AccountState)>,
    passed_on: &[PassedOn],
) -> Result<Whereabouts, Fault> {
    let (serving, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(_, state)| serves(&state.standing));
    let was_moved = |known: &(ServerName, AccountState)| !claims(known, &others).is_empty();
    // Without any that was moved here there is one to say so of, if it is only one.
    let moved = serving.iter().any(was_moved);
    let mut meant: Vec<_> = serving
        .into_iter()
        .filter(|known| match which {
            Serving::Only => true,
            Serving::AfterMove => !moved || was_moved(known),
            Serving::On(from) => *from == known.0,
        })
        .collect();
    let Some(last) = meant.pop() else {
        return Err(nobody_serves(account, which));
    };
    if !meant.is_empty() {
        let names: Vec<_> = meant.iter().chain([&last]).map(|(s, _)| s.to_string()).collect();
        return Err(Fault::precondition(format!(
            "more than one server says that it serves account {account}: {}",
            names.join(", ")
        ))
        .remedy("see `ferry account list`, and say which is meant: --from SERVER"));
    }
    let claims = claims(&last, &others);
    let before = before(&last.0, &claims, passed_on).cloned();
    let claimants = match before {
        Some(_) => Vec::new(),
        None => claims.into_iter().map(|(server, _)| server.clone()).collect(),
    };
    Ok(Whereabouts { serving: last, before, claimants })
}

/// Who says that it passed the account on to the server that serves it. None did so at a later epoch than it is
/// served at.
fn claims<'a>(
    (server, state): &(ServerName, AccountState),
    others: &'a [(ServerName, AccountState)],
) -> Vec<&'a (ServerName, AccountState)> {
    let says_so = |(_, other): &&(ServerName, AccountState)| {
        // A closed copy was finalized, which can be repeated; it may still have to be erased.
        matches!(other.standing, StandingKind::Moved | StandingKind::Closed)
            && other.moved_to.as_ref() == Some(server)
            && other.epoch <= state.epoch
    };
    others.iter().filter(says_so).collect()
}

/// Of these the one that this controller's own last job there had as its source. Not if another says so of a
/// later epoch: then the store may be an old one, or the other lies.
fn before<'a>(
    serving: &ServerName,
    claims: &[&'a (ServerName, AccountState)],
    passed_on: &[PassedOn],
) -> Option<&'a (ServerName, AccountState)> {
    let known = passed_on.iter().find(|known| known.to == *serving)?;
    let claim = claims.iter().find(|(server, _)| *server == known.from)?;
    claims.iter().all(|(_, other)| other.epoch <= claim.1.epoch).then_some(claim)
}

/// Where a rollback goes: a finalized copy has given up its visitors, and is no way back.
pub(super) fn back_to(account: &AccountName, at: &Whereabouts) -> Result<ServerName, Fault> {
    match &at.before {
        Some((server, state)) if state.standing == StandingKind::Moved => Ok(server.clone()),
        Some((server, _)) => Err(Fault::precondition(format!(
            "the move of account {account} from {server} was finalized: it is no rollback any more"
        ))
        .remedy(format!("move it there again: ferry move {account} --to {server}"))),
        None if at.claimants.is_empty() => {
            Err(Fault::precondition(format!("account {account} has not moved"))
                .remedy("there is nothing to roll back; see `ferry account list`"))
        }
        None => Err(unproven(account, &at.serving.0, &at.claimants).remedy(format!(
            "make sure which server it was, and name it: ferry rollback {account} --to SERVER"
        ))),
    }
}

/// Whose copy is finalized. A copy is its own server's to close, so that the only word there is will do where
/// this controller knows of no move.
pub(super) fn to_finalize(account: &AccountName, at: &Whereabouts) -> Result<ServerName, Fault> {
    match (&at.before, at.claimants.as_slice()) {
        (Some((server, _)), _) => Ok(server.clone()),
        (None, [only]) => Ok(only.clone()),
        (None, []) => {
            Err(Fault::precondition(format!("nothing stands for a move of account {account}"))
                .remedy("see `ferry account list`"))
        }
        (None, claimants) => Err(unproven(account, &at.serving.0, claimants)
            .remedy("cut off the one that does not say the truth: ferry server revoke SERVER")),
    }
}

/// What agents say of a move of which this controller does not know.
fn unproven(account: &AccountName, serving: &ServerName, claimants: &[ServerName]) -> Fault {
    let names: Vec<_> = claimants.iter().map(ServerName::as_str).collect();
    Fault::precondition(format!(
        "by this controller's own jobs it is not known who passed account {account} on to {serving}; their agents say that it was: {}",
        names.join(", ")
    ))
}

fn nobody_serves(account: &AccountName, which: Serving<'_>) -> Fault {
    let who = match which {
        Serving::On(server) => format!("{server} does not serve"),
        Serving::Only | Serving::AfterMove => "no server serves".to_owned(),
    };
    Fault::precondition(format!("{who} account {account}")).remedy(
        "see `ferry account list`; definitions belong in /etc/ferry/accounts.d on its server",
    )
}

#[cfg(test)]
mod tests {
    use ferry_proto::command::Direction;
    use ferry_proto::ids::{Epoch, JobId};

    use super::*;

    fn on(
        server: &str,
        standing: StandingKind,
        moved_to: Option<&str>,
    ) -> (ServerName, AccountState) {
        let state = AccountState {
            name: "shop".parse().unwrap(),
            standing,
            epoch: Epoch(0),
            moved_to: moved_to.map(|s| s.parse().unwrap()),
            domains: vec![],
            job: None,
        };
        (server.parse().unwrap(), state)
    }

    fn serving(which: Serving<'_>, all: &[(ServerName, AccountState)]) -> Result<String, Fault> {
        let account = "shop".parse().unwrap();
        whereabouts(&account, which, all.to_vec(), &[]).map(|at| at.serving.0.to_string())
    }

    /// Where a rollback goes, if those moves were this controller's.
    fn back(
        all: &[(ServerName, AccountState)],
        passed_on: &[(&str, &str)],
    ) -> Result<String, Fault> {
        let account = "shop".parse().unwrap();
        let at = whereabouts(&account, Serving::AfterMove, all.to_vec(), &known(passed_on))?;
        back_to(&account, &at).map(String::from)
    }

    fn known(passed_on: &[(&str, &str)]) -> Vec<PassedOn> {
        let known = |(from, to): &(&str, &str)| PassedOn {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            committed: true,
            approvals: Vec::new(),
        };
        passed_on.iter().map(known).collect()
    }

    fn at((server, state): (ServerName, AccountState), epoch: u64) -> (ServerName, AccountState) {
        (server, AccountState { epoch: Epoch(epoch), ..state })
    }

    #[test]
    fn of_two_servers_with_an_account_of_one_name_none_is_guessed() {
        let two = [on("a", StandingKind::Serving, None), on("b", StandingKind::Fenced, None)];
        for which in [Serving::Only, Serving::AfterMove] {
            let fault = serving(which, &two).unwrap_err();
            assert_eq!(fault.class, ferry_proto::FaultClass::Precondition);
            assert!(fault.message.contains("a, b") && fault.remedy.contains("--from"), "{fault}");
        }
        let b = "b".parse().unwrap();
        assert_eq!(serving(Serving::On(&b), &two).unwrap(), "b");
        let c = "c".parse().unwrap();
        let fault = serving(Serving::On(&c), &two).unwrap_err();
        assert!(fault.message.contains("c does not serve account shop"), "{fault}");
    }

    #[test]
    fn a_source_that_died_after_its_commit_does_not_count_where_its_job_brought_the_account() {
        let name = |s: &str| -> ServerName { s.parse().unwrap() };
        let bound = [(name("a"), name("t"))];
        let left = |all: &[_], bound: &[_]| -> Vec<String> {
            without_outdated(all.to_vec(), bound).iter().map(|(s, _)| s.to_string()).collect()
        };
        for leaving in [StandingKind::Armed, StandingKind::Fenced] {
            let dead = at(on("a", leaving, None), 3);
            let all = [dead.clone(), at(on("t", StandingKind::Serving, None), 4)];
            assert_eq!(left(&all, &bound), ["t"]);
            // Another account of that name, on a server that this job does not bring it to.
            assert_eq!(left(&all, &[]), ["a", "t"]);
            assert_eq!(left(&all, &[(name("a"), name("u"))]), ["a", "t"]);
            let onward = [
                dead.clone(),
                at(on("t", StandingKind::Moved, Some("u")), 5),
                at(on("u", StandingKind::Serving, None), 5),
            ];
            assert_eq!(left(&onward, &bound), ["t", "u"]);
            // Not committed yet, as far as is known.
            for (standing, epoch) in [
                (StandingKind::Provisioned, 4),
                (StandingKind::Closed, 3),
                (StandingKind::Moved, 2),
            ] {
                let all = [dead.clone(), at(on("t", standing, Some("a")), epoch)];
                assert_eq!(left(&all, &bound), ["a", "t"]);
            }
        }
        let all = [
            at(on("a", StandingKind::Serving, None), 3),
            at(on("t", StandingKind::Serving, None), 4),
        ];
        assert_eq!(left(&all, &bound), ["a", "t"], "it serves: its move was undone");
    }

    #[test]
    fn an_agents_word_alone_draws_no_account_to_its_server() {
        let honest = [
            at(on("a", StandingKind::Moved, Some("t")), 5),
            at(on("t", StandingKind::Serving, None), 5),
        ];
        let moved = [("a", "t")];
        assert_eq!(back(&honest, &moved).unwrap(), "a");
        for epoch in [0, 5, 6, 1_000_000_000] {
            for standing in [StandingKind::Moved, StandingKind::Closed] {
                let stolen = at(on("b", standing, Some("t")), epoch);
                let all = [honest[0].clone(), stolen.clone(), honest[1].clone()];
                assert_eq!(back(&all, &moved).unwrap(), "a", "{epoch}");
                // The one that passed it on says nothing: nor is it the other then.
                let fault = back(&all[1..], &moved).unwrap_err();
                let is_heard = epoch <= 5;
                assert_eq!(fault.remedy.contains("--to SERVER"), is_heard, "{epoch}: {fault}");
            }
        }
    }

    #[test]
    fn a_move_that_this_controller_does_not_know_is_no_way_back_unless_it_is_named() {
        let all = [
            at(on("a", StandingKind::Moved, Some("t")), 1),
            at(on("c", StandingKind::Moved, Some("t")), 3),
            at(on("t", StandingKind::Serving, None), 3),
        ];
        // Adopted without any job of it, or with those alone of before the last moves.
        for moved in [&[][..], &[("a", "t")]] {
            let fault = back(&all, moved).unwrap_err();
            for part in ["a, c", "on to t", "ferry rollback shop --to SERVER"] {
                assert!(fault.to_string().contains(part) || fault.remedy.contains(part), "{fault}");
            }
        }
        assert_eq!(back(&all, &[("c", "t")]).unwrap(), "c");
    }

    #[test]
    fn what_was_approved_is_inherited_only_by_the_way_back_of_the_last_move() {
        let approval = |path: &str| {
            serde_json::from_value::<Approval>(serde_json::json!({
                "what": {"path": path, "seen": {"kind": "fifo", "mode": 0, "uid": 0, "gid": 0}},
                "ids": {"uid": 1000, "gid": 1000}, "by": "an operator", "at_unix_ms": 7,
            }))
            .unwrap()
        };
        let mut moves = known(&[("c", "t"), ("t", "u"), ("b", "t")]);
        for (number, known) in moves.iter_mut().enumerate() {
            known.approvals = vec![approval(&format!("path{number}"))];
        }
        let back = |moves: &[PassedOn], source: &str, target: &str| {
            let of = Move {
                job: JobId::new_now(),
                account: "shop".parse().unwrap(),
                direction: Direction::Return,
                source: source.parse().unwrap(),
                target: target.parse().unwrap(),
                source_peer: "127.0.0.1:1".parse().unwrap(),
                target_peer: "127.0.0.1:2".parse().unwrap(),
                epoch: Epoch(3),
            };
            inherited(&of, moves.to_vec())
        };
        assert_eq!(back(&moves, "t", "c"), [approval("path0")]);
        for (source, target) in [("t", "u"), ("t", "b"), ("c", "t"), ("u", "c")] {
            assert_eq!(back(&moves, source, target), [], "{source} {target}");
        }
        moves[0].committed = false;
        assert_eq!(back(&moves, "t", "c"), [], "overtaken");
    }

    #[test]
    fn a_copy_of_an_unknown_move_is_finalized_if_there_is_only_one() {
        let all = [
            at(on("a", StandingKind::Moved, Some("t")), 1),
            at(on("b", StandingKind::Moved, Some("t")), 1),
            at(on("t", StandingKind::Serving, None), 1),
        ];
        let account: AccountName = "shop".parse().unwrap();
        let of = |all: &[_], moved: &[_]| {
            let at = whereabouts(&account, Serving::AfterMove, all.to_vec(), &known(moved))?;
            to_finalize(&account, &at).map(String::from)
        };
        assert_eq!(of(&all, &[("a", "t")]).unwrap(), "a");
        assert_eq!(of(&all[1..], &[]).unwrap(), "b");
        let fault = of(&all, &[]).unwrap_err();
        assert!(fault.message.contains("a, b") && fault.remedy.contains("revoke"), "{fault}");
        let fault = of(&all[2..], &[]).unwrap_err();
        assert!(fault.message.contains("nothing stands"), "{fault}");
    }

    #[test]
    fn going_back_is_about_the_account_that_moved() {
        let all = [
            on("a", StandingKind::Moved, Some("t")),
            on("b", StandingKind::Serving, None),
            on("t", StandingKind::Serving, None),
        ];
        assert_eq!(serving(Serving::AfterMove, &all).unwrap(), "t");
        assert!(serving(Serving::Only, &all).is_err());
        assert_eq!(back(&all, &[("a", "t")]).unwrap(), "a");
        assert_eq!(serving(Serving::AfterMove, &all[1..2]).unwrap(), "b");
        assert!(serving(Serving::Only, &all[..1]).is_err());
    }

    #[test]
    fn a_finalized_copy_can_be_finalized_again_but_is_no_way_back() {
        let all = [on("a", StandingKind::Closed, Some("t")), on("t", StandingKind::Serving, None)];
        let fault = back(&all, &[("a", "t")]).unwrap_err();
        assert!(fault.message.contains("finalized"), "{fault}");
        let account: AccountName = "shop".parse().unwrap();
        let at =
            whereabouts(&account, Serving::AfterMove, all.to_vec(), &known(&[("a", "t")])).unwrap();
        assert_eq!(to_finalize(&account, &at).unwrap().as_str(), "a");
    }
}
