//! The mailboxes in Postfix's tables and Dovecot's passwd-files. Password hashes are passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::reader::{NESTED, Reader};
use crate::Layout;

/// The most mailboxes that are looked at.
const MOST: usize = 200_000;

/// Where a mailbox is, as one file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: PathBuf,
    /// None: it does not say where, or not as a Maildir.
    pub(super) path: Option<PathBuf>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Mailboxes {
    /// By address.
    pub(super) places: BTreeMap<String, Vec<Place>>,
    /// The domains that Postfix takes mail for.
    pub(super) domains: BTreeSet<String>,
    pub(super) aliases: Vec<(String, String)>,
    /// What could not be read.
    pub(super) doubts: Vec<String>,
}

impl Mailboxes {
    fn add(&mut self, address: &str, file: &Path, path: Option<PathBuf>) {
        if self.places.len() < MOST {
            let place = Place { file: file.to_owned(), path };
            self.places.entry(address.to_owned()).or_default().push(place);
        }
    }
}

/// Reads both services' configuration.
pub(super) fn read(layout: &Layout) -> Mailboxes {
    let mut found = Mailboxes::default();
    let mut reader = Reader::new(layout);
    postfix(&mut reader, &mut found);
    dovecot(&mut reader, &mut found);
    found.doubts.append(&mut reader.doubts);
    found
}

fn postfix(reader: &mut Reader<'_>, found: &mut Mailboxes) {
    let Some(text) = reader.read(Path::new("/etc/postfix/main.cf")) else { return };
    let parameters = Parameters::of(&text);
    let base = PathBuf::from(parameters.value("virtual_mailbox_base"));
    // Another transport decides by itself where a mailbox is.
    let transport = parameters.value("virtual_transport");
    let places = transport.is_empty() || transport == "virtual";
    for word in parameters.list("virtual_mailbox_domains") {
        if word.contains(':') || word.starts_with('/') {
            let keys = table(reader, found, "virtual_mailbox_domains", &word);
            found.domains.extend(keys.into_iter().map(|(domain, _, _)| domain.to_lowercase()));
        } else {
            found.domains.insert(word.to_lowercase());
        }
    }
    for word in parameters.list("virtual_mailbox_maps") {
        for (address, value, file) in table(reader, found, "virtual_mailbox_maps", &word) {
            let relative = value.trim_start_matches('/');
            // Without the slash at its end it is an mbox.
            let maildir = places && relative.ends_with('/');
            let path = maildir.then(|| base.join(relative.trim_end_matches('/')));
            found.add(&address, &file, path);
        }
    }
    for word in parameters.list("virtual_alias_maps") {
        let aliases = table(reader, found, "virtual_alias_maps", &word);
        found.aliases.extend(aliases.into_iter().map(|(from, to, _)| (from, to)));
    }
}

/// The entries of a table's text, with the file.
fn table(
    reader: &mut Reader<'_>,
    found: &mut Mailboxes,
    parameter: &str,
    word: &str,
) -> Vec<(String, String, PathBuf)> {
    let (kind, path) = word.split_once(':').unwrap_or(("file", word));
    // Ferry's own tables name accounts that came by a move; those have definitions.
    if path.starts_with("/etc/ferry/") {
        return Vec::new();
    }
    let readable = ["hash", "texthash", "btree", "lmdb", "cdb", "dbm", "file"].contains(&kind);
    let path = PathBuf::from(path);
    let text = if readable { reader.read(&path) } else { None };
    let Some(text) = text else {
        found.doubts.push(format!("Postfix's {parameter} {word} cannot be read"));
        return Vec::new();
    };
    let lines = text.lines().filter(|l| !l.starts_with(['#', ' ', '\t']) && !l.trim().is_empty());
    lines
        .take(MOST)
        .map(|line| {
            let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            (key.to_owned(), value.trim().to_owned(), path.clone())
        })
        .collect()
}

/// What `main.cf` sets.
struct Parameters(BTreeMap<String, String>);

