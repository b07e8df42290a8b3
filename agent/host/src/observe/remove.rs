//! Takes away what was observed, one by one: only what is found once more, so that nothing goes that was
//! changed or taken into use meanwhile. Every step may be repeated.

use std::fs;
use std::path::Path;

use ferry_proto::Fault;
use ferry_proto::artefact::{Artefact, Kind};
use ferry_proto::ids::UnixName;

use super::users::has_nothing;
use super::{Home, observe};
use crate::nginx::{self, IfDown};
use crate::users::passwd::Database;
use crate::users::{Group, deprovision_user};
use crate::{Layout, cron, durable, php, processes, systemd};

/// Removes what [`super::observe`] has found. What was moved aside of a user that is still here is put back
/// instead: the caller has seen to it that this server serves the account.
///
/// # Errors
/// Precondition if it is needed by a service or is not Ferry's to remove; else what removing failed of.
pub fn remove(layout: &Layout, homes: &[Home], artefact: &Artefact) -> Result<(), Fault> {
    let same = |a: &Artefact| a.kind == artefact.kind && a.place == artefact.place;
    if !observe(layout, homes).artefacts.iter().any(same) {
        return Ok(());
    }
    let place = Path::new(&artefact.place);
    match artefact.kind {
        Kind::FenceBlock | Kind::Site | Kind::Rehearsal => of_sites(layout, place),
        Kind::IdlePool => pool(layout, place),
        Kind::Certificate | Kind::Aside => {
            if place.is_dir() {
                return durable::remove_empty_directory(place).map(drop);
            }
            durable::remove(place)?;
            durable::remove_empty_directory(durable::parent(place)).map(drop)
        }
        Kind::DropIn => {
            durable::remove(place)?;
            durable::remove_empty_directory(durable::parent(place))?;
            systemd::reload_units(layout)
        }
        Kind::Temporary | Kind::Flag | Kind::KeptCrontab => unfinished(place),
        Kind::Crontab => of_user(layout, artefact, cron::enable),
        Kind::Linger => of_user(layout, artefact, processes::put_linger_back),
        Kind::ClosedLogin => login(layout, artefact),
        _ => Err(Fault::bug(format!("{artefact} is none of the host's"))),
    }
}

/// A file, or what a pass has begun as a directory, which is empty then.
fn unfinished(place: &Path) -> Result<(), Fault> {
    if fs::symlink_metadata(place).is_ok_and(|m| m.is_dir()) {
        if durable::remove_empty_directory(place)? {
            return Ok(());
        }
        return Err(Fault::precondition(format!("{} is not empty", place.display()))
            .remedy("look at what is in it, then remove it by hand"));
    }
    durable::remove(place).map(drop)
}

/// A file of the web server or of PHP, or what a rehearsal has put below `/run`.
fn of_sites(layout: &Layout, place: &Path) -> Result<(), Fault> {
    if fs::symlink_metadata(place).is_ok_and(|m| m.is_dir()) {
        return durable::remove_tree(place);
    }
    if place.starts_with(layout.path("/etc/php")) {
        return pool(layout, place);
    }
    let _guard = nginx::lock();
    durable::remove(place)?;
    let enabled = ["/etc/nginx/sites-enabled", "/etc/nginx/conf.d"];
    if enabled.iter().any(|directory| place.starts_with(layout.path(directory)))
        && layout.programs.nginx.exists()
    {
        nginx::check(layout)?;
        nginx::apply(layout, IfDown::Leave)?;
    }
    Ok(())
}

/// A pool's file. One that PHP-FPM reads goes only if another is left: it does not run without one.
fn pool(layout: &Layout, place: &Path) -> Result<(), Fault> {
    if place.extension().is_none_or(|extension| extension != "conf") {
        return durable::remove(place).map(drop);
    }
    let _guard = nginx::lock();
    let directory = durable::parent(place);
    let others = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut others = others.map(|e| e.path()).filter(|p| p != place);
    if !others.any(|p| p.extension().is_some_and(|extension| extension == "conf")) {
        return Err(Fault::precondition(format!(
            "{} is the only pool, and PHP-FPM does not run without one",
            place.display()
        ))
        .remedy("give PHP-FPM another pool, or stop and disable it; then repeat"));
    }
    durable::remove(place)?;
    // /etc/php/VERSION/fpm/pool.d
    let version = directory.ancestors().nth(2).and_then(Path::file_name);
    let version = version.unwrap_or_default().to_string_lossy();
    if php::is_active(layout, &version)? {
        php::check(layout, &version)?;
        php::apply(layout, &version)?;
    }
    Ok(())
}

/// Removes what was moved aside of a user that is gone; puts it back for one that is there.
fn of_user(
    layout: &Layout,
    artefact: &Artefact,
    put_back: impl FnOnce(&Layout, &UnixName) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let name = artefact.user.as_deref().unwrap_or_default();
    match name.parse::<UnixName>() {
        Ok(user) if Database::read(layout)?.user(name).is_some() => put_back(layout, &user),
        _ => durable::remove(Path::new(&artefact.place)).map(drop),
    }
}

/// A user that Ferry has made and that never came to anything.
fn login(layout: &Layout, artefact: &Artefact) -> Result<(), Fault> {
    let database = Database::read(layout)?;
    let user = artefact.user.as_deref().and_then(|name| database.user(name));
    let Some(user) = user else { return Ok(()) };
    if !has_nothing(layout, user) {
        return Err(Fault::precondition(format!(
            "user {} has files or processes: it stays",
            user.name
        ))
        .remedy("look again: ferry-agent doctor"));
    }
    durable::remove_empty_directory(&layout.path(&user.home))?;
    let group = database
        .group_by_id(user.gid)
        .and_then(|group| Some(Group { name: group.name.parse().ok()?, gid: group.gid }));
    deprovision_user(layout, &user.name, group.as_ref())
}
