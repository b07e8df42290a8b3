//! Before the package is removed: Postfix and Dovecot must not name files that go with it. Refused
//! while an account is on the move, which nobody would serve then.

use std::path::Path;

use ferry_proto::Fault;
use ferry_proto::ids::AccountName;
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
        .inspect(|(name, account)| warn_of_passed_on(name, account))
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

/// Only warned of: this server is not told when the former one stops passing visitors on, so that to
/// refuse would be for ever.
fn warn_of_passed_on(name: &AccountName, account: &Account) {
    if let (Standing::Serving, Some(from)) = (&account.standing, account.came_from) {
        tracing::warn!(
            account = %name,
            "visitors that {from} still passes on to this server will be lost: finalize the move first"
        );
    }
}

/// What the account waits for the agent for, if it does.
fn needs_agent(account: &Account) -> Option<&'static str> {
    match &account.standing {
        Standing::Fenced { .. } => Some("fenced"),
        Standing::Opening { .. } => Some("being opened"),
        Standing::Receiving { .. } => Some("being received"),
        Standing::Refused { .. } => Some("refused, its copy waits to be removed"),
        Standing::Moved { .. } => Some("moved, visitors are passed on"),
        Standing::Armed { .. } => Some("being moved"),
        Standing::Serving if account.after_open.as_ref().is_some_and(|a| !a.done) => {
            Some("opened, its cron, units or hook still wait for their time")
        }
        Standing::Serving | Standing::Finalized { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Deadline;
    use crate::testing::{a_move, account, fenced, moved, opening, receiving};
    use ferry_proto::FaultClass;
    use std::time::Duration;

    fn with(account: Account) -> Result<(), Fault> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        nothing_moves(&path).unwrap();
        // Open, as while the agent runs.
        let mut ledger = Ledger::open(&path).unwrap();
        nothing_moves(&path).unwrap();
        ledger.set_account(&"shop".parse().unwrap(), Some(account)).unwrap();
        let before = std::fs::read(&path).unwrap();
        let checked = nothing_moves(&path);
        assert_eq!(std::fs::read(&path).unwrap(), before, "the ledger was changed");
        checked
    }

    /// Served here, and came from elsewhere; what follows its open is `done` or not.
    fn opened(done: bool) -> Account {
        let mut opened = account("shop", &Standing::Serving);
        opened.came_from = Some("192.0.2.1".parse().unwrap());
        let after = serde_json::json!({
            "due_unix_ms": 1, "fence_minute": 0, "missed_minutes": 0, "done": done,
            "units": {
                "user": "shop", "uid": 4711, "linger": false, "manager_active": false, "units": [],
            },
        });
        opened.after_open = Some(serde_json::from_value(after).unwrap());
        opened
    }

    #[test]
    fn what_waits_for_the_agent_keeps_it_from_being_unhooked() {
        let of = a_move();
        let deadline = Deadline::after(Duration::from_secs(600)).unwrap();
        let armed = Standing::Armed { of: of.clone() };
        let waiting = [fenced(&of, &deadline), receiving(&of), opening(&of), moved(&of), armed];
        let waiting = waiting.map(|standing| account("shop", &standing));
        for account in waiting.into_iter().chain([opened(false)]) {
            let fault = with(account).unwrap_err();
            assert_eq!(fault.class, FaultClass::Precondition);
            assert!(fault.message.contains("shop ("), "{fault}");
            assert!(fault.remedy.contains("--force"), "{fault}");
        }
        let finalized = Standing::Finalized {
            to: "transit1".parse().unwrap(),
            since_unix_ms: None,
            erasing: false,
        };
        let idle = [Standing::Serving, finalized].map(|standing| account("shop", &standing));
        for account in idle.into_iter().chain([opened(true)]) {
            with(account).unwrap();
        }
    }
}
