//! Agents played by the test: they answer real commands, and fail where a case says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferry_proto::approval::Sight;
use ferry_proto::channel::{self, Identity, Party};
use ferry_proto::command::{
    AccountFacts, AccountState, CommitRecord, Intent, Receipt, ServerFacts, StandingKind,
    TargetFacts,
};
use ferry_proto::grant::{Grant, SignedGrant};
use ferry_proto::ids::{Epoch, ServerName};
use ferry_proto::v1::agent_service_client::AgentServiceClient;
use ferry_proto::v1::{self, event, session_request, session_response};
use ferry_proto::{Fault, FaultClass};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::controller::Controller;

/// What an agent played by the test has done: outlives its sessions, as a ledger would.
#[derive(Default)]
pub(crate) struct World {
    /// Kinds of commands carried out, in order, with how often.
    pub(crate) done: Vec<String>,
    /// The same, each with its account.
    pub(crate) done_for: Vec<(String, String)>,
    /// What their grants approved, each with the kind of the command.
    pub(crate) approved: Vec<(String, String)>,
    pub(crate) outcomes: HashMap<String, Result<Receipt, Fault>>,
    /// What to answer instead of carrying out, by kind.
    pub(crate) failing: HashMap<String, Fault>,
    /// Kinds that are never answered, unless they are cancelled.
    pub(crate) silent: Vec<String>,
    /// Commands that were received and not answered, by id.
    pub(crate) waiting: HashMap<String, String>,
    /// Kinds that were cancelled.
    pub(crate) cancelled: Vec<String>,
    /// Whom it must not trust, as it heard.
    pub(crate) revocations: Vec<Vec<String>>,
    /// What it says of its accounts when it connects; none: what it begins with.
    pub(crate) accounts: Option<Vec<AccountState>>,
    /// The highest controller generation that it has obeyed.
    pub(crate) obeyed: u64,
}

impl World {
    pub(crate) fn serves(&mut self, names: &[&str]) {
        let state = |name: &&str| AccountState {
            name: name.parse().unwrap(),
            ..stands(StandingKind::Serving, 0)
        };
        self.accounts = Some(names.iter().map(state).collect());
    }
}

#[derive(Clone)]
pub(crate) struct Player {
    pub(crate) name: ServerName,
    pub(crate) world: Arc<Mutex<World>>,
    /// Ends its sessions.
    pub(crate) away: Arc<Mutex<CancellationToken>>,
}

