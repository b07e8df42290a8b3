//! `/etc/ferry/agent.toml`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ferry_files::Rates;
use ferry_proto::Fault;
use ferry_traffic::control::HoldLimits;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// What may be set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The controller, `HOST:PORT`; none: the one remembered from enrolment.
    pub controller: Option<String>,
    /// Where other agents connect.
    pub peer_listen: SocketAddr,
    /// The address that the controller tells the peers; none: the address from which the agent
    /// reaches the controller, with the port of `peer_listen`.
    pub peer_address: Option<SocketAddr>,
    /// `/metrics`, `/healthz` and `/readyz`.
    pub metrics_listen: SocketAddr,
    /// How much the redirector keeps waiting for each account.
    pub hold: Hold,
    /// How fast moves may copy files while the account is served.
    pub copy: CopyLimits,
    /// What is logged: a filter of the tracing crate, such as `info` or `ferry_files=debug`.
    pub log: String,
    /// The ledger and the identity.
    pub state_directory: PathBuf,
    /// One file per account.
    pub accounts_directory: PathBuf,
    /// Programs that print accounts as JSON.
    pub inventory_directory: PathBuf,
}

/// The hold limit of each account; beyond it visitors are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hold {
    /// How long one request waits, in seconds.
    pub wait_seconds: u32,
    /// How many wait at once.
    pub requests: u32,
    /// How many bytes of them are kept.
    pub bytes: u64,
}

impl Default for Hold {
    fn default() -> Self {
        Self { wait_seconds: 30, requests: 1_000, bytes: 64 << 20 }
    }
}

impl Hold {
    /// For the redirector.
    pub fn limits(&self) -> HoldLimits {
        HoldLimits {
            wait_ms: u64::from(self.wait_seconds) * 1_000,
            requests: self.requests,
            bytes: self.bytes,
            ..HoldLimits::default()
        }
    }

    fn check(&self) -> Result<(), Fault> {
        for (key, value, most) in [
            ("wait_seconds", u64::from(self.wait_seconds), 600),
            ("requests", u64::from(self.requests), 100_000),
            ("bytes", self.bytes, 4 << 30),
        ] {
            if !(1..=most).contains(&value) {
                return Err(Fault::precondition(format!("{key} of [hold] is {value}"))
                    .remedy(format!("set {key} to a number from 1 to {most}")));
            }
        }
        Ok(())
    }
}

/// How fast all moves together may copy files from here and to here; not behind a fence, which would
/// prolong an outage. None: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CopyLimits {
    /// Bytes a second that are sent to other servers.
    pub bandwidth: Option<u64>,
    /// Bytes a second of contents that are read from and written to this server's disks.
    pub io: Option<u64>,
}

impl CopyLimits {
    /// With less nothing ever ends, and a stream may be silent for so long that its peer takes it for dead.
    const LEAST: u64 = 1024;

    /// For the file engine.
    pub fn rates(&self) -> Rates {
        Rates { bandwidth: self.bandwidth, io: self.io }
    }

    fn check(&self) -> Result<(), Fault> {
        for (key, rate) in [("bandwidth", self.bandwidth), ("io", self.io)] {
            if let Some(rate) = rate.filter(|rate| *rate < Self::LEAST) {
                let least = Self::LEAST;
                return Err(Fault::precondition(format!("{key} of [copy] is {rate}")).remedy(
                    format!(
                        "set {key} to {least} bytes a second or more, or leave it out for no limit"
                    ),
                ));
            }
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            controller: None,
            peer_listen: SocketAddr::from(([0, 0, 0, 0], 7401)),
            peer_address: None,
            metrics_listen: SocketAddr::from(([127, 0, 0, 1], 9464)),
            hold: Hold::default(),
            copy: CopyLimits::default(),
            log: "info".to_owned(),
            state_directory: "/var/lib/ferry".into(),
            accounts_directory: "/etc/ferry/accounts.d".into(),
            inventory_directory: "/etc/ferry/inventory.d".into(),
        }
    }
}

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    /// With line and column, and what to do.
    pub fn load(path: &Path) -> Result<Self, Fault> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Fault::io(format!("cannot read {}", path.display()), &e))?;
        let config: Self = toml::from_str(&text).map_err(|e| {
            Fault::precondition(format!("{} is not valid: {e}", path.display()))
                .remedy("mend the file; `ferry-agent check` says when it is right")
        })?;
        let directories = [
            ("state_directory", &config.state_directory),
            ("accounts_directory", &config.accounts_directory),
            ("inventory_directory", &config.inventory_directory),
        ];
        for (key, directory) in directories {
            if !directory.is_absolute() {
                return Err(Fault::precondition(format!(
                    "{}: {key} must be absolute",
                    path.display()
                )));
            }
        }
        if config.peer_address.is_some_and(|a| a.ip().is_unspecified()) {
            return Err(Fault::precondition(format!(
                "{}: peer_address must be an address that peers can reach",
                path.display()
            )));
        }
        config.hold.check().map_err(|f| f.context(format!("{} is not valid", path.display())))?;
        config.copy.check().map_err(|f| f.context(format!("{} is not valid", path.display())))?;
        config.log_filter().map_err(|f| f.context(format!("{} is not valid", path.display())))?;
        Ok(config)
    }

    /// What `log` says.
    ///
    /// # Errors
    /// If it is no filter.
    pub fn log_filter(&self) -> Result<EnvFilter, Fault> {
        EnvFilter::try_new(&self.log).map_err(|e| {
            Fault::precondition(format!("log = {:?} is no filter", self.log)).caused_by(&e).remedy(
                "write a level such as \"info\", or parts such as \"info,ferry_files=debug\"",
            )
        })
    }

    /// Where key and certificate are.
    pub fn identity_directory(&self) -> PathBuf {
        self.state_directory.join("identity")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packaged_configuration_is_valid_and_the_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/conf/agent.toml");
        assert_eq!(Config::load(&path).unwrap(), Config::default());
    }

    #[test]
    fn bad_configurations_are_refused_with_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        for (text, expected) in [
            ("log = \"info\"\nlgo = 1\n", "line 2"),
            ("peer_listen = \"nowhere\"\n", "peer_listen"),
            ("state_directory = \"here\"\n", "must be absolute"),
            ("peer_address = \"0.0.0.0:7401\"\n", "peers can reach"),
            ("log = \"ferry=loud\"\n", "is no filter"),
            ("[hold]\nrequests = 0\n", "from 1 to 100000"),
            ("[hold]\nwait = 5\n", "line 2"),
            ("[copy]\nbandwidth = 0\n", "leave it out for no limit"),
            ("[copy]\nio = 100\n", "io of [copy] is 100"),
            ("[copy]\nrate = 5000\n", "line 2"),
        ] {
            std::fs::write(&path, text).unwrap();
            let fault = Config::load(&path).unwrap_err();
            assert!(fault.to_string().contains(expected), "{text}: {fault}");
        }
    }

    #[test]
    fn copies_are_limited_as_the_file_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        assert_eq!(Config::default().copy.rates(), Rates::default());
        std::fs::write(&path, "[copy]\nio = 20000000\n").unwrap();
        let rates = Config::load(&path).unwrap().copy.rates();
        assert_eq!(rates, Rates { bandwidth: None, io: Some(20_000_000) });
    }
}
