//! What web servers are configured to serve, whichever they are.

use std::collections::BTreeSet;
use std::path::PathBuf;

/// A web server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WebServer {
    Nginx,
    Apache,
}

/// What one server block (virtual host) serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) server: WebServer,
    /// The files that it stands in, as the host's absolute paths, and as they are enabled.
    pub(super) files: Vec<PathBuf>,
    pub(super) names: Vec<String>,
    pub(super) roots: Vec<String>,
    pub(super) certificates: Vec<(String, String)>,
    /// Where PHP is asked: a socket or an address.
    pub(super) php: Vec<String>,
    /// Whether anything is served over HTTPS.
    pub(super) tls: bool,
    /// What is configured that a definition cannot say.
    pub(super) uncarried: BTreeSet<String>,
}

impl Served {
    pub(super) fn new(server: WebServer, file: PathBuf) -> Self {
        Self {
            server,
            files: vec![file],
            names: Vec::new(),
            roots: Vec::new(),
            certificates: Vec::new(),
            php: Vec::new(),
            tls: false,
            uncarried: BTreeSet::new(),
        }
    }

    /// How a person calls it.
    pub(super) fn title(&self) -> String {
        let names = if self.names.is_empty() { "(no name)".into() } else { self.names.join(" ") };
        let files: Vec<String> = self.files.iter().map(|f| f.display().to_string()).collect();
        format!("site {names} in {}", files.join(" and "))
    }

    /// Whether both are parts of one site: the same name, and no other place.
    fn belongs_with(&self, other: &Self) -> bool {
        let same_place =
            self.roots.is_empty() || other.roots.is_empty() || self.roots == other.roots;
        self.server == other.server
            && same_place
            && self.names.iter().any(|n| other.names.contains(n))
    }

    fn join(&mut self, other: Self) {
        add(&mut self.files, other.files);
        add(&mut self.names, other.names);
        add(&mut self.roots, other.roots);
        add(&mut self.certificates, other.certificates);
        add(&mut self.php, other.php);
        self.tls |= other.tls;
        self.uncarried.extend(other.uncarried);
    }
}

fn add<T: PartialEq>(to: &mut Vec<T>, more: Vec<T>) {
    for item in more {
        if !to.contains(&item) {
            to.push(item);
        }
    }
}

/// Blocks of one site together: plain HTTP and HTTPS usually have one each.
pub(super) fn joined(all: Vec<Served>) -> Vec<Served> {
    let mut sites: Vec<Served> = Vec::new();
    // Those with a place first: a mere redirect joins the site that it leads to.
    let (placed, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|s| !s.roots.is_empty());
    for served in placed.into_iter().chain(others) {
        match sites.iter_mut().find(|site| site.belongs_with(&served)) {
            Some(site) => site.join(served),
            None => sites.push(served),
        }
    }
    sites
}
