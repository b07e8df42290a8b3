//! Users: reading their login from `mysql.global_priv`, giving it to them again, and the closed
//! form in which they wait at a target.

use std::collections::BTreeMap;

use ferry_proto::Fault;
use serde_json::Value;

use super::record::{Auth, LIMITS, Tls, UserRecord};
use super::session::{Session, text, user};
use crate::model::{Spec, mark_of};
use crate::secret::Secret;

/// A user as `mysql.global_priv` has it.
pub(super) struct Login {
    pub(super) name: String,
    pub(super) host: String,
    json: Value,
}

impl Login {
    pub(super) fn locked(&self) -> bool {
        self.json["account_locked"].as_bool().unwrap_or(false)
    }

    /// Whether it was created by Ferry for this account and has not been opened.
    pub(super) fn bears_mark(&self, spec: &Spec) -> bool {
        self.bears_mark_of(spec.account.as_str())
    }

    /// The same for an account of which only the name is known.
    pub(super) fn bears_mark_of(&self, account: &str) -> bool {
        self.json["authentication_string"].as_str() == Some(mark(&mark_of(account)).as_str())
    }

    fn auth(&self) -> Vec<Auth> {
        let one = |json: &Value| Auth {
            plugin: json["plugin"].as_str().unwrap_or("mysql_native_password").to_owned(),
            string: Secret(json["authentication_string"].as_str().unwrap_or_default().to_owned()),
        };
        match self.json["auth_or"].as_array() {
            // An empty entry stands for the login written outside the list.
            Some(ways) => ways
                .iter()
                .map(|way| {
                    let empty = way.as_object().is_none_or(serde_json::Map::is_empty);
                    if empty { one(&self.json) } else { one(way) }
                })
                .collect(),
            None => vec![one(&self.json)],
        }
    }

    fn tls(&self) -> Tls {
        let part = |name: &str| self.json[name].as_str().unwrap_or_default().to_owned();
        match self.json["ssl_type"].as_u64() {
            Some(1) => Tls::Any,
            Some(2) => Tls::X509,
            Some(3) => Tls::Specified {
                cipher: part("ssl_cipher"),
                issuer: part("x509_issuer"),
                subject: part("x509_subject"),
            },
            _ => Tls::None,
        }
    }

    /// Everything about it but its grants.
    pub(super) fn record(&self) -> UserRecord {
        let limit = |key: &str| match &self.json[key] {
            Value::Number(n) if n.as_f64() != Some(0.0) => Some(n.to_string()),
            _ => None,
        };
        let limits =
            LIMITS.iter().filter_map(|(name, key)| Some(((*name).to_owned(), limit(key)?)));
        UserRecord {
            name: self.name.clone(),
            host: self.host.clone(),
            auth: self.auth(),
            locked: self.locked(),
            password_expired: self.json["password_last_changed"].as_i64() == Some(0),
            password_lifetime: self.json["password_lifetime"]
                .as_i64()
                .and_then(|days| u32::try_from(days).ok()),
            tls: self.tls(),
            limits: limits.collect::<BTreeMap<_, _>>(),
            grants: Vec::new(),
        }
    }
}

/// The users of this name and host, roles left out.
pub(super) async fn read(session: &mut Session, condition: &str) -> Result<Vec<Login>, Fault> {
    let sql = format!(
        "SELECT User, Host, Priv FROM mysql.global_priv \
         WHERE JSON_VALUE(Priv, '$.is_role') IS NULL AND ({condition}) ORDER BY User, Host"
    );
    let rows = session.rows("the database users cannot be read", &sql).await?;
    rows.into_iter()
        .map(|row| {
            let json = serde_json::from_slice(row.bytes(2).unwrap_or_default()).map_err(|e| {
                Fault::permanent(format!(
                    "the login of MariaDB user {} cannot be read",
                    row.text(0)
                ))
                .caused_by(&e)
            })?;
            Ok(Login { name: row.text(0), host: row.text(1), json })
        })
        .collect()
}

/// One user.
pub(super) async fn find(
    session: &mut Session,
    name: &str,
    host: &str,
) -> Result<Option<Login>, Fault> {
    let condition = format!("User = {} AND Host = {}", text(name), text(host));
    Ok(read(session, &condition).await?.pop())
}

