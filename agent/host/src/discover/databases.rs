//! Whose each database and each database user is. What the database server says counts (who owns, who
//! has rights, and whose name they bear); what files in a home say is only a hint, for an account can
//! write there what it likes.

use std::collections::{BTreeMap, BTreeSet};

use ferry_proto::account::EngineKind;
use ferry_proto::ids::{DatabaseHost, DatabaseName};

use super::draft::Part;
use super::settings::Named;
use super::{Board, DatabaseSeen, DatabaseUserSeen, DatabasesSeen};

/// What belongs to the servers.
const SYSTEM_DATABASES: &[&str] = &[
    "mysql",
    "sys",
    "information_schema",
    "performance_schema",
    "postgres",
    "template0",
    "template1",
];
const SYSTEM_USERS: &[&str] =
    &["root", "mysql", "mariadb.sys", "debian-sys-maint", "postgres", "PUBLIC", ""];

/// Whose a database is thought to be.
struct Claim<'a> {
    seen: &'a DatabaseSeen,
    part: Part,
    /// One: it is proposed there. More: each is told.
    owners: BTreeSet<usize>,
}

/// Proposes each database and each of its users to the account that it is of.
pub(super) fn propose(board: &mut Board<'_>, seen: &DatabasesSeen, hints: &[(usize, Named)]) {
    board.unassigned.extend(seen.doubts.iter().cloned());
    let ours: Vec<&DatabaseSeen> =
        seen.databases.iter().filter(|d| !SYSTEM_DATABASES.contains(&d.name.as_str())).collect();
    let mut claims: Vec<Claim<'_>> = Vec::new();
    for database in ours {
        let claim = claim(board, database, &seen.users, hints);
        if claim.owners.is_empty() {
            let who = with_rights(database, &seen.users).map(label).collect::<Vec<_>>().join(", ");
            let who = if who.is_empty() { "nobody".to_owned() } else { who };
            board.unassigned.push(format!(
                "{} database {}: whose it is cannot be told; {who} has rights on it",
                database.engine, database.name
            ));
        }
        claims.push(claim);
    }
    let users = users(board, &claims, &seen.users, hints);
    usable(&mut claims, &users);
    for claim in claims {
        for owner in &claim.owners {
            let part = written(&claim);
            board.draft(*owner).databases.push(part);
        }
    }
    for (owner, _, _, part) in users {
        board.draft(owner).databases.push(part);
    }
    elsewhere(board, seen, hints);
}

fn label(user: &DatabaseUserSeen) -> String {
    let host = user.host.as_ref().map_or(String::new(), |h| format!("@{h}"));
    format!("{}{host}", user.name)
}

/// The users, not the server's own, that have rights on a database or own it.
fn with_rights<'a>(
    database: &'a DatabaseSeen,
    users: &'a [DatabaseUserSeen],
) -> impl Iterator<Item = &'a DatabaseUserSeen> {
    users.iter().filter(move |user| {
        user.engine == database.engine
            && !SYSTEM_USERS.contains(&user.name.as_str())
            && (user.databases.contains(&database.name)
                || database.owner.as_deref() == Some(user.name.as_str()))
    })
}

fn claim<'a>(
    board: &Board<'_>,
    seen: &'a DatabaseSeen,
    users: &[DatabaseUserSeen],
    hints: &[(usize, Named)],
) -> Claim<'a> {
    let mut part = Part::default();
    // By the server: users with rights whose name is an account's, or begins with it.
    let mut by_server: BTreeMap<usize, bool> = BTreeMap::new();
    for user in with_rights(seen, users) {
        let owns = seen.owner.as_deref() == Some(user.name.as_str());
        let how = if owns { "owns it" } else { "has rights on it" };
        part.evidence.push(format!("{} user {} {how}", seen.engine, label(user)));
        if let Some((person, exact)) = board.people.by_name(&user.name) {
            *by_server.entry(person).or_default() |= exact;
        }
    }
    if by_server.is_empty()
        && let Some((person, _)) = board.people.by_name(&seen.name)
    {
        by_server.insert(person, false);
    }
    let mut by_home: BTreeSet<usize> = BTreeSet::new();
    for (person, named) in hints.iter().filter(|(_, named)| names(named, seen)) {
        let file = board.people.get(*person).home.join(&named.file);
        part.evidence.push(format!("{} names it", file.display()));
        by_home.insert(*person);
    }
    let owners: BTreeSet<usize> = by_server.keys().chain(&by_home).copied().collect();
    if owners.len() > 1 {
        let all: Vec<&str> = owners.iter().map(|o| board.people.get(*o).name.as_str()).collect();
        part.doubt(format!(
            "more than one account seems to have {} database {} ({}): uncomment it in one of them",
            seen.engine,
            seen.name,
            all.join(", ")
        ));
    } else if let Some(owner) = owners.first() {
        let name = &board.people.get(*owner).name;
        match by_server.get(owner) {
            Some(true) => {}
            Some(false) if by_home.contains(owner) => {}
            Some(false) => part.review(format!("only its name says that it is {name}'s")),
            None => part.review(format!(
                "only a file that {name} can write says that it is {name}'s: be sure of it"
            )),
        }
    }
    if seen.name.parse::<DatabaseName>().is_err() {
        part.doubt(format!("{} cannot be moved: rename the database", seen.name));
    }
    Claim { seen, part, owners }
}

