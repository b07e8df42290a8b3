//! What is not as the ledger says though nothing is left over: an account that is closed here and something
//! of it is open; one that is served here and something keeps it closed.

use ferry_databases::Availability;
use ferry_host as host;
use ferry_proto::Fault;
use ferry_proto::artefact::{Artefact, Kind};
use ferry_traffic::control::{AccountRoute, HoldLimits, RouteState};
use ferry_traffic::mail::MailState;

use super::compare::is_served;
use super::report::{Finding, Verdict};
use super::world::World;
use crate::agent::{ENGINES, blocking};
use crate::ledger::{Account, Said, Standing};
use crate::work::{arm, mail_spec, spec};

/// The most processes of an account that are named.
const NAMED: usize = 5;

/// Everything that is so. What cannot be looked at goes to `unseen`.
pub async fn open(
    world: &World,
    said: &Said,
    seen: &[Artefact],
    unseen: &mut Vec<Fault>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let routes = match &world.redirection {
        Ok(redirection) => redirection.account_routes().unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    for account in said.accounts.values() {
        let mut words = Vec::new();
        if shall_be_closed(account) {
            for look in [in_host(world, account).await, in_databases(world, account).await] {
                take(look, &mut words, unseen);
            }
            take(in_mail(world, account).await, &mut words, unseen);
        } else if is_served(account) {
            findings.extend(left_closed(world, account, unseen).await);
        }
        words.extend(passed_here(account, &routes));
        findings.extend(words.into_iter().map(|what| Finding::open(account, what)));
    }
    let needed = said.accounts.values().any(arm::is_in_front);
    if needed && !seen.iter().any(|a| a.kind == Kind::Firewall) && world.redirection.is_ok() {
        findings.push(Finding {
            verdict: Verdict::Open,
            artefact: Artefact::new(Kind::Firewall, "nftables"),
            what: "accounts are on the move, but visitors do not come by the redirector: they meet what \
                   answers 503 (a running agent puts the rules back within seconds)"
                .to_owned(),
            not_removed: None,
        });
    }
    findings
}

fn take(look: Result<Vec<String>, Fault>, words: &mut Vec<String>, unseen: &mut Vec<Fault>) {
    match look {
        Ok(more) => words.extend(more),
        Err(fault) => unseen.push(fault),
    }
}

/// Whether nothing of the account may be open here, and nobody is about to change that.
fn shall_be_closed(account: &Account) -> bool {
    match &account.standing {
        Standing::Moved { .. } | Standing::Finalized { erasing: false, .. } => true,
        Standing::Fenced { complete_unix, ending, open, deadline, .. } => {
            complete_unix.is_some() && !ending && !open && !deadline.has_passed()
        }
        _ => false,
    }
}

async fn in_host(world: &World, account: &Account) -> Result<Vec<String>, Fault> {
    let (layout, account) = (world.layout.clone(), account.clone());
    blocking(move || {
        let mut open = match &account.closed {
            Some(closed) => {
                host::closed::reopened(&layout, &account.definition, &closed.sites, &closed.units)?
            }
            None => Vec::new(),
        };
        let running = host::processes::of_users(&[account.uid], &[])?;
        open.extend(running.iter().take(NAMED).map(|process| format!("{process} runs")));
        Ok(open)
    })
    .await
}

async fn in_databases(world: &World, account: &Account) -> Result<Vec<String>, Fault> {
    let mut open = Vec::new();
    for kind in ENGINES {
        let spec = spec(account, kind);
        if spec.is_empty() {
            continue;
        }
        let engine = world.engine(kind)?;
        // One that is down lets nobody in; that it is was said already.
        if matches!(engine.available().await, Availability::Running(_))
            && !engine.is_fenced(&spec).await?
        {
            open.push(format!("{kind} lets the account in"));
        }
    }
    Ok(open)
}

async fn in_mail(world: &World, account: &Account) -> Result<Vec<String>, Fault> {
    let spec = mail_spec(&account.definition, account.uid, account.gid)?;
    if spec.is_empty() {
        return Ok(Vec::new());
    }
    let state = world.mail.state(&spec).await?.state;
    let served = match state {
        MailState::Open => true,
        // Without a standing it is the provider's own configuration that serves, where there is one.
        MailState::Local => account.made.is_none(),
        MailState::Provisioned | MailState::Fenced | MailState::PassedOn { .. } => false,
    };
    Ok(if served { vec!["its mail is served".to_owned()] } else { Vec::new() })
}

/// Whether the redirector passes visitors to this server's sites though the ledger says otherwise.
fn passed_here(account: &Account, routes: &[AccountRoute]) -> Option<String> {
    let wanted = arm::route(account, HoldLimits::default())?;
    let stands = routes.iter().find(|route| route.account == wanted.account);
    let here = stands.is_some_and(|route| route.state == RouteState::Local);
    (here && wanted.state != RouteState::Local)
        .then(|| "the redirector passes its visitors to this server's own sites".to_owned())
}

async fn left_closed(world: &World, account: &Account, unseen: &mut Vec<Fault>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for engine in &world.engines {
        let spec = spec(account, engine.kind());
        if spec.is_empty() || !matches!(engine.available().await, Availability::Running(_)) {
            continue;
        }
        match engine.left_closed(&spec).await {
            Ok(left) => findings.extend(left.into_iter().map(Finding::orphan)),
            Err(fault) => unseen.push(fault),
        }
    }
    findings
}
