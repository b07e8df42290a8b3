//! `/metrics`, `/healthz`, `/readyz`, and the standard gRPC health service, on one address. Not
//! encrypted: for this host's monitoring, or a trusted network.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use ferry_proto::Fault;
use ferry_proto::command::StandingKind;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
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

/// Serves until all else has `stopped`: what stops can be watched stopping. Ends when those who
/// watch have been told.
pub async fn serve(
    agent: Arc<Agent>,
    metrics: PrometheusHandle,
    connected: watch::Receiver<bool>,
    stop: CancellationToken,
    stopped: CancellationToken,
) {
    let address: SocketAddr = agent.config.metrics_listen;
    let bind = || async {
        TcpListener::bind(address).await.map_err(|e| {
            Fault::io(format!("metrics are not served: cannot listen on {address}"), &e)
                .remedy("change metrics_listen in /etc/ferry/agent.toml, or end what listens there")
        })
    };
    let Some(listener) = backoff::until_done(&stop, bind).await else { return };
    let (mut reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let shared = Shared { agent, metrics, connected, stop: stop.clone() };
    let router = Router::new()
        .route("/metrics", get(|State(s): State<Shared>| async move { s.metrics.render() }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(shared.clone())
        .merge(tonic::service::Routes::new(health).into_axum_router());
    let all_stopped = stopped.clone();
    let stopping = async {
        stop.cancelled().await;
        reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        stopped.cancelled().await;
        // Ends the watches, each behind its last word: they would keep their connections open.
        reporter.clear_service_status("").await;
        std::future::pending().await
    };
    let served = axum::serve(Visits::of(listener), router)
        .with_graceful_shutdown(async move { all_stopped.cancelled().await });
    tokio::select! {
        served = served => if let Err(error) = served {
            tracing::error!(%error, "the status address failed");
        },
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

/// Connections at once. Any process of this host can reach the address, accounts' too: they must not
/// use up the agent's descriptors.
const VISITS: usize = 64;
/// How long a connection may last.
const VISIT: Duration = Duration::from_secs(60);
/// How long to wait after no connection could be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener that takes so many connections at once, each for so long. More wait in the kernel.
struct Visits {
    listener: TcpListener,
    places: Arc<Semaphore>,
    last: Duration,
}

impl Visits {
    fn of(listener: TcpListener) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(VISITS)), last: VISIT }
    }
}

impl axum::serve::Listener for Visits {
    type Io = Visit;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visit, SocketAddr) {
        loop {
            // The semaphore is never closed.
            let place = Arc::clone(&self.places).acquire_owned().await.ok();
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    let ends = Box::pin(tokio::time::sleep(self.last));
                    return (Visit { stream, ends, _place: place }, from);
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection to the status address failed");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection, which ends in time whatever the visitor does.
struct Visit {
    stream: TcpStream,
    ends: Pin<Box<tokio::time::Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Visit {
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.ends.as_mut().poll(cx).is_ready()
    }
}

fn over<T>() -> Poll<std::io::Result<T>> {
    Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()))
}

impl AsyncRead for Visit {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.is_over(cx) {
            return over();
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Visit {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        if self.is_over(cx) {
            return over();
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn who_says_nothing_gives_his_place_to_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let places = Arc::new(Semaphore::new(1));
        let visits = Visits { listener, places, last: Duration::from_millis(200) };
        let router = Router::new().route("/healthz", get(|| async { "ok" }));
        let served = tokio::spawn(async move { axum::serve(visits, router).await });
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut next = TcpStream::connect(address).await.unwrap();
        next.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        let heard = tokio::time::timeout(Duration::from_secs(20), next.read_to_string(&mut answer));
        heard.await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0, "the silent one was ended");
        served.abort();
    }
}
