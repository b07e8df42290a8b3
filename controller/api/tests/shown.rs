//! A job as it is shown: what is said of an account whose commit is not known, and of undos that
//! fail.

use ferry_api::view::Folded;
use ferry_engine::{Entry, Event, JobState, Next};
use ferry_plan::{Heard, Inputs, Plan, Policy};
use ferry_proto::command::{
    AccountFacts, Direction, Move, Receipt, Refusal, ServerFacts, TargetFacts,
};
use ferry_proto::ids::{Epoch, JobId};
use ferry_proto::view::{JobPhase, JobView, Paused, StepPhase};
use ferry_proto::{Fault, FaultClass};

fn of() -> Move {
    Move {
        job: JobId::new_now(),
        account: "demo".parse().unwrap(),
        direction: Direction::Outbound,
        source: "client".parse().unwrap(),
        target: "transit".parse().unwrap(),
        source_peer: "192.0.2.1:7401".parse().unwrap(),
        target_peer: "192.0.2.2:7401".parse().unwrap(),
        epoch: Epoch(4),
    }
}

fn plan() -> Plan {
    let definition = serde_json::json!({"name": "demo", "user": "demo", "home": "/home/demo"});
    let server = ServerFacts::default;
    ferry_plan::plan(&Inputs {
        of: of(),
        source: AccountFacts {
            definition: serde_json::from_value(definition).unwrap(),
            epoch: Epoch(4),
            uid: 1000,
            gid: 1000,
            files: 1,
            bytes: 1,
            needs: ferry_proto::command::TreeNeeds::default(),
            approvable: vec![],
            databases: vec![],
            server: server(),
            findings: vec![],
        },
        target: TargetFacts {
            server: server(),
            uid: 1000,
            gid: 1000,
            rooms: vec![],
            findings: vec![],
        },
        heard: Heard { source_unix_ms: 0, target_unix_ms: 0 },
        policy: Policy::default(),
        approvals: vec![],
    })
}

/// A job whose steps do as `outcome` says, by name, until nothing more happens by itself; and how
/// it was shown after each event.
fn shown(plan: Plan, outcome: impl Fn(&str, bool) -> Option<Fault>) -> Vec<JobView> {
    let mut folded = Folded::new(plan, 0).unwrap();
    let spec = folded.spec().clone();
    let mut state = JobState::new(&spec);
    let mut views = vec![folded.view().clone()];
    let mut at_ms = 0;
    let mut take = |state: &mut JobState, event: Event| {
        // Time passes, or what fails would be tried for ever.
        at_ms += 30_000;
        let entry = Entry { at_ms, event };
        state.apply(&spec, &entry).unwrap();
        folded.apply(&entry).unwrap();
        views.push(folded.view().clone());
    };
    loop {
        match state.next(&spec) {
            Next::End(_) => return views,
            Next::Start { step, attempt } => take(&mut state, Event::StepStarted { step, attempt }),
            Next::StartUndo { step, attempt } => {
                take(&mut state, Event::UndoStarted { step, attempt })
            }
            Next::Resume { step, .. } => {
                let event = match outcome(&spec.steps[step].name, false) {
                    Some(fault) => Event::StepFailed { step, fault },
                    None => Event::StepDone { step, receipt: serde_json::json!({}) },
                };
                take(&mut state, event);
            }
            Next::ResumeUndo { step, .. } => {
                let event = match outcome(&spec.steps[step].name, true) {
                    Some(fault) => Event::UndoFailed { step, fault },
                    None => Event::UndoDone { step },
                };
                take(&mut state, event);
            }
        }
    }
}

#[test]
fn nobody_is_said_to_serve_while_the_commit_is_not_known() {
    for class in [FaultClass::Transient, FaultClass::Permanent, FaultClass::Bug] {
        let views = shown(plan(), |step, _| (step == "commit").then(|| Fault::new(class, "what?")));
        let begun = views.iter().position(|v| v.commit_unknown).unwrap();
        for view in &views[begun..] {
            assert!(view.commit_unknown && !view.committed, "{class}: {view:?}");
            for wrong in
                ["is with client:", "is with client,", "stays with", "has moved to transit."]
            {
                assert!(!view.advice.contains(wrong), "{class}: {}", view.advice);
            }
        }
        let end = views.last().unwrap();
        assert_eq!(end.phase, JobPhase::Stuck);
        for part in ["not known", "Do not open", "ferry resume demo", "what-if/commit-unknown.md"] {
            assert!(end.advice.contains(part), "{class}, {part}: {}", end.advice);
        }
    }
}

