//! What an account may have at the target: whose files, which bits, which attributes; and what was approved
//! beyond that. It decides on what a peer claims and touches nothing.

use std::io;

use ferry_proto::approval::Fingerprint;

use crate::acl;
use crate::approvals::{self, no_longer};
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
    /// What was approved, if the account may not have it otherwise.
    pub approved: Option<Box<Fingerprint>>,
}

impl Wanted {
    /// On a file system that can hold project ids or cannot.
    pub fn where_projects_are_held(self, they_do: bool) -> Self {
        Self { project: self.project.filter(|_| they_do), ..self }
    }

    /// The digest that its content must have before it is given all this; none: whatever it has.
    pub fn digest(&self) -> Option<&str> {
        approvals::digest(self.approved.as_deref()?)
    }
}

/// Translates an entry's metadata. Where something was `approved` it must be that, and nothing else.
///
/// # Errors
/// Why the entry is refused, as a sentence.
pub fn admit(entry: &Entry, approved: Option<&Fingerprint>, ids: &IdMap) -> Result<Wanted, String> {
    let Some(approved) = approved else {
        if let What::Withheld(why) = entry.what {
            return Err(withheld(why));
        }
        let wanted = translated(entry, ids)?;
        return refuse_privileges(entry, &wanted, ids).map(|()| wanted);
    };
    let difference = match entry.what {
        What::Withheld(why) => Some(withheld(why)),
        _ => approvals::difference(entry, approved),
    };
    match difference {
        Some(why) => Err(no_longer(&why)),
        None => {
            let wanted = translated(entry, &ids.keeping_others())?;
            Ok(Wanted { approved: Some(Box::new(approved.clone())), ..wanted })
        }
    }
}

/// The metadata in the target's numbers.
fn translated(entry: &Entry, ids: &IdMap) -> Result<Wanted, String> {
    let foreign = |what: &str, id: u32| format!("its {what} {id} is not one of the account's");
    let uid = ids.uid(entry.uid).ok_or_else(|| foreign("owner", entry.uid))?;
    let gid = ids.gid(entry.gid).ok_or_else(|| foreign("group", entry.gid))?;
    let value = |attribute: &Attribute| match class(&attribute.name) {
        Class::Acl => acl::translated(&attribute.value, ids),
        _ => Ok(attribute.value.clone()),
    };
    let attribute = |a: &Attribute| Ok(Attribute { name: a.name.clone(), value: value(a)? });
    // A symlink's own attributes are the system's.
    let attributes = match entry.what {
        What::Symlink(_) => Vec::new(),
        _ => entry.attributes.iter().map(attribute).collect::<Result<_, String>>()?,
    };
    let Entry { mode, mtime, locks, project, .. } = *entry;
    Ok(Wanted { mode, uid, gid, mtime, attributes, locks, project, approved: None })
}

/// Refuses what only root can have made, or what would give an account another's rights.
fn refuse_privileges(entry: &Entry, wanted: &Wanted, ids: &IdMap) -> Result<(), String> {
    let Wanted { uid, gid, mode, .. } = *wanted;
    if let What::Device(device) = entry.what {
        return Err(format!("it is a {device}, which is not created"));
    }
    // On a directory setgid hands down the group and setuid means nothing.
    if entry.what != What::Directory {
        if mode & 0o4000 != 0 && ids.is_shared_uid(uid) {
            return Err(format!("it is setuid to user {uid}, who is not the account's alone"));
        }
        if mode & 0o2000 != 0 && ids.is_shared_gid(gid) {
            return Err(format!("it is setgid to group {gid}, which is not the account's alone"));
        }
    }
    wanted.attributes.iter().try_for_each(|attribute| match class(&attribute.name) {
        Class::User | Class::Acl => Ok(()),
        Class::Capability => Err("it has file capabilities".to_owned()),
        Class::Trusted | Class::Security | Class::System => {
            let name = show(&attribute.name);
            Err(format!("it has the privileged attribute {name}"))
        }
    })
}

