//! What of a MariaDB account crosses to the target beside the content, and the check that a record
//! from another server asks for nothing outside the account.

use std::collections::{BTreeMap, BTreeSet};

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};

use super::grants::{self, Grant};
use crate::model::{Spec, host_of};
use crate::secret::Secret;

/// The users, grants and databases of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MariadbRecord {
    /// The source's version.
    pub(crate) version: String,
    /// The source's `max_allowed_packet`.
    pub(crate) max_allowed_packet: u64,
    /// Whether the source runs events at all.
    pub(crate) event_scheduler: bool,
    pub(crate) databases: Vec<DatabaseRecord>,
    pub(crate) users: Vec<UserRecord>,
    /// The events that run while the account is served.
    pub(crate) running_events: BTreeSet<EventName>,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DatabaseRecord {
    pub(crate) name: String,
    pub(crate) charset: String,
    pub(crate) collation: String,
    pub(crate) comment: String,
    /// Character sets and collations used anywhere in it.
    pub(crate) collations: BTreeSet<String>,
    /// Storage engines of its tables.
    pub(crate) storage_engines: BTreeSet<String>,
    /// Column types that not every release knows.
    pub(crate) types: BTreeSet<String>,
    /// Whether it has system-versioned tables.
    pub(crate) versioned: bool,
    /// The largest table that can hold a large value, in bytes.
    pub(crate) largest_blob_table: u64,
    /// Time zones of its events.
    #[serde(default)]
    pub(crate) time_zones: BTreeSet<String>,
    /// Views that do not work at the source either.
    pub(crate) unusable_views: BTreeSet<String>,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserRecord {
    pub(crate) name: String,
    pub(crate) host: String,
    /// Ways to log in, any of which suffices.
    pub(crate) auth: Vec<Auth>,
    pub(crate) locked: bool,
    pub(crate) password_expired: bool,
    /// Days a password is good for; 0: for ever; none: the server's default.
    pub(crate) password_lifetime: Option<u32>,
    pub(crate) tls: Tls,
    /// `MAX_QUERIES_PER_HOUR` and the like, by that name.
    pub(crate) limits: BTreeMap<String, String>,
    pub(crate) grants: Vec<Grant>,
}

/// One way to log in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Auth {
    pub(crate) plugin: String,
    pub(crate) string: Secret,
}

/// What a user's connection must have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Tls {
    None,
    Any,
    X509,
    Specified { cipher: String, issuer: String, subject: String },
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct EventName {
    pub(crate) database: String,
    pub(crate) name: String,
}

/// The ways to log in that a record may ask for. Others (PAM, GSSAPI, ...) depend on the server's
/// configuration.
pub(crate) const PLUGINS: &[&str] =
    &["mysql_native_password", "mysql_old_password", "ed25519", "unix_socket", "parsec"];

/// The limits that a user can have, and how `mysql.global_priv` calls them.
pub(crate) const LIMITS: &[(&str, &str)] = &[
    ("MAX_QUERIES_PER_HOUR", "max_questions"),
    ("MAX_UPDATES_PER_HOUR", "max_updates"),
    ("MAX_CONNECTIONS_PER_HOUR", "max_connections"),
    ("MAX_USER_CONNECTIONS", "max_user_connections"),
    ("MAX_STATEMENT_TIME", "max_statement_time"),
];

/// A character set, collation or SQL mode: words that need no quotes.
pub(crate) fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

impl MariadbRecord {
    /// The part about a database.
    pub(crate) fn database(&self, name: &str) -> Result<&DatabaseRecord, Fault> {
        self.databases.iter().find(|d| d.name == name).ok_or_else(|| {
            Fault::precondition(format!("the source's record does not describe database {name}"))
                .remedy("record the account again at the source")
        })
    }

    /// Refuses a record that names anything outside the account, or that could mean more than it
    /// says. It comes from another server.
    pub(crate) fn check(&self, spec: &Spec) -> Result<(), Fault> {
        for database in &self.databases {
            if !spec.owns(&database.name) {
                return Err(foreign(spec, &format!("database {:?}", database.name)));
            }
            if !is_word(&database.charset) || !is_word(&database.collation) {
                return Err(foreign(spec, "a character set that is not a word"));
            }
        }
        for database in &spec.databases {
            self.database(database.as_str())?;
        }
        for user in &self.users {
            check_user(spec, user)?;
        }
        for user in &spec.users {
            let there = |u: &UserRecord| u.name == user.name.as_str() && u.host == host_of(user);
            if !self.users.iter().any(there) {
                return Err(Fault::precondition(format!(
                    "the source's record does not describe database user {}@{}",
                    user.name,
                    host_of(user)
                ))
                .remedy("record the account again at the source"));
            }
        }
        if let Some(event) = self.running_events.iter().find(|e| !spec.owns(&e.database)) {
            return Err(foreign(spec, &format!("an event of database {:?}", event.database)));
        }
        Ok(())
    }
}