impl Parameters {
    fn of(text: &str) -> Self {
        let mut all: BTreeMap<String, String> = BTreeMap::new();
        let mut last: Option<String> = None;
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            if line.starts_with([' ', '\t']) {
                if let Some(value) = last.as_ref().and_then(|key| all.get_mut(key)) {
                    value.push(' ');
                    value.push_str(line.trim());
                }
            } else if let Some((key, value)) = line.split_once('=') {
                all.insert(key.trim().to_owned(), value.trim().to_owned());
                last = Some(key.trim().to_owned());
            }
        }
        Self(all)
    }

    /// A parameter, others that it names put in. What refers to itself comes to nothing.
    fn value(&self, key: &str) -> String {
        let mut value = self.0.get(key).cloned().unwrap_or_default();
        for _ in 0..NESTED {
            let Some(at) = value.find('$') else { break };
            let rest = &value[at + 1..];
            let name: String = rest
                .trim_start_matches(['{', '('])
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            let braces = rest.starts_with(['{', '(']);
            let end = at + 1 + name.len() + if braces { 2 } else { 0 };
            let with = self.0.get(&name).cloned().unwrap_or_default();
            value = format!("{}{with}{}", &value[..at], value.get(end..).unwrap_or_default());
            if value.len() > 1 << 16 {
                break;
            }
        }
        if value.contains('$') { String::new() } else { value }
    }

    fn list(&self, key: &str) -> Vec<String> {
        let value = self.value(key);
        value.split([',', ' ', '\t']).filter(|w| !w.is_empty()).map(str::to_owned).collect()
    }
}

/// What Dovecot's configuration says of mailboxes.
#[derive(Debug, Default)]
struct Dovecot {
    location: String,
    files: BTreeSet<PathBuf>,
    /// The home of every mailbox, by a template.
    home: Option<String>,
    /// The block that is being read: its driver, and its arguments.
    block: Option<(String, String)>,
}

fn dovecot(reader: &mut Reader<'_>, found: &mut Mailboxes) {
    let mut seen = Dovecot::default();
    settings(reader, &mut seen, Path::new("/etc/dovecot/dovecot.conf"), 0);
    for file in seen.files.iter().filter(|f| !f.starts_with("/etc/ferry")) {
        if file.to_string_lossy().contains('%') {
            found
                .doubts
                .push(format!("Dovecot's {} is not read: one file per user", file.display()));
            continue;
        }
        let Some(text) = reader.read(file) else {
            found.doubts.push(format!("Dovecot's {} cannot be read", file.display()));
            continue;
        };
        for line in text.lines().filter(|l| !l.starts_with('#')).take(MOST) {
            let address = line.split(':').next().unwrap_or_default();
            if address.contains('@') {
                found.add(address, file, entry(&seen, address, line));
            }
        }
    }
}

fn settings(reader: &mut Reader<'_>, seen: &mut Dovecot, file: &Path, nested: usize) {
    let Some(text) = reader.read(file) else { return };
    for line in text.lines().map(str::trim).filter(|l| !l.starts_with('#')) {
        if let Some(pattern) =
            line.strip_prefix("!include_try ").or_else(|| line.strip_prefix("!include "))
        {
            if nested < NESTED {
                for file in reader.matching(&Path::new("/etc/dovecot").join(pattern.trim())) {
                    settings(reader, seen, &file, nested + 1);
                }
            }
            continue;
        }
        let head = line.strip_prefix("passdb").or_else(|| line.strip_prefix("userdb"));
        if let Some(head) = head.filter(|h| h.ends_with('{')) {
            seen.end();
            // Since 2.4 the driver stands in the head.
            let driver = head.trim_end_matches('{').trim().to_owned();
            seen.block = Some((driver, String::new()));
        } else if line == "}" {
            seen.end();
        } else if let Some((key, value)) = line.split_once('=') {
            seen.set(key.trim(), value.trim());
        }
    }
    seen.end();
}

impl Dovecot {
    fn set(&mut self, key: &str, value: &str) {
        match (key, &mut self.block) {
            ("mail_location" | "mail_path", None) => self.location = value.to_owned(),
            ("driver", Some((driver, _))) => value.clone_into(driver),
            ("args", Some((_, arguments))) => value.clone_into(arguments),
            ("passwd_file_path", Some(_)) => {
                self.files.insert(value.into());
            }
            ("home", Some((driver, _))) if driver == "static" => self.home = Some(value.to_owned()),
            _ => {}
        }
    }

