//! The guard: no account is served here that this server must not serve. At boot, before anything can
//! serve, it reads the ledger and closes again what was opened behind Ferry's back while the host was
//! down; the agent looks again, for as long as it runs. It closes and never opens: a fence that it
//! finds at boot is the agent's to end.

mod look;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::bail;
use ferry_host::closed::{self, ClosedAccount, ClosedAgain};
use ferry_host::sites_fence::Enabled;
use ferry_host::{Layout, Services, processes};
use ferry_proto::Fault;
use ferry_proto::ids::AccountName;
use ferry_traffic::mail::{Mail, MailConfig, Shut};

use crate::config::Config;
use crate::ledger::{Account, Ledger, Standing};
use crate::work::mail_spec;

pub use look::keep;

/// At boot: closes what the ledger calls closed.
///
/// # Errors
/// If the agent runs, which sees to it then; if the ledger cannot be read; if something stays open.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    if is_broken() {
        return Ok(());
    }
    let layout = Layout::system();
    if ferry_host::is_unit_active(&layout, "ferry-agent.service")? {
        bail!("the agent runs and sees to it that closed accounts stay closed: nothing is done");
    }
    let mail = Mail::new(MailConfig::default());
    let faults = at_boot(&layout, &mail, &config.state_directory.join("ledger")).await;
    for fault in &faults {
        tracing::error!(class = %fault.class, "{fault}");
    }
    if let Some(first) = faults.first() {
        bail!("accounts may be open that another server serves: {first}");
    }
    Ok(())
}

/// The lab breaks the promise to see that its tests find out.
fn is_broken() -> bool {
    let broken = ferry_failpoints::broken(ferry_failpoints::Promise::Guard);
    if broken {
        tracing::error!("the guard does nothing, for a test: closed accounts may be served");
    }
    broken
}

/// Closes what the ledger at `path` calls closed, or what the services' own marks call so if it cannot
/// be read. What could not be done.
async fn at_boot(layout: &Layout, mail: &Mail, path: &Path) -> Vec<Fault> {
    match accounts(layout, path) {
        Ok(accounts) => close_all(layout, mail, &accounts).await,
        Err(fault) => {
            let mut faults = vec![unreadable(&fault)];
            faults.extend(close_by_marks(layout, mail).await);
            faults
        }
    }
}

fn unreadable(fault: &Fault) -> Fault {
    Fault::permanent("which accounts must not be served here is not known: no ledger can be read")
        .caused_by(fault)
        .remedy(
            "what is closed stays closed, unless something else opened it; mend the ledger, then look \
             at: journalctl -u ferry-agent",
        )
}

/// The accounts of the ledger. That there is none is an answer only where nothing is closed.
fn accounts(layout: &Layout, path: &Path) -> Result<BTreeMap<AccountName, Account>, Fault> {
    if !path.exists() && processes::kept_stopped(layout)?.is_empty() {
        return Ok(BTreeMap::new());
    }
    Ledger::accounts_at(path)
}

/// Whether this server must not serve the account. What is being opened here is committed to this server,
/// but not open: the agent opens it as a whole.
fn must_be_closed(standing: &Standing) -> bool {
    match standing {
        Standing::Receiving { .. }
        | Standing::Opening { .. }
        | Standing::Refused { .. }
        | Standing::Fenced { .. }
        | Standing::Moved { .. }
        | Standing::Finalized { .. } => true,
        Standing::Serving | Standing::Armed { .. } => false,
    }
}

async fn close_all(
    layout: &Layout,
    mail: &Mail,
    accounts: &BTreeMap<AccountName, Account>,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    let closed = accounts.iter().filter(|(_, account)| must_be_closed(&account.standing));
    let enabled = Enabled::read(layout).unwrap_or_else(|fault| {
        faults.push(fault);
        Enabled::default()
    });
    for (name, account) in closed {
        let mut all = close_host(layout, account, &enabled, Services::Booting);
        all.add(close_mail(mail, account).await);
        tell(name, &all);
        faults.extend(all.faults.into_iter().map(|fault| fault.context(format!("account {name}"))));
    }
    faults.extend(put_mail_back(mail).await.err());
    faults
}

/// The host's part. Blocks.
fn close_host(
    layout: &Layout,
    account: &Account,
    enabled: &Enabled,
    services: Services,
) -> ClosedAgain {
    let closed = account.closed.as_deref();
    let rendered = account.made.as_ref().and_then(|made| made.sites.as_ref());
    let closed_account = ClosedAccount {
        definition: &account.definition,
        fenced: closed.map(|c| &c.sites),
        rendered: rendered.filter(|_| closed.is_none()),
        units: closed.map(|c| &c.units),
    };
    // Who finalized a move may have given the account's domains to another one since: then only its own
    // files are its.
    let given_up = matches!(account.standing, Standing::Finalized { .. });
    let nothing = Enabled::default();
    let enabled = if given_up { &nothing } else { enabled };
    closed::close_again(layout, &closed_account, enabled, services)
}

/// The mail's part.
async fn close_mail(mail: &Mail, account: &Account) -> Result<Vec<String>, Fault> {
    let Some(shut) = shut(account) else { return Ok(Vec::new()) };
    let spec = mail_spec(&account.definition, account.uid, account.gid)?;
    let was_open = mail.close_again(&spec, &shut).await?;
    Ok(was_open.then(|| "its mail was served here".to_owned()).into_iter().collect())
}

/// How the account's mail is to stand.
fn shut(account: &Account) -> Option<Shut> {
    match &account.standing {
        Standing::Moved { of, released_unix_ms: Some(_), .. } => {
            Some(Shut::PassedOn(of.target_peer.ip()))
        }
        Standing::Receiving { source, before: None, .. }
        | Standing::Refused { source, before: None, .. } => {
            Some(Shut::Prepared(source.mail.clone()))
        }
        // A copy that Ferry made has none of its own once it is finalized, also while it is received again.
        Standing::Finalized { .. }
        | Standing::Receiving { before: Some(_), .. }
        | Standing::Refused { before: Some(_), .. }
            if account.made.is_some() =>
        {
            Some(Shut::Unknown)
        }
        // Not deferred: what is received is opened soon, and a fence would have to end first.
        Standing::Receiving { of, .. } | Standing::Refused { of, .. } => {
            Some(Shut::PassedOn(of.source_peer.ip()))
        }
        Standing::Fenced { .. } | Standing::Moved { .. } | Standing::Finalized { .. } => {
            Some(Shut::Deferred)
        }
        // It is received here from the commit on.
        Standing::Opening { .. } | Standing::Serving | Standing::Armed { .. } => None,
    }
}

async fn put_mail_back(mail: &Mail) -> Result<(), Fault> {
    for missing in mail.put_back().await? {
        tracing::error!("mail of accounts that are served elsewhere could come in here: {missing}");
    }
    Ok(())
}

/// Without a ledger: what the services' own state says was closed, is closed as far as names tell.
async fn close_by_marks(layout: &Layout, mail: &Mail) -> Vec<Fault> {
    let mut faults = Vec::new();
    match processes::kept_stopped(layout) {
        Ok(users) => {
            for user in users {
                let all = closed::close_user_again(layout, &user);
                tell(&user, &all);
                faults.extend(all.faults);
            }
        }
        Err(fault) => faults.push(fault),
    }
    faults.extend(put_mail_back(mail).await.err());
    faults
}

/// Says what was open.
fn tell(account: &impl std::fmt::Display, all: &ClosedAgain) {
    for found in &all.found {
        tracing::error!(%account, "a closed account was opened behind Ferry's back, and is closed again: {found}");
    }
}

#[cfg(test)]
mod tests;
