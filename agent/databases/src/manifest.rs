//! What a database holds, as plain facts about named objects, and the comparison of both ends.
//! It knows no engine: an engine decides which facts it states and how it makes them independent
//! of the server's version.

use std::collections::BTreeMap;
use std::fmt;

use ferry_proto::account::EngineKind;
use serde::{Deserialize, Serialize};

/// Facts whose name begins so are texts that a server writes anew from what it has stored, in words
/// that change from release to release (a query, the options of a table, the version of an
/// extension): they are compared only between servers of one release. Between others a different
/// query of a view, a rule or a routine in standard SQL goes unseen, though not different columns, rows
/// or arguments; [`not_compared`] names what was left out.
pub(crate) const SAME_RELEASE: char = '~';

/// Facts whose name begins so are expressions (a default, a check, an index, a policy) that the
/// releases which an engine knows write alike: they are compared between those, and between servers
/// of one release.
pub(crate) const EXPRESSION: char = '^';

/// At most this many differences are listed.
const MAX_DIFFERENCES: usize = 200;

/// Texts longer than this are kept as their digest.
const MAX_TEXT: usize = 300;

/// A text, or its digest if it is long.
pub(crate) fn digest(text: &str) -> String {
    if text.len() <= MAX_TEXT {
        return text.to_owned();
    }
    format!(
        "{} characters, digest {}",
        text.chars().count(),
        blake3::hash(text.as_bytes()).to_hex()
    )
}

/// The facts of one object: `rows`, `checksum`, `column 1`, ...
pub(crate) type ObjectFacts = BTreeMap<String, String>;

/// What a database holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseManifest {
    /// The engine.
    pub engine: EngineKind,
    /// The server's release: texts written by servers of one release are comparable literally.
    pub release: String,
    /// Whether this is a release that writes expressions as other such releases do.
    #[serde(default)]
    pub alike: bool,
    /// The database.
    pub database: String,
    /// Facts by object; an object is named by its kind and name, such as `table orders`.
    pub objects: BTreeMap<String, BTreeMap<String, String>>,
}

impl DatabaseManifest {
    pub(crate) fn new(engine: EngineKind, release: String, database: String) -> Self {
        Self { engine, release, alike: false, database, objects: BTreeMap::new() }
    }

    pub(crate) fn object(&mut self, kind: &str, name: &str) -> &mut ObjectFacts {
        self.objects.entry(format!("{kind} {name}")).or_default()
    }

    /// The number of rows in all tables.
    pub fn rows(&self) -> u64 {
        let rows = self.objects.values().filter_map(|facts| facts.get("rows"));
        rows.filter_map(|n| n.parse::<u64>().ok()).sum()
    }

    /// The number of objects of a kind such as `table`.
    pub fn count(&self, kind: &str) -> usize {
        let prefix = format!("{kind} ");
        self.objects.keys().filter(|name| name.starts_with(&prefix)).count()
    }
}

/// One thing that is not the same on both ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Which object, such as `table orders`.
    pub object: String,
    /// Which fact of it; empty if the object is on one end only.
    pub fact: String,
    /// What the first manifest says; none: the object or fact is not there.
    pub first: Option<String>,
    /// What the second one says.
    pub second: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| match value {
            Some(text) => text.chars().take(120).collect::<String>(),
            None => "(not there)".to_owned(),
        };
        write!(f, "{}", self.object)?;
        if !self.fact.is_empty() {
            write!(f, ", {}", self.fact.trim_start_matches([SAME_RELEASE, EXPRESSION]))?;
        }
        write!(f, ": {} against {}", shown(&self.first), shown(&self.second))
    }
}

/// Which facts of two servers can be compared.
#[derive(Clone, Copy)]
struct Scope {
    texts: bool,
    expressions: bool,
}

impl Scope {
    fn of(a: &DatabaseManifest, b: &DatabaseManifest) -> Self {
        let texts = a.release == b.release;
        Self { texts, expressions: texts || (a.alike && b.alike) }
    }

    fn covers(self, fact: &str) -> bool {
        match fact.chars().next() {
            Some(SAME_RELEASE) => self.texts,
            Some(EXPRESSION) => self.expressions,
            _ => true,
        }
    }
}

/// What [`compare`] leaves out because both servers' releases write it differently, such as
/// `view orders_of_today, definition`.
pub fn not_compared(a: &DatabaseManifest, b: &DatabaseManifest) -> Vec<String> {
    let scope = Scope::of(a, b);
    let facts = a.objects.iter().flat_map(|(name, facts)| facts.keys().map(move |f| (name, f)));
    facts
        .filter(|(_, fact)| !scope.covers(fact))
        .map(|(name, fact)| {
            format!("{name}, {}", fact.trim_start_matches([SAME_RELEASE, EXPRESSION]))
        })
        .collect()
}