#[test]
fn a_commit_that_is_refused_is_no_commit() {
    let views = shown(plan(), |step, undo| {
        (step == "commit" && !undo).then(|| Fault::fenced("past its deadline"))
    });
    let end = views.last().unwrap();
    assert_eq!((end.phase, end.committed, end.commit_unknown), (JobPhase::Undone, false, false));
    assert!(end.advice.contains("client serves account demo"), "{}", end.advice);
}

#[test]
fn a_refused_open_ends_undone_and_says_who_refused_and_who_serves() {
    let plan = plan();
    let refusal = Refusal {
        job: plan.job,
        account: plan.account.clone(),
        source: plan.source.clone(),
        target: plan.target.clone(),
        epoch: Epoch(5),
        reason: "the file system of /home/demo is full".into(),
        at_unix_ms: 0,
    };
    let refused = Fault::refused(refusal.clone());
    let views = shown(plan, |step, undo| (step == "open" && !undo).then(|| refused.clone()));
    let end = views.last().unwrap();
    assert_eq!((end.phase, end.committed), (JobPhase::Undone, false));
    assert_eq!(end.refused.as_ref(), Some(&refusal));
    for part in ["refused by transit: the file system", "served by client again at epoch 6"] {
        assert!(end.advice.contains(part), "{part}: {}", end.advice);
    }
    let undoing = views.iter().filter(|v| v.phase == JobPhase::Undoing);
    assert!(undoing.clone().count() > 0);
    for view in undoing {
        assert!(view.advice.contains("client takes account demo back"), "{}", view.advice);
    }
}

#[test]
fn an_undo_that_is_tried_again_is_not_stuck_and_does_not_hide_why() {
    let tries = std::cell::Cell::new(0);
    let views = shown(plan(), |step, undo| match (step, undo) {
        ("arm", false) => Some(Fault::permanent("no redirector")),
        ("arm", true) if tries.replace(tries.get() + 1) < 3 => Some(Fault::transient("away")),
        _ => None,
    });
    let arm = |view: &JobView| view.steps.iter().find(|s| s.name == "arm").unwrap().clone();
    let failing: Vec<_> = views.iter().map(arm).filter(|s| s.undo_fault.is_some()).collect();
    assert!(failing.len() >= 3);
    for step in failing {
        assert_eq!(step.phase, StepPhase::Undoing);
        assert_eq!(step.fault.unwrap().message, "no redirector");
        assert_eq!(step.undo_fault.unwrap().message, "away");
    }
    let end = views.last().unwrap();
    assert_eq!((end.phase, arm(end).phase), (JobPhase::Undone, StepPhase::Undone));
    assert_eq!(arm(end).undo_fault, None);
}

#[test]
fn an_undo_that_is_given_up_is_stuck_and_says_how_to_go_on() {
    let views = shown(plan(), |step, undo| match (step, undo) {
        ("fence", false) => Some(Fault::permanent("cannot")),
        ("provision", true) => Some(Fault::permanent("busy")),
        _ => None,
    });
    let end = views.last().unwrap();
    assert_eq!(end.phase, JobPhase::Stuck);
    assert_eq!(end.steps[0].phase, StepPhase::Stuck);
    assert_eq!((end.committed, end.commit_unknown), (false, false));
    for part in ["is with client", "ferry resume demo", "/usr/share/doc/ferry-controller/what-if/"]
    {
        assert!(end.advice.contains(part), "{part}: {}", end.advice);
    }
}

