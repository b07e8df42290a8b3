//! Grants of account users on account databases: reading them as the server keeps them, and giving
//! exactly them again. Global privileges and grants on what belongs to others are never carried.

use std::collections::BTreeSet;

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};

use super::record::foreign;
use super::session::{Session, grant_database, ident, text, user};
use crate::model::{Finding, Level, Spec};

/// Privileges that only newer releases know; they matter little and are left out of comparisons.
pub(super) const NEW_PRIVILEGES: &[&str] = &["SHOW CREATE ROUTINE"];

/// Every privilege that can be given on a database, table, column or routine.
const PRIVILEGES: &[&str] = &[
    "SELECT",
    "INSERT",
    "UPDATE",
    "DELETE",
    "CREATE",
    "DROP",
    "REFERENCES",
    "INDEX",
    "ALTER",
    "CREATE TEMPORARY TABLES",
    "LOCK TABLES",
    "EXECUTE",
    "CREATE VIEW",
    "SHOW VIEW",
    "CREATE ROUTINE",
    "ALTER ROUTINE",
    "EVENT",
    "TRIGGER",
    "DELETE HISTORY",
    "SHOW CREATE ROUTINE",
];

/// What a grant is on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scope {
    Database,
    Table(String),
    Column { table: String, column: String },
    Procedure(String),
    Function(String),
    Package(String),
    PackageBody(String),
}

/// One grant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Grant {
    pub(crate) database: String,
    pub(crate) scope: Scope,
    pub(crate) privileges: BTreeSet<String>,
    pub(crate) grant_option: bool,
}

/// Refuses a grant that reaches outside the account or is not made of known words.
pub(super) fn check(spec: &Spec, grant: &Grant) -> Result<(), Fault> {
    if !spec.owns(&grant.database) {
        return Err(foreign(spec, &format!("a grant on database {:?}", grant.database)));
    }
    match grant.privileges.iter().find(|p| !PRIVILEGES.contains(&p.as_str())) {
        Some(p) => Err(foreign(spec, &format!("the privilege {p:?}"))),
        None => Ok(()),
    }
}

/// A user's grants on the account's databases, and what else it may do, as findings.
pub(super) async fn read(
    session: &mut Session,
    spec: &Spec,
    name: &str,
    host: &str,
) -> Result<(Vec<Grant>, Vec<Finding>), Fault> {
    let what = "the grants of a database user cannot be read";
    let grantee = text(&format!("'{name}'@'{host}'"));
    let mut collector = Collector {
        spec,
        label: format!("{name}@{host}"),
        grants: Vec::new(),
        findings: Vec::new(),
    };
    let sql = format!(
        "SELECT TABLE_SCHEMA, PRIVILEGE_TYPE, IS_GRANTABLE FROM information_schema.SCHEMA_PRIVILEGES \
         WHERE GRANTEE = {grantee} ORDER BY TABLE_SCHEMA"
    );
    let rows = session.rows(what, &sql).await?;
    let patterns: BTreeSet<String> = rows.iter().map(|r| r.text(0)).collect();
    for row in rows {
        collector.on_pattern(&patterns, &row.text(0), &row.text(1), row.text(2) == "YES");
    }
    let sql = format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME, NULL, PRIVILEGE_TYPE, IS_GRANTABLE \
         FROM information_schema.TABLE_PRIVILEGES WHERE GRANTEE = {grantee} UNION ALL \
         SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME, PRIVILEGE_TYPE, IS_GRANTABLE \
         FROM information_schema.COLUMN_PRIVILEGES WHERE GRANTEE = {grantee}"
    );
    for row in session.rows(what, &sql).await? {
        let scope = match row.opt(2) {
            Some(column) => Scope::Column { table: row.text(1), column },
            None => Scope::Table(row.text(1)),
        };
        collector.on_object(&row.text(0), scope, &row.text(3), row.text(4) == "YES");
    }
    let sql = format!(
        "SELECT Db, Routine_name, Routine_type, Proc_priv FROM mysql.procs_priv \
         WHERE User = {} AND Host = {}",
        text(name),
        text(host)
    );
    for row in session.rows(what, &sql).await? {
        let name = row.text(1);
        let scope = match row.text(2).as_str() {
            "FUNCTION" => Scope::Function(name),
            "PACKAGE" => Scope::Package(name),
            "PACKAGE BODY" => Scope::PackageBody(name),
            _ => Scope::Procedure(name),
        };
        let given = row.text(3);
        let grantable = given.split(',').any(|p| p == "Grant");
        for privilege in given.split(',').filter(|p| *p != "Grant") {
            let privilege = privilege.to_ascii_uppercase();
            collector.on_object(&row.text(0), scope.clone(), &privilege, grantable);
        }
        if given == "Grant" {
            collector.on_object(&row.text(0), scope, "USAGE", true);
        }
    }
    global(session, &mut collector, &grantee, name, host).await?;
    collector.grants.sort();
    Ok((collector.grants, collector.findings))
}

