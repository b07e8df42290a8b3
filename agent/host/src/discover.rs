//! Proposes definitions of accounts from what the system shows: users, sites, pools, databases,
//! mailboxes, crontabs, units. For a person to review: every part says where it comes from, and
//! every doubt. Changes nothing.
//!
//! Configuration of services is root's and is believed; what is in a home is hostile: it is looked at
//! confined, and what it says is never enough to make something the account's.

mod apache;
mod databases;
mod draft;
mod inside;
mod mail;
mod mail_tables;
mod nginx;
mod people;
mod pools;
mod reader;
mod settings;
mod shown;
mod sites;
#[cfg(test)]
mod tests;
mod web;

use std::collections::{BTreeMap, BTreeSet};

use ferry_proto::Fault;
use ferry_proto::account::{Definition, EngineKind};
use ferry_proto::ids::{AccountName, UnixName};
use serde::Serialize;

use self::draft::{Draft, Part};
use self::inside::Home;
use self::people::{People, Person};
use self::settings::Named;
use self::shown::shown;
use self::web::Served;
use crate::{Finding, Layout, accounts, cron, processes, sites_fence, users};

/// What the database servers show. Asked elsewhere: this crate does not know them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatabasesSeen {
    /// Every database.
    pub databases: Vec<DatabaseSeen>,
    /// Every database user.
    pub users: Vec<DatabaseUserSeen>,
    /// What could not be asked.
    pub doubts: Vec<String>,
}

/// A database, as its server names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseSeen {
    /// Its engine.
    pub engine: EngineKind,
    /// Its name.
    pub name: String,
    /// Who owns it, where databases have owners.
    pub owner: Option<String>,
}

/// A database user, as its server names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseUserSeen {
    /// Its engine.
    pub engine: EngineKind,
    /// Its name.
    pub name: String,
    /// From where it may come, where users have hosts.
    pub host: Option<String>,
    /// The databases on which it has rights of its own.
    pub databases: BTreeSet<String>,
    /// Whether it has rights on the whole server.
    pub administrates: bool,
}

/// What is proposed, and what is left over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Discovery {
    /// A proposal per account.
    pub proposals: Vec<Proposal>,
    /// What belongs to nobody, or could not be looked at; one line each.
    pub unassigned: Vec<String>,
}

/// A proposed definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proposal {
    /// The account's name; the file is called so.
    pub account: AccountName,
    /// The Unix user.
    pub user: String,
    /// Whether there is no doubt about any of it.
    pub complete: bool,
    /// Every doubt.
    pub review: Vec<String>,
    /// What the text defines; none: it defines nothing before a doubt is answered.
    pub definition: Option<Definition>,
    /// The text of the file, with comments.
    pub text: String,
}

/// Looks at everything. Only accounts of `wanted` users are proposed, all if there are none; users
/// whose accounts are defined already only if they are wanted.
///
/// # Errors
/// If the user database cannot be read, or does not have a wanted user.
pub fn discover(
    layout: &Layout,
    databases: &DatabasesSeen,
    defined: &[Definition],
    wanted: &[String],
) -> Result<Discovery, Fault> {
    let people = People::read(layout)?;
    if let Some(unknown) = wanted.iter().find(|w| people.named(w).is_none()) {
        return Err(Fault::precondition(format!(
            "there is no user {} whose account could be proposed",
            shown(unknown)
        ))
        .remedy("name a user of /etc/passwd who has a home and an id of people's (UID_MIN)"));
    }
    let (sites, mut unassigned) = nginx::served(layout);
    let (apache, doubts) = apache::served(layout);
    unassigned.extend(doubts);
    let sites = web::joined(sites.into_iter().chain(apache).collect());
    let mut board = Board::new(layout, &people, &sites, unassigned);
    let hints = board.hints();
    sites::propose(&mut board, &sites, &pools::read(layout));
    databases::propose(&mut board, databases, &hints);
    mail::propose(&mut board, mail_tables::read(layout));
    board.clocks_and_units()?;
    Ok(board.finished(defined, wanted))
}

/// The drafts, and what is known while they are made.
struct Board<'a> {
    layout: &'a Layout,
    people: &'a People,
    drafts: BTreeMap<usize, Draft>,
    unassigned: Vec<String>,
    /// By how many sites each certificate is used.
    certificates: BTreeMap<String, usize>,
}

