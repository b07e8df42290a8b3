//! Ferry's agent: runs on every client and transit server.

mod agent;
mod backoff;
mod clock;
mod commands;
mod config;
mod deadlines;
mod definitions;
mod discover;
mod doctor;
mod enrolment;
mod fd_store;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod handover;
mod journals;
mod ledger;
mod limits;
mod link;
mod parts;
mod peer;
mod small_file;
mod standalone;
mod status;
#[cfg(test)]
mod testing;
mod unhook;
mod unsynced;
mod upgraded;
mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use ferry_proto::channel::{self, Connections, Identity, Limits, Listener, PeerListener};
use ferry_traffic::client::Redirector;
use ferry_traffic::control::CONTROL_SOCKET;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::agent::Agent;
use crate::commands::Commands;
use crate::config::Config;
use crate::deadlines::Pulse;
use crate::enrolment::Enrolled;
use crate::ledger::Ledger;
use crate::link::Link;
use crate::parts::Parts;

/// What commands tell, waiting for the link.
const TOLD: usize = 256;
/// How long those who watch this agent's status are given to hear that it has stopped.
const LAST_WORDS: Duration = Duration::from_secs(1);

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
    #[command(args_conflicts_with_subcommands = true)]
    Accounts {
        /// One JSON document.
        #[arg(long)]
        json: bool,
        #[command(subcommand)]
        command: Option<AccountsCommand>,
    },
    /// Copy and compare directories between two agents, without a move.
    Files {
        #[command(subcommand)]
        command: standalone::FilesCommand,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Close again, at boot, what accounts are not to be served here. `ferry-guard.service` does it.
    Guard,
    /// Say whether the redirector still runs the program from before an upgrade, and whether it may be
    /// restarted now. Exit code: 0 nothing to do, 10 restart it now, 11 later.
    Redirector,
    /// Take Ferry's hooks out of Postfix and Dovecot, before the package is removed.
    Unhook {
        /// Also while an account is on the move: nobody may serve it afterwards.
        #[arg(long)]
        force: bool,
    },
    /// Look for what Ferry has left on this server and nothing stands for. Exit code 0: nothing; 1: it was
    /// found; 2: something could not be looked at.
    Doctor {
        /// One JSON document.
        #[arg(long)]
        json: bool,
        /// Also remove it, but for what is left to a person.
        #[arg(long)]
        remove: bool,
    },
}

#[derive(Debug, Subcommand)]
enum AccountsCommand {
    /// Propose definitions from what this server shows, for a person to review.
    Discover(discover::Wanted),
}

/// Does what the command line asks.
///
/// # Errors
/// What kept it from being done, for a person.
pub fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config = configuration(&arguments)?;
    channel::install_crypto_provider();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match arguments.command {
        Command::Run => {
            start_log(&config)?;
            if ferry_failpoints::ENABLED {
                tracing::error!("this agent was built with failpoints, for tests alone");
            }
            let result = runtime.block_on(run(config, arguments.config));
            // What blocks (a child that does not end) does not hold up the stop.
            runtime.shutdown_timeout(Duration::from_secs(2));
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
        Command::Accounts { command: Some(AccountsCommand::Discover(wanted)), .. } => {
            runtime.block_on(discover::run(&config, wanted))
        }
        Command::Accounts { json, command: None } => show_accounts(&config, json),
        Command::Files { command } => {
            let code = runtime.block_on(standalone::run(&config, command))?;
            std::process::exit(code);
        }
        Command::Completions { shell } => {
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "ferry-agent", &mut std::io::stdout());
            Ok(())
        }
        Command::Guard => {
            // Not to the journal's own socket: it may no longer find out whose words they were when a
            // process has ended.
            start_plain_log(&config)?;
            runtime.block_on(guard::run(&config))
        }
        Command::Redirector => {
            let restart = upgraded::look(&config)?;
            println!("{restart}");
            std::process::exit(i32::from(restart.exit_code()))
        }
        Command::Unhook { force } => {
            runtime.block_on(unhook::unhook(&config, force))?;
            println!("Postfix and Dovecot no longer know Ferry");
            Ok(())
        }
        Command::Doctor { json, remove } => {
            let code = runtime.block_on(doctor::doctor(&config, json, remove));
            std::process::exit(code);
        }
    }
}

/// The configuration, as the command needs it.
fn configuration(arguments: &Arguments) -> anyhow::Result<Config> {
    match Config::load(&arguments.config) {
        // A mistake in it must not keep accounts from being closed: the ledger is where it usually is.
        Err(fault) if matches!(arguments.command, Command::Guard) => {
            eprintln!("{fault}; the guard goes on with the defaults");
            Ok(Config::default())
        }
        Err(fault) if matches!(arguments.command, Command::Doctor { .. }) => {
            eprintln!("{fault}");
            std::process::exit(doctor::COULD_NOT_LOOK);
        }
        loaded => Ok(loaded?),
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
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journal) = tracing_journald::layer()
    {
        tracing_subscriber::registry().with(config.log_filter()?).with(journal).init();
        return Ok(());
    }
    start_plain_log(config)
}

