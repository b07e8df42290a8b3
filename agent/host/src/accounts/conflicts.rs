//! Accounts that claim the same thing. Neither of two such accounts can be moved safely, so both
//! are left out, with a problem each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ferry_proto::account::Definition;

use super::{Problem, Sourced};

/// The definitions that clash with no other, and the problems of those that do.
pub(super) fn sort_out(all: Vec<Sourced>) -> (Vec<Definition>, Vec<Problem>) {
    let mut clashes = Clashes::default();
    claims(&all, &mut clashes);
    homes(&all, &mut clashes);
    let mut good = Vec::new();
    let mut problems = Vec::new();
    for (index, sourced) in all.iter().enumerate() {
        if !clashes.0.iter().any(|(a, b, _)| *a == index || *b == index) {
            good.push(sourced.definition.clone());
        }
    }
    for (a, b, what) in clashes.0 {
        for (one, other) in [(a, b), (b, a)] {
            let (one, other) = (&all[one], &all[other]);
            let (here, there) = (one.file.display(), other.file.display());
            let message = format!(
                "account {} in {here} and account {} in {there} both claim {what}: neither of the two \
                 can be moved",
                one.definition.name, other.definition.name
            );
            let remedy = format!("let one of them claim it: correct {here} or {there}");
            problems.push(Problem::new(&one.file, message, remedy));
        }
    }
    (good, problems)
}

/// Pairs of accounts, and what both claim.
#[derive(Default)]
struct Clashes(BTreeSet<(usize, usize, String)>);

impl Clashes {
    fn add(&mut self, a: usize, b: usize, what: String) {
        self.0.insert((a.min(b), a.max(b), what));
    }
}

/// Things that are equal or not.
fn claims(all: &[Sourced], clashes: &mut Clashes) {
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    for (index, sourced) in all.iter().enumerate() {
        let claims: BTreeSet<String> = claims_of(&sourced.definition).collect();
        for claim in claims {
            match owners.get(&claim) {
                Some(owner) => clashes.add(*owner, index, claim),
                None => {
                    owners.insert(claim, index);
                }
            }
        }
    }
}

fn claims_of(definition: &Definition) -> impl Iterator<Item = String> {
    let databases = definition.databases.iter();
    let users = definition.database_users.iter();
    let config = definition.sites.iter().flat_map(|s| &s.config);
    [format!("the name {}", definition.name), format!("the user {}", definition.user)]
        .into_iter()
        .chain(definition.domains().map(|d| format!("the site of {d}")))
        .chain(databases.map(|d| format!("the {} database {}", d.engine, d.name)))
        .chain(users.map(|u| {
            let host = u.host.as_ref().map_or(String::new(), |h| format!("@{h}"));
            format!("the {} user {}{host}", u.engine, u.name)
        }))
        .chain(definition.mail.iter().map(|m| format!("the mail of {}", m.domain)))
        .chain(config.map(|c| format!("the configuration {}", c.display())))
}

/// A home in another's home would move twice. Sorted by components, a home stands directly before
/// what lies in it or before others that do; so looking back at the open homes is enough.
fn homes(all: &[Sourced], clashes: &mut Clashes) {
    let mut order: Vec<(&Path, usize)> =
        all.iter().enumerate().map(|(i, s)| (s.definition.home.as_path(), i)).collect();
    order.sort_by(|a, b| a.0.components().cmp(b.0.components()));
    let mut open: Vec<(&Path, usize)> = Vec::new();
    for (home, index) in order {
        open.retain(|(outer, _)| home.starts_with(outer));
        for (_, outer) in &open {
            clashes.add(*outer, index, format!("the home {}", home.display()));
        }
        open.push((home, index));
    }
}
