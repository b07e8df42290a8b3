//! Closes mail again that something has opened behind Ferry's back: a backup that was restored, a main.cf
//! that was written anew. Whoever calls says which accounts this server must not serve.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ferry_proto::Fault;
use ferry_proto::ids::AccountName;

use super::maps;
use super::record::MailRecord;
use super::spec::MailSpec;
use super::standing::{Gate, Standing};
use super::{Mail, MailState, store};

/// How the mail of an account is to stand that this server must not serve.
#[derive(Debug, Clone)]
pub enum Shut {
    /// Deferred, until it is known what becomes of it.
    Deferred,
    /// Passed on to the server that serves the account.
    PassedOn(IpAddr),
    /// Prepared, and closed.
    Prepared(MailRecord),
    /// Not known to this server at all: Ferry made it here, and it is gone again.
    Unknown,
}

impl Mail {
    /// Closes the account's mail again, if it is open. Whether it was. What is closed already, in whichever
    /// way, stays as it is.
    ///
    /// # Errors
    /// When the services cannot be told.
    pub async fn close_again(&self, spec: &MailSpec, shut: &Shut) -> Result<bool, Fault> {
        if spec.is_empty() {
            return Ok(false);
        }
        let standings = if self.store().exists() { self.load().await? } else { Default::default() };
        let now = standings.get(spec.account());
        match (now.map(|s| s.gate), shut) {
            (Some(Gate::Closed | Gate::Fenced | Gate::PassedOn { .. }), _) => return Ok(false),
            // The provider's configuration has never known it.
            (None, Shut::Unknown | Shut::Prepared(_)) => return Ok(false),
            (None | Some(Gate::Open), Shut::Deferred) => self.fence(spec).await?,
            (None | Some(Gate::Open), Shut::PassedOn(next_hop)) => {
                self.pass_on(spec, *next_hop).await?;
            }
            (Some(Gate::Open), Shut::Unknown) => self.close_here(spec).await?,
            (Some(Gate::Open), Shut::Prepared(record)) => {
                self.close_here(spec).await?;
                self.provision_closed(spec, record).await?;
            }
        }
        tracing::debug!(account = %spec.account(), was = %MailState::of(now), "mail is closed again");
        Ok(true)
    }

    /// Puts hooks and tables back where they are not what stands any more. What was not in place.
    ///
    /// # Errors
    /// When it cannot be told, or the services do not take it.
    pub async fn put_back(&self) -> Result<Vec<String>, Fault> {
        if !self.store().exists() || self.missing().await?.is_empty() {
            return Ok(Vec::new());
        }
        // Or somebody was just changing it.
        let (lock, standings) = self.begin().await?;
        let missing = self.missing().await?;
        if !missing.is_empty() {
            self.make_so(&lock, &standings).await?;
        }
        Ok(missing)
    }

    /// What is not in place of what stands.
    async fn missing(&self) -> Result<Vec<String>, Fault> {
        let standings = self.load().await?;
        if !standings.values().any(Standing::needs_tables) {
            return Ok(Vec::new());
        }
        let mut missing = self.stale_tables(&standings).await?;
        missing.extend(self.missing_hooks().await?);
        Ok(missing)
    }

    /// Tables that do not hold what they should.
    pub(super) async fn stale_tables(
        &self,
        standings: &BTreeMap<AccountName, Standing>,
    ) -> Result<Vec<String>, Fault> {
        let dovecot = self.dovecot();
        let tables = maps::render(standings, dovecot.dialect().await?, self.config.pass_on_port);
        let mut files = self.postfix().files(&tables);
        files.extend(dovecot.wanted(&tables));
        store::blocking(move || {
            let mut stale = Vec::new();
            for file in files {
                if file.differs()? {
                    stale.push(format!("{} does not hold what it should", file.path.display()));
                }
            }
            Ok(stale)
        })
        .await
    }
}
