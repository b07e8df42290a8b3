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

/// How long an end may take to say how it stands: it may have millions of files to count.
const INSPECTION: Duration = Duration::from_secs(300);
/// How long the target may take to begin to ask the source for its record, in seconds.
const GRANT_SECONDS: i64 = 900;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What shall move.
    pub account: AccountName,
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

/// Where an account is: who serves it, and who served it before.
pub struct Whereabouts {
    /// Serves it now (or holds it fenced).
    pub serving: (ServerName, AccountState),
    /// Passed it on to the one that serves it.
    pub before: Option<(ServerName, AccountState)>,
}

impl Planner {
    /// Plans a move.
    ///
    /// # Errors
    /// If an end cannot be asked, or the wish makes no sense; what merely stands in the way is a
    /// finding in the plan.
    pub async fn plan(&self, wish: &Wish) -> Result<Plan, Fault> {
        let at = self.whereabouts(&wish.account).await?;
        let source = at.serving.0.clone();
        let target = match (&wish.to, wish.direction) {
            (Some(to), _) => to.clone(),
            (None, Direction::Rollback) => {
                at.before.map(|(server, _)| server).ok_or_else(|| {
                    Fault::precondition(format!("account {} has not moved", wish.account))
                        .remedy("there is nothing to roll back; see `ferry account list`")
                })?
            }
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
    pub async fn plan_finalize(&self, account: &AccountName, erase: bool) -> Result<Plan, Fault> {
        let at = self.whereabouts(account).await?;
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

    /// Who has the account, as the agents said last. The highest epoch is the truth.
    ///
    /// # Errors
    /// If no connected server has it.
    pub async fn whereabouts(&self, account: &AccountName) -> Result<Whereabouts, Fault> {
        let mut all: Vec<_> = self
            .store
            .accounts()
            .await?
            .into_iter()
            .filter(|(_, state)| &state.name == account)
            .collect();
        all.sort_by_key(|(_, state)| std::cmp::Reverse(state.epoch));
        let serves = |s: &StandingKind| {
            matches!(s, StandingKind::Serving | StandingKind::Armed | StandingKind::Fenced)
        };
        let position = all.iter().position(|(_, s)| serves(&s.standing)).ok_or_else(|| {
            Fault::precondition(format!("no server serves account {account}")).remedy(
                "see `ferry account list`; definitions belong in /etc/ferry/accounts.d on its server",
            )
        })?;
        let serving = all.remove(position);
        let before = all.into_iter().find(|(_, s)| {
            s.standing == StandingKind::Moved && s.moved_to.as_ref() == Some(&serving.0)
        });
        Ok(Whereabouts { serving, before })
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
        let never = CancellationToken::new();
        let answer = self.fleet.run(&order, None, &never);
        tokio::time::timeout(INSPECTION, answer).await.map_err(|_| {
            Fault::transient(format!(
                "the agent of {server} did not finish its inspection within {} s",
                INSPECTION.as_secs()
            ))
        })?
    }
}