fn names(named: &Named, seen: &DatabaseSeen) -> bool {
    named.is_local()
        && named.database == seen.name
        && named.engine.is_none_or(|engine| engine == seen.engine)
}

/// The users of the accounts' databases: owner, engine, whether proposed, and the part.
fn users(
    board: &mut Board<'_>,
    claims: &[Claim<'_>],
    users: &[DatabaseUserSeen],
    hints: &[(usize, Named)],
) -> Vec<(usize, EngineKind, bool, Part)> {
    let mut found = Vec::new();
    for user in users.iter().filter(|u| !SYSTEM_USERS.contains(&u.name.as_str())) {
        let of: Vec<&Claim<'_>> = claims
            .iter()
            .filter(|c| c.seen.engine == user.engine)
            .filter(|c| {
                user.databases.contains(&c.seen.name)
                    || c.seen.owner.as_deref() == Some(user.name.as_str())
            })
            .collect();
        let mut owners: BTreeSet<usize> =
            of.iter().flat_map(|c| c.owners.iter().copied()).collect();
        let by_name = board.people.by_name(&user.name).map(|(person, _)| person);
        if of.is_empty() {
            owners.extend(by_name);
        }
        let hinted = |owner: &usize| {
            hints.iter().any(|(p, n)| p == owner && n.user.as_deref() == Some(user.name.as_str()))
        };
        if owners.is_empty() {
            board.unassigned.push(format!(
                "{} user {}: {}",
                user.engine,
                label(user),
                rights(user, &of)
            ));
        }
        let part = judged(user, &of, owners.len());
        for owner in owners {
            let mut own = Part {
                evidence: part.evidence.clone(),
                review: part.review.clone(),
                ..Part::default()
            };
            own.doubted = part.doubted;
            if hinted(&owner) {
                own.evidence.push("files in the home name it".to_owned());
            }
            entry(&mut own, user);
            found.push((owner, user.engine, !own.doubted, own));
        }
    }
    found
}

/// What a user can do, and what speaks against giving it to one account; so many could have it.
fn judged(user: &DatabaseUserSeen, of: &[&Claim<'_>], owners: usize) -> Part {
    let mut part = Part::new(rights(user, of));
    if of.is_empty() {
        part.review(format!("{} user {} has rights on no database", user.engine, label(user)));
    }
    if owners > 1 {
        part.doubt(format!(
            "{} user {} can use databases of several accounts: give each its own",
            user.engine,
            label(user)
        ));
    } else if of.iter().any(|c| c.owners.is_empty()) {
        part.review("it can also use databases that are no account's".to_owned());
    }
    if user.administrates {
        part.review(
            "it has privileges on the whole server, which do not move: give it rights on the \
             account's databases instead"
                .to_owned(),
        );
    }
    part
}

fn rights(user: &DatabaseUserSeen, of: &[&Claim<'_>]) -> String {
    if of.is_empty() {
        return "has rights on no account's database".to_owned();
    }
    let names: Vec<&str> = of.iter().map(|c| c.seen.name.as_str()).collect();
    format!("{} user {} has rights on {}", user.engine, label(user), names.join(", "))
}

fn entry(part: &mut Part, user: &DatabaseUserSeen) {
    let name = user.name.parse::<DatabaseName>();
    let host = user.host.as_deref().map(str::parse::<DatabaseHost>).transpose();
    if name.is_err() || !matches!(host, Ok(ref h) if h.is_some() || user.host.is_none()) {
        part.doubt(format!("{} user {} cannot be moved: rename it", user.engine, label(user)));
    }
    part.lines.push("[[database_users]]".to_owned());
    part.set("engine", word(user.engine));
    part.set("name", user.name.clone());
    if let Some(host) = &user.host {
        part.set("host", host.clone());
    }
}

/// A database that no proposed user can use could not be loaded.
fn usable(claims: &mut [Claim<'_>], users: &[(usize, EngineKind, bool, Part)]) {
    for claim in claims {
        let has_user = |owner: &usize| {
            users.iter().any(|(o, engine, proposed, _)| {
                o == owner && *engine == claim.seen.engine && *proposed
            })
        };
        if !claim.owners.is_empty() && !claim.owners.iter().all(has_user) {
            claim.part.doubt(format!(
                "no {} user is the account's alone: it cannot be moved without one",
                claim.seen.engine
            ));
        }
    }
}

fn written(claim: &Claim<'_>) -> Part {
    let mut part = Part {
        evidence: claim.part.evidence.clone(),
        review: claim.part.review.clone(),
        lines: vec!["[[databases]]".to_owned()],
        doubted: claim.part.doubted,
    };
    part.set("engine", word(claim.seen.engine));
    part.set("name", claim.seen.name.clone());
    part
}

fn word(engine: EngineKind) -> &'static str {
    match engine {
        EngineKind::Mariadb => "mariadb",
        EngineKind::Postgresql => "postgresql",
    }
}

/// Databases that homes name and this server does not have.
fn elsewhere(board: &mut Board<'_>, seen: &DatabasesSeen, hints: &[(usize, Named)]) {
    for (person, named) in hints {
        let doubt = if !named.is_local() {
            let host = named.host.as_deref().unwrap_or_default();
            format!("{} uses database {} on {host}", named.file.display(), named.database)
        } else if !seen.databases.iter().any(|d| names(named, d)) {
            format!(
                "{} names database {}, which is not seen here",
                named.file.display(),
                named.database
            )
        } else {
            continue;
        };
        board.draft(*person).head.review(doubt);
    }
}
