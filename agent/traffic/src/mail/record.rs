//! The passwords of an account's mailboxes, as hashes, and how they are found in the passwd-files
//! that Dovecot at the source is configured with.
//!
//! Nothing here prints a hash. A hash is text from another server: it is checked before it may be
//! written into a file of this one.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use ferry_proto::Fault;
use ferry_proto::ids::{DomainName, MailboxName};
use serde::{Deserialize, Serialize};

use super::spec::{MailSpec, Mailbox};

/// The longest hash taken: Argon2 and SCRAM need some 200 characters.
const MAX_HASH: usize = 512;
/// The largest passwd-file read.
const MAX_PASSWD_FILE: u64 = 64 << 20;

/// What Dovecot 2.4 refuses unless `auth_allow_weak_schemes` is set.
const WEAK_SCHEMES: &[&str] =
    &["MD5", "MD5-CRYPT", "PLAIN-MD5", "LDAP-MD5", "SMD5", "DES-CRYPT", "LANMAN", "NTLM"];

/// A password hash with its scheme in front, `{SCHEME}…`. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PasswordHash(String);

impl PasswordHash {
    /// The hash as a Dovecot passwd-file holds it. Without a scheme in front it has
    /// `default_scheme`.
    ///
    /// # Errors
    /// A word on what is wrong, without the hash.
    pub fn from_passwd_file(field: &str, default_scheme: &str) -> Result<Self, &'static str> {
        if field.is_empty() {
            // Dovecot 2.4 lets an empty password in with an empty password.
            return Err("it is empty");
        }
        let text = if field.starts_with('{') {
            field.to_owned()
        } else if let Some(md5) = field.strip_suffix("[34]") {
            format!("{{PLAIN-MD5}}{md5}")
        } else if let Some(des) = field.strip_suffix("[13]") {
            format!("{{CRYPT}}{des}")
        } else {
            format!("{{{default_scheme}}}{field}")
        };
        Self::try_from(text)
    }

    /// The text for a passwd-file.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }

    /// The scheme, in capitals and without its encoding: `SHA512-CRYPT`, `CRYPT`.
    pub fn scheme(&self) -> String {
        let name = self.0[1..].split(['}', '.']).next().unwrap_or_default();
        name.to_ascii_uppercase()
    }

    /// Whether Dovecot 2.4 refuses it in its standard configuration.
    pub fn is_weak(&self) -> bool {
        let scheme = self.scheme();
        let value = self.0.split_once('}').map_or("", |(_, value)| value);
        WEAK_SCHEMES.contains(&scheme.as_str())
            // crypt(3) of the old kinds: MD5, or DES with its 13 characters.
            || (scheme == "CRYPT" && (value.starts_with("$1$") || !value.starts_with('$')))
    }
}

impl TryFrom<String> for PasswordHash {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, &'static str> {
        let Some((scheme, value)) = text.strip_prefix('{').and_then(|t| t.split_once('}')) else {
            return Err("it names no scheme");
        };
        let scheme_ok = (1..=32).contains(&scheme.len())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        if !scheme_ok {
            return Err("its scheme is not a name");
        }
        if value.is_empty() {
            return Err("it is empty");
        }
        if text.len() > MAX_HASH {
            return Err("it is longer than any hash");
        }
        if !value.chars().all(|c| c.is_ascii_graphic() && c != ':') {
            return Err("it holds characters that a passwd-file cannot hold");
        }
        Ok(Self(text))
    }
}

impl From<PasswordHash> for String {
    fn from(hash: PasswordHash) -> String {
        hash.0
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}}}…", self.scheme())
    }
}

/// The password of one mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailboxPassword {
    /// Its domain.
    pub domain: DomainName,
    /// Its local part.
    pub mailbox: MailboxName,
    /// The hash.
    pub hash: PasswordHash,
}

/// What the source knows of an account's mail and the target needs: the passwords. A mailbox without
/// one receives mail, but nobody can log in to it through Ferry's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailRecord {
    /// The passwords that could be read.
    pub passwords: Vec<MailboxPassword>,
}

impl MailRecord {
    /// The password of one mailbox.
    pub fn password(&self, mailbox: &Mailbox<'_>) -> Option<&PasswordHash> {
        self.passwords
            .iter()
            .find(|p| p.domain == *mailbox.domain && p.mailbox == *mailbox.name)
            .map(|p| &p.hash)
    }

    /// The mailboxes of `spec` whose password is not known.
    pub fn missing<'a>(&self, spec: &'a MailSpec) -> Vec<Mailbox<'a>> {
        spec.mailboxes().filter(|m| self.password(m).is_none()).collect()
    }
}

/// A passwd-file that Dovecot is configured to look passwords up in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PasswdFile {
    /// Its path, with Dovecot's variables.
    pub path: String,
    /// How a login name becomes a line's first field.
    pub username_format: String,
    /// The scheme of hashes that name none.
    pub default_scheme: String,
}

