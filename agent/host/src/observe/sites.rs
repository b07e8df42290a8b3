//! What Ferry has made for sites: server blocks, pools, copies of certificates, files moved aside, and what
//! rehearsals need.

use std::fs;
use std::path::{Path, PathBuf};

use ferry_proto::Fault;
use ferry_proto::artefact::{Artefact, Kind, Observed};
use ferry_proto::ids::AccountName;

use super::{directories, entries, pool_directories, text};
use crate::Layout;
use crate::sites::SitesPlan;
use crate::sites_fence::FencePlan;
use crate::sites_wind_down::WindDown;

const REHEARSALS: &str = "/run/ferry/rehearsal";

/// Every part by itself: one that cannot be looked at does not hide the others.
pub(super) fn observe(layout: &Layout) -> Observed {
    let mut seen = Observed::default();
    for look in [servers, pools, aside, certificates, rehearsals] {
        seen.take(look(layout));
    }
    seen
}

/// Account and site in `ferry-ACCOUNT.SITE`.
fn label(name: &str) -> Option<(&str, &str)> {
    let (account, site) = name.strip_prefix("ferry-")?.split_once('.')?;
    let fits = account.parse::<AccountName>().is_ok() && !site.is_empty() && !site.contains('.');
    fits.then_some((account, site))
}

/// Account in `ferry-fence-ACCOUNT.INDEX`.
fn fence_block(name: &str) -> Option<&str> {
    let (account, index) = name.strip_prefix("ferry-fence-")?.split_once('.')?;
    let fits = account.parse::<AccountName>().is_ok() && index.parse::<usize>().is_ok();
    fits.then_some(account)
}

fn servers(layout: &Layout) -> Result<Vec<Artefact>, Fault> {
    let mut found = Vec::new();
    for directory in ["/etc/nginx/sites-available", "/etc/nginx/sites-enabled", "/etc/nginx/conf.d"]
    {
        for (name, path) in entries(&layout.path(directory))? {
            let Some(stem) = name.strip_suffix(".conf") else { continue };
            found.extend(server(stem, &name, &path)?);
        }
    }
    Ok(found)
}

fn server(stem: &str, name: &str, path: &Path) -> Result<Option<Artefact>, Fault> {
    let artefact = |kind, account: &str| Some(Artefact::new(kind, path.display()).of(account));
    if let Ok(target) = fs::read_link(path) {
        let ours = target == Path::new("../sites-available").join(name);
        return Ok(label(stem)
            .filter(|_| ours)
            .and_then(|(account, _)| artefact(Kind::Site, account)));
    }
    if !name.starts_with("ferry-") {
        return Ok(None);
    }
    let text = text(path)?;
    if text.starts_with("# Made by Ferry: this account is fenced") {
        return Ok(fence_block(stem).and_then(|account| artefact(Kind::FenceBlock, account)));
    }
    if !text.starts_with("# Made by Ferry for site") {
        return Ok(None);
    }
    let (stem, kind) = match stem.strip_suffix(".rehearsal") {
        Some(stem) => (stem, Kind::Rehearsal),
        None => (stem, Kind::Site),
    };
    Ok(label(stem).and_then(|(account, _)| artefact(kind, account)))
}

fn pools(layout: &Layout) -> Result<Vec<Artefact>, Fault> {
    let mut found = Vec::new();
    for directory in pool_directories(layout)? {
        for (name, path) in entries(&directory)? {
            let stem = name.strip_suffix(".conf").or_else(|| name.strip_suffix(".conf.disabled"));
            let Some(stem) = stem.filter(|stem| stem.starts_with("ferry-")) else { continue };
            let text = text(&path)?;
            let idle =
                stem.strip_prefix("ferry-idle-").filter(|a| a.parse::<AccountName>().is_ok());
            if let Some(account) = idle.filter(|_| text.starts_with("; Made by Ferry: PHP-FPM")) {
                found.push(Artefact::new(Kind::IdlePool, path.display()).of(account));
            } else if let Some((account, _)) = label(stem)
                && text.starts_with("; Made by Ferry for site")
            {
                found.push(Artefact::new(Kind::Site, path.display()).of(account));
            }
        }
    }
    Ok(found)
}

/// Files of `/etc/ferry/PLACE/ACCOUNT`, and such directories that are empty.
fn of_accounts(layout: &Layout, place: &str, kind: Kind) -> Result<Vec<Artefact>, Fault> {
    let mut found = Vec::new();
    for directory in directories(&layout.path(place))? {
        let account = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let files = entries(&directory)?;
        if files.is_empty() {
            found.push(Artefact::new(kind, directory.display()).of(&account));
        }
        let files = files.into_iter().filter(|(name, _)| !crate::durable::is_temporary(name));
        found.extend(files.map(|(_, path)| Artefact::new(kind, path.display()).of(&account)));
    }
    Ok(found)
}

fn certificates(layout: &Layout) -> Result<Vec<Artefact>, Fault> {
    let all = of_accounts(layout, "/etc/ferry/certificates", Kind::Certificate)?;
    let ours = |a: &Artefact| {
        a.place.ends_with(".pem") || a.place.ends_with(".key") || Path::new(&a.place).is_dir()
    };
    Ok(all.into_iter().filter(ours).collect())
}

