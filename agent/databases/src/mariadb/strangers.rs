//! Who outside the account could write to its databases: the fence locks the account's users, and
//! would not hold these.

use std::collections::{BTreeMap, BTreeSet};

use ferry_proto::Fault;

use super::inspect::{database_list, is_ours, user_condition};
use super::session::{Session, text, text_list};
use super::temporary::Purpose;
use super::users;
use crate::model::{Finding, Level, Spec};

const WHAT: &str = "rights of others on the account's databases cannot be read";

/// The privileges of `mysql.db` that change a database. Not TRIGGER and EVENT: whoever makes backups
/// has them to read definitions, and neither writes a row by itself.
const WRITES: &[&str] = &[
    "Insert",
    "Update",
    "Delete",
    "Create",
    "Drop",
    "Index",
    "Alter",
    "Create_view",
    "Create_routine",
    "Alter_routine",
    // A routine runs with the rights of its definer, who may be the account's.
    "Execute",
    "Delete_history",
];
/// The same among the global privileges, as bits of `mysql.global_priv`; they are kept on disk so and
/// never change.
const WRITE_BITS: u64 = 1 << 1
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 12
    | 1 << 13
    | 1 << 18
    | 1 << 21
    | 1 << 23
    | 1 << 24
    | 1 << 29;
const SUPER: u64 = 1 << 15;
/// Administrators that every server has, local ones only: nobody need be told of them.
const STOCK: &[&str] = &["root", "mysql", "mariadb.sys", "debian-sys-maint"];

pub(super) async fn findings(session: &mut Session, spec: &Spec) -> Result<Vec<Finding>, Fault> {
    let everybody = Everybody::read(session, spec).await?;
    let mut findings = everybody.writers(&rights(session, spec).await?);
    findings.extend(everybody.global_writers());
    findings.extend(everybody.administrators());
    findings.extend(namesakes(session, spec).await?);
    findings.extend(elsewhere(session, spec).await?);
    Ok(findings)
}

/// A user or role.
struct Person {
    name: String,
    host: String,
    role: bool,
    locked: bool,
    access: u64,
    ours: bool,
}

impl Person {
    fn label(&self) -> String {
        match self.name.as_str() {
            "" => format!("the anonymous user ''@{}", self.host),
            name => format!("{name}@{}", self.host),
        }
    }

    fn is_administrator(&self) -> bool {
        self.access & SUPER != 0 || self.is_stock()
    }

    fn is_stock(&self) -> bool {
        self.host == "localhost" && STOCK.contains(&self.name.as_str())
    }

    /// Whether it could log in and write while the account is fenced, if it had the rights.
    fn is_stranger(&self) -> bool {
        !self.role && !self.locked && !self.ours && !self.is_administrator()
    }
}

/// Who holds a right: user and host; roles have no host.
type Holder = (String, String);

/// What holders may do in the account's databases, and whether that is writing.
type Rights = BTreeMap<(Holder, String), bool>;

async fn rights(session: &mut Session, spec: &Spec) -> Result<Rights, Fault> {
    let list = database_list(spec);
    let any: Vec<String> = WRITES.iter().map(|p| format!("d.{p}_priv = 'Y'")).collect();
    // By name: at a target they are not there yet.
    let names = spec.databases.iter().map(|d| format!("SELECT {} AS name", text(d.as_str())));
    let names: Vec<String> = names.collect();
    if names.is_empty() {
        return Ok(Rights::new());
    }
    let sql = format!(
        "SELECT d.User, d.Host, s.name, {} FROM mysql.db d JOIN ({}) s ON s.name LIKE d.Db OR s.name = d.Db \
         UNION ALL SELECT User, Host, Db, CONCAT(Table_priv, ' ', Column_priv) \
         RLIKE 'Insert|Update|Delete|Create|Drop|Index|Alter' FROM mysql.tables_priv WHERE Db IN {list} \
         UNION ALL SELECT User, Host, Db, Proc_priv RLIKE 'Execute|Alter' FROM mysql.procs_priv WHERE Db IN {list}",
        any.join(" OR "),
        names.join(" UNION ALL ")
    );
    let mut rights = Rights::new();
    for row in session.rows(WHAT, &sql).await? {
        let key = ((row.text(0), row.text(1)), row.text(2));
        *rights.entry(key).or_default() |= row.number(3) != 0;
    }
    Ok(rights)
}

/// Every user and role of the server, and who is a member of which role.
struct Everybody {
    people: Vec<Person>,
    members: BTreeMap<String, Vec<Holder>>,
}

impl Everybody {
    async fn read(session: &mut Session, spec: &Spec) -> Result<Self, Fault> {
        let sql = "SELECT User, Host, JSON_VALUE(Priv, '$.is_role') IS NOT NULL, \
                   COALESCE(JSON_VALUE(Priv, '$.account_locked'), '') IN ('true', '1'), \
                   COALESCE(JSON_VALUE(Priv, '$.access'), 0) FROM mysql.global_priv ORDER BY User, Host";
        let temporary = Purpose::ALL.map(|purpose| purpose.user(spec));
        let rows = session.rows(WHAT, sql).await?;
        let person = |r: &super::session::Row| {
            let (name, host) = (r.text(0), r.text(1));
            let ours = is_ours(spec, &name, &host) || temporary.contains(&name);
            let (role, locked) = (r.number(2) != 0, r.number(3) != 0);
            Person { name, host, role, locked, access: r.number(4), ours }
        };
        let people = rows.iter().map(person).collect();
        let mut members: BTreeMap<String, Vec<Holder>> = BTreeMap::new();
        for row in session.rows(WHAT, "SELECT Role, User, Host FROM mysql.roles_mapping").await? {
            members.entry(row.text(0)).or_default().push((row.text(1), row.text(2)));
        }
        Ok(Self { people, members })
    }

