//! POSIX ACLs in the form that the kernel keeps in `system.posix_acl_*`: a version, then eight bytes
//! per entry. They name users and groups by number, so they are translated from the source's
//! numbers to the target's. It must not know where the bytes came from: they may be hostile.

use crate::options::IdMap;

const VERSION: u32 = 2;

/// More entries than file systems keep; a bound on what is parsed.
const MAX_ENTRIES: usize = 4096;

const USER: u16 = 0x02;
const GROUP: u16 = 0x08;
/// Owner, named user, owning group, named group, mask, others.
const TAGS: [u16; 6] = [0x01, USER, 0x04, GROUP, 0x10, 0x20];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    tag: u16,
    id: u32,
    permissions: u16,
}

fn parse(value: &[u8]) -> Option<Vec<Entry>> {
    let (version, rest) = value.split_first_chunk::<4>()?;
    let (chunks, rest) = rest.as_chunks::<8>();
    if u32::from_le_bytes(*version) != VERSION || !rest.is_empty() || chunks.len() > MAX_ENTRIES {
        return None;
    }
    let entry = |&[t0, t1, p0, p1, i0, i1, i2, i3]: &[u8; 8]| {
        let tag = u16::from_le_bytes([t0, t1]);
        let permissions = u16::from_le_bytes([p0, p1]);
        let id = u32::from_le_bytes([i0, i1, i2, i3]);
        (TAGS.contains(&tag) && permissions <= 7).then_some(Entry { tag, id, permissions })
    };
    chunks.iter().map(entry).collect()
}

fn write(mut entries: Vec<Entry>) -> Vec<u8> {
    // One order for one meaning: tags as the kernel wants them, named ones by number.
    entries.sort_unstable();
    let mut value = VERSION.to_le_bytes().to_vec();
    for entry in entries {
        value.extend_from_slice(&entry.tag.to_le_bytes());
        value.extend_from_slice(&entry.permissions.to_le_bytes());
        value.extend_from_slice(&entry.id.to_le_bytes());
    }
    value
}

/// Some ACL that says more than a mode.
pub fn of_another_user() -> Vec<u8> {
    let unnamed = |tag| Entry { tag, id: u32::MAX, permissions: 0 };
    let [owner, user, group, _, mask, others] = TAGS;
    let another = Entry { tag: user, id: 0, permissions: 0 };
    write(vec![unnamed(owner), another, unnamed(group), unnamed(mask), unnamed(others)])
}

/// The ACL in the one order that we write; as it is if it cannot be parsed.
pub fn canonical(value: &[u8]) -> Vec<u8> {
    parse(value).map_or_else(|| value.to_vec(), write)
}

/// The ACL with the target's numbers.
///
/// # Errors
/// Why it is refused: malformed, or a number that is not the account's.
pub fn translated(value: &[u8], ids: &IdMap) -> Result<Vec<u8>, String> {
    let mut entries = parse(value).ok_or("its ACL is malformed")?;
    for entry in &mut entries {
        entry.id = match entry.tag {
            USER => named(ids.uid(entry.id), entry.id, "user")?,
            GROUP => named(ids.gid(entry.id), entry.id, "group")?,
            _ => entry.id,
        };
    }
    Ok(write(entries))
}

fn named(here: Option<u32>, id: u32, what: &str) -> Result<u32, String> {
    here.ok_or_else(|| format!("its ACL names {what} {id}, which is not one of the account's"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    const NONE: u32 = u32::MAX;

    #[test]
    fn named_ids_are_translated_and_sorted() {
        let mut ids = IdMap::of((1000, 2000), (1000, 3000));
        ids.uids.insert(33, 34);
        let source = acl(&[
            (1, 7, NONE),
            (2, 5, 33),
            (2, 4, 1000),
            (4, 5, NONE),
            (8, 1, 1000),
            (16, 7, NONE),
            (32, 0, NONE),
        ]);
        let target = acl(&[
            (1, 7, NONE),
            (2, 5, 34),
            (2, 4, 2000),
            (4, 5, NONE),
            (8, 1, 3000),
            (16, 7, NONE),
            (32, 0, NONE),
        ]);
        assert_eq!(translated(&source, &ids), Ok(target.clone()));
        ids.uids.insert(33, 9999);
        assert_ne!(translated(&source, &ids), Ok(target.clone()));
        assert_eq!(canonical(&target), target);
    }

    #[test]
    fn foreign_ids_are_refused_by_number() {
        let ids = IdMap::of((1000, 2000), (1000, 3000));
        let refusal = translated(&acl(&[(1, 7, NONE), (2, 5, 0)]), &ids).unwrap_err();
        assert!(refusal.contains("user 0"), "{refusal}");
        let refusal = translated(&acl(&[(8, 5, 5)]), &ids).unwrap_err();
        assert!(refusal.contains("group 5"), "{refusal}");
    }

    #[test]
    fn malformed_acls_are_refused() {
        let ids = IdMap::default();
        let long = acl(&vec![(1, 7, NONE); MAX_ENTRIES + 1]);
        for bad in [
            b"".as_slice(),
            b"\x02\0\0",
            b"\x01\0\0\0",
            b"\x02\0\0\0\x01",
            &acl(&[(3, 0, 0)]),
            &acl(&[(1, 8, 0)]),
            &long,
        ] {
            assert!(translated(bad, &ids).is_err());
            assert_eq!(canonical(bad), bad);
        }
    }
}