impl Player {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.parse().unwrap(), world: Arc::default(), away: Arc::default() }
    }

    pub(crate) fn done(&self) -> Vec<String> {
        self.world.lock().unwrap().done.clone()
    }

    /// Connects and answers until the stream ends.
    pub(crate) fn play(
        &self,
        address: &str,
        identity: &Arc<Identity>,
    ) -> tokio::task::JoinHandle<Result<(), Fault>> {
        let (player, address, identity) = (self.clone(), address.to_owned(), identity.clone());
        let away = self.away.lock().unwrap().clone();
        tokio::spawn(async move {
            let channel = channel::connect(&address, &identity, &Party::Controller).await?;
            let (out, queue) = mpsc::channel(64);
            let hello = v1::Hello {
                peer_address: "192.0.2.7:7401".into(),
                facts: b"{}".to_vec(),
                generation: player.world.lock().unwrap().obeyed,
                ..v1::Hello::default()
            };
            out.send(request(session_request::Body::Hello(hello))).await.unwrap();
            let mut incoming = AgentServiceClient::new(channel)
                .session(ReceiverStream::new(queue))
                .await
                .map_err(|s| Fault::transient(s.to_string()))?
                .into_inner();
            out.send(player.accounts()).await.unwrap();
            loop {
                let message = tokio::select! {
                    message = incoming.message() => message,
                    () = away.cancelled() => break,
                };
                let Ok(Some(message)) = message else { break };
                let answer = match message.body {
                    Some(session_response::Body::Command(command)) => player.answer(&command),
                    Some(session_response::Body::ObserveCommandId(id)) => player.observe(&id),
                    Some(session_response::Body::CancelCommandId(id)) => player.cancel(&id),
                    Some(session_response::Body::Revocations(told)) => {
                        player.world.lock().unwrap().revocations.push(told.servers);
                        None
                    }
                    _ => None,
                };
                if let Some(answer) = answer
                    && out.send(answer).await.is_err()
                {
                    break;
                }
            }
            Ok(())
        })
    }

    pub(crate) fn accounts(&self) -> v1::SessionRequest {
        let begins = || match self.name.as_str() {
            "client" => vec![stands(StandingKind::Serving, 0)],
            _ => vec![],
        };
        let accounts = self.world.lock().unwrap().accounts.clone().unwrap_or_else(begins);
        let accounts = accounts.iter().map(|state| serde_json::to_vec(state).unwrap()).collect();
        let states = v1::AccountStates { accounts, problems: vec![] };
        let body = event::Body::AccountStates(states);
        request(session_request::Body::Event(v1::Event { number: 0, body: Some(body) }))
    }

    /// Says of a command that it is not under way, or what came of it.
    pub(crate) fn observe(&self, id: &str) -> Option<v1::SessionRequest> {
        let ended = self.world.lock().unwrap().outcomes.get(id).cloned();
        let body = match ended {
            Some(outcome) => done(id, &outcome),
            None => event::Body::CommandState(v1::CommandState { id: id.into(), running: false }),
        };
        Some(request(session_request::Body::Event(v1::Event { number: 0, body: Some(body) })))
    }

    /// Stops a command that is under way.
    pub(crate) fn cancel(&self, id: &str) -> Option<v1::SessionRequest> {
        let mut world = self.world.lock().unwrap();
        let kind = world.waiting.remove(id)?;
        world.cancelled.push(kind);
        let outcome = Err(Fault::new(FaultClass::Cancelled, "cancelled"));
        world.outcomes.insert(id.to_owned(), outcome.clone());
        let body = Some(done(id, &outcome));
        Some(request(session_request::Body::Event(v1::Event { number: 1, body })))
    }

    /// Waits until the world is as told.
    pub(crate) async fn until(&self, what: &str, is: impl Fn(&World) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !is(&self.world.lock().unwrap()) {
            assert!(tokio::time::Instant::now() < deadline, "{}: {what}", self.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Connects anew, and returns when the controller knows that the account stands here like that.
    pub(crate) async fn says(
        &self,
        controller: &Controller,
        identity: &Arc<Identity>,
        state: &AccountState,
    ) {
        self.leave(controller).await;
        self.world.lock().unwrap().accounts = Some(vec![state.clone()]);
        self.play(&controller.address, identity);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !controller.knows(self.name.as_str(), state).await {
            assert!(tokio::time::Instant::now() < deadline, "{}: {state:?}", self.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends its sessions, and returns when the controller has noticed.
    pub(crate) async fn leave(&self, controller: &Controller) {
        std::mem::take(&mut *self.away.lock().unwrap()).cancel();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while controller.is_connected(self.name.as_str()).await {
            assert!(tokio::time::Instant::now() < deadline, "{} is still connected", self.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn until_waiting(&self, kind: &str) {
        self.until(kind, |world| world.waiting.values().any(|k| k == kind)).await;
    }

    pub(crate) fn answer(&self, command: &v1::Command) -> Option<v1::SessionRequest> {
        let intent: Intent = serde_json::from_slice(&command.intent).unwrap();
        let mut world = self.world.lock().unwrap();
        assert!(command.generation >= world.obeyed, "an overtaken controller commands");
        world.obeyed = command.generation;
        if world.silent.iter().any(|k| k == intent.kind()) {
            world.waiting.insert(command.id.clone(), intent.kind().to_owned());
            return None;
        }
        let outcome = match world.outcomes.get(&command.id) {
            Some(outcome) => outcome.clone(),
            None => {
                let outcome = match world.failing.get(intent.kind()) {
                    Some(fault) => Err(fault.clone()),
                    None => Ok(receipt(&intent)),
                };
                let forced = match &intent {
                    Intent::Release { forced: Some(record), .. }
                    | Intent::Open { commit: Some(record), .. } => record.forced.is_some(),
                    _ => false,
                };
                let how = if forced { " by force" } else { "" };
                world.done.push(format!("{}{how}", intent.kind()));
                world.done_for.push((intent.kind().to_owned(), intent.account().to_string()));
                let approved = approved(command).into_iter();
                world.approved.extend(approved.map(|path| (intent.kind().to_owned(), path)));
                world.outcomes.insert(command.id.clone(), outcome.clone());
                outcome
            }
        };
        let body = Some(done(&command.id, &outcome));
        Some(request(session_request::Body::Event(v1::Event { number: 1, body })))
    }
}

pub(crate) fn done(id: &str, outcome: &Result<Receipt, Fault>) -> event::Body {
    let (receipt, fault) = match outcome {
        Ok(receipt) => (serde_json::to_vec(receipt).unwrap(), vec![]),
        Err(fault) => (vec![], serde_json::to_vec(fault).unwrap()),
    };
    event::Body::CommandDone(v1::CommandDone { id: id.into(), receipt, fault })
}

/// How the account stands on a server.
pub(crate) fn stands(standing: StandingKind, epoch: u64) -> AccountState {
    AccountState {
        name: "demo".parse().unwrap(),
        standing,
        epoch: Epoch(epoch),
        moved_to: None,
        domains: vec![],
        job: None,
    }
}

pub(crate) fn request(body: session_request::Body) -> v1::SessionRequest {
    v1::SessionRequest { body: Some(body) }
}

/// A setuid program of root's.
pub(crate) fn tool(path: &str) -> Sight {
    let seen = serde_json::json!({
        "kind": {"file": {"size": 5, "digest": "00".repeat(32)}}, "mode": 0o4755, "uid": 0, "gid": 0,
    });
    Sight { path: path.to_owned(), seen: serde_json::from_value(seen).unwrap() }
}

/// What the command's grant approves: the paths.
fn approved(command: &v1::Command) -> Vec<String> {
    if command.grant.is_empty() {
        return Vec::new();
    }
    let signed: SignedGrant = serde_json::from_slice(&command.grant).unwrap();
    let grant: Grant = serde_json::from_slice(&signed.bytes).unwrap();
    grant.approvals.into_iter().map(|approval| approval.what.path).collect()
}

pub(crate) fn receipt(intent: &Intent) -> Receipt {
    match intent {
        Intent::Inspect { source: None, account, approve, inherited, .. } => {
            Receipt::Source(Box::new(AccountFacts {
                definition: serde_json::from_value(
                    serde_json::json!({"name": account, "user": account, "home": "/home/demo"}),
                )
                .unwrap(),
                epoch: Epoch(0),
                uid: 1000,
                gid: 1000,
                files: 1,
                bytes: 1,
                needs: ferry_proto::command::TreeNeeds::default(),
                approvable: approve
                    .iter()
                    .map(|path| tool(path))
                    .chain(inherited.iter().map(|approval| approval.what.clone()))
                    .collect(),
                databases: vec![],
                server: ServerFacts::default(),
                findings: vec![],
            }))
        }
        Intent::Inspect { .. } => Receipt::Target(Box::new(TargetFacts {
            server: ServerFacts::default(),
            uid: 1000,
            gid: 1000,
            rooms: vec![],
            findings: vec![],
        })),
        Intent::Commit { of } => Receipt::Committed(CommitRecord {
            job: of.job,
            account: of.account.clone(),
            source: of.source.clone(),
            target: of.target.clone(),
            epoch: of.epoch.next(),
            fenced_at_unix: 0,
            committed_at_unix_ms: 0,
            forced: None,
        }),
        Intent::Release { forced: Some(_), .. } => Receipt::GivenUp {
            found: "it had served the account again".into(),
            written: vec!["orders/4711".into()],
            written_total: 1,
            look_at: "see find".into(),
        },
        Intent::Release { .. } => Receipt::Released {
            outage_ms: Some(1.0),
            fenced_ms: 2.0,
            held: 3,
            refused: 0,
            ended: 0,
        },
        Intent::Open { commit, .. } => {
            assert!(commit.is_some(), "the open carries the commit record");
            Receipt::Done { summary: "open".into(), figures: Default::default() }
        }
        _ => Receipt::Done { summary: "done".into(), figures: Default::default() },
    }
}
