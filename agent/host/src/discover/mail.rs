//! Whose each mail domain is: the mailboxes that Postfix and Dovecot know, and where their Maildirs are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ferry_proto::ids::{DomainName, HomePath, MailboxName};

use super::Board;
use super::draft::Part;
use super::inside::Home;
use super::mail_tables::{Mailboxes, Place};

/// Proposes each mail domain to the account whose home holds its Maildirs.
pub(super) fn propose(board: &mut Board<'_>, seen: Mailboxes) {
    board.unassigned.extend(seen.doubts);
    let mut by_domain: BTreeMap<String, BTreeMap<String, Vec<Place>>> = BTreeMap::new();
    for (address, places) in seen.places {
        match address.rsplit_once('@') {
            Some((local, domain)) => {
                let local = local.to_owned();
                by_domain.entry(domain.to_lowercase()).or_default().insert(local, places);
            }
            None => board.unassigned.push(format!("mailbox {address} has no domain")),
        }
    }
    for domain in &seen.domains {
        if !by_domain.contains_key(domain) {
            board.unassigned.push(format!("mail domain {domain} has no mailbox that can be read"));
        }
    }
    for (domain, mailboxes) in by_domain {
        let aliases: Vec<&(String, String)> =
            seen.aliases.iter().filter(|(from, _)| from.ends_with(&format!("@{domain}"))).collect();
        domain_of(board, &domain, &mailboxes, &aliases);
    }
    own_maildirs(board);
}

/// The mailboxes of a domain that are in one home.
#[derive(Default)]
struct Share {
    /// Roots below the home, with the mailboxes in each.
    roots: BTreeMap<PathBuf, BTreeSet<String>>,
    evidence: BTreeSet<String>,
    doubts: Vec<String>,
}

fn domain_of(
    board: &mut Board<'_>,
    domain: &str,
    mailboxes: &BTreeMap<String, Vec<Place>>,
    aliases: &[&(String, String)],
) {
    let mut shares: BTreeMap<usize, Share> = BTreeMap::new();
    let mut homeless: Vec<String> = Vec::new();
    for (local, places) in mailboxes {
        let address = format!("{local}@{domain}");
        let homed = places.iter().find_map(|place| {
            let path = place.path.as_ref()?;
            let real = || board.people.real_home_of(board.layout, path);
            Some((board.people.home_of(path).or_else(real)?, place))
        });
        let Some(((owner, below), place)) = homed else {
            let place = places.iter().find_map(|p| p.path.as_ref());
            let place = place.map_or("an unknown place".to_owned(), |p| p.display().to_string());
            homeless.push(format!("mailbox {address} is in {place}"));
            continue;
        };
        let share = shares.entry(owner).or_default();
        share.evidence.insert(format!("from {}", place.file.display()));
        if below.file_name().is_some_and(|name| name == local.as_str()) {
            let root = below.parent().unwrap_or(Path::new("")).to_owned();
            share.roots.entry(root).or_default().insert(local.clone());
        } else {
            share.doubts.push(format!(
                "the Maildir of {address} is {}, but must be called {local} to be moved",
                below.display()
            ));
        }
        let differing =
            places.iter().filter_map(|p| p.path.as_ref()).any(|p| Some(p) != place.path.as_ref());
        if differing {
            share.doubts.push(format!("Postfix and Dovecot have {address} at different places"));
        }
    }
    let contested = shares.len() > 1;
    if shares.is_empty() {
        homeless_domain(board, domain, &homeless);
        return;
    }
    for (owner, share) in shares {
        let mut part = written(board, owner, domain, share);
        for (from, to) in aliases {
            part.review(format!("the alias {from} to {to} does not move: Ferry moves mailboxes"));
        }
        for lost in &homeless {
            part.review(format!("{lost}, outside the home: it does not move"));
        }
        if contested {
            part.doubt(format!(
                "mailboxes of {domain} are in several homes: a domain moves as a whole"
            ));
        }
        board.draft(owner).mail.push(part);
    }
}

fn homeless_domain(board: &mut Board<'_>, domain: &str, homeless: &[String]) {
    board.unassigned.push(format!(
        "mail of {domain}: no mailbox is below a home, so it cannot be moved ({})",
        homeless.join("; ")
    ));
}

fn written(board: &Board<'_>, owner: usize, domain: &str, share: Share) -> Part {
    let person = board.people.get(owner);
    let mut part = Part { evidence: share.evidence.into_iter().collect(), ..Part::default() };
    for doubt in share.doubts {
        part.review(doubt);
    }
    part.lines.push("[[mail]]".to_owned());
    part.set("domain", domain);
    if !domain.parse::<DomainName>().is_ok_and(|d| !d.as_str().starts_with("*.")) {
        part.doubt(format!("{domain} is not a mail domain that can be moved"));
    }
    if share.roots.len() > 1 {
        let all: Vec<String> = share.roots.keys().map(|r| r.display().to_string()).collect();
        part.doubt(format!("its Maildirs are in several directories: {}", all.join(", ")));
    }
    let Some((root, mailboxes)) = share.roots.into_iter().next() else {
        part.doubt("none of its mailboxes can be moved as it is".to_owned());
        return part;
    };
    part.evidence.push(format!("Maildirs in {}", person.home.join(&root).display()));
    match HomePath::try_from(root.to_string_lossy().into_owned()) {
        Ok(root) => part.set("root", root.to_string()),
        Err(error) => part.doubt(format!("the directory of its Maildirs: {error}")),
    }
    let mut good = Vec::new();
    let home = Home::open(board.layout, &person.home).ok();
    for mailbox in mailboxes {
        if mailbox.parse::<MailboxName>().is_err() {
            part.review(format!(
                "mailbox {mailbox}@{domain} cannot be moved: another name is needed"
            ));
            continue;
        }
        if !home.as_ref().is_some_and(|h| h.holds_directory(&root.join(&mailbox))) {
            part.evidence.push(format!("{mailbox} has no Maildir yet"));
        }
        good.push(mailbox);
    }
    part.set("mailboxes", good);
    part
}

/// Mail of the Unix users themselves.
fn own_maildirs(board: &mut Board<'_>) {
    let mut found = Vec::new();
    for (index, person) in board.people.iter() {
        let holds = Home::open(board.layout, &person.home)
            .is_ok_and(|home| home.holds_directory(Path::new("Maildir/new")));
        if holds {
            found.push((index, format!(
                "{}/Maildir is the mail of the Unix user itself: it moves as files, but its delivery \
                 is not fenced",
                person.home.display()
            )));
        }
    }
    for (index, doubt) in found {
        let draft = board.draft(index);
        let proposed = draft.mail.iter().any(|p| p.lines.iter().any(|l| l.contains("\"Maildir")));
        if !proposed {
            draft.head.review(doubt);
        }
    }
}
