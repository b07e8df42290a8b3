//! What the mail of one account is: its domains, its mailboxes, and whose files they are. Everything
//! in it is checked, because it is written into configuration that Postfix and Dovecot read.
//!
//! Knows nothing of services, files or states.

use std::path::{Path, PathBuf};

use ferry_proto::Fault;
use ferry_proto::account::{Definition, MailDomain};
use ferry_proto::ids::{AccountName, DomainName, MailboxName};
use serde::{Deserialize, Serialize};

/// The mail of one account on one server. The user and group are this server's: they may be mapped
/// to others elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct MailSpec {
    account: AccountName,
    home: PathBuf,
    uid: u32,
    gid: u32,
    domains: Vec<MailDomain>,
}

/// A specification as it was stored, before its check.
#[derive(Deserialize)]
struct Unchecked {
    account: AccountName,
    home: PathBuf,
    uid: u32,
    gid: u32,
    domains: Vec<MailDomain>,
}

impl TryFrom<Unchecked> for MailSpec {
    type Error = Fault;
    fn try_from(u: Unchecked) -> Result<Self, Fault> {
        Self::new(u.account, u.home, u.uid, u.gid, u.domains)
    }
}

/// One mailbox, borrowed from its specification.
#[derive(Debug, Clone, Copy)]
pub struct Mailbox<'a> {
    /// Its domain.
    pub domain: &'a DomainName,
    /// Its local part.
    pub name: &'a MailboxName,
    /// The directory below the home that holds the domain's Maildirs.
    root: &'a MailDomain,
    home: &'a Path,
}

impl Mailbox<'_> {
    /// The address, which is also the login name.
    pub fn address(&self) -> String {
        format!("{}@{}", self.name, self.domain)
    }

    /// The Maildir.
    pub fn maildir(&self) -> PathBuf {
        self.root.root.below(self.home).join(self.name.as_str())
    }
}

impl MailSpec {
    /// The mail of an account whose files belong to `uid` and `gid` on this server.
    ///
    /// # Errors
    /// Precondition, when a value cannot be written into a mail server's configuration.
    pub fn new(
        account: AccountName,
        home: PathBuf,
        uid: u32,
        gid: u32,
        domains: Vec<MailDomain>,
    ) -> Result<Self, Fault> {
        let refuse = |what: String, remedy: &str| {
            Err(Fault::precondition(format!("account {account}: {what}")).remedy(remedy))
        };
        if !is_clean(&home) {
            return refuse(
                format!("the home {} cannot be written into mail configuration", home.display()),
                "name an absolute home of A-Z, a-z, 0-9 and '._+@-', without '.' and '..'",
            );
        }
        if uid == 0 || gid == 0 {
            return refuse(
                format!("its mail would be delivered as user {uid}, group {gid}"),
                "mail is never delivered as root: give the account its own user and group",
            );
        }
        for (i, d) in domains.iter().enumerate() {
            if d.domain.as_str().starts_with("*.") {
                return refuse(
                    format!("{} is not a mail domain", d.domain),
                    "name each mail domain; a wildcard receives no mail",
                );
            }
            if domains[..i].iter().any(|other| other.domain == d.domain) {
                return refuse(
                    format!("the mail domain {} is listed twice", d.domain),
                    "leave it once in the account's definition",
                );
            }
        }
        Ok(Self { account, home, uid, gid, domains })
    }

    /// The mail that an account's definition names.
    ///
    /// # Errors
    /// As [`MailSpec::new`].
    pub fn of(definition: &Definition, uid: u32, gid: u32) -> Result<Self, Fault> {
        Self::new(
            definition.name.clone(),
            definition.home.clone(),
            uid,
            gid,
            definition.mail.clone(),
        )
    }

    /// Whose mail it is.
    pub fn account(&self) -> &AccountName {
        &self.account
    }

    /// The user that owns the Maildirs here.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The group that owns the Maildirs here.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Whether the account has no mail at all.
    pub fn is_empty(&self) -> bool {
        self.domains.is_empty()
    }

    /// The domains.
    pub fn domains(&self) -> impl Iterator<Item = &DomainName> {
        self.domains.iter().map(|d| &d.domain)
    }

    /// The directories that hold the Maildirs.
    pub fn roots(&self) -> Vec<PathBuf> {
        self.domains.iter().map(|d| d.root.below(&self.home)).collect()
    }

    /// Every mailbox of every domain.
    pub fn mailboxes(&self) -> impl Iterator<Item = Mailbox<'_>> {
        self.domains.iter().flat_map(|d| {
            d.mailboxes.iter().map(|name| Mailbox {
                domain: &d.domain,
                name,
                root: d,
                home: &self.home,
            })
        })
    }
}

/// Whether a path can stand in a Postfix table and a Dovecot passwd-file: nothing that either of
/// them splits at or expands.
fn is_clean(path: &Path) -> bool {
    let Some(text) = path.to_str() else {
        return false;
    };
    text.len() <= 255
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._+@/-".contains(c))
        && text.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(home: &str, uid: u32, domains: &[&str]) -> Result<MailSpec, Fault> {
        let domains = domains
            .iter()
            .map(|d| MailDomain {
                domain: d.parse().expect("a literal"),
                root: "mail".to_owned().try_into().expect("a literal"),
                mailboxes: vec!["alice".parse().expect("a literal")],
            })
            .collect();
        MailSpec::new("shop".parse().expect("a literal"), home.into(), uid, 3001, domains)
    }

    #[test]
    fn what_configuration_cannot_hold_is_refused() {
        for home in ["/home/a b", "/home/a:b", "/home/$x", "/home/%u", "/home/../etc", "home", "/"]
        {
            assert!(spec(home, 3001, &[]).is_err(), "{home}");
        }
        assert!(spec("/home/shop", 0, &[]).is_err());
        assert!(spec("/home/shop", 3001, &["*.shop.example"]).is_err());
        assert!(spec("/home/shop", 3001, &["shop.example", "shop.example"]).is_err());
    }

    #[test]
    fn a_mailbox_knows_its_address_and_maildir() {
        let spec = spec("/home/shop", 3001, &["shop.example"]).expect("valid");
        let mailbox = spec.mailboxes().next().expect("one mailbox");
        assert_eq!(mailbox.address(), "alice@shop.example");
        assert_eq!(mailbox.maildir(), Path::new("/home/shop/mail/alice"));
    }

    #[test]
    fn a_stored_specification_is_checked_again() {
        let spec = spec("/home/shop", 3001, &["shop.example"]).expect("valid");
        let text = serde_json::to_string(&spec).expect("serialises");
        assert_eq!(serde_json::from_str::<MailSpec>(&text).expect("reads back"), spec);
        let bad = text.replace("/home/shop", "/home/../etc");
        assert!(serde_json::from_str::<MailSpec>(&bad).is_err());
    }
}