    fn find(&self, holder: &Holder) -> Option<&Person> {
        self.people.iter().find(|p| p.name == holder.0 && p.host == holder.1)
    }

    /// Who can use what a holder was given, apart from the account and administrators, in words.
    fn users_of(&self, holder: &Holder) -> BTreeSet<String> {
        if holder.0 == "PUBLIC" && holder.1.is_empty() {
            return BTreeSet::from(["everybody on the server (PUBLIC)".to_owned()]);
        }
        let mut found = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut waiting = vec![holder.clone()];
        while let Some(holder) = waiting.pop() {
            let Some(person) = self.find(&holder) else { continue };
            if person.is_stranger() {
                found.insert(person.label());
            }
            if person.role && seen.insert(holder.0.clone()) {
                waiting.extend(self.members.get(&holder.0).into_iter().flatten().cloned());
            }
        }
        found
    }

    fn writers(&self, rights: &Rights) -> Vec<Finding> {
        let mut all: BTreeMap<(String, &str), bool> = BTreeMap::new();
        for ((holder, database), writes) in rights {
            for who in self.users_of(holder) {
                *all.entry((who, database)).or_default() |= writes;
            }
        }
        let finding = |((who, database), writes): ((String, &str), bool)| {
            let subject = format!("database {database}");
            let remedy = "add the user to the account's definition, or revoke the rights";
            let (level, rest) = if writes {
                (Level::Blocker, "a fence would not stop such writes")
            } else {
                (Level::Warning, "they are for reading, and are not carried")
            };
            let message =
                format!("{who} has rights in {subject} and is not of the account; {rest}");
            Finding::new(level, subject, message, remedy)
        };
        all.into_iter().map(finding).collect()
    }

    /// Those who may write in every database of the server without being its administrators.
    fn global_writers(&self) -> Vec<Finding> {
        let holders = self.people.iter().filter(|p| p.access & WRITE_BITS != 0);
        let who: BTreeSet<String> =
            holders.flat_map(|p| self.users_of(&(p.name.clone(), p.host.clone()))).collect();
        let finding = |who: String| {
            Finding::new(
                Level::Blocker,
                format!("MariaDB user {who}"),
                format!(
                    "{who} may write in every database of the server and is not of the account; a fence would not stop such writes"
                ),
                "revoke the privileges on *.*, or lock the user (ALTER USER ... ACCOUNT LOCK) for the move",
            )
        };
        who.into_iter().map(finding).collect()
    }

    /// Administrators cannot be fenced; those that not every server has are named.
    fn administrators(&self) -> Option<Finding> {
        let named = self
            .people
            .iter()
            .filter(|p| !p.role && !p.locked && !p.ours && p.is_administrator() && !p.is_stock());
        let named: Vec<String> = named.map(Person::label).collect();
        if named.is_empty() {
            return None;
        }
        Some(Finding::new(
            Level::Warning,
            "MariaDB administrators",
            format!("a fence does not stop administrators of the server: {}", named.join(", ")),
            "let nobody write to the account's databases as one of them during the move",
        ))
    }
}

/// Users with the name of the account's at other hosts: the server's list of connections shows no
/// difference.
async fn namesakes(session: &mut Session, spec: &Spec) -> Result<Vec<Finding>, Fault> {
    let names = text_list(spec.users.iter().map(|u| u.name.as_str()));
    let mine = user_condition(spec, "User", "Host");
    let mut findings = Vec::new();
    for login in users::read(session, &format!("User IN {names} AND NOT ({mine})")).await? {
        let label = format!("{}@{}", login.name, login.host);
        findings.push(Finding::new(
            Level::Blocker,
            format!("MariaDB user {label}"),
            format!("{label} has the name of a user of the account but is not in its definition; their connections cannot be told apart"),
            "add it to the account's definition with its host, or drop it",
        ));
    }
    Ok(findings)
}

/// What runs with the rights of the account's users but lies outside its databases: a locked user
/// cannot log in, yet stays a definer.
async fn elsewhere(session: &mut Session, spec: &Spec) -> Result<Vec<Finding>, Fault> {
    let list = database_list(spec);
    let labels: Vec<String> =
        spec.users.iter().map(|u| format!("{}@{}", u.name, crate::model::host_of(u))).collect();
    let mine = text_list(labels.iter().map(String::as_str));
    let sql = format!(
        "SELECT 'view', TABLE_SCHEMA, TABLE_NAME, DEFINER FROM information_schema.VIEWS WHERE TABLE_SCHEMA NOT IN {list} AND DEFINER IN {mine} \
         UNION ALL SELECT LOWER(ROUTINE_TYPE), ROUTINE_SCHEMA, ROUTINE_NAME, DEFINER FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA NOT IN {list} AND DEFINER IN {mine} \
         UNION ALL SELECT 'trigger', TRIGGER_SCHEMA, TRIGGER_NAME, DEFINER FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA NOT IN {list} AND DEFINER IN {mine} \
         UNION ALL SELECT 'event', EVENT_SCHEMA, EVENT_NAME, DEFINER FROM information_schema.EVENTS WHERE EVENT_SCHEMA NOT IN {list} AND DEFINER IN {mine}"
    );
    let mut findings = Vec::new();
    for row in session.rows(WHAT, &sql).await? {
        let subject = format!("{} {}.{}", row.text(0), row.text(1), row.text(2));
        findings.push(Finding::new(
            Level::Blocker,
            &subject,
            format!("{subject} runs with the rights of {}, but lies outside the account; a fence would not stop it", row.text(3)),
            "move it into one of the account's databases, or give it another definer",
        ));
    }
    Ok(findings)
}
