//! A job that has ended, in lines: who serves the account, the outage, the steps; and the exit code
//! that stands for it. Pure.

use ferry_proto::Fault;
use ferry_proto::command::{Direction, Receipt};
use ferry_proto::view::{JobPhase, JobView, Paused, StepPhase, StepView};

use crate::board;
use crate::exit::Exit;
use crate::screen::fault_text;
use crate::text::{self, safe};

/// What somebody who waits for a job hopes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hope {
    /// That it is done.
    Done,
    /// That it is undone.
    Undone,
    /// That it is paused.
    Paused,
}

/// The code that a job stands for which has ended or is paused.
pub fn exit(job: &JobView, hope: Hope) -> Exit {
    match (job.phase, hope) {
        (JobPhase::Stuck, _) => Exit::Stuck,
        (JobPhase::Done, Hope::Done)
        | (JobPhase::Undone, Hope::Undone)
        | (JobPhase::Paused, Hope::Paused) => Exit::Done,
        (JobPhase::Paused, _) => Exit::Paused,
        (JobPhase::Done, Hope::Paused) => Exit::WentOn,
        (JobPhase::Undone, Hope::Done | Hope::Paused) if is_move(job) => Exit::Undone,
        _ => Exit::Failed,
    }
}

/// Whether it is a move, and not the end of one.
fn is_move(job: &JobView) -> bool {
    job.steps.iter().all(|step| step.name != "finalize")
}

/// The job, ended or not.
pub fn job(job: &JobView) -> String {
    let mut lines = headline(job);
    lines.push('\n');
    lines.push_str(&text::pairs(&facts(job)));
    let rows = job.steps.iter().enumerate().map(|(i, step)| {
        vec![
            format!("{:3}", i + 1),
            step.title.clone(),
            step.server.to_string(),
            phase(step.phase).to_owned(),
            board::took(step).unwrap_or_default(),
            board::summary(step).unwrap_or_default(),
        ]
    });
    lines.push('\n');
    lines.push_str(&text::table(
        &["  #", "step", "server", "state", "took", ""],
        rows.collect(),
        &[],
    ));
    lines.push_str(&problems(job));
    if !job.advice.is_empty() {
        lines.push_str(&format!("\n{}\n", safe(&job.advice)));
    }
    lines
}

fn headline(job: &JobView) -> String {
    let (account, source, target) = (&job.account, &job.source, &job.target);
    if !is_move(job) {
        return match job.phase {
            JobPhase::Done => format!("The move of {account} is ended for good."),
            JobPhase::Stuck => {
                format!("Ending the move of {account} is stuck: a person must look.")
            }
            JobPhase::Undone => format!("The move of {account} was not ended."),
            JobPhase::Overtaken => overtaken(job),
            JobPhase::Running | JobPhase::Paused | JobPhase::Undoing => {
                format!("Ending the move of {account}.")
            }
        };
    }
    let what = match job.direction {
        Direction::Outbound => "move",
        Direction::Rollback => "rollback",
        Direction::Return => "return",
    };
    match job.phase {
        JobPhase::Done => {
            format!("{target} serves {account} now: the {what} from {source} is done.")
        }
        JobPhase::Undone => {
            format!("{source} serves {account}, as before: the {what} to {target} was undone.")
        }
        JobPhase::Stuck => format!(
            "The {what} of {account} from {source} to {target} is stuck: a person must look."
        ),
        JobPhase::Overtaken => overtaken(job),
        JobPhase::Running | JobPhase::Paused => format!(
            "The {what} of {account} from {source} to {target} is {}{}.",
            state(job),
            whose_pause(job)
        ),
        JobPhase::Undoing => {
            format!("The {what} of {account} from {source} to {target} is being undone.")
        }
    }
}

fn overtaken(job: &JobView) -> String {
    format!("The job of {} was overtaken: the servers say that it is not under way.", job.account)
}

/// Where a job is, in words.
pub fn state(job: &JobView) -> String {
    if job.commit_unheard {
        return "committed, unheard".to_owned();
    }
    if job.phase == JobPhase::Running && job.forced.is_some() && is_open(job) {
        return format!("open by force, waits for {}", job.source);
    }
    match &job.waiting_for {
        Some(place) => format!("waiting for {place}"),
        None if job.phase == JobPhase::Running && job.paused.is_some() => "pausing".to_owned(),
        None => job.phase.to_string(),
    }
}

/// By whom it is paused, and since when.
fn whose_pause(job: &JobView) -> String {
    let told = |paused: &Paused| {
        let since = text::moment(paused.since_unix_ms.div_euclid(1000));
        format!(" by {} since {since}", safe(&paused.by))
    };
    job.paused.as_ref().map(told).unwrap_or_default()
}

