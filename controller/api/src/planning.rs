//! Asks both ends, then plans. Changes nothing but the store, where the plan is kept.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferry_fleet::commands::Order;
use ferry_fleet::{Fleet, now_ms};
use ferry_plan::{Heard, Inputs, Plan, Policy, plan};
use ferry_proto::Fault;
use ferry_proto::command::{
    AccountFacts, AccountState, Direction, End, Intent, Move, Receipt, StandingKind, TargetFacts,
};
use ferry_proto::grant::SignedGrant;
use ferry_proto::ids::{AccountName, CommandId, JobId, ServerName};
use ferry_store::{ServerState, Store};
use tokio_util::sync::CancellationToken;

use crate::jobs::read_plan;

/// How long an end may take to say how it stands: it may have millions of files to count.
const INSPECTION: Duration = Duration::from_secs(300);
/// How long the target may take to begin to ask the source for its record, in seconds.
const GRANT_SECONDS: i64 = 900;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What shall move.
    pub account: AccountName,
    /// Which server serves it now; none if only one says so.
    pub from: Option<ServerName>,
    /// Where to; none for a rollback, which knows it.
    pub to: Option<ServerName>,
    /// Which way.
    pub direction: Direction,
    /// What may be set.
    pub policy: Policy,
}

/// Plans moves.
#[derive(Clone)]
pub struct Planner {
    /// The agents.
    pub fleet: Arc<Fleet>,
    /// What is known.
    pub store: Arc<dyn Store>,
}

/// Which server is meant, of those that say that they serve an account of a name.
#[derive(Debug, Clone, Copy)]
enum Serving<'a> {
    /// The only one there is.
    Only,
    /// The only one that another server moved it to.
    AfterMove,
    /// This one.
    On(&'a ServerName),
}

/// Where an account is: who serves it, and who served it before.
#[derive(Debug)]
struct Whereabouts {
    /// Serves it now (or holds it fenced).
    serving: (ServerName, AccountState),
    /// Passed it on to the one that serves it.
    before: Option<(ServerName, AccountState)>,
}

impl Planner {
    /// Plans a move.
    ///
    /// # Errors
    /// If an end cannot be asked, or the wish makes no sense; what merely stands in the way is a
    /// finding in the plan.
    pub async fn plan(&self, wish: &Wish) -> Result<Plan, Fault> {
        let which = match (&wish.to, &wish.from) {
            (_, Some(from)) => Serving::On(from),
            (None, None) => Serving::AfterMove,
            (Some(_), None) => Serving::Only,
        };
        let at = self.whereabouts(&wish.account, which).await?;
        let source = at.serving.0.clone();
        let target = match (&wish.to, wish.direction) {
            (Some(to), _) => to.clone(),
            (None, Direction::Rollback) => back_to(&wish.account, at.before)?,
            (None, _) => {
                return Err(Fault::precondition("no target was named").remedy("give --to SERVER"));
            }
        };
        let of = Move {
            job: JobId::new_now(),
            account: wish.account.clone(),
            direction: wish.direction,
            source_peer: self.peer_address(&source).await?,
            target_peer: self.peer_address(&target).await?,
            source,
            target,
            epoch: at.serving.1.epoch,
        };
        if of.source == of.target {
            return Err(Fault::precondition(format!(
                "{} serves account {} already",
                of.target, of.account
            ))
            .remedy("name another server"));
        }
        let facts = self.inspect_source(&of).await?;
        let source_unix_ms = now_ms();
        let target = self.inspect_target(&of, &facts).await?;
        let heard = Heard { source_unix_ms, target_unix_ms: now_ms() };
        Ok(plan(&Inputs { of, source: facts, target, heard, policy: wish.policy.clone() }))
    }

    /// Plans the end of a move.
    ///
    /// # Errors
    /// If the account did not move, or an end is not connected.
    pub async fn plan_finalize(
        &self,
        account: &AccountName,
        from: Option<&ServerName>,
        erase: bool,
    ) -> Result<Plan, Fault> {
        let which = from.map_or(Serving::AfterMove, Serving::On);
        let at = self.whereabouts(account, which).await?;
        let (before, _) = at.before.ok_or_else(|| {
            Fault::precondition(format!("nothing stands for a move of account {account}"))
                .remedy("see `ferry account list`")
        })?;
        let of = Move {
            job: JobId::new_now(),
            account: account.clone(),
            direction: Direction::Outbound,
            source_peer: self.peer_address(&before).await?,
            target_peer: self.peer_address(&at.serving.0).await?,
            source: before,
            target: at.serving.0,
            epoch: at.serving.1.epoch,
        };
        self.fleet.require_connected(&of.source)?;
        Ok(ferry_plan::finalize(&of, erase))
    }

