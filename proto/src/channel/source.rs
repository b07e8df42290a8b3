//! Where a connection comes from, as far as places are counted by it. It proves nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whose places a caller takes before it has shown a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// The server itself.
    Loopback,
    /// One IPv4 address, or one IPv6 network: a host has a whole /64 to itself.
    Network(IpAddr),
}

impl Source {
    /// Of the address from which somebody connected.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            // Those that the system gives to connections within the server. Who takes another of
            // 127.0.0.0/8 does so on purpose, and gets no better places for it.
            IpAddr::V4(Ipv4Addr::LOCALHOST) | IpAddr::V6(Ipv6Addr::LOCALHOST) => Self::Loopback,
            IpAddr::V6(v6) => {
                Self::Network(IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()))
            }
            v4 @ IpAddr::V4(_) => Self::Network(v4),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("the loopback"),
            Self::Network(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Source {
        Source::of(text.parse().unwrap())
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one() {
        assert_eq!(of("2001:db8::1"), of("2001:db8::2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn the_loopback_is_what_the_system_takes_for_it() {
        for loopback in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(of(loopback), Source::Loopback);
        }
        for other in ["127.0.0.2", "::2", "0.0.0.0", "::"] {
            assert_ne!(of(other), Source::Loopback);
        }
    }
}
