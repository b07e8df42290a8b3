//! `ferry-controller adopt`: makes a controller whose store was restored from a backup the one that agents
//! obey. It listens to every agent first: what they report is the truth.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use ferry_api::jobs::read_plan;
use ferry_api::overtaken::is_overtaken;
use ferry_fleet::session::{AgentEndpoint, MAX_MESSAGE};
use ferry_fleet::{Fleet, now_ms};
use ferry_proto::Fault;
use ferry_proto::channel::{Connections, Limits, Listener};
use ferry_proto::ids::{JobId, ServerName};
use ferry_proto::v1::agent_service_server::AgentServiceServer;
use ferry_store::{ServerState, Store};
use tokio_util::sync::CancellationToken;

use crate::Parts;
use crate::config::Config;

/// What must be typed.
const CONFIRMATION: &str = "no other controller runs";

/// Asks, listens, decides, and says what it did.
///
/// # Errors
/// If it is not confirmed, an agent is not heard, or the store or the port fails.
pub async fn adopt(
    config: &Config,
    without: &[ServerName],
    wait: Duration,
    answers: impl BufRead + Send + 'static,
) -> anyhow::Result<()> {
    as_the_service(&config.state_directory)?;
    println!(
        "This makes the controller on this host the one that agents obey, whatever they have obeyed before.\n\
         If another controller with these agents still runs, both would move accounts. Stop it for good first.\n\
         To go on, type: {CONFIRMATION}"
    );
    tokio::task::spawn_blocking(move || confirmed(answers)).await??;
    let Parts { store, authority, _lock, .. } = crate::parts(config).await?;
    let connections = Connections::new(Limits::default());
    let incoming = Listener::bind(&config.listen)
        .await
        .map_err(|fault| fault.remedy("if the service runs: systemctl stop ferry-controller"))?
        .serve(&authority.controller_identity(), &connections)?;
    let settings = crate::settings(config);
    let fleet = Fleet::open(store.clone(), authority, connections, settings).await?;
    let agents = AgentEndpoint(fleet.clone());
    let stop = CancellationToken::new();
    let serving = tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(AgentServiceServer::new(agents).max_decoding_message_size(MAX_MESSAGE))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()),
    );
    let heard = hear(&fleet, store.as_ref(), without, wait).await;
    let done = match heard {
        Ok(highest) => decide(&fleet, store.as_ref(), without, highest).await,
        Err(fault) => Err(fault),
    };
    stop.cancel();
    // Agents keep their streams open for ever.
    serving.abort();
    Ok(done?)
}

/// Files that another user makes there would stop the service.
fn as_the_service(state: &Path) -> Result<(), Fault> {
    let owner = |path: &Path| {
        std::fs::metadata(path)
            .map(|m| m.uid())
            .map_err(|e| Fault::io(format!("cannot look at {}", path.display()), &e))
    };
    // A process's directory there is its effective user's.
    if owner(state)? == owner(Path::new("/proc/self"))? {
        return Ok(());
    }
    Err(Fault::precondition(format!("{} belongs to another user", state.display()))
        .remedy("runuser -u ferry-controller -- ferry-controller adopt"))
}

fn confirmed(mut answers: impl BufRead) -> anyhow::Result<()> {
    let mut line = String::new();
    answers.read_line(&mut line).context("reading the answer")?;
    if line.trim() == CONFIRMATION {
        return Ok(());
    }
    Err(Fault::precondition("not confirmed: nothing was changed").into())
}

/// Waits until every enrolled server has reported its accounts; the highest generation that one obeyed. The
/// word of a server that is left out counts for nothing.
async fn hear(
    fleet: &Fleet,
    store: &dyn Store,
    without: &[ServerName],
    wait: Duration,
) -> Result<u64, Fault> {
    let enrolled = store.servers().await?.into_iter().filter(|s| s.state == ServerState::Enrolled);
    let mut missing: BTreeSet<ServerName> =
        enrolled.map(|s| s.name).filter(|name| !without.contains(name)).collect();
    println!("Listening to the agents of {} servers.", missing.len());
    let mut reports = fleet.reports();
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        let mut heard = reports.borrow_and_update().clone();
        heard.retain(|server, _| !without.contains(server));
        for (server, obeyed) in &heard {
            if missing.remove(server) {
                println!("{server} has obeyed generation {obeyed}");
            }
        }
        if missing.is_empty() {
            return Ok(heard.values().copied().max().unwrap_or(0).max(fleet.generation()));
        }
        if tokio::time::timeout_at(deadline, reports.changed()).await.is_err() {
            let names: Vec<String> = missing.into_iter().map(String::from).collect();
            return Err(Fault::precondition(format!(
                "not heard within {} s: {}; nothing was changed",
                wait.as_secs(),
                names.join(", ")
            ))
            .remedy(
                "see to it that their agents reach this host (systemctl status ferry-agent there), or, for servers that are gone for good: --without SERVER",
            ));
        }
    }
}

/// Ends what was overtaken and raises the generation, in one transaction.
async fn decide(
    fleet: &Fleet,
    store: &dyn Store,
    without: &[ServerName],
    highest: u64,
) -> Result<(), Fault> {
    let accounts = store.accounts().await?;
    for (server, state) in &accounts {
        println!("{server}: account {} is {} at epoch {}", state.name, state.standing, state.epoch);
    }
    let mut overtaken: Vec<JobId> = Vec::new();
    for row in store.jobs(None, true).await? {
        let plan = read_plan(&row)?;
        let unheard = [&plan.source, &plan.target].into_iter().any(|end| without.contains(end));
        let what = if is_overtaken(&plan, &accounts) && !unheard {
            overtaken.push(row.id);
            "overtaken: neither resumed nor undone"
        } else if unheard {
            "goes on when its servers are heard"
        } else {
            "is under way on the servers, and goes on"
        };
        println!("job {} of account {}: {what}", row.id, row.account);
    }
    let generation = highest.saturating_add(1);
    store.adopt(generation, &overtaken, now_ms()).await?;
    println!(
        "This controller is of generation {generation} now (it was {}). Start it: systemctl start ferry-controller",
        fleet.generation()
    );
    Ok(())
}
