//! Pausing a move whose account is still served, and letting it go on. Both are wishes that its runner
//! journals before it heeds them.

use ferry_proto::Fault;
use ferry_proto::ids::{AccountName, JobId};
use ferry_proto::view::{JobPhase, JobView, StepPhase};
use ferry_store::JobRow;

use super::{Jobs, Running, until_noted};

impl Jobs {
    /// Asks the running job of an account to stop for now; returns once that is journalled. `by` says who
    /// asks.
    ///
    /// # Errors
    /// If none runs, it is not (or no longer) to be paused, or the journal fails.
    pub async fn pause(&self, account: &AccountName, by: &str) -> Result<JobId, Fault> {
        let (id, Running { wishes, shown, .. }) = self.running_of(account)?;
        refuse_to_pause(shown.borrow().as_ref().map_err(Clone::clone)?)?;
        wishes.pause.request(by);
        // A step that is not to be paused may have begun meanwhile: then the wish has lapsed.
        let is_noted = |view: &JobView| view.paused.is_some() || !view.can_pause;
        let view = until_noted(id, account, shown, "the pause", is_noted).await?;
        match &view.paused {
            Some(_) => Ok(id),
            None => refuse_to_pause(&view).map(|()| id),
        }
    }

    /// A job that somebody has paused, stopped already or not.
    pub(super) fn paused(&self, row: &JobRow) -> Result<Option<Running>, Fault> {
        let Some(running) = self.running().get(&row.id).cloned() else { return Ok(None) };
        let view = running.shown.borrow().clone()?;
        Ok(view.paused.map(|_| running))
    }

    /// Lets a paused job go on; returns once that is journalled.
    pub(super) async fn let_go_on(
        &self,
        row: &JobRow,
        paused: Running,
        by: &str,
    ) -> Result<(), Fault> {
        let Running { account, wishes, shown } = paused;
        wishes.pause.end(by);
        let is_noted = |view: &JobView| view.paused.is_none();
        until_noted(row.id, &account, shown, "that it goes on", is_noted).await.map(|_| ())
    }
}

/// A fault if the job cannot be paused as it stands: what else can be done about it.
fn refuse_to_pause(view: &JobView) -> Result<(), Fault> {
    if view.can_pause {
        return Ok(());
    }
    let account = &view.account;
    if let Some(paused) = &view.paused {
        return Err(Fault::precondition(format!(
            "the move of account {account} is paused already, by {}",
            paused.by
        ))
        .remedy(format!(
            "to let it go on: ferry resume {account}; to undo it: ferry abort {account}"
        )));
    }
    let (why, remedy) = if view.phase.has_ended() {
        (
            format!("the job has ended: it is {}", view.phase),
            format!("see `ferry status {account}`"),
        )
    } else if view.phase == JobPhase::Undoing || view.abort_requested {
        ("it is being undone".to_owned(), format!("see `ferry status {account}`"))
    } else if view.steps.iter().any(|step| step.name == "finalize") {
        ("it is being ended for good".to_owned(), format!("see `ferry status {account}`"))
    } else if view.committed || view.commit_unknown {
        let remedy = format!("let it end; to go back then: ferry rollback {account}");
        ("it has committed, or is about to".to_owned(), remedy)
    } else {
        let begun = view.steps.iter().rfind(|step| step.phase != StepPhase::Waiting);
        let at = begun.map_or("its start", |step| step.name.as_str());
        (
            format!("it is at {at}, and from arm on its visitors would wait for it"),
            format!(
                "let it end; or undo it, which keeps the account where it is: ferry abort {account}"
            ),
        )
    };
    Err(Fault::precondition(format!("the move of account {account} cannot be paused: {why}"))
        .remedy(remedy))
}
