//! Reads `/etc/passwd`, `/etc/group`, `/etc/shadow` and `/etc/subuid`. Changes nothing: that is
//! left to Debian's own tools, which know the locks.

use ferry_proto::Fault;
use nix::unistd;

use super::Aging;
use crate::{Layout, durable};

/// The largest file that is read.
const CAP: u64 = 64 << 20;

/// A line of `/etc/passwd`.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) gecos: String,
    pub(crate) home: String,
    shell: String,
}

impl User {
    /// The login shell; none stands for this one.
    pub(crate) fn shell(&self) -> &str {
        if self.shell.is_empty() { "/bin/sh" } else { &self.shell }
    }
}

/// A line of `/etc/group`.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) gid: u32,
    pub(crate) members: Vec<String>,
}

/// A line of `/etc/shadow`.
#[derive(Clone)]
pub(crate) struct Shadow {
    name: String,
    pub(crate) hash: String,
    pub(crate) aging: Aging,
}

/// The user database of a tree.
pub(crate) struct Database {
    users: Vec<User>,
    groups: Vec<Group>,
    shadow: Vec<Shadow>,
    subordinate: Vec<(u32, u32)>,
    live: bool,
}

impl Database {
    pub(crate) fn read(layout: &Layout) -> Result<Self, Fault> {
        let text = |path: &str| -> Result<String, Fault> {
            let bytes = durable::read(&layout.path(path), CAP)?.unwrap_or_default();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Self {
            users: text("/etc/passwd")?.lines().filter_map(user).collect(),
            groups: text("/etc/group")?.lines().filter_map(group).collect(),
            shadow: text("/etc/shadow")?.lines().filter_map(shadow).collect(),
            subordinate: text("/etc/subuid")?
                .lines()
                .chain(text("/etc/subgid")?.lines())
                .filter_map(range)
                .collect(),
            live: layout.is_system(),
        })
    }

    pub(crate) fn users(&self) -> &[User] {
        &self.users
    }

    pub(crate) fn user(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|u| u.name == name)
    }

    pub(crate) fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|g| g.name == name)
    }

    pub(crate) fn group_by_id(&self, gid: u32) -> Option<&Group> {
        self.groups.iter().find(|g| g.gid == gid)
    }

    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The supplementary groups of a user.
    pub(crate) fn groups_of<'a>(&'a self, user: &'a str) -> impl Iterator<Item = &'a str> {
        let member = move |g: &&Group| g.members.iter().any(|m| m == user);
        self.groups.iter().filter(member).map(|g| g.name.as_str())
    }

    pub(crate) fn shadow(&self, name: &str) -> Option<&Shadow> {
        self.shadow.iter().find(|s| s.name == name)
    }

    /// Whether some user has `gid` as the primary group.
    pub(crate) fn is_primary(&self, gid: u32) -> bool {
        self.users.iter().any(|u| u.gid == gid)
    }

    fn is_subordinate(&self, id: u32) -> bool {
        self.subordinate.iter().any(|(first, count)| id >= *first && id - first < *count)
    }

    /// Whether nobody has `id`: neither a local user, nor one that the name service knows.
    pub(crate) fn uid_is_free(&self, id: u32) -> bool {
        let elsewhere =
            self.live && !matches!(unistd::User::from_uid(unistd::Uid::from_raw(id)), Ok(None));
        !elsewhere && !self.is_subordinate(id) && !self.users.iter().any(|u| u.uid == id)
    }

    /// Whether no group has `id`.
    pub(crate) fn gid_is_free(&self, id: u32) -> bool {
        let elsewhere =
            self.live && !matches!(unistd::Group::from_gid(unistd::Gid::from_raw(id)), Ok(None));
        !elsewhere
            && !self.is_subordinate(id)
            && !self.groups.iter().any(|g| g.gid == id)
            && !self.is_primary(id)
    }
}

/// For the fuzz target `user_database`: a field never holds what would end it.
pub(crate) fn fuzz(text: &str) {
    let whole = |field: &str| assert!(!field.contains([':', '\n']), "{field:?}");
    for line in text.lines() {
        if let Some(user) = user(line) {
            [&user.name, &user.gecos, &user.home, &user.shell].iter().for_each(|f| whole(f));
        }
        if let Some(group) = group(line) {
            whole(&group.name);
            group.members.iter().for_each(|member| assert!(!member.contains([':', ','])));
        }
        if let Some(shadow) = shadow(line) {
            whole(&shadow.hash);
        }
        let _ = range(line);
    }
}

fn user(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, gecos, home, shell] = fields[..] else {
        return None;
    };
    Some(User {
        name: name.to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        gecos: gecos.to_owned(),
        home: home.to_owned(),
        shell: shell.to_owned(),
    })
}

fn group(line: &str) -> Option<Group> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, gid, members] = fields[..] else {
        return None;
    };
    let members = members.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect();
    Some(Group { name: name.to_owned(), gid: gid.parse().ok()?, members })
}

fn shadow(line: &str) -> Option<Shadow> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, hash, last_change, minimum, maximum, warning, inactive, expire, ..] = fields[..]
    else {
        return None;
    };
    let days = |text: &str| text.parse::<i64>().ok().filter(|d| *d >= 0);
    Some(Shadow {
        name: name.to_owned(),
        hash: hash.to_owned(),
        aging: Aging {
            last_change: days(last_change),
            minimum: days(minimum),
            maximum: days(maximum),
            warning: days(warning),
            inactive: days(inactive),
            expire: days(expire),
        },
    })
}

fn range(line: &str) -> Option<(u32, u32)> {
    let mut fields = line.split(':').skip(1);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}
