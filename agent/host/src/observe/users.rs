//! What Ferry has made for users: closed logins, crontabs and linger marks moved aside, and what keeps
//! units stopped.

use std::path::Path;

use ferry_proto::Fault;
use ferry_proto::artefact::{Artefact, Kind, Observed};
use ferry_proto::ids::UnixName;

use super::{directories, entries, text};
use crate::processes::{KeptStopped, drop_in_places};
use crate::users::passwd::{Database, User};
use crate::users::{CLOSED, is_account_id};
use crate::{Layout, cron, processes};

pub(super) fn observe(layout: &Layout) -> Observed {
    let mut seen = Observed::default();
    match Database::read(layout) {
        Ok(database) => {
            for look in [logins, crontabs, flags, drop_ins, lingers] {
                seen.take(look(layout, &database));
            }
        }
        Err(fault) => seen.unseen.push(fault),
    }
    seen
}

/// What closes something of `user` is not opened without knowing how its account stands; if there is no such
/// user any more, nothing is left to open.
fn unless_gone(artefact: Artefact, database: &Database, user: &str, to_open: &str) -> Artefact {
    let artefact = artefact.of_user(user);
    if database.user(user).is_none() {
        return artefact;
    }
    artefact.by_hand(format!(
        "only if this server serves the account (it does not if it has moved away): {to_open}"
    ))
}

fn logins(layout: &Layout, database: &Database) -> Result<Vec<Artefact>, Fault> {
    let closed = database.users().iter().filter(|user| {
        is_account_id(user.uid)
            && database.shadow(&user.name).is_some_and(|s| s.aging.expire == Some(CLOSED))
    });
    Ok(closed.map(|user| login(layout, user)).collect())
}

fn login(layout: &Layout, user: &User) -> Artefact {
    let name = &user.name;
    let artefact = Artefact::new(Kind::ClosedLogin, format!("user {name}")).of_user(name);
    if has_nothing(layout, user) {
        return artefact;
    }
    artefact.by_hand(format!(
        "its home {} is not empty. If this server serves the account: usermod --expiredate '' {name}; if the \
         account was given up here, save what is needed, then: userdel -r {name}",
        user.home
    ))
}

/// Whether the user has no home, or an empty one, and no process.
pub(super) fn has_nothing(layout: &Layout, user: &User) -> bool {
    let home = layout.path(&user.home);
    let bare = match std::fs::symlink_metadata(&home) {
        Ok(m) if m.is_dir() => std::fs::read_dir(&home).is_ok_and(|mut all| all.next().is_none()),
        Ok(_) => false,
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    };
    bare && processes::of_users(&[user.uid], &[]).is_ok_and(|all| all.is_empty())
}

fn crontabs(layout: &Layout, database: &Database) -> Result<Vec<Artefact>, Fault> {
    let mut found = Vec::new();
    for (name, path) in entries(&layout.path(cron::SPOOL))? {
        if let Some(user) = name.strip_prefix(cron::ASIDE) {
            let one = Artefact::new(Kind::Crontab, path.display());
            let open = format!("mv {} {}", path.display(), path.with_file_name(user).display());
            found.push(unless_gone(one, database, user, &open));
        } else if let Some(user) = name.strip_prefix(cron::FOUND)
            && database.user(user).is_none()
        {
            // As long as there is the user, it is kept for it on purpose.
            found.push(Artefact::new(Kind::KeptCrontab, path.display()).of_user(user));
        }
    }
    Ok(found)
}

fn flags(layout: &Layout, database: &Database) -> Result<Vec<Artefact>, Fault> {
    let all = entries(&layout.path(processes::FLAGS))?;
    let all = all.into_iter().filter(|(name, _)| name.parse::<UnixName>().is_ok());
    Ok(all
        .map(|(user, path)| {
            let one = Artefact::new(Kind::Flag, path.display());
            unless_gone(one, database, &user, &format!("rm {}", path.display()))
        })
        .collect())
}

/// The condition of a drop-in is its flag: without it, it does nothing.
fn drop_ins(layout: &Layout, database: &Database) -> Result<Vec<Artefact>, Fault> {
    let mut found = Vec::new();
    for directory in directories(&layout.path("/etc/systemd/system"))? {
        let path = directory.join(processes::DROP_IN);
        let text = text(&path)?;
        if !text.starts_with("# Made by Ferry") {
            continue;
        }
        let flag = text.lines().find_map(|line| line.strip_prefix("ConditionPathExists=!"));
        let user = flag.and_then(|flag| Path::new(flag).file_name()).unwrap_or_default();
        let one = Artefact::new(Kind::DropIn, path.display());
        found.push(if flag.is_some_and(|flag| Path::new(flag).exists()) {
            let open = format!("rm {}; systemctl daemon-reload", path.display());
            unless_gone(one, database, &user.to_string_lossy(), &open)
        } else {
            one.of_user(&user.to_string_lossy())
        });
    }
    Ok(found)
}

fn lingers(layout: &Layout, database: &Database) -> Result<Vec<Artefact>, Fault> {
    let mut found = Vec::new();
    for (name, path) in entries(&layout.path(processes::LINGER))? {
        if let Some(user) = name.strip_prefix(processes::LINGER_ASIDE) {
            let one = Artefact::new(Kind::Linger, path.display());
            let open = format!("mv {} {}", path.display(), path.with_file_name(user).display());
            found.push(unless_gone(one, database, user, &open));
        }
    }
    Ok(found)
}

/// Whether `place` is of what this plan keeps stopped.
pub fn is_kept_stopped(layout: &Layout, plan: &KeptStopped, place: &Path) -> bool {
    drop_in_places(layout, plan).iter().any(|p| p == place)
        || layout.path(processes::FLAGS).join(plan.user.as_str()) == place
        || layout.path(processes::LINGER).join(format!("{}{}", processes::LINGER_ASIDE, plan.user))
            == place
}
