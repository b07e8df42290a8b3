//! The controller: joins store, fleet, jobs and the operators' API, and serves them on one port.

mod adopt;
mod config;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use ferry_api::{Jobs, OperatorEndpoint, OperatorToken};
use ferry_fleet::authority::Authority;
use ferry_fleet::session::{AgentEndpoint, MAX_MESSAGE};
use ferry_fleet::{Fleet, Settings};
use ferry_proto::Fault;
use ferry_proto::channel::{self, Connections, Limits, Listener};
use ferry_proto::ids::ServerName;
use ferry_proto::v1::agent_service_server::AgentServiceServer;
use ferry_proto::v1::enrolment_service_server::EnrolmentServiceServer;
use ferry_proto::v1::operator_service_server::OperatorServiceServer;
use ferry_store::{SqliteStore, Store};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// No operator's message is longer.
const OPERATOR_MESSAGE: usize = 64 << 10;
/// How long open calls may take to end when the controller stops.
const STOPPING: Duration = Duration::from_secs(5);

/// The controller of Ferry: plans moves of hosting accounts and leads the servers' agents.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Configuration file.
    #[arg(long, global = true, default_value = "/etc/ferry/controller.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Serve agents and operators, until told to stop.
    Run,
    /// Say whether the configuration is right.
    Check,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Make this controller, whose store was restored from a backup, the one that agents obey. The service
    /// must be stopped. Asks for confirmation that no other controller runs.
    Adopt {
        /// A server that is gone for good, and not waited for; may be given again.
        #[arg(long)]
        without: Vec<ServerName>,
        /// How long to wait for the agents, in seconds.
        #[arg(long, default_value_t = 120)]
        wait: u64,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Command::Completions { shell } = arguments.command {
        let mut command = Arguments::command();
        clap_complete::generate(shell, &mut command, "ferry-controller", &mut std::io::stdout());
        return Ok(());
    }
    let config = Config::load(&arguments.config)?;
    if matches!(arguments.command, Command::Check) {
        println!("{} is right", arguments.config.display());
        return Ok(());
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_new(&config.log)
                .with_context(|| format!("log = {:?} is no filter", config.log))?,
        )
        .with_writer(std::io::stderr)
        // The journal adds the time.
        .without_time()
        .with_ansi(false)
        .init();
    channel::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match arguments.command {
        Command::Adopt { without, wait } => {
            let answers = std::io::BufReader::new(std::io::stdin());
            let wait = Duration::from_secs(wait);
            let done = runtime.block_on(adopt::adopt(&config, &without, wait, answers));
            // An agent's stream does not hold it up.
            runtime.shutdown_background();
            done
        }
        Command::Run | Command::Check | Command::Completions { .. } => {
            runtime.block_on(serve(config))
        }
    }
}

/// What lies in the state directory.
struct Parts {
    store: Arc<dyn Store>,
    authority: Arc<Authority>,
    token: OperatorToken,
    /// Held while this process uses the store: two would each think that they alone run its jobs.
    _lock: std::fs::File,
}

async fn parts(config: &Config) -> anyhow::Result<Parts> {
    let state = config.state_directory.clone();
    let (lock, authority, token) = tokio::task::spawn_blocking(move || {
        let lock = lock(&state.join("lock"))?;
        let authority = Authority::open(&state.join("ca"))?;
        let token = OperatorToken::open(&state.join("operator.token"))?;
        Ok::<_, Fault>((lock, Arc::new(authority), token))
    })
    .await??;
    let store = SqliteStore::open(&config.state_directory.join("ferry.db")).await?;
    Ok(Parts { store: Arc::new(store), authority, token, _lock: lock })
}

fn lock(path: &Path) -> Result<std::fs::File, Fault> {
    let failed = |e: &std::io::Error| Fault::io(format!("cannot lock {}", path.display()), e);
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|e| failed(&e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Fault::precondition("a controller runs with this state directory already")
                .remedy("to adopt: systemctl stop ferry-controller, then again"))
        }
        Err(std::fs::TryLockError::Error(e)) => Err(failed(&e)),
    }
}

