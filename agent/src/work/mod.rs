//! What commands do: one file per piece of work. Each may be repeated after a crash at any point: it
//! records what it will change before it changes it, and asks the world what is already done.

pub mod arm;
pub mod commit;
pub mod copied;
pub mod databases;
pub mod fence;
pub mod files;
pub mod finalize;
mod forced;
pub mod forecast;
pub mod give_up;
pub mod inspect;
pub mod open;
pub mod pace;
pub mod prove;
pub mod provision;
pub mod record;
pub mod rehearse;
pub mod release;
#[cfg(test)]
mod tests;
pub mod unfence;
pub mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ferry_databases as databases_engine;
use ferry_failpoints::{Promise, broken};
use ferry_files::{Approvals, IdMap, SourceOptions};
use ferry_host::users;
use ferry_proto::account::{Definition, EngineKind};
use ferry_proto::approval::{Approval, Ids};
use ferry_proto::command::{Move, Progress, Receipt};
use ferry_proto::grant::{Grant, SignedGrant};
use ferry_proto::ids::Epoch;
use ferry_proto::{Fault, FaultClass};
use ferry_traffic::mail::MailSpec;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::ledger::{Account, SourceRecord, Standing};
use crate::peer::Peer;

/// What a piece of work is given.
#[derive(Clone)]
pub struct Job {
    /// The agent.
    pub agent: Arc<Agent>,
    /// The move.
    pub of: Move,
    /// What lets this agent speak to the other.
    pub grant: Option<SignedGrant>,
    /// Cancelled when the controller asks for it, or the account is taken back.
    pub cancel: CancellationToken,
    /// Where to say how far it is.
    pub progress: watch::Sender<Progress>,
}

impl Job {
    /// The other agent.
    ///
    /// # Errors
    /// If the command came without a grant.
    pub fn peer(&self) -> Result<Peer, Fault> {
        let grant = self
            .grant
            .as_ref()
            .ok_or_else(|| Fault::bug("a command that speaks to a peer came without a grant"))?;
        let (server, address) = if self.of.source == self.agent.name {
            (&self.of.target, self.of.target_peer)
        } else {
            (&self.of.source, self.of.source_peer)
        };
        Ok(Peer::new(&self.agent, server, address, grant))
    }

    /// Whose files this end gives out as the source: the account's, and what was approved for this move.
    ///
    /// # Errors
    /// If the user database cannot be read, or the grant is not the controller's.
    pub fn source_options(&self, account: &Account) -> Result<SourceOptions, Fault> {
        let mut options = source_options(&self.agent.layout, account.uid)?;
        if let Some(grant) = &self.grant {
            let grant = grant.verify_signature(&self.agent.grant_key)?;
            options.approved = approved(&self.agent, &grant)?;
        }
        Ok(options)
    }

    /// The account as the ledger has it.
    ///
    /// # Errors
    /// If it has none.
    pub fn account(&self) -> Result<Account, Fault> {
        self.agent.account(&self.of.account).ok_or_else(|| {
            Fault::precondition(format!(
                "account {} takes part in no move on {}",
                self.of.account, self.agent.name
            ))
        })
    }

    /// Records how the account stands.
    ///
    /// # Errors
    /// If it is not recorded.
    pub async fn set(&self, account: Account) -> Result<(), Fault> {
        self.agent.set_account(&self.of.account, Some(account)).await
    }

    /// The account, fenced by this move and not past its deadline.
    ///
    /// # Errors
    /// Of class Fenced if it is not.
    pub fn fenced(&self) -> Result<Account, Fault> {
        let account = self.account()?;
        match &account.standing {
            Standing::Fenced { of, deadline, complete_unix: Some(_), ending: false, .. }
                if of.job == self.of.job =>
            {
                if deadline.has_passed() {
                    return Err(Fault::fenced(format!(
                        "the fence of account {} has passed its deadline",
                        self.of.account
                    ))
                    .remedy("move it again with a longer --deadline"));
                }
                Ok(account)
            }
            _ => Err(self.stands_otherwise(&account, "fenced by this move")),
        }
    }

    /// The account, being received here by this move.
    ///
    /// # Errors
    /// If it is not.
    pub fn receiving(&self) -> Result<(Account, SourceRecord), Fault> {
        let account = self.account()?;
        match &account.standing {
            Standing::Receiving { of, source, .. } if of.job == self.of.job => {
                let source = (**source).clone();
                Ok((account, source))
            }
            _ => Err(self.stands_otherwise(&account, "being received by this move")),
        }
    }

    /// The fault for an account that stands otherwise than a command expects.
    pub fn stands_otherwise(&self, account: &Account, expected: &str) -> Fault {
        Fault::fenced(format!(
            "account {} is {} at epoch {} on {}, not {expected}",
            self.of.account,
            account.kind(),
            account.epoch,
            self.agent.name
        ))
    }
}

/// A receipt that only says that it is done.
pub fn done(summary: impl Into<String>) -> Receipt {
    Receipt::Done { summary: summary.into(), figures: BTreeMap::new() }
}

/// A receipt with figures.
pub fn done_with<'a>(
    summary: impl Into<String>,
    figures: impl IntoIterator<Item = (&'a str, f64)>,
) -> Receipt {
    let figures = figures.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    Receipt::Done { summary: summary.into(), figures }
}

/// What an account has of one engine.
pub fn spec(account: &Account, kind: EngineKind) -> databases_engine::Spec {
    databases_engine::Spec::of(&account.definition, kind, account.uid, account.gid)
}