impl<'a> Board<'a> {
    fn new(
        layout: &'a Layout,
        people: &'a People,
        sites: &[Served],
        unassigned: Vec<String>,
    ) -> Self {
        let mut certificates = BTreeMap::new();
        for (certificate, _) in sites.iter().flat_map(|s| &s.certificates) {
            *certificates.entry(certificate.clone()).or_default() += 1;
        }
        let mut taken = BTreeSet::new();
        let mut drafts = BTreeMap::new();
        for (index, person) in people.iter() {
            let account = account_name(&person.name, &mut taken);
            drafts.insert(
                index,
                Draft {
                    head: head(layout, person, &account),
                    account,
                    sites: Vec::new(),
                    databases: Vec::new(),
                    mail: Vec::new(),
                },
            );
        }
        Self { layout, people, drafts, unassigned, certificates }
    }

    /// The draft of a person.
    fn draft(&mut self, person: usize) -> &mut Draft {
        // One was made for each person.
        self.drafts.get_mut(&person).expect("a draft per person")
    }

    /// The databases that settings in the homes name.
    fn hints(&mut self) -> Vec<(usize, Named)> {
        let mut hints = Vec::new();
        let people = self.people;
        for (index, person) in people.iter() {
            let home = match Home::open(self.layout, &person.home) {
                Ok(home) => home,
                Err(errno) => {
                    self.draft(index).head.review(format!("the home cannot be opened: {errno}"));
                    continue;
                }
            };
            let (files, cut) = home.find(settings::FILES);
            if cut {
                self.draft(index).head.review(
                    "the home is too large to look for all settings that name databases".to_owned(),
                );
            }
            let named = files.iter().filter_map(|(file, text)| settings::named(file, text));
            hints.extend(named.map(|named| (index, named)));
        }
        hints
    }

    /// What runs by the clock or by systemd.
    fn clocks_and_units(&mut self) -> Result<(), Fault> {
        let people = self.people;
        for (index, person) in people.iter() {
            let Ok(user) = person.name.parse::<UnixName>() else { continue };
            let cron = cron::describe(self.layout, &user)?;
            let lingers = processes::lingers(self.layout, &user)?;
            let units = processes::installed_units(self.layout, &user, person.uid);
            let own = Home::open(self.layout, &person.home)
                .map(|home| home.list(".config/systemd/user".as_ref()))
                .unwrap_or_default();
            let part = &mut self.draft(index).head;
            if cron.content.is_some() {
                let file = format!("/var/spool/cron/crontabs/{user}");
                part.evidence.push(format!("from {file}: the user has a crontab"));
            }
            for finding in cron.findings {
                part.review(said(&finding));
            }
            for unit in units {
                part.review(format!(
                    "{unit} of this system runs as the user: it is stopped with the account, but does \
                     not move. Install it at the target too, or make it a unit of the user"
                ));
            }
            let own: Vec<String> = own
                .iter()
                .filter(|(path, directory)| !directory && path.extension().is_some())
                .filter_map(|(path, _)| Some(path.file_name()?.to_string_lossy().into_owned()))
                .collect();
            if !own.is_empty() {
                let linger = if lingers { "with" } else { "without" };
                part.evidence.push(format!(
                    "user units below the home ({linger} lingering), which move with it: {}",
                    own.join(", ")
                ));
            }
            part.set("crontab", true);
        }
        Ok(())
    }

    fn finished(mut self, defined: &[Definition], wanted: &[String]) -> Discovery {
        let mut proposals = Vec::new();
        let known: BTreeSet<&str> = defined.iter().map(|d| d.user.as_str()).collect();
        for (index, draft) in std::mem::take(&mut self.drafts) {
            let person = self.people.get(index);
            let named = wanted.contains(&person.name);
            if !named && (!wanted.is_empty() || known.contains(person.name.as_str())) {
                continue;
            }
            if !named && !person.logs_in() && draft.is_bare() {
                let note =
                    format!("user {} has no login and nothing to move was found", person.name);
                self.unassigned.push(note);
                continue;
            }
            proposals.push(proposal(self.layout, person, draft));
        }
        clashes(&mut proposals, defined);
        let unassigned: BTreeSet<String> = self.unassigned.iter().map(|note| shown(note)).collect();
        Discovery { proposals, unassigned: unassigned.into_iter().collect() }
    }
}

