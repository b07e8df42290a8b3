//! `ferry-redirector`: passes traffic for moved accounts to where they live now.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use ferry_proto::Fault;
use ferry_traffic::config::Config;
use ferry_traffic::redirector::{END_WITHIN, Redirector, Sockets};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Passes traffic for moved accounts to where they live now. Started by systemd; the agent tells
/// it what to do over its control socket.
#[derive(Debug, Parser)]
#[command(name = "ferry-redirector", version)]
struct Arguments {
    /// The configuration.
    #[arg(long, default_value = "/etc/ferry/redirector.toml")]
    config: PathBuf,
    /// Only check the configuration: exit with 0 if it is valid.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("ferry-redirector: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Fault> {
    let config = Config::load(&arguments.config)?;
    if arguments.check {
        println!("{} is valid", arguments.config.display());
        return Ok(());
    }
    start_logging();
    raise_descriptor_limit(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Fault::io("the runtime cannot be started", &e))?;
    let ended = runtime.block_on(serve(config));
    // Whatever still blocks (a disk that does not answer) must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

async fn serve(config: Config) -> Result<(), Fault> {
    let no_signals = |e: std::io::Error| Fault::io("signals cannot be received", &e);
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let sockets = Sockets::get(&config)?;
    let redirector = Redirector::start(config, sockets)?;
    tracing::info!(http = ?redirector.http(), https = ?redirector.https(), peer = ?redirector.peer(),
        "serving");
    notify(&[NotifyState::Ready]);
    // Half of what systemd waits for, as it recommends.
    let period = sd_notify::watchdog_enabled().map(|limit| limit / 2);
    let mut watchdog = tokio::time::interval(period.unwrap_or(Duration::from_secs(3_600)));
    loop {
        tokio::select! {
            _ = watchdog.tick() => {
                redirector.pass_gate();
                notify(&[NotifyState::Watchdog]);
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("ending");
    notify(&[NotifyState::Stopping]);
    redirector.stop(END_WITHIN).await;
    Ok(())
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be notified");
    }
}

/// To the journal under systemd, else to standard error. `FERRY_LOG` chooses what.
fn start_logging() {
    let filter = EnvFilter::try_from_env("FERRY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    match journal {
        Some(journal) => registry.with(journal).init(),
        None => registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).init(),
    }
}

/// A connection takes two descriptors.
fn raise_descriptor_limit(config: &Config) {
    let wanted = u64::from(config.max_connections) * 4 + 256;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let soft = soft.max(wanted.min(hard));
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).map(|()| soft)
    });
    match raised {
        Ok(limit) if limit >= wanted => {}
        Ok(limit) => tracing::warn!(
            limit,
            wanted,
            "too few descriptors for max_connections; set LimitNOFILE"
        ),
        Err(error) => tracing::warn!(%error, "the limit of descriptors cannot be raised"),
    }
}
