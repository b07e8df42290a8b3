//! The step kinds of a move: one file each says what may be special about it. What they share, a
//! command to an agent, is in [`agent_step`].

pub mod agent_step;

mod arm;
mod commit;
mod copy_databases;
mod fence;
mod final_pass;
mod finalize;
mod grant;
mod open;
mod precopy;
mod prove;
mod prove_erasable;
mod provision;
mod rehearse;
mod release;
mod verify;

pub use grant::grant;

use std::sync::Arc;

use ferry_engine::{JobSpec, StepSpec, Steps};
use ferry_fleet::Fleet;
use ferry_plan::Plan;
use ferry_proto::Fault;
use ferry_proto::command::Intent;

use crate::agent_step::{AgentStep, Recipe};

/// Every kind, by name.
const RECIPES: [Recipe; 14] = [
    provision::RECIPE,
    precopy::RECIPE,
    arm::RECIPE,
    fence::RECIPE,
    final_pass::RECIPE,
    copy_databases::RECIPE,
    verify::RECIPE,
    rehearse::RECIPE,
    commit::RECIPE,
    open::RECIPE,
    release::RECIPE,
    prove::RECIPE,
    prove_erasable::RECIPE,
    finalize::RECIPE,
];

/// The kinds of steps there are, done by the agents of `fleet`.
pub fn kinds(fleet: &Arc<Fleet>) -> Steps {
    RECIPES
        .into_iter()
        .map(|recipe| {
            let step: Arc<dyn ferry_engine::Step> = Arc::new(AgentStep::new(fleet.clone(), recipe));
            (recipe.kind.to_owned(), step)
        })
        .collect()
}

/// The job that a plan becomes.
///
/// # Errors
/// Of class Bug, if a step has no JSON.
pub fn job(plan: &Plan) -> Result<JobSpec, Fault> {
    let steps = plan
        .steps
        .iter()
        .map(|step| {
            Ok(StepSpec {
                name: step.name.clone(),
                kind: step.intent.kind().to_owned(),
                intent: serde_json::to_value(step)
                    .map_err(|e| Fault::bug("a planned step has no JSON").caused_by(&e))?,
                timeout_seconds: step.timeout_seconds,
                commit_point: step.commit_point,
                // What finalizing takes down no undo puts up again.
                forward_only: matches!(step.intent, Intent::Finalize { .. }),
                // A target that cannot open says so for good, before it has served anything.
                may_void_commit: matches!(step.intent, Intent::Open { .. }),
                // The account is served at the source as if nothing were. A fence is never paused, and
                // neither is what stands in front of it.
                pausable: matches!(step.intent, Intent::Provision { .. } | Intent::Precopy { .. }),
                // What has changed in hours or days is not left for behind the fence.
                again_after_pause: matches!(step.intent, Intent::Precopy { .. }),
            })
        })
        .collect::<Result<_, Fault>>()?;
    Ok(JobSpec { job: plan.job, steps })
}