fn said(finding: &Finding) -> String {
    if finding.remedy.is_empty() {
        finding.message.clone()
    } else {
        format!("{} ({})", finding.message, finding.remedy)
    }
}

/// The account's name for a user's: the same where it can be.
fn account_name(user: &str, taken: &mut BTreeSet<AccountName>) -> AccountName {
    let plain = |c: char| {
        if c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c) { c } else { '-' }
    };
    let mut base: String = user.to_lowercase().chars().map(plain).collect();
    if !base.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') {
        base.insert(0, '_');
    }
    for number in 1_u64.. {
        let suffix = if number == 1 { String::new() } else { format!("-{number}") };
        let mut name = base.clone();
        name.truncate(31 - suffix.len());
        name.push_str(&suffix);
        if let Ok(name) = name.parse::<AccountName>()
            && taken.insert(name.clone())
        {
            return name;
        }
    }
    unreachable!("there are more numbers than users")
}

/// What stands before the tables of a definition.
fn head(layout: &Layout, person: &Person, account: &AccountName) -> Part {
    let home = person.home.display();
    let mut part = Part::new(format!(
        "from /etc/passwd: user {} ({}), home {home}, shell {}",
        person.name, person.uid, person.shell
    ));
    if account.as_str() != person.name {
        part.review(format!("{} is no name for an account; {account} was made of it", person.name));
    }
    part.set("name", account.to_string());
    if let Err(error) = person.name.parse::<UnixName>() {
        part.doubt(format!("the user cannot be moved: {error}. Rename it (usermod --login)"));
    }
    part.set("user", person.name.clone());
    part.set("home", home.to_string());
    let is_link =
        std::fs::symlink_metadata(layout.path(&person.home)).is_ok_and(|m| m.is_symlink());
    if is_link {
        part.review(format!(
            "{home} is a symlink: name the real path as the home (usermod --home)"
        ));
    }
    let mut groups = Vec::new();
    for (group, gid) in &person.groups {
        if *gid >= 1000 && group.parse::<UnixName>().is_ok() {
            part.evidence.push(format!("from /etc/group: member of {group}"));
            groups.push(group.clone());
        }
    }
    part.set("groups", groups);
    part
}

/// The proposal that a draft has become, with what would be refused or told before a move.
fn proposal(layout: &Layout, person: &Person, mut draft: Draft) -> Proposal {
    let definition = if draft.head.doubted { None } else { defined(&mut draft) };
    if let Some(definition) = &definition {
        match sites_fence::plan_fence(layout, definition) {
            // Preflight says them again; the definition is right all the same.
            Ok(plan) => draft.head.evidence.extend(plan.findings.iter().map(said)),
            Err(fault) => draft.head.review(fault.to_string()),
        }
        match users::describe(layout, definition) {
            Ok(record) => record.findings.iter().for_each(|f| draft.head.review(said(f))),
            Err(fault) => draft.head.review(fault.to_string()),
        }
    }
    let review = draft.review();
    Proposal {
        user: shown(&person.name),
        complete: definition.is_some() && review.is_empty(),
        review,
        definition,
        text: draft.text(),
        account: draft.account,
    }
}

/// What the draft's text defines. What is refused makes the whole a comment.
fn defined(draft: &mut Draft) -> Option<Definition> {
    let parsed = toml::from_str::<Definition>(&draft.text());
    let checked = parsed.map_err(|e| e.message().to_owned()).and_then(|definition| {
        definition.check().map_err(|e| e.to_string())?;
        Ok(definition)
    });
    checked
        .map_err(|error| draft.head.doubt(format!("the definition would be refused: {error}")))
        .ok()
}

/// What a proposal and another, or a definition that is there, both claim: `ferry-agent accounts` would
/// refuse both.
fn clashes(proposals: &mut [Proposal], defined: &[Definition]) {
    let replaced = |d: &&Definition| proposals.iter().all(|p| p.user != d.user.as_str());
    let mut all: Vec<Definition> = defined.iter().filter(replaced).cloned().collect();
    all.extend(proposals.iter().filter_map(|p| p.definition.clone()));
    for (account, clash) in accounts::clashing(&all) {
        for proposal in proposals.iter_mut().filter(|p| p.account == account) {
            let clash = shown(&clash);
            proposal.complete = false;
            proposal.text = format!("# REVIEW: {clash}\n{}", proposal.text);
            proposal.review.push(clash);
        }
    }
}
