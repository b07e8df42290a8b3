//! What Ferry has made of mail on this server, seen in the files and in the services' own configuration;
//! and taking it away. It must not know how accounts stand: a caller compares.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ferry_proto::Fault;
use ferry_proto::artefact::{Artefact, Kind, Observed};
use ferry_proto::ids::AccountName;

use super::standing::{Basis, Gate, MailState, Standing};
use super::store::{self, Wanted};
use super::{Mail, maps};

const POSTFIX: &str = "Postfix";
const DOVECOT: &str = "Dovecot";

impl Mail {
    /// All that there is of Ferry's in mail. Changes nothing.
    pub async fn observe(&self) -> Observed {
        let mut seen = Observed::default();
        let standings = self.load().await;
        seen.take(standings.as_ref().map(|s| self.standings(s)).map_err(Clone::clone));
        seen.take(self.hooks().await);
        // Without the standings nobody knows what tables should hold.
        if let Ok(standings) = standings {
            seen.take(self.tables(&standings).await);
        }
        seen.take(Ok(self.unfinished()));
        seen
    }

    /// Takes away what [`Mail::observe`] has found. May be repeated.
    ///
    /// # Errors
    /// When the services cannot be told; Precondition for what would open the provider's own mailboxes.
    pub async fn remove(&self, artefact: &Artefact) -> Result<(), Fault> {
        match artefact.kind {
            Kind::MailStanding => self.forget(artefact).await,
            Kind::MailTable if self.is_hooked() => self.apply().await,
            Kind::MailTable | Kind::Temporary => self.remove_file(artefact).await,
            Kind::MailHook => self.remove_hooks(false).await,
            _ => Err(Fault::bug(format!("{artefact} is none of mail's"))),
        }
    }

    fn standings(&self, standings: &BTreeMap<AccountName, Standing>) -> Vec<Artefact> {
        let each = standings.iter().map(|(account, standing)| {
            let place = self.store().file(account);
            let one = Artefact::new(Kind::MailStanding, place.display()).of(account.as_str());
            if opens_providers(standing) {
                return one.by_hand(format!(
                    "the provider's own mailboxes are {} by it: if this server is to serve them, remove the \
                     file, then restart ferry-agent",
                    MailState::of(Some(standing))
                ));
            }
            one
        });
        each.collect()
    }

    async fn hooks(&self) -> Result<Vec<Artefact>, Fault> {
        let (postfix, dovecot) = (self.postfix(), self.dovecot());
        let mut found = Vec::new();
        if dovecot.is_hooked() {
            found.push(Artefact::new(Kind::MailHook, DOVECOT));
        }
        if postfix.is_hooked() {
            found.push(Artefact::new(Kind::MailHook, POSTFIX));
        } else if postfix.version().await?.is_some() && postfix.is_named().await? {
            found.push(Artefact::new(Kind::MailHook, POSTFIX).by_hand(format!(
                "what main.cf and master.cf were before is not kept: take out by hand what names {} or \
                 a service ferry-…",
                self.config.state_dir.display()
            )));
        }
        Ok(found)
    }

    /// Tables that are left without a hook, or that do not hold what the standings say.
    async fn tables(
        &self,
        standings: &BTreeMap<AccountName, Standing>,
    ) -> Result<Vec<Artefact>, Fault> {
        let (postfix, dovecot) = (self.postfix(), self.dovecot());
        let texts = maps::render(standings, dovecot.dialect().await?, self.config.pass_on_port);
        let sides = [
            (postfix.is_hooked(), postfix.files(&texts)),
            (dovecot.is_hooked(), dovecot.wanted(&texts)),
        ];
        store::blocking(move || {
            let mut found = Vec::new();
            for (hooked, files) in sides {
                for file in files {
                    let wrong = if hooked { file.differs()? } else { file.path.exists() };
                    if wrong {
                        found.push(Artefact::new(Kind::MailTable, file.path.display()));
                    }
                }
            }
            Ok(found)
        })
        .await
    }

    /// Every file that this module writes, but for standings.
    fn written(&self) -> Vec<PathBuf> {
        let nothing = maps::Tables::default();
        let tables =
            self.postfix().files(&nothing).into_iter().chain(self.dovecot().wanted(&nothing));
        let more =
            [self.config.dovecot_snippet.clone(), self.config.state_dir.join("postconf.saved")];
        tables.map(|Wanted { path, .. }| path).chain(more).collect()
    }

    /// What a cut-off writing has left.
    fn unfinished(&self) -> Vec<Artefact> {
        let beside = self.written().into_iter().map(|path| store::beside(&path));
        let beside = beside.filter(|path| path.exists()).collect::<Vec<_>>();
        let standings = std::fs::read_dir(self.config.state_dir.join("accounts"));
        let standings = standings.into_iter().flatten().flatten().map(|e| e.path());
        let all = beside.into_iter().chain(standings.filter(|path| is_unfinished(path)));
        all.map(|path| Artefact::new(Kind::Temporary, path.display())).collect()
    }

    async fn forget(&self, artefact: &Artefact) -> Result<(), Fault> {
        let mut standings = self.load().await?;
        let standing = artefact.account.as_ref().and_then(|account| standings.remove(account));
        let Some(standing) = standing else { return Ok(()) };
        if opens_providers(&standing) {
            return Err(Fault::precondition(format!(
                "without {artefact} the provider's own mailboxes would be served here"
            ))
            .remedy("find out which server serves the account; then see ferry-agent doctor"));
        }
        self.close_here(&standing.spec).await
    }

    async fn remove_file(&self, artefact: &Artefact) -> Result<(), Fault> {
        let path = PathBuf::from(&artefact.place);
        let written = self.written();
        let ours = written.contains(&path)
            || written.iter().any(|w| store::beside(w) == path)
            || path.starts_with(self.config.state_dir.join("accounts")) && is_unfinished(&path);
        if !ours {
            return Err(Fault::bug(format!("{artefact} is none of mail's")));
        }
        store::blocking(move || store::remove(&path)).await
    }
}

/// Whether forgetting it would let the provider's own configuration serve.
fn opens_providers(standing: &Standing) -> bool {
    standing.basis == Basis::Provider && standing.gate != Gate::Open
}

/// `.NAME.json.new`
fn is_unfinished(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str()?.strip_prefix('.')?.strip_suffix(".json.new"))
        .is_some_and(|account| account.parse::<AccountName>().is_ok())
}
