//! What Ferry has made in this MariaDB server and left: found by its marks and by the names that it
//! derives, whatever any record says; and taken away again.

use std::collections::BTreeSet;

use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::artefact::{Artefact, Kind};
use ferry_proto::ids::AccountName;

use super::inspect::user_condition;
use super::session::{Session, text, user};
use super::temporary::{self, Purpose};
use super::users::{self, Login};
use super::{files, processes, target};
use crate::engine::not_ours;
use crate::model::{MARK, Spec, is_derived, temporary_user_of};

const WHAT: &str = "what Ferry has made in MariaDB cannot be seen";

fn artefact(kind: Kind, place: impl std::fmt::Display) -> Artefact {
    Artefact::new(kind, place).in_engine(EngineKind::Mariadb)
}

pub(super) async fn observe(
    session: &mut Session,
    accounts: &[AccountName],
) -> Result<Vec<Artefact>, Fault> {
    let mut found = databases(session).await?;
    for login in users::read(session, "TRUE").await? {
        let label = format!("{}@{}", login.name, login.host);
        if login.host == "localhost" && is_temporary(&login.name) {
            let one = artefact(Kind::TemporaryDatabaseUser, label);
            found.push(match temporary_of(&login.name, accounts) {
                Some(account) => one.of(account.as_str()),
                None => one,
            });
        } else if let Some(account) = marked_for(&login, accounts, &found) {
            found.push(artefact(Kind::DatabaseUser, label).of(&account));
        }
    }
    found.extend(sessions(session, accounts).await?);
    Ok(found)
}

fn is_temporary(name: &str) -> bool {
    Purpose::ALL.iter().any(|purpose| is_derived(name, purpose.word()))
}

/// Whose temporary user this is, if it is one of these accounts'.
fn temporary_of<'a>(name: &str, accounts: &'a [AccountName]) -> Option<&'a AccountName> {
    let is = |a: &&AccountName| Purpose::ALL.iter().any(|p| temporary_user_of(a, p.word()) == name);
    accounts.iter().find(is)
}

/// The account whose mark a user bears. The mark is a hash, so accounts have to be guessed: those that are
/// known, those of marked databases, and what users are usually called after.
fn marked_for(login: &Login, accounts: &[AccountName], found: &[Artefact]) -> Option<String> {
    let called = login.name.match_indices('_').map(|(at, _)| &login.name[..at]);
    let known = accounts.iter().map(AccountName::as_str);
    let marked = found.iter().filter_map(|a| a.account.as_ref()).map(AccountName::as_str);
    let mut all = known.chain(marked).chain(called).chain([login.name.as_str()]);
    all.find(|account| login.bears_mark_of(account)).map(str::to_owned)
}

async fn databases(session: &mut Session) -> Result<Vec<Artefact>, Fault> {
    let sql = format!(
        "SELECT SCHEMA_NAME, SCHEMA_COMMENT FROM information_schema.SCHEMATA \
         WHERE SCHEMA_COMMENT LIKE {}",
        text(&format!("{MARK}%"))
    );
    let mut found = Vec::new();
    for row in session.rows(WHAT, &sql).await? {
        let (name, comment) = (row.text(0), row.text(1));
        let account = comment.strip_prefix(MARK).unwrap_or_default();
        let one = artefact(Kind::Database, &name).of(account);
        found.push(if is_empty(session, &name).await? {
            one
        } else {
            one.by_hand(format!(
                "it has content: look whether that is elsewhere too, then DROP DATABASE `{name}`"
            ))
        });
    }
    Ok(found)
}

async fn is_empty(session: &mut Session, database: &str) -> Result<bool, Fault> {
    let name = text(database);
    let sql = format!(
        "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = {name} \
         UNION ALL SELECT 1 FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {name} \
         UNION ALL SELECT 1 FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {name} LIMIT 1"
    );
    Ok(session.rows(WHAT, &sql).await?.is_empty())
}

async fn sessions(session: &mut Session, accounts: &[AccountName]) -> Result<Vec<Artefact>, Fault> {
    let all = processes::all(session).await?;
    let sessions = all.iter().filter(|c| is_temporary(&c.user));
    Ok(sessions
        .map(|connection| {
            let (id, name) = (connection.id, &connection.user);
            let one = artefact(Kind::Session, format!("{id} of {name}"));
            match temporary_of(name, accounts) {
                Some(account) => one.of(account.as_str()),
                None => one,
            }
        })
        .collect())
}

/// All users of the account are locked, as a fence does it: one may be locked by its owner's will.
pub(super) async fn left_closed(
    session: &mut Session,
    spec: &Spec,
) -> Result<Vec<Artefact>, Fault> {
    let logins = users::read(session, &user_condition(spec, "User", "Host")).await?;
    if logins.is_empty() || !logins.iter().all(Login::locked) {
        return Ok(Vec::new());
    }
    let each = logins.iter().map(|l| {
        artefact(Kind::ClosedDatabase, format!("{}@{}", l.name, l.host))
            .of(spec.account.as_str())
            .by_hand(format!(
                "every user of the account is locked: unless that is wanted, ALTER USER {} ACCOUNT UNLOCK",
                user(&l.name, &l.host)
            ))
    });
    Ok(each.collect())
}

pub(super) async fn remove(session: &mut Session, artefact: &Artefact) -> Result<(), Fault> {
    match artefact.kind {
        Kind::Database => {
            let comment = target::comment(session, &artefact.place).await?;
            let Some(comment) = comment else { return Ok(()) };
            if !comment.starts_with(MARK) || !is_empty(session, &artefact.place).await? {
                return Err(not_ours(artefact));
            }
            files::drop_database(session, &artefact.place).await
        }
        Kind::DatabaseUser => remove_marked(session, artefact).await,
        Kind::TemporaryDatabaseUser => {
            let name = artefact.place.strip_suffix("@localhost").filter(|name| is_temporary(name));
            let name = name.ok_or_else(|| not_ours(artefact))?;
            temporary::drop_named(session, &[name.to_owned()]).await
        }
        Kind::Session => {
            // Numbers are not used again: it is the same session, or gone.
            let id = artefact.place.split(' ').next().and_then(|id| id.parse().ok());
            let ids = BTreeSet::from([id.ok_or_else(|| not_ours(artefact))?]);
            processes::end(session, &ids).await
        }
        _ => Err(not_ours(artefact)),
    }
}

async fn remove_marked(session: &mut Session, artefact: &Artefact) -> Result<(), Fault> {
    let (Some((name, host)), Some(account)) = (artefact.place.rsplit_once('@'), &artefact.account)
    else {
        return Err(not_ours(artefact));
    };
    let Some(login) = users::find(session, name, host).await? else { return Ok(()) };
    if !login.bears_mark_of(account.as_str()) {
        return Err(not_ours(artefact));
    }
    let what = format!("MariaDB user {} cannot be dropped", artefact.place);
    session.run(&what, &format!("DROP USER IF EXISTS {}", user(name, host))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_ferry_derives_are_temporary() {
        let account: AccountName = "shop".parse().expect("a name");
        for purpose in Purpose::ALL {
            let name = temporary_user_of(&account, purpose.word());
            assert!(is_temporary(&name));
            assert_eq!(temporary_of(&name, std::slice::from_ref(&account)), Some(&account));
        }
        for name in ["ferry_load_shop", "ferry_load_0123456789abcdeg", "ferry_0123456789abcdef"] {
            assert!(!is_temporary(name), "{name}");
        }
    }
}
