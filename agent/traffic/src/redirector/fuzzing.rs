//! What the fuzz targets need of the redirector's inside; see [`crate::fuzzing`].

use ferry_proto::Fault;

use super::body::{Body, BodyEnd};
use super::http::{self, Head};
use super::ingress::{self, Passage};
pub use super::routes::Routes;
use super::tls::{self, Hello};
use crate::control::{MAX_ACCOUNTS, MAX_DOMAINS, MAX_PEERS, Request};

/// A request's head: the one sent on is understood as the one that came, by us and by whoever looks for
/// other line ends, and says how long its body is in one way.
pub fn http_head(bytes: &[u8]) {
    let end = http::head_end(bytes, 0);
    for scanned in 0..bytes.len().min(64) {
        if http::head_end(&bytes[..scanned], 0).is_none() {
            assert_eq!(http::head_end(bytes, scanned), end, "looked at {scanned} before");
        }
    }
    let Some(end) = end else { return };
    let Ok(head) = http::parse(bytes, end) else { return };
    let sent = &head.rendered;
    let bare = |at: usize| match sent[at] {
        b'\n' => at == 0 || sent[at - 1] != b'\r',
        b'\r' => sent.get(at + 1) != Some(&b'\n'),
        0 => true,
        _ => false,
    };
    assert!(!(0..sent.len()).any(bare), "a bare line end");
    assert_eq!(http::head_end(sent, 0), Some(sent.len()), "one head, and nothing behind it");
    let again = http::parse(sent, sent.len()).expect("what is sent on can be read");
    assert_eq!(again, Head { length: sent.len(), ..head.clone() });
    let count = |name: &str| {
        let lines = sent.split(|b| *b == b'\n').skip(1);
        let name = name.as_bytes();
        lines.filter(|l| l.get(..name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name))).count()
    };
    assert!(count("host:") <= 1 && count("connection:") == 1);
    assert!(count("content-length:") + count("transfer-encoding:") <= 1);
    assert_eq!(head.body == Body::Chunked, count("transfer-encoding:") == 1);
}

/// A body ends at the same byte in whatever pieces it comes.
pub fn http_body(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let body = if *first < 128 { Body::Chunked } else { Body::Length(u64::from(*first) - 128) };
    let whole = taken(body, rest, rest.len().max(1));
    for step in [1, 3] {
        assert_eq!(taken(body, rest, step), whole);
    }
    if let (Body::Length(length), Some((taken, ended))) = (body, whole) {
        assert!(taken as u64 <= length && ended == (taken as u64 == length));
    }
}

fn taken(body: Body, bytes: &[u8], step: usize) -> Option<(usize, bool)> {
    let mut end = BodyEnd::of(body);
    let mut taken = 0;
    for piece in bytes.chunks(step) {
        let took = end.advance(piece).ok()?;
        taken += took;
        if took < piece.len() {
            assert!(end.is_reached(), "bytes were left though the body goes on");
            break;
        }
    }
    Some((taken, end.is_reached()))
}

/// A ClientHello: a name, once read, does not change with what follows; it is one that can be looked up.
pub fn client_hello(bytes: &[u8]) {
    let whole = tls::read_hello(bytes);
    if let Hello::Name(Some(name)) = &whole {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
        assert!((1..=255).contains(&name.len()) && name.chars().all(plain), "{name:?}");
    }
    for length in (0..bytes.len()).step_by(1 + bytes.len() / 64) {
        match tls::read_hello(&bytes[..length]) {
            Hello::Incomplete => {}
            earlier => assert_eq!(earlier, whole, "decided at {length}"),
        }
    }
}

/// The header between redirectors: what was read is written as what is read alike.
pub fn proxy_header(bytes: &[u8]) {
    if let Some(fixed) = bytes.first_chunk()
        && let Ok(length) = ingress::header_length(fixed)
    {
        assert!((ingress::FIXED..=ingress::MAX_HEADER).contains(&length));
    }
    let Ok(passage) = Passage::decode(bytes) else { return };
    let written = passage.encode().expect("what was read can be written");
    assert_eq!(Passage::decode(&written).as_ref(), Ok(&passage));
    assert!(written.len() <= ingress::MAX_HEADER);
}

/// What a request of the agent changes of the table.
///
/// # Errors
/// The table's.
pub fn ask(routes: &mut Routes, request: Request) -> Result<(), Fault> {
    match request {
        Request::SetRoute { route } => routes.set_route(route),
        Request::Hold { account, epoch, limits } => routes.hold(&account, epoch, limits),
        Request::Release { account, epoch, to } => routes.release(&account, epoch, to),
        Request::RemoveRoute { account, epoch } => routes.remove(&account, epoch),
        Request::SetPeers { peers } => routes.set_peers(peers),
        Request::Drain { .. } | Request::Status => Ok(()),
    }
}

/// What no request may bring about: more than the limits, or a domain of two accounts.
pub fn sound(routes: &Routes) {
    assert!(routes.accounts.len() <= MAX_ACCOUNTS && routes.peers.len() <= MAX_PEERS);
    let mut domains = std::collections::BTreeSet::new();
    for (name, standing) in &routes.accounts {
        assert_eq!(*name, standing.route.account);
        assert!(standing.route.domains.len() <= MAX_DOMAINS);
        assert!(standing.route.domains.iter().all(|domain| domains.insert(domain)));
    }
}
