//! The answering side: checks the grant, then does what it names, for the account it names.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ferry_failpoints::{Promise, broken};
use ferry_files::journal::Whose;
use ferry_files::{IdMap, Progress, TargetOptions};
use ferry_proto::Fault;
use ferry_proto::channel::{PeerConnection, PeerListener, SecureStream};
use ferry_proto::grant::{Grant, SignedGrant};
use ferry_proto::ids::{Epoch, ServerName};
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::passes::{Gathering, Passes};
use super::{Alone, Answer, Operation, Reply, Request, receive, send};
use crate::agent::{Agent, blocking, engine};
use crate::clock::unix_ms;
use crate::ledger::{Account, SourceRecord, Standing};
use crate::standalone::allowance;
use crate::unsynced::Unsynced;
use crate::work;

/// Operations of peers at once: several times what one server may have open (`Limits::per_agent`), so
/// that none keeps out all others.
const OPERATIONS: usize = 256;
/// How long a peer may take to say what it wants.
const REQUEST: Duration = Duration::from_secs(30);

/// Answers peers until `stop` fires.
pub async fn serve(agent: Arc<Agent>, mut listener: PeerListener, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(OPERATIONS));
    let passes = Arc::new(Passes::default());
    let tasks = TaskTracker::new();
    loop {
        let permit = tokio::select! {
            Ok(permit) = permits.clone().acquire_owned() => permit,
            () = stop.cancelled() => break,
        };
        let connection = tokio::select! {
            connection = listener.accept() => connection,
            () = stop.cancelled() => break,
        };
        let Ok(connection) = connection else { break };
        let (agent, passes, stop) = (agent.clone(), passes.clone(), stop.clone());
        tasks.spawn(async move {
            let peer = connection.server.clone();
            tokio::select! {
                answered = answer(&agent, &passes, connection, permit) => if let Err(fault) = answered {
                    tracing::warn!(%peer, class = %fault.class, "a peer's operation failed: {fault}");
                },
                () = stop.cancelled() => {}
            }
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn answer(
    agent: &Arc<Agent>,
    passes: &Arc<Passes>,
    connection: PeerConnection,
    permit: OwnedSemaphorePermit,
) -> Result<(), Fault> {
    let PeerConnection { mut stream, server, address } = connection;
    let heard = tokio::time::timeout(REQUEST, receive::<Request>(&mut stream))
        .await
        .map_err(|_| Fault::transient("a peer said nothing"))?;
    let request = match heard {
        Ok(request) => request,
        Err(fault) => {
            // One of another version learns what to do.
            let _ = send(&mut stream, &Err::<(), Fault>(fault.clone())).await;
            return Err(fault);
        }
    };
    let known = Known { peer: server, address, permit };
    match request {
        Request::Grant { grant, operation } => {
            granted(agent, passes, &grant, operation, stream, known).await
        }
        Request::Allowance { ask } => allowed(agent, passes, ask, stream, known).await,
        Request::Pass { pass } => {
            let waits = passes.check(pass, &known.peer);
            send(&mut stream, &waits).await?;
            waits.and_then(|()| passes.add(pass, (stream, known.permit)))
        }
    }
}

/// Who has come.
struct Known {
    peer: ServerName,
    address: SocketAddr,
    /// His place among the operations.
    permit: OwnedSemaphorePermit,
}

impl Known {
    async fn refuse(&self, stream: &mut SecureStream, name: &str, fault: Fault) -> Answer<()> {
        let Self { peer, address, .. } = self;
        tracing::warn!(%peer, %address, operation = name, "refused a peer: {fault}");
        send(stream, &Err::<(), Fault>(fault)).await
    }
}

/// Something for the account of a grant.
async fn granted(
    agent: &Arc<Agent>,
    passes: &Arc<Passes>,
    grant: &SignedGrant,
    operation: Operation,
    mut stream: SecureStream,
    known: Known,
) -> Answer<()> {
    let name = operation.name();
    let grant = match check(agent, grant, &operation, &known.peer) {
        Ok(grant) => grant,
        Err(fault) => return known.refuse(&mut stream, name, fault).await,
    };
    tracing::debug!(peer = %known.peer, operation = name, account = %grant.account, "peer operation");
    let (streams, purpose) = match operation {
        Operation::Files { allow_emptied, calm, streams } => {
            (streams, Purpose::Pass { allow_emptied, calm })
        }
        Operation::CompareFiles { partial, calm, streams } => {
            (streams, Purpose::Compare { partial, calm })
        }
        operation => return Box::pin(carry_out(agent, &grant, operation, stream)).await,
    };
    let gathering = match passes.begin(known.peer.clone(), streams) {
        Ok(gathering) => gathering,
        Err(fault) => return known.refuse(&mut stream, name, fault).await,
    };
    send(&mut stream, &Ok::<(), Fault>(())).await?;
    let activity = agent.activity(&grant.account);
    let begun = receiving(agent, &grant).ok_or_else(|| not_received(agent, &grant));
    let told = begun.as_ref().map(|_| Reply::Pass { pass: gathering.id() }).map_err(Fault::clone);
    send(&mut stream, &told).await?;
    let (account, source) = begun?;
    let root = account.definition.home.clone();
    let (here, approvals) = (agent.clone(), grant.approvals.clone());
    let ids = blocking(move || work::id_map(&here, &account, &source, &approvals)).await?;
    let mut options = TargetOptions::new(ids);
    options.approved = work::approved(agent, &grant)?;
    match purpose {
        Purpose::Pass { allow_emptied, .. } => options.allow_emptied = allow_emptied,
        Purpose::Compare { partial, .. } => watch_copy(agent, &grant, &root, partial).await?,
    }
    // As the source has it: behind a fence nobody waits for bytes that are there twice.
    options.share = purpose.is_calm();
    if purpose.is_calm() {
        (options.calm, options.limits) = (true, agent.limits.clone());
    }
    let state = &agent.config.state_directory;
    Box::pin(files(state, &root, gathering, stream, options, activity, purpose)).await
}

/// A comparison begins. One of what has changed at the source since everything was compared proves nothing if
/// somebody here has changed the copy since.
async fn watch_copy(agent: &Arc<Agent>, grant: &Grant, root: &Path, partial: bool) -> Answer<()> {
    let (agent, root, grant) = (agent.clone(), root.to_owned(), grant.clone());
    let is_proved = blocking(move || {
        let (account, job) = (&grant.account, grant.job);
        if partial {
            let journal = agent.journals.existing(account, job);
            return Ok(journal.is_some_and(|journal| journal.is_as_compared()));
        }
        let journal = agent.journals.of(account, &root, job, Whose::Others);
        journal.iter().for_each(|journal| journal.compares());
        Ok(true)
    });
    if is_proved.await? {
        return Ok(());
    }
    Err(Fault::transient("the copy may have been changed here since everything was compared")
        .remedy("everything is compared again"))
}

/// Something that root here has allowed.
async fn allowed(
    agent: &Arc<Agent>,
    passes: &Arc<Passes>,
    ask: Alone,
    mut stream: SecureStream,
    known: Known,
) -> Answer<()> {
    let mut options = TargetOptions::new(IdMap::same());
    let (root, streams, purpose) = match ask {
        Alone::Copy { directory, delete, allow_emptied, calm, streams } => {
            (options.delete, options.allow_emptied) = (delete, allow_emptied);
            (directory, streams, Purpose::Pass { allow_emptied, calm })
        }
        Alone::Compare { directory, streams } => {
            (directory, streams, Purpose::Compare { partial: false, calm: false })
        }
    };

    let (here, peer, place) = (agent.clone(), known.peer.clone(), root.clone());
    let allowance = blocking(move || allowance::allowed(&here.config, &peer, &place)).await;
    let gathering = match allowance.and_then(|_| passes.begin(known.peer.clone(), streams)) {
        Ok(gathering) => gathering,
        Err(fault) => return known.refuse(&mut stream, "files without a move", fault).await,
    };
    tracing::info!(peer = %known.peer, directory = %root.display(), "files without a move");
    send(&mut stream, &Ok::<(), Fault>(())).await?;
    send(&mut stream, &Ok::<Reply, Fault>(Reply::Pass { pass: gathering.id() })).await?;
    let (state, cancel) = (&agent.config.state_directory, CancellationToken::new());
    Box::pin(files(state, &root, gathering, stream, options, cancel, purpose)).await
}

/// The grant, if it lets this peer do this here.
fn check(
    agent: &Agent,
    grant: &SignedGrant,
    operation: &Operation,
    peer: &ServerName,
) -> Answer<Grant> {
    // What stands, stands: a commit is delivered however old its grant is, and whatever controller has
    // come since. It is bound to a move that this server has accepted.
    let is_delivery = matches!(operation, Operation::Open { .. });
    let grant = if is_delivery {
        grant.verify_signature(&agent.grant_key)?
    } else {
        grant.verify(&agent.grant_key, unix_ms() / 1000)?
    };
    grant.check_ends(&agent.name, peer)?;
    let asks_source = matches!(operation, Operation::Record);
    let (me, other) =
        if asks_source { (&grant.source, &grant.target) } else { (&grant.target, &grant.source) };
    if (me, other) != (&agent.name, peer) {
        return Err(Fault::permanent(format!(
            "the grant is for a move from {} to {}; this goes the other way",
            grant.source, grant.target
        )));
    }
    let seen = agent.look(|l| l.generation());
    if grant.controller_generation < seen && !is_delivery && !broken(Promise::Epoch) {
        return Err(Fault::fenced(format!(
            "the grant is of controller generation {}, this agent has seen {seen}",
            grant.controller_generation
        ))
        .remedy(
            "the controller was restored from an old backup: see \
             /usr/share/doc/ferry-controller/what-if/controller-restored.md there",
        ));
    }
    fits(agent, &grant, operation)?;
    Ok(grant)
}

/// Whether the account stands as the grant's move needs it. A grant outlives its move by days: it
/// must be good for nothing when the account has moved on, or another move has it.
fn fits(agent: &Agent, grant: &Grant, operation: &Operation) -> Answer<()> {
    let account = agent.account(&grant.account);
    let fits = match operation {
        Operation::Record => {
            !agent.look(|l| l.is_undone(grant.job)) && may_be_told(account.as_ref(), grant)
        }
        Operation::Open { commit } => {
            (&commit.account, commit.job) == (&grant.account, grant.job)
                && work::is_epoch(commit.epoch, grant.epoch.next())
                && (&commit.source, &commit.target) == (&grant.source, &grant.target)
                // A source has its own word to give; a person's comes from the controller.
                && commit.forced.is_none()
        }
        _ => account.as_ref().is_some_and(|a| {
            matches!(&a.standing, Standing::Receiving { of, .. } if of.job == grant.job && work::is_epoch(of.epoch, grant.epoch))
        }),
    };
    if fits {
        return Ok(());
    }
    let standing = account
        .map_or_else(|| "in no move".to_owned(), |a| format!("{} at epoch {}", a.kind(), a.epoch));
    Err(Fault::precondition(format!(
        "the grant is for job {} at epoch {}, but account {} is {standing} on {}",
        grant.job, grant.epoch, grant.account, agent.name
    ))
    .remedy("plan the move again; if no move is under way, find out who uses an old grant"))
}

/// Whether the target of the grant's move may be told what the account is: while this server serves
/// it at the grant's epoch, and no other move has it.
fn may_be_told(account: Option<&Account>, grant: &Grant) -> bool {
    let Some(account) = account else { return grant.epoch == Epoch::default() };
    let free = match &account.standing {
        Standing::Serving => true,
        Standing::Armed { of } => of.job == grant.job,
        _ => false,
    };
    free && work::is_epoch(account.epoch, grant.epoch)
}

async fn carry_out(
    agent: &Arc<Agent>,
    grant: &Grant,
    operation: Operation,
    mut stream: SecureStream,
) -> Result<(), Fault> {
    let activity = agent.activity(&grant.account);
    let received = receiving(agent, grant);
    send(&mut stream, &Ok::<(), Fault>(())).await?;
    let reply = match (operation, received) {
        (Operation::Record, _) => work::record::of_account(agent, &grant.account)
            .await
            .map(|record| Reply::Record { record: Box::new(record) }),
        (Operation::Open { commit }, _) => {
            work::open::open(agent, grant.job, &commit).await.map(|_| Reply::Done)
        }
        (Operation::UpdateRecord { record }, _) => {
            work::provision::update(agent, grant, *record).await.map(|()| Reply::Done)
        }
        (Operation::Load { engine: kind, database }, Some((account, source))) => {
            tokio::select! {
                loaded = load(&account, &source, kind, &database, &mut stream) => loaded,
                () = activity.cancelled() => Err(stopped()),
            }
        }
        (Operation::Manifest { engine: kind, database }, Some((account, _))) => {
            let spec = work::spec(&account, kind);
            tokio::select! {
                manifest = async { engine(kind).manifest(&spec, &database).await } => manifest.map(|m| Reply::Manifest { manifest: Box::new(m) }),
                () = activity.cancelled() => Err(stopped()),
            }
        }
        (_, None) => Err(not_received(agent, grant)),
        (operation, Some(_)) => {
            Err(Fault::bug(format!("the operation {} is no single stream's", operation.name())))
        }
    };
    send(&mut stream, &reply).await?;
    let _ = stream.shutdown().await;
    reply.map(|_| ())
}

fn stopped() -> Fault {
    Fault::new(ferry_proto::FaultClass::Cancelled, "the move was undone here")
}

/// The closed copy that the grant's move makes here, if it does.
fn receiving(agent: &Agent, grant: &Grant) -> Option<(Account, Box<SourceRecord>)> {
    let account = agent.account(&grant.account)?;
    match &account.standing {
        Standing::Receiving { of, source, .. } if of.job == grant.job => {
            let source = source.clone();
            Some((account, source))
        }
        _ => None,
    }
}

fn not_received(agent: &Agent, grant: &Grant) -> Fault {
    Fault::precondition(format!(
        "account {} is no longer received on {}",
        grant.account, agent.name
    ))
}

/// What the streams of the file engine are for.
#[derive(Clone, Copy)]
enum Purpose {
    Pass { allow_emptied: bool, calm: bool },
    Compare { partial: bool, calm: bool },
}

impl Purpose {
    /// Whether the account is served meanwhile.
    fn is_calm(self) -> bool {
        match self {
            Self::Pass { calm, .. } | Self::Compare { calm, .. } => calm,
        }
    }
}

/// Receives a pass, or compares.
async fn files(
    state_directory: &Path,
    root: &Path,
    gathering: Gathering,
    control: SecureStream,
    mut options: TargetOptions,
    cancel: CancellationToken,
    purpose: Purpose,
) -> Answer<()> {
    let (streams, _places) = gathering.all(control).await?;
    let (progress, _) = watch::channel(Progress::default());
    match purpose {
        Purpose::Pass { .. } => {
            let unsynced = Unsynced::of(state_directory, root);
            let writing = blocking(move || unsynced.begin()).await?;
            options.distrusted_since = writing.distrusted_since;
            ferry_files::receive_pass(root, streams, options, progress, cancel).await?;
            blocking(move || writing.end()).await
        }
        Purpose::Compare { .. } => {
            ferry_files::verify_target(root, streams, options, progress, cancel).await.map(drop)
        }
    }
}

async fn load(
    account: &Account,
    source: &SourceRecord,
    kind: ferry_proto::account::EngineKind,
    database: &ferry_proto::ids::DatabaseName,
    stream: &mut SecureStream,
) -> Answer<Reply> {
    let record = work::database_record(source, kind)?;
    let spec = work::spec(account, kind);
    let started = SystemTime::now();
    let taken = std::sync::atomic::AtomicU64::new(0);
    let count = |bytes| taken.store(bytes, std::sync::atomic::Ordering::Relaxed);
    engine(kind).load(&spec, record, database, stream, &count).await?;
    let bytes = taken.into_inner();
    tracing::info!(account = %account.definition.name, %database, bytes, seconds = started.elapsed().map_or(0.0, |d| d.as_secs_f64()), "loaded");
    Ok(Reply::Loaded { bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Deadline;
    use crate::ledger::Entry;
    use crate::testing::authority::Authority;
    use crate::testing::{a_move, account, agent, fenced, grant, receiving};
    use ferry_proto::command::{CommitRecord, Forced, Move};

    async fn put(agent: &Agent, standing: &Standing, epoch: u64) {
        let mut account = account("shop", standing);
        account.epoch = Epoch(epoch);
        agent.set_account(&"shop".parse().unwrap(), Some(account)).await.unwrap();
    }

    fn asks(
        authority: &Authority,
        agent: &Agent,
        of: &Move,
        operation: Operation,
        peer: &str,
    ) -> Answer<Grant> {
        check(agent, &grant(authority, of), &operation, &peer.parse().unwrap())
    }

    #[tokio::test]
    async fn an_account_is_told_only_to_the_move_that_may_have_it() {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let agent = agent(&authority, dir.path());
        let (of, other) = (a_move(), a_move());
        let ask = || asks(&authority, &agent, &of, Operation::Record, "transit1");
        // In no move, and known from its definition alone: it is at epoch 0.
        assert!(ask().is_err());
        let first = Move { epoch: Epoch::default(), ..of.clone() };
        asks(&authority, &agent, &first, Operation::Record, "transit1").unwrap();
        for standing in [Standing::Serving, Standing::Armed { of: of.clone() }] {
            put(&agent, &standing, 3).await;
            ask().unwrap();
            // Moved away and come back since; or never so far.
            for epoch in [2, 4, 5] {
                put(&agent, &standing, epoch).await;
                let fault = ask().unwrap_err();
                assert!(fault.message.contains("at epoch 3"), "{fault}");
            }
        }
        let far = Deadline::after(Duration::from_secs(600)).unwrap();
        for standing in [
            Standing::Armed { of: other.clone() },
            fenced(&other, &far),
            fenced(&of, &far),
            receiving(&of),
            Standing::Finalized {
                to: "transit1".parse().unwrap(),
                since_unix_ms: None,
                erasing: false,
            },
        ] {
            put(&agent, &standing, 3).await;
            assert!(ask().is_err(), "{standing:?}");
        }
        // As it was; but the move was undone.
        put(&agent, &Standing::Serving, 3).await;
        ask().unwrap();
        agent.write(move |l| l.record(Entry::Undone { job: of.job })).await.unwrap();
        assert!(ask().is_err(), "undone");
        asks(&authority, &agent, &other, Operation::Record, "transit1").unwrap();
    }

    #[tokio::test]
    async fn a_copy_is_changed_only_by_the_move_that_makes_it() {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let agent = agent(&authority, dir.path());
        // The same server as target.
        let of =
            Move { source: "web2".parse().unwrap(), target: "web1".parse().unwrap(), ..a_move() };
        let ask = |of: &Move| {
            asks(
                &authority,
                &agent,
                of,
                Operation::Files { allow_emptied: false, calm: false, streams: 1 },
                "web2",
            )
        };
        assert!(ask(&of).is_err(), "not provisioned");
        put(&agent, &receiving(&of), 0).await;
        ask(&of).unwrap();
        let other_job = Move { job: a_move().job, ..of.clone() };
        let other_epoch = Move { epoch: Epoch(2), ..of.clone() };
        for wrong in [other_job, other_epoch] {
            assert!(ask(&wrong).is_err(), "{wrong:?}");
        }
        put(&agent, &Standing::Serving, 4).await;
        assert!(ask(&of).is_err(), "open since");
    }

    #[tokio::test]
    async fn a_commit_is_taken_only_as_its_grant_names_it() {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let agent = agent(&authority, dir.path());
        let of =
            Move { source: "web2".parse().unwrap(), target: "web1".parse().unwrap(), ..a_move() };
        put(&agent, &receiving(&of), 0).await;
        let commit = CommitRecord {
            job: of.job,
            account: of.account.clone(),
            source: of.source.clone(),
            target: of.target.clone(),
            epoch: Epoch(4),
            fenced_at_unix: 1,
            committed_at_unix_ms: 1,
            forced: None,
        };
        let ask = |commit: &CommitRecord| {
            let operation = Operation::Open { commit: commit.clone() };
            asks(&authority, &agent, &of, operation, "web2").map(|_| ())
        };
        ask(&commit).unwrap();
        for wrong in [
            CommitRecord { epoch: Epoch(5), ..commit.clone() },
            CommitRecord {
                forced: Some(Forced { by: "a source".into(), at_unix_ms: 1 }),
                ..commit.clone()
            },
            CommitRecord { job: a_move().job, ..commit.clone() },
            CommitRecord { account: "other".parse().unwrap(), ..commit.clone() },
        ] {
            assert!(ask(&wrong).is_err(), "{wrong:?}");
        }
        // Another controller has been obeyed since: what was committed has been, all the same.
        agent.write(|l| l.record(Entry::Generation { generation: 9 })).await.unwrap();
        ask(&commit).unwrap();
        let files = Operation::Files { allow_emptied: false, calm: false, streams: 1 };
        assert!(
            asks(&authority, &agent, &of, files, "web2").is_err(),
            "a pass of an old controller"
        );
    }
}
