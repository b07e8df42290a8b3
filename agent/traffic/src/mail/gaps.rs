//! Whether a fence has stood all the time: mail that came in while a part of it was missing is on no other
//! server, though the part may be back. So what is missing is noted before anything is put back.

use std::collections::{BTreeMap, BTreeSet};

use ferry_proto::Fault;
use ferry_proto::ids::AccountName;

use super::Mail;
use super::maps::{self, Dialect};
use super::spec::MailSpec;
use super::standing::{Gate, MailState, Standing};
use super::store::{self, Lock, Wanted};

impl Mail {
    /// What of the account's fence is missing, or was since the fence was made. Empty: it has stood all the
    /// time. Waits for nobody: tables are replaced as a whole, and what holds one account stays in them
    /// whatever becomes of the others.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn gaps(&self, spec: &MailSpec) -> Result<Vec<String>, Fault> {
        if spec.is_empty() {
            return Ok(Vec::new());
        }
        let standing = match self.standing(spec).await? {
            Some(standing) if standing.gate == Gate::Fenced => standing,
            other => return Ok(vec![format!("its mail is {}", MailState::of(other.as_ref()))]),
        };
        let mut found = self.missing_hooks().await?;
        found.extend(self.missing_entries(&standing).await?);
        // Read after that look: who puts something back has noted it before.
        if found.is_empty() && !self.standing(spec).await?.is_some_and(|s| s.unbroken) {
            found.push("its mail was not deferred for a while, and may have come in".to_owned());
        }
        Ok(found)
    }

    async fn standing(&self, spec: &MailSpec) -> Result<Option<Standing>, Fault> {
        Ok(self.load().await?.remove(spec.account()))
    }

    /// The right to change what stands, and what does. Whatever is missing of a fence is noted by now.
    pub(super) async fn begin(&self) -> Result<(Lock, BTreeMap<AccountName, Standing>), Fault> {
        let lock = self.lock().await?;
        let mut standings = self.load().await?;
        if !standings.values().any(|s| s.unbroken) {
            return Ok((lock, standings));
        }
        // What cannot be seen may be missing.
        let unseen = |fault: Fault| vec![fault.to_string()];
        let hooks = self.missing_hooks().await.unwrap_or_else(unseen);
        for (account, standing) in standings.iter_mut().filter(|(_, s)| s.unbroken) {
            let mut missing = hooks.clone();
            missing.extend(self.missing_entries(standing).await.unwrap_or_else(unseen));
            if !missing.is_empty() {
                tracing::error!(%account, ?missing, "mail may have come in behind the fence");
                standing.unbroken = false;
                self.keep(&lock, account, Some(standing.clone())).await?;
            }
        }
        Ok((lock, standings))
    }

    /// Notes that a fence stands.
    pub(super) async fn stands(&self, lock: &Lock, standing: Standing) -> Result<(), Fault> {
        let account = standing.spec.account().clone();
        self.keep(lock, &account, Some(Standing { unbroken: true, ..standing })).await
    }

    /// The tables that do not hold this account.
    async fn missing_entries(&self, standing: &Standing) -> Result<Vec<String>, Fault> {
        let only = BTreeMap::from([(standing.spec.account().clone(), standing.clone())]);
        // What holds an account is the same in either dialect.
        let tables = maps::render(&only, Dialect::V2_3, self.config.pass_on_port);
        let mut files = self.postfix().files(&tables);
        files.extend(self.dovecot().wanted(&tables));
        files.retain(holds);
        store::blocking(move || {
            let mut missing = Vec::new();
            for file in files {
                let now = store::read(&file.path)?.unwrap_or_default();
                let now: BTreeSet<&str> = now.lines().collect();
                if file.text.lines().any(|line| !now.contains(line)) {
                    missing.push(format!("{} does not hold the account", file.path.display()));
                }
            }
            Ok(missing)
        })
        .await
    }

    /// The hooks that are not in the services' configuration.
    pub(super) async fn missing_hooks(&self) -> Result<Vec<String>, Fault> {
        let mut missing = Vec::new();
        if !self.dovecot().is_hooked() {
            missing.push("Dovecot's hook is not in its configuration".to_owned());
        }
        let postfix = self.postfix();
        if !postfix.is_hooked() || !postfix.is_installed().await? {
            missing.push("Postfix's hook is not in its configuration".to_owned());
        }
        Ok(missing)
    }
}

/// Whether a table says who is held.
fn holds(file: &Wanted) -> bool {
    file.path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("held"))
}
