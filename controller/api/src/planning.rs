//! Asks both ends, then plans. Changes nothing but the store, where the plan is kept. It must not know what of
//! what both ends said stands in the way: that is `ferry-plan`'s.

mod whereabouts;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferry_fleet::commands::{Order, Stop};
use ferry_fleet::{Fleet, now_ms};
use ferry_plan::{Heard, Inputs, Plan, Policy, plan};
use ferry_proto::approval::{Approval, Ids};
use ferry_proto::command::{
    AccountFacts, AccountState, Direction, End, Intent, Move, Receipt, TargetFacts,
};
use ferry_proto::grant::SignedGrant;
use ferry_proto::ids::{AccountName, CommandId, JobId, ServerName};
use ferry_proto::view::JobPhase;
use ferry_proto::{Fault, FaultClass};
use ferry_store::{ServerState, Store};

use crate::approvals;
use crate::jobs::{fold, read_plan};

use whereabouts::{
    PassedOn, Serving, Whereabouts, back_to, inherited, is_leaving, serves, to_finalize,
    whereabouts, without_outdated,
};

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
    /// Paths that the target shall let in, as they are shown.
    pub approve: Vec<String>,
    /// Who wishes it.
    pub by: String,
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

impl Planner {
    /// Plans a move.
    ///
    /// # Errors
    /// If an end cannot be asked, or the wish makes no sense; what merely stands in the way is a
    /// finding in the plan.
    pub async fn plan(&self, wish: &Wish) -> Result<Plan, Fault> {
        let which = match (&wish.from, wish.direction, &wish.to) {
            (Some(from), _, _) => Serving::On(from),
            (None, Direction::Rollback, _) | (None, _, None) => Serving::AfterMove,
            (None, _, Some(_)) => Serving::Only,
        };
        let at = self.whereabouts(&wish.account, which).await?;
        let source = at.serving.0.clone();
        let target = match (&wish.to, wish.direction) {
            (Some(to), _) => to.clone(),
            (None, Direction::Rollback) => back_to(&wish.account, &at)?,
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
        let inherited = self.inherited(&of).await?;
        let facts = self.inspect_source(&of, &wish.approve, &inherited).await?;
        let ids = Ids { uid: facts.uid, gid: facts.gid };
        let approvals = approvals::of(wish, &inherited, &facts.approvable, ids, now_ms())?;
        let source_unix_ms = now_ms();
        let target = self.inspect_target(&of, &facts).await?;
        let heard = Heard { source_unix_ms, target_unix_ms: now_ms() };
        let policy = wish.policy.clone();
        Ok(plan(&Inputs { of, source: facts, target, heard, policy, approvals }))
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
        let before = to_finalize(account, &at)?;
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
        let passed_on = self.passed_on(account).await?;
        whereabouts(account, which, without_outdated(all, &bound), &passed_on).map_err(|fault| {
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

    /// The moves of an account that this controller led, the last one to each server.
    async fn passed_on(&self, account: &AccountName) -> Result<Vec<PassedOn>, Fault> {
        let mut passed_on: Vec<PassedOn> = Vec::new();
        for row in self.store.jobs(Some(account), false).await? {
            let view = match fold(self.store.as_ref(), &row).await {
                Ok(folded) => folded.view().clone(),
                // It may have been the last to its target: nothing is known of what was before it.
                Err(fault) if fault.class == FaultClass::Bug => break,
                Err(fault) => return Err(fault),
            };
            // What became of a job that was overtaken, its source says.
            let came_there = view.committed || view.phase == JobPhase::Overtaken;
            if came_there && passed_on.iter().all(|known| known.to != view.target) {
                let (approvals, committed) = (read_plan(&row)?.approvals, view.committed);
                let (from, to) = (view.source, view.target);
                passed_on.push(PassedOn { from, to, committed, approvals });
            }
        }
        Ok(passed_on)
    }

    /// What was approved of the move that brought the account to where it goes back from.
    async fn inherited(&self, of: &Move) -> Result<Vec<Approval>, Fault> {
        if of.direction == Direction::Outbound {
            return Ok(Vec::new());
        }
        Ok(inherited(of, self.passed_on(&of.account).await?))
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

    async fn inspect_source(
        &self,
        of: &Move,
        approve: &[String],
        inherited: &[Approval],
    ) -> Result<AccountFacts, Fault> {
        let intent = Intent::Inspect {
            account: of.account.clone(),
            end: End::Source,
            source: None,
            peer: Some(of.target_peer),
            approve: approve.to_vec(),
            inherited: inherited.to_vec(),
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
            approve: Vec::new(),
            inherited: Vec::new(),
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
        let never = Stop::default();
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
