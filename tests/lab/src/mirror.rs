//! Where Debian's packages come from: the mirror that this machine's own apt uses.

use std::process::Command;

use anyhow::Result;

use crate::run;

/// The addresses of Debian's archive and of its security archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Ordinary releases.
    pub archive: String,
    /// Their security updates.
    pub security: String,
    /// The proxy that apt goes through, if it is told to.
    pub proxy: Option<String>,
}

impl Default for Mirror {
    fn default() -> Mirror {
        Mirror {
            archive: "http://deb.debian.org/debian".into(),
            security: "http://deb.debian.org/debian-security".into(),
            proxy: None,
        }
    }
}

impl Mirror {
    /// Asks apt, which knows every way in which its sources can be written.
    pub fn of_this_machine() -> Result<Mirror> {
        let format = "$(REPO_URI) $(RELEASE)";
        let targets = run::check(Command::new("apt-get").args([
            "indextargets",
            "--no-release-info",
            "--format",
            format,
            "Created-By: Packages",
        ]))?;
        let mut get_proxy = Command::new("apt-config");
        get_proxy.args(["shell", "PROXY", "Acquire::http::Proxy"]);
        let proxy = run::check(&mut get_proxy)?;
        Ok(Mirror { proxy: parse_proxy(&proxy), ..parse_targets(&targets) })
    }
}

/// Reads lines of "ADDRESS SUITE". Third-party archives have other suites and are passed over.
fn parse_targets(targets: &str) -> Mirror {
    const RELEASES: [&str; 3] = ["bullseye", "bookworm", "trixie"];
    let mut mirror = Mirror::default();
    let find = |suffix: &str, last: &str| {
        targets.lines().filter_map(|line| line.split_once(' ')).find_map(|(address, suite)| {
            let release = suite.strip_suffix(suffix)?;
            let address = address.trim_end_matches('/');
            (RELEASES.contains(&release) && address.ends_with(last)).then(|| address.to_owned())
        })
    };
    if let Some(archive) = find("", "debian") {
        mirror.archive = archive;
    }
    if let Some(security) = find("-security", "debian-security") {
        mirror.security = security;
    }
    mirror
}

/// Reads `PROXY='http://...'`, which apt-config prints only if a proxy is set.
fn parse_proxy(shell: &str) -> Option<String> {
    let value = shell.trim().strip_prefix("PROXY='")?.strip_suffix('\'')?;
    (!value.is_empty() && value != "DIRECT").then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_mirror_is_taken_and_foreign_archives_are_not() {
        let mirror = parse_targets(
            "https://packages.example.org/tool/ stable\n\
             https://packages.example.org/other/ bookworm\n\
             http://mirror.example.net/debian/ bookworm\n\
             http://mirror.example.net/debian/ bookworm-updates\n\
             http://mirror.example.net/debian-security/ bookworm-security\n",
        );
        assert_eq!(mirror.archive, "http://mirror.example.net/debian");
        assert_eq!(mirror.security, "http://mirror.example.net/debian-security");
    }

    #[test]
    fn without_sources_it_is_the_ordinary_one() {
        assert_eq!(parse_targets(""), Mirror::default());
    }

    #[test]
    fn a_proxy_is_read_only_when_set() {
        assert_eq!(
            parse_proxy("PROXY='http://cache:3142'\n").as_deref(),
            Some("http://cache:3142")
        );
        assert_eq!(parse_proxy(""), None);
        assert_eq!(parse_proxy("PROXY='DIRECT'"), None);
    }
}
