//! The definition of an account: what `/etc/ferry/accounts.d/NAME.toml` says, and what an
//! executable in `/etc/ferry/inventory.d/` prints as JSON. The same type crosses the wire.
//!
//! Everything in it is typed: service configuration at the target is rendered from these fields,
//! never copied as text from another server.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ids::{
    AccountName, DatabaseHost, DatabaseName, DomainName, HomePath, MailboxName, SiteName, UnixName,
};

/// One account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// The account's name, unique in the fleet.
    pub name: AccountName,
    /// Its Unix user; the primary group is the user's own.
    pub user: UnixName,
    /// Supplementary groups. A file of the account may belong to one of them.
    #[serde(default)]
    pub groups: Vec<UnixName>,
    /// The home tree: absolute, the one root of everything of the account that is files.
    pub home: PathBuf,
    /// Web sites.
    #[serde(default)]
    pub sites: Vec<Site>,
    /// Databases.
    #[serde(default)]
    pub databases: Vec<Database>,
    /// Database users (MariaDB users, PostgreSQL roles).
    #[serde(default)]
    pub database_users: Vec<DatabaseUser>,
    /// Mail domains.
    #[serde(default)]
    pub mail: Vec<MailDomain>,
    /// Whether the user's crontab moves along.
    #[serde(default = "yes")]
    pub crontab: bool,
    /// Commands run as the account.
    #[serde(default, skip_serializing_if = "Hooks::is_empty")]
    pub hooks: Hooks,
}

fn yes() -> bool {
    true
}

/// A web site, with what its service configuration needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Names the configuration files of the site.
    pub name: SiteName,
    /// The names that it answers to; the first is the main one.
    pub domains: Vec<DomainName>,
    /// Document root below the home.
    pub root: HomePath,
    /// PHP by a pool of its own, run as the account; none: static files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub php: Option<Php>,
    /// HTTPS, with the certificate's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// The files of this server's services that serve this site now (nginx server block, PHP pool),
    /// absolute. The fence moves them aside; at the target they are rendered instead.
    #[serde(default)]
    pub config: Vec<PathBuf>,
}

/// A PHP-FPM pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Php {
    /// `pm.max_children`, 1 to 500.
    #[serde(default = "default_children")]
    pub max_children: u16,
    /// `memory_limit` in MiB, 16 to 4096.
    #[serde(default = "default_memory")]
    pub memory_limit_mb: u16,
}

fn default_children() -> u16 {
    8
}

fn default_memory() -> u16 {
    128
}

/// Where a site's certificate is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Certificate chain in PEM, below the home.
    pub certificate: HomePath,
    /// Private key in PEM, below the home.
    pub key: HomePath,
}

/// A database engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// MariaDB.
    Mariadb,
    /// PostgreSQL.
    Postgresql,
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mariadb => "MariaDB",
            Self::Postgresql => "PostgreSQL",
        })
    }
}

/// A database of the account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// Its engine.
    pub engine: EngineKind,
    /// Its name.
    pub name: DatabaseName,
}

/// A database user of the account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseUser {
    /// Its engine.
    pub engine: EngineKind,
    /// Its name.
    pub name: DatabaseName,
    /// MariaDB: the host part, `localhost` unless told. PostgreSQL has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<DatabaseHost>,
}

/// A mail domain whose mailboxes are Maildirs below the home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailDomain {
    /// The domain.
    pub domain: DomainName,
    /// The directory below the home that holds one Maildir per mailbox (`ROOT/MAILBOX/`).
    pub root: HomePath,
    /// Its mailboxes.
    #[serde(default)]
    pub mailboxes: Vec<MailboxName>,
}

/// Commands run as the account, each an executable below the home; none gets an argument.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// Before the fence, at the source, while the account is still served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_fence: Option<HomePath>,
    /// After the open, at the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_open: Option<HomePath>,
}

impl Hooks {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.before_fence.is_none() && self.after_open.is_none()
    }
}

/// A rule that a definition breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidDefinition {
    /// Which field, as it is written in TOML.
    pub field: String,
    /// What is wrong and how to mend it.
    pub problem: String,
}

/// Directories that hold homes, and are none.
const NO_HOMES: &[&str] =
    &["/", "/home", "/srv", "/var", "/var/home", "/var/www", "/opt", "/mnt", "/media", "/tmp"];

