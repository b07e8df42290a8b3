//! Ferry's agent: runs on every client and transit server.

mod agent;
mod clock;
mod commands;
mod config;
mod deadlines;
mod enrolment;
mod ledger;
mod link;
mod peer;
mod status;
mod work;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand};
use ferry_proto::channel::{self, Connections, Identity, Limits, Listener, PeerListener};
use ferry_traffic::client::Redirector;
use ferry_traffic::control::CONTROL_SOCKET;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::commands::Commands;
use crate::config::Config;
use crate::enrolment::Enrolled;
use crate::ledger::Ledger;
use crate::link::Link;

/// What commands tell, waiting for the link.
const TOLD: usize = 256;

/// The agent of Ferry: does what the controller asks on this server, for its accounts.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Configuration file.
    #[arg(long, global = true, default_value = "/etc/ferry/agent.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Obey the controller, until told to stop.
    Run,
    /// Say whether the configuration is right.
    Check,
    /// Exchange a one-time token for a certificate.
    Enroll {
        /// The controller, HOST:PORT.
        #[arg(long)]
        controller: String,
        /// File with the token that `ferry server add` printed; `-` for standard input.
        #[arg(long)]
        token_file: PathBuf,
    },
    /// Show the accounts that this server's definitions name, and what is wrong with them.
    Accounts {
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config = Config::load(&arguments.config)?;
    channel::install_crypto_provider();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match arguments.command {
        Command::Run => {
            start_log(&config)?;
            let result = runtime.block_on(run(config));
            // What blocks (a child that does not end) does not hold up the stop.
            runtime.shutdown_timeout(std::time::Duration::from_secs(2));
            result
        }
        Command::Check => {
            println!("{} is right", arguments.config.display());
            Ok(())
        }
        Command::Enroll { controller, token_file } => {
            let token = read_token(&token_file)?;
            let server = runtime.block_on(enrolment::enrol(&config, &controller, &token))?;
            println!("enrolled as {server}; start the agent: systemctl start ferry-agent");
            Ok(())
        }
        Command::Accounts { json } => show_accounts(&config, json),
    }
}

fn read_token(path: &std::path::Path) -> anyhow::Result<String> {
    let text = if path == std::path::Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    text.with_context(|| format!("cannot read the token from {}", path.display()))
}

fn show_accounts(config: &Config, json: bool) -> anyhow::Result<()> {
    let inventory =
        ferry_host::accounts::load(&config.accounts_directory, &config.inventory_directory);
    if json {
        let problems: Vec<_> = inventory.problems.iter().map(ToString::to_string).collect();
        let accounts: Vec<_> = inventory.accounts.values().collect();
        println!("{}", serde_json::json!({ "accounts": accounts, "problems": problems }));
    } else {
        for (name, definition) in &inventory.accounts {
            println!(
                "{name}: user {}, home {}, {} sites, {} databases, {} mail domains",
                definition.user,
                definition.home.display(),
                definition.sites.len(),
                definition.databases.len(),
                definition.mail.len()
            );
        }
        for problem in &inventory.problems {
            eprintln!("{problem}");
        }
    }
    anyhow::ensure!(
        inventory.problems.is_empty(),
        "{} definitions were refused",
        inventory.problems.len()
    );
    Ok(())
}

/// Structured logs to the journal under systemd, to standard error elsewhere.
fn start_log(config: &Config) -> anyhow::Result<()> {
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log)
        .with_context(|| format!("log = {:?} is no filter", config.log))?;
    let registry = tracing_subscriber::registry().with(filter);
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journal) = tracing_journald::layer()
    {
        registry.with(journal).init();
    } else {
        let plain = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
        registry.with(plain).init();
    }
    Ok(())
}

async fn run(config: Config) -> anyhow::Result<()> {
    let enrolled = Enrolled::load(&config)?;
    let identity = Identity::load(&config.identity_directory())?;
    let ledger = Ledger::open(&config.state_directory.join("ledger"))?;
    let connections = Connections::new(Limits::default());
    let redirector = Redirector::at(CONTROL_SOCKET);
    let controller = config.controller.clone().unwrap_or(enrolled.controller);
    let peer_listen = config.peer_listen;
    let agent = Agent::new(config, identity, enrolled.grant_key, connections, ledger, redirector)?;

    let stop = CancellationToken::new();
    let (told, heard) = mpsc::channel(TOLD);
    let (connected, connection) = watch::channel(false);
    let commands = Commands::new(agent.clone(), told, stop.clone());
    let listener = Listener::bind(&peer_listen.to_string()).await?;
    let peers = PeerListener::new(listener, &agent.identity, &agent.connections)?;
    status::serve(agent.clone(), connection, stop.clone()).await?;
    let link = Link::new(agent.clone(), commands.clone(), heard, controller.clone(), connected);
    let tasks = [
        tokio::spawn(peer::serve(agent.clone(), peers, stop.clone())),
        tokio::spawn(deadlines::watch(agent.clone(), stop.clone())),
        tokio::spawn(work::arm::keep(agent.clone(), stop.clone())),
        tokio::spawn(enrolment::keep_fresh(agent.clone(), controller, stop.clone())),
        tokio::spawn(link.run(stop.clone())),
        tokio::spawn(watchdog(agent.clone(), stop.clone())),
    ];
    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(server = %agent.name, version = env!("CARGO_PKG_VERSION"), "agent is ready");
    stopped(&stop).await;
    for task in tasks {
        task.await.context("a part of the agent panicked")?;
    }
    commands.stopped().await;
    tracing::info!("agent has stopped; what stands, stands");
    Ok(())
}

/// Waits for the service manager or a person, and tells everybody.
async fn stopped(stop: &CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot listen for signals; stop the process with SIGKILL");
        return stop.cancelled().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    notify(&[sd_notify::NotifyState::Stopping]);
    stop.cancel();
}

/// Tells the service manager that the runtime turns and the ledger can be looked into.
async fn watchdog(agent: Arc<Agent>, stop: CancellationToken) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut tick = tokio::time::interval(period / 3);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                agent.look(|_| ());
                notify(&[sd_notify::NotifyState::Watchdog]);
            }
            () = stop.cancelled() => return,
        }
    }
}

fn notify(states: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
