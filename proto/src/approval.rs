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
        if *kind != Kind::Directory && mode & 0o4000 != 0 {
            write!(f, ", setuid to user {uid}")?;
        }
        if *kind != Kind::Directory && mode & 0o2000 != 0 {
            write!(f, ", setgid to group {gid}")?;
        }
        for (name, value) in attributes {
            match name.as_str() {
                "security.capability" => write!(f, ", capabilities {}", permitted(value))?,
                name => write!(f, ", {name}")?,
            }
        }
        Ok(())
    }
}

/// The mask of the capabilities that a file has, as `/proc` has masks; the whole value if it is in no known form.
fn permitted(value: &str) -> String {
    let word = |at: usize| {
        let digits = value.get(2 * at..2 * at + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::swap_bytes)
    };
    match (word(4), word(12)) {
        (Some(low), Some(high)) => format!("{high:08x}{low:08x}"),
        _ => value.to_owned(),
    }
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

/// A person's word that it may go to the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// What.
    pub what: Sight,
    /// Who said so, as the controller knows them.
    pub by: String,
    /// When, by the controller's clock, Unix milliseconds.
    pub at_unix_ms: i64,
}

/// Whether these may be a move's: each of another path, and neither too many nor too long.
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn approval(path: &str) -> Approval {
        let kind = Kind::File { size: 5, digest: "00".repeat(32) };
        let seen = Fingerprint { kind, mode: 0o755, uid: 0, gid: 0, attributes: BTreeMap::new() };
        let what = Sight { path: path.to_owned(), seen };
        Approval { what, by: "an operator".to_owned(), at_unix_ms: 7 }
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
             capabilities 0000000000000400, trusted.secret"
        );
        let device = Device { block: false, major: 1, minor: 3 };
        let node =
            Fingerprint { kind: Kind::Device(device), mode: 0o666, ..approval("x").what.seen };
        assert_eq!(node.to_string(), "character device 1:3, owner 0, group 0, mode 0666");
        assert_eq!(permitted("01"), "01");
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
