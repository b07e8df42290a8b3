//! Approvals: what goes to the target although an account may not have it, because support said so, path by
//! path. An approval is bound to what was seen at its path: the account's owner may put something else there.
//!
//! What it says crosses from the controller to the target in what the controller signs. It must not know how
//! anything is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Fault, shown};

/// Most approvals of a move.
pub const MAX_APPROVALS: usize = 64;
/// Most bytes of all approvals of a move, as JSON.
pub const MAX_LEN: usize = 32 * 1024;
/// Most bytes of a file that can be approved: it is read whole, at both ends.
pub const MAX_CONTENT: u64 = 64 << 20;

/// Numbers below this mean the same user, or group, on every Debian server: base-passwd gives them out once and for
/// all. What else an approval names must be the account's, which the target translates.
pub const FIXED_IDS: u32 = 100;

/// Character devices whose numbers the kernel gives out once and for all, and that give no power over a server:
/// null, zero, full, random, urandom, tty, ptmx, tun, fuse.
const HARMLESS: [(u32, u32); 9] =
    [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (10, 200), (10, 229)];

/// A device's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// A block device, else a character device.
    pub block: bool,
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl Device {
    /// Whether it is the same device on every server, and one that may be had anywhere.
    pub fn is_harmless(self) -> bool {
        !self.block && HARMLESS.contains(&(self.major, self.minor))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.block { "block" } else { "character" };
        write!(f, "{kind} device {}:{}", self.major, self.minor)
    }
}

/// What kind of thing it is, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Kind {
    /// A regular file.
    File {
        /// Bytes of its content.
        size: u64,
        /// The file engine's digest (BLAKE3) of it, in hex.
        digest: String,
    },
    /// A directory. What is in it is no part of it.
    Directory,
    /// A symlink.
    Symlink {
        /// Where it points, as [`shown`].
        to: String,
    },
    /// A named pipe.
    Fifo,
    /// A device node.
    Device(Device),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { size, .. } => write!(f, "file of {size} bytes"),
            Self::Directory => f.write_str("directory"),
            Self::Symlink { to } => write!(f, "symlink to {to}"),
            Self::Fifo => f.write_str("FIFO"),
            Self::Device(device) => device.fmt(f),
        }
    }
}

/// What was seen at a path, in the source's numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// What it is.
    pub kind: Kind,
    /// Mode bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The extended attributes that are not its owner's to set: the name as [`shown`], the value in hex.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

impl fmt::Display for Fingerprint {
    /// All that an approval of it lets through.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, mode, uid, gid, attributes } = self;
        write!(f, "{kind}, owner {uid}, group {gid}, mode {mode:04o}")?;
        if self.is_set(0o4000) {
            write!(f, ", setuid to user {uid}")?;
        }
        if self.is_set(0o2000) {
            write!(f, ", setgid to group {gid}")?;
        }
        for (name, value) in attributes {
            write!(f, ", {}", attribute(name, value))?;
        }
        let writers = self.writers();
        if writers.is_empty() {
            return Ok(());
        }
        write!(f, "; it may be written by {}", writers.join(", "))
    }
}

impl Fingerprint {
    /// Whether it runs with the rights of that bit. On a directory it means something else.
    fn is_set(&self, bit: u16) -> bool {
        self.kind != Kind::Directory && self.mode & bit != 0
    }

    /// Who but root may change what runs with the rights that it gives, if it gives any.
    fn writers(&self) -> Vec<String> {
        let Self { mode, uid, gid, attributes, .. } = self;
        if !self.is_set(0o6000) && !attributes.contains_key(CAPABILITY) {
            return Vec::new();
        }
        // The group's bits are those of all whom an ACL names.
        let is_listed = attributes.contains_key(ACL);
        [
            (*uid != 0, format!("user {uid}")),
            (mode & 0o020 != 0 && *gid != 0, format!("group {gid}")),
            (mode & 0o020 != 0 && is_listed, "whom its ACL names".to_owned()),
            (mode & 0o002 != 0, "everybody".to_owned()),
        ]
        .into_iter()
        .filter_map(|(may, who)| may.then_some(who))
        .collect()
    }

