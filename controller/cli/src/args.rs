//! The command line's grammar and help. It knows no controller.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ferry_proto::ids::{AccountName, JobId, ServerName};

use crate::exit;

/// Where the operators' token is unless told.
pub const DEFAULT_TOKEN_FILE: &str = "/var/lib/ferry-controller/operator.token";

/// Where the authority's certificate is unless told: in the controller's own directory, which root
/// reads, or the copy for everybody.
pub const DEFAULT_CA_FILES: [&str; 2] =
    ["/var/lib/ferry-controller/ca/ca.pem", "/etc/ferry/ca.pem"];

/// Moves hosting accounts between servers while their owners keep working
#[derive(Debug, Parser)]
#[command(name = "ferry", version, after_help = after_help(), max_term_width = 100)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

fn after_help() -> String {
    format!("{}\n\n{}", exit::JSON, exit::TABLE)
}

/// What holds for every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection and output")]
pub struct Global {
    /// The controller
    #[arg(long, global = true, value_name = "HOST:PORT", env = "FERRY_CONTROLLER")]
    #[arg(default_value = "127.0.0.1:7400", hide_env_values = true)]
    pub controller: String,
    /// File with the operators' token
    #[arg(long, global = true, value_name = "FILE", env = "FERRY_TOKEN_FILE")]
    #[arg(default_value = DEFAULT_TOKEN_FILE, hide_env_values = true)]
    pub token_file: PathBuf,
    /// File with the certificate of the controller's authority [default:
    /// /var/lib/ferry-controller/ca/ca.pem or /etc/ferry/ca.pem]
    #[arg(long, global = true, value_name = "FILE", env = "FERRY_CA", hide_env_values = true)]
    pub ca: Option<PathBuf>,
    /// Print JSON: one document, or a line for each thing that happens; nothing is asked
    #[arg(long, global = true)]
    pub json: bool,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Servers: add, list, revoke
    #[command(subcommand)]
    Server(ServerCommand),
    /// Accounts: list
    #[command(subcommand)]
    Account(AccountCommand),
    /// Move an account to another server
    ///
    /// Inspects both servers, shows the plan and how long it will take, asks, and then shows each
    /// step until the account is served at the target. If anything fails before the commit, the
    /// move is undone and the account stays where it was.
    Move(MoveArgs),
    /// Move an account back to where it came from
    ///
    /// A move in the other direction, with a plan, a question and a short outage of its own. Nothing
    /// written since the move is lost.
    Rollback(RollbackArgs),
    /// Show moves: those that run and the last ones, or one in detail
    Status(StatusArgs),
    /// Show what happened, oldest first
    Events(EventsArgs),
    /// Undo a move that has not committed
    Abort(AbortArgs),
    /// Stop a move for now, whose account is still served
    ///
    /// Only while it prepares the target and copies ahead, before the redirector stands in front. Nothing is
    /// undone: what was copied is kept, and `ferry resume` goes on with it, after hours or days. The move
    /// leaves its place to others meanwhile; the account has no other job.
    Pause(PauseArgs),
    /// Go on with a paused move, or with a stuck job once what it names has been mended
    ///
    /// Of a stuck job it tries again what failed last: an undo before the commit, the steps left after it,
    /// or the question whether the source has committed. `ferry status` names the step, the server and the
    /// fault.
    Resume(ResumeArgs),
    /// End a move for good
    ///
    /// Takes down what stands for the move on the server that no longer serves the account: after
    /// it there is no rollback, and visitors who still come there are no longer passed on.
    Finalize(FinalizeArgs),
    /// Open an account at its target without the word of its source, which is lost
    ///
    /// Only while its move is `committed, unheard`: the source was asked to commit, has not answered,
    /// and is not connected. If the source still serves the account, two servers will: it must be off,
    /// and must not come back with the network it had. Whoever asks says so by typing its name. If it
    /// comes back after all, it closes its copy; what was written there is named, and not merged.
    ForceOpen(ForceOpenArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(hide = true)]
    Man,
}

