//! What of a PostgreSQL account crosses to the target beside the content, and the check that a
//! record from another server asks for nothing outside the account.

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};

use crate::model::Spec;
use crate::secret::Secret;

/// The roles and databases of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresqlRecord {
    /// The source's version.
    pub(crate) version: String,
    pub(crate) major: u32,
    pub(crate) databases: Vec<DatabaseRecord>,
    pub(crate) roles: Vec<RoleRecord>,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DatabaseRecord {
    pub(crate) name: String,
    /// None: the server's superuser.
    pub(crate) owner: Option<String>,
    pub(crate) encoding: String,
    pub(crate) locale: Locale,
    pub(crate) connection_limit: i32,
    pub(crate) comment: Option<String>,
    /// None: as every database begins.
    pub(crate) grants: Option<Vec<AclItem>>,
    pub(crate) settings: Vec<Setting>,
    pub(crate) extensions: Vec<Extension>,
    /// The schema `public`; none: it was dropped.
    pub(crate) public: Option<PublicSchema>,
}

/// How a database sorts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Locale {
    pub(crate) provider: Provider,
    pub(crate) collate: String,
    pub(crate) ctype: String,
    /// ICU and built-in: the locale.
    pub(crate) locale: Option<String>,
    /// ICU: additional rules.
    pub(crate) rules: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Provider {
    Libc,
    Icu,
    Builtin,
}

/// A privilege on a database or schema.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct AclItem {
    /// None: everybody.
    pub(crate) grantee: Option<String>,
    pub(crate) privilege: String,
    pub(crate) grantable: bool,
}

/// A default of a role, a database, or a role in a database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Setting {
    /// None: of the database.
    pub(crate) role: Option<String>,
    pub(crate) name: String,
    pub(crate) value: String,
}

/// An extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extension {
    pub(crate) name: String,
    pub(crate) schema: String,
    pub(crate) version: String,
    /// None: the server's superuser.
    pub(crate) owner: Option<String>,
}

/// The schema that every database begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PublicSchema {
    /// None: the server's superuser, or, in newer releases, whoever owns the database.
    pub(crate) owner: Option<String>,
    pub(crate) grants: Vec<AclItem>,
}

/// A role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RoleRecord {
    pub(crate) name: String,
    /// None: no password.
    pub(crate) verifier: Option<Secret>,
    pub(crate) login: bool,
    pub(crate) inherit: bool,
    pub(crate) connection_limit: i32,
    pub(crate) valid_until: Option<String>,
    pub(crate) comment: Option<String>,
    pub(crate) settings: Vec<Setting>,
    /// Roles of the account that it is a member of.
    pub(crate) member_of: Vec<Membership>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Membership {
    pub(crate) role: String,
    pub(crate) admin: bool,
    /// Since release 16 of the membership; before, of the member.
    pub(crate) inherit: Option<bool>,
    pub(crate) set: Option<bool>,
}

/// Extensions that are created at a target because a database needs them: none of them gives an
/// account anything outside its database.
pub(crate) const EXTENSIONS: &[&str] = &[
    "btree_gin",
    "btree_gist",
    "citext",
    "cube",
    "dict_int",
    "dict_xsyn",
    "earthdistance",
    "fuzzystrmatch",
    "hstore",
    "intarray",
    "isn",
    "lo",
    "ltree",
    "pg_trgm",
    "pgcrypto",
    "plpgsql",
    "seg",
    "tablefunc",
    "tcn",
    "tsm_system_rows",
    "tsm_system_time",
    "unaccent",
    "uuid-ossp",
];

/// Settings that would be more than a default.
const REFUSED_SETTINGS: &[&str] = &["role", "session_authorization", "local_preload_libraries"];

/// Privileges on databases and schemas.
const PRIVILEGES: &[&str] = &["CONNECT", "CREATE", "TEMPORARY", "USAGE"];

/// Whether a setting may be carried, if the server says that everybody may make it.
pub(crate) fn may_carry(setting: &str) -> bool {
    !REFUSED_SETTINGS.contains(&setting)
        && (1..=128).contains(&setting.len())
        && setting.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b))
}

