//! One file per command.

mod events;
mod finish;
mod force;
mod inventory;
mod moves;
mod status;

use std::io::Write;

use clap::CommandFactory;

use crate::args::{AccountCommand, Cli, Command, ServerCommand};
use crate::connection::Operator;
use crate::exit::{Exit, Failure};
use crate::screen::Screen;

/// Carries out the command.
pub async fn run(cli: Cli, screen: &Screen) -> Result<Exit, Failure> {
    match cli.command {
        Command::Completions { shell } => return completions(shell, screen),
        Command::Man => return manual(screen),
        _ => {}
    }
    let operator = Operator::connect(&cli.global).await?;
    match cli.command {
        Command::Server(ServerCommand::Add { name, role, valid }) => {
            inventory::add_server(&operator, screen, &name, role, valid).await
        }
        Command::Server(ServerCommand::List) => inventory::servers(&operator, screen).await,
        Command::Server(ServerCommand::Revoke { name }) => {
            inventory::revoke(&operator, screen, &name).await
        }
        Command::Account(AccountCommand::List) => inventory::accounts(&operator, screen).await,
        Command::Move(args) => moves::start(&operator, screen, args).await,
        Command::Rollback(args) => moves::roll_back(&operator, screen, args).await,
        Command::Status(args) => status::show(&operator, screen, args).await,
        Command::Events(args) => events::show(&operator, screen, args).await,
        Command::Abort(args) => finish::abort(&operator, screen, args).await,
        Command::Pause(args) => finish::pause(&operator, screen, args).await,
        Command::Resume(args) => finish::resume(&operator, screen, args).await,
        Command::Finalize(args) => finish::finalize(&operator, screen, args).await,
        Command::ForceOpen(args) => force::open(&operator, screen, args).await,
        // Done above, without a controller.
        Command::Completions { .. } | Command::Man => Ok(Exit::Done),
    }
}

fn completions(shell: clap_complete::Shell, screen: &Screen) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ferry", &mut script);
    screen.text(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}

fn manual(screen: &Screen) -> Result<Exit, Failure> {
    screen.text(&manual_text().map_err(|e| Failure::io("the manual page cannot be made", &e))?)?;
    Ok(Exit::Done)
}

/// The manual page: the program, then each command.
fn manual_text() -> std::io::Result<String> {
    let mut command = Cli::command().version(None::<&str>).term_width(100);
    command.build();
    let mut roff = Vec::new();
    let page = clap_mangen::Man::new(command.clone()).title("FERRY").source("Ferry").date("");
    page.render_title(&mut roff)?;
    page.render_name_section(&mut roff)?;
    page.render_synopsis_section(&mut roff)?;
    page.render_description_section(&mut roff)?;
    page.render_options_section(&mut roff)?;
    writeln!(roff, ".SH COMMANDS")?;
    describe(&mut command, "ferry", &mut roff)?;
    for (title, table) in
        [("OUTPUT WITH JSON", crate::exit::JSON), ("EXIT STATUS", crate::exit::TABLE)]
    {
        writeln!(roff, ".SH {title}\n.nf")?;
        for line in table.lines().skip(1) {
            writeln!(roff, "{}", in_roff(line.strip_prefix("  ").unwrap_or(line)))?;
        }
        writeln!(roff, ".fi")?;
    }
    writeln!(
        roff,
        ".SH FILES\n.TP\n.I {}\nThe operators' token.",
        crate::args::DEFAULT_TOKEN_FILE
    )?;
    for file in crate::args::DEFAULT_CA_FILES {
        writeln!(roff, ".TP\n.I {file}\nThe certificate of the controller's authority.")?;
    }
    writeln!(roff, ".SH SEE ALSO\n.BR ferry-controller (8),\n.BR ferry-agent (8)")?;
    Ok(String::from_utf8_lossy(&roff).into_owned())
}

/// Each command with its own options; those for all are told once.
fn describe(command: &mut clap::Command, path: &str, roff: &mut Vec<u8>) -> std::io::Result<()> {
    let told = |sub: &&mut clap::Command| !sub.is_hide_set() && sub.get_name() != "help";
    for sub in command.get_subcommands_mut().filter(told) {
        let path = format!("{path} {}", sub.get_name());
        if sub.has_subcommands() {
            describe(sub, &path, roff)?;
            continue;
        }
        let about =
            sub.get_long_about().or(sub.get_about()).map(ToString::to_string).unwrap_or_default();
        writeln!(roff, ".SS {path}\n{}", in_roff(&about).replace("\n\n", "\n.PP\n"))?;
        for arg in sub.get_arguments().filter(|arg| !arg.is_global_set() && arg.get_id() != "help")
        {
            let help =
                arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
            writeln!(roff, ".TP\n.B {}\n{}", in_roff(&arg.to_string()), in_roff(&help))?;
        }
    }
    Ok(())
}

/// Text that roff takes for nothing else.
fn in_roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    /// The package carries the page as a file.
    #[test]
    fn the_packaged_manual_page_is_current() {
        let packaged = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/man/ferry.1");
        let text = super::manual_text().unwrap();
        assert!(text.contains(".SS ferry move"));
        assert!(
            std::fs::read_to_string(packaged).unwrap() == text,
            "packaging/man/ferry.1 is outdated: cargo run -p ferry-cli -- man > packaging/man/ferry.1"
        );
    }
}
