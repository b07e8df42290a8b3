//! `ferry abort`, `ferry pause`, `ferry resume` and `ferry finalize`.

use ferry_proto::v1;
use ferry_proto::view::JobPhase;

use crate::args::{AbortArgs, FinalizeArgs, PauseArgs, ResumeArgs, Subject};
use crate::commands::moves::left_alone;
use crate::connection::Operator;
use crate::exit::{Exit, Failure};
use crate::screen::Screen;
use crate::summary::{self, Hope};
use crate::{ask, follow};

/// `ferry abort`.
pub async fn abort(operator: &Operator, screen: &Screen, args: AbortArgs) -> Result<Exit, Failure> {
    let job = operator.abort_move(args.account.to_string()).await?;
    if args.detach {
        return left_alone(screen, job);
    }
    let ended = follow::to_the_end(operator, screen, &args.account, job).await?;
    if !screen.json() {
        screen.text(&format!("\n{}", summary::job(&ended)))?;
    }
    if ended.phase == JobPhase::Done {
        screen.note(&format!(
            "Too late to abort: the move had committed. `ferry rollback {}` moves the account back.",
            args.account
        ));
    }
    Ok(summary::exit(&ended, Hope::Undone))
}

/// `ferry pause`.
pub async fn pause(operator: &Operator, screen: &Screen, args: PauseArgs) -> Result<Exit, Failure> {
    let job = operator.pause_move(args.account.to_string()).await?;
    if args.detach {
        return left_alone(screen, job);
    }
    let stopped = follow::to_the_end(operator, screen, &args.account, job).await?;
    if !screen.json() {
        screen.text(&format!("\n{}", summary::job(&stopped)))?;
    }
    if stopped.phase == JobPhase::Done {
        screen.note(
            "The move is not paused: somebody let it go on before it had stopped, and it is done.",
        );
    }
    Ok(summary::exit(&stopped, Hope::Paused))
}

/// `ferry resume`.
pub async fn resume(
    operator: &Operator,
    screen: &Screen,
    args: ResumeArgs,
) -> Result<Exit, Failure> {
    let request = match args.subject {
        Subject::Job(job) => v1::ResumeJobRequest { job: job.to_string(), account: String::new() },
        Subject::Account(account) => {
            v1::ResumeJobRequest { job: String::new(), account: account.into() }
        }
    };
    let (job, account) = operator.resume_job(request).await?;
    if args.detach {
        return left_alone(screen, job);
    }
    let ended = follow::to_the_end(operator, screen, &account, job).await?;
    if !screen.json() {
        screen.text(&format!("\n{}", summary::job(&ended)))?;
    }
    Ok(summary::exit(&ended, Hope::Done))
}

/// `ferry finalize`.
pub async fn finalize(
    operator: &Operator,
    screen: &Screen,
    args: FinalizeArgs,
) -> Result<Exit, Failure> {
    if !args.yes && !agreed(screen, &args).await? {
        return Ok(ask::declined(screen));
    }
    let request = v1::FinalizeMoveRequest {
        account: args.account.to_string(),
        erase: args.erase,
        from: args.from.map(String::from).unwrap_or_default(),
    };
    let job = operator.finalize_move(request).await?;
    if args.detach {
        return left_alone(screen, job);
    }
    let ended = follow::to_the_end(operator, screen, &args.account, job).await?;
    if !screen.json() {
        screen.text(&format!("\n{}", summary::job(&ended)))?;
    }
    Ok(summary::exit(&ended, Hope::Done))
}

async fn agreed(screen: &Screen, args: &FinalizeArgs) -> Result<bool, Failure> {
    let account = &args.account;
    screen.note(&format!(
        "This ends the move of {account} for good: the server that no longer serves it stops passing \
         visitors on, and there is no rollback any more."
    ));
    if args.erase {
        screen.note(&format!(
            "The copy of {account} on that server is erased: files, databases, user. This cannot be undone."
        ));
        let prompt = "Type the account's name to go on: ";
        return ask::typed(screen, prompt, account.to_string(), ask::SAY_YES).await;
    }
    ask::yes(screen, format!("End the move of {account}?")).await
}
