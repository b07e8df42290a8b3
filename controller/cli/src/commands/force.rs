//! `ferry force-open`.

use ferry_proto::Fault;
use ferry_proto::ids::{AccountName, ServerName};
use ferry_proto::v1;

use crate::args::ForceOpenArgs;
use crate::commands::moves::left_alone;
use crate::connection::Operator;
use crate::exit::{Exit, Failure};
use crate::screen::Screen;
use crate::summary::{self, Hope};
use crate::{ask, follow};

/// How to say it in advance.
const SAY_IT: &str =
    "make sure that the source is off and isolated, then say so: --source-is-off NAME";

/// `ferry force-open`. Returns when the account is open: the job goes on waiting for its source.
pub async fn open(
    operator: &Operator,
    screen: &Screen,
    args: ForceOpenArgs,
) -> Result<Exit, Failure> {
    let source = match args.source_is_off {
        Some(source) => source,
        None => match vouched(operator, screen, &args.account).await? {
            Some(source) => source,
            None => return Ok(ask::declined(screen)),
        },
    };
    let request = v1::ForceOpenRequest {
        account: args.account.to_string(),
        source_is_off: source.to_string(),
    };
    let job = operator.force_open(request).await?;
    if args.detach {
        return left_alone(screen, job);
    }
    let seen = follow::until(operator, screen, &args.account, job, summary::is_open).await?;
    if !screen.json() {
        screen.text(&format!("\n{}", summary::job(&seen)))?;
    }
    if summary::is_open(&seen) && seen.refused.is_none() {
        return Ok(Exit::Done);
    }
    Ok(summary::exit(&seen, Hope::Done))
}

/// The source, if the person types its name.
async fn vouched(
    operator: &Operator,
    screen: &Screen,
    account: &AccountName,
) -> Result<Option<ServerName>, Failure> {
    let (jobs, _) = operator.list_jobs(account.to_string(), false).await?;
    // The controller tells the newest first.
    let unheard = jobs.into_iter().next().filter(|job| job.commit_unheard);
    let Some(job) = unheard else {
        return Err(Fault::precondition(format!(
            "account {account} is not committed, unheard: only then is it opened by force"
        ))
        .remedy(format!("see `ferry status {account}`"))
        .into());
    };
    screen.note(&format!(
        "This opens account {account} on {1}, although {0} has not said whether it has committed. If {0} serves \
         the account, two servers will, and what is written there is not merged. {0} must be off (its power cut, its \
         virtual machine stopped) and isolated (it does not come back by itself with the network it had).",
        job.source, job.target
    ));
    let prompt = "Type the name of the server that is off and isolated: ";
    let vouched = ask::typed(screen, prompt, job.source.to_string(), SAY_IT).await?;
    Ok(vouched.then_some(job.source))
}
