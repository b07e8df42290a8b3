//! The rehearsed open: a site is started but closed, and a smoke request is answered. It listens on
//! sockets that only root can reach, so no visitor can be served by it.

use std::path::PathBuf;

use ferry_proto::Fault;
use ferry_proto::account::Site;
use serde::{Deserialize, Serialize};

use super::change::start_pools;
use super::render::{PING, rehearsal};
use super::{SitesPlan, certificates, install_closed, label};
use crate::durable::{self, Ownership};
use crate::nginx::{self, IfDown};
use crate::{Layout, http};

/// What the smoke request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Smoke {
    /// Whether the pool lives (a static site: whether the web server does): nothing of the account runs,
    /// so nothing changes below its home.
    Ping,
    /// The site's front page: the account's code runs at the target, before the commit, and may write.
    Front,
}

/// How one site answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsal {
    /// The site.
    pub site: String,
    /// The HTTP status.
    pub status: u16,
}

fn sockets(layout: &Layout, plan: &SitesPlan, site: &Site) -> (PathBuf, PathBuf) {
    let directory = layout.path("/run/ferry/rehearsal");
    let label = label(&plan.definition, site);
    (directory.join(format!("{label}.sock")), directory.join(format!("{label}.tls.sock")))
}

fn file(layout: &Layout, plan: &SitesPlan, site: &Site) -> PathBuf {
    let label = label(&plan.definition, site);
    layout.path("/etc/nginx/sites-enabled").join(format!("{label}.rehearsal.conf"))
}

/// All that a rehearsal of a site makes.
pub(super) fn places(layout: &Layout, plan: &SitesPlan, site: &Site) -> [PathBuf; 3] {
    let sockets = sockets(layout, plan, site);
    [file(layout, plan, site), sockets.0, sockets.1]
}

/// Removes the rehearsal's server blocks; the web server has to be reloaded if this is true.
pub(super) fn tear_down_files(layout: &Layout, plan: &SitesPlan) -> Result<bool, Fault> {
    let mut changed = false;
    for site in &plan.definition.sites {
        changed |= durable::remove(&file(layout, plan, site))?;
    }
    Ok(changed)
}

/// Rehearses every site and returns how each answered. Afterwards the sites are closed; the pools go on
/// running unreachable, so that opening is quick.
///
/// A status of 500 may be right for `Smoke::Front` while the database logins are closed: the caller
/// judges.
///
/// # Errors
/// Precondition if a service refuses the configuration or a site does not answer at all.
pub fn rehearse(layout: &Layout, plan: &SitesPlan, smoke: Smoke) -> Result<Vec<Rehearsal>, Fault> {
    if plan.definition.sites.is_empty() {
        return Ok(Vec::new());
    }
    let _guard = nginx::lock();
    let result = prepare(layout, plan).and_then(|()| {
        plan.definition.sites.iter().map(|site| ask(layout, plan, site, smoke)).collect()
    });
    let torn_down = tear_down_files(layout, plan)
        .and_then(|changed| if changed { nginx::apply(layout, IfDown::Leave) } else { Ok(()) });
    result.and_then(|answers| torn_down.map(|()| answers)).map_err(|fault| {
        let account = &plan.definition.name;
        fault.context(format!("the sites of account {account} could not be rehearsed"))
    })
}

fn prepare(layout: &Layout, plan: &SitesPlan) -> Result<(), Fault> {
    install_closed(layout, plan)?;
    durable::make_directory(&layout.path("/run/ferry/rehearsal"), 0o700)?;
    // Of a rehearsal that a crash has cut short: it could still be loaded.
    if tear_down_files(layout, plan)? {
        nginx::apply(layout, IfDown::Leave)?;
    }
    start_pools(layout, plan)?;
    for site in &plan.definition.sites {
        certificates::refresh(layout, &plan.definition, site)?;
        let sockets = sockets(layout, plan, site);
        // Of a web server that was killed; a running one has none of these open now.
        durable::remove(&sockets.0)?;
        durable::remove(&sockets.1)?;
        let text = rehearsal(layout, &plan.definition, site, &sockets);
        durable::write(&file(layout, plan, site), text.as_bytes(), Ownership::root(0o644))?;
    }
    nginx::check(layout)?;
    nginx::apply(layout, IfDown::Start)
}

fn ask(layout: &Layout, plan: &SitesPlan, site: &Site, smoke: Smoke) -> Result<Rehearsal, Fault> {
    let path = match smoke {
        Smoke::Ping => PING,
        Smoke::Front => "/",
    };
    let silent = |why: String| {
        Fault::precondition(format!("site {} does not answer: {why}", site.name))
            .remedy("look at /var/log/nginx/error.log and at the journal of PHP-FPM")
    };
    let domain = site.domains[0].as_str().trim_start_matches("*.");
    let answer = http::get_unix(&sockets(layout, plan, site).0, domain, path)
        .map_err(|e| silent(e.to_string()))?;
    match answer.status {
        502..=504 => Err(silent(format!("status {}", answer.status))),
        status => Ok(Rehearsal { site: site.name.to_string(), status }),
    }
}