/// Trees in which root's programs look for what to obey, whoever owns it (a unit's drop-ins, scripts of
/// a login shell, modules): no home may be there. A definition may come from another server.
const SYSTEM_TREES: &[&str] = &[
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/backups",
    "/var/cache",
    "/var/crash",
    "/var/lib",
    "/var/local",
    "/var/lock",
    "/var/log",
    "/var/opt",
    "/var/run",
    "/var/spool",
    "/var/tmp",
];

/// The most of each thing that one account has. (Domains: as many as the redirector routes.)
const MOST: [(&str, usize); 7] = [
    ("groups", 64),
    ("sites", 1_000),
    ("domains", 2_000),
    ("databases", 1_000),
    ("database_users", 1_000),
    ("mail", 1_000),
    ("mailboxes", 20_000),
];

impl Definition {
    /// The rules that types cannot express.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check(&self) -> Result<(), InvalidDefinition> {
        let broken = |field: &str, problem: String| {
            Err(InvalidDefinition { field: field.to_owned(), problem })
        };
        let home = self.home.to_string_lossy();
        let clean = home.chars().all(|c| c.is_ascii_alphanumeric() || "._+@/-".contains(c))
            && home.starts_with('/')
            && home.len() <= 255
            && !home[1..].split('/').any(|c| c.is_empty() || c == "." || c == "..");
        if !clean {
            return broken(
                "home",
                format!(
                    "{home:?} must be an absolute path of A-Z, a-z, 0-9 and '._+@-', without '.' and '..'"
                ),
            );
        }
        let system = SYSTEM_TREES.iter().any(|tree| self.home.starts_with(tree));
        if system || NO_HOMES.contains(&home.as_ref()) {
            return broken(
                "home",
                format!("{home} belongs to the system; name the account's own directory"),
            );
        }
        if self.user.as_str() == "root" {
            return broken(
                "user",
                "root cannot be an account; name the account's own user".to_owned(),
            );
        }
        self.check_numbers()?;
        self.check_sites()?;
        self.check_databases()
    }

    /// How many there are of everything: each costs every server that reads the definition.
    fn check_numbers(&self) -> Result<(), InvalidDefinition> {
        let numbers = [
            self.groups.len(),
            self.sites.len(),
            self.domains().count(),
            self.databases.len(),
            self.database_users.len(),
            self.mail.len(),
            self.mail.iter().map(|domain| domain.mailboxes.len()).sum(),
        ];
        for ((field, most), number) in MOST.into_iter().zip(numbers) {
            if number > most {
                return Err(InvalidDefinition {
                    field: field.to_owned(),
                    problem: format!("{number} are more than the {most} that an account may have"),
                });
            }
        }
        Ok(())
    }

    fn check_sites(&self) -> Result<(), InvalidDefinition> {
        let mut names = std::collections::BTreeSet::new();
        let mut domains = std::collections::BTreeSet::new();
        for (i, site) in self.sites.iter().enumerate() {
            let broken = |field: &str, problem: String| {
                Err(InvalidDefinition { field: format!("sites[{i}].{field}"), problem })
            };
            if site.domains.is_empty() {
                return broken("domains", "a site needs at least one domain".to_owned());
            }
            if !names.insert(&site.name) {
                return broken(
                    "name",
                    format!("{} is used twice; give each site its own", site.name),
                );
            }
            if let Some(twice) = site.domains.iter().find(|d| !domains.insert(*d)) {
                return broken("domains", format!("{twice} is in two sites; leave it in one"));
            }
            if let Some(php) = &site.php {
                if !(1..=500).contains(&php.max_children) {
                    return broken("php.max_children", "must be 1 to 500".to_owned());
                }
                if !(16..=4096).contains(&php.memory_limit_mb) {
                    return broken("php.memory_limit_mb", "must be 16 to 4096".to_owned());
                }
            }
            for path in &site.config {
                let text = path.to_string_lossy();
                let ok = text.starts_with("/etc/")
                    && !text.split('/').any(|c| c == ".." || c == ".")
                    && text.chars().all(|c| c.is_ascii_graphic());
                if !ok {
                    return broken(
                        "config",
                        format!("{text:?} must be a file below /etc, without '.' and '..'"),
                    );
                }
            }
        }
        Ok(())
    }

    fn check_databases(&self) -> Result<(), InvalidDefinition> {
        for (i, user) in self.database_users.iter().enumerate() {
            let broken = |problem: String| {
                Err(InvalidDefinition { field: format!("database_users[{i}]"), problem })
            };
            if user.engine == EngineKind::Postgresql && user.host.is_some() {
                return broken("a PostgreSQL role has no host; remove it".to_owned());
            }
            if ["root", "mysql", "mariadb.sys", "postgres"].contains(&user.name.as_str()) {
                return broken(format!(
                    "{} belongs to the server; name the account's own user",
                    user.name
                ));
            }
        }
        for (i, database) in self.databases.iter().enumerate() {
            let system = [
                "mysql",
                "sys",
                "information_schema",
                "performance_schema",
                "postgres",
                "template0",
                "template1",
            ];
            if system.contains(&database.name.as_str()) {
                return Err(InvalidDefinition {
                    field: format!("databases[{i}].name"),
                    problem: format!(
                        "{} belongs to the server; name the account's own database",
                        database.name
                    ),
                });
            }
            if !self.database_users.iter().any(|u| u.engine == database.engine) {
                return Err(InvalidDefinition {
                    field: format!("databases[{i}]"),
                    problem: format!("has no {} user; list one in database_users", database.engine),
                });
            }
        }
        Ok(())
    }

    /// Every domain of every site.
    pub fn domains(&self) -> impl Iterator<Item = &DomainName> {
        self.sites.iter().flat_map(|s| s.domains.iter())
    }

    /// The databases of one engine.
    pub fn databases_of(&self, engine: EngineKind) -> impl Iterator<Item = &Database> {
        self.databases.iter().filter(move |d| d.engine == engine)
    }

    /// The database users of one engine.
    pub fn users_of(&self, engine: EngineKind) -> impl Iterator<Item = &DatabaseUser> {
        self.database_users.iter().filter(move |u| u.engine == engine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: serde_json::Value) -> Result<(), InvalidDefinition> {
        let mut json = serde_json::json!({"name": "shop", "user": "shop", "home": "/home/shop"});
        if let (Some(json), Some(change)) = (json.as_object_mut(), change.as_object()) {
            json.extend(change.clone());
        }
        serde_json::from_value::<Definition>(json).expect("a definition").check()
    }

    #[test]
    fn a_home_is_never_where_root_looks_for_what_to_obey() {
        for home in [
            "/etc/systemd/system/ssh.service.d",
            "/etc/profile.d/new",
            "/usr/lib/modules-load.d/x",
            "/root/x",
            "/run/systemd/system/x.service.d",
            "/var/lib/x",
            "/var/spool/cron/crontabs",
            "/home",
            "/",
            "/home/../etc",
            "/home/x/",
            "home/x",
        ] {
            assert!(with(serde_json::json!({ "home": home })).is_err(), "{home}");
        }
        for home in [
            "/home/clients/shop",
            "/srv/shop",
            "/var/www/shop",
            "/opt/shop",
            "/etcetera",
            "/data/1",
        ] {
            with(serde_json::json!({ "home": home })).expect(home);
        }
    }

    #[test]
    fn an_account_has_no_more_of_anything_than_the_limits() {
        let site = |i: usize| serde_json::json!({"name": format!("s{i}"), "root": "www", "domains": [format!("s{i}.example")]});
        let sites = |n: usize| serde_json::json!({ "sites": (0..n).map(site).collect::<Vec<_>>() });
        with(sites(1_000)).expect("as many as may be");
        let refused = with(sites(1_001)).expect_err("one too many");
        assert!(refused.to_string().contains("1000"), "{refused}");
        let domains: Vec<_> = (0..2_001).map(|i| format!("d{i}.example")).collect();
        let many = serde_json::json!({"sites": [{"name": "s", "root": "www", "domains": domains}]});
        assert!(with(many).is_err());
        let mailboxes: Vec<_> = (0..20_001).map(|i| format!("m{i}")).collect();
        let many = serde_json::json!({"mail": [{"domain": "a.example", "root": "mail", "mailboxes": mailboxes}]});
        assert!(with(many).is_err());
    }
}
