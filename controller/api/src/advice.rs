//! What a person should know of a job: who serves the account, what is safe, what to do next.

use ferry_engine::JobSpec;
use ferry_plan::Plan;
use ferry_proto::command::{Receipt, Refusal};
use ferry_proto::view::{JobPhase, JobView, Place, PlaceKind};

/// Where the package puts the pages for whoever is called.
const PAGES: &str = "/usr/share/doc/ferry-controller/what-if";

/// The advice for a job that stands as `view` says.
pub fn advice(plan: &Plan, spec: &JobSpec, view: &JobView) -> String {
    if view.phase == JobPhase::Overtaken {
        let account = &plan.account;
        return format!(
            "What came of this job is not known here: the controller's store was restored from a backup made while it ran. \
             The servers say that it is not under way any more; what they report of account {account} is what counts: ferry account list"
        );
    }
    if spec.commit_point().is_none() {
        return ending(plan, view);
    }
    if let Some(refusal) = &view.refused {
        return refused(plan, view.phase, refusal);
    }
    if view.paused.is_some() {
        return paused(view);
    }
    match (view.phase, view.committed, view.commit_unknown) {
        (_, false, true) => unknown(plan, view),
        (phase, true, _) if view.forced.is_some() => forced(plan, view, phase),
        (phase, true, _) => committed(plan, phase),
        (phase, false, false) => uncommitted(plan, phase),
    }
}

/// The advice for a job that somebody has paused, whether it has stopped already or not.
fn paused(view: &JobView) -> String {
    let JobView { account, source, .. } = view;
    let how = match view.phase {
        JobPhase::Paused => "The move is paused",
        _ => {
            "The move is about to pause: what runs is being stopped, and if its server is away it is when that is back"
        }
    };
    format!(
        "{source} serves account {account}. {how}; what was copied is kept, and the account has no other job meanwhile. \
         `ferry resume {account}` lets it go on, `ferry abort {account}` undoes it."
    )
}

/// The advice for a job that waits for a place.
pub fn waiting(view: &JobView, place: &Place) -> String {
    let JobView { account, source, .. } = view;
    let server = &place.server;
    let full = match place.kind {
        PlaceKind::Source => format!("as many moves from {server} as there may be at once"),
        PlaceKind::Target => format!("as many moves to {server} as there may be at once"),
        PlaceKind::Fence => {
            format!("as many accounts on {server} as there may be at once inside their fence")
        }
    };
    format!(
        "{source} serves account {account}. The move waits for {place}: there are {full} ([moves] in controller.toml), or earlier ones wait for it. \
         It goes on by itself; `ferry abort {account}` ends it at once."
    )
}

fn uncommitted(plan: &Plan, phase: JobPhase) -> String {
    let Plan { account, source, .. } = plan;
    match phase {
        JobPhase::Done | JobPhase::Overtaken => String::new(),
        JobPhase::Undone => {
            format!("{source} serves account {account}; nothing is left of the move.")
        }
        JobPhase::Stuck => format!(
            "The move has not committed and will not: account {account} is with {source}, whose fence ends by itself at its deadline. \
             Something of the move could not be undone: see the step's fault and {PAGES}/stuck-undo.md; when it is mended: ferry resume {account}"
        ),
        JobPhase::Undoing => {
            format!("{source} keeps account {account}; the move is being undone.")
        }
        JobPhase::Running | JobPhase::Paused => format!(
            "Until the commit the account stays with {source}; `ferry abort {account}` undoes the move."
        ),
    }
}

/// A person said that the source is off and isolated.
fn forced(plan: &Plan, view: &JobView, phase: JobPhase) -> String {
    let Plan { account, source, target, .. } = plan;
    let given_up = view.steps.iter().find_map(|s| match &s.receipt {
        Some(receipt @ Receipt::GivenUp { .. }) => Some(receipt.in_words()),
        _ => None,
    });
    match phase {
        JobPhase::Done => format!(
            "{target} serves account {account}, opened by force. What became of the copy on {source}: {}. \
             Nothing that was written there meanwhile is merged, and `ferry rollback {account}` would overwrite it: see {PAGES}/committed-unheard.md",
            given_up.unwrap_or_else(|| "it is closed".to_owned())
        ),
        JobPhase::Stuck => format!(
            "Account {account} was to be opened by force on {target}, or {source} to close its copy, and that failed for good: see the step's fault and {PAGES}/committed-unheard.md. \
             Keep {source} off and isolated; when it is mended: ferry resume {account}"
        ),
        JobPhase::Running
        | JobPhase::Paused
        | JobPhase::Undoing
        | JobPhase::Undone
        | JobPhase::Overtaken => format!(
            "{target} serves account {account} by force, or does as soon as it is open. Keep {source} off and isolated. If it comes back after all, it is told to close its copy: the job waits for that. \
             If it never will: ferry server revoke {source}"
        ),
    }
}

