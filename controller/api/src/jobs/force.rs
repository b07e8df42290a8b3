//! Opening an account at its target by force: without the word of its source, which was asked to commit,
//! has not answered, and is away. A person says that it is off and isolated. That is journalled before
//! anybody is told.

use std::sync::Arc;

use ferry_engine::Event;
use ferry_fleet::{Fleet, now_ms, to_its_end};
use ferry_proto::Fault;
use ferry_proto::command::{AccountState, CommitRecord, Forced, Receipt, StandingKind};
use ferry_proto::ids::{AccountName, JobId, ServerName};
use ferry_proto::view::{JobPhase, JobView};
use tokio::sync::watch;

use super::{Jobs, Running, Shown, to_json, until_noted};
use crate::view::Folded;

/// Whether nobody can be asked what became of the job's commit: its source alone knows, and is away.
pub fn is_unheard(fleet: &Fleet, view: &JobView) -> bool {
    let open = view.commit_unknown && view.phase != JobPhase::Overtaken;
    open && !fleet.is_connected(&view.source)
}

impl Jobs {
    /// Opens an account at the target of its last job by force; returns once that is journalled. `off` is
    /// the server that a person says is off and isolated, `by` says who.
    ///
    /// # Errors
    /// If the commit is not unheard, the source is another server, the target has no copy that was
    /// compared, or the journal fails.
    pub async fn force_open(
        self: &Arc<Self>,
        account: &AccountName,
        off: &ServerName,
        by: &str,
    ) -> Result<JobId, Fault> {
        let (jobs, account, off) = (self.clone(), account.clone(), off.clone());
        let by = by.to_owned();
        to_its_end(async move { jobs.vouch(&account, &off, &by).await }).await
    }

    async fn vouch(
        self: &Arc<Self>,
        account: &AccountName,
        off: &ServerName,
        by: &str,
    ) -> Result<JobId, Fault> {
        self.fleet.require_not_overtaken()?;
        let last = self.store.jobs(Some(account), false).await?.into_iter().next();
        let row = last.ok_or_else(|| {
            Fault::precondition(format!("account {account} has no job"))
                .remedy("see `ferry status`")
        })?;
        let folded = self.fold(&row).await?;
        self.require_unheard(folded.view(), off)?;
        self.require_copy(&folded).await?;
        let word = Receipt::Committed(record(&folded, by));
        let receipt = serde_json::to_value(word)
            .map_err(|e| Fault::bug("a receipt has no JSON").caused_by(&e))?;
        let live = self.running().get(&row.id).cloned();
        if let Some(Running { wishes, shown, .. }) = live {
            wishes.force.say(by, receipt);
            return heard(row.id, account, shown).await;
        }
        // It is stuck: nobody else writes its journal, and the store lets one alone take it up again.
        let step = folded.spec().commit_point().ok_or_else(|| Fault::bug("no commit was asked"))?;
        let event = to_json(&Event::CommitForced { step, by: by.to_owned(), receipt })?;
        self.store.resume_job(row.id, &event, now_ms()).await?;
        let _ = self.bell.send(());
        let id = row.id;
        let ready = self.prepare(row).await;
        self.spawn(ready);
        Ok(id)
    }

    fn require_unheard(&self, view: &JobView, off: &ServerName) -> Result<(), Fault> {
        let JobView { account, source, .. } = view;
        let fault = if !view.commit_unknown || view.phase == JobPhase::Overtaken {
            let what = "only what is committed, unheard is opened by force";
            Fault::precondition(format!("account {account} is not committed, unheard: {what}"))
                .remedy(format!("see `ferry status {account}`"))
        } else if !is_unheard(&self.fleet, view) {
            Fault::precondition(format!(
                "account {account} is not committed, unheard: {source} is connected, and is asked whether it has committed"
            ))
            .remedy(format!("wait for its answer: ferry status {account} --watch"))
        } else if off != source {
            Fault::precondition(format!(
                "the source of account {account} is {source}, not {off}: {off} may be off, {source} must be"
            ))
            .remedy(format!("make sure that {source} is off and isolated, then say so by its name"))
        } else {
            return Ok(());
        };
        Err(fault)
    }

    /// The target must have what was compared before the commit was asked for, or have heard of it.
    async fn require_copy(&self, folded: &Folded) -> Result<(), Fault> {
        let (plan, target) = (folded.plan(), &folded.plan().target);
        self.fleet.require_connected(target)?;
        let accounts = self.store.accounts().await?;
        let there = accounts.iter().find(|(s, a)| s == target && a.name == plan.account);
        let has_it = |state: &AccountState| match state.standing {
            StandingKind::Provisioned => state.job == Some(plan.job),
            StandingKind::Serving => state.epoch == plan.epoch.next(),
            _ => false,
        };
        if there.is_some_and(|(_, state)| has_it(state)) {
            return Ok(());
        }
        let says = there.map_or_else(
            || "it knows of none".to_owned(),
            |(_, state)| format!("it is {} at epoch {} there", state.standing, state.epoch),
        );
        Err(Fault::precondition(format!(
            "{target} has no copy of account {} that this move has compared: {says}",
            plan.account
        ))
        .remedy(format!("bring {} back, or its disk in another host", plan.source)))
    }
}

/// The record that stands for the one of which nobody has heard. Its fence is told to end when the commit
/// was asked for: the target's cron starts after that minute.
fn record(folded: &Folded, by: &str) -> CommitRecord {
    let (plan, view) = (folded.plan(), folded.view());
    let asked = view.steps.iter().find(|s| s.name == "commit").and_then(|s| s.started_unix_ms);
    let forced = Forced { by: by.to_owned(), at_unix_ms: now_ms() };
    CommitRecord {
        job: plan.job,
        account: plan.account.clone(),
        source: plan.source.clone(),
        target: plan.target.clone(),
        epoch: plan.epoch.next(),
        fenced_at_unix: asked.unwrap_or(forced.at_unix_ms).div_euclid(1000),
        committed_at_unix_ms: forced.at_unix_ms,
        forced: Some(forced),
    }
}

/// Waits until the job has taken the word, or the source's answer was sooner.
async fn heard(
    id: JobId,
    account: &AccountName,
    shown: watch::Receiver<Shown>,
) -> Result<JobId, Fault> {
    let view = until_noted(id, account, shown, "the word", |view| !view.commit_unknown).await?;
    if view.forced.is_some() {
        return Ok(id);
    }
    Err(Fault::precondition(format!(
        "{} has answered meanwhile: account {account} is not opened by force",
        view.source
    ))
    .remedy(format!("see `ferry status {account}`")))
}
