//! The sites' part of a fence, at the server that serves the account: the files that serve its sites
//! are moved aside, blocks that answer 503 take their place, and its PHP pools end. It is state of
//! the services themselves and holds across reboots. Knows no redirector.

mod act;
mod again;
mod discard;
mod plan;
mod rehearse;

pub use act::{fence, unfence};
pub use again::{Enabled, close_again, reopened};
pub use discard::discard;
pub use plan::plan_fence;
pub use rehearse::rehearse;

use std::path::{Path, PathBuf};

use ferry_proto::ids::AccountName;
use serde::{Deserialize, Serialize};

pub use crate::Services;
use crate::{Finding, Layout, nginx_config, php};

/// All that fencing an account's sites changes, and what was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencePlan {
    /// The account.
    pub account: AccountName,
    /// Files that are moved aside.
    pub files: Vec<AsideFile>,
    /// Server blocks that answer in their place.
    pub stubs: Vec<Stub>,
    /// The pools that end, by version of PHP.
    pub pools: Vec<VersionPools>,
    /// What a person should know.
    pub findings: Vec<Finding>,
}

/// A file of a service that is moved aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsideFile {
    /// Where it belongs.
    pub path: PathBuf,
    /// Where it is during the fence.
    pub aside: PathBuf,
    /// Owner, group and mode; of a symlink, its own.
    pub owner: (u32, u32, u32),
    /// Where it leads, if it is a symlink.
    pub target: Option<PathBuf>,
}

impl AsideFile {
    /// Where what has taken its place meanwhile is kept.
    fn found(&self) -> PathBuf {
        let mut kept = self.aside.clone().into_os_string();
        kept.push(".found");
        kept.into()
    }
}

/// A server block that answers 503.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stub {
    /// Its file.
    pub path: PathBuf,
    /// The names that it answers to.
    pub names: Vec<String>,
    /// Its `listen` directives.
    pub listens: Vec<String>,
    /// Whether each of them speaks TLS.
    pub secure: Vec<bool>,
    /// The certificate and key of the block that it stands for.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Ferry's copies of them, which outlive the account's home.
    pub copies: (PathBuf, PathBuf),
    /// A port at which it can be asked from this host.
    pub port: Option<u16>,
}

/// Pools of one version of PHP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionPools {
    /// The version.
    pub version: String,
    /// Names and addresses of the pools.
    pub pools: Vec<Pool>,
    /// A pool that stands in if no other is left: PHP-FPM does not run without one.
    pub idle: PathBuf,
}

/// A pool of PHP-FPM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Where it takes connections.
    pub listen: Option<String>,
}

impl Pool {
    fn known(&self) -> php::Pool {
        php::Pool { name: self.name.clone(), listen: self.listen.clone() }
    }
}

impl Stub {
    /// The server block, with TLS if `secure`; and the token of its probe.
    fn text(&self, secure: bool) -> (String, String) {
        let mut head =
            "# Made by Ferry: this account is fenced, or served by another server.\nserver {\n"
                .to_owned();
        for (listen, tls) in self.listens.iter().zip(&self.secure) {
            if secure || !tls {
                head.push_str(&format!("    {listen};\n"));
            }
        }
        if secure && self.secure.contains(&true) {
            let (certificate, key) = &self.copies;
            head.push_str(&format!("    ssl_certificate {};\n", certificate.display()));
            head.push_str(&format!("    ssl_certificate_key {};\n", key.display()));
        }
        head.push_str(&format!(
            "    server_name {};\n    keepalive_timeout 0;\n",
            self.names.join(" ")
        ));
        let token = crate::nginx::token(&head);
        let text = format!(
            "{head}{}    location / {{\n        add_header Retry-After 30 always;\n        \
             add_header Cache-Control no-store always;\n        return 503;\n    }}\n}}\n",
            crate::nginx::probe_location(&token)
        );
        (text, token)
    }

    /// Whether `path` is the stub of some site of the account.
    fn is_of(account: &AccountName, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&format!("ferry-fence-{account}."))
    }

    /// The name by which it is asked whether it answers.
    fn host(&self) -> Option<&str> {
        self.names.iter().map(String::as_str).find(|n| *n != "_" && !n.starts_with('~'))
    }

    fn new(layout: &Layout, account: &AccountName, index: usize, moved: &Moved<'_>) -> Self {
        let listens: Vec<&nginx_config::Listen> = moved.summary.listens.iter().collect();
        let copies = layout.certificates(account);
        let directory = crate::durable::parent(moved.path);
        Self {
            path: directory.join(format!("ferry-fence-{account}.{index}.conf")),
            names: moved.names.clone(),
            listens: listens.iter().map(|l| l.directive()).collect(),
            secure: listens.iter().map(|l| l.ssl).collect(),
            certificate: moved
                .summary
                .certificate
                .as_ref()
                .map(|(c, k)| (PathBuf::from(c), PathBuf::from(k))),
            copies: (
                copies.join(format!("fence.{index}.pem")),
                copies.join(format!("fence.{index}.key")),
            ),
            port: listens.iter().find_map(|l| l.plain_port()),
        }
    }
}

/// A web server's file that is moved aside.
struct Moved<'a> {
    path: &'a Path,
    summary: &'a nginx_config::Summary,
    names: Vec<String>,
}

#[cfg(test)]
mod tests;
