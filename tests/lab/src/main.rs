//! `cargo lab`: the lab's command line.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use ferry_lab::build::Build;
use ferry_lab::interrupt::{self, Interrupted};
use ferry_lab::lab::Lab;
use ferry_lab::progress::say;
use ferry_lab::spec::HostSpec;
use ferry_lab::{bench, demo, faults, stranger, testrun, visitors};

/// Real hosts on this machine, to show, test and measure Ferry on. Needs root on Debian 12 or 13.
#[derive(Debug, Parser)]
#[command(name = "lab", bin_name = "cargo lab")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Brings the hosts up and leaves them running
    Up {
        /// Also the Debian 11 host
        #[arg(long)]
        with_old: bool,
    },
    /// Takes the lab down; nothing of it stays but the cache
    Down,
    /// Shows the hosts and what fails on them
    Status,
    /// Opens a root shell on a host, or runs one command there
    Shell {
        /// controller, client, transit or old
        host: String,
        /// The command; a login shell without one
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Runs one command on a host, and ends with its exit code
    Exec {
        /// controller, client, transit or old
        host: String,
        /// The command
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Builds the programs and packages that run on the hosts
    Build,
    /// Moves an account and rolls it back, before your eyes
    Demo {
        /// Leave the lab up afterwards
        #[arg(long)]
        keep: bool,
        /// Once more on the lab that is up: nothing is built, and only what is missing is installed
        #[arg(long)]
        again: bool,
    },
    /// Runs scenarios on the hosts
    Test {
        /// Their names; the ordinary ones without any
        scenarios: Vec<String>,
        /// All of them
        #[arg(long)]
        all: bool,
        /// Play on the lab that is up, if one is, and leave it up: to look at what failed
        #[arg(long)]
        keep: bool,
        /// Which cases the scenario faults plays
        #[command(flatten)]
        faults: faults::Options,
    },
    /// Measures Ferry and its peers side by side
    Bench {
        /// What to measure
        name: String,
        /// With less data
        #[arg(long)]
        quick: bool,
    },
    /// What the lab runs in its own network: nothing for people
    #[command(hide = true)]
    Visitors(visitors::Options),
    /// Likewise: somebody with a stolen key
    #[command(hide = true)]
    Stranger(stranger::Options),
}

fn main() -> ExitCode {
    match interrupt::install().and_then(|()| run(Cli::parse().verb)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            let interrupted = error.chain().any(|cause| cause.is::<Interrupted>());
            ExitCode::from(if interrupted { 130 } else { 1 })
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Up { with_old } => up(with_old),
        Verb::Down => down(),
        Verb::Status => status(),
        Verb::Shell { host, command } if command.is_empty() => enter(&host, &["bash", "-l"]),
        Verb::Shell { host, command } | Verb::Exec { host, command } => {
            enter(&host, &command.iter().map(String::as_str).collect::<Vec<_>>())
        }
        Verb::Build => build(),
        Verb::Demo { again: true, .. } => demo::again(),
        Verb::Demo { keep, .. } => demo::run(keep),
        Verb::Test { scenarios, all, keep, faults } => testrun::run(&scenarios, all, keep, &faults),
        Verb::Bench { name, quick } => bench::run(&name, quick),
        Verb::Visitors(options) => visitors::run(&options),
        Verb::Stranger(options) => stranger::run(&options),
    }
}

fn up(with_old: bool) -> Result<()> {
    let mut wanted = HostSpec::standard();
    if with_old {
        wanted.push(HostSpec::old());
    }
    Lab::up(&wanted)?.keep();
    say("the lab is up: `cargo lab status` shows it, `cargo lab shell HOST` enters it");
    Ok(())
}

fn down() -> Result<()> {
    say(if Lab::down()? { "the lab is down" } else { "there was no lab" });
    Ok(())
}

fn status() -> Result<()> {
    for host in Lab::open()?.hosts() {
        let spec = host.spec();
        let service = spec.service_address.map_or_else(|| "-".to_owned(), |a| a.to_string());
        let health = host.health();
        let addresses = format!("{:12} {service:12}", spec.address.to_string());
        let failed = health.failed.join(" ");
        println!("{:11} {:11} {addresses} {} {failed}", spec.name, spec.image.name(), health.state);
    }
    Ok(())
}

fn build() -> Result<()> {
    let build = Build::run()?;
    for package in ferry_lab::build::PACKAGES {
        println!("{}", build.deb(package)?.display());
    }
    Ok(())
}

/// Becomes a command inside a host, so that its terminal, its signals and its exit code are ours.
fn enter(host: &str, argv: &[&str]) -> Result<()> {
    let lab = Lab::open()?;
    let error = lab.host(host)?.command(argv)?.exec();
    Err(error).context("entering the host")
}
