//! The link to the controller: dialled by the agent, one stream, commands in and events out. What is
//! not acknowledged is sent again on the next stream. This is the edge where wire types become
//! ours. It must not know what a command does.

mod outgoing;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferry_failpoints::{Promise, broken};
use ferry_host::accounts::Inventory;
use ferry_proto::channel::{self, Party};
use ferry_proto::command::{AccountState, Outcome, StandingKind};
use ferry_proto::ids::{CommandId, Epoch};
use ferry_proto::v1::agent_service_client::AgentServiceClient;
use ferry_proto::v1::session_response::Body as Incoming;
use ferry_proto::v1::{self, event, session_request};
use ferry_proto::{Fault, FaultClass};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, blocking};
use crate::backoff::Backoff;
use crate::commands::{Command, Commands, Known, Told};
use crate::definitions::Definitions;
use crate::ledger::{Entry, Ledger};
use crate::work::inspect::server_facts;

use outgoing::Outgoing;

/// A session that lasted this long was a good one: the next wait is short again.
const GOOD_SESSION: Duration = Duration::from_secs(60);
/// The longest wait while a job has an account here, which may be closed and waits for the controller's
/// next command. There are few such agents at a time.
const LONGEST_WITH_A_JOB: Duration = Duration::from_secs(1);
/// Messages waiting to be sent.
const QUEUE: usize = 256;
/// How often the inventory is read anew while nothing changes.
const INVENTORY: Duration = Duration::from_secs(60);
/// No message of the controller is longer, and it takes none that is.
const MAX_MESSAGE: usize = 4 << 20;

/// The link, between sessions.
pub struct Link {
    agent: Arc<Agent>,
    commands: Arc<Commands>,
    told: mpsc::Receiver<Told>,
    controller: String,
    /// Outcomes that the controller has not acknowledged.
    waiting: VecDeque<(CommandId, Outcome)>,
    connected: watch::Sender<bool>,
}

impl Link {
    /// A link to the controller at `controller` (`HOST:PORT`). `told` is where commands say what
    /// came of them.
    pub fn new(
        agent: Arc<Agent>,
        commands: Arc<Commands>,
        told: mpsc::Receiver<Told>,
        controller: String,
        connected: watch::Sender<bool>,
    ) -> Self {
        Self { agent, commands, told, controller, waiting: VecDeque::new(), connected }
    }

