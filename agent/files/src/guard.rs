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

/// Translates an entry's metadata. Where something was `approved` it must be that, and nothing else, and something
/// that is the same on every server.
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
            refuse_unapprovable(entry)?;
            let wanted = translated(entry, &ids.with_fixed()).map_err(|why| {
                format!("{why}, and such a number means somebody else on another server: give it to the account or to root")
            })?;
            Ok(Wanted { approved: Some(Box::new(approved.clone())), ..wanted })
        }
    }
}

/// The metadata in the target's numbers.
fn translated(entry: &Entry, ids: &IdMap) -> Result<Wanted, String> {
    let foreign = |what: &str, id: u32| format!("its {what} {id} is not one of the account's");
    // Nobody has the highest number: to the kernel it means that nothing is changed (chown(2)).
    let somebody = |id: &u32| *id != u32::MAX;
    let uid = ids.uid(entry.uid).filter(somebody).ok_or_else(|| foreign("owner", entry.uid))?;
    let gid = ids.gid(entry.gid).filter(somebody).ok_or_else(|| foreign("group", entry.gid))?;
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

/// Refuses what is something else on another server, or gives power over one, whoever has approved it.
fn refuse_unapprovable(entry: &Entry) -> Result<(), String> {
    /// Length of a capability that names the root of a user namespace: linux/capability.h.
    const NAMESPACED: usize = 24;
    if let What::Device(device) = entry.what
        && !device.is_harmless()
    {
        return Err(format!(
            "it is a {device}, which may be another device on another server, or gives power over it: make it there"
        ));
    }
    let is_namespaced =
        |a: &Attribute| class(&a.name) == Class::Capability && a.value.len() == NAMESPACED;
    if entry.attributes.iter().any(is_namespaced) {
        return Err("its capabilities are for the root of a user namespace, which is somebody else on another server"
            .to_owned());
    }
    Ok(())
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
    fn nobody_s_number_is_refused_although_all_are_kept() {
        assert!(admit(&file(7, 8, 0o644), None, &IdMap::same()).is_ok());
        for (uid, gid) in [(u32::MAX, 8), (7, u32::MAX)] {
            let why = admit(&file(uid, gid, 0o644), None, &IdMap::same()).unwrap_err();
            assert!(why.contains("4294967295"), "{why}");
        }
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
    fn what_is_something_else_on_another_server_is_not_admitted_though_it_was_approved() {
        let acl = |id: u8| {
            let value = vec![2, 0, 0, 0, 2, 0, 7, 0, id, 0, 0, 0];
            vec![Attribute { name: b"system.posix_acl_access".to_vec(), value }]
        };
        let capability = |length| {
            vec![Attribute { name: b"security.capability".to_vec(), value: vec![2; length] }]
        };
        let device = |block, major, minor| Entry {
            uid: 0,
            ..Entry::of(What::Device(Device { block, major, minor }))
        };
        let mut ids = ids();
        // What a source may claim of the web server, and of another's group.
        ids.uids.extend([(1002, 33), (7, 1234)]);
        ids.gids.extend([(8, 5000), (5000, 8)]);
        let admitted = |entry: &Entry| {
            let approved = approvals::seen(entry, "digest").expect("something to see");
            admit(entry, Some(&approved), &ids)
        };
        for (entry, word) in [
            (file(1001, 0, 0o4755), "owner 1001"),
            // The account's number here is nobody's there.
            (file(2000, 0, 0o755), "owner 2000"),
            (file(100, 0, 0o755), "owner 100"),
            (file(1002, 0, 0o4755), "owner 1002"),
            (file(0, 999, 0o2755), "group 999"),
            (file(0, 3000, 0o644), "group 3000"),
            (file(0, 5000, 0o644), "group 5000"),
            (Entry { attributes: acl(200), ..file(0, 0, 0o4755) }, "names user 200"),
            (Entry { attributes: capability(24), ..file(0, 0, 0o755) }, "user namespace"),
            (device(true, 253, 3), "block device 253:3"),
            (device(true, 1, 3), "block device 1:3"),
            (device(false, 1, 1), "character device 1:1"),
        ] {
            let refusal = admitted(&entry).expect_err(word);
            assert!(refusal.contains(word) && refusal.contains("another server"), "{refusal}");
        }
        for (entry, uid, gid) in [
            (file(7, 8, 0o6755), 7, 8),
            (file(99, 33, 0o755), 99, 33),
            (file(1000, 0, 0o2755), 2000, 0),
            (Entry { attributes: acl(33), ..file(0, 1000, 0o4755) }, 0, 3000),
            (Entry { attributes: capability(20), ..file(0, 1000, 0o755) }, 0, 3000),
        ] {
            let wanted = admitted(&entry).expect("the same everywhere");
            assert_eq!((wanted.uid, wanted.gid), (uid, gid));
        }
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