/// Why the source did not offer an entry, as a sentence.
pub fn withheld(why: Withheld) -> String {
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
    use ferry_proto::approval::Device;

    use super::*;

    fn ids() -> IdMap {
        let mut ids = IdMap::of((1000, 2000), (1000, 3000));
        ids.uids.insert(33, 33);
        ids.gids.insert(33, 33);
        ids.shared_uids.insert(33);
        ids.shared_gids.insert(33);
        ids
    }

    fn null() -> Device {
        Device { block: false, major: 1, minor: 3 }
    }

    fn file(uid: u32, gid: u32, mode: u16) -> Entry {
        Entry { uid, gid, mode, ..Entry::of(What::File(1)) }
    }

    #[test]
    fn ids_are_translated() {
        let wanted =
            admit(&file(1000, 33, 0o4755), None, &ids()).expect("the account's own setuid file");
        assert_eq!((wanted.uid, wanted.gid, wanted.mode), (2000, 33, 0o4755));
    }

    #[test]
    fn what_is_not_the_accounts_is_refused() {
        let mut capable = file(1000, 1000, 0o755);
        capable.attributes.push(Attribute { name: b"security.capability".to_vec(), value: vec![] });
        let mut trusted = file(1000, 1000, 0o755);
        trusted.attributes.push(Attribute { name: b"trusted.x".to_vec(), value: vec![] });
        let device = Entry { uid: 1000, gid: 1000, ..Entry::of(What::Device(null())) };
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
            let refusal = admit(&entry, None, &ids()).expect_err(word);
            assert!(refusal.contains(word), "{refusal} lacks {word}");
        }
    }

    #[test]
    fn what_was_approved_is_admitted_with_its_own_numbers_and_the_accounts_translated() {
        let mut entry = file(0, 1000, 0o4755);
        entry.attributes.push(Attribute { name: b"security.capability".to_vec(), value: vec![1] });
        entry.attributes.push(Attribute { name: b"trusted.x".to_vec(), value: vec![2] });
        let approved = approvals::seen(&entry, "digest").expect("a file");
        let wanted = admit(&entry, Some(&approved), &ids()).expect("as it was approved");
        assert_eq!((wanted.uid, wanted.gid, wanted.mode), (0, 3000, 0o4755));
        assert_eq!(wanted.attributes, entry.attributes);
        assert_eq!(wanted.digest(), Some("digest"));
        let device = Entry { uid: 7, gid: 1000, ..Entry::of(What::Device(null())) };
        let approved = approvals::seen(&device, "").expect("a device");
        let wanted = admit(&device, Some(&approved), &ids()).expect("as it was approved");
        assert_eq!((wanted.uid, wanted.gid, wanted.digest()), (7, 3000, None));
    }

    #[test]
    fn where_something_was_approved_nothing_else_is_admitted() {
        let approved = approvals::seen(&file(0, 1000, 0o4755), "digest").expect("a file");
        for entry in [
            file(0, 1000, 0o6755),
            file(7, 1000, 0o4755),
            // What an account may well have, but not what was looked at.
            file(1000, 1000, 0o644),
            Entry { uid: 1000, gid: 1000, ..Entry::of(What::Symlink(b"x".to_vec())) },
            Entry::of(What::Withheld(Withheld::Foreign(7))),
        ] {
            let refusal = admit(&entry, Some(&approved), &ids()).expect_err("another");
            assert!(refusal.starts_with("it is not what was approved any more: "), "{refusal}");
        }
    }

    #[test]
    fn root_is_always_shared() {
        let ids = IdMap::of((0, 0), (0, 0));
        assert!(admit(&file(0, 0, 0o644), None, &ids).is_ok());
        assert!(admit(&file(0, 0, 0o4755), None, &ids).is_err());
        assert!(admit(&file(0, 0, 0o2755), None, &ids).is_err());
    }
}
