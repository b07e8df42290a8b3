//! Whose each site is, and what a definition says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ferry_proto::ids::{DomainName, HomePath, SiteName};

use super::Board;
use super::draft::Part;
use super::inside::Home;
use super::nginx::ENABLED;
use super::pools::Pool;
use super::web::{Served, WebServer};

/// A site and what is thought of it.
struct Claim<'a> {
    served: &'a Served,
    owner: usize,
    part: Part,
    root: Option<HomePath>,
    domains: Vec<DomainName>,
    config: BTreeSet<PathBuf>,
    php: Option<toml::Value>,
}

/// Proposes each site to the account that it is of.
pub(super) fn propose(board: &mut Board<'_>, sites: &[Served], pools: &[Pool]) {
    let mut claims = Vec::new();
    for served in sites {
        if served.names.is_empty() && served.roots.is_empty() {
            continue;
        }
        match claim(board, served, pools) {
            Ok(claim) => claims.push(claim),
            Err(nobody) => board.unassigned.push(nobody),
        }
    }
    contested(board, &mut claims);
    idle_pools(board, &mut claims, pools);
    let mut names: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for claim in claims {
        let name = site_name(&claim, names.entry(claim.owner).or_default());
        let owner = claim.owner;
        let part = written(board, claim, name);
        board.draft(owner).sites.push(part);
    }
}

/// Whose a site is: by where its root is, else by who owns that, else by as whom its PHP runs.
fn claim<'a>(board: &Board<'_>, served: &'a Served, pools: &[Pool]) -> Result<Claim<'a>, String> {
    let pool = served.php.iter().find_map(|place| pools.iter().find(|p| &p.listen == place));
    let runs_as = pool.and_then(|p| board.people.named(&p.user));
    let root = served.roots.first().map(PathBuf::from);
    let homed = root.as_ref().and_then(|root| {
        board.people.home_of(root).or_else(|| board.people.real_home_of(board.layout, root))
    });
    let owned = || root.as_ref().and_then(|root| board.people.owner_of(board.layout, root));
    let Some(owner) = homed.as_ref().map(|(owner, _)| *owner).or_else(owned).or(runs_as) else {
        let place = served.roots.first().map_or("it has no root".to_owned(), |root| {
            format!("its root {root} is outside every home and belongs to no account's user")
        });
        return Err(format!("{}: {place}", served.title()));
    };
    let files: Vec<String> = served.files.iter().map(|f| f.display().to_string()).collect();
    let mut claim = Claim {
        served,
        owner,
        part: Part::new(format!("from {}", files.join(" and "))),
        root: None,
        domains: Vec::new(),
        config: BTreeSet::new(),
        php: None,
    };
    rooted(board, &mut claim, root.as_deref(), homed.map(|(_, below)| below));
    named(&mut claim);
    configured(&mut claim);
    with_php(board, &mut claim, pool);
    with_tls(board, &mut claim);
    if !served.uncarried.is_empty() {
        let what: Vec<&str> = served.uncarried.iter().map(String::as_str).collect();
        claim.part.review(format!(
            "at the target the site is configured anew from the fields here, without: {}",
            what.join(", ")
        ));
    }
    Ok(claim)
}

fn rooted(board: &Board<'_>, claim: &mut Claim<'_>, root: Option<&Path>, below: Option<PathBuf>) {
    let person = board.people.get(claim.owner);
    let (home, user) = (person.home.display(), &person.name);
    let part = &mut claim.part;
    let Some(root) = root else {
        part.doubt(format!("the site has no root; its PHP runs as {user}"));
        return;
    };
    if claim.served.roots.len() > 1 {
        let others = claim.served.roots[1..].join(", ");
        part.review(format!("it has other roots too, which a definition cannot say: {others}"));
    }
    let Some(below) = below else {
        part.doubt(format!(
            "its root {} belongs to {user}, but is outside the home {home}: Ferry moves only what is \
             below the home. Move it there, name the new place in {}, and run this again",
            root.display(),
            claim.served.files[0].display()
        ));
        return;
    };
    part.evidence.push(if root.starts_with(&person.home) {
        format!("root {} below {home}", root.display())
    } else {
        format!("root {} leads to {} below {home}", root.display(), below.display())
    });
    match HomePath::try_from(below.to_string_lossy().into_owned()) {
        Ok(path) => claim.root = Some(path),
        Err(_) if below.as_os_str().is_empty() => part.doubt(
            "its root is the whole home: give it a directory of its own below the home".to_owned(),
        ),
        Err(error) => part.doubt(format!("its root cannot be written in a definition: {error}")),
    }
    let there = Home::open(board.layout, &person.home).is_ok_and(|h| h.holds_directory(&below));
    if !there {
        part.doubt("its root is not there, or a symlink leads out of the home".to_owned());
    }
}

