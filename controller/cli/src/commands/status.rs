//! `ferry status`.

use std::time::Duration;

use console::Term;
use ferry_proto::Fault;
use ferry_proto::ids::JobId;
use ferry_proto::view::{JobPhase, JobView, StepPhase};

use crate::args::{StatusArgs, Subject};
use crate::connection::Operator;
use crate::exit::{Exit, Failure};
use crate::screen::Screen;
use crate::summary::{self, Hope};
use crate::{follow, text};

/// How many ended jobs the overview shows.
const ENDED_SHOWN: usize = 10;

/// How often a watched overview is asked for.
const PAUSE: Duration = Duration::from_secs(2);

/// `ferry status`.
pub async fn show(operator: &Operator, screen: &Screen, args: StatusArgs) -> Result<Exit, Failure> {
    let job = match args.subject {
        None if args.watch => return watch_overview(operator, screen).await,
        None => return overview(operator, screen).await,
        Some(Subject::Job(job)) => now(operator, job).await?,
        Some(Subject::Account(account)) => {
            let (jobs, problems) = operator.list_jobs(account.to_string(), false).await?;
            tell_problems(screen, &problems);
            newest(jobs).ok_or_else(|| {
                Fault::precondition(format!(
                    "account {account} has not been moved by this controller"
                ))
                .remedy("`ferry account list` shows where accounts are")
            })?
        }
    };
    if !args.watch {
        if screen.json() {
            screen.document(&job)?;
        } else {
            screen.text(&summary::job(&job))?;
        }
        return Ok(Exit::Done);
    }
    let ended = follow::to_the_end(operator, screen, &job.account, job.job).await?;
    if !screen.json() {
        screen.text(&format!("\n{}", summary::job(&ended)))?;
    }
    Ok(summary::exit(&ended, Hope::Done))
}

/// A job as it is now: the first that its stream tells.
async fn now(operator: &Operator, job: JobId) -> Result<JobView, Failure> {
    let first = operator.watch_job(job).await?.next().await?;
    first.ok_or_else(|| Fault::precondition(format!("there is no job {job}")).into())
}

fn newest(jobs: Vec<JobView>) -> Option<JobView> {
    jobs.into_iter().max_by_key(|job| (job.started_unix_ms, job.job))
}

async fn overview(operator: &Operator, screen: &Screen) -> Result<Exit, Failure> {
    let (jobs, problems) = operator.list_jobs(String::new(), false).await?;
    tell_problems(screen, &problems);
    if screen.json() {
        screen.document(&jobs)?;
    } else if jobs.is_empty() {
        screen.note("No account has been moved yet.");
    } else {
        screen.text(&table(&selected(jobs)))?;
    }
    Ok(Exit::Done)
}

/// Says which jobs are damaged or do not go on; the others are shown all the same.
fn tell_problems(screen: &Screen, problems: &[String]) {
    for sentence in problems {
        screen.note(&text::safe(sentence));
    }
}

/// What runs or is paused, redrawn until nothing runs.
async fn watch_overview(operator: &Operator, screen: &Screen) -> Result<Exit, Failure> {
    let term = Term::stdout();
    let mut shown = String::new();
    let mut last: Option<Vec<JobView>> = None;
    loop {
        let (jobs, problems) = operator.list_jobs(String::new(), true).await?;
        if last.is_none() {
            tell_problems(screen, &problems);
        }
        if last.as_ref() != Some(&jobs) {
            if screen.json() {
                screen.json_line(&jobs)?;
            } else {
                if term.is_term() {
                    // What cannot be cleared is drawn below.
                    let _ = term.clear_last_lines(shown.lines().count());
                }
                shown =
                    if jobs.is_empty() { "Nothing is moving.\n".to_owned() } else { table(&jobs) };
                screen.text(&shown)?;
            }
        }
        if jobs.iter().all(|job| job.phase == JobPhase::Paused) {
            return Ok(Exit::Done);
        }
        last = Some(jobs);
        tokio::time::sleep(PAUSE).await;
    }
}

/// All that run or need a person, then the last that ended; newest first.
fn selected(mut jobs: Vec<JobView>) -> Vec<JobView> {
    jobs.sort_by_key(|job| std::cmp::Reverse((job.started_unix_ms, job.job)));
    let is_over = |job: &JobView| {
        matches!(job.phase, JobPhase::Done | JobPhase::Undone | JobPhase::Overtaken)
    };
    let (over, open): (Vec<_>, Vec<_>) = jobs.into_iter().partition(is_over);
    open.into_iter().chain(over.into_iter().take(ENDED_SHOWN)).collect()
}

fn table(jobs: &[JobView]) -> String {
    let rows = jobs.iter().map(|job| {
        vec![
            job.account.to_string(),
            job.direction.to_string(),
            format!("{} to {}", job.source, job.target),
            summary::state(job),
            at(job),
            text::moment(job.started_unix_ms.div_euclid(1000)),
            job.job.to_string(),
        ]
    });
    text::table(
        &["account", "move", "servers", "state", "step", "started", "job"],
        rows.collect(),
        &[],
    )
}

/// Which step it is at.
fn at(job: &JobView) -> String {
    let total = job.steps.len();
    let done = job.steps.iter().filter(|step| step.phase == StepPhase::Done).count();
    let at_work =
        |phase| matches!(phase, StepPhase::Running | StepPhase::Undoing | StepPhase::Stuck);
    match job.steps.iter().rfind(|step| at_work(step.phase)) {
        Some(step) => format!("{} ({done} of {total} done)", step.name),
        None => format!("{done} of {total} done"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::tests::job;

    #[test]
    fn the_overview_shows_what_is_open_and_the_last_that_ended() {
        let mut jobs = Vec::new();
        for i in 0..14 {
            let mut ended = job(JobPhase::Undone, &[("provision", "transit1", StepPhase::Undone)]);
            ended.started_unix_ms += i * 1000;
            jobs.push(ended);
        }
        jobs.push(job(
            JobPhase::Running,
            &[("provision", "transit1", StepPhase::Done), ("precopy", "web1", StepPhase::Running)],
        ));
        let shown = selected(jobs);
        assert_eq!(shown.len(), 1 + ENDED_SHOWN);
        assert_eq!(shown[0].phase, JobPhase::Running);
        assert!(shown[1].started_unix_ms > shown[2].started_unix_ms);
        insta::assert_snapshot!(table(&shown[..2]));
    }
}
