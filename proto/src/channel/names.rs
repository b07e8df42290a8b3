//! The two kinds of party that hold certificates, and the names that stand in them.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types as pki;
use serde::{Deserialize, Serialize};

use super::certificate::Fingerprint;
use crate::ids::{InvalidName, ServerName};

/// The DNS name in the controller's certificate. Nobody resolves it: a client connects to the
/// address it was told and checks this name.
pub const CONTROLLER_DNS_NAME: &str = "controller.ferry.internal";

/// What follows the server's name in an agent's DNS name.
const AGENT_SUFFIX: &str = ".agent.ferry.internal";

/// Who a certificate belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Party {
    /// The controller.
    Controller,
    /// The agent of one server.
    Agent(ServerName),
}

impl Party {
    /// The DNS name in its certificate.
    pub fn dns_name(&self) -> String {
        match self {
            Self::Controller => CONTROLLER_DNS_NAME.to_owned(),
            Self::Agent(name) => format!("{name}{AGENT_SUFFIX}"),
        }
    }

    /// The URI in its certificate. It ties the name to one authority, so that an identity written
    /// to a log tells two fleets apart.
    pub fn uri(&self, authority: &Fingerprint) -> String {
        let authority = authority.short();
        match self {
            Self::Controller => format!("ferry://{authority}/controller"),
            Self::Agent(name) => format!("ferry://{authority}/agent/{name}"),
        }
    }

    /// The server whose agent it is.
    pub fn server(&self) -> Option<&ServerName> {
        match self {
            Self::Controller => None,
            Self::Agent(name) => Some(name),
        }
    }

    /// Its DNS name as rustls wants it.
    pub(crate) fn tls_name(&self) -> pki::ServerName<'static> {
        // A server name is one DNS label, so the whole is a DNS name by construction.
        pki::ServerName::try_from(self.dns_name()).expect("built from checked labels")
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller => f.write_str("the controller"),
            Self::Agent(name) => write!(f, "the agent of {name}"),
        }
    }
}

/// From the DNS name in a certificate.
impl FromStr for Party {
    type Err = InvalidName;

    fn from_str(dns_name: &str) -> Result<Self, InvalidName> {
        if dns_name == CONTROLLER_DNS_NAME {
            return Ok(Self::Controller);
        }
        dns_name
            .strip_suffix(AGENT_SUFFIX)
            .and_then(|label| label.parse().ok())
            .map(Self::Agent)
            .ok_or_else(|| InvalidName {
                what: "name in a certificate",
                value: dns_name.chars().take(80).collect(),
                rule: "controller.ferry.internal or SERVER.agent.ferry.internal",
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_round_trip_and_others_are_refused() {
        let long: ServerName = "a".repeat(63).parse().unwrap();
        for party in [Party::Controller, Party::Agent("web1".parse().unwrap()), Party::Agent(long)]
        {
            assert_eq!(party.dns_name().parse::<Party>().unwrap(), party);
            assert_eq!(party.tls_name().to_str(), party.dns_name());
        }
        for bad in [
            "",
            "web1",
            ".agent.ferry.internal",
            "a.b.agent.ferry.internal",
            "*.agent.ferry.internal",
            "Controller.ferry.internal",
        ] {
            assert!(bad.parse::<Party>().is_err(), "{bad:?}");
        }
    }
}
