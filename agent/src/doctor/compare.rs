//! Whether the ledger stands for what was observed. Pure.

use std::path::Path;

use ferry_host::{Layout, observe};
use ferry_proto::artefact::{Artefact, Kind};
use ferry_traffic::control::HoldLimits;

use super::own;
use crate::ledger::{Account, Said, Standing};
use crate::work::arm;

/// The artefact, if nothing stands for it; with what is known of its removal by how its account stands.
pub fn orphan(layout: &Layout, said: &Said, artefact: &Artefact) -> Option<Artefact> {
    if stands(layout, said, artefact) {
        return None;
    }
    let mut orphan = artefact.clone();
    let reopens = matches!(artefact.kind, Kind::Flag | Kind::DropIn | Kind::Linger | Kind::Crontab);
    if reopens && account_of(said, artefact).is_some_and(is_served) {
        // The ledger says that this server serves it: to open is right.
        orphan.by_hand = None;
    }
    Some(orphan)
}

/// The account that the artefact names, or whose user it names.
fn account_of<'a>(said: &'a Said, artefact: &Artefact) -> Option<&'a Account> {
    if let Some(account) = &artefact.account {
        return said.accounts.get(account);
    }
    let user = artefact.user.as_deref()?;
    said.accounts.values().find(|a| a.definition.user.as_str() == user)
}

/// Whether the account is open here, and nothing of that is left to do.
pub fn is_served(account: &Account) -> bool {
    matches!(account.standing, Standing::Serving | Standing::Armed { .. })
        && account.closed.is_none()
        && !follows(account)
}

/// Whether something still follows the account's open here: not where it has been closed since.
fn follows(account: &Account) -> bool {
    account.closed.is_none() && account.after_open.as_ref().is_some_and(|after| !after.done)
}

/// Whether a copy is being made or opened here, or is what a refusal left of one until it is undone:
/// whatever that needs may be there.
fn comes(account: &Account) -> bool {
    matches!(
        account.standing,
        Standing::Receiving { .. } | Standing::Opening { .. } | Standing::Refused { .. }
    )
}

/// Whether a copy that Ferry made is just being removed.
fn goes(account: &Account) -> bool {
    matches!(account.standing, Standing::Finalized { erasing: true, .. })
}

fn stands(layout: &Layout, said: &Said, artefact: &Artefact) -> bool {
    let place = Path::new(&artefact.place);
    let account = account_of(said, artefact);
    let any = |of: &dyn Fn(&Account) -> bool| said.accounts.values().any(of);
    match artefact.kind {
        // Only ever there for an instant, but for what a pass writes while the copy is made.
        Kind::Temporary => account.is_some_and(comes),
        Kind::Aside | Kind::FenceBlock | Kind::IdlePool | Kind::Certificate | Kind::Site => {
            any(&|a| is_of_sites(layout, a, place))
        }
        Kind::Rehearsal => {
            // The web server removes its sockets when it lets go of them, which may be later.
            account.is_some_and(comes)
                || artefact.place.ends_with(".sock") && any(&|a| is_of_sites(layout, a, place))
        }
        Kind::Flag | Kind::DropIn | Kind::Linger => any(&|a| is_kept_stopped(layout, a, place)),
        Kind::Crontab => account.is_some_and(|a| a.closed.is_some() || comes(a) || follows(a)),
        Kind::KeptCrontab => account.is_some(),
        Kind::ClosedLogin => account.is_some_and(|a| !is_served(a) && !follows(a)),
        Kind::Firewall | Kind::Routing => any(&arm::is_in_front),
        Kind::Route => account
            .is_some_and(|a| arm::is_opening(a) || arm::route(a, HoldLimits::default()).is_some()),
        Kind::Peer => arm::peers(said.accounts.values())
            .iter()
            .any(|p| p.to_canonical().to_string() == artefact.place),
        Kind::MailStanding => account.is_some(),
        Kind::MailHook => any(&|a| !a.definition.mail.is_empty()),
        Kind::Database
        | Kind::DatabaseUser
        | Kind::TemporaryDatabase
        | Kind::TemporaryDatabaseUser
        | Kind::Session => account.is_some_and(|a| comes(a) || goes(a)),
        Kind::Copy => own::may_be_of_a_move(said, account, place),
        // Asked for only where it must not be.
        Kind::MailTable | Kind::ClosedDatabase | Kind::Child | Kind::Account => false,
    }
}

/// Whether a file of sites is one that the ledger has a plan for: rendered, fenced or wound down.
fn is_of_sites(layout: &Layout, account: &Account, place: &Path) -> bool {
    let made = account.made.as_ref().and_then(|m| m.sites.as_ref());
    made.is_some_and(|plan| observe::is_of_sites(layout, plan, place))
        || account.closed.as_ref().is_some_and(|c| observe::is_of_fence(layout, &c.sites, place))
        || account.wound_down.as_ref().is_some_and(|w| observe::is_of_wind_down(layout, w, place))
}

fn is_kept_stopped(layout: &Layout, account: &Account, place: &Path) -> bool {
    let after = account.after_open.as_ref().filter(|after| !after.done).map(|after| &after.units);
    let plans = account.closed.as_ref().map(|closed| &closed.units).into_iter().chain(after);
    plans.into_iter().any(|plan| observe::is_kept_stopped(layout, plan, place))
}
