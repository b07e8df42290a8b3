//! What stands in the tables that Postfix and Dovecot read: a pure function of all standings on this
//! server. Only checked names, numbers and paths are written.
//!
//! Held domains are regular expressions, because a table's exact keys would not do: a provider's own
//! entry for a full address comes before any entry for its domain, and `smtpd` takes a domain's entry
//! for its subdomains too. Served domains are exact keys, so that thousands cost nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use ferry_proto::ids::{AccountName, DomainName};

use super::standing::{Basis, Gate, Standing};
use super::{MAILBOX_SERVICE, PASS_ON_SERVICE};

/// A domain that is always held and that no account can have (RFC 6761): it shows whether Dovecot
/// reads the tables.
pub(super) const PROBE_DOMAIN: &str = "ferry-probe.invalid";

/// What a sender's server is told while the domain is fenced.
const DEFERRED: &str = "4.2.1 the mailboxes of this domain are being moved, try again soon";

/// The tables' texts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    /// Postfix `regexp`: recipients that `smtpd` defers.
    pub held_recipients: String,
    /// Postfix `regexp`: domains that are not delivered here.
    pub held_transport: String,
    /// Postfix `texthash`: domains that Ferry's delivery service delivers.
    pub transport: String,
    /// Postfix `texthash`: domains that this server receives for.
    pub virtual_domains: String,
    /// Postfix `texthash`: address to Maildir.
    pub virtual_mailboxes: String,
    /// Postfix `texthash`: domain to user id.
    pub virtual_uids: String,
    /// Postfix `texthash`: domain to group id.
    pub virtual_gids: String,
    /// Dovecot passwd-file by domain: lookups that fail for the time being.
    pub held_logins: String,
    /// Dovecot passwd-file: password hashes.
    pub passwords: String,
    /// Dovecot passwd-file: where each mailbox is and whose it is.
    pub users: String,
}

/// How Dovecot is told where a mailbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Up to 2.3.
    V2_3,
    /// From 2.4.
    V2_4,
}

/// The tables for all that stands on this server.
pub(super) fn render(
    standings: &BTreeMap<AccountName, Standing>,
    dialect: Dialect,
    pass_on_port: u16,
) -> Tables {
    let mut tables = Tables::default();
    hold_login(&mut tables, PROBE_DOMAIN);
    for standing in standings.values() {
        gate(&mut tables, standing, pass_on_port);
        if let Basis::Ferry(record) = &standing.basis {
            if standing.gate != Gate::Closed {
                postfix_mailboxes(&mut tables, standing);
            }
            for mailbox in standing.spec.mailboxes() {
                let (address, maildir) = (mailbox.address(), mailbox.maildir());
                let maildir = maildir.display();
                let place = match dialect {
                    Dialect::V2_3 => format!("userdb_mail=maildir:{maildir}"),
                    // Debian's own configuration has another place for the inbox.
                    Dialect::V2_4 => format!(
                        "userdb_mail_driver=maildir userdb_mail_path={maildir} \
                         userdb_mail_inbox_path={maildir}"
                    ),
                };
                let (uid, gid) = (standing.spec.uid(), standing.spec.gid());
                line(&mut tables.users, format_args!("{address}::{uid}:{gid}::{maildir}::{place}"));
                // Never an empty password: Dovecot 2.4 lets it in.
                if let Some(hash) = record.password(&mailbox) {
                    line(&mut tables.passwords, format_args!("{address}:{}", hash.reveal()));
                }
            }
        }
    }
    tables
}

fn gate(tables: &mut Tables, standing: &Standing, pass_on_port: u16) {
    for domain in standing.spec.domains() {
        let pattern = pattern(domain);
        match standing.gate {
            Gate::Open => {}
            Gate::Closed => hold_login(tables, domain.as_str()),
            Gate::Fenced => {
                line(&mut tables.held_recipients, format_args!("{pattern} 450 {DEFERRED}"));
                line(&mut tables.held_transport, format_args!("{pattern} retry:{DEFERRED}"));
                hold_login(tables, domain.as_str());
            }
            Gate::PassedOn { next_hop } => {
                let host = match next_hop {
                    IpAddr::V4(v4) => v4.to_string(),
                    IpAddr::V6(v6) => format!("ipv6:{v6}"),
                };
                line(
                    &mut tables.held_transport,
                    format_args!("{pattern} {PASS_ON_SERVICE}:[{host}]:{pass_on_port}"),
                );
                hold_login(tables, domain.as_str());
            }
        }
    }
}

/// What is the same whether the gate is open, fenced or passes on: opening it again only takes lines
/// away, which needs no free disk. A held domain's own entry comes before the one here.
fn postfix_mailboxes(tables: &mut Tables, standing: &Standing) {
    let spec = &standing.spec;
    for domain in spec.domains() {
        line(&mut tables.transport, format_args!("{domain} {MAILBOX_SERVICE}:"));
        line(&mut tables.virtual_domains, format_args!("{domain} {}", spec.account()));
        line(&mut tables.virtual_uids, format_args!("@{domain} {}", spec.uid()));
        line(&mut tables.virtual_gids, format_args!("@{domain} {}", spec.gid()));
    }
    for mailbox in spec.mailboxes() {
        // The slash at the end makes it a Maildir.
        let (address, maildir) = (mailbox.address(), mailbox.maildir());
        line(&mut tables.virtual_mailboxes, format_args!("{address} {}/", maildir.display()));
    }
}

