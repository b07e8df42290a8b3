//! `ferry-agent files`: copies and compares directories between two agents without a move. Root on the target
//! allows it, root on the source runs it; the controller knows nothing of it, and no account's home takes
//! part at the target.

pub mod allowance;
mod copy;

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use clap::Subcommand;
use ferry_proto::Fault;
use ferry_proto::ids::ServerName;

use crate::config::Config;
use crate::unsynced::Unsynced;
use allowance::Allowance;
use copy::{Copying, Ends};

/// What `ferry-agent files` can do.
#[derive(Debug, Subcommand)]
pub enum FilesCommand {
    /// Allow another server's agent to make a directory here equal to one there.
    Allow {
        /// The other server's name.
        peer: ServerName,
        /// The directory; what is in it may be replaced and deleted.
        directory: PathBuf,
        /// For so long: a number with s, m, h or d.
        #[arg(long = "for", value_name = "TIME", default_value = "24h", value_parser = seconds)]
        seconds: u32,
    },
    /// Show what other servers' agents are allowed.
    Allowed {
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Take back what `allow` allowed. A copy that runs goes on.
    Disallow {
        /// The other server's name.
        peer: ServerName,
        /// The directory.
        directory: PathBuf,
    },
    /// Make a directory of another server equal to one here.
    Copy(Copying),
    /// Compare a directory here with one of another server, contents and all. Exit code 0: equal; 1: not.
    Verify(Ends),
}

/// Does it, and answers the exit code.
///
/// # Errors
/// What kept it from being done.
pub async fn run(config: &Config, command: FilesCommand) -> Result<i32, Fault> {
    if !rustix::process::geteuid().is_root() {
        return Err(Fault::precondition("only root may copy all files and keep their owners")
            .remedy("run it as root"));
    }
    match command {
        FilesCommand::Allow { peer, directory, seconds } => {
            Allowance::new(config, peer, &directory, seconds)?.keep(config)?;
            Ok(0)
        }
        FilesCommand::Allowed { json } => show(config, json).map(|()| 0),
        FilesCommand::Disallow { peer, directory } => {
            let found = allowance::all(config)?
                .into_iter()
                .find(|a| a.peer == peer && a.directory == directory);
            let Some(found) = found else {
                return Err(Fault::precondition(format!(
                    "{peer} was not allowed to copy to {}",
                    directory.display()
                ))
                .remedy("ferry-agent files allowed shows what is"));
            };
            found.remove(config)?;
            Unsynced::of(&config.state_directory, &directory).forget().map(|()| 0)
        }
        FilesCommand::Copy(copying) => copying.copy(config).await,
        FilesCommand::Verify(ends) => ends.verify(config).await,
    }
}

fn show(config: &Config, json: bool) -> Result<(), Fault> {
    let all = allowance::all(config)?;
    if json {
        println!("{}", serde_json::json!({ "allowances": all }));
        return Ok(());
    }
    for allowance in all {
        let until = Duration::from_millis(allowance.until_unix_ms.max(0).unsigned_abs());
        let left = (UNIX_EPOCH + until).duration_since(std::time::SystemTime::now());
        let time = match left {
            Ok(left) => format!("for another {} min", left.as_secs().div_ceil(60)),
            Err(_) => "expired".to_owned(),
        };
        println!("{}  from {}  {time}", allowance.directory.display(), allowance.peer);
    }
    Ok(())
}

/// A time as people write it.
fn seconds(text: &str) -> Result<u32, String> {
    let (number, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("give a number with s, m, h or d, such as 12h".to_owned()),
    };
    let seconds = number.parse::<u32>().ok().and_then(|n| n.checked_mul(factor));
    seconds.filter(|s| *s > 0).ok_or_else(|| format!("{number:?} is not such a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("24h"), Ok(86_400));
        assert_eq!(seconds("7d"), Ok(604_800));
        for wrong in ["", "h", "0m", "5", "-1h", "1w", "99999999d", "1ä"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
