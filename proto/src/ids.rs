//! Checked names and numbers. A value of one of these types has passed its check; nothing else
//! in Ferry tests names again. None of them can hold a path separator, a quote or a newline, so
//! they are safe in file names, unit names, rules and messages.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {rule}")]
pub struct InvalidName {
    /// Which kind of name.
    pub what: &'static str,
    /// What was given, cut to 80 characters.
    pub value: String,
    /// What a valid one looks like.
    pub rule: &'static str,
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The checked text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidName {
                        what: $what,
                        value: text.chars().take(80).collect(),
                        rule: $rule,
                    })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn all(text: &str, range: std::ops::RangeInclusive<usize>, ok: fn(char) -> bool) -> bool {
    range.contains(&text.len()) && text.chars().all(ok)
}

fn starts_with(text: &str, ok: fn(char) -> bool) -> bool {
    text.chars().next().is_some_and(ok)
}

fn is_label(text: &str) -> bool {
    all(text, 1..=63, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

name_type!(
    /// The name of an account.
    AccountName, "account name",
    "1 to 31 of a-z, 0-9, '_' and '-', the first a letter or '_'",
    |t| all(t, 1..=31, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
        && starts_with(t, |c| c.is_ascii_lowercase() || c == '_')
);
name_type!(
    /// A Unix user or group name, by the rule of Debian's adduser.
    UnixName, "user or group name",
    "1 to 32 of a-z, 0-9, '_', '.' and '-', the first a letter or '_'",
    |t| all(t, 1..=32, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c))
        && starts_with(t, |c| c.is_ascii_lowercase() || c == '_')
);
name_type!(
    /// The name of a server: one host name label.
    ServerName, "server name",
    "1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'",
    is_label
);
name_type!(
    /// A domain name in lower-case ASCII (A-labels), without the final dot; `*.` may stand first.
    DomainName, "domain name",
    "labels of a-z, 0-9 and '-' joined by dots, at most 253 characters; '*.' may stand first; write international names in their xn-- form",
    |t| t.len() <= 253
        && t.strip_prefix("*.").unwrap_or(t).split('.').all(is_label)
);
name_type!(
    /// The local part of a mailbox.
    MailboxName, "mailbox name",
    "1 to 64 of a-z, 0-9, '.', '_', '+' and '-', not beginning with '.' or '-'",
    |t| all(t, 1..=64, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._+-".contains(c))
        && !t.starts_with('.') && !t.starts_with('-')
);
name_type!(
    /// The name of a database or a database role. Both engines' identifiers may hold more; Ferry
    /// accepts what hosting panels make.
    DatabaseName, "database or role name",
    "1 to 63 of A-Z, a-z, 0-9, '_', '$' and '-', the first a letter, a digit or '_'",
    |t| all(t, 1..=63, |c| c.is_ascii_alphanumeric() || "_$-".contains(c))
        && starts_with(t, |c| c.is_ascii_alphanumeric() || c == '_')
);
name_type!(
    /// The host part of a MariaDB user.
    DatabaseHost, "database user host",
    "1 to 255 of a-z, 0-9 and '.:%_/-'",
    |t| all(t, 1..=255, |c| c.is_ascii_alphanumeric() || ".:%_/-".contains(c))
);
name_type!(
    /// A name that Ferry or a definition gives to a site.
    SiteName, "site name",
    "1 to 40 of a-z, 0-9, '_' and '-', the first a letter or digit",
    |t| all(t, 1..=40, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
        && starts_with(t, |c| c.is_ascii_alphanumeric())
);

/// A path below an account's home: relative, no `..`, no empty component, no NUL, no newline.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HomePath(String);

impl HomePath {
    /// The checked text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path below `home`.
    pub fn below(&self, home: &std::path::Path) -> std::path::PathBuf {
        home.join(&self.0)
    }
}

impl TryFrom<String> for HomePath {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        let ok = !text.is_empty()
            && text.len() <= 1024
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "._+@/-".contains(c))
            && text.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if ok {
            Ok(Self(text))
        } else {
            Err(InvalidName {
                what: "path below the home",
                value: text.chars().take(80).collect(),
                rule: "relative, of A-Z, a-z, 0-9 and '._+@-' joined by '/', without '.' and '..' components",
            })
        }
    }
}

impl From<HomePath> for String {
    fn from(path: HomePath) -> String {
        path.0
    }
}

impl fmt::Display for HomePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A number per account that rises whenever the server allowed to serve it changes.
/// An account that never moved is at epoch 0.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    pub fn next(self) -> Self {
        // A rise per cutover: 2^64 cutovers cannot happen.
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! uuid_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub uuid::Uuid);

        impl $name {
            /// A new one, ordered by time (UUID version 7).
            pub fn new_now() -> Self {
                Self(uuid::Uuid::now_v7())
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                uuid::Uuid::parse_str(text).map(Self).map_err(|_| InvalidName {
                    what: stringify!($name),
                    value: text.chars().take(80).collect(),
                    rule: "a UUID",
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_type!(
    /// One job of the controller: a move, or one administrative act.
    JobId
);
uuid_type!(
    /// One command to one agent. An agent carries out each id once.
    CommandId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        for bad in ["", "; rm -rf /", "a b", "../x", "a\nb", "A", "-a", "a/b", "0a"] {
            assert!(bad.parse::<AccountName>().is_err(), "{bad:?}");
        }
        for bad in
            ["", ".", "..", "a..b", "; rm", "-a.example", "a_b.example", "EXAMPLE.org", "a.*"]
        {
            assert!(bad.parse::<DomainName>().is_err(), "{bad:?}");
        }
        for good in ["shop.example", "*.shop.example", "xn--caf-dma.example", "localhost"] {
            assert!(good.parse::<DomainName>().is_ok(), "{good:?}");
        }
        for bad in ["", "/etc", "a/../b", "a//b", "./a", "a\0", "a\nb", "a/"] {
            assert!(HomePath::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }
}
