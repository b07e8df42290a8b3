//! After an upgrade of the package: whether the redirector still runs the program from before, and
//! whether it may be restarted now. The package never does: visitors are held by it and pass through it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ferry_proto::Fault;

use crate::config::Config;
use crate::ledger::{Account, Ledger, Standing};

const UNIT: &str = "ferry-redirector.service";
const PROGRAM: &str = "/usr/libexec/ferry/ferry-redirector";

/// What is to be done about the redirector.
#[derive(Debug, PartialEq, Eq)]
pub enum Restart {
    /// It runs the program that is installed.
    NotDue,
    /// It does not run: nobody is served through it.
    NotRunning,
    /// Now is as good as ever.
    Now,
    /// Not while these accounts are held by it, or may be at any moment; each with why.
    Later(Vec<String>),
}

impl Restart {
    /// For scripts: 0 if nothing is to be done, 10 if it may be restarted now, 11 if later.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotDue | Self::NotRunning => 0,
            Self::Now => 10,
            Self::Later(_) => 11,
        }
    }
}

impl std::fmt::Display for Restart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotDue => f.write_str("ferry-redirector runs the program that is installed"),
            Self::NotRunning => f.write_str("ferry-redirector does not run"),
            Self::Now => f.write_str(
                "ferry-redirector still runs the program from before the upgrade. No account is held by it: restart it now \
                 (connections that pass through it end, new ones wait): systemctl restart ferry-redirector",
            ),
            Self::Later(accounts) => write!(
                f,
                "ferry-redirector still runs the program from before the upgrade. Do not restart it now: {}. \
                 When their moves have ended, ask again: ferry-agent redirector",
                accounts.join(", ")
            ),
        }
    }
}

/// Looks at the redirector that runs and at the ledger.
///
/// # Errors
/// If the service manager cannot be asked, or the ledger cannot be read.
pub fn look(config: &Config) -> Result<Restart, Fault> {
    let Some(running) = running()? else { return Ok(Restart::NotRunning) };
    decide(&running, Path::new(PROGRAM), &config.state_directory.join("ledger"))
}

/// Where the kernel shows the program that runs; none if none does.
fn running() -> Result<Option<PathBuf>, Fault> {
    let said = Command::new("systemctl")
        .args(["show", "--property=MainPID", "--value", UNIT])
        .output()
        .map_err(|e| Fault::io("cannot ask the service manager", &e))?;
    let pid = String::from_utf8_lossy(&said.stdout).trim().parse().unwrap_or(0u32);
    Ok((pid != 0).then(|| PathBuf::from(format!("/proc/{pid}/exe"))))
}

fn decide(running: &Path, installed: &Path, ledger: &Path) -> Result<Restart, Fault> {
    // Not by name: an upgrade puts another file under the same one.
    let file = |path: &Path| {
        std::fs::metadata(path)
            .map(|m| (m.dev(), m.ino()))
            .map_err(|e| Fault::io(format!("cannot look at {}", path.display()), &e))
    };
    if file(running)? == file(installed)? {
        return Ok(Restart::NotDue);
    }
    let accounts = if ledger.exists() { Ledger::accounts_at(ledger)? } else { BTreeMap::new() };
    let held: Vec<String> = accounts
        .iter()
        .filter_map(|(name, account)| held(account).map(|why| format!("{name} is {why}")))
        .collect();
    Ok(if held.is_empty() { Restart::Now } else { Restart::Later(held) })
}

/// Why visitors of an account are held, or may be at any moment.
fn held(account: &Account) -> Option<&'static str> {
    match &account.standing {
        Standing::Armed { .. } => Some("about to be fenced"),
        Standing::Fenced { .. } => Some("fenced"),
        Standing::Opening { .. } => Some("being opened"),
        Standing::Moved { released_unix_ms: None, .. } => Some("moved and not released"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{a_move, account, before_the_reboot, fenced, moved};
    use std::fs;

    /// A program that runs, upgraded or not, beside a ledger with an account that stands like this.
    fn asked(upgraded: bool, standing: Option<&Standing>) -> Restart {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("program"), "first").unwrap();
        // As the kernel shows it: the file that was started, whatever is under its name now.
        fs::hard_link(path("program"), path("running")).unwrap();
        if upgraded {
            fs::write(path("new"), "second").unwrap();
            fs::rename(path("new"), path("program")).unwrap();
        }
        if let Some(standing) = standing {
            let mut ledger = Ledger::open(&path("ledger")).unwrap();
            let account = account("shop", standing);
            ledger.set_account(&"shop".parse().unwrap(), Some(account)).unwrap();
        }
        decide(&path("running"), &path("program"), &path("ledger")).unwrap()
    }

    #[test]
    fn a_restart_is_due_once_another_program_is_installed_and_safe_while_nobody_is_held() {
        let of = a_move();
        let armed = Standing::Armed { of: of.clone() };
        let mut unreleased = moved(&of);
        let Standing::Moved { released_unix_ms, .. } = &mut unreleased else { panic!() };
        *released_unix_ms = None;
        assert_eq!(asked(false, Some(&armed)), Restart::NotDue);
        assert_eq!(asked(true, None), Restart::Now);
        assert_eq!(asked(true, Some(&Standing::Serving)), Restart::Now);
        assert_eq!(asked(true, Some(&moved(&of))), Restart::Now);
        for held in [armed, fenced(&of, &before_the_reboot()), unreleased] {
            let restart = asked(true, Some(&held));
            assert_eq!(restart.exit_code(), 11, "{held:?}");
            assert!(restart.to_string().contains("shop is "), "{restart}");
        }
    }
}