/// What an account has of mail.
///
/// # Errors
/// If the definition's mail is not valid.
pub fn mail_spec(definition: &Definition, uid: u32, gid: u32) -> Result<MailSpec, Fault> {
    MailSpec::new(
        definition.name.clone(),
        definition.home.clone(),
        uid,
        gid,
        definition.mail.clone(),
    )
}

/// What the source said of one engine.
///
/// # Errors
/// If it said nothing.
pub fn database_record(
    source: &SourceRecord,
    kind: EngineKind,
) -> Result<&databases_engine::Record, Fault> {
    source
        .databases
        .iter()
        .find(|(k, _)| *k == kind)
        .map(|(_, record)| record)
        .ok_or_else(|| Fault::permanent(format!("the source said nothing of {kind}")))
}

/// The account's numeric ids at the source, and what they are here. The web server's come along as
/// shared: it owns files in many homes, but no setuid file of it is taken, and no other name of one.
///
/// # Errors
/// If the account's user is not here; Precondition if the source says what these ids cannot be, or other ones than
/// when what is approved was.
pub fn id_map(
    agent: &Agent,
    account: &Account,
    source: &SourceRecord,
    approvals: &[Approval],
) -> Result<IdMap, Fault> {
    let (name, there) = (&account.definition.name, &source.user);
    let here = users::describe(&agent.layout, &account.definition)?;
    let (uid, gid) = (there.uid, there.group.gid);
    if approvals.iter().any(|approval| approval.ids != Ids { uid, gid }) {
        return Err(Fault::precondition(format!(
            "account {name} is {uid}:{gid} at the source now, but was not when what comes along was approved"
        ))
        .remedy("move it again"));
    }
    let mut map = IdMap::of((uid, account.uid), (gid, account.gid));
    for group in &there.groups {
        if let Some(known) = here.groups.iter().find(|g| g.name == group.name) {
            // Its own group stays its own, whatever else the source calls it.
            map.gids.entry(group.gid).or_insert(known.gid);
            map.shared_gids.insert(known.gid);
        }
    }
    if map.gids.values().collect::<BTreeSet<_>>().len() < map.gids.len() {
        return Err(Fault::precondition(format!(
            "two groups of account {name} at the source are one here"
        ))
        .remedy("give each group a number of its own on both servers"));
    }
    if let (Some(there), Some(here)) = (source.web, users::web_ids(&agent.layout)?) {
        share_web(&mut map, there, here);
    }
    Ok(map)
}

/// Adds the web server's ids `there` as `here`. An id that is the account's stays the account's,
/// whatever the source calls it.
pub fn share_web(map: &mut IdMap, there: users::WebIds, here: users::WebIds) {
    map.uids.entry(there.uid).or_insert(here.uid);
    map.gids.entry(there.gid).or_insert(here.gid);
    map.shared_uids.insert(here.uid);
    map.shared_gids.insert(here.gid);
}

/// Whose files the source gives out of an account's home.
///
/// # Errors
/// If the user database cannot be read.
pub fn source_options(layout: &ferry_host::Layout, uid: u32) -> Result<SourceOptions, Fault> {
    let mut options = SourceOptions::new([uid]);
    options.shared_uids.extend(users::web_ids(layout)?.map(|web| web.uid));
    Ok(options)
}

/// What the controller's grant says is approved, which the log tells once a job.
///
/// # Errors
/// If a path of it is none.
pub fn approved(agent: &Agent, grant: &Grant) -> Result<Arc<Approvals>, Fault> {
    if !grant.approvals.is_empty() && agent.is_untold(&grant.account, grant.job) {
        for Approval { what, by, at_unix_ms, .. } in &grant.approvals {
            tracing::info!(account = %grant.account, by, at_unix_ms, "approved: {what}");
        }
    }
    Approvals::of(grant.approvals.iter().map(|approval| &approval.what)).map(Arc::new)
}

/// Ends with a fault if `cancel` fires first, or has fired before.
///
/// # Errors
/// The work's, or one of class Cancelled.
pub async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Fault::new(FaultClass::Cancelled, "stopped on request")),
        outcome = work => outcome,
    }
}

/// Whether `one` is the epoch that is asked for.
pub fn is_epoch(one: Epoch, asked: Epoch) -> bool {
    one == asked || broken(Promise::Epoch)
}

/// Whether a move's epoch allows it to change an account here. One that committed, and whose commit was
/// refused, is undone at a later epoch than its own.
///
/// # Errors
/// Of class Fenced, for an older one.
pub fn check_epoch(agent: &Agent, of: &Move) -> Result<(), Fault> {
    let Some(account) = agent.account(&of.account) else { return Ok(()) };
    let of_this_job = match &account.standing {
        Standing::Moved { of: was, .. }
        | Standing::Opening { of: was, .. }
        | Standing::Refused { of: was, .. } => was.job == of.job,
        // Taken back after the target's refusal.
        Standing::Fenced { of: was, .. } | Standing::Armed { of: was } => {
            was.job == of.job && account.epoch == of.epoch.next().next()
        }
        // Opened by this very move: what a repeated command finds.
        Standing::Serving | Standing::Finalized { .. } => account.epoch == of.epoch.next(),
        Standing::Receiving { .. } => false,
    };
    let undone = account.taken_back == Some(of.job);
    if account.epoch > of.epoch && !of_this_job && !undone && !broken(Promise::Epoch) {
        return Err(Fault::fenced(format!(
            "the command is of epoch {}, but account {} is at epoch {} on {}",
            of.epoch, of.account, account.epoch, agent.name
        ))
        .remedy("plan the move again: the account has moved since"));
    }
    Ok(())
}
