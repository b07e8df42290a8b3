//! The answering side: checks the grant, then does what it names, for the account it names.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ferry_files::{Progress, TargetOptions};
use ferry_proto::Fault;
use ferry_proto::channel::{PeerConnection, PeerListener, SecureStream, unix_now};
use ferry_proto::grant::Grant;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Answer, Operation, Reply, Request, receive, send};
use crate::agent::{Agent, blocking, engine};
use crate::ledger::{Account, SourceRecord, Standing};
use crate::work;

/// Operations of peers at once.
const OPERATIONS: usize = 64;
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
fn check(agent: &Agent, request: &Request, peer: &ferry_proto::ids::ServerName) -> Answer<Grant> {
    let grant = match &request.operation {
        // What stands, stands: a commit is delivered however old its grant is.
        Operation::Open { .. } => request.grant.verify_signature(&agent.grant_key)?,
        _ => request.grant.verify(&agent.grant_key, unix_now())?,
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
    if grant.controller_generation < seen {
        return Err(Fault::fenced(format!(
            "the grant is of controller generation {}, this agent has seen {seen}",
            grant.controller_generation
        ))
        .remedy(
            "a controller was restored from an old backup: see docs/what-if/controller-restored.md",
        ));
    }
    Ok(grant)
}

async fn carry_out(
    agent: &Arc<Agent>,
    grant: &Grant,
    operation: Operation,
    mut stream: SecureStream,
) -> Result<(), Fault> {
    let activity = agent.activity(&grant.account);
    let admitted = match &operation {
        Operation::Record | Operation::Open { .. } => Ok(None),
        _ => receiving(agent, grant).map(Some),
    };
    let received = match admitted {
        Ok(received) => received,
        Err(fault) => return send(&mut stream, &Err::<(), Fault>(fault)).await,
    };
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
        (Operation::Files, Some((account, source))) => {
            return files(agent, &account, &source, stream, activity, false).await;
        }
        (Operation::CompareFiles, Some((account, source))) => {
            return files(agent, &account, &source, stream, activity, true).await;
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
        (_, None) => Err(Fault::bug("an operation on a copy came without one")),
    };
    send(&mut stream, &reply).await?;
    let _ = stream.shutdown().await;
    reply.map(|_| ())
}

fn stopped() -> Fault {
    Fault::new(ferry_proto::FaultClass::Cancelled, "the move was undone here")
}

/// The closed copy that the grant's move makes here.
fn receiving(agent: &Agent, grant: &Grant) -> Answer<(Account, Box<SourceRecord>)> {
    let account = agent.account(&grant.account);
    match account {
        Some(account) => match &account.standing {
            Standing::Receiving { of, source, .. } if of.job == grant.job => {
                let source = source.clone();
                Ok((account, source))
            }
            _ => Err(Fault::precondition(format!(
                "account {} is {} on {}, not being received by job {}",
                grant.account,
                account.kind(),
                agent.name,
                grant.job
            ))),
        },
        None => Err(Fault::precondition(format!(
            "account {} was not provisioned on {}",
            grant.account, agent.name
        ))),
    }
}

/// Receives a pass, or compares if `compare` is given.
async fn files(
    agent: &Arc<Agent>,
    account: &Account,
    source: &SourceRecord,
    stream: SecureStream,
    activity: CancellationToken,
    compare: bool,
) -> Result<(), Fault> {
    let root = account.definition.home.clone();
    let (here, copy, from) = (agent.clone(), account.clone(), source.clone());
    let ids = blocking(move || work::id_map(&here, &copy, &from)).await?;
    let options = TargetOptions::new(ids);
    let (progress, _) = watch::channel(Progress::default());
    if compare {
        ferry_files::verify_target(&root, stream, options, progress, activity).await.map(|_| ())
    } else {
        ferry_files::receive_pass(&root, stream, options, progress, activity).await.map(|_| ())
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
