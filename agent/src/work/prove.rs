//! What an irreversible step asks of the server that serves the account, just before it: that it does
//! so, whole, at this epoch. Changes nothing.

use ferry_host::users;
use ferry_proto::Fault;
use ferry_proto::command::Receipt;
use tokio_util::sync::CancellationToken;

use crate::agent::{ENGINES, blocking, engine};
use crate::ledger::{Account, Standing};
use crate::work::{Job, done_with, spec};

/// Proves that this server serves the account at the epoch of `job`.
///
/// # Errors
/// Of class Fenced if it does not; Precondition if something of the account is missing.
pub async fn prove(job: &Job) -> Result<Receipt, Fault> {
    let account = job.account()?;
    if !matches!(account.standing, Standing::Serving) || account.epoch != job.of.epoch {
        return Err(
            job.stands_otherwise(&account, &format!("served here at epoch {}", job.of.epoch))
        );
    }
    let (layout, definition) = (job.agent.layout.clone(), account.definition.clone());
    let tree = blocking(move || {
        users::describe(&layout, &definition)?;
        ferry_files::scan(&definition.home, &CancellationToken::new())
    })
    .await?;
    let databases = databases(&account).await?;
    #[allow(clippy::cast_precision_loss)]
    Ok(done_with(
        format!(
            "{} serves account {} at epoch {}: {} files, {} bytes, {databases} databases",
            job.agent.name, job.of.account, account.epoch, tree.files, tree.bytes
        ),
        [("files", tree.files as f64), ("bytes", tree.bytes as f64)],
    ))
}

/// How many databases there are; all that the definition names must be.
async fn databases(account: &Account) -> Result<usize, Fault> {
    let mut count = 0;
    for kind in ENGINES {
        let spec = spec(account, kind);
        if spec.is_empty() {
            continue;
        }
        count += engine(kind).inspect(&spec).await?.databases.len();
    }
    Ok(count)
}