/// Whether the target has opened the account.
pub fn is_open(job: &JobView) -> bool {
    job.steps.iter().any(|step| step.name == "open" && step.phase == StepPhase::Done)
}

fn facts(job: &JobView) -> Vec<(&'static str, String)> {
    let mut facts = vec![("job", job.job.to_string())];
    if let Some(Receipt::Released { outage_ms, fenced_ms, held, refused, ended }) = job
        .steps
        .iter()
        .rev()
        .find_map(|s| s.receipt.as_ref().filter(|r| matches!(r, Receipt::Released { .. })))
    {
        let outage = outage_ms.map_or_else(
            || "none noticed: nobody came meanwhile".to_owned(),
            |ms| {
                format!(
                    "{}, from the first request held to the first answered at {}",
                    text::duration(ms / 1000.0),
                    job.target
                )
            },
        );
        facts.push(("outage", outage));
        facts.push(("fenced", text::duration(fenced_ms / 1000.0)));
        facts.push((
            "visitors",
            format!(
                "{} connections held, {} refused, {} ended by the fence",
                text::count(*held),
                text::count(*refused),
                text::count(*ended)
            ),
        ));
    }
    if is_move(job) {
        let unheard = format!("unheard: {} alone knows, and is not connected", job.source);
        let committed = match (job.committed, job.commit_unknown, &job.refused) {
            _ if job.commit_unheard => unheard.as_str(),
            (true, _, None) if job.forced.is_some() => "by force, without the source's word",
            (_, _, Some(_)) => "yes, but void: the target has refused it",
            (true, _, _) => "yes",
            (false, true, _) => "not known",
            (false, false, _) => "no",
        };
        facts.push(("committed", committed.to_owned()));
        if let Some(forced) = &job.forced {
            let said = format!(
                "{} is off and isolated, said {} at {}",
                job.source,
                safe(&forced.by),
                text::moment(forced.at_unix_ms.div_euclid(1000))
            );
            facts.push(("forced", said));
        }
    }
    facts.push(("started", text::moment(job.started_unix_ms.div_euclid(1000))));
    if let Some(ended) = job.ended_unix_ms {
        facts.push(("took", text::duration_ms(ended.saturating_sub(job.started_unix_ms).max(0))));
    }
    facts
}

/// What decided how it ended, and what needs a person.
fn problems(job: &JobView) -> String {
    if job.phase == JobPhase::Done {
        return String::new();
    }
    // What was undone was undone because of the last step that has a fault: none ran after it.
    let cause = job.steps.iter().rev().find_map(|step| {
        let attempts = if step.attempts > 1 {
            format!(" after {} attempts", step.attempts)
        } else {
            String::new()
        };
        Some(problem(job, step, "failed", &attempts, step.fault.as_ref()?))
    });
    // An undo that failed and is tried again is told as well: it may take long.
    let undoing = |step: &&StepView| matches!(step.phase, StepPhase::Undoing | StepPhase::Stuck);
    let undos = job.steps.iter().filter(undoing).filter_map(|step| {
        let what = match step.phase {
            StepPhase::Stuck => "cannot be undone",
            _ => "is not undone yet",
        };
        Some(problem(job, step, what, "", step.undo_fault.as_ref()?))
    });
    cause.into_iter().chain(undos).collect()
}

fn problem(job: &JobView, step: &StepView, what: &str, attempts: &str, fault: &Fault) -> String {
    format!(
        "\nStep {} of account {} {what} on {}{attempts}:\n  {}\n",
        safe(&step.name),
        job.account,
        step.server,
        fault_text(fault)
    )
}