    /// Who has the account, as the agents said last. Servers that are cut off have no say.
    ///
    /// # Errors
    /// If no server serves it, or more than one that may be meant: two servers may have an account of
    /// the same name each.
    async fn whereabouts(
        &self,
        account: &AccountName,
        which: Serving<'_>,
    ) -> Result<Whereabouts, Fault> {
        let (_, cut_off) = self.store.revocations().await?;
        let of_name = self.store.accounts().await?.into_iter().filter(|(_, s)| &s.name == account);
        let (silenced, all): (Vec<_>, Vec<_>) =
            of_name.partition(|(server, _)| cut_off.contains(server));
        let bound = self.bound(&all).await?;
        whereabouts(account, which, without_outdated(all, &bound)).map_err(|fault| {
            match silenced.iter().find(|(_, state)| serves(&state.standing)) {
                Some((server, _)) => fault.context(format!(
                    "account {account} was last seen on {server}, which is cut off"
                )),
                None => fault,
            }
        })
    }

    /// Where the servers that have the account armed or fenced for a job bring it.
    async fn bound(
        &self,
        all: &[(ServerName, AccountState)],
    ) -> Result<Vec<(ServerName, ServerName)>, Fault> {
        let mut bound = Vec::new();
        for (server, state) in all.iter().filter(|(_, state)| is_leaving(&state.standing)) {
            let Some(job) = state.job else { continue };
            let Some(row) = self.store.job(job).await? else { continue };
            // A plan that is damaged says nothing: the server keeps its say.
            match read_plan(&row) {
                Ok(plan) if plan.source == *server => bound.push((server.clone(), plan.target)),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(bound)
    }

    async fn peer_address(&self, server: &ServerName) -> Result<SocketAddr, Fault> {
        let row = self.store.server(server).await?.ok_or_else(|| {
            Fault::precondition(format!("no server is called {server}"))
                .remedy("see `ferry server list`; add one with `ferry server add`")
        })?;
        match row.state {
            ServerState::Enrolled => {}
            ServerState::Added => {
                return Err(Fault::precondition(format!("server {server} has not enrolled"))
                    .remedy("run `ferry-agent enroll` there with its token"));
            }
            ServerState::Revoked => {
                return Err(Fault::precondition(format!("server {server} is cut off"))
                    .remedy(format!("to use it again: ferry server add {server}, then enrol it")));
            }
        }
        self.fleet.require_connected(server)?;
        row.peer_address.parse().map_err(|_| {
            Fault::precondition(format!("server {server} has no peer address"))
                .remedy("set peer_address in /etc/ferry/agent.toml there and restart ferry-agent")
        })
    }

    async fn inspect_source(&self, of: &Move) -> Result<AccountFacts, Fault> {
        let intent = Intent::Inspect {
            account: of.account.clone(),
            end: End::Source,
            source: None,
            peer: Some(of.target_peer),
        };
        match self.ask(&of.source, intent, None).await? {
            Receipt::Source(facts) => Ok(*facts),
            other => {
                Err(Fault::bug(format!("{} answered an inspection with {other:?}", of.source)))
            }
        }
    }

    async fn inspect_target(&self, of: &Move, facts: &AccountFacts) -> Result<TargetFacts, Fault> {
        let intent = Intent::Inspect {
            account: of.account.clone(),
            end: End::Target,
            source: Some(Box::new(facts.clone())),
            peer: Some(of.source_peer),
        };
        let grant = ferry_steps::grant(&self.fleet, of, GRANT_SECONDS)?;
        match self.ask(&of.target, intent, Some(grant)).await? {
            Receipt::Target(facts) => Ok(*facts),
            other => {
                Err(Fault::bug(format!("{} answered an inspection with {other:?}", of.target)))
            }
        }
    }

    async fn ask(
        &self,
        server: &ServerName,
        intent: Intent,
        grant: Option<SignedGrant>,
    ) -> Result<Receipt, Fault> {
        let order =
            Order { server: server.clone(), id: CommandId::new_now(), job: None, intent, grant };
        let account = order.intent.account().clone();
        let never = CancellationToken::new();
        let answer = self.fleet.run(&order, None, &never);
        let answer = tokio::time::timeout(INSPECTION, answer).await.unwrap_or_else(|_| {
            Err(Fault::transient(format!(
                "its agent did not finish its inspection within {} s",
                INSPECTION.as_secs()
            )))
        });
        answer.map_err(|fault| {
            fault.context(format!(
                "{server} could not be inspected for account {account}; nothing was changed"
            ))
        })
    }
}

fn serves(standing: &StandingKind) -> bool {
    matches!(standing, StandingKind::Serving | StandingKind::Armed | StandingKind::Fenced)
}

fn is_leaving(standing: &StandingKind) -> bool {
    matches!(standing, StandingKind::Armed | StandingKind::Fenced)
}

/// Leaves out what was said before a commit that is known by its outcome: a source that died right
/// after it is still known as armed or fenced, while the account is at a higher epoch where its job
/// brought it. Without that job it may be another account of the same name, whatever its epoch.
fn without_outdated(
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

/// Picks the server that serves the account, and the one that passed it on to it.
fn whereabouts(
    account: &AccountName,
    which: Serving<'_>,
    all: Vec<(ServerName, AccountState)>,
) -> Result<Whereabouts, Fault> {
    let (serving, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(_, state)| serves(&state.standing));
    let before = |server: &ServerName| {
        others
            .iter()
            .filter(|(_, s)| {
                // A closed copy was finalized, which can be repeated; it may still have to be erased.
                matches!(s.standing, StandingKind::Moved | StandingKind::Closed)
                    && s.moved_to.as_ref() == Some(server)
            })
            .max_by_key(|(_, s)| (s.epoch, s.standing == StandingKind::Moved))
    };
    // Without any that was moved here there is one to say so of, if it is only one.
    let moved = serving.iter().any(|(server, _)| before(server).is_some());
    let mut meant: Vec<_> = serving
        .into_iter()
        .filter(|(server, _)| match which {
            Serving::Only => true,
            Serving::AfterMove => !moved || before(server).is_some(),
            Serving::On(from) => from == server,
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
    let before = before(&last.0).cloned();
    Ok(Whereabouts { serving: last, before })
}

/// Where a rollback goes: a finalized copy has given up its visitors, and is no way back.
fn back_to(
    account: &AccountName,
    before: Option<(ServerName, AccountState)>,
) -> Result<ServerName, Fault> {
    match before {
        Some((server, state)) if state.standing == StandingKind::Moved => Ok(server),
        Some((server, _)) => Err(Fault::precondition(format!(
            "the move of account {account} from {server} was finalized: it is no rollback any more"
        ))
        .remedy(format!("move it there again: ferry move {account} --to {server}"))),
        None => Err(Fault::precondition(format!("account {account} has not moved"))
            .remedy("there is nothing to roll back; see `ferry account list`")),
    }
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
    use ferry_proto::ids::Epoch;

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
        whereabouts(&account, which, all.to_vec()).map(|at| at.serving.0.to_string())
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
        let at = |(server, state): (ServerName, AccountState), epoch| {
            (server, AccountState { epoch: Epoch(epoch), ..state })
        };
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
    fn the_way_back_is_the_server_that_passed_it_on_last() {
        let passed = |server, standing, epoch| {
            let (server, state) = on(server, standing, Some("t"));
            (server, AccountState { epoch: Epoch(epoch), ..state })
        };
        let account: AccountName = "shop".parse().unwrap();
        for last in [StandingKind::Moved, StandingKind::Closed] {
            let mut all = vec![
                passed("a", StandingKind::Moved, 1),
                passed("b", last, 3),
                on("t", StandingKind::Serving, None),
            ];
            for _ in 0..2 {
                let at = whereabouts(&account, Serving::AfterMove, all.clone()).unwrap();
                assert_eq!(at.before.unwrap().0.as_str(), "b");
                all.swap(0, 1);
            }
        }
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
        let account = "shop".parse().unwrap();
        let at = whereabouts(&account, Serving::AfterMove, all.to_vec()).unwrap();
        assert_eq!(at.before.unwrap().0.as_str(), "a");
        assert_eq!(serving(Serving::AfterMove, &all[1..2]).unwrap(), "b");
        assert!(serving(Serving::Only, &all[..1]).is_err());
    }

    #[test]
    fn a_finalized_copy_can_be_finalized_again_but_is_no_way_back() {
        let all = [on("a", StandingKind::Closed, Some("t")), on("t", StandingKind::Serving, None)];
        let account: AccountName = "shop".parse().unwrap();
        let at = whereabouts(&account, Serving::AfterMove, all.to_vec()).unwrap();
        assert_eq!(at.before.as_ref().unwrap().0.as_str(), "a");
        let fault = back_to(&account, at.before).unwrap_err();
        assert!(fault.message.contains("finalized"), "{fault}");
        // A copy that still passes its visitors on comes first.
        let both = [on("b", StandingKind::Moved, Some("t")), all[0].clone(), all[1].clone()];
        let at = whereabouts(&account, Serving::AfterMove, both.to_vec()).unwrap();
        assert_eq!(back_to(&account, at.before).unwrap().as_str(), "b");
    }
}
