//! `ferry-agent doctor`: observes the system and compares it with the ledger. What Ferry has made and nothing
//! in the ledger stands for is an orphan; what the ledger calls closed and is open is worse. Needs no
//! running agent.
//!
//! The ledger is written before anything is made, so it is read after looking: what was made meanwhile is in
//! it. What is taken away after the ledger is written (a route after a finalize) may look like an orphan for
//! a moment: so whatever was found is looked for once more, and counts only if it is still there.

mod closed;
mod compare;
mod own;
mod report;
#[cfg(test)]
mod tests;
pub mod turn;
mod world;

use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::artefact::Artefact;

use crate::config::Config;
use crate::ledger::{Said, Standing};
pub use report::COULD_NOT_LOOK;
use report::{Finding, Report, Verdict};
use world::World;

/// How long what was found may take to go away by itself.
const AGAIN: Duration = Duration::from_secs(3);

/// Looks, removes what can be if `remove`, says what was found, and returns the exit code.
pub async fn doctor(config: &Config, json: bool, remove: bool) -> i32 {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root sees everything: run it as root");
        return COULD_NOT_LOOK;
    }
    let world = World::of(config);
    let report = if remove { removed(&world).await } else { examined(&world).await };
    report.print(json);
    report.exit_code()
}

/// What is found twice.
async fn examined(world: &World) -> Report {
    let (first, _) = look(world).await;
    if first.findings.is_empty() {
        return first;
    }
    tokio::time::sleep(AGAIN).await;
    let (second, _) = look(world).await;
    second.only_what_is_in(&first)
}

/// One look.
async fn look(world: &World) -> (Report, Option<Said>) {
    let known = world.said().unwrap_or_default();
    let mut seen = world.observe(&known.accounts).await;
    let said = match world.said() {
        Ok(said) => said,
        Err(fault) => {
            let findings = seen.artefacts.into_iter().map(|artefact| Finding {
                verdict: Verdict::NotCompared,
                artefact,
                what: String::new(),
                not_removed: None,
            });
            let findings = findings.collect();
            seen.unseen.insert(0, fault);
            return (Report { findings, unseen: seen.unseen, ..Report::default() }, None);
        }
    };
    let all = seen.artefacts.len();
    let mut findings: Vec<Finding> = seen
        .artefacts
        .iter()
        .filter_map(|artefact| compare::orphan(&world.layout, &said, artefact))
        .map(Finding::orphan)
        .collect();
    let stand = all - findings.len();
    findings.extend(closed::open(world, &said, &seen.artefacts, &mut seen.unseen).await);
    findings.sort_by(|a, b| (a.verdict, &a.artefact).cmp(&(b.verdict, &b.artefact)));
    (Report { findings, unseen: seen.unseen, stand, removed: Vec::new() }, Some(said))
}

/// Removes the orphans that can be. Nobody else changes anything meanwhile.
async fn removed(world: &World) -> Report {
    let _turn = match turn::of_doctor(&world.state_directory) {
        Ok(turn) => turn,
        Err(fault) => return examined(world).await.not_removed(&fault),
    };
    let (before, said) = look(world).await;
    let refusal = match &said {
        None => Some(Fault::precondition("without a ledger nothing is removed").remedy(
            "restore the ledger, or enrol this server again and remove by hand what is listed",
        )),
        Some(said) => critical(said),
    };
    if let Some(refusal) = refusal {
        return before.not_removed(&refusal);
    }
    let mut removed: Vec<Artefact> = Vec::new();
    let mut faults: Vec<(Artefact, Fault)> = Vec::new();
    for finding in before.findings.iter().filter(|f| f.can_be_removed()) {
        match world.remove(&finding.artefact).await {
            Ok(()) => removed.push(finding.artefact.clone()),
            Err(fault) => faults.push((finding.artefact.clone(), fault)),
        }
    }
    let (mut after, _) = look(world).await;
    for finding in &mut after.findings {
        let fault = faults.iter().find(|(artefact, _)| *artefact == finding.artefact);
        finding.not_removed = fault.map(|(_, fault)| fault.to_string());
    }
    removed.retain(|r| !after.findings.iter().any(|f| f.artefact == *r));
    after.removed = removed;
    after
}

/// Nothing is in the way of an account in its critical section, not even for a second.
fn critical(said: &Said) -> Option<Fault> {
    let (name, _) = said.accounts.iter().find(|(_, account)| {
        matches!(account.standing, Standing::Fenced { .. } | Standing::Opening { .. })
    })?;
    Some(
        Fault::precondition(format!(
            "nothing is removed: account {name} is in its critical section"
        ))
        .remedy("repeat it when the account is open again"),
    )
}