/// What is not the same in `a` and `b`; empty: they are equal. At most 200 are listed.
pub fn compare(a: &DatabaseManifest, b: &DatabaseManifest) -> Vec<Difference> {
    let mut found = Vec::new();
    if a.engine != b.engine || a.database != b.database {
        found.push(Difference {
            object: "database".to_owned(),
            fact: "name".to_owned(),
            first: Some(format!("{} {}", a.engine, a.database)),
            second: Some(format!("{} {}", b.engine, b.database)),
        });
        return found;
    }
    let scope = Scope::of(a, b);
    let mut names: Vec<&String> = a.objects.keys().chain(b.objects.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        match (a.objects.get(name), b.objects.get(name)) {
            (Some(first), Some(second)) => {
                compare_facts(name, first, second, scope, &mut found);
            }
            (first, second) => found.push(Difference {
                object: name.clone(),
                fact: String::new(),
                first: first.map(|_| "there".to_owned()),
                second: second.map(|_| "there".to_owned()),
            }),
        }
        if found.len() >= MAX_DIFFERENCES {
            found.truncate(MAX_DIFFERENCES);
            break;
        }
    }
    found
}

fn compare_facts(
    object: &str,
    first: &ObjectFacts,
    second: &ObjectFacts,
    scope: Scope,
    found: &mut Vec<Difference>,
) {
    let mut facts: Vec<&String> = first.keys().chain(second.keys()).collect();
    facts.sort();
    facts.dedup();
    for fact in facts {
        if !scope.covers(fact) {
            continue;
        }
        let (one, other) = (first.get(fact), second.get(fact));
        if one != other {
            found.push(Difference {
                object: object.to_owned(),
                fact: fact.clone(),
                first: one.cloned(),
                second: other.cloned(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(release: &str) -> DatabaseManifest {
        let mut m =
            DatabaseManifest::new(EngineKind::Mariadb, release.to_owned(), "shop".to_owned());
        let table = m.object("table", "orders");
        table.insert("rows".to_owned(), "2".to_owned());
        table.insert("~options".to_owned(), "a > 0".to_owned());
        table.insert("^check".to_owned(), "a > 0".to_owned());
        m
    }

    #[test]
    fn equal_manifests_have_no_difference() {
        assert_eq!(compare(&manifest("10.11"), &manifest("10.11")), vec![]);
        assert_eq!(manifest("10.11").rows(), 2);
        assert_eq!(manifest("10.11").count("table"), 1);
    }

    #[test]
    fn a_changed_a_missing_and_an_additional_thing_are_found() {
        let (a, mut b) = (manifest("10.11"), manifest("10.11"));
        b.object("table", "orders").insert("rows".to_owned(), "3".to_owned());
        b.object("view", "v");
        let found = compare(&a, &b);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].to_string(), "table orders, rows: 2 against 3");
        assert_eq!(found[1].to_string(), "view v: (not there) against there");
        assert_eq!(compare(&b, &a).len(), 2);
    }

    #[test]
    fn texts_of_different_releases_are_not_compared() {
        let mut b = manifest("10.11");
        b.object("table", "orders").insert("~options".to_owned(), "(a > 0)".to_owned());
        b.object("table", "orders").insert("^check".to_owned(), "(a > 0)".to_owned());
        assert_eq!(compare(&manifest("10.11"), &b).len(), 2);
        assert_eq!(not_compared(&manifest("10.11"), &b), Vec::<String>::new());
        b.release = "10.5".to_owned();
        assert_eq!(compare(&manifest("10.11"), &b).len(), 0);
        let left_out = ["table orders, check", "table orders, options"];
        assert_eq!(not_compared(&manifest("10.11"), &b), left_out);
    }

    #[test]
    fn expressions_of_releases_that_write_them_alike_are_compared() {
        let (mut a, mut b) = (manifest("10.11"), manifest("11.8"));
        b.object("table", "orders").insert("^check".to_owned(), "a > 1".to_owned());
        (a.alike, b.alike) = (true, true);
        let found = compare(&a, &b);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].to_string(), "table orders, check: a > 0 against a > 1");
        assert_eq!(not_compared(&a, &b), ["table orders, options"]);
        a.alike = false;
        assert_eq!(compare(&a, &b).len(), 0, "one that is not known to");
    }

    #[test]
    fn different_databases_are_never_equal() {
        let mut b = manifest("10.11");
        b.database = "other".to_owned();
        assert_eq!(compare(&manifest("10.11"), &b).len(), 1);
    }
}
