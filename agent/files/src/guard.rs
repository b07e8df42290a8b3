//! What an account may have at the target: whose files, which bits, which attributes. It decides on
//! what a peer claims and touches nothing.

use std::io;

use crate::acl;
use crate::attributes::{Attribute, Class, class};
use crate::entries::{Entry, What, Withheld};
use crate::locks::Locks;
use crate::metadata::Time;
use crate::options::IdMap;
use crate::projects::Project;
use crate::report::show;

/// Metadata as it is to be at the target: in the target's numbers, and allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Mode bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Extended attributes.
    pub attributes: Vec<Attribute>,
    /// Flags that keep it as it is.
    pub locks: Locks,
    /// The project that it is counted for; none: that is not ours to say.
    pub project: Option<Project>,
}

impl Wanted {
    /// On a file system that can hold project ids or cannot.
    pub fn where_projects_are_held(self, they_do: bool) -> Self {
        Self { project: self.project.filter(|_| they_do), ..self }
    }
}

/// Translates an entry's metadata.
///
/// # Errors
/// Why the entry is refused, as a sentence.
pub fn admit(entry: &Entry, ids: &IdMap) -> Result<Wanted, String> {
    match entry.what {
        What::Device => return Err("a device node is not created".to_owned()),
        What::Withheld(why) => return Err(withheld(why)),
        _ => {}
    }
    let foreign = |what: &str, id: u32| format!("its {what} {id} is not one of the account's");
    let uid = ids.uid(entry.uid).ok_or_else(|| foreign("owner", entry.uid))?;
    let gid = ids.gid(entry.gid).ok_or_else(|| foreign("group", entry.gid))?;
    // On a directory setgid hands down the group and setuid means nothing.
    if entry.what != What::Directory {
        if entry.mode & 0o4000 != 0 && ids.is_shared_uid(uid) {
            return Err(format!("it is setuid to user {uid}, who is not the account's alone"));
        }
        if entry.mode & 0o2000 != 0 && ids.is_shared_gid(gid) {
            return Err(format!("it is setgid to group {gid}, which is not the account's alone"));
        }
    }
    // A symlink's own attributes are the system's.
    let attributes = match entry.what {
        What::Symlink(_) => Vec::new(),
        _ => entry.attributes.iter().map(|a| attribute(a, ids)).collect::<Result<_, _>>()?,
    };
    let Entry { mode, mtime, locks, project, .. } = *entry;
    Ok(Wanted { mode, uid, gid, mtime, attributes, locks, project })
}

fn attribute(attribute: &Attribute, ids: &IdMap) -> Result<Attribute, String> {
    let value = match class(&attribute.name) {
        Class::User => attribute.value.clone(),
        Class::Acl => acl::translated(&attribute.value, ids)?,
        Class::Capability => return Err("it has file capabilities".to_owned()),
        Class::Trusted | Class::Security | Class::System => {
            let name = show(&attribute.name);
            return Err(format!("it has the privileged attribute {name}"));
        }
    };
    Ok(Attribute { name: attribute.name.clone(), value })
}

/// Why the source did not offer an entry, as a sentence.
fn withheld(why: Withheld) -> String {
    match why {
        Withheld::Excluded => "it is excluded".to_owned(),
        Withheld::Mount => "it is a mount at the source, which is not crossed".to_owned(),
        Withheld::TooDeep => {
            format!("it is deeper than {} levels", crate::confine::MAX_DEPTH)
        }
        Withheld::Unreadable(errno) => {
            format!("it cannot be read at the source: {}", errno_text(errno))
        }
        Withheld::Foreign(uid) => format!("its owner {uid} is not one of the account's"),
        Withheld::SharedLink(uid) => {
            format!("it has other names, and its owner {uid} is not the account's alone")
        }
        Withheld::Attributes => "its extended attributes are too large".to_owned(),
    }
}

/// What an error number of the peer means.
pub fn errno_text(errno: u32) -> String {
    match i32::try_from(errno) {
        Ok(errno) => io::Error::from_raw_os_error(errno).to_string(),
        Err(_) => format!("error {errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> IdMap {
        let mut ids = IdMap::of((1000, 2000), (1000, 3000));
        ids.uids.insert(33, 33);
        ids.gids.insert(33, 33);
        ids.shared_uids.insert(33);
        ids.shared_gids.insert(33);
        ids
    }

    fn file(uid: u32, gid: u32, mode: u16) -> Entry {
        Entry { uid, gid, mode, ..Entry::of(What::File(1)) }
    }

    #[test]
    fn ids_are_translated() {
        let wanted = admit(&file(1000, 33, 0o4755), &ids()).expect("the account's own setuid file");
        assert_eq!((wanted.uid, wanted.gid, wanted.mode), (2000, 33, 0o4755));
    }

    #[test]
    fn what_is_not_the_accounts_is_refused() {
        let mut capable = file(1000, 1000, 0o755);
        capable.attributes.push(Attribute { name: b"security.capability".to_vec(), value: vec![] });
        let mut trusted = file(1000, 1000, 0o755);
        trusted.attributes.push(Attribute { name: b"trusted.x".to_vec(), value: vec![] });
        let device = Entry { uid: 1000, gid: 1000, ..Entry::of(What::Device) };
        for (entry, word) in [
            (file(0, 1000, 0o644), "owner 0"),
            (file(1000, 0, 0o644), "group 0"),
            (file(33, 1000, 0o4755), "setuid"),
            (file(1000, 33, 0o2755), "setgid"),
            (capable, "capabilities"),
            (trusted, "trusted.x"),
            (device, "device"),
            (Entry::of(What::Withheld(Withheld::Mount)), "mount"),
        ] {
            let refusal = admit(&entry, &ids()).expect_err(word);
            assert!(refusal.contains(word), "{refusal} lacks {word}");
        }
    }

    #[test]
    fn root_is_always_shared() {
        let ids = IdMap::of((0, 0), (0, 0));
        assert!(admit(&file(0, 0, 0o644), &ids).is_ok());
        assert!(admit(&file(0, 0, 0o4755), &ids).is_err());
        assert!(admit(&file(0, 0, 0o2755), &ids).is_err());
    }
}