/// What to do with servers.
#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Register a server and print the token that enrols its agent
    ///
    /// The token goes to standard output, alone. It is good once, for a short time. On the server:
    /// ferry-agent enroll --controller HOST:PORT --token-file FILE
    Add {
        /// Its name: a host name without domain
        name: ServerName,
        /// What it is for
        #[arg(long, value_enum)]
        role: Role,
        /// How long the token is good for, as in 30m, 1h or 2d
        #[arg(long, value_name = "TIME", value_parser = seconds)]
        valid: Option<u32>,
    },
    /// List all servers
    List,
    /// Cut a server's agent off, at once and for good
    ///
    /// Its certificate is no longer accepted, by the controller or by other agents. What stands on
    /// it (redirects, say) stays.
    Revoke {
        /// The server
        name: ServerName,
    },
}

/// What a server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Serves accounts, and is to be emptied and reinstalled
    Client,
    /// Serves one client server's accounts in the meantime
    Transit,
    /// Serves several client servers' accounts in the meantime
    SharedTransit,
}

impl Role {
    /// As the controller calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Transit => "transit",
            Self::SharedTransit => "shared-transit",
        }
    }
}

/// What to do with accounts.
#[derive(Debug, Subcommand)]
pub enum AccountCommand {
    /// List all accounts, on every server that knows them
    List,
}

/// `ferry move`.
#[derive(Debug, Args)]
pub struct MoveArgs {
    /// The account
    pub account: AccountName,
    /// The server that shall serve it
    #[arg(long, value_name = "SERVER")]
    pub to: ServerName,
    /// The server that serves it now, where more than one has an account of this name
    #[arg(long, value_name = "SERVER")]
    pub from: Option<ServerName>,
    /// It returns from the transit server to the reinstalled client server
    #[arg(long = "return")]
    pub is_return: bool,
    /// How it is agreed to and watched.
    #[command(flatten)]
    pub consent: Consent,
}

/// `ferry rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// The account
    pub account: AccountName,
    /// The server that it came from, if the controller does not know of that move
    #[arg(long, value_name = "SERVER")]
    pub to: Option<ServerName>,
    /// The server that serves it now, where more than one has an account of this name
    #[arg(long, value_name = "SERVER")]
    pub from: Option<ServerName>,
    /// How it is agreed to and watched.
    #[command(flatten)]
    pub consent: Consent,
}

/// How a move is agreed to and watched.
#[derive(Debug, Args)]
pub struct Consent {
    /// Show the plan, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// How long the fence may last before the source takes the account back, as in 90s or 5m
    /// [default: twice the forecast outage, at least 30s]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub deadline: Option<u32>,
    /// Let this path below the home go to the target although it would be refused (a foreign owner,
    /// setuid, a capability, a device, a privileged attribute); as the plan shows it, with `\xNN` for each
    /// odd byte, and as it is now: whatever else stands there later is refused. Repeatable
    #[arg(long, value_name = "PATH", value_parser = shown_path)]
    pub approve: Vec<String>,
    /// Start it and return at once
    #[arg(long)]
    pub detach: bool,
}

/// `ferry status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// An account (its last move), or a job
    #[arg(value_name = "ACCOUNT|JOB", value_parser = subject)]
    pub subject: Option<Subject>,
    /// Go on showing it until it has ended, or is paused
    #[arg(long, short)]
    pub watch: bool,
}

/// Whose status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// An account's last job.
    Account(AccountName),
    /// This job.
    Job(JobId),
}

/// `ferry events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only of this account
    #[arg(long)]
    pub account: Option<AccountName>,
    /// Only of this job
    #[arg(long)]
    pub job: Option<JobId>,
    /// Only after this number, as --json shows it
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub after: u64,
    /// Go on with what happens from now on
    #[arg(long, short)]
    pub follow: bool,
}

/// `ferry abort`.
#[derive(Debug, Args)]
pub struct AbortArgs {
    /// The account
    pub account: AccountName,
    /// Ask for it and return at once
    #[arg(long)]
    pub detach: bool,
}

/// `ferry pause`.
#[derive(Debug, Args)]
pub struct PauseArgs {
    /// The account
    pub account: AccountName,
    /// Ask for it and return at once
    #[arg(long)]
    pub detach: bool,
}

/// `ferry resume`.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// An account (its last job), or a job
    #[arg(value_name = "ACCOUNT|JOB", value_parser = subject)]
    pub subject: Subject,
    /// Ask for it and return at once
    #[arg(long)]
    pub detach: bool,
}

