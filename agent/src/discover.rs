//! `ferry-agent accounts discover`: joins what the host and the database servers show, and prints or
//! writes the proposed definitions. Changes nothing else, and replaces no file.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use ferry_databases::{Availability, Engine};
use ferry_host::Layout;
use ferry_host::discover::{DatabaseSeen, DatabaseUserSeen, DatabasesSeen, Discovery, discover};

use crate::agent::{ENGINES, engine};
use crate::config::Config;

/// Which accounts are to be proposed, and where to.
#[derive(Debug, clap::Args)]
pub struct Wanted {
    /// One JSON document.
    #[arg(long, conflicts_with = "output")]
    json: bool,
    /// Write each proposal as NAME.toml into this directory, unless there is such a file.
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
    /// Unix users whose accounts are proposed; all whose accounts are not defined yet if none is named.
    #[arg(value_name = "USER")]
    users: Vec<String>,
}

/// Looks at this host and tells.
///
/// # Errors
/// If a wanted user does not exist, or a file could not be written.
pub async fn run(config: &Config, wanted: Wanted) -> anyhow::Result<()> {
    let mut seen = DatabasesSeen::default();
    for kind in ENGINES {
        look(&*engine(kind), &mut seen).await;
    }
    let inventory =
        ferry_host::accounts::load(&config.accounts_directory, &config.inventory_directory);
    let defined: Vec<_> = inventory.accounts.into_values().collect();
    let users = wanted.users;
    let found =
        crate::agent::blocking(move || discover(&Layout::system(), &seen, &defined, &users));
    let found = found.await.map_err(|fault| anyhow::anyhow!("{fault}"))?;
    if wanted.json {
        println!("{}", serde_json::to_string(&found)?);
        return Ok(());
    }
    for left_over in &found.unassigned {
        eprintln!("unassigned: {left_over}");
    }
    match wanted.output {
        Some(directory) => write_all(&directory, &found),
        None => {
            let texts: Vec<&str> = found.proposals.iter().map(|p| p.text.as_str()).collect();
            print!("{}", texts.join("\n"));
            Ok(())
        }
    }
}

/// Adds what a database server shows. One that is not there, or does not answer, stops nothing.
async fn look(engine: &dyn Engine, seen: &mut DatabasesSeen) {
    let kind = engine.kind();
    let survey = match engine.available().await {
        Availability::Absent => return,
        Availability::Down(fault) => Err(fault),
        Availability::Running(_) => engine.survey().await,
    };
    match survey {
        Ok(survey) => {
            seen.databases.extend(survey.databases.into_iter().map(|database| DatabaseSeen {
                engine: kind,
                name: database.name,
                owner: database.owner,
            }));
            seen.users.extend(survey.users.into_iter().map(|user| DatabaseUserSeen {
                engine: kind,
                name: user.name,
                host: user.host,
                databases: user.databases,
                administrates: user.administrates,
            }));
        }
        Err(fault) => seen.doubts.push(format!("{kind} was not looked at: {fault}")),
    }
}

/// Writes the files that are not there, and says which are.
fn write_all(directory: &Path, found: &Discovery) -> anyhow::Result<()> {
    let mut kept = Vec::new();
    for proposal in &found.proposals {
        let path = directory.join(format!("{}.toml", proposal.account));
        match write_new(&path, &proposal.text) {
            Ok(()) => {
                let doubts = match proposal.review.len() {
                    0 => "complete".to_owned(),
                    number => format!("{number} to review"),
                };
                println!("{}: {doubts}", path.display());
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                kept.push(path.display().to_string());
            }
            Err(e) => {
                return Err(e).with_context(|| format!("{} could not be written", path.display()));
            }
        }
    }
    ensure!(
        kept.is_empty(),
        "already there, and kept as it is: {} (move it away, or name another directory)",
        kept.join(", ")
    );
    Ok(())
}

/// Writes a file that must not exist; nothing is left of one that could not be written whole.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_| {
        // What is half written is ours; that it stays is told by the error itself.
        let _ = std::fs::remove_file(path);
    })
}

#[cfg(test)]
mod tests {
    use ferry_host::discover::Proposal;

    use super::*;

    fn proposal(name: &str) -> Proposal {
        Proposal {
            account: name.parse().unwrap(),
            user: name.to_owned(),
            complete: true,
            review: Vec::new(),
            definition: None,
            text: format!("name = \"{name}\"\n"),
        }
    }

    #[test]
    fn no_file_is_replaced_and_no_symlink_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("old.toml"), "mine").unwrap();
        std::os::unix::fs::symlink("elsewhere", path("link.toml")).unwrap();
        let proposals = ["old", "link", "new"].map(proposal).to_vec();
        let found = Discovery { proposals, unassigned: Vec::new() };
        let error = write_all(directory.path(), &found).unwrap_err().to_string();
        assert!(error.contains("old.toml") && error.contains("link.toml"), "{error}");
        assert_eq!(std::fs::read_to_string(path("old.toml")).unwrap(), "mine");
        assert!(!path("elsewhere").exists());
        assert_eq!(std::fs::read_to_string(path("new.toml")).unwrap(), "name = \"new\"\n");
    }

    #[tokio::test]
    async fn a_database_server_that_does_not_answer_is_told_and_stops_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("mysqld.sock");
        // There, but nobody listens.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let config = ferry_databases::MariadbConfig { socket, ..Default::default() };
        let mut seen = DatabasesSeen::default();
        look(&*ferry_databases::mariadb(config), &mut seen).await;
        assert_eq!(seen.databases, []);
        assert!(seen.doubts[0].starts_with("MariaDB was not looked at"), "{:?}", seen.doubts);
    }
}
