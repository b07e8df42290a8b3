//! Ends a move for good, at the server that no longer serves the account: takes down what stands for
//! it, and erases the copy if that was asked, Ferry made it, and nothing unique is in it.
//!
//! Why nothing unique is left: before the commit both ends were compared and equal, and the target
//! opened with what was compared. So whatever this copy holds beyond that was written here since, and
//! what was written since shows: in the home by the time of an inode's last change, which nobody can
//! set; in the databases by a login that is not refused any more.

use std::path::Path;

use ferry_host::{processes, sites_fence};
use ferry_proto::Fault;
use ferry_proto::command::Receipt;
use ferry_proto::ids::ServerName;
use tokio_util::sync::CancellationToken;

use crate::agent::{blocking, engine};
use crate::ledger::{Account, Closed, Standing};
use crate::work::{Job, arm, done, mail_spec, provision, spec};

/// What is said where nothing of the account is known.
const NOTHING: &str = "nothing stands here";

/// Finalizes.
///
/// # Errors
/// Of class Fenced if this server serves the account, or the copy is not closed any more;
/// Precondition if the copy is not Ferry's to erase, or was written to since the commit.
pub async fn finalize(job: &Job, erase: bool) -> Result<Receipt, Fault> {
    let agent = &job.agent;
    let _order = agent.order(&job.of.account).await;
    let Some(mut account) = agent.account(&job.of.account) else {
        return Ok(done(NOTHING));
    };
    let (to, since_unix_ms) = moved_away(job, &account)?;
    if erase {
        // Also if it was proved before: it may have changed meanwhile.
        may_erase(job, &account, since_unix_ms).await?;
    }
    let erasing = erase || is_being_erased(&account);
    account.standing = Standing::Finalized { to: to.clone(), since_unix_ms, erasing };
    // A release that got no further has left it so.
    arm::end_wind_down(agent, &account, false).await?;
    account.wound_down = None;
    job.set(account.clone()).await?;
    arm::reconcile(agent).await?;
    if account.made.is_some() {
        let mail = mail_spec(&account.definition, account.uid, account.gid)?;
        agent.mail.close_here(&mail).await?;
    }
    if !erase {
        return Ok(done(format!(
            "connections are no longer passed on to {to}; the copy stays, closed"
        )));
    }
    remove(job, &account).await?;
    agent.set_account(&job.of.account, None).await?;
    arm::unhook_mail(agent).await;
    Ok(done("the copy and everything that was made for it is removed"))
}

/// Proves that the copy here may be erased, before anything that cannot be undone. Changes nothing.
///
/// # Errors
/// As of [`finalize`].
pub async fn prove_erasable(job: &Job) -> Result<Receipt, Fault> {
    let Some(account) = job.agent.account(&job.of.account) else {
        return Ok(done(NOTHING));
    };
    let (to, since_unix_ms) = moved_away(job, &account)?;
    may_erase(job, &account, since_unix_ms).await?;
    Ok(done(format!("the copy is Ferry's, closed, and unwritten since the account moved to {to}")))
}

/// Where the account went by this move, and when.
fn moved_away(job: &Job, account: &Account) -> Result<(ServerName, Option<i64>), Fault> {
    let (to, since_unix_ms) = match &account.standing {
        Standing::Moved { record, .. } => {
            let since = record.committed_at_unix_ms;
            (record.target.clone(), (!account.may_hold_unique()).then_some(since))
        }
        Standing::Finalized { to, since_unix_ms, .. } => (to.clone(), *since_unix_ms),
        _ => return Err(job.stands_otherwise(account, "moved away")),
    };
    // It may be served at a later epoch: a move further on was refused, and taken back.
    if to != job.of.target || account.epoch > job.of.epoch {
        return Err(job.stands_otherwise(account, &format!("moved to {}", job.of.target)));
    }
    Ok((to, since_unix_ms))
}

/// Whether an erasure has begun: what it has removed by now changed the copy, and is no reason to stop.
fn is_being_erased(account: &Account) -> bool {
    matches!(account.standing, Standing::Finalized { erasing: true, .. })
}

