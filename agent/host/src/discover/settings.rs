//! Which databases the settings of an account's programs name. An account can write what it likes
//! there: that a home names a database is a hint, never a proof. Passwords are not read out.

use std::path::{Path, PathBuf};

use ferry_proto::account::EngineKind;

/// The files that are read.
pub(super) const FILES: &[&str] = &["wp-config.php", ".env"];

/// A database that a file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// Below the home.
    pub(super) file: PathBuf,
    /// None: the file does not tell.
    pub(super) engine: Option<EngineKind>,
    pub(super) database: String,
    pub(super) user: Option<String>,
    pub(super) host: Option<String>,
}

impl Named {
    /// Whether the database is on this server, as far as the file tells.
    pub(super) fn is_local(&self) -> bool {
        let host = self.host.as_deref().unwrap_or_default();
        let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
        ["", "localhost", "127.0.0.1", "[::1]", "::1"].contains(&host) || host.starts_with('/')
    }
}

/// What a file of this name says.
pub(super) fn named(file: &Path, text: &str) -> Option<Named> {
    let is_php = file.extension().is_some_and(|e| e == "php");
    let first = |keys: &[&str]| {
        let value = |key: &&str| if is_php { defined(text, key) } else { assigned(text, key) };
        keys.iter().find_map(value).filter(|value| !value.is_empty())
    };
    if let Some(named) = first(&["DATABASE_URL"]).and_then(|url| of_url(file, &url)) {
        return Some(named);
    }
    Some(Named {
        file: file.to_owned(),
        engine: if is_php { Some(EngineKind::Mariadb) } else { engine(text) },
        database: first(&["DB_NAME", "DB_DATABASE", "MYSQL_DATABASE", "POSTGRES_DB"])?,
        user: first(&["DB_USER", "DB_USERNAME", "MYSQL_USER", "POSTGRES_USER"]),
        host: first(&["DB_HOST"]),
    })
}

/// `define('KEY', 'value')`, the first one outside of comments: PHP keeps it.
fn defined(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let arguments = line.trim().strip_prefix("define")?.trim_start().strip_prefix('(')?;
        let (name, rest) = quoted(arguments)?;
        let (value, _) = quoted(rest.trim_start().strip_prefix(',')?)?;
        (name == key).then(|| value.to_owned())
    })
}

/// The text in quotes at the beginning, and what follows them.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let quote = text.chars().next().filter(|c| "'\"".contains(*c))?;
    text[1..].split_once(quote)
}

/// `KEY=value`, the last one.
fn assigned(text: &str, key: &str) -> Option<String> {
    text.lines().rev().find_map(|line| {
        let line = line.trim();
        let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
        if name.trim() != key {
            return None;
        }
        let value = value.trim();
        let plain = || value.split(" #").next().unwrap_or_default().trim_end();
        Some(quoted(value).map_or_else(plain, |(inner, _)| inner).to_owned())
    })
}

fn engine(text: &str) -> Option<EngineKind> {
    by_word(&assigned(text, "DB_CONNECTION").or_else(|| assigned(text, "DB_DRIVER"))?)
}

fn by_word(word: &str) -> Option<EngineKind> {
    match word {
        "mysql" | "mariadb" | "mysqli" | "pdo_mysql" | "mysql2" => Some(EngineKind::Mariadb),
        "pgsql" | "postgres" | "postgresql" | "pdo_pgsql" => Some(EngineKind::Postgresql),
        _ => None,
    }
}

/// `mysql://user:password@host:port/database?options`
fn of_url(file: &Path, url: &str) -> Option<Named> {
    let (scheme, rest) = url.split_once("://")?;
    let (place, path) = rest.split_once('/')?;
    let (login, host) = place.rsplit_once('@').unwrap_or(("", place));
    let user = login.split(':').next().unwrap_or_default();
    let database = path.split('?').next().unwrap_or_default();
    (!database.is_empty()).then(|| Named {
        file: file.to_owned(),
        engine: by_word(scheme),
        database: database.to_owned(),
        user: (!user.is_empty()).then(|| user.to_owned()),
        host: Some(host.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(file: &str, text: &str) -> (Option<EngineKind>, String, Option<String>, bool) {
        let named = named(Path::new(file), text).unwrap();
        let local = named.is_local();
        (named.engine, named.database, named.user, local)
    }

    #[test]
    fn usual_settings_are_understood() {
        let text = "<?php\n// define('DB_NAME', 'old');\ndefine( 'DB_NAME', 'shop_wp' );\n\
                    define(\"DB_USER\",\"shop\");\ndefine( 'DB_PASSWORD', 'it\\'s' );\n\
                    define('DB_HOST', 'localhost:3306');\n";
        let maria = Some(EngineKind::Mariadb);
        assert_eq!(
            of("a/wp-config.php", text),
            (maria, "shop_wp".into(), Some("shop".into()), true)
        );
        let text = "APP=x\nDB_CONNECTION=pgsql\nDB_HOST=db.example\nDB_DATABASE=\"stock\"\n\
                    DB_USERNAME=stock # the role\n";
        let postgresql = Some(EngineKind::Postgresql);
        assert_eq!(of(".env", text), (postgresql, "stock".into(), Some("stock".into()), false));
        let text = "DATABASE_URL=\"postgresql://app:p%40ss@127.0.0.1:5432/app?serverVersion=15\"\n";
        assert_eq!(of(".env", text), (postgresql, "app".into(), Some("app".into()), true));
    }

    #[test]
    fn nonsense_names_nothing() {
        for text in ["", "define(", "define('DB_NAME'", "DB_NAME=", "DATABASE_URL=x", "='"] {
            assert_eq!(named(Path::new("wp-config.php"), text), None, "{text:?}");
            assert_eq!(named(Path::new(".env"), text), None, "{text:?}");
        }
    }
}