/// `ferry finalize`.
#[derive(Debug, Args)]
pub struct FinalizeArgs {
    /// The account
    pub account: AccountName,
    /// The server that serves it now, where more than one has an account of this name
    #[arg(long, value_name = "SERVER")]
    pub from: Option<ServerName>,
    /// Also erase the copy on the server that no longer serves it
    #[arg(long)]
    pub erase: bool,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// Start it and return at once
    #[arg(long)]
    pub detach: bool,
}

/// `ferry force-open`.
#[derive(Debug, Args)]
pub struct ForceOpenArgs {
    /// The account
    pub account: AccountName,
    /// The name of the source, as whoever made sure that it is off and isolated typed it; without
    /// this it is asked for
    #[arg(long, value_name = "SOURCE")]
    pub source_is_off: Option<ServerName>,
    /// Start it and return at once
    #[arg(long)]
    pub detach: bool,
}

/// A time such as `90s`, `5m`, `1h` or `2d`, in seconds.
fn seconds(text: &str) -> Result<u32, String> {
    const RULE: &str = "write a number and a unit, as in 90s, 5m, 1h or 2d";
    let (number, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(RULE.to_owned()),
    };
    let number: u32 = number.parse().map_err(|_| RULE.to_owned())?;
    match number.checked_mul(factor) {
        Some(0) => Err("it must be longer than nothing".to_owned()),
        Some(seconds) => Ok(seconds),
        None => Err("that is too long".to_owned()),
    }
}

/// A path as plans show it.
fn shown_path(text: &str) -> Result<String, String> {
    match ferry_proto::shown::read(text) {
        Some(path) if path.first() == Some(&b'/') => {
            Err("write it below the home, without the home itself".to_owned())
        }
        Some(_) => Ok(text.to_owned()),
        None => {
            Err(r"write each byte that is no plain text as \xNN, a backslash as \x5c".to_owned())
        }
    }
}

/// An account or a job. No account's name is as long as a job's.
fn subject(text: &str) -> Result<Subject, String> {
    if let Ok(job) = text.parse() {
        return Ok(Subject::Job(job));
    }
    text.parse()
        .map(Subject::Account)
        .map_err(|e: ferry_proto::ids::InvalidName| format!("neither an account nor a job: {e}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Help is part of the interface: a change shows up in review.
    #[test]
    fn help_is_as_recorded() {
        fn visit(command: &mut clap::Command, path: &str) {
            insta::assert_snapshot!(path.replace(' ', "_"), command.render_long_help().to_string());
            // `help` repeats the grammar.
            let names: Vec<String> = command
                .get_subcommands()
                .map(|c| c.get_name().to_owned())
                .filter(|name| name != "help")
                .collect();
            for name in names {
                if let Some(sub) = command.find_subcommand_mut(&name) {
                    visit(sub, &format!("{path} {name}"));
                }
            }
        }
        let mut command = Cli::command().term_width(100);
        command.build();
        visit(&mut command, "ferry");
    }

    #[test]
    fn times_need_a_unit() {
        for (text, want) in [("90s", 90), ("5m", 300), ("1h", 3600), ("2d", 172_800)] {
            assert_eq!(seconds(text), Ok(want));
        }
        for bad in ["", "s", "90", "0s", "-1s", "1.5h", "1w", "5000000000s", "60000d", "1\u{e9}"] {
            assert!(seconds(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_are_written_as_they_are_shown() {
        for good in [".", "bin/tool", r"a\xff"] {
            assert_eq!(shown_path(good).as_deref(), Ok(good));
        }
        for bad in ["", "/etc/passwd", r"a\b", "a…b"] {
            assert!(shown_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn accounts_and_jobs_are_told_apart() {
        let job = "01900000-0000-7000-8000-000000000000";
        assert_eq!(subject(job), Ok(Subject::Job(job.parse().unwrap())));
        assert_eq!(subject("shop"), Ok(Subject::Account("shop".parse().unwrap())));
        assert!(subject("../shop").is_err());
    }

    #[test]
    fn bad_names_are_refused_before_anybody_is_asked() {
        for line in [
            &["ferry", "move", "Shop", "--to", "web1"][..],
            &["ferry", "move", "shop", "--to", "web1.example.com"],
            &["ferry", "server", "add", "web_1", "--role", "client"],
            &["ferry", "server", "add", "web1", "--role", "boss"],
            &["ferry", "events", "--job", "7"],
        ] {
            let error = Cli::try_parse_from(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line:?}");
        }
    }
}