    fn end(&mut self) {
        let Some((driver, arguments)) = self.block.take() else { return };
        let mut words = arguments.split_whitespace();
        match driver.as_str() {
            "passwd-file" => {
                self.files.extend(words.find(|w| w.starts_with('/')).map(PathBuf::from))
            }
            "static" => {
                let home = words.find_map(|w| w.strip_prefix("home="));
                self.home = home.map(str::to_owned).or(self.home.take());
            }
            _ => {}
        }
    }
}

/// Where a line of a passwd-file says that the mailbox is: `user:hash:uid:gid::home::extra fields`.
fn entry(seen: &Dovecot, address: &str, line: &str) -> Option<PathBuf> {
    let extra = |key: &str| {
        let mut words = line.split([' ', '\t', ':']);
        words.find_map(|w| w.strip_prefix(key)).filter(|v| !v.is_empty())
    };
    // Its value may hold colons: what follows the first word of the field.
    let own = ["userdb_mail=maildir:", " mail=maildir:", ":mail=maildir:", "userdb_mail_path="]
        .iter()
        .find_map(|key| line.split_once(key))
        .and_then(|(_, rest)| rest.split([':', ' ', '\t']).next());
    let home = line.split(':').nth(5).filter(|h| !h.is_empty()).or_else(|| extra("userdb_home="));
    let home = home.or(seen.home.as_deref());
    let template = match own {
        Some(path) => path,
        None => {
            let location = seen.location.strip_prefix("maildir:").unwrap_or(&seen.location);
            location.split(':').next().unwrap_or_default()
        }
    };
    filled(template, address, home)
}

/// A template with the mailbox's parts put in; none if it has others.
fn filled(template: &str, address: &str, home: Option<&str>) -> Option<PathBuf> {
    let (local, domain) = address.split_once('@')?;
    let put = |text: &str| {
        let mut text = text.to_owned();
        for (from, to) in [
            ("%{user | username}", local),
            ("%{user|username}", local),
            ("%{user | domain}", domain),
            ("%{user|domain}", domain),
            ("%{user}", address),
            ("%{home}", home.unwrap_or("%")),
            ("%n", local),
            ("%d", domain),
            ("%u", address),
            ("%h", home.unwrap_or("%")),
        ] {
            text = text.replace(from, to);
        }
        text
    };
    let mut path = put(template);
    if let Some(rest) = path.strip_prefix("~/") {
        path = format!("{}/{rest}", put(home?));
    }
    path = put(&path);
    (path.starts_with('/') && !path.contains('%'))
        .then(|| PathBuf::from(path.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled() {
        let of = |template: &str, home| filled(template, "info@a.example", home);
        assert_eq!(of("/srv/%d/%n", None), Some("/srv/a.example/info".into()));
        assert_eq!(of("~/Maildir", Some("/home/%n")), Some("/home/info/Maildir".into()));
        assert_eq!(of("%h/mail/", Some("/h")), Some("/h/mail".into()));
        assert_eq!(of("~/Maildir", None), None);
        assert_eq!(of("/srv/%Ld/%n", None), None);
    }

    #[test]
    fn parameters_are_put_together() {
        let text = "a = /srv\n# no\nb = $a/x,\n  ${a}/y\nloop = $loop\n";
        let parameters = Parameters::of(text);
        assert_eq!(parameters.list("b"), ["/srv/x", "/srv/y"]);
        assert_eq!(parameters.value("loop"), "");
        assert_eq!(parameters.value("none"), "");
    }

    #[test]
    fn a_line_of_a_passwd_file_says_where() {
        let seen = Dovecot { location: "maildir:/v/%d/%n:LAYOUT=x".into(), ..Dovecot::default() };
        let of = |line: &str| entry(&seen, "i@a.example", line);
        let line =
            "i@a.example:{SHA}mail=x:1:1::/home/a::userdb_mail=maildir:/home/a/mail/i:INDEX=/x";
        assert_eq!(of(line), Some("/home/a/mail/i".into()));
        assert_eq!(of("i@a.example:{SHA}x:1:1::::"), Some("/v/a.example/i".into()));
    }
}
