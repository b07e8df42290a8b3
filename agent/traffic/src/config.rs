//! The redirector's configuration, `/etc/ferry/redirector.toml`: a few keys, each with a default.
//! It owns their meaning and their limits; routes do not belong here, the agent gives them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_proto::Fault;
use serde::Deserialize;

/// The usual port for redirected HTTP.
pub const HTTP_PORT: u16 = 7480;
/// The usual port for redirected HTTPS.
pub const HTTPS_PORT: u16 = 7443;
/// The usual port of the peer ingress.
pub const PEER_PORT: u16 = 7481;

/// The configuration. Addresses and the control socket matter only when systemd did not open the
/// sockets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where redirected HTTP arrives.
    pub http: Vec<SocketAddr>,
    /// Where redirected HTTPS arrives.
    pub https: Vec<SocketAddr>,
    /// Where other servers' redirectors arrive.
    pub peer: Vec<SocketAddr>,
    /// The control socket.
    pub control: PathBuf,
    /// The directory of the routes.
    pub state_dir: PathBuf,
    /// Connections at once, waiting and running.
    pub max_connections: u32,
    /// Connections at once from one address (IPv6: from one /64); 0: no limit of its own.
    pub max_per_visitor: u32,
    /// How long a request's head or a ClientHello may take, in seconds.
    pub head_timeout_s: u64,
    /// The largest request head, in bytes.
    pub max_head: u32,
    /// How long a running connection may be silent in both directions, in seconds.
    pub idle_timeout_s: u64,
    /// Whether sites see their visitors' own addresses. Needs the capability CAP_NET_RAW and the
    /// same choice in the firewall rules.
    pub keep_visitor_address: bool,
}

impl Default for Config {
    fn default() -> Self {
        let any = |port| vec![SocketAddr::from(([0_u16; 8], port))];
        Self {
            http: any(HTTP_PORT),
            https: any(HTTPS_PORT),
            peer: any(PEER_PORT),
            control: crate::control::CONTROL_SOCKET.into(),
            state_dir: "/var/lib/ferry-redirector".into(),
            max_connections: 8_192,
            max_per_visitor: 0,
            head_timeout_s: 10,
            // What nginx accepts by default: the redirector is in the path of every site, and must
            // not refuse what the site itself would take.
            max_head: 32 * 1024,
            idle_timeout_s: 3_600,
            keep_visitor_address: true,
        }
    }
}

impl Config {
    /// Reads the file; an absent one means the defaults.
    ///
    /// # Errors
    /// A file that cannot be read, is not such TOML, or has a value out of its limits.
    pub fn load(path: &Path) -> Result<Self, Fault> {
        let named = path.display();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Fault::io(format!("{named} cannot be read"), &e)),
        };
        let config: Self = toml::from_str(&text).map_err(|e| {
            let mut fault = Fault::precondition(format!("{named} is not valid"))
                .remedy("correct the file; `ferry-redirector --check` tells whether it is valid");
            fault.causes.push(e.to_string().trim_end().to_owned());
            fault
        })?;
        config.check().map_err(|fault| fault.context(format!("{named} is not valid")))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Fault> {
        let within = |key: &str, value: u64, range: std::ops::RangeInclusive<u64>| {
            if range.contains(&value) {
                return Ok(());
            }
            let (low, high) = range.into_inner();
            Err(Fault::precondition(format!("{key} is {value}"))
                .remedy(format!("set {key} to a number from {low} to {high}")))
        };
        within("max_connections", self.max_connections.into(), 16..=100_000)?;
        within("max_per_visitor", self.max_per_visitor.into(), 0..=100_000)?;
        within("head_timeout_s", self.head_timeout_s, 1..=300)?;
        within("max_head", self.max_head.into(), 1_024..=256 * 1024)?;
        within("idle_timeout_s", self.idle_timeout_s, 1..=86_400)?;
        for (key, path) in [("control", &self.control), ("state_dir", &self.state_dir)] {
            if !path.is_absolute() {
                return Err(Fault::precondition(format!("{key} is {}", path.display()))
                    .remedy(format!("set {key} to an absolute path")));
            }
        }
        Ok(())
    }

    /// How long a request's head or a ClientHello may take.
    pub fn head_timeout(&self) -> Duration {
        Duration::from_secs(self.head_timeout_s)
    }

    /// How long a running connection may be silent.
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, Fault> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("redirector.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    #[test]
    fn an_empty_or_absent_file_means_the_defaults() {
        assert_eq!(load("").unwrap(), Config::default());
        assert_eq!(
            Config::load(Path::new("/nonexistent/redirector.toml")).unwrap(),
            Config::default()
        );
        Config::default().check().unwrap();
    }

    #[test]
    fn a_mistake_names_the_file_the_line_and_the_remedy() {
        let fault = load("max_head = 4096\nmax_haed = 1\n").unwrap_err().to_string();
        assert!(fault.contains("redirector.toml"), "{fault}");
        assert!(fault.contains("line 2"), "{fault}");
        let fault = load("max_connections = 1\n").unwrap_err().to_string();
        assert!(fault.contains("from 16 to 100000"), "{fault}");
        assert!(load("state_dir = 'here'\n").is_err());
    }
}
