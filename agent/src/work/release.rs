//! Passes held and coming connections to the target, and tells what visitors felt.

use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::command::Receipt;
use ferry_traffic::control::AccountStatus;

use crate::clock::unix_ms;
use crate::ledger::{Account, Standing};
use crate::work::{Job, arm, mail_spec};

/// How long to wait for the first answer of the target to one who was held.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// How often the redirector is asked for it.
const ASK: Duration = Duration::from_millis(50);

/// Releases. May be repeated, until all of it is recorded as done.
///
/// # Errors
/// Of class Fenced if the move has not committed; else what the redirector or the mail server say.
pub async fn release(job: &Job) -> Result<Receipt, Fault> {
    let agent = &job.agent;
    let order = agent.order(&job.of.account).await;
    let mut account = job.account()?;
    let (fenced, released) = match &mut account.standing {
        Standing::Moved { of, fenced_unix_ms, released_unix_ms, .. } if of.job == job.of.job => {
            (*fenced_unix_ms, *released_unix_ms.get_or_insert_with(unix_ms))
        }
        _ => return Err(job.stands_otherwise(&account, "committed by this move")),
    };
    if !is_settled(&account) {
        job.set(account.clone()).await?;
        let passed_on = arm::reconcile(agent).await;
        // Mail does not wait for what keeps visitors.
        let mail = mail_spec(&account.definition, account.uid, account.gid)?;
        agent.mail.pass_on(&mail, job.of.target_peer.ip()).await.and(passed_on)?;
        settle(job, account).await?;
    }
    drop(order);
    let status = first_answer(job).await?;
    let traffic = status.map(|s| s.traffic).unwrap_or_default();
    #[allow(clippy::cast_precision_loss)]
    Ok(Receipt::Released {
        outage_ms: traffic.outage().map(|d| d.as_secs_f64() * 1000.0),
        fenced_ms: (released - fenced).max(0) as f64,
        held: traffic.held_total,
        refused: traffic.refused_total,
        ended: traffic.ended_total,
    })
}

fn is_settled(account: &Account) -> bool {
    matches!(account.standing, Standing::Moved { settled: true, .. })
}

/// The last of it, behind everybody's back: the closed sites' files are again what they were before the
/// move, and nothing is left to repeat.
async fn settle(job: &Job, mut account: Account) -> Result<(), Fault> {
    arm::end_wind_down(&job.agent, &account, false).await?;
    account.wound_down = None;
    if let Standing::Moved { settled, .. } = &mut account.standing {
        *settled = true;
    }
    job.set(account).await
}

/// The redirector's measurements, once somebody who was held has been answered, or nobody came.
async fn first_answer(job: &Job) -> Result<Option<AccountStatus>, Fault> {
    let deadline = tokio::time::Instant::now() + FIRST_ANSWER;
    loop {
        let status =
            job.agent.redirector.status().await?.into_iter().find(|s| s.account == job.of.account);
        let waiting = status.as_ref().is_some_and(|s| {
            s.traffic.first_held_at.is_some() && s.traffic.first_answered_at.is_none()
        });
        if !waiting || tokio::time::Instant::now() >= deadline {
            return Ok(status);
        }
        tokio::time::sleep(ASK).await;
    }
}