/// Whether the copy is Ferry's, closed, and as it was at the commit. Nothing is changed yet.
async fn may_erase(job: &Job, account: &Account, since_unix_ms: Option<i64>) -> Result<(), Fault> {
    let Some(made) = &account.made else {
        return Err(Fault::precondition(format!(
            "account {} was on {} before Ferry: Ferry does not erase it",
            job.of.account, job.agent.name
        ))
        .remedy("finalize without --erase; the server's reinstallation ends it"));
    };
    if is_being_erased(account) {
        return Ok(());
    }
    let since = since_unix_ms.ok_or_else(|| {
        Fault::precondition(format!(
            "the ledger of {} does not say since when the copy of account {} is unwritten",
            job.agent.name, job.of.account
        ))
        .remedy("compare the copy with what is served, then remove it by hand")
    })?;
    for (kind, created) in &made.databases {
        let spec = spec(account, *kind);
        let gone = created.databases.is_empty() && created.users.is_empty();
        if !gone && !engine(*kind).is_fenced(&spec).await? {
            return Err(Fault::fenced(format!(
                "the {kind} databases of account {} on {} are not closed: something unique may be in them",
                job.of.account, job.agent.name
            ))
            .remedy("find out who opened them, and compare them with what is served"));
        }
    }
    let home = account.definition.home.clone();
    blocking(move || unwritten(&home, since)).await.map_err(|fault| {
        fault.context(format!(
            "the copy of account {} on {} is not erased",
            job.of.account, job.agent.name
        ))
    })
}

/// Nothing below `home` has changed since. A home that is gone has nothing that could be lost: an
/// earlier attempt has erased it.
fn unwritten(home: &Path, since_unix_ms: i64) -> Result<(), Fault> {
    match home.symlink_metadata() {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        // It may be there, and not be looked at only now.
        Err(e) => return Err(Fault::io(format!("{} cannot be looked at", home.display()), &e)),
    }
    let tree = ferry_files::scan(home, &CancellationToken::new())?;
    match tree.latest {
        Some((path, at)) if at > since_unix_ms => Err(Fault::precondition(format!(
            "{path} below {} has changed {} s after the account moved away: something unique may be there",
            home.display(),
            (at - since_unix_ms) / 1000
        ))
        .remedy(
            "compare the copy with what is served (find HOME -newerct TIME), save what is only here, then remove the copy by hand",
        )),
        _ if tree.skipped + tree.vanished > 0 => Err(Fault::precondition(format!(
            "{} directories below {} are mounts, cannot be read or have just gone: what is in them is not known",
            tree.skipped + tree.vanished,
            home.display()
        ))
        .remedy("unmount them, then finalize again")),
        _ => Ok(()),
    }
}

/// Removes all that Ferry made here.
async fn remove(job: &Job, account: &Account) -> Result<(), Fault> {
    if let Some(closed) = &account.closed {
        discard(job, closed).await?;
    }
    // The account was open here: what was made for it bears no mark any more.
    let made = account.made.clone().unwrap_or_default();
    for (kind, created) in &made.databases {
        engine(*kind).drop_closed(&spec(account, *kind), created).await?;
    }
    provision::erase(&job.agent, account).await
}

/// Removes what the fence put in the way: it must not outlive the copy, and nothing of the copy may be
/// served when it goes.
async fn discard(job: &Job, closed: &Closed) -> Result<(), Fault> {
    let (layout, closed) = (job.agent.layout.clone(), closed.clone());
    blocking(move || {
        sites_fence::discard(&layout, &closed.sites)?;
        processes::forget(&layout, &closed.units)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::unix_ms;

    #[test]
    fn a_copy_that_was_written_to_since_is_not_erased() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("shop");
        unwritten(&home, unix_ms()).unwrap();
        std::fs::create_dir(&home).unwrap();
        std::fs::write(home.join("order"), "1").unwrap();
        // A file system's clock may be a tick behind, never ahead.
        let committed = unix_ms() + 1;
        unwritten(&home, committed).unwrap();
        while unwritten(&home, committed).is_ok() {
            let order = std::fs::File::options().write(true).open(home.join("order")).unwrap();
            // Its mtime can be put back; the time of its inode's change cannot.
            order.set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        let fault = unwritten(&home, committed).unwrap_err();
        assert!(fault.message.starts_with("order below "), "{fault}");
        assert!(!fault.remedy.is_empty());
    }

    #[test]
    fn a_home_that_cannot_be_looked_at_is_not_one_that_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let circle = directory.path().join("circle");
        std::os::unix::fs::symlink(&circle, &circle).unwrap();
        let fault = unwritten(&circle.join("shop"), unix_ms()).unwrap_err();
        assert!(fault.message.contains("cannot be looked at"), "{fault}");
    }
}