fn aside(layout: &Layout) -> Result<Vec<Artefact>, Fault> {
    let all = of_accounts(layout, "/etc/ferry/aside", Kind::Aside)?;
    Ok(all.into_iter().map(|artefact| may_go(layout, artefact)).collect())
}

/// What was moved aside may be the only copy of the provider's configuration: it goes only if Ferry
/// has rendered it, or the same is in its place again. What was found open in a closed account's place
/// is somebody's too.
fn may_go(layout: &Layout, artefact: Artefact) -> Artefact {
    match left_to_a_person(layout, Path::new(&artefact.place)) {
        Some(what) => artefact.by_hand(what),
        None => artefact,
    }
}

/// What a person should do with a file aside; none if it may go.
fn left_to_a_person(layout: &Layout, aside: &Path) -> Option<String> {
    if aside.is_dir() {
        return None;
    }
    let name = aside.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with("found-") {
        return Some(
            "it served the account while it was closed here: look who put it there, then keep it elsewhere or \
             remove it"
                .to_owned(),
        );
    }
    let found = name.strip_suffix(".found");
    let numbered = found.unwrap_or(&name).trim_start_matches("open-");
    let original = numbered.split_once('-').map_or(numbered, |(_, original)| original);
    let rendered = original.strip_suffix(".conf").is_some_and(|stem| label(stem).is_some());
    if is_in_place(layout, aside, original) {
        return None;
    }
    if found.is_some() {
        return Some(format!(
            "it came in the place of {original} while the account was closed here: compare it with {original}, \
             then keep it elsewhere or remove it"
        ));
    }
    (!rendered).then(|| {
        format!(
            "it may be the only copy of {original}: if this server is to serve the account, move it back where it \
             was; else keep it or remove it"
        )
    })
}

/// Whether a service's file of this name is the same as the one aside.
fn is_in_place(layout: &Layout, aside: &Path, original: &str) -> bool {
    let mut places: Vec<PathBuf> = ["sites-enabled", "sites-available", "conf.d"]
        .map(|place| layout.path("/etc/nginx").join(place))
        .into();
    places.extend(pool_directories(layout).unwrap_or_default());
    places.iter().any(|place| is_same(aside, &place.join(original)))
}

/// Whether two links lead to the same, or two files hold the same.
fn is_same(one: &Path, other: &Path) -> bool {
    match (fs::read_link(one), fs::read_link(other)) {
        (Ok(one), Ok(other)) => one == other,
        (Err(_), Err(_)) => text(one)
            .is_ok_and(|one| !one.is_empty() && text(other).is_ok_and(|other| other == one)),
        _ => false,
    }
}

fn rehearsals(layout: &Layout) -> Result<Vec<Artefact>, Fault> {
    let mut found = Vec::new();
    for (name, path) in entries(&layout.path(REHEARSALS))? {
        let stem = name.strip_suffix(".sock").map(|s| s.strip_suffix(".tls").unwrap_or(s));
        let account = match stem {
            Some(stem) => label(stem).map(|(account, _)| account),
            None => name.strip_suffix(".aside"),
        };
        let one = Artefact::new(Kind::Rehearsal, path.display());
        found.extend(account.map(|account| one.of(account)));
    }
    for (name, path) in entries(&layout.path("/etc/nginx"))? {
        let account = name.strip_prefix(".ferry-rehearsal-").and_then(|n| n.strip_suffix(".conf"));
        let one = Artefact::new(Kind::Rehearsal, path.display());
        found.extend(account.map(|account| one.of(account)));
    }
    Ok(found)
}

/// Whether `place` is of sites that are made by this plan.
pub fn is_of_sites(layout: &Layout, plan: &SitesPlan, place: &Path) -> bool {
    crate::sites::places(layout, plan).iter().any(|p| p == place)
        || place == layout.certificates(&plan.definition.name)
}

/// Whether `place` is of a fence by this plan: a file aside, what appeared in its place, a block, a pool or
/// a certificate that stands in.
pub fn is_of_fence(layout: &Layout, plan: &FencePlan, place: &Path) -> bool {
    let text = place.to_string_lossy();
    let found = text.strip_suffix(".found").map(Path::new);
    // What came in a closed account's place again and again is kept there too.
    let kept = place.parent() == Some(layout.aside(&plan.account).as_path())
        && place.file_name().is_some_and(|name| name.to_string_lossy().starts_with("found-"));
    kept || plan
        .files
        .iter()
        .any(|f| f.aside == place || found.is_some_and(|found| found == f.aside))
        || plan.stubs.iter().any(|s| s.path == place || s.copies.0 == place || s.copies.1 == place)
        || plan.pools.iter().any(|p| p.idle == place)
        || [layout.aside(&plan.account), layout.certificates(&plan.account)]
            .iter()
            .any(|d| d == place)
}

/// Whether `place` is of a winding down by this plan.
pub fn is_of_wind_down(layout: &Layout, plan: &WindDown, place: &Path) -> bool {
    plan.files.iter().any(|f| f.aside == place) || layout.aside(&plan.account) == place
}
