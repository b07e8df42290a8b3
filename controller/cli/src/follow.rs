//! Watching a job to its end. A lost connection is made again for a while: the job does not need
//! us, so there is no hurry to give up.

use std::time::{Duration, Instant};

use ferry_proto::Fault;
use ferry_proto::ids::{AccountName, JobId};
use ferry_proto::view::{JobPhase, JobView};

use crate::board::Board;
use crate::connection::Operator;
use crate::exit::{Exit, Failure};
use crate::screen::Screen;

/// How long the controller may be away: it restarts within seconds.
const AWAY: Duration = Duration::from_secs(120);

/// Between two attempts to reach it.
const PAUSE: Duration = Duration::from_secs(1);

/// Shows `job` until it has ended or is paused, or somebody interrupts; returns it as it ended.
pub async fn to_the_end(
    operator: &Operator,
    screen: &Screen,
    account: &AccountName,
    job: JobId,
) -> Result<JobView, Failure> {
    until(operator, screen, account, job, |_| false).await
}

/// The same, but no longer than until there is `enough`.
pub async fn until(
    operator: &Operator,
    screen: &Screen,
    account: &AccountName,
    job: JobId,
    enough: fn(&JobView) -> bool,
) -> Result<JobView, Failure> {
    let mut board = Board::new(screen);
    let result = tokio::select! {
        ended = watch(operator, &mut board, job, enough) => ended,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(
            Exit::Interrupted,
            Fault::transient(format!("no longer watching; job {job} of account {account} goes on at the controller"))
                .remedy(format!("`ferry status {account} --watch` shows it again, `ferry abort {account}` undoes a move")),
        )),
    };
    board.end();
    result
}

async fn watch(
    operator: &Operator,
    board: &mut Board,
    job: JobId,
    enough: fn(&JobView) -> bool,
) -> Result<JobView, Failure> {
    let mut heard = Instant::now();
    let mut lost = false;
    loop {
        let told = listen(operator, board, job, enough, (&mut heard, &mut lost)).await;
        let failure = match told {
            Ok(ended) => return Ok(ended),
            Err(failure) if failure.exit() == Exit::Unreachable => failure,
            Err(failure) => return Err(failure),
        };
        if heard.elapsed() >= AWAY {
            return Err(gone(failure, job));
        }
        if !lost {
            lost = true;
            board.line(
                "The connection to the controller was lost; the job goes on. Trying again ...",
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Shows what one stream tells. A stream that ends before the job does counts as lost.
async fn listen(
    operator: &Operator,
    board: &mut Board,
    job: JobId,
    enough: fn(&JobView) -> bool,
    (heard, lost): (&mut Instant, &mut bool),
) -> Result<JobView, Failure> {
    let mut jobs = operator.watch_job(job).await?;
    while let Some(view) = jobs.next().await? {
        *heard = Instant::now();
        if std::mem::take(lost) {
            board.line("The controller is back.");
        }
        board.update(&view, *heard)?;
        // Paused it may stay for days.
        if view.phase.has_ended() || view.phase == JobPhase::Paused || enough(&view) {
            return Ok(view);
        }
    }
    Err(Failure::new(Exit::Unreachable, Fault::transient("the controller ended the connection")))
}

fn gone(failure: Failure, job: JobId) -> Failure {
    match failure {
        Failure::Told { exit, fault } => Failure::new(
            exit,
            fault
                .context(format!("the controller has been away for {} s", AWAY.as_secs()))
                .remedy(format!(
                    "the servers keep their promises without it: before the commit the source takes the account back \
                     by its fence deadline, after it the target serves it. When the controller is back: ferry status {job} --watch"
                )),
        ),
        other @ Failure::OutputClosed => other,
    }
}