/// What is never carried: privileges on the whole server, and roles.
async fn global(
    session: &mut Session,
    collector: &mut Collector<'_>,
    grantee: &str,
    name: &str,
    host: &str,
) -> Result<(), Fault> {
    let what = "the privileges of a database user cannot be read";
    let sql = format!(
        "SELECT GROUP_CONCAT(PRIVILEGE_TYPE ORDER BY PRIVILEGE_TYPE SEPARATOR ', ') \
         FROM information_schema.USER_PRIVILEGES \
         WHERE GRANTEE = {grantee} AND PRIVILEGE_TYPE <> 'USAGE'"
    );
    let privileges = session.value(what, &sql).await?;
    if !privileges.is_empty() {
        collector.finding(
            format!("has privileges on the whole server ({privileges}); they are not carried"),
            "give the user privileges on the account's databases instead, if the site needs them",
        );
    }
    let sql = format!(
        "SELECT GROUP_CONCAT(Role ORDER BY Role SEPARATOR ', ') FROM mysql.roles_mapping \
         WHERE User = {} AND Host = {}",
        text(name),
        text(host)
    );
    let roles = session.value(what, &sql).await?;
    if !roles.is_empty() {
        collector.finding(
            format!("has the roles {roles}; they are not carried"),
            "grant the roles' privileges to the user itself, if the site needs them",
        );
    }
    Ok(())
}

struct Collector<'a> {
    spec: &'a Spec,
    label: String,
    grants: Vec<Grant>,
    findings: Vec<Finding>,
}

impl Collector<'_> {
    fn finding(&mut self, message: String, remedy: &str) {
        let finding = Finding::new(
            Level::Warning,
            format!("MariaDB user {}", self.label),
            format!("MariaDB user {} {message}", self.label),
            remedy,
        );
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// A grant on a database is kept as a pattern. The server uses one pattern per database, the
    /// most specific.
    fn on_pattern(
        &mut self,
        patterns: &BTreeSet<String>,
        pattern: &str,
        privilege: &str,
        grantable: bool,
    ) {
        let spec = self.spec;
        let mut matched = false;
        for database in spec.databases.iter().map(|d| d.as_str()) {
            let literal = |p: &str| p == database || unescape(p) == database;
            let better = patterns.iter().any(|p| literal(p));
            if literal(pattern) || (matches(pattern, database) && !better) {
                matched = true;
                self.add(database, Scope::Database, privilege, grantable);
            }
        }
        if !matched {
            self.finding(
                format!("has a grant on {pattern:?}, outside the account; it is not carried"),
                "revoke the grant, or add the database to the account's definition",
            );
        } else if has_wildcard(pattern) && !spec.owns(pattern) {
            self.finding(
                format!("has a grant on the pattern {pattern:?}; it is carried as grants on the account's databases"),
                "",
            );
        }
    }

    fn on_object(&mut self, database: &str, scope: Scope, privilege: &str, grantable: bool) {
        if self.spec.owns(database) {
            self.add(database, scope, privilege, grantable);
        } else {
            self.finding(
                format!("has a grant on something in database {database:?}, outside the account; it is not carried"),
                "revoke the grant, or add the database to the account's definition",
            );
        }
    }

    fn add(&mut self, database: &str, scope: Scope, privilege: &str, grantable: bool) {
        let at = self.grants.iter().position(|g| g.database == database && g.scope == scope);
        let at = at.unwrap_or_else(|| {
            self.grants.push(Grant {
                database: database.to_owned(),
                scope,
                privileges: BTreeSet::new(),
                grant_option: false,
            });
            self.grants.len() - 1
        });
        let grant = &mut self.grants[at];
        grant.grant_option |= grantable;
        match privilege {
            "USAGE" => {}
            // Its name before 10.5.2.
            "DELETE VERSIONING ROWS" => {
                grant.privileges.insert("DELETE HISTORY".to_owned());
            }
            _ => {
                grant.privileges.insert(privilege.to_owned());
            }
        }
    }
}

