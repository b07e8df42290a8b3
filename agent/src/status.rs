//! `/metrics`, `/healthz`, `/readyz`, and the standard gRPC health service, on one address. Not
//! encrypted: for this host's monitoring, or a trusted network.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use ferry_proto::Fault;
use ferry_proto::command::StandingKind;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::backoff;

/// How often gauges are read, and the exporter's own upkeep runs.
const UPKEEP: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Shared {
    agent: Arc<Agent>,
    metrics: PrometheusHandle,
    connected: watch::Receiver<bool>,
    stop: CancellationToken,
}

/// Serves until it is dropped: what stops can be watched stopping.
pub async fn serve(
    agent: Arc<Agent>,
    metrics: PrometheusHandle,
    connected: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    let address: SocketAddr = agent.config.metrics_listen;
    let bind = || async {
        tokio::net::TcpListener::bind(address).await.map_err(|e| {
            Fault::io(format!("metrics are not served: cannot listen on {address}"), &e)
                .remedy("change metrics_listen in /etc/ferry/agent.toml, or end what listens there")
        })
    };
    let Some(listener) = backoff::until_done(&stop, bind).await else { return };
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let shared = Shared { agent, metrics, connected, stop: stop.clone() };
    let router = Router::new()
        .route("/metrics", get(|State(s): State<Shared>| async move { s.metrics.render() }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(shared.clone())
        .merge(tonic::service::Routes::new(health).into_axum_router());
    let stopping = async {
        stop.cancelled().await;
        reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        std::future::pending().await
    };
    tokio::select! {
        served = axum::serve(listener, router) => tracing::error!(?served, "the status address failed"),
        () = upkeep(&shared) => {}
        () = stopping => {}
    }
}

/// Takes what is counted, from now on.
///
/// # Errors
/// If something else in this process takes it already.
pub fn record() -> Result<PrometheusHandle, Fault> {
    let metrics = PrometheusBuilder::new()
        .install_recorder()
        .map_err(|e| Fault::bug("metrics cannot be recorded").caused_by(&e))?;
    describe();
    Ok(metrics)
}

async fn ready(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    if shared.stop.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
    } else if *shared.connected.borrow() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not connected to the controller\n")
    }
}

fn describe() {
    metrics::describe_gauge!(
        "ferry_agent_connected",
        "1 while the controller has a session with this agent"
    );
    metrics::describe_gauge!("ferry_accounts", "Accounts of this server by how they stand");
    metrics::describe_gauge!(
        "ferry_certificate_expiry_seconds",
        "Unix time at which the agent's certificate ends"
    );
    metrics::describe_gauge!("ferry_redirector_held", "Connections that the redirector holds now");
    metrics::describe_gauge!("ferry_redirector_up", "1 while the redirector answers");
    metrics::describe_counter!(
        "ferry_closed_again_total",
        "What was open of an account that this server must not serve, and was closed again"
    );
    metrics::describe_gauge!(
        "ferry_closed_unsure",
        "1 while it cannot be seen or brought about that a closed account is closed"
    );
    metrics::describe_counter!("ferry_commands_total", "Commands by kind and outcome");
}

async fn upkeep(shared: &Shared) {
    let mut tick = tokio::time::interval(UPKEEP);
    loop {
        tick.tick().await;
        gauges(shared).await;
        shared.metrics.run_upkeep();
    }
}

#[allow(clippy::cast_precision_loss)]
async fn gauges(shared: &Shared) {
    let connected = *shared.connected.borrow();
    metrics::gauge!("ferry_agent_connected").set(f64::from(u8::from(connected)));
    metrics::gauge!("ferry_certificate_expiry_seconds")
        .set(shared.agent.identity.leaf().not_after as f64);
    let kinds: Vec<StandingKind> =
        shared.agent.look(|l| l.accounts().values().map(crate::ledger::Account::kind).collect());
    for kind in [
        StandingKind::Serving,
        StandingKind::Provisioned,
        StandingKind::Armed,
        StandingKind::Fenced,
        StandingKind::Moved,
        StandingKind::Closed,
    ] {
        let count = kinds.iter().filter(|k| **k == kind).count();
        metrics::gauge!("ferry_accounts", "standing" => kind.to_string()).set(count as f64);
    }
    match shared.agent.redirector.status().await {
        Ok(accounts) => {
            let held: u64 = accounts.iter().map(|a| a.traffic.held_now).sum();
            metrics::gauge!("ferry_redirector_held").set(held as f64);
            metrics::gauge!("ferry_redirector_up").set(1.0);
        }
        Err(_) => metrics::gauge!("ferry_redirector_up").set(0.0),
    }
}
