//! Reading the server name out of a TLS ClientHello. It owns that and nothing else: it must not
//! decide whether the hello is a good one. A hello that a TLS library would refuse (an old
//! version, say) still names the site that has to refuse it, which is why no such library reads it.

/// What the first bytes of a connection say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// More bytes are needed.
    Incomplete,
    /// A ClientHello, with the name it asks for, in lower case and without a final dot.
    Name(Option<String>),
    /// No ClientHello that can be read.
    NotTls,
}

/// The longest ClientHello that is read. Post-quantum key shares make some of about 2 KiB.
pub const MAX_HELLO: usize = 64 * 1024;

const RECORD_HANDSHAKE: u8 = 22;
const MESSAGE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: usize = 0;

/// Reads the first bytes of a connection.
pub fn read_hello(bytes: &[u8]) -> Hello {
    let (message, more) = match handshake_bytes(bytes) {
        Some(found) => found,
        None => return Hello::NotTls,
    };
    let Some((header, rest)) = message.split_at_checked(4) else {
        return if more { Hello::Incomplete } else { Hello::NotTls };
    };
    let length = number(&header[1..]);
    if header[0] != MESSAGE_CLIENT_HELLO || length > MAX_HELLO {
        return Hello::NotTls;
    }
    match rest.get(..length) {
        Some(hello) => server_name(hello).map_or(Hello::NotTls, Hello::Name),
        None => Hello::Incomplete,
    }
}

/// The handshake bytes of the records so far, which may cut a message anywhere, and whether more
/// may come. None if there is something else than handshake records.
fn handshake_bytes(mut bytes: &[u8]) -> Option<(Vec<u8>, bool)> {
    let mut message = Vec::new();
    loop {
        let Some((header, rest)) = bytes.split_at_checked(5) else {
            // Say at once if this cannot become a record.
            let odd = bytes.first().is_some_and(|b| *b != RECORD_HANDSHAKE)
                || bytes.get(1).is_some_and(|b| *b != 3);
            // Behind a whole ClientHello other records may stand (early data).
            return (!odd || !message.is_empty()).then_some((message, true));
        };
        let length = number(&header[3..]);
        if header[0] != RECORD_HANDSHAKE || header[1] != 3 || length == 0 || length > 16_384 + 256 {
            return (!message.is_empty()).then_some((message, false));
        }
        let there = rest.len().min(length);
        message.extend_from_slice(&rest[..there]);
        if there < length {
            return Some((message, true));
        }
        bytes = &rest[length..];
    }
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |n, b| (n << 8) | usize::from(*b))
}

/// Takes a field whose length stands before it in `width` bytes.
fn field<'a>(bytes: &mut &'a [u8], width: usize) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_at_checked(width)?;
    let (value, rest) = rest.split_at_checked(number(length))?;
    *bytes = rest;
    Some(value)
}

/// The name in a ClientHello's body; the outer None means that it cannot be read.
#[allow(clippy::option_option)]
fn server_name(hello: &[u8]) -> Option<Option<String>> {
    // legacy_version and random.
    let mut rest = hello.get(34..)?;
    let _session = field(&mut rest, 1)?;
    let _ciphers = field(&mut rest, 2)?;
    let _compression = field(&mut rest, 1)?;
    if rest.is_empty() {
        return Some(None);
    }
    let mut extensions = field(&mut rest, 2)?;
    while !extensions.is_empty() {
        let (kind, after) = extensions.split_at_checked(2)?;
        extensions = after;
        let mut value = field(&mut extensions, 2)?;
        if number(kind) == EXTENSION_SERVER_NAME {
            return host_name(field(&mut value, 2)?).map(Some);
        }
    }
    Some(None)
}

/// The host name in a list of server names (there is one type, 0).
fn host_name(mut names: &[u8]) -> Option<String> {
    let (kind, after) = names.split_first()?;
    names = after;
    let name = field(&mut names, 2)?;
    let name = name.strip_suffix(b".").unwrap_or(name);
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._".contains(b);
    if *kind != 0 || name.is_empty() || name.len() > 255 || !name.iter().all(plain) {
        return None;
    }
    String::from_utf8(name.to_ascii_lowercase()).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use proptest::prelude::*;

    /// A real ClientHello.
    fn hello(name: &'static str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = name.try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_name_is_found_however_the_bytes_arrive() {
        let bytes = hello("Shop.example");
        for cut in 0..bytes.len() {
            assert_eq!(read_hello(&bytes[..cut]), Hello::Incomplete, "{cut}");
        }
        let found = Hello::Name(Some("shop.example".to_owned()));
        assert_eq!(read_hello(&bytes), found);
        let early_data = [bytes.as_slice(), &[23, 3, 3, 0, 1, 0]].concat();
        assert_eq!(read_hello(&early_data), found);
    }

    #[test]
    fn a_hello_cut_into_many_records_is_read() {
        let bytes = hello("shop.example");
        let mut cut = Vec::new();
        for part in bytes[5..].chunks(7) {
            cut.extend_from_slice(&[22, 3, 1, 0, u8::try_from(part.len()).unwrap()]);
            cut.extend_from_slice(part);
        }
        assert_eq!(read_hello(&cut), Hello::Name(Some("shop.example".to_owned())));
    }

    #[test]
    fn a_hello_without_a_name_and_other_protocols_are_told_apart() {
        assert_eq!(read_hello(&hello("192.0.2.1")), Hello::Name(None));
        for other in
            ["GET / HTTP/1.1\r\n", "\0\0\0\0\0\0", "\x16\x02\x01", "\x15\x03\x01\0\x02\x02\x28"]
        {
            assert_eq!(read_hello(other.as_bytes()), Hello::NotTls, "{other:?}");
        }
        let mut bytes = hello("shop.example");
        bytes[5] = 2;
        assert_eq!(read_hello(&bytes), Hello::NotTls);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_hello(&bytes);
        }

        #[test]
        fn no_damaged_hello_makes_it_panic(at in 0_usize..250, with in any::<u8>(), cut in 0_usize..300) {
            let mut bytes = hello("shop.example");
            let length = bytes.len();
            bytes[at % length] = with;
            bytes.truncate(cut.max(1));
            let _ = read_hello(&bytes);
        }
    }
}