    /// Whether it can have been seen by an agent: it comes from the source.
    fn is_plausible(&self) -> bool {
        let is_whole = match &self.kind {
            Kind::File { size, digest } => {
                *size <= MAX_CONTENT && digest.len() == 64 && is_hex(digest)
            }
            Kind::Symlink { to } => to == "." || is_shown(to),
            Kind::Directory | Kind::Fifo | Kind::Device(_) => true,
        };
        let is_attribute = |(name, value): (&String, &String)| is_shown(name) && is_hex(value);
        is_whole && self.mode <= 0o7777 && self.attributes.iter().all(is_attribute)
    }
}

fn is_hex(text: &str) -> bool {
    text.len().is_multiple_of(2) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_shown(text: &str) -> bool {
    shown::read(text).is_some_and(|bytes| shown::text(&bytes) == text)
}

const CAPABILITY: &str = "security.capability";
const ACL: &str = "system.posix_acl_access";

/// An attribute as people read it; with its value in hex if that is in no known form.
fn attribute(name: &str, value: &str) -> String {
    let meaning = match name {
        CAPABILITY => capabilities(value).map(|masks| format!("capabilities {masks}")),
        ACL => acl(value).map(|text| format!("ACL {text}")),
        "system.posix_acl_default" => acl(value).map(|text| format!("default ACL {text}")),
        _ => None,
    };
    meaning.unwrap_or_else(|| format!("{name}={value}"))
}

/// The number in hex digits that the kernel keeps from byte `at` on, least byte first.
fn word(value: &str, at: usize) -> Option<u32> {
    let digits = value.get(2 * at..2 * at + 8)?;
    u32::from_str_radix(digits, 16).ok().map(u32::swap_bytes)
}

/// The masks of the capabilities that a file has, as `/proc` has them: linux/capability.h.
fn capabilities(value: &str) -> Option<String> {
    let mask = |at| Some(format!("{:08x}{:08x}", word(value, at + 8)?, word(value, at)?));
    let effective = if word(value, 0)? & 1 == 0 { "" } else { " effective" };
    Some(format!("permitted {} inheritable {}{effective}", mask(4)?, mask(8)?))
}

/// An ACL as getfacl writes it in short: acl(5), and linux/posix_acl_xattr.h.
fn acl(value: &str) -> Option<String> {
    let entry = |at| {
        let (head, id) = (word(value, at)?, word(value, at + 4)?);
        let who = match head & 0xffff {
            0x01 => "user:".to_owned(),
            0x02 => format!("user:{id}"),
            0x04 => "group:".to_owned(),
            0x08 => format!("group:{id}"),
            0x10 => "mask:".to_owned(),
            0x20 => "other:".to_owned(),
            _ => return None,
        };
        let may = |bit: u32, letter| if head >> 16 & bit == 0 { '-' } else { letter };
        Some(format!("{who}:{}{}{}", may(4, 'r'), may(2, 'w'), may(1, 'x')))
    };
    word(value, 0).filter(|version| *version == 2)?;
    let entries = (4..value.len() / 2).step_by(8).map(entry).collect::<Option<Vec<_>>>()?;
    Some(entries.join(","))
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sight {
    /// Its path below the home, as [`shown`].
    pub path: String,
    /// What was seen.
    pub seen: Fingerprint,
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.seen)
    }
}

impl Sight {
    fn is_plausible(&self) -> bool {
        let is_path = shown::read(&self.path).is_some_and(|bytes| shown::path(&bytes) == self.path);
        is_path && self.seen.is_plausible()
    }
}

/// An account's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    /// Its user's.
    pub uid: u32,
    /// Its primary group's.
    pub gid: u32,
}

/// A person's word that it may go to the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// What.
    pub what: Sight,
    /// The account's numbers at the source, when it was planned: a source that says others later translates what
    /// was approved to somebody else.
    pub ids: Ids,
    /// Who said so, as the controller knows them.
    pub by: String,
    /// When, by the controller's clock, Unix milliseconds.
    pub at_unix_ms: i64,
}