/// Looks every mailbox of `spec` up in `files`, in their order. Blocks.
///
/// # Errors
/// When a file exists and cannot be read.
pub(super) fn read_passwords(spec: &MailSpec, files: &[PasswdFile]) -> Result<MailRecord, Fault> {
    let mut record = MailRecord::default();
    for mailbox in spec.mailboxes() {
        for file in files {
            if let Some(hash) = lookup(&mailbox, file)? {
                record.passwords.push(MailboxPassword {
                    domain: mailbox.domain.clone(),
                    mailbox: mailbox.name.clone(),
                    hash,
                });
                break;
            }
        }
    }
    Ok(record)
}

fn lookup(mailbox: &Mailbox<'_>, file: &PasswdFile) -> Result<Option<PasswordHash>, Fault> {
    let (Some(path), Some(key)) = (
        expand(&file.path, mailbox.name, mailbox.domain),
        expand(&file.username_format, mailbox.name, mailbox.domain),
    ) else {
        return Ok(None);
    };
    let fault = |e: &std::io::Error| {
        Fault::io(format!("the passwords of {} cannot be read from {path}", mailbox.domain), e)
    };
    let open = match std::fs::File::open(Path::new(&path)) {
        Ok(open) => open,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fault(&e)),
    };
    for line in BufReader::new(open.take(MAX_PASSWD_FILE)).split(b'\n') {
        let line = line.map_err(|e| fault(&e))?;
        let Ok(line) = std::str::from_utf8(&line) else {
            continue;
        };
        let mut fields = line.split(':');
        if fields.next() != Some(key.as_str()) {
            continue;
        }
        let field = fields.next().unwrap_or_default();
        return Ok(PasswordHash::from_passwd_file(field, &file.default_scheme).ok());
    }
    Ok(None)
}

/// Expands Dovecot's variables for user, local part and domain, in the syntax of 2.3 (`%u`, `%Ld`,
/// `%{domain}`) and 2.4 (`%{user | domain | lower}`). None: a variable of another kind.
pub(super) fn expand(text: &str, mailbox: &MailboxName, domain: &DomainName) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        if let Some((inner, tail)) = after.strip_prefix('{').and_then(|t| t.split_once('}')) {
            let mut words = inner.split('|').map(str::trim);
            let mut kind = words.next()?;
            for filter in words {
                match (kind, filter) {
                    ("user", "username" | "domain") => kind = filter,
                    // Checked names have no capitals.
                    (_, "lower") => {}
                    _ => return None,
                }
            }
            push_variable(&mut out, kind, mailbox, domain)?;
            rest = tail;
            continue;
        }
        // 2.3: modifiers, of which only L (lower case) keeps a checked name as it is.
        let letters = after.trim_start_matches('L');
        let letter = letters.chars().next()?;
        let kind = match letter {
            'u' => "user",
            'n' => "username",
            'd' => "domain",
            '%' => "%",
            _ => return None,
        };
        push_variable(&mut out, kind, mailbox, domain)?;
        rest = &letters[1..];
    }
    out.push_str(rest);
    Some(out)
}

fn push_variable(
    out: &mut String,
    kind: &str,
    mailbox: &MailboxName,
    domain: &DomainName,
) -> Option<()> {
    match kind {
        "user" => {
            out.push_str(mailbox.as_str());
            out.push('@');
            out.push_str(domain.as_str());
        }
        "username" => out.push_str(mailbox.as_str()),
        "domain" => out.push_str(domain.as_str()),
        "%" => out.push('%'),
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_syntaxes_of_variables_expand() {
        let alice = "alice".parse().expect("a literal");
        let domain = "shop.example".parse().expect("a literal");
        for (text, expected) in [
            ("/etc/users", Some("/etc/users")),
            ("%u", Some("alice@shop.example")),
            ("%Lu", Some("alice@shop.example")),
            ("/etc/%d/passwd-%Ln", Some("/etc/shop.example/passwd-alice")),
            ("%{user}", Some("alice@shop.example")),
            ("%{user | lower}", Some("alice@shop.example")),
            ("/m/%{user|domain}/%{user | username}", Some("/m/shop.example/alice")),
            ("/m/%{domain}/x", Some("/m/shop.example/x")),
            ("100%%", Some("100%")),
            ("%s", None),
            ("%{protocol}", None),
            ("%{user | md5}", None),
            ("%1Mu", None),
            ("%", None),
        ] {
            assert_eq!(expand(text, &alice, &domain).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_hash_is_checked_and_never_shown() {
        for bad in ["", "{PLAIN}", "{PLAIN}a:b", "{PLAIN}a b", "{PLAIN}a\nb", "{}x", "{A B}x", "{x"]
        {
            assert!(PasswordHash::from_passwd_file(bad, "CRYPT").is_err(), "{bad:?}");
        }
        let hash = PasswordHash::from_passwd_file("$6$salt$secret", "CRYPT").expect("valid");
        assert_eq!(hash.reveal(), "{CRYPT}$6$salt$secret");
        assert_eq!(format!("{hash:?}"), "{CRYPT}…");
        assert!(!hash.is_weak());
        assert!(PasswordHash::from_passwd_file("0123456789abc[13]", "X").expect("valid").is_weak());
        assert!(PasswordHash::from_passwd_file("$1$a$b", "CRYPT").expect("valid").is_weak());
        assert!(PasswordHash::from_passwd_file("{plain-md5.hex}00", "X").expect("valid").is_weak());
    }
}
