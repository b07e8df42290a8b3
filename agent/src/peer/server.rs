//! The answering side: checks the grant, then does what it names, for the account it names.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ferry_failpoints::{Promise, broken};
use ferry_files::{Progress, TargetOptions};
use ferry_proto::Fault;
use ferry_proto::channel::{PeerConnection, PeerListener, SecureStream};
use ferry_proto::grant::Grant;
use ferry_proto::ids::{Epoch, ServerName};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Answer, Operation, Reply, Request, receive, send};
use crate::agent::{Agent, blocking, engine};
use crate::clock::unix_ms;
use crate::ledger::{Account, SourceRecord, Standing};
use crate::work;

/// Operations of peers at once: several times what one server may have open (`Limits::per_agent`), so
/// that none keeps out all others.
const OPERATIONS: usize = 256;
/// How long a peer may take to say what it wants.
const REQUEST: Duration = Duration::from_secs(30);

/// Answers peers until `stop` fires.
pub async fn serve(agent: Arc<Agent>, mut listener: PeerListener, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(OPERATIONS));
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
        let (agent, stop) = (agent.clone(), stop.clone());
        tasks.spawn(async move {
            let peer = connection.server.clone();
            tokio::select! {
                answered = answer(&agent, connection) => if let Err(fault) = answered {
                    tracing::warn!(%peer, class = %fault.class, "a peer's operation failed: {fault}");
                },
                () = stop.cancelled() => {}
            }
            drop(permit);
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn answer(agent: &Arc<Agent>, connection: PeerConnection) -> Result<(), Fault> {
    let PeerConnection { mut stream, server, address } = connection;
    let request = tokio::time::timeout(REQUEST, receive::<Request>(&mut stream))
        .await
        .map_err(|_| Fault::transient("a peer said nothing"))??;
    let name = request.operation.name();
    let checked = check(agent, &request, &server);
    let grant = match checked {
        Ok(grant) => grant,
        Err(fault) => {
            tracing::warn!(peer = %server, %address, operation = name, "refused a peer: {fault}");
            return send(&mut stream, &Err::<(), Fault>(fault)).await;
        }
    };
    tracing::debug!(peer = %server, operation = name, account = %grant.account, "peer operation");
    Box::pin(carry_out(agent, &grant, request.operation, stream)).await
}

/// The grant, if it lets this peer do this here.
fn check(agent: &Agent, request: &Request, peer: &ServerName) -> Answer<Grant> {
    // What stands, stands: a commit is delivered however old its grant is, and whatever controller has
    // come since. It is bound to a move that this server has accepted.
    let is_delivery = matches!(request.operation, Operation::Open { .. });
    let grant = if is_delivery {
        request.grant.verify_signature(&agent.grant_key)?
    } else {
        request.grant.verify(&agent.grant_key, unix_ms() / 1000)?
    };
    grant.check_ends(&agent.name, peer)?;
    let asks_source = matches!(request.operation, Operation::Record);
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
    fits(agent, &grant, &request.operation)?;
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
        (Operation::Files { allow_emptied }, Some((account, source))) => {
            let purpose = Purpose::Pass { allow_emptied };
            return files(agent, &account, &source, stream, activity, purpose).await;
        }
        (Operation::CompareFiles, Some((account, source))) => {
            return files(agent, &account, &source, stream, activity, Purpose::Compare).await;
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
        (_, None) => Err(Fault::precondition(format!(
            "account {} is no longer received on {}",
            grant.account, agent.name
        ))),
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

/// What a stream of the file engine is for.
enum Purpose {
    Pass { allow_emptied: bool },
    Compare,
}

/// Receives a pass, or compares.
async fn files(
    agent: &Arc<Agent>,
    account: &Account,
    source: &SourceRecord,
    stream: SecureStream,
    activity: CancellationToken,
    purpose: Purpose,
) -> Result<(), Fault> {
    let root = account.definition.home.clone();
    let (here, copy, from) = (agent.clone(), account.clone(), source.clone());
    let ids = blocking(move || work::id_map(&here, &copy, &from)).await?;
    let mut options = TargetOptions::new(ids);
    let (progress, _) = watch::channel(Progress::default());
    match purpose {
        Purpose::Compare => {
            ferry_files::verify_target(&root, stream, options, progress, activity).await.map(|_| ())
        }
        Purpose::Pass { allow_emptied } => {
            options.allow_emptied = allow_emptied;
            ferry_files::receive_pass(&root, stream, options, progress, activity).await.map(|_| ())
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
        let request = Request { grant: grant(authority, of), operation };
        check(agent, &request, &peer.parse().unwrap())
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
            asks(&authority, &agent, of, Operation::Files { allow_emptied: false }, "web2")
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
        let files = Operation::Files { allow_emptied: false };
        assert!(
            asks(&authority, &agent, &of, files, "web2").is_err(),
            "a pass of an old controller"
        );
    }
}
