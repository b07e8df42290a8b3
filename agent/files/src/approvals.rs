//! What may go to the target although an account may not have it: by path, and only as it was seen there. Here
//! are the paths, and whether something is what was seen. It must not know who approves, or why.

use std::collections::BTreeMap;

use ferry_proto::approval::{Fingerprint, Kind as SeenKind, Sight};
use ferry_proto::{Fault, shown};

use crate::attributes::{Attribute, Class, class};
use crate::entries::{Entry, What};
use crate::metadata::{Kind, Stat};

/// See the module. Paths are below the root; the root's own is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Approvals(BTreeMap<Vec<u8>, Fingerprint>);

impl Approvals {
    /// Those of what was seen.
    ///
    /// # Errors
    /// A path is none.
    pub fn of<'a>(sights: impl IntoIterator<Item = &'a Sight>) -> Result<Self, Fault> {
        let path = |sight: &'a Sight| {
            let path = shown::read(&sight.path).ok_or_else(|| {
                Fault::permanent(format!("what is approved is no path: {}", sight.path))
            })?;
            Ok((path, sight.seen.clone()))
        };
        sights.into_iter().map(path).collect::<Result<_, _>>().map(Self)
    }

    /// What was seen at `path`, if it is approved.
    pub(crate) fn at(&self, path: impl FnOnce() -> Vec<u8>) -> Option<&Fingerprint> {
        if self.0.is_empty() { None } else { self.0.get(&path()) }
    }

    /// Whether something is approved below the directory at `path`.
    pub(crate) fn has_below(&self, path: &[u8]) -> bool {
        let is_below = |approved: &Vec<u8>| {
            approved.strip_prefix(path).is_some_and(|rest| rest.first() == Some(&b'/'))
        };
        self.0.keys().any(is_below)
    }
}