fn has_wildcard(pattern: &str) -> bool {
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '%' | '_' => return true,
            _ => {}
        }
    }
    false
}

fn unescape(pattern: &str) -> String {
    if has_wildcard(pattern) {
        return String::new();
    }
    let mut out = String::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    out
}

/// Whether a grant's pattern covers a database. Patterns are at most 64 characters long, so the
/// recursion is bounded.
fn matches(pattern: &str, database: &str) -> bool {
    fn go(p: &[char], d: &[char]) -> bool {
        match (p.first(), d.first()) {
            (None, None) => true,
            (Some('%'), _) => (0..=d.len()).any(|i| go(&p[1..], &d[i..])),
            (Some('_'), Some(_)) => go(&p[1..], &d[1..]),
            (Some('\\'), Some(c)) if p.get(1) == Some(c) => go(&p[2..], &d[1..]),
            (Some(a), Some(b)) if a == b => go(&p[1..], &d[1..]),
            _ => false,
        }
    }
    let mut p: Vec<char> = pattern.chars().collect();
    // Runs of % would make the search exponential.
    p.dedup_by(|a, b| *a == '%' && *b == '%');
    go(&p, &database.chars().collect::<Vec<_>>())
}

/// The statement that gives `grant`, leaving out privileges that this release does not know.
/// None: nothing is left.
pub(super) fn statement(grant: &Grant, name: &str, host: &str, server: u32) -> Option<String> {
    let known = |p: &&String| server >= 110_300 || !NEW_PRIVILEGES.contains(&p.as_str());
    let mut privileges: Vec<String> = grant.privileges.iter().filter(known).cloned().collect();
    if privileges.is_empty() {
        if !grant.grant_option {
            return None;
        }
        privileges.push("USAGE".to_owned());
    }
    let within = |object: &str| format!("{}.{}", ident(&grant.database), ident(object));
    let on = match &grant.scope {
        Scope::Database => format!("{}.*", grant_database(&grant.database)),
        Scope::Table(table) => within(table),
        Scope::Column { table, column } => {
            privileges = privileges.iter().map(|p| format!("{p} ({})", ident(column))).collect();
            within(table)
        }
        Scope::Procedure(name) => format!("PROCEDURE {}", within(name)),
        Scope::Function(name) => format!("FUNCTION {}", within(name)),
        Scope::Package(name) => format!("PACKAGE {}", within(name)),
        Scope::PackageBody(name) => format!("PACKAGE BODY {}", within(name)),
    };
    let option = if grant.grant_option { " WITH GRANT OPTION" } else { "" };
    Some(format!("GRANT {} ON {on} TO {}{option}", privileges.join(", "), user(name, host)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_the_server_does() {
        for (pattern, database, expected) in [
            ("shop_main", "shop_main", true),
            ("shop\\_main", "shop_main", true),
            ("shop\\_main", "shopxmain", false),
            ("shop_main", "shopxmain", true),
            ("shop\\_%", "shop_a", true),
            ("shop\\_%", "shopa", false),
            ("%", "anything", true),
            ("%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, database), expected, "{pattern} {database}");
        }
        assert!(has_wildcard("a_") && !has_wildcard("a\\_"));
        assert_eq!(unescape("a\\_b"), "a_b");
    }

    #[test]
    fn a_grant_is_written_exactly() {
        let mut grant = Grant {
            database: "a_b".to_owned(),
            scope: Scope::Database,
            privileges: ["SELECT", "SHOW CREATE ROUTINE"].map(str::to_owned).into(),
            grant_option: false,
        };
        assert_eq!(
            statement(&grant, "u", "%", 101_100).as_deref(),
            Some("GRANT SELECT ON `a\\_b`.* TO `u`@`%`")
        );
        grant.scope = Scope::Column { table: "t".to_owned(), column: "c`".to_owned() };
        grant.privileges = ["INSERT", "SELECT"].map(str::to_owned).into();
        grant.grant_option = true;
        assert_eq!(
            statement(&grant, "u", "%", 101_100).as_deref(),
            Some("GRANT INSERT (`c```), SELECT (`c```) ON `a_b`.`t` TO `u`@`%` WITH GRANT OPTION")
        );
        grant.privileges.clear();
        grant.grant_option = false;
        assert_eq!(statement(&grant, "u", "%", 101_100), None);
    }
}