/// A step's state in a word.
fn phase(phase: StepPhase) -> &'static str {
    match phase {
        StepPhase::Waiting => "waiting",
        StepPhase::Running => "running",
        StepPhase::Done => "done",
        StepPhase::Failed => "failed",
        StepPhase::Undoing => "undoing",
        StepPhase::Undone => "undone",
        StepPhase::Stuck => "stuck",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::tests::job as sample;

    #[test]
    fn a_move_that_is_done_tells_the_outage() {
        let mut done = sample(
            JobPhase::Done,
            &[("commit", "web1", StepPhase::Done), ("release", "web1", StepPhase::Done)],
        );
        done.steps[1].receipt = Some(Receipt::Released {
            outage_ms: Some(1930.4),
            fenced_ms: 2410.0,
            held: 14,
            refused: 0,
            ended: 2,
        });
        insta::assert_snapshot!(job(&done));
        assert_eq!(exit(&done, Hope::Done), Exit::Done);
        assert_eq!(exit(&done, Hope::Undone), Exit::Failed);
        assert_eq!(exit(&done, Hope::Paused), Exit::WentOn);
    }

    #[test]
    fn a_move_that_was_undone_tells_why_and_what_is_safe() {
        let mut undone = sample(
            JobPhase::Undone,
            &[
                ("provision", "transit1", StepPhase::Undone),
                ("copy_databases", "web1", StepPhase::Undone),
                ("verify", "web1", StepPhase::Waiting),
            ],
        );
        undone.advice = "Nothing is lost. web1 serves shop at epoch 3.".to_owned();
        let mut fault = Fault::permanent("database shop could not be loaded on transit1")
            .remedy("free some space on /var");
        fault.causes =
            vec!["mariadb ended with 1".to_owned(), "ERROR 1114: The table is full".to_owned()];
        undone.steps[1].fault = Some(fault);
        undone.steps[1].attempts = 2;
        insta::assert_snapshot!(job(&undone));
        assert_eq!(exit(&undone, Hope::Done), Exit::Undone);
        assert_eq!(exit(&undone, Hope::Undone), Exit::Done);
    }

    #[test]
    fn a_stuck_job_names_the_step_that_needs_a_person() {
        let mut stuck = sample(
            JobPhase::Stuck,
            &[("provision", "transit1", StepPhase::Stuck), ("precopy", "web1", StepPhase::Undone)],
        );
        stuck.steps[0].undo_fault = Some(Fault::permanent("user shop cannot be removed"));
        stuck.steps[1].fault = Some(Fault::permanent("no route to transit1"));
        insta::assert_snapshot!(job(&stuck));
        assert_eq!(exit(&stuck, Hope::Done), Exit::Stuck);
        assert_eq!(exit(&stuck, Hope::Undone), Exit::Stuck);
    }

    #[test]
    fn a_paused_move_says_who_wants_it_so_since_when_and_is_no_failure() {
        let mut paused = sample(
            JobPhase::Paused,
            &[("provision", "transit1", StepPhase::Done), ("precopy", "web1", StepPhase::Waiting)],
        );
        let by = "an \u{1b}operator".to_owned();
        paused.paused = Some(Paused { by, since_unix_ms: 1_795_398_180_000 });
        let shown = job(&paused);
        let told = "is paused by an \\u{1b}operator since 2026-11-23 01:43:00 UTC.";
        assert!(shown.contains(told), "{shown}");
        assert_eq!(exit(&paused, Hope::Done), Exit::Paused);
        assert_eq!(exit(&paused, Hope::Undone), Exit::Paused);
        assert_eq!(exit(&paused, Hope::Paused), Exit::Done);
        paused.phase = JobPhase::Running;
        assert!(job(&paused).contains("is pausing by an"), "{}", job(&paused));
    }

    #[test]
    fn a_commit_that_is_not_known_is_neither_yes_nor_no() {
        let mut stuck = sample(JobPhase::Stuck, &[("commit", "web1", StepPhase::Failed)]);
        stuck.commit_unknown = true;
        let shown = job(&stuck);
        assert!(shown.contains("committed  not known"), "{shown}");
    }

    #[test]
    fn what_was_opened_by_force_says_whose_word_it_was_and_what_it_waits_for() {
        let mut forced = sample(
            JobPhase::Running,
            &[("open", "transit1", StepPhase::Done), ("release", "web1", StepPhase::Waiting)],
        );
        (forced.committed, forced.forced) = (
            true,
            Some(ferry_proto::command::Forced {
                by: "an operator".into(),
                at_unix_ms: 1_795_398_180_000,
            }),
        );
        let shown = job(&forced);
        for part in
            ["open by force, waits for web1", "without the source's word", "said an operator"]
        {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        forced.phase = JobPhase::Done;
        forced.steps[1].receipt = Some(Receipt::GivenUp {
            found: "it had served the account again".into(),
            written: vec!["orders/4711".into()],
            written_total: 1,
            look_at: "see find".into(),
        });
        let shown = job(&forced);
        assert!(shown.contains("orders/4711"), "{shown}");
        assert!(!shown.contains("waits for"), "{shown}");
    }

    #[test]
    fn an_undo_that_is_tried_again_does_not_hide_why_it_is_undone() {
        let mut undoing =
            sample(JobPhase::Undoing, &[("provision", "transit1", StepPhase::Undoing)]);
        undoing.steps[0].fault = Some(Fault::permanent("no space on transit1"));
        undoing.steps[0].undo_fault = Some(Fault::transient("transit1 does not answer"));
        let shown = job(&undoing);
        for part in ["failed on", "no space", "is not undone yet", "does not answer"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(!shown.contains("cannot be undone"), "{shown}");
    }

    #[test]
    fn the_end_of_a_move_is_not_a_move() {
        let mut ended = sample(JobPhase::Done, &[("finalize", "web1", StepPhase::Done)]);
        assert!(job(&ended).starts_with("The move of shop is ended for good."));
        ended.phase = JobPhase::Undone;
        assert_eq!(exit(&ended, Hope::Done), Exit::Failed);
    }
}