fn named(claim: &mut Claim<'_>) {
    for name in &claim.served.names {
        // nginx's `.example.com` is the name and all below it.
        let names = match name.strip_prefix('.') {
            Some(bare) => vec![bare.to_owned(), format!("*.{bare}")],
            None => vec![name.clone()],
        };
        for name in names {
            match name.parse::<DomainName>() {
                Ok(domain) if !claim.domains.contains(&domain) => claim.domains.push(domain),
                Ok(_) => {}
                Err(_) => {
                    claim
                        .part
                        .review(format!("its name {name} cannot be moved: not a domain name"));
                }
            }
        }
    }
    if claim.domains.is_empty() {
        claim.part.doubt("it has no name that visitors could ask for; a site needs one".to_owned());
    }
}

fn configured(claim: &mut Claim<'_>) {
    if claim.served.server == WebServer::Apache {
        claim.part.doubt(
            "Apache serves it, which Ferry cannot move yet: serve it by nginx, or move it by hand",
        );
        return;
    }
    for file in &claim.served.files {
        let enabled = ENABLED.iter().any(|d| file.parent() == Some(Path::new(d)));
        let plain = file.to_str().is_some_and(|f| f.chars().all(|c| c.is_ascii_graphic()));
        if enabled && plain {
            claim.config.insert(file.clone());
        } else {
            claim.part.doubt(format!(
                "{} cannot be set aside: give the site a file of its own in /etc/nginx/sites-enabled",
                file.display()
            ));
        }
    }
}

fn with_php(board: &Board<'_>, claim: &mut Claim<'_>, pool: Option<&Pool>) {
    let Some(place) = claim.served.php.first() else { return };
    let user = &board.people.get(claim.owner).name;
    let part = &mut claim.part;
    if claim.served.php.len() > 1 {
        let all = claim.served.php.join(", ");
        part.review(format!("its PHP is asked at several places, a definition has one: {all}"));
    }
    let mut table = toml::Table::new();
    let Some(pool) = pool else {
        part.review(format!("no pool of PHP-FPM listens at {place}: as whom does its PHP run?"));
        claim.php = Some(table.into());
        return;
    };
    part.evidence.push(format!(
        "pool {} of {} runs as {}",
        pool.name,
        pool.file.display(),
        pool.user
    ));
    if &pool.user == user {
        claim.config.insert(pool.file.clone());
    } else if board.people.named(&pool.user).is_some() {
        part.doubt(format!(
            "its root is {user}'s, but its PHP runs as {}: let one user have both",
            pool.user
        ));
    } else {
        part.review(format!(
            "its PHP runs as {} in a pool that others may use: give it a pool that runs as {user}, as \
             it will have at the target, and see that {user} may write what it writes",
            pool.user
        ));
    }
    for (key, value, range) in
        [("max_children", pool.children, 1..=500), ("memory_limit_mb", pool.memory_mb, 16..=4096)]
    {
        if let Some(value) = value {
            let (first, last) = (*range.start(), *range.end());
            if !range.contains(&value) {
                part.review(format!("{key} is {value} now; a definition takes {first} to {last}"));
            }
            table.insert(key.to_owned(), i64::from(value.clamp(first, last)).into());
        }
    }
    claim.php = Some(table.into());
}

