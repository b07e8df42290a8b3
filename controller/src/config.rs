//! `/etc/ferry/controller.toml`.

use std::path::{Path, PathBuf};

use ferry_api::MoveLimits;
use ferry_proto::Fault;
use serde::Deserialize;

/// An agent takes so many commands at once that this many moves leave room for all others.
const MOST_AT_ONCE: usize = 64;

/// What may be set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where agents and operators connect, `ADDRESS:PORT`.
    pub listen: String,
    /// The store, the authority and the operators' token.
    pub state_directory: PathBuf,
    /// How long an agent's certificate is good for, in days.
    pub certificate_days: u32,
    /// The same in minutes, for trying out renewal; counts before `certificate_days`.
    pub certificate_minutes: Option<u32>,
    /// How long an enrolment token is good for, in minutes.
    pub token_minutes: u32,
    /// How many moves there may be at one server at once.
    pub moves: MoveLimits,
    /// What is logged: a filter of the tracing crate, such as `info` or `ferry_fleet=debug`.
    pub log: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:7400".to_owned(),
            state_directory: "/var/lib/ferry-controller".into(),
            certificate_days: 90,
            certificate_minutes: None,
            token_minutes: 60,
            moves: MoveLimits::default(),
            log: "info".to_owned(),
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
                .remedy("mend the file; its default is in /usr/share/doc/ferry-controller")
        })?;
        if !(1..=398).contains(&config.certificate_days) {
            return Err(Fault::precondition(format!(
                "{}: certificate_days must be 1 to 398",
                path.display()
            )));
        }
        if !(1..=10_080).contains(&config.token_minutes) {
            return Err(Fault::precondition(format!(
                "{}: token_minutes must be 1 to 10080 (a week)",
                path.display()
            )));
        }
        let MoveLimits { source, target, fence } = config.moves;
        if [source, target, fence].iter().any(|limit| !(1..=MOST_AT_ONCE).contains(limit)) {
            return Err(Fault::precondition(format!(
                "{}: each number of [moves] must be 1 to {MOST_AT_ONCE}",
                path.display()
            )));
        }
        Ok(config)
    }

    /// How long an agent's certificate is good for.
    pub fn certificate_lifetime(&self) -> std::time::Duration {
        let minutes =
            self.certificate_minutes.map_or(u64::from(self.certificate_days) * 24 * 60, u64::from);
        std::time::Duration::from_secs(minutes * 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packaged_configuration_is_valid_and_the_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/conf/controller.toml");
        assert_eq!(Config::load(&path).unwrap(), Config::default());
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("controller.toml");
        std::fs::write(&path, "listen = \"0.0.0.0:7400\"\nlisten_port = 3\n").unwrap();
        let fault = Config::load(&path).unwrap_err();
        assert!(
            fault.message.contains("line 2") && fault.message.contains("listen_port"),
            "{fault}"
        );
    }

    #[test]
    fn limits_of_moves_are_set_one_by_one_and_none_is_zero() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("controller.toml");
        std::fs::write(&path, "[moves]\ntarget = 3\n").unwrap();
        let limits = Config::load(&path).unwrap().moves;
        assert_eq!(limits, MoveLimits { target: 3, ..MoveLimits::default() });
        std::fs::write(&path, "[moves]\nfence = 0\n").unwrap();
        let fault = Config::load(&path).unwrap_err();
        assert!(fault.message.contains("[moves]") && fault.message.contains("1 to 64"), "{fault}");
    }
}