fn check_user(spec: &Spec, user: &UserRecord) -> Result<(), Fault> {
    let ours = |u: &ferry_proto::account::DatabaseUser| {
        u.name.as_str() == user.name && host_of(u) == user.host
    };
    if !spec.users.iter().any(ours) {
        return Err(foreign(spec, &format!("database user {:?}@{:?}", user.name, user.host)));
    }
    let safe = |text: &str| {
        text.len() <= 512
            && text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'\'' && b != b'\\')
    };
    if user.auth.is_empty() || user.auth.len() > 8 {
        return Err(foreign(spec, &format!("user {} without a way to log in", user.name)));
    }
    for auth in &user.auth {
        if !PLUGINS.contains(&auth.plugin.as_str()) || !safe(&auth.string.0) {
            return Err(Fault::permanent(format!(
                "database user {}@{} logs in by {:?}, which Ferry does not carry",
                user.name,
                user.host,
                auth.plugin.chars().take(40).collect::<String>()
            ))
            .remedy("give the user a password (mysql_native_password or ed25519) at the source"));
        }
    }
    let numeric = |text: &String| {
        !text.is_empty() && text.len() < 24 && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    };
    for (limit, value) in &user.limits {
        if !LIMITS.iter().any(|(name, _)| name == limit) || !numeric(value) {
            return Err(foreign(spec, &format!("an unknown limit of user {}", user.name)));
        }
    }
    user.grants.iter().try_for_each(|grant| grants::check(spec, grant))
}

pub(super) fn foreign(spec: &Spec, what: &str) -> Fault {
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
        let user = serde_json::json!({"engine": "mariadb", "name": "shop"});
        Spec {
            account: "shop".parse().expect("a name"),
            uid: 1000,
            gid: 1000,
            databases: vec!["shop".parse().expect("a name")],
            users: vec![serde_json::from_value(user).expect("a user")],
        }
    }

    fn record() -> MariadbRecord {
        MariadbRecord {
            version: String::new(),
            max_allowed_packet: 0,
            event_scheduler: false,
            databases: vec![DatabaseRecord {
                name: "shop".to_owned(),
                charset: "utf8mb4".to_owned(),
                collation: "utf8mb4_general_ci".to_owned(),
                comment: String::new(),
                collations: BTreeSet::new(),
                storage_engines: BTreeSet::new(),
                types: BTreeSet::new(),
                versioned: false,
                largest_blob_table: 0,
                time_zones: BTreeSet::new(),
                unusable_views: BTreeSet::new(),
            }],
            users: vec![UserRecord {
                name: "shop".to_owned(),
                host: "localhost".to_owned(),
                auth: vec![Auth {
                    plugin: "mysql_native_password".to_owned(),
                    string: Secret("*94BDCEBE19083CE2A1F959FD02F964C7AF4CFC29".to_owned()),
                }],
                locked: false,
                password_expired: false,
                password_lifetime: None,
                tls: Tls::None,
                limits: BTreeMap::new(),
                grants: Vec::new(),
            }],
            running_events: BTreeSet::new(),
        }
    }

    #[test]
    fn a_record_of_the_account_passes_and_hides_hashes() {
        record().check(&spec()).expect("passes");
        assert!(!format!("{:?}", record()).contains("94BD"));
        let json = serde_json::to_string(&record()).expect("serialises");
        assert_eq!(serde_json::from_str::<MariadbRecord>(&json).expect("reads"), record());
    }

    #[test]
    fn a_record_that_reaches_outside_the_account_is_refused() {
        let broken: &[fn(&mut MariadbRecord)] = &[
            |r| r.databases[0].name = "other".to_owned(),
            |r| r.databases[0].charset = "utf8mb4; drop database x".to_owned(),
            |r| r.databases.clear(),
            |r| r.users[0].name = "root".to_owned(),
            |r| r.users[0].host = "%".to_owned(),
            |r| r.users.clear(),
            |r| r.users[0].auth.clear(),
            |r| r.users[0].auth[0].plugin = "pam".to_owned(),
            |r| r.users[0].auth[0].string = Secret("' OR unix_socket".to_owned()),
            |r| {
                r.users[0].limits.insert("MAX_STATEMENT_TIME".to_owned(), "1 ACCOUNT".to_owned());
            },
            |r| {
                r.users[0].limits.insert("ACCOUNT".to_owned(), "1".to_owned());
            },
            |r| {
                r.running_events
                    .insert(EventName { database: "mysql".to_owned(), name: "e".to_owned() });
            },
        ];
        for (i, change) in broken.iter().enumerate() {
            let mut changed = record();
            change(&mut changed);
            assert!(changed.check(&spec()).is_err(), "case {i}");
        }
    }
}