impl PostgresqlRecord {
    /// The part about a database.
    pub(crate) fn database(&self, name: &str) -> Result<&DatabaseRecord, Fault> {
        self.databases
            .iter()
            .find(|d| d.name == name)
            .ok_or_else(|| incomplete(&format!("database {name}")))
    }

    /// Refuses a record that names anything outside the account, or that could mean more than it
    /// says. It comes from another server.
    pub(crate) fn check(&self, spec: &Spec) -> Result<(), Fault> {
        for database in &spec.databases {
            self.database(database.as_str())?;
        }
        for user in &spec.users {
            if !self.roles.iter().any(|r| r.name == user.name.as_str()) {
                return Err(incomplete(&format!("role {}", user.name)));
            }
        }
        let ours = |name: &str| spec.users.iter().any(|u| u.name.as_str() == name);
        for role in &self.roles {
            check_role(spec, role, &ours)?;
        }
        for database in &self.databases {
            check_database(spec, database, &ours)?;
        }
        Ok(())
    }
}

fn check_role(spec: &Spec, role: &RoleRecord, ours: &impl Fn(&str) -> bool) -> Result<(), Fault> {
    if !ours(&role.name) {
        return Err(foreign(spec, &format!("role {:?}", role.name)));
    }
    if let Some(other) = role.member_of.iter().find(|m| !ours(&m.role)) {
        return Err(foreign(spec, &format!("role {:?}", other.role)));
    }
    let settings = role.settings.iter();
    let mut bad = settings.filter(|s| !may_carry(&s.name) || s.role.as_deref() != Some(&role.name));
    if let Some(bad) = bad.next() {
        return Err(foreign(spec, &format!("the setting {:?}", bad.name)));
    }
    if role.verifier.as_ref().is_some_and(|v| !is_verifier(&v.0)) {
        return Err(foreign(spec, &format!("a password of role {} in clear", role.name)));
    }
    Ok(())
}

fn check_database(
    spec: &Spec,
    database: &DatabaseRecord,
    ours: &impl Fn(&str) -> bool,
) -> Result<(), Fault> {
    if !spec.owns(&database.name) {
        return Err(foreign(spec, &format!("database {:?}", database.name)));
    }
    let public_owner = database.public.as_ref().and_then(|p| p.owner.as_ref());
    let owners = database.extensions.iter().filter_map(|e| e.owner.as_ref());
    let mut owners = owners.chain(public_owner).chain(&database.owner);
    if let Some(other) = owners.find(|owner| !ours(owner)) {
        return Err(foreign(spec, &format!("the owner {other:?} in database {}", database.name)));
    }
    let public = database.public.iter().flat_map(|p| &p.grants);
    for item in database.grants.iter().flatten().chain(public) {
        let known = PRIVILEGES.contains(&item.privilege.as_str());
        if !known || item.grantee.as_deref().is_some_and(|g| !ours(g)) {
            return Err(foreign(spec, &format!("a grant to {:?}", item.grantee)));
        }
    }
    for setting in &database.settings {
        if !may_carry(&setting.name) || setting.role.as_deref().is_some_and(|r| !ours(r)) {
            return Err(foreign(spec, &format!("the setting {:?}", setting.name)));
        }
    }
    match database.extensions.iter().find(|e| !EXTENSIONS.contains(&e.name.as_str())) {
        Some(other) => Err(Fault::permanent(format!(
            "database {} uses the extension {:?}, which Ferry does not create",
            database.name, other.name
        ))
        .remedy("drop the extension, or move this database by hand")),
        None => Ok(()),
    }
}

/// Whether this is a password's verifier, not a password: the server would take the latter too.
fn is_verifier(text: &str) -> bool {
    let md5 = text
        .strip_prefix("md5")
        .is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    let scram = text.strip_prefix("SCRAM-SHA-256$").is_some_and(|rest| {
        (40..200).contains(&rest.len())
            && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=:$".contains(&b))
    });
    md5 || scram
}

