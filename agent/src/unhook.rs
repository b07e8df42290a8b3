//! Before the package is removed: Postfix and Dovecot must not name files that go with it. Refused
//! while an account is on the move, which nobody would serve then.

use std::path::Path;

use ferry_proto::Fault;
use ferry_traffic::mail::{Mail, MailConfig};

use crate::config::Config;
use crate::ledger::{Account, Ledger, Standing};

/// Takes the hooks out.
///
/// # Errors
/// Precondition, while the ledger holds an account on the move and not `force`; else what the mail
/// services refuse.
pub async fn unhook(config: &Config, force: bool) -> Result<(), Fault> {
    if !force {
        nothing_moves(&config.state_directory.join("ledger"))?;
    }
    Mail::new(MailConfig::default()).remove_hooks(force).await
}

/// Checks the ledger at `path`, if there is one.
fn nothing_moves(path: &Path) -> Result<(), Fault> {
    if !path.exists() {
        return Ok(());
    }
    let on_the_move: Vec<String> = Ledger::accounts_at(path)?
        .iter()
        .filter_map(|(name, account)| needs_agent(account).map(|why| format!("{name} ({why})")))
        .collect();
    if on_the_move.is_empty() {
        return Ok(());
    }
    Err(Fault::precondition(format!(
        "without its agent nobody would serve these accounts of this server: {}",
        on_the_move.join(", ")
    ))
    .remedy(
        "let their moves end (on the controller: ferry status; ferry abort ACCOUNT before a commit, \
         ferry finalize ACCOUNT after it), then remove again; only if they are served elsewhere for \
         sure: ferry-agent unhook --force",
    ))
}

/// What the account waits for the agent for, if it does.
fn needs_agent(account: &Account) -> Option<&'static str> {
    match &account.standing {
        Standing::Fenced { .. } => Some("fenced"),
        Standing::Opening { .. } => Some("being opened"),
        Standing::Receiving { .. } => Some("being received"),
        Standing::Moved { .. } => Some("moved, visitors are passed on"),
        Standing::Serving | Standing::Armed { .. } | Standing::Finalized { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Deadline;
    use crate::testing::{a_move, account, fenced, moved, opening, receiving};
    use ferry_proto::FaultClass;
    use std::time::Duration;

    fn with(standing: &Standing) -> Result<(), Fault> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        nothing_moves(&path).unwrap();
        // Open, as while the agent runs.
        let mut ledger = Ledger::open(&path).unwrap();
        nothing_moves(&path).unwrap();
        ledger.set_account(&"shop".parse().unwrap(), Some(account("shop", standing))).unwrap();
        let before = std::fs::read(&path).unwrap();
        let checked = nothing_moves(&path);
        assert_eq!(std::fs::read(&path).unwrap(), before, "the ledger was changed");
        checked
    }

    #[test]
    fn what_waits_for_the_agent_keeps_it_from_being_unhooked() {
        let of = a_move();
        let deadline = Deadline::after(Duration::from_secs(600)).unwrap();
        for standing in [fenced(&of, &deadline), receiving(&of), opening(&of), moved(&of)] {
            let fault = with(&standing).unwrap_err();
            assert_eq!(fault.class, FaultClass::Precondition);
            assert!(fault.message.contains("shop ("), "{fault}");
            assert!(fault.remedy.contains("--force"), "{fault}");
        }
        let finalized =
            Standing::Finalized { to: "transit1".parse().unwrap(), since_unix_ms: None };
        for standing in [Standing::Serving, Standing::Armed { of }, finalized] {
            with(&standing).unwrap();
        }
    }
}
