//! `ferry move` and `ferry rollback`: plan, show, ask, start, watch.

use ferry_proto::Fault;
use ferry_proto::command::Direction;
use ferry_proto::ids::JobId;
use ferry_proto::v1;
use serde::{Deserialize, Serialize};

use crate::args::{Consent, MoveArgs, RollbackArgs};
use crate::connection::Operator;
use crate::exit::{Exit, Failure};
use crate::plan_view::PlanView;
use crate::screen::Screen;
use crate::summary::{self, Hope};
use crate::{ask, follow, plan_text};

/// A job that was started and left alone.
#[derive(Serialize)]
pub struct Started {
    /// The job.
    pub job: JobId,
}

/// `ferry move`.
pub async fn start(operator: &Operator, screen: &Screen, args: MoveArgs) -> Result<Exit, Failure> {
    let direction = if args.is_return { Direction::Return } else { Direction::Outbound };
    let request = v1::PlanMoveRequest {
        account: args.account.to_string(),
        to: args.to.to_string(),
        direction: direction.to_string(),
        deadline_seconds: args.consent.deadline.unwrap_or(0),
        from: args.from.map(String::from).unwrap_or_default(),
        approve: args.consent.approve.clone(),
    };
    run(operator, screen, request, &args.consent).await
}

/// `ferry rollback`.
pub async fn roll_back(
    operator: &Operator,
    screen: &Screen,
    args: RollbackArgs,
) -> Result<Exit, Failure> {
    let request = v1::PlanMoveRequest {
        account: args.account.to_string(),
        to: args.to.map(String::from).unwrap_or_default(),
        direction: Direction::Rollback.to_string(),
        deadline_seconds: args.consent.deadline.unwrap_or(0),
        from: args.from.map(String::from).unwrap_or_default(),
        approve: args.consent.approve.clone(),
    };
    run(operator, screen, request, &args.consent).await
}

async fn run(
    operator: &Operator,
    screen: &Screen,
    request: v1::PlanMoveRequest,
    consent: &Consent,
) -> Result<Exit, Failure> {
    if !screen.json() {
        screen.note(&format!("Inspecting both servers for account {} ...", request.account));
    }
    let (plan_id, document) = operator.plan_move(request).await?;
    let plan = PlanView::deserialize(&document).map_err(|e| {
        Failure::from(
            Fault::bug("the controller sent a plan that this ferry cannot read")
                .remedy("use the ferry of the controller's own version")
                .caused_by(&e),
        )
    })?;
    if !screen.json() {
        screen.text(&plan_text::plan(&plan))?;
    } else if plan.blocked || consent.dry_run {
        screen.document(&document)?;
    }
    if plan.blocked {
        let count = plan_text::blockers(&plan);
        screen.note(&format!(
            "\nNot started: {count} {} above must be seen to first. Nothing was changed.",
            if count == 1 { "blocker" } else { "blockers" }
        ));
        return Ok(Exit::Blocked);
    }
    if consent.dry_run {
        return Ok(Exit::Done);
    }
    if !consent.yes {
        screen.note("");
        let question =
            format!("Move account {} from {} to {} now?", plan.account, plan.source, plan.target);
        if !ask::yes(screen, question).await? {
            return Ok(ask::declined(screen));
        }
    }
    let job = operator.start_move(plan_id).await?;
    if consent.detach {
        return left_alone(screen, job);
    }
    let ended = follow::to_the_end(operator, screen, &plan.account, job).await?;
    if !screen.json() {
        screen.text(&format!("\n{}", summary::job(&ended)))?;
    }
    Ok(summary::exit(&ended, Hope::Done))
}

/// Says which job was started.
pub fn left_alone(screen: &Screen, job: JobId) -> Result<Exit, Failure> {
    if screen.json() {
        screen.document(&Started { job })?;
    } else {
        screen.text(&format!("{job}\n"))?;
        screen.note(&format!("Started. `ferry status {job} --watch` shows it."));
    }
    Ok(Exit::Done)
}