/// Any address of exactly this domain. A domain holds letters, digits, hyphens and dots, of which
/// only the dot means something in an expression.
fn pattern(domain: &DomainName) -> String {
    format!("/@{}$/", domain.as_str().replace('.', "\\."))
}

fn hold_login(tables: &mut Tables, domain: &str) {
    line(&mut tables.held_logins, format_args!("{domain}:::::::userdb_tempfail=yes"));
}

fn line(text: &mut String, entry: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{entry}");
}

#[cfg(test)]
mod tests {
    use super::super::record::{MailRecord, MailboxPassword};
    use super::super::spec::MailSpec;
    use super::*;
    use ferry_proto::account::MailDomain;

    fn standing(basis: Basis, gate: Gate) -> BTreeMap<AccountName, Standing> {
        let name: AccountName = "shop".parse().expect("a literal");
        let domains = vec![MailDomain {
            domain: "shop.example".parse().expect("a literal"),
            root: "mail/shop.example".to_owned().try_into().expect("a literal"),
            mailboxes: vec!["alice".parse().expect("a literal"), "bob".parse().expect("a literal")],
        }];
        let spec =
            MailSpec::new(name.clone(), "/home/shop".into(), 3001, 3002, domains).expect("valid");
        BTreeMap::from([(name, Standing { spec, basis, gate, unbroken: false })])
    }

    fn record() -> MailRecord {
        MailRecord {
            passwords: vec![MailboxPassword {
                domain: "shop.example".parse().expect("a literal"),
                mailbox: "alice".parse().expect("a literal"),
                hash: "{CRYPT}$6$x".to_owned().try_into().expect("a literal"),
            }],
        }
    }

    #[test]
    fn a_fence_holds_every_address_of_the_domain_and_no_other() {
        let t = render(&standing(Basis::Provider, Gate::Fenced), Dialect::V2_3, 25);
        assert_eq!(t.held_recipients, format!("/@shop\\.example$/ 450 {DEFERRED}\n"));
        assert_eq!(t.held_transport, format!("/@shop\\.example$/ retry:{DEFERRED}\n"));
        assert!(t.held_logins.contains("shop.example:::::::userdb_tempfail=yes\n"));
        assert_eq!(t.virtual_domains, "");
        assert_eq!(t.users, "");
    }

    #[test]
    fn an_open_account_is_received_delivered_and_let_in() {
        let t = render(&standing(Basis::Ferry(record()), Gate::Open), Dialect::V2_4, 25);
        assert_eq!(t.transport, "shop.example ferry-mailbox:\n");
        assert_eq!(t.virtual_domains, "shop.example shop\n");
        assert_eq!(
            t.virtual_mailboxes,
            "alice@shop.example /home/shop/mail/shop.example/alice/\n\
             bob@shop.example /home/shop/mail/shop.example/bob/\n"
        );
        assert_eq!(t.virtual_uids, "@shop.example 3001\n");
        assert_eq!(t.virtual_gids, "@shop.example 3002\n");
        assert_eq!(t.passwords, "alice@shop.example:{CRYPT}$6$x\n");
        assert!(t.users.contains(
            "bob@shop.example::3001:3002::/home/shop/mail/shop.example/bob::\
             userdb_mail_driver=maildir userdb_mail_path=/home/shop/mail/shop.example/bob \
             userdb_mail_inbox_path=/home/shop/mail/shop.example/bob\n"
        ));
        assert!(!t.held_logins.contains("shop.example:"));
        assert_eq!((t.held_recipients.as_str(), t.held_transport.as_str()), ("", ""));
    }

    #[test]
    fn a_prepared_account_is_not_claimed_by_postfix() {
        let t = render(&standing(Basis::Ferry(record()), Gate::Closed), Dialect::V2_3, 25);
        assert_eq!((t.virtual_domains.as_str(), t.transport.as_str()), ("", ""));
        assert!(t.users.contains("userdb_mail=maildir:/home/shop/mail/shop.example/alice\n"));
        assert!(t.held_logins.contains("shop.example:"));
    }

    #[test]
    fn mail_is_passed_on_to_either_kind_of_address() {
        for (address, host) in [("192.0.2.7", "192.0.2.7"), ("2001:db8::7", "ipv6:2001:db8::7")] {
            let next_hop = address.parse().expect("a literal");
            let t =
                render(&standing(Basis::Provider, Gate::PassedOn { next_hop }), Dialect::V2_3, 25);
            assert_eq!(t.held_transport, format!("/@shop\\.example$/ ferry-relay:[{host}]:25\n"));
            assert_eq!(t.held_recipients, "", "it is still received");
        }
    }
}