fn with_tls(board: &Board<'_>, claim: &mut Claim<'_>) {
    if !claim.served.tls {
        return;
    }
    let part = &mut claim.part;
    let Some((certificate, key)) = claim.served.certificates.first() else {
        part.review(
            "it is served over HTTPS, but its server block names no certificate".to_owned(),
        );
        return;
    };
    let shared = board.certificates.get(certificate).is_some_and(|count| *count > 1);
    if shared {
        part.review(format!("the certificate {certificate} is shared with other sites"));
    }
    let person = board.people.get(claim.owner);
    let home = Home::open(board.layout, &person.home).ok();
    let below = |path: &str| {
        let (owner, below) = board.people.home_of(Path::new(path))?;
        let there = home.as_ref().is_some_and(|h| owner == claim.owner && h.holds_file(&below));
        there.then(|| HomePath::try_from(below.to_string_lossy().into_owned()).ok())?
    };
    match (below(certificate), below(key)) {
        (Some(certificate), Some(key)) => {
            let table = toml::Table::from_iter([
                ("certificate".to_owned(), certificate.to_string().into()),
                ("key".to_owned(), key.to_string().into()),
            ]);
            part.set("tls", table);
        }
        _ => {
            part.review(format!(
                "its certificate {certificate} and key {key} are not files below {}: without `tls` the \
                 site has no HTTPS at the target. Copy them below the home, also whenever they are \
                 renewed, and name them here",
                person.home.display()
            ));
            part.lines.push("#tls = { certificate = \"...\", key = \"...\" }".to_owned());
        }
    }
}

/// Names that more than one site has.
fn contested(board: &Board<'_>, claims: &mut [Claim<'_>]) {
    let mut by_name: BTreeMap<DomainName, Vec<usize>> = BTreeMap::new();
    for (index, claim) in claims.iter().enumerate() {
        for domain in &claim.domains {
            by_name.entry(domain.clone()).or_default().push(index);
        }
    }
    for (domain, sites) in by_name.into_iter().filter(|(_, sites)| sites.len() > 1) {
        for index in &sites {
            let other = sites.iter().find(|other| *other != index).map(|other| &claims[*other]);
            let Some(other) = other else { continue };
            let doubt = format!(
                "{domain} is claimed twice: also by {} of user {}",
                other.served.title(),
                board.people.get(other.owner).name
            );
            // Of a site that is doubtful by itself the other need not be.
            if other.part.doubted && other.owner == claims[*index].owner {
                claims[*index].part.review(doubt);
            } else {
                claims[*index].part.doubt(doubt);
            }
        }
    }
}

/// Pools that run as an account's user, though no site asks them: the fence stops them with the others.
fn idle_pools(board: &mut Board<'_>, claims: &mut [Claim<'_>], pools: &[Pool]) {
    for pool in pools {
        let Some(owner) = board.people.named(&pool.user) else { continue };
        if claims.iter().any(|c| c.config.contains(&pool.file)) {
            continue;
        }
        let doubt = format!(
            "the pool {} of {} runs as the user, but no site that can be moved asks it: name the file \
             in `config` of one of the sites, or remove it",
            pool.name,
            pool.file.display()
        );
        match claims.iter_mut().find(|c| c.owner == owner && !c.part.doubted) {
            Some(claim) => {
                claim.part.review(doubt);
                claim.config.insert(pool.file.clone());
            }
            None => board.draft(owner).head.review(doubt),
        }
    }
}

fn site_name(claim: &Claim<'_>, taken: &mut BTreeSet<String>) -> String {
    let first = claim.domains.first().map_or("site", |d| d.as_str());
    let base: String = first
        .trim_start_matches("*.")
        .chars()
        .map(|c| if c == '.' { '-' } else { c })
        .take(36)
        .collect();
    let base = base.trim_end_matches('-');
    let mut name = base.to_owned();
    let mut number = 1;
    while !taken.insert(name.clone()) {
        number += 1;
        name = format!("{base}-{number}");
    }
    name
}

fn written(board: &Board<'_>, claim: Claim<'_>, name: String) -> Part {
    let mut part = claim.part;
    if name.parse::<SiteName>().is_err() {
        part.doubt(format!("{name} is no name for a site: give it one"));
    }
    let mut head = Part::default();
    head.lines.push("[[sites]]".to_owned());
    head.set("name", name);
    head.set("domains", strings(claim.domains.iter()));
    if let Some(root) = claim.root {
        head.set("root", root.to_string());
    }
    head.set("config", strings(claim.config.iter().map(|f| f.display())));
    if let Some(php) = claim.php {
        head.set("php", php);
    }
    head.lines.append(&mut part.lines);
    part.lines = head.lines;
    if part.doubted {
        let user = &board.people.get(claim.owner).name;
        part.evidence.insert(0, format!("(not proposed) perhaps {user}'s:"));
    }
    part
}

fn strings(items: impl Iterator<Item = impl std::fmt::Display>) -> Vec<String> {
    items.map(|item| item.to_string()).collect()
}
