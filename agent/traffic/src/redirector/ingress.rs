//! The header that goes before a connection from one redirector to another, and to a web server
//! that wants to know its visitor: PROXY protocol version 2, with fields of Ferry's own between
//! redirectors. It owns the encoding; it must not know who may send one.

use std::net::{IpAddr, SocketAddr};

use ferry_proto::ids::{AccountName, Epoch};
use ppp::v2::{Addresses, Builder, Command, Header, Protocol, Version};

/// What travels in a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// HTTP/1.
    Http,
    /// TLS.
    Https,
}

/// How many redirectors a connection may pass. Two are usual during a rollback; more is a loop.
pub const MAX_HOPS: u8 = 4;

/// The longest header accepted.
pub const MAX_HEADER: usize = 1024;

/// The bytes that tell the length of the rest.
pub const FIXED: usize = 16;

// PP2_TYPE_MIN_CUSTOM to PP2_TYPE_MAX_CUSTOM are 0xE0 to 0xEF.
const TLV_KIND: u8 = 0xE0;
const TLV_HOPS: u8 = 0xE1;
const TLV_ACCOUNT: u8 = 0xE2;
const TLV_EPOCH: u8 = 0xE3;

/// What one redirector tells another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// The visitor.
    pub visitor: SocketAddr,
    /// The address that the visitor asked for.
    pub asked: SocketAddr,
    /// What travels.
    pub kind: Kind,
    /// How many redirectors it has passed, the sender included.
    pub hops: u8,
    /// The account, as the sender sees it.
    pub account: AccountName,
    /// The epoch under which the receiver is to serve it.
    pub epoch: Epoch,
}

impl Passage {
    /// The header.
    pub fn encode(&self) -> std::io::Result<Vec<u8>> {
        let kind = match self.kind {
            Kind::Http => b"http".as_slice(),
            Kind::Https => b"https",
        };
        start(self.visitor, self.asked)
            .write_tlv(TLV_KIND, kind)?
            .write_tlv(TLV_HOPS, &[self.hops])?
            .write_tlv(TLV_ACCOUNT, self.account.as_str().as_bytes())?
            .write_tlv(TLV_EPOCH, &self.epoch.0.to_be_bytes())?
            .build()
    }

    /// Reads a whole header.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let header = Header::try_from(bytes).map_err(|_| "it is no PROXY protocol header")?;
        if header.len() != bytes.len()
            || header.command != Command::Proxy
            || header.protocol != Protocol::Stream
        {
            return Err("it is not for a proxied stream");
        }
        let (visitor, asked): (SocketAddr, SocketAddr) = match header.addresses {
            Addresses::IPv4(a) => (
                (a.source_address, a.source_port).into(),
                (a.destination_address, a.destination_port).into(),
            ),
            Addresses::IPv6(a) => (
                (a.source_address, a.source_port).into(),
                (a.destination_address, a.destination_port).into(),
            ),
            _ => return Err("it names no visitor"),
        };
        let (mut kind, mut hops, mut account, mut epoch) = (None, None, None, None);
        for tlv in header.tlvs() {
            let tlv = tlv.map_err(|_| "its fields are damaged")?;
            match tlv.kind {
                TLV_KIND => {
                    kind = match tlv.value.as_ref() {
                        b"http" => Some(Kind::Http),
                        b"https" => Some(Kind::Https),
                        _ => None,
                    }
                }
                TLV_HOPS => hops = <[u8; 1]>::try_from(tlv.value.as_ref()).ok(),
                TLV_ACCOUNT => {
                    account = std::str::from_utf8(&tlv.value).ok().and_then(|t| t.parse().ok());
                }
                TLV_EPOCH => epoch = <[u8; 8]>::try_from(tlv.value.as_ref()).ok(),
                _ => {}
            }
        }
        Ok(Self {
            visitor: canonical(visitor),
            asked: canonical(asked),
            kind: kind.ok_or("it does not say what travels")?,
            hops: hops.ok_or("it does not count its hops")?[0],
            account: account.ok_or("it names no account")?,
            epoch: Epoch(u64::from_be_bytes(epoch.ok_or("it names no epoch")?)),
        })
    }
}

/// How long a header is, from its first [`FIXED`] bytes.
///
/// # Errors
/// What is wrong with it.
pub fn header_length(fixed: &[u8; FIXED]) -> Result<usize, &'static str> {
    if &fixed[..12] != ppp::v2::PROTOCOL_PREFIX {
        return Err("it is no PROXY protocol header");
    }
    let length = FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > MAX_HEADER { Err("it is too long") } else { Ok(length) }
}

/// The header for a web server: the visitor, and the address that the visitor asked for.
///
/// # Errors
/// None in practice: the header has a fixed size.
pub fn plain_header(visitor: SocketAddr, asked: SocketAddr) -> std::io::Result<Vec<u8>> {
    start(visitor, asked).build()
}

fn start(visitor: SocketAddr, asked: SocketAddr) -> Builder {
    let (visitor, asked) = match (canonical(visitor), canonical(asked)) {
        pair
        @ ((SocketAddr::V4(_), SocketAddr::V4(_)) | (SocketAddr::V6(_), SocketAddr::V6(_))) => pair,
        // A header has one family; the mapped form keeps both addresses.
        (visitor, asked) => (mapped(visitor), mapped(asked)),
    };
    Builder::with_addresses(Version::Two | Command::Proxy, Protocol::Stream, (visitor, asked))
}

/// IPv4 in its own form, also when it came through a socket of both families.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn passage(visitor: &str, asked: &str) -> Passage {
        Passage {
            visitor: visitor.parse().unwrap(),
            asked: asked.parse().unwrap(),
            kind: Kind::Https,
            hops: 2,
            account: "alice".parse().unwrap(),
            epoch: Epoch(7),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for (visitor, asked) in [
            ("192.0.2.1:1234", "198.51.100.1:443"),
            ("[2001:db8::1]:1234", "[2001:db8::2]:443"),
            ("[2001:db8::1]:1234", "198.51.100.1:443"),
        ] {
            let passage = passage(visitor, asked);
            let bytes = passage.encode().unwrap();
            let fixed = bytes[..FIXED].try_into().unwrap();
            assert_eq!(header_length(&fixed), Ok(bytes.len()));
            assert_eq!(Passage::decode(&bytes), Ok(passage));
        }
    }

    #[test]
    fn a_header_without_our_fields_is_refused() {
        let plain = plain_header("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
        assert!(Passage::decode(&plain.unwrap()).is_err());
        assert!(header_length(b"GET / HTTP/1.1\r\n").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            tail in proptest::collection::vec(any::<u8>(), 0..120),
            command in any::<u8>(),
            family in any::<u8>(),
            length in 0_u16..130,
        ) {
            let mut bytes = ppp::v2::PROTOCOL_PREFIX.to_vec();
            bytes.extend_from_slice(&[command, family]);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(&tail);
            let _ = Passage::decode(&bytes);
        }
    }
}
