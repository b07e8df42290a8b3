//! Which work a command asks for, and at which end of its move it is done. It must not know how a command came
//! or where its outcome goes.

use std::sync::Arc;

use ferry_proto::command::{End, Intent, Outcome};
use ferry_proto::grant::SignedGrant;
use ferry_proto::{Fault, FaultClass};

use crate::agent::Agent;
use crate::work::inspect::Asked;
use crate::work::{self, Job};

pub(super) async fn inspect(
    agent: &Arc<Agent>,
    intent: &Intent,
    grant: Option<&SignedGrant>,
) -> Outcome {
    let Intent::Inspect { account, end, source, peer, approve, inherited } = intent else {
        return Err(Fault::bug("an intent of no move is no inspection"));
    };
    match (end, source) {
        (End::Source, _) => {
            let asked = Asked { approve: approve.clone(), inherited: inherited.clone() };
            work::inspect::source(agent, account, *peer, asked).await
        }
        (End::Target, Some(source)) => work::inspect::target(agent, source, *peer, grant).await,
        (End::Target, None) => {
            Err(Fault::bug("an inspection of the target came without the source's facts"))
        }
    }
}

pub(super) async fn dispatch(job: &Job, intent: &Intent) -> Outcome {
    // A step that came to the wrong end would act on the wrong copy.
    let at_target = matches!(
        intent,
        Intent::Provision { .. }
            | Intent::Deprovision { .. }
            | Intent::Rehearse { .. }
            | Intent::Open { .. }
            | Intent::Prove { .. }
    );
    let expected = if at_target { &job.of.target } else { &job.of.source };
    if expected != &job.agent.name {
        return Err(Fault::new(
            FaultClass::Permanent,
            format!("{} is for {expected}, not for {}", intent.kind(), job.agent.name),
        ));
    }
    match intent {
        Intent::Inspect { .. } => Err(Fault::bug("an inspection is of no move")),
        Intent::Provision { .. } => work::provision::provision(job).await,
        Intent::Deprovision { .. } => work::provision::deprovision(job).await,
        Intent::Precopy { max_passes, converged_bytes, .. } => {
            work::files::precopy(job, *max_passes, *converged_bytes).await
        }
        Intent::Arm { .. } => work::arm::arm(job).await,
        Intent::Disarm { .. } => work::arm::disarm(job).await,
        Intent::Fence { deadline_seconds, grace_ms, .. } => {
            work::fence::fence(job, *deadline_seconds, *grace_ms).await
        }
        Intent::Unfence { .. } => work::unfence::unfence(job).await,
        Intent::FinalPass { .. } => work::files::final_pass(job).await,
        Intent::CopyDatabases { .. } => work::databases::copy(job).await,
        Intent::Verify { .. } => work::verify::verify(job).await,
        Intent::Rehearse { .. } => work::rehearse::rehearse(job).await,
        Intent::Commit { .. } => work::commit::commit(job).await,
        Intent::TakeBack { refusal, .. } => work::unfence::after_refusal(job, refusal).await,
        Intent::Open { commit, .. } => work::open::on_command(job, commit.as_ref()).await,
        Intent::Release { forced, .. } => match forced {
            Some(record) => work::give_up::give_up(job, record).await,
            None => work::release::release(job).await,
        },
        Intent::Prove { .. } => work::prove::prove(job).await,
        Intent::ProveErasable { .. } => work::finalize::prove_erasable(job).await,
        Intent::Finalize { erase, .. } => work::finalize::finalize(job, *erase).await,
    }
}