/// An attempt that was cut off has not failed, and who wished it is told for as long as it is wished.
#[test]
fn a_paused_move_says_whose_wish_it_is_and_that_nothing_has_failed() {
    let mut folded = Folded::new(plan(), 0).unwrap();
    let mut take = |at_ms: i64, event: Event| {
        folded.apply(&Entry { at_ms, event }).unwrap();
        folded.view().clone()
    };
    assert!(take(1, Event::StepStarted { step: 0, attempt: 1 }).can_pause);
    let pausing = take(2, Event::PauseRequested { by: "an operator".into() });
    assert_eq!((pausing.phase, pausing.can_pause), (JobPhase::Running, false));
    let wish = Paused { by: "an operator".into(), since_unix_ms: 2 };
    assert_eq!(pausing.paused.as_ref(), Some(&wish));
    let fault = Fault::new(FaultClass::Cancelled, "cancelled");
    let paused = take(3, Event::StepFailed { step: 0, fault });
    assert_eq!((paused.phase, paused.ended_unix_ms), (JobPhase::Paused, None));
    assert_eq!((paused.steps[0].phase, &paused.steps[0].fault), (StepPhase::Waiting, &None));
    for part in ["client serves account demo", "ferry resume demo", "ferry abort demo"] {
        assert!(paused.advice.contains(part), "{part}: {}", paused.advice);
    }
    let resumed = take(4, Event::Resumed { by: String::new() });
    assert_eq!((resumed.phase, &resumed.paused), (JobPhase::Running, &None));
    // What fails by itself meanwhile is told.
    take(5, Event::StepStarted { step: 0, attempt: 2 });
    take(6, Event::PauseRequested { by: "an operator".into() });
    let fault = Fault::permanent("the disk is full");
    let paused = take(7, Event::StepFailed { step: 0, fault: fault.clone() });
    assert_eq!((paused.phase, &paused.steps[0].fault), (JobPhase::Paused, &Some(fault)));
    let aborted = take(8, Event::AbortRequested { by: String::new() });
    assert_eq!((aborted.phase, &aborted.paused), (JobPhase::Undoing, &None));
}

#[test]
fn a_precopy_that_a_pause_has_made_old_is_shown_as_one_that_waits() {
    let mut folded = Folded::new(plan(), 0).unwrap();
    let receipt = serde_json::to_value(Receipt::Done {
        summary: "2 files".into(),
        figures: Default::default(),
    });
    let receipt = receipt.unwrap();
    for step in [0, 1] {
        for event in [
            Event::StepStarted { step, attempt: 1 },
            Event::StepDone { step, receipt: receipt.clone() },
        ] {
            folded.apply(&Entry { at_ms: 1, event }).unwrap();
        }
    }
    let precopy = |folded: &Folded| {
        let step = &folded.view().steps[1];
        (step.phase, step.receipt.is_some(), step.fault.is_some())
    };
    folded.apply(&Entry { at_ms: 2, event: Event::PauseRequested { by: "x".into() } }).unwrap();
    assert_eq!(precopy(&folded), (StepPhase::Done, true, false));
    folded.apply(&Entry { at_ms: 3, event: Event::Resumed { by: "x".into() } }).unwrap();
    assert_eq!(precopy(&folded), (StepPhase::Waiting, false, false));
    assert_eq!(folded.view().steps[0].phase, StepPhase::Done);
}

/// Each page that advice names is one that the package carries.
#[test]
fn the_pages_that_advice_names_exist() {
    const PAGES: &str = "/usr/share/doc/ferry-controller/what-if/";
    let always = |at: &'static str| {
        move |step: &str, undo: bool| {
            (step == at && (!undo || at == "provision")).then(|| Fault::permanent("no"))
        }
    };
    let mut named = Vec::new();
    for at in ["provision", "commit", "open"] {
        let end = shown(plan(), always(at)).pop().unwrap();
        let (_, after) =
            end.advice.split_once(PAGES).unwrap_or_else(|| panic!("{at}: {}", end.advice));
        let page = &after[..after.find(".md").unwrap() + 3];
        let path = format!("{}/../../docs/what-if/{page}", env!("CARGO_MANIFEST_DIR"));
        assert!(std::path::Path::new(&path).is_file(), "{page}");
        named.push(page.to_owned());
    }
    named.dedup();
    assert_eq!(named.len(), 3, "{named:?}");
}

/// What is taken down for good is not undone, and nobody is told that nothing was changed.
#[test]
fn the_end_of_a_move_that_fails_half_way_is_stuck() {
    let end = |failing: &'static str| {
        let plan = ferry_plan::finalize(&of(), true);
        let views = shown(plan, move |step, undo| {
            (step == failing && !undo).then(|| Fault::permanent("no"))
        });
        views.last().unwrap().clone()
    };
    let stuck = end("finalize");
    assert_eq!(stuck.phase, JobPhase::Stuck);
    assert!(!stuck.advice.contains("Nothing"), "{}", stuck.advice);
    assert!(stuck.advice.contains("ferry resume demo"), "{}", stuck.advice);
    for refusing in ["prove", "prove_erasable"] {
        let undone = end(refusing);
        assert_eq!(undone.phase, JobPhase::Undone, "{refusing}");
        assert_eq!(undone.advice, "Nothing was changed.");
    }
}