fn start_plain_log(config: &Config) -> anyhow::Result<()> {
    let plain = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(config.log_filter()?).with(plain).init();
    Ok(())
}

async fn run(config: Config, path: PathBuf) -> anyhow::Result<()> {
    // Before anything is started that has children: they would inherit what the process before has left.
    let kept = fd_store::take();
    // Before anybody may ask for it: what is not listened for ends the process.
    let hangup = signal(SignalKind::hangup())?;
    let enrolled = Enrolled::load(&config)?;
    let identity = Identity::load(&config.identity_directory())?;
    let ledger = Ledger::open(&config.state_directory.join("ledger"))?;
    let connections = Connections::new(Limits::default());
    let redirector = Redirector::at(CONTROL_SOCKET);
    let controller = config.controller.clone().unwrap_or(enrolled.controller);
    let agent = Agent::new(config, identity, enrolled.grant_key, connections, ledger, redirector)?;

    let stop = CancellationToken::new();
    let mut parts = Parts::new(stop.clone());
    // First, and whatever else cannot start: a fence may be waiting for its end.
    let pulse = Arc::new(Pulse::default());
    parts.spawn("deadlines", deadlines::watch(agent.clone(), pulse.clone(), stop.clone()));
    parts.spawn("firewall", work::arm::keep(agent.clone(), stop.clone()));
    parts.spawn("guard", guard::keep(agent.clone(), stop.clone()));
    parts.spawn("limits", limits::keep(agent.clone(), path, hangup, stop.clone()));
    parts.spawn("watchdog", watchdog(agent.clone(), pulse, stop.clone()));
    let metrics = status::record()?;
    // Before anybody asks for a journal.
    handover::take(&agent, kept).await;
    let (told, heard) = mpsc::channel(TOLD);
    let (connected, connection) = watch::channel(false);
    let commands = Commands::new(agent.clone(), told, stop.clone());
    let link = Link::new(agent.clone(), commands.clone(), heard, controller.clone(), connected);
    parts.spawn("link", link.run(stop.clone()));
    parts.spawn("peers", serve_peers(agent.clone(), stop.clone()));
    parts.spawn("renewal", enrolment::keep_fresh(agent.clone(), controller, stop.clone()));
    // Nothing needs it, and it goes on while the others stop.
    let stopped = CancellationToken::new();
    let status = status::serve(agent.clone(), metrics, connection, stop.clone(), stopped.clone());
    let status = tokio::spawn(status);
    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(server = %agent.name, version = env!("CARGO_PKG_VERSION"), "agent is ready");

    let ended = parts.ended(asked_to_stop()).await;
    notify(&[sd_notify::NotifyState::Stopping]);
    parts.stop(commands.stopped()).await;
    if ended.is_ok() {
        handover::leave(&agent).await;
    }
    stopped.cancel();
    let _ = tokio::time::timeout(LAST_WORDS, status).await;
    tracing::info!("agent has stopped; what stands, stands");
    ended
}

/// Answers peers, from when the port can be had.
async fn serve_peers(agent: Arc<Agent>, stop: CancellationToken) {
    let address = agent.config.peer_listen.to_string();
    let bind = || async {
        let listener =
            Listener::bind(&address).await.map_err(|f| f.context("peers are not answered"))?;
        PeerListener::new(listener, &agent.identity, &agent.connections)
    };
    if let Some(listener) = backoff::until_done(&stop, bind).await {
        peer::serve(agent.clone(), listener, stop).await;
    }
}

/// Waits for the service manager or a person.
async fn asked_to_stop() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot listen for signals; stop the process with SIGKILL");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Tells the service manager that the runtime turns, the ledger can be looked into, and the fences
/// are watched.
async fn watchdog(agent: Arc<Agent>, pulse: Arc<Pulse>, stop: CancellationToken) {
    let Some(period) = sd_notify::watchdog_enabled() else { return stop.cancelled().await };
    let mut tick = tokio::time::interval(period / 3);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        agent.look(|_| ());
        if pulse.age() < period / 2 {
            notify(&[sd_notify::NotifyState::Watchdog]);
        } else {
            tracing::error!("the fences are not watched: the service manager shall start us again");
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
        let page = include_str!("../../packaging/man/ferry-agent.8").replace('\\', "");
        assert_eq!(unnamed(&Arguments::command(), &page), [] as [&str; 0]);
    }
}