fn incomplete(what: &str) -> Fault {
    Fault::precondition(format!("the source's record does not describe {what}"))
        .remedy("record the account again at the source")
}

fn foreign(spec: &Spec, what: &str) -> Fault {
    Fault::permanent(format!(
        "the record from the other server names {what}, which is not of account {}",
        spec.account
    ))
    .remedy("compare the account's definition on both servers; if they agree, distrust the other server")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        let user = serde_json::json!({"engine": "postgresql", "name": "shop"});
        Spec {
            account: "shop".parse().expect("a name"),
            uid: 1000,
            gid: 1000,
            databases: vec!["shop".parse().expect("a name")],
            users: vec![serde_json::from_value(user).expect("a user")],
        }
    }

    const VERIFIER: &str = "SCRAM-SHA-256$4096:q83vEjRWeJA=$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    fn record() -> PostgresqlRecord {
        PostgresqlRecord {
            version: String::new(),
            major: 15,
            databases: vec![DatabaseRecord {
                name: "shop".to_owned(),
                owner: Some("shop".to_owned()),
                encoding: "UTF8".to_owned(),
                locale: Locale {
                    provider: Provider::Libc,
                    collate: "C".to_owned(),
                    ctype: "C".to_owned(),
                    locale: None,
                    rules: None,
                },
                connection_limit: -1,
                comment: None,
                grants: None,
                settings: Vec::new(),
                extensions: Vec::new(),
                public: None,
            }],
            roles: vec![RoleRecord {
                name: "shop".to_owned(),
                verifier: Some(Secret(VERIFIER.to_owned())),
                login: true,
                inherit: true,
                connection_limit: -1,
                valid_until: None,
                comment: None,
                settings: Vec::new(),
                member_of: Vec::new(),
            }],
        }
    }

    #[test]
    fn a_record_of_the_account_passes_and_hides_verifiers() {
        record().check(&spec()).expect("passes");
        assert!(!format!("{:?}", record()).contains("4096"));
    }

    #[test]
    fn a_record_that_reaches_outside_the_account_is_refused() {
        let setting = |role: Option<&str>, name: &str| Setting {
            role: role.map(str::to_owned),
            name: name.to_owned(),
            value: String::new(),
        };
        type Change = Box<dyn Fn(&mut PostgresqlRecord)>;
        let broken: Vec<Change> = vec![
            Box::new(|r| r.roles[0].name = "postgres".to_owned()),
            Box::new(|r| r.roles.clear()),
            Box::new(|r| r.databases.clear()),
            Box::new(|r| r.databases[0].name = "postgres".to_owned()),
            Box::new(|r| r.databases[0].owner = Some("postgres".to_owned())),
            Box::new(|r| r.roles[0].verifier = Some(Secret("clear".to_owned()))),
            Box::new(|r| {
                let role = "pg_execute_server_program".to_owned();
                r.roles[0].member_of.push(Membership {
                    role,
                    admin: false,
                    inherit: None,
                    set: None,
                });
            }),
            Box::new(move |r| r.roles[0].settings.push(setting(Some("shop"), "role"))),
            Box::new(move |r| r.roles[0].settings.push(setting(Some("other"), "work_mem"))),
            Box::new(move |r| r.databases[0].settings.push(setting(None, "a b"))),
            Box::new(|r| {
                r.databases[0].extensions.push(Extension {
                    name: "plpython3u".to_owned(),
                    schema: "public".to_owned(),
                    version: "1".to_owned(),
                    owner: None,
                });
            }),
            Box::new(|r| {
                r.databases[0].grants = Some(vec![AclItem {
                    grantee: Some("other".to_owned()),
                    privilege: "CONNECT".to_owned(),
                    grantable: false,
                }]);
            }),
            Box::new(|r| {
                r.databases[0].grants = Some(vec![AclItem {
                    grantee: None,
                    privilege: "ALL; DROP".to_owned(),
                    grantable: false,
                }]);
            }),
        ];
        for (i, change) in broken.iter().enumerate() {
            let mut changed = record();
            change(&mut changed);
            assert!(changed.check(&spec()).is_err(), "case {i}");
        }
    }
}
