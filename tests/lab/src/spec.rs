//! Which hosts a lab has, and what each is like. Data only.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::image::Image;
use crate::network::LAB_ADDRESS;

/// The domain of the hosts' names.
pub const DOMAIN: &str = "lab.test";
/// The size of a host's /home when nobody asks for another.
const HOME_MIB: u32 = 2048;

/// What a host is to be like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSpec {
    /// Its name: lower-case letters, digits and dashes.
    pub name: String,
    /// The tree it is made of.
    pub image: Image,
    /// Its management address.
    pub address: Ipv4Addr,
    /// Its service address, if it serves.
    pub service_address: Option<Ipv4Addr>,
    /// The size of its /home, a file system of its own, in MiB. Space is used as it is filled.
    pub home_mib: u32,
    /// Whether its system and its databases are on file systems of its own too: such a host can lose
    /// its power, and its disks can be filled.
    #[serde(default)]
    pub own_disks: bool,
}

impl HostSpec {
    /// The host of the controller.
    pub fn controller() -> HostSpec {
        HostSpec {
            service_address: None,
            ..HostSpec::numbered("controller", Image::Controller, 10)
        }
    }

    /// The client server, Debian 12.
    pub fn client() -> HostSpec {
        HostSpec::numbered("client", Image::Debian12, 20)
    }

    /// The transit server, Debian 13.
    pub fn transit() -> HostSpec {
        HostSpec::numbered("transit", Image::Debian13, 30)
    }

    /// An old client server, Debian 11.
    pub fn old() -> HostSpec {
        HostSpec::numbered("old", Image::Debian11, 40)
    }

    /// The three hosts that a migration needs.
    pub fn standard() -> Vec<HostSpec> {
        vec![HostSpec::controller(), HostSpec::client(), HostSpec::transit()]
    }

    /// The same host with another size of /home.
    #[must_use]
    pub fn with_home_mib(self, home_mib: u32) -> HostSpec {
        HostSpec { home_mib, ..self }
    }

    /// The same host with file systems of its own for all that it writes.
    #[must_use]
    pub fn with_own_disks(self) -> HostSpec {
        HostSpec { own_disks: true, ..self }
    }

    /// A host with the management address 10.77.0.N and the service address 10.77.0.N+1.
    pub fn numbered(name: &str, image: Image, number: u8) -> HostSpec {
        let [a, b, c, _] = LAB_ADDRESS.octets();
        HostSpec {
            name: name.to_owned(),
            image,
            address: Ipv4Addr::new(a, b, c, number),
            service_address: Some(Ipv4Addr::new(a, b, c, number + 1)),
            home_mib: HOME_MIB,
            own_disks: false,
        }
    }

    /// Its full name.
    pub fn full_name(&self) -> String {
        format!("{}.{DOMAIN}", self.name)
    }

    /// The tree whose packages this host has; the controller's is a Debian 12 too.
    pub fn debian(&self) -> u8 {
        match self.image {
            Image::Debian11 => 11,
            Image::Debian12 | Image::Controller => 12,
            Image::Debian13 => 13,
        }
    }
}

/// What every host's /etc/hosts says: the lab itself, the usual hosts, and these.
pub fn etc_hosts(others: &[HostSpec]) -> String {
    let mut hosts = HostSpec::standard();
    hosts.push(HostSpec::old());
    let others = others.iter().filter(|other| hosts.iter().all(|known| known.name != other.name));
    let others: Vec<HostSpec> = others.cloned().collect();
    hosts.extend(others);
    let mut text = format!("127.0.0.1 localhost\n::1 localhost\n{LAB_ADDRESS} lab.{DOMAIN} lab\n");
    for host in &hosts {
        text += &format!("{} {} {}\n", host.address, host.full_name(), host.name);
        if let Some(address) = host.service_address {
            text += &format!("{address} {}-service.{DOMAIN} {}-service\n", host.name, host.name);
        }
    }
    text
}

/// What a host's /etc/network/interfaces says.
pub fn etc_interfaces(host: &HostSpec) -> String {
    let mut text = String::from("auto lo host0\niface lo inet loopback\n");
    for address in [Some(host.address), host.service_address].into_iter().flatten() {
        text +=
            &format!("iface host0 inet static\n    address {address}/{}\n", crate::network::PREFIX);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_is_listed_once() {
        let text =
            etc_hosts(&[HostSpec::client(), HostSpec::numbered("extra", Image::Debian12, 50)]);
        assert_eq!(text.matches(" client\n").count(), 1);
        assert!(text.contains("10.77.0.21 client-service.lab.test client-service\n"));
        assert!(text.contains("10.77.0.50 extra.lab.test extra\n"));
        assert!(!text.contains("controller-service"));
    }

    #[test]
    fn both_addresses_are_configured() {
        let text = etc_interfaces(&HostSpec::transit());
        assert!(text.contains("address 10.77.0.30/24") && text.contains("address 10.77.0.31/24"));
    }
}