/// The hash of no password at all. It marks a user that Ferry created for this account and that
/// has not been opened.
fn mark(mark: &str) -> String {
    let hash = blake3::hash(mark.as_bytes()).to_hex();
    format!("*{}", hash[..40].to_ascii_uppercase())
}

/// Creates a user that nobody can log in as.
pub(super) fn create_closed(spec: &Spec, name: &str, host: &str) -> String {
    format!(
        "CREATE USER {} IDENTIFIED VIA mysql_native_password USING {} ACCOUNT LOCK",
        user(name, host),
        text(&mark(&spec.mark()))
    )
}

/// Gives a user the login that it had at the source.
pub(super) fn restore(record: &UserRecord) -> String {
    let ways: Vec<String> = record
        .auth
        .iter()
        .map(|auth| match auth.string.0.as_str() {
            "" => auth.plugin.clone(),
            string => format!("{} USING {}", auth.plugin, text(string)),
        })
        .collect();
    let tls = match &record.tls {
        Tls::None => "NONE".to_owned(),
        Tls::Any => "SSL".to_owned(),
        Tls::X509 => "X509".to_owned(),
        Tls::Specified { cipher, issuer, subject } => {
            let parts = [("CIPHER", cipher), ("ISSUER", issuer), ("SUBJECT", subject)];
            let given = parts.iter().filter(|(_, value)| !value.is_empty());
            let given: Vec<String> =
                given.map(|(word, value)| format!("{word} {}", text(value))).collect();
            if given.is_empty() { "X509".to_owned() } else { given.join(" AND ") }
        }
    };
    let limits: Vec<String> = LIMITS
        .iter()
        .map(|(name, _)| format!("{name} {}", record.limits.get(*name).map_or("0", String::as_str)))
        .collect();
    let lock = if record.locked { "LOCK" } else { "UNLOCK" };
    let expiry = match (record.password_expired, record.password_lifetime) {
        (true, _) => String::new(),
        (false, None) => " DEFAULT".to_owned(),
        (false, Some(0)) => " NEVER".to_owned(),
        (false, Some(days)) => format!(" INTERVAL {days} DAY"),
    };
    format!(
        "ALTER USER {} IDENTIFIED VIA {} REQUIRE {tls} WITH {} ACCOUNT {lock} PASSWORD EXPIRE{expiry}",
        user(&record.name, &record.host),
        ways.join(" OR "),
        limits.join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(json: &str) -> Login {
        Login {
            name: "u".to_owned(),
            host: "%".to_owned(),
            json: serde_json::from_str(json).expect("JSON"),
        }
    }

    #[test]
    fn a_plain_login_is_restored() {
        let login = login(
            r#"{"access":0,"plugin":"mysql_native_password","authentication_string":"*AB","password_last_changed":1}"#,
        );
        assert_eq!(
            restore(&login.record()),
            "ALTER USER `u`@`%` IDENTIFIED VIA mysql_native_password USING '*AB' REQUIRE NONE WITH \
             MAX_QUERIES_PER_HOUR 0 MAX_UPDATES_PER_HOUR 0 MAX_CONNECTIONS_PER_HOUR 0 \
             MAX_USER_CONNECTIONS 0 MAX_STATEMENT_TIME 0 ACCOUNT UNLOCK PASSWORD EXPIRE DEFAULT"
        );
    }

    #[test]
    fn a_rich_login_is_restored() {
        let login = login(
            r#"{"plugin":"mysql_native_password","authentication_string":"*AB","ssl_type":3,
            "ssl_cipher":"AES","x509_issuer":"","x509_subject":"a'b","max_questions":5,
            "max_statement_time":2.5,"auth_or":[{"plugin":"unix_socket"},{}],"account_locked":true,
            "password_last_changed":7,"password_lifetime":30}"#,
        );
        assert_eq!(
            restore(&login.record()),
            "ALTER USER `u`@`%` IDENTIFIED VIA unix_socket OR mysql_native_password USING '*AB' \
             REQUIRE CIPHER 'AES' AND SUBJECT 'a''b' WITH MAX_QUERIES_PER_HOUR 5 \
             MAX_UPDATES_PER_HOUR 0 MAX_CONNECTIONS_PER_HOUR 0 MAX_USER_CONNECTIONS 0 \
             MAX_STATEMENT_TIME 2.5 ACCOUNT LOCK PASSWORD EXPIRE INTERVAL 30 DAY"
        );
    }
}