/// The target could not open what was committed, and said so for good.
fn refused(plan: &Plan, phase: JobPhase, refusal: &Refusal) -> String {
    let Plan { account, source, target, .. } = plan;
    let (why, epoch) = (format!("refused by {target}: {}", refusal.reason), refusal.epoch.next());
    match phase {
        JobPhase::Undone => format!(
            "{why}; account {account} is served by {source} again at epoch {epoch}. Nothing is left of the move, and nothing was lost: {target} never opened the account. \
             Mend what {target} says, then move again."
        ),
        JobPhase::Stuck => format!(
            "{why}. {source} takes account {account} back at epoch {epoch}, by itself; {target} will never open it for this move. \
             Something of the move could not be undone: see the step's fault and {PAGES}/stuck-undo.md; when it is mended: ferry resume {account}"
        ),
        JobPhase::Running
        | JobPhase::Paused
        | JobPhase::Undoing
        | JobPhase::Done
        | JobPhase::Overtaken => format!(
            "{why}. {source} takes account {account} back at epoch {epoch}; the move is being undone."
        ),
    }
}

/// The source was asked to commit, has not said what came of it, and is away: it may be lost for good,
/// with the only word on where the account is.
pub fn unheard(view: &JobView) -> String {
    let JobView { account, source, target, .. } = view;
    format!(
        "Committed, unheard: {source} was asked to commit and has not answered, and it is not connected. If it has committed and told {target}, {target} serves account {account}; \
         if not, {source} takes it back by itself; if it has committed and told nobody, the account is closed at both ends until {source} is back. \
         Bring {source} back: it knows, and the move goes on by itself. Do not open the account by hand on either server. \
         If {source} is lost for good: {PAGES}/committed-unheard.md, then ferry force-open {account}"
    )
}

/// The source was asked to commit and has not said what came of it.
fn unknown(plan: &Plan, view: &JobView) -> String {
    let Plan { account, source, target, .. } = plan;
    if view.phase != JobPhase::Stuck {
        return format!(
            "{source} has been asked to commit: until it answers, account {account} may be with {source} or {target}. It is asked again by itself."
        );
    }
    format!(
        "Whether account {account} has moved to {target} is not known: {source} does not say whether it committed. \
         Do not open the account by hand on either server: two servers would serve it. \
         Look at the step's fault, at ferry-agent on {source}, and at {PAGES}/commit-unknown.md; when {source} answers again: ferry resume {account}"
    )
}

fn committed(plan: &Plan, phase: JobPhase) -> String {
    let Plan { account, source, target, .. } = plan;
    match phase {
        JobPhase::Done => format!(
            "{target} serves account {account}. The copy on {source} is kept, closed, so that `ferry rollback {account}` can return; `ferry finalize {account}` ends that."
        ),
        JobPhase::Stuck => format!(
            "The account has moved to {target}, but a step after the commit failed for good. Its data is whole there; do not open it by hand on {source}. \
             See the step's fault and {PAGES}/stuck-after-commit.md; when it is mended: ferry resume {account}"
        ),
        JobPhase::Running
        | JobPhase::Paused
        | JobPhase::Undoing
        | JobPhase::Undone
        | JobPhase::Overtaken => {
            format!("The account has moved to {target}.")
        }
    }
}

/// The end of a move: its source is the server that no longer serves the account.
fn ending(plan: &Plan, view: &JobView) -> String {
    let Plan { account, source, target, .. } = plan;
    match view.phase {
        JobPhase::Done => {
            format!("{target} serves account {account}; nothing stands for the move on {source}.")
        }
        JobPhase::Undone => "Nothing was changed.".to_owned(),
        JobPhase::Stuck => format!(
            "{target} serves account {account}. On {source} part of what stood for the move is taken down, and part may still be there: \
             see the step's fault; when it is mended: ferry resume {account}"
        ),
        JobPhase::Running | JobPhase::Paused | JobPhase::Undoing | JobPhase::Overtaken => {
            format!("{target} serves account {account}.")
        }
    }
}