/// What is seen of an entry, with the digest of its content if it is a file; none if there is nothing to see.
pub fn seen(entry: &Entry, digest: &str) -> Option<Fingerprint> {
    let kind = match &entry.what {
        What::File(size) => SeenKind::File { size: *size, digest: digest.to_owned() },
        What::Directory => SeenKind::Directory,
        What::Symlink(to) => SeenKind::Symlink { to: shown::text(to) },
        What::Fifo => SeenKind::Fifo,
        What::Device(device) => SeenKind::Device(*device),
        What::Withheld(_) | What::Gone => return None,
    };
    let privileged = entry.attributes.iter().filter(|a| class(&a.name) != Class::User);
    let written = |a: &Attribute| (shown::text(&a.name), hex(&a.value));
    let Entry { mode, uid, gid, .. } = *entry;
    Some(Fingerprint { kind, mode, uid, gid, attributes: privileged.map(written).collect() })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What of an entry is not as it was `approved`, as a sentence; its content is not looked at.
pub fn difference(entry: &Entry, approved: &Fingerprint) -> Option<String> {
    let Some(now) = seen(entry, digest(approved).unwrap_or_default()) else {
        return Some("it is not offered".to_owned());
    };
    if now.kind != approved.kind {
        return Some(format!("it is a {}, not a {}", now.kind, approved.kind));
    }
    if now.mode != approved.mode {
        return Some(format!("its mode is {:04o}, not {:04o}", now.mode, approved.mode));
    }
    if now.uid != approved.uid {
        return Some(format!("its owner is {}, not {}", now.uid, approved.uid));
    }
    if now.gid != approved.gid {
        return Some(format!("its group is {}, not {}", now.gid, approved.gid));
    }
    if now.attributes != approved.attributes {
        return Some("its privileged attributes are others".to_owned());
    }
    if !entry.locks.is_none() {
        return Some(format!("it is {}", entry.locks.name()));
    }
    // Through another name it could be changed unseen.
    entry.link.map(|link| format!("it has {} names", link.names))
}

/// The digest that its content is to have, if it is a file.
pub fn digest(approved: &Fingerprint) -> Option<&str> {
    match &approved.kind {
        SeenKind::File { digest, .. } => Some(digest),
        _ => None,
    }
}

/// Whether an inode may be given out as what was `approved`, as far as stat tells: no content of another's is
/// read that somebody has put in its place.
pub fn may_leave(stat: &Stat, approved: &Fingerprint) -> bool {
    let same_kind = match (&approved.kind, stat.kind) {
        (SeenKind::File { size, .. }, Kind::File) => *size == stat.size,
        (SeenKind::Device(device), Kind::Device(found)) => *device == found,
        (SeenKind::Directory, Kind::Directory) => true,
        (SeenKind::Symlink { .. }, Kind::Symlink) | (SeenKind::Fifo, Kind::Fifo) => true,
        _ => false,
    };
    let Fingerprint { mode, uid, gid, .. } = *approved;
    same_kind
        && (mode, uid, gid) == (stat.mode, stat.uid, stat.gid)
        && (stat.nlink == 1 || stat.kind == Kind::Directory)
}

/// Why what stands where something was approved is refused: what is not as it was.
pub fn no_longer(why: &str) -> String {
    format!("it is not what was approved any more: {why}")
}

/// As [`no_longer`], of a content.
pub fn another_content() -> String {
    no_longer("its content is another")
}

#[cfg(test)]
mod tests {
    use ferry_proto::approval::Device;

    use super::*;
    use crate::entries::Link;
    use crate::locks::Locks;

    fn file() -> Entry {
        let capability = Attribute { name: b"security.capability".to_vec(), value: vec![1, 0xff] };
        let own = Attribute { name: b"user.mime".to_vec(), value: b"text".to_vec() };
        let attributes = vec![capability, own];
        Entry { uid: 0, gid: 1000, mode: 0o4755, attributes, ..Entry::of(What::File(5)) }
    }

    #[test]
    fn what_is_not_its_owners_to_set_is_seen() {
        let seen = seen(&file(), "d1").expect("a file");
        assert_eq!(seen.attributes.len(), 1, "{seen:?}");
        assert_eq!(seen.attributes["security.capability"], "01ff");
        assert_eq!(digest(&seen), Some("d1"));
    }

    #[test]
    fn whatever_is_not_as_it_was_is_named() {
        let approved = seen(&file(), "d1").expect("a file");
        assert_eq!(difference(&file(), &approved), None);
        let mut own = file();
        own.attributes[1].value = b"other".to_vec();
        assert_eq!(difference(&own, &approved), None, "its owner's to set");
        let mut capable = file();
        capable.attributes[0].value = vec![2];
        let mut plain = file();
        plain.attributes.clear();
        for (entry, word) in [
            (
                Entry { what: What::Symlink(b"/etc/shadow".to_vec()), ..file() },
                "symlink to /etc/shadow",
            ),
            (Entry { what: What::File(6), ..file() }, "6 bytes, not"),
            (Entry { mode: 0o755, ..file() }, "mode is 0755, not 4755"),
            (Entry { uid: 1000, ..file() }, "owner is 1000, not 0"),
            (Entry { gid: 0, ..file() }, "group is 0, not 1000"),
            (capable, "attributes"),
            (plain, "attributes"),
            (Entry { locks: Locks { immutable: true, append_only: false }, ..file() }, "immutable"),
            (Entry { link: Some(Link { group: 0, names: 2 }), ..file() }, "2 names"),
            (Entry::of(What::Gone), "not offered"),
        ] {
            let difference = difference(&entry, &approved).expect(word);
            assert!(difference.contains(word), "{difference} lacks {word}");
        }
        let device = |minor| What::Device(Device { block: false, major: 1, minor });
        let node = seen(&Entry::of(device(3)), "").expect("a device");
        let other = difference(&Entry::of(device(5)), &node).expect("another device");
        assert!(other.contains("1:5, not a character device 1:3"), "{other}");
    }

    #[test]
    fn paths_are_read_as_they_are_shown() {
        let seen = seen(&file(), "d1").expect("a file");
        let sight = |path: &str| Sight { path: path.to_owned(), seen: seen.clone() };
        let approvals = Approvals::of(&[sight("."), sight("a\\xff/b")]).expect("paths");
        for path in [&b""[..], b"a\xff/b"] {
            assert_eq!(approvals.at(|| path.to_vec()), Some(&seen));
        }
        assert_eq!(approvals.at(|| b"a".to_vec()), None);
        assert!(approvals.has_below(b"a\xff") && !approvals.has_below(b"a"));
        assert!(Approvals::of(&[sight("a\\")]).is_err());
        let none = || panic!("there are no approvals to look for");
        assert_eq!(Approvals::default().at(none), None);
    }
}