/// Whether these may be a move's: each of another path, as an agent can have seen it, and neither too many nor
/// too long.
///
/// # Errors
/// They are not.
pub fn check(approvals: &[Approval]) -> Result<(), Fault> {
    let fault = |why: String| {
        Err(Fault::precondition(format!("so much cannot be approved: {why}"))
            .remedy("give the paths to the account, or remove them, before it moves"))
    };
    if approvals.len() > MAX_APPROVALS {
        let count = approvals.len();
        return fault(format!("{count} paths, and a move has at most {MAX_APPROVALS}"));
    }
    let length = serde_json::to_vec(approvals)
        .map_err(|e| Fault::bug("approvals have no JSON").caused_by(&e))?
        .len();
    if length > MAX_LEN {
        return fault(format!("their description has {length} bytes, and may have {MAX_LEN}"));
    }
    let paths: BTreeSet<_> = approvals.iter().map(|a| shown::read(&a.what.path)).collect();
    if paths.len() != approvals.len() || paths.contains(&None) {
        return fault("a path is approved twice, or is none".to_owned());
    }
    if approvals.iter().any(|approval| !approval.what.is_plausible()) {
        return Err(Fault::permanent("no agent sees things as the source says that it does")
            .remedy("bring its agent to the controller's version"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn approval(path: &str) -> Approval {
        let kind = Kind::File { size: 5, digest: "00".repeat(32) };
        let seen = Fingerprint { kind, mode: 0o755, uid: 0, gid: 0, attributes: BTreeMap::new() };
        let what = Sight { path: path.to_owned(), seen };
        let ids = Ids { uid: 1001, gid: 1001 };
        Approval { what, ids, by: "an operator".to_owned(), at_unix_ms: 7 }
    }

    #[test]
    fn all_that_is_let_through_is_said() {
        let mut seen = approval("x").what.seen;
        seen.mode = 0o6755;
        // cap_net_bind_service+ep, as the kernel keeps it.
        let value = "0100000200040000000000000000000000000000";
        seen.attributes.insert("security.capability".to_owned(), value.to_owned());
        seen.attributes.insert("trusted.secret".to_owned(), "00".to_owned());
        assert_eq!(
            seen.to_string(),
            "file of 5 bytes, owner 0, group 0, mode 6755, setuid to user 0, setgid to group 0, \
             capabilities permitted 0000000000000400 inheritable 0000000000000000 effective, \
             trusted.secret=00"
        );
        let device = Device { block: false, major: 1, minor: 3 };
        let node =
            Fingerprint { kind: Kind::Device(device), mode: 0o666, ..approval("x").what.seen };
        assert_eq!(node.to_string(), "character device 1:3, owner 0, group 0, mode 0666");
    }

    #[test]
    fn inheritable_capabilities_and_acls_are_said_and_odd_ones_shown_as_they_are() {
        let inheritable = "0000000200000000000400000000000000000000";
        let masks = "permitted 0000000000000000 inheritable 0000000000000400";
        assert_eq!(capabilities(inheritable).as_deref(), Some(masks));
        let acl = "02000000\
                   01000700ffffffff 02000600e9030000 04000500ffffffff 080007000a000000 \
                   10000700ffffffff 20000400ffffffff";
        assert_eq!(
            attribute(ACL, &acl.replace(' ', "")),
            "ACL user::rwx,user:1001:rw-,group::r-x,group:10:rwx,mask::rwx,other::r--"
        );
        for odd in ["01", "\u{e4}\u{e4}\u{e4}\u{e4}", "0200000003000700ffffffff", "02000000010007"]
        {
            assert_eq!(attribute(ACL, odd), format!("{ACL}={odd}"));
            assert_eq!(attribute(CAPABILITY, odd), format!("{CAPABILITY}={odd}"));
        }
    }

    #[test]
    fn who_may_write_what_has_rights_is_said() {
        let plain = Fingerprint { mode: 0o4755, ..approval("x").what.seen };
        let acl = BTreeMap::from([(ACL.to_owned(), "02000000".to_owned())]);
        let capable = BTreeMap::from([(CAPABILITY.to_owned(), "01".to_owned())]);
        for (seen, writers) in [
            (plain.clone(), ""),
            (Fingerprint { mode: 0o777, uid: 7, gid: 7, ..plain.clone() }, ""),
            (Fingerprint { uid: 1001, ..plain.clone() }, "user 1001"),
            (Fingerprint { gid: 1001, ..plain.clone() }, ""),
            (Fingerprint { gid: 1001, mode: 0o2772, ..plain.clone() }, "group 1001, everybody"),
            (Fingerprint { mode: 0o4775, ..plain.clone() }, ""),
            (Fingerprint { mode: 0o4775, attributes: acl, ..plain.clone() }, "whom its ACL names"),
            (Fingerprint { mode: 0o757, attributes: capable, ..plain }, "everybody"),
        ] {
            assert_eq!(seen.writers().join(", "), writers, "{seen}");
            assert_eq!(
                seen.to_string().contains("may be written by"),
                !writers.is_empty(),
                "{seen}"
            );
        }
    }

    #[test]
    fn what_no_agent_can_have_seen_is_no_approval() {
        let of = |path: &str, change: fn(&mut Fingerprint)| {
            let mut one = approval(path);
            change(&mut one.what.seen);
            check(&[one]).map_err(|fault| fault.class)
        };
        let refused = Err(crate::FaultClass::Permanent);
        for path in [".", "a\\xff", "\u{e4}"] {
            assert_eq!(of(path, |_| ()), Ok(()), "{path}");
        }
        for path in ["\\x61", "a\\xFF", "a\u{202e}", " a", ""] {
            assert!(of(path, |_| ()).is_err(), "{path}");
        }
        let file = |size, digest: &str| Kind::File { size, digest: digest.to_owned() };
        let link = |to: &str| Kind::Symlink { to: to.to_owned() };
        let digest = "00".repeat(32);
        for kind in [file(MAX_CONTENT, &digest), link("."), link("../a"), Kind::Fifo] {
            let mut one = approval("a");
            one.what.seen.kind = kind;
            check(&[one]).unwrap();
        }
        let long = "0".repeat(62) + "zz";
        for kind in [
            file(MAX_CONTENT + 1, &digest),
            file(1 << 50, &digest),
            file(5, "00"),
            file(5, &long),
            file(5, &"AA".repeat(32)),
            link("a\n"),
        ] {
            let mut one = approval("a");
            one.what.seen.kind = kind;
            assert!(check(&[one.clone()]).is_err(), "{one:?}");
        }
        assert_eq!(of("a", |seen| seen.mode = 0o10755), refused);
        assert_eq!(
            of("a", |seen| drop(seen.attributes.insert("a\n".into(), "00".into()))),
            refused
        );
        assert_eq!(of("a", |seen| drop(seen.attributes.insert("a".into(), "0".into()))), refused);
        assert_eq!(of("a", |seen| drop(seen.attributes.insert("a".into(), "x0".into()))), refused);
    }

    #[test]
    fn only_what_is_the_same_device_everywhere_and_harmless_is() {
        let is = |block, major, minor| Device { block, major, minor }.is_harmless();
        assert!(is(false, 1, 5) && is(false, 1, 3) && is(false, 10, 229));
        // Memory, ports, another's disk; and a disk of a harmless device's numbers.
        for (block, major, minor) in [(false, 1, 1), (false, 1, 4), (true, 253, 3), (true, 1, 3)] {
            assert!(!is(block, major, minor), "{major}:{minor}");
        }
    }

    #[test]
    fn there_are_neither_too_many_nor_too_long_nor_two_of_one_path() {
        let many =
            |count: usize| (0..count).map(|n| approval(&format!("p{n}"))).collect::<Vec<_>>();
        check(&many(MAX_APPROVALS)).unwrap();
        assert!(check(&many(MAX_APPROVALS + 1)).is_err());
        assert!(check(&[approval("a"), approval("\\x61")]).is_err());
        assert!(check(&[approval("a\\")]).is_err());
        assert!(check(&[approval(&"a".repeat(MAX_LEN))]).is_err());
    }

    #[test]
    fn what_was_not_seen_is_not_read_as_nothing() {
        let text = serde_json::to_string(&approval("a")).unwrap();
        assert_eq!(serde_json::from_str::<Approval>(&text).unwrap(), approval("a"));
        let more = text.replace("\"uid\":0", "\"uid\":0,\"label\":1");
        assert!(serde_json::from_str::<Approval>(&more).is_err());
    }
}