fn settings(config: &Config) -> Settings {
    Settings {
        certificate_lifetime: config.certificate_lifetime(),
        token_lifetime: Duration::from_secs(u64::from(config.token_minutes) * 60),
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let Parts { store, authority, token, _lock } = parts(&config).await?;
    let connections = Connections::new(Limits::default());
    let settings = settings(&config);
    let fleet =
        Fleet::open(store.clone(), authority.clone(), connections.clone(), settings).await?;
    let stop = CancellationToken::new();
    let jobs = Jobs::new(store.clone(), &fleet, config.moves, stop.clone());
    let incoming = Listener::bind(&config.listen)
        .await?
        .serve(&authority.controller_identity(), &connections)?;
    jobs.recover().await?;
    let renewal = tokio::spawn({
        let (authority, stop) = (authority.clone(), stop.clone());
        async move { authority.keep_controller_fresh(stop).await }
    });

    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<AgentServiceServer<AgentEndpoint>>().await;
    let agents = AgentEndpoint(fleet.clone());
    let operators = OperatorEndpoint { token, fleet, store, jobs: jobs.clone() };
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(health)
        .add_service(AgentServiceServer::new(agents.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(
            EnrolmentServiceServer::new(agents).max_decoding_message_size(OPERATOR_MESSAGE),
        )
        .add_service(
            OperatorServiceServer::new(operators).max_decoding_message_size(OPERATOR_MESSAGE),
        )
        .serve_with_incoming_shutdown(incoming, stopped(stop.clone()));
    tracing::info!(listen = %config.listen, authority = %authority.fingerprint().short(), "controller is ready");
    notify(&[sd_notify::NotifyState::Ready]);
    tokio::spawn(watchdog(stop.clone()));
    // Agents keep their streams open for ever: after the stop they get a moment, not a veto.
    tokio::select! {
        ended = server => ended.context("the port failed")?,
        () = async { stop.cancelled().await; tokio::time::sleep(STOPPING).await } => {}
    }
    stop.cancel();
    jobs.stopped().await;
    renewal.await.context("the renewal of the controller's certificate failed")?;
    tracing::info!("controller has stopped; running jobs go on at the next start");
    Ok(())
}

/// Ends when the service manager or a person says stop, and tells everybody else.
async fn stopped(stop: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot listen for signals; stop the process with SIGKILL");
        return stop.cancelled().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = stop.cancelled() => {}
    }
    notify(&[sd_notify::NotifyState::Stopping]);
    stop.cancel();
}

/// Tells the service manager that the runtime still turns.
async fn watchdog(stop: CancellationToken) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut tick = tokio::time::interval(period / 3);
    loop {
        tokio::select! {
            _ = tick.tick() => notify(&[sd_notify::NotifyState::Watchdog]),
            () = stop.cancelled() => return,
        }
    }
}

fn notify(states: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What of a program its manual page does not name: commands and their options.
    fn unnamed(command: &clap::Command, page: &str) -> Vec<String> {
        let mut missing = Vec::new();
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let longs = sub.get_arguments().filter_map(|arg| arg.get_long());
            let longs = longs.filter(|long| !["help", "version", "config"].contains(long));
            let words = longs.map(|long| format!("--{long}")).chain([sub.get_name().to_owned()]);
            missing.extend(words.filter(|word| !page.contains(word.as_str())));
            missing.extend(unnamed(sub, page));
        }
        missing
    }

    #[test]
    fn the_packaged_manual_page_names_every_command_and_option() {
        let page = include_str!("../../packaging/man/ferry-controller.8").replace('\\', "");
        assert_eq!(unnamed(&Arguments::command(), &page), [] as [&str; 0]);
    }
}