    /// Keeps a session with the controller until `stop` fires.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let started = tokio::time::Instant::now();
            let ended = tokio::select! {
                ended = self.session() => ended,
                () = stop.cancelled() => break,
            };
            self.connected.send_replace(false);
            if started.elapsed() > GOOD_SESSION {
                backoff = Backoff::default();
            }
            let pause = self.agent.look(|ledger| wait(&mut backoff, ledger));
            match ended {
                Ok(()) => tracing::info!("the controller ended the session"),
                Err(fault) => tracing::warn!(
                    again_in_ms = pause.as_millis(),
                    "no session with the controller: {fault}"
                ),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
        }
    }

    async fn session(&mut self) -> Result<(), Fault> {
        self.agent.find_peer_address(&self.controller).await?;
        let channel =
            channel::connect(&self.controller, &self.agent.identity, &Party::Controller).await?;
        let mut client = AgentServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let (out, queue) = mpsc::channel(QUEUE);
        let mut outgoing = Outgoing::new(out);
        outgoing.send(session_request::Body::Hello(self.hello().await?)).await?;
        let mut incoming =
            client.session(ReceiverStream::new(queue)).await.map_err(|s| lost(&s))?.into_inner();
        let waiting = std::mem::take(&mut self.waiting);
        outgoing.note(waiting);
        self.connected.send_replace(true);
        tracing::info!(controller = %self.controller, "connected");
        let ended = match outgoing.tell_again().await {
            Ok(()) => self.converse(&mut incoming, &mut outgoing).await,
            Err(fault) => Err(fault),
        };
        self.waiting = outgoing.left();
        ended
    }

    async fn converse(
        &mut self,
        incoming: &mut tonic::Streaming<v1::SessionResponse>,
        outgoing: &mut Outgoing,
    ) -> Result<(), Fault> {
        // A task of its own: an inventory program may take its time, and commands must not wait.
        let _reporting =
            AbortOnDrop(tokio::spawn(report(self.agent.clone(), outgoing.out.clone())));
        loop {
            tokio::select! {
                message = incoming.message() => match message.map_err(|s| lost(&s))? {
                    Some(message) => self.take(message, outgoing).await?,
                    None => return Ok(()),
                },
                told = self.told.recv() => match told {
                    Some(Told::Ended(id, outcome)) => outgoing.ended(id, *outcome).await?,
                    Some(Told::Progress(id, progress)) => outgoing.progress(id, &progress).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn take(
        &mut self,
        message: v1::SessionResponse,
        outgoing: &mut Outgoing,
    ) -> Result<(), Fault> {
        match message.body {
            Some(Incoming::Command(command)) => {
                let number = command.number;
                let command = read_command(command)?;
                let id = command.id;
                if let Some(outcome) = self.commands.submit(command).await {
                    outgoing.ended(id, outcome).await?;
                }
                outgoing.send(session_request::Body::CommandAck(number)).await
            }
            Some(Incoming::EventAck(number)) => {
                outgoing.acknowledged(number);
                Ok(())
            }
            Some(Incoming::CancelCommandId(id)) => {
                self.commands.cancel(read_id(&id)?);
                Ok(())
            }
            Some(Incoming::ObserveCommandId(id)) => {
                let id = read_id(&id)?;
                match self.commands.known(id) {
                    Known::Ended(outcome) => outgoing.ended(id, *outcome).await,
                    Known::Running => outgoing.state(id, true).await,
                    Known::No => outgoing.state(id, false).await,
                }
            }
            Some(Incoming::Revocations(list)) => self.revoke(list).await,
            Some(Incoming::Welcome(_)) | None => Ok(()),
        }
    }

    async fn revoke(&self, list: v1::Revocations) -> Result<(), Fault> {
        let servers =
            list.servers.iter().map(|s| s.parse()).collect::<Result<Vec<_>, _>>().map_err(|e| {
                Fault::permanent("the controller named a server by no name").caused_by(&e)
            })?;
        let serials = list.serials;
        let known = self.agent.look(|l| {
            let (s, n) = l.revocations();
            s == serials && n == servers
        });
        if !known {
            self.agent.write(move |l| l.record(Entry::Revocations { serials, servers })).await?;
            self.agent.apply_revocations()?;
        }
        Ok(())
    }

    async fn hello(&self) -> Result<v1::Hello, Fault> {
        let facts = server_facts(&self.agent).await?;
        let peer = *self.agent.peer_address.borrow();
        Ok(v1::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: crate::clock::boot_id()?,
            peer_address: peer.map(|a| a.to_string()).unwrap_or_default(),
            facts: json(&facts)?,
            // The controller heeds this word, too.
            generation: self
                .agent
                .look(|l| if broken(Promise::Epoch) { 0 } else { l.generation() }),
        })
    }
}

impl Agent {
    /// Where peers reach this agent: as configured, or the address from which the controller is
    /// reached.
    async fn find_peer_address(&self, controller: &str) -> Result<(), Fault> {
        if self.config.peer_address.is_some() {
            return Ok(());
        }
        let failed = |e: &std::io::Error| {
            Fault::io(format!("cannot find the way to the controller {controller}"), e).remedy(
                "check `controller` in /etc/ferry/agent.toml, the name service and the routes",
            )
        };
        // Connecting a datagram socket sends nothing; it asks the routing table.
        let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await.map_err(|e| failed(&e))?;
        socket.connect(controller).await.map_err(|e| failed(&e))?;
        let address = socket.local_addr().map_err(|e| failed(&e))?.ip();
        let peer = SocketAddr::new(address, self.config.peer_listen.port());
        self.peer_address.send_replace(Some(peer));
        Ok(())
    }

    /// What the definitions of this server say.
    async fn inventory(&self) -> Result<Inventory, Fault> {
        let (accounts, programs) =
            (self.config.accounts_directory.clone(), self.config.inventory_directory.clone());
        blocking(move || Ok(ferry_host::accounts::load(&accounts, &programs))).await
    }

    /// The inventory and the ledger's view of every account.
    fn account_states(&self, inventory: &Inventory) -> Vec<AccountState> {
        let mut states: Vec<AccountState> = self.look(|ledger| {
            ledger
                .accounts()
                .iter()
                .map(|(name, account)| AccountState {
                    name: name.clone(),
                    standing: account.kind(),
                    epoch: account.epoch,
                    moved_to: account.moved_to().cloned(),
                    domains: account.definition.domains().map(ToString::to_string).collect(),
                    job: account.job(),
                })
                .collect()
        });
        for (name, definition) in &inventory.accounts {
            if states.iter().all(|s| s.name != *name) {
                states.push(AccountState {
                    name: name.clone(),
                    standing: StandingKind::Serving,
                    epoch: Epoch::default(),
                    moved_to: None,
                    domains: definition.domains().map(ToString::to_string).collect(),
                    job: None,
                });
            }
        }
        states
    }
}

/// Reports the accounts whenever one changed, the inventory anew when a definition changed and from
/// time to time, until the session ends.
async fn report(agent: Arc<Agent>, out: mpsc::Sender<v1::SessionRequest>) -> Result<(), Fault> {
    let mut changed = agent.changed.subscribe();
    let mut definitions = Definitions::watch(&agent.config);
    let mut tick = tokio::time::interval(INVENTORY);
    let mut inventory = Inventory::default();
    loop {
        tokio::select! {
            _ = tick.tick() => {
                definitions.watch_again();
                inventory = agent.inventory().await?;
            }
            () = definitions.changed() => {
                definitions.settle().await;
                inventory = agent.inventory().await?;
            }
            changed = changed.changed() => if changed.is_err() { return Ok(()) },
        }
        changed.mark_unchanged();
        let states = agent.account_states(&inventory);
        let accounts = states.iter().map(json).collect::<Result<_, _>>()?;
        let problems = inventory.problems.iter().map(ToString::to_string).collect();
        let body = event::Body::AccountStates(v1::AccountStates { accounts, problems });
        let message = v1::Event { number: 0, body: Some(body) };
        let request = v1::SessionRequest { body: Some(session_request::Body::Event(message)) };
        if out.send(request).await.is_err() {
            return Ok(());
        }
    }
}

/// Ends a task with the scope that needs it.
struct AbortOnDrop(tokio::task::JoinHandle<Result<(), Fault>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn read_id(text: &str) -> Result<CommandId, Fault> {
    text.parse()
        .map_err(|e| Fault::permanent("the controller named a command by no id").caused_by(&e))
}

/// For the fuzz target `session_commands`.
pub(crate) fn fuzz(bytes: &[u8]) {
    use prost::Message as _;
    let Ok(message) = v1::SessionResponse::decode(bytes) else { return };
    match message.body {
        Some(Incoming::Command(command)) => {
            let (id, intent) = (command.id.clone(), command.intent.clone());
            if let Ok(read) = read_command(command) {
                assert_eq!((Ok(read.id), read.intent), (id.parse(), intent));
            }
        }
        Some(Incoming::CancelCommandId(id) | Incoming::ObserveCommandId(id)) => {
            let _ = read_id(&id);
        }
        _ => {}
    }
}

fn read_command(command: v1::Command) -> Result<Command, Fault> {
    let grant = if command.grant.is_empty() {
        None
    } else {
        Some(serde_json::from_slice(&command.grant).map_err(|e| {
            Fault::permanent("the controller sent a grant that cannot be read").caused_by(&e)
        })?)
    };
    Ok(Command {
        id: read_id(&command.id)?,
        generation: command.generation,
        intent: command.intent,
        grant,
    })
}

fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec(value).map_err(|e| Fault::bug("an event has no JSON").caused_by(&e))
}

/// The fault for a session that a status ended.
fn lost(status: &tonic::Status) -> Fault {
    if let Some(fault) = channel::status_fault(status) {
        return fault;
    }
    let class = match status.code() {
        tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => FaultClass::Permanent,
        _ => FaultClass::Transient,
    };
    Fault::new(class, format!("the controller ended the call: {}", status.message()))
}

/// How long to wait for the next session.
fn wait(backoff: &mut Backoff, ledger: &Ledger) -> Duration {
    let pause = backoff.next();
    let has_job = ledger.accounts().values().any(|account| account.job().is_some());
    if has_job { pause.min(LONGEST_WITH_A_JOB) } else { pause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrolment::keep_fresh;
    use crate::testing::authority::Authority;
    use crate::testing::controller::Controller;
    use crate::testing::{a_move, account, agent_as, before_the_reboot, fenced};
    use ferry_proto::channel::Identity;
    use ferry_proto::command::{Intent, Progress, Receipt};

    /// An agent whose certificate is due for renewal, with a link to `controller`.
    struct Linked {
        agent: Arc<Agent>,
        told: mpsc::Sender<Told>,
        stop: CancellationToken,
        link: tokio::task::JoinHandle<()>,
        dir: tempfile::TempDir,
    }

    fn linked(authority: &Authority, controller: &str, told: usize) -> Linked {
        let dir = tempfile::tempdir().unwrap();
        let identity = dir.path().join("identity");
        let party = Party::Agent("web1".parse().unwrap());
        authority.credentials(&party, 40, 60).store(&identity).unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
        let identity = Identity::load(&identity).unwrap();
        let agent = agent_as(authority, dir.path(), ledger, &identity);
        let stop = CancellationToken::new();
        let (told, heard) = mpsc::channel(told);
        let commands = Commands::new(agent.clone(), told.clone(), stop.clone());
        let (connected, _) = watch::channel(false);
        let link = Link::new(agent.clone(), commands, heard, controller.to_owned(), connected);
        let link = tokio::spawn(link.run(stop.clone()));
        Linked { agent, told, stop, link, dir }
    }

    fn disarm() -> (CommandId, Intent) {
        (CommandId::new_now(), Intent::Disarm { of: a_move() })
    }

    #[test]
    fn an_agent_that_a_job_has_an_account_on_comes_back_soon_however_often_it_has_tried() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
        let mut backoff = Backoff::default();
        let idle = (0..10).map(|_| wait(&mut backoff, &ledger)).max().unwrap();
        assert!(idle > LONGEST_WITH_A_JOB * 5, "{idle:?}");
        let fenced = account("shop", &fenced(&a_move(), &before_the_reboot()));
        ledger.set_account(&"shop".parse().unwrap(), Some(fenced)).unwrap();
        assert!(wait(&mut backoff, &ledger) <= LONGEST_WITH_A_JOB);
    }

    #[tokio::test]
    async fn a_certificate_renews_over_a_live_link_and_no_command_is_dropped() {
        let authority = Arc::new(Authority::new());
        let mut controller = Controller::start(&authority).await;
        let linked = linked(&authority, &controller.address, 16);
        let mut session = controller.session().await;
        let (id, intent) = disarm();
        let under_way = linked.agent.order(intent.account()).await;
        session.send(id, &intent).await;
        session.hear_taken().await;
        let old = linked.agent.identity.leaf();
        let fresh = tokio::spawn(keep_fresh(
            linked.agent.clone(),
            controller.address.clone(),
            linked.stop.clone(),
        ));
        let renewed = async {
            while linked.agent.identity.leaf().not_after <= old.not_after {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), renewed).await.unwrap();
        let stored = Identity::load(&linked.dir.path().join("identity")).unwrap();
        assert_eq!(stored.leaf().not_after, linked.agent.identity.leaf().not_after);
        drop(under_way);
        let done = session.hear_done().await;
        assert_eq!(done.id, id.to_string());
        let receipt = serde_json::from_slice::<Receipt>(&done.receipt).unwrap();
        assert!(matches!(receipt, Receipt::Done { .. }));
        assert!(!controller.has_another_session(), "the link was made anew");
        // And a new link is made with the new certificate.
        drop(session);
        controller.session().await;
        linked.stop.cancel();
        fresh.await.unwrap();
        linked.link.await.unwrap();
    }

    #[tokio::test]
    async fn a_repeated_command_is_answered_although_much_is_waiting_to_be_told() {
        let authority = Arc::new(Authority::new());
        let mut controller = Controller::start(&authority).await;
        let linked = linked(&authority, &controller.address, 1);
        let mut session = controller.session().await;
        let (id, intent) = disarm();
        session.send(id, &intent).await;
        let first = session.hear_done().await;
        // More than fits, all the time.
        let (told, of) = (linked.told.clone(), CommandId::new_now());
        let flood = tokio::spawn(async move {
            while told.send(Told::Progress(of, Progress::default())).await.is_ok() {}
        });
        for _ in 0..20 {
            session.send(id, &intent).await;
            assert_eq!(session.hear_done().await, first);
        }
        linked.stop.cancel();
        linked.link.await.unwrap();
        flood.await.unwrap();
    }

    #[tokio::test]
    async fn an_outcome_too_long_for_a_message_is_told_as_a_fault_and_the_link_stands() {
        let authority = Arc::new(Authority::new());
        let mut controller = Controller::start(&authority).await;
        let linked = linked(&authority, &controller.address, 16);
        let mut session = controller.session().await;
        let (long, short) = (CommandId::new_now(), CommandId::new_now());
        let told = |summary: String| {
            Box::new(Ok(Receipt::Done { summary, figures: std::collections::BTreeMap::default() }))
        };
        linked.told.send(Told::Ended(long, told("x".repeat(MAX_MESSAGE)))).await.unwrap();
        linked.told.send(Told::Ended(short, told("x".to_owned()))).await.unwrap();
        let done = session.hear_done().await;
        assert_eq!(done.id, long.to_string());
        let fault: Fault = serde_json::from_slice(&done.fault).unwrap();
        assert_eq!(fault.class, FaultClass::Permanent, "{fault}");
        assert_eq!(session.hear_done().await.id, short.to_string());
        linked.stop.cancel();
        linked.link.await.unwrap();
    }

    #[tokio::test]
    async fn a_definition_that_is_written_is_reported_at_once() {
        let authority = Arc::new(Authority::new());
        let mut controller = Controller::start(&authority).await;
        let linked = linked(&authority, &controller.address, 16);
        let directory = linked.agent.config.accounts_directory.clone();
        std::fs::create_dir(&directory).unwrap();
        let mut session = controller.session().await;
        session.hear_accounts(|names| names.is_empty()).await;
        let definition = "name = \"shop\"\nuser = \"shop\"\nhome = \"/home/shop\"\n";
        std::fs::write(directory.join("shop.toml"), definition).unwrap();
        let written = std::time::Instant::now();
        session.hear_accounts(|names| names == ["shop"]).await;
        assert!(written.elapsed() < INVENTORY / 2);
        std::fs::remove_file(directory.join("shop.toml")).unwrap();
        session.hear_accounts(|names| names.is_empty()).await;
        linked.stop.cancel();
        linked.link.await.unwrap();
    }
}
