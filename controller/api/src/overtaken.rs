//! Which jobs of a store that was restored from a backup the world has overtaken. Pure.

use ferry_plan::Plan;
use ferry_proto::command::{AccountState, StandingKind};
use ferry_proto::ids::ServerName;

/// Whether the servers say that a job is not under way any more: neither end has the account for it, and
/// the source does not stand as its commit left it. What they do not say, the job's own steps find out: an
/// agent answers a command that it knows from its ledger, and refuses an older epoch.
///
/// `accounts` is what every server has reported; both ends must have.
pub fn is_overtaken(plan: &Plan, accounts: &[(ServerName, AccountState)]) -> bool {
    let at = |server: &ServerName| {
        accounts.iter().find(|(s, state)| s == server && state.name == plan.account)
    };
    let (source, target) = (at(&plan.source), at(&plan.target));
    let has_it = [source, target].into_iter().flatten().any(|(_, s)| s.job == Some(plan.job));
    let committed = source.is_some_and(|(_, state)| {
        state.standing == StandingKind::Moved
            && state.moved_to.as_ref() == Some(&plan.target)
            && state.epoch == plan.epoch.next()
    });
    !(has_it || committed && plan.steps.iter().any(|step| step.commit_point))
}
