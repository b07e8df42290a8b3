//! Reading the head of an HTTP/1 request: which host it is for, where its body ends, and the head
//! that is sent on in its place.
//!
//! The head is not passed on as it came but written anew from what was understood, so that the
//! web server cannot understand it differently. Whatever is ambiguous is refused.
//!
//! Each connection carries one request: a kept-alive one may carry other hosts (a CDN's does), and
//! such a later request would pass by the hold of its account. So the head sent on says
//! `Connection: close`; the visitor opens another connection for the next request.

use super::body::Body;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadRequest {
    /// The status to answer with.
    pub status: u16,
    /// What is wrong.
    pub why: &'static str,
}

impl BadRequest {
    const fn new(status: u16, why: &'static str) -> Self {
        Self { status, why }
    }
}

/// A request head that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The host, in lower case, without port and final dot. HTTP/1.0 may name none.
    pub host: Option<String>,
    /// Whether the method is HEAD, whose answer has no body.
    pub is_head: bool,
    /// How long the body is.
    pub body: Body,
    /// Whether it asks for another protocol on this connection (websocket).
    pub upgrade: bool,
    /// The head to send on.
    pub rendered: Vec<u8>,
    /// How many of the bytes read belong to the head.
    pub length: usize,
}

/// Where the head ends, if it is complete: the offset behind the empty line. The first `scanned`
/// bytes were looked at before.
pub fn head_end(bytes: &[u8], scanned: usize) -> Option<usize> {
    let start = leading_line_ends(bytes).max(scanned.saturating_sub(3));
    (start..bytes.len()).find_map(|at| match &bytes[at..] {
        [b'\n', b'\n', ..] => Some(at + 2),
        [b'\n', b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// Empty lines before a request are allowed (RFC 9112, 2.2).
fn leading_line_ends(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count()
}

/// Understands the head, which ends at `end` (from [`head_end`]).
///
/// # Errors
/// Why it is refused.
pub fn parse(bytes: &[u8], end: usize) -> Result<Head, BadRequest> {
    let text = bytes.get(leading_line_ends(bytes)..end).unwrap_or_default();
    let mut lines = text.split(|b| *b == b'\n').map(|l| l.strip_suffix(b"\r").unwrap_or(l));
    let start = StartLine::parse(lines.next().unwrap_or_default())?;
    let mut fields = Fields::default();
    for line in lines.take_while(|line| !line.is_empty()) {
        fields.add(line)?;
    }
    let host = route_host(&start, &fields)?;
    let body = fields.body(start.minor)?;
    let upgrade = fields.wants_upgrade() && body == Body::Length(0) && start.minor == 1;
    let rendered = render(&start, &fields, upgrade);
    let is_head = start.method == b"HEAD";
    Ok(Head { host, is_head, body, upgrade, rendered, length: end })
}

struct StartLine<'a> {
    method: &'a [u8],
    target: &'a [u8],
    minor: u8,
}

impl<'a> StartLine<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, BadRequest> {
        const BAD: BadRequest = BadRequest::new(400, "the request line is malformed");
        let mut words = line.split(|b| *b == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(BAD);
        };
        let minor = match version {
            b"HTTP/1.1" => 1,
            b"HTTP/1.0" => 0,
            v if v.starts_with(b"HTTP/") => {
                return Err(BadRequest::new(505, "this version of HTTP is not passed on here"));
            }
            _ => return Err(BAD),
        };
        if method.is_empty() || method.len() > 32 || !method.iter().all(|b| is_token(*b)) {
            return Err(BAD);
        }
        if method == b"CONNECT" {
            return Err(BadRequest::new(405, "CONNECT is not passed on"));
        }
        if target.is_empty() || !target.iter().all(|b| *b > 0x20 && *b != 0x7f) {
            return Err(BAD);
        }
        Ok(Self { method, target, minor })
    }

    /// The authority of an absolute-form target.
    fn authority(&self) -> Option<&'a [u8]> {
        let scheme_ends = self.target.windows(3).position(|w| w == b"://")?;
        if !self.target[..scheme_ends].iter().all(u8::is_ascii_alphabetic) {
            return None;
        }
        let rest = &self.target[scheme_ends + 3..];
        let ends = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
        Some(&rest[..ends])
    }
}

/// The fields of a head, with those that decide something kept apart.
#[derive(Default)]
struct Fields<'a> {
    /// What is sent on as it came, in order.
    kept: Vec<(&'a [u8], &'a [u8])>,
    host: Option<&'a [u8]>,
    length: Option<&'a [u8]>,
    coding: Option<&'a [u8]>,
    upgrade: Vec<&'a [u8]>,
    connection_upgrade: bool,
}

impl<'a> Fields<'a> {
    fn add(&mut self, line: &'a [u8]) -> Result<(), BadRequest> {
        const BAD: BadRequest = BadRequest::new(400, "a header line is malformed");
        // A line that begins with white space continues the one before: obsolete, and read
        // differently by different servers.
        let colon = line.iter().position(|b| *b == b':').ok_or(BAD)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
            return Err(BAD);
        }
        if !value.iter().all(|b| *b == b'\t' || (*b >= 0x20 && *b != 0x7f)) {
            return Err(BAD);
        }
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        if is("host") {
            once(&mut self.host, value, "the head has two Host lines")?;
        } else if is("content-length") {
            once(&mut self.length, value, "the head has two Content-Length lines")?;
        } else if is("transfer-encoding") {
            once(&mut self.coding, value, "the head has two Transfer-Encoding lines")?;
        } else if is("connection") {
            self.connection_upgrade |= tokens(value).any(|t| t.eq_ignore_ascii_case(b"upgrade"));
            return Ok(());
        } else if is("upgrade") {
            self.upgrade.push(value);
            return Ok(());
        } else if is("keep-alive") || is("proxy-connection") || is("http2-settings") {
            return Ok(());
        }
        self.kept.push((name, value));
        Ok(())
    }

    /// HTTP/2 in clear text (h2c) carries many hosts on one connection, so it is not offered.
    fn wants_upgrade(&self) -> bool {
        let all_plain = || {
            let mut protocols = self.upgrade.iter().copied().flat_map(tokens);
            protocols.all(|t| !t.to_ascii_lowercase().starts_with(b"h2"))
        };
        self.connection_upgrade && !self.upgrade.is_empty() && all_plain()
    }

    fn body(&self, minor: u8) -> Result<Body, BadRequest> {
        const BAD: BadRequest = BadRequest::new(400, "the length of the body is ambiguous");
        match (self.length, self.coding) {
            (None, None) => Ok(Body::Length(0)),
            (Some(_), Some(_)) => Err(BAD),
            (Some(length), None) => {
                let digits = !length.is_empty()
                    && length.len() <= 18
                    && length.iter().all(u8::is_ascii_digit);
                let number = std::str::from_utf8(length).ok().filter(|_| digits);
                number.and_then(|n| n.parse().ok()).map(Body::Length).ok_or(BAD)
            }
            (None, Some(coding)) if minor == 1 && coding.eq_ignore_ascii_case(b"chunked") => {
                Ok(Body::Chunked)
            }
            (None, Some(_)) if minor == 1 => {
                Err(BadRequest::new(501, "this transfer coding is not passed on"))
            }
            (None, Some(_)) => Err(BAD),
        }
    }
}

fn once<'a>(
    slot: &mut Option<&'a [u8]>,
    value: &'a [u8],
    twice: &'static str,
) -> Result<(), BadRequest> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(BadRequest::new(400, twice)),
    }
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The host that decides the route. A target in absolute form must agree with the Host line: some
/// web servers go by one of them, some applications by the other.
fn route_host(start: &StartLine<'_>, fields: &Fields<'_>) -> Result<Option<String>, BadRequest> {
    let named = match fields.host {
        Some(value) => host_name(value)?,
        None if start.minor == 0 => None,
        None => return Err(BadRequest::new(400, "the head has no Host line")),
    };
    let Some(authority) = start.authority() else {
        return Ok(named);
    };
    let absolute = host_name(authority)?;
    if fields.host.is_some() && absolute != named {
        return Err(BadRequest::new(400, "the target and the Host line differ"));
    }
    Ok(absolute)
}

/// A host without its port and final dot, in lower case.
fn host_name(value: &[u8]) -> Result<Option<String>, BadRequest> {
    const BAD: BadRequest = BadRequest::new(400, "the host is malformed");
    let (name, port) = if value.first() == Some(&b'[') {
        let end = value.iter().position(|b| *b == b']').ok_or(BAD)?;
        value.split_at(end + 1)
    } else {
        value.split_at(value.iter().position(|b| *b == b':').unwrap_or(value.len()))
    };
    let port_ok = match port.split_first() {
        None => true,
        Some((b':', digits)) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    };
    let odd = |b: &u8| *b <= 0x20 || *b == 0x7f || b"/\\@?#,;\"<>".contains(b);
    if !port_ok || name.len() > 255 || name.iter().any(odd) {
        return Err(BAD);
    }
    let name = name.strip_suffix(b".").unwrap_or(name).to_ascii_lowercase();
    // Bytes beyond ASCII match no account; the web server may still know such a name.
    let name = String::from_utf8_lossy(&name).into_owned();
    Ok((!name.is_empty()).then_some(name))
}

fn render(start: &StartLine<'_>, fields: &Fields<'_>, upgrade: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    for part in [start.method, b" ", start.target, b" HTTP/1.", &[b'0' + start.minor], b"\r\n"] {
        out.extend_from_slice(part);
    }
    for (name, value) in &fields.kept {
        for part in [name, b": ".as_slice(), value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    if upgrade {
        for value in &fields.upgrade {
            for part in [b"Upgrade: ".as_slice(), value, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
        out.extend_from_slice(b"Connection: Upgrade\r\n\r\n");
    } else {
        out.extend_from_slice(b"Connection: close\r\n\r\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Head, BadRequest> {
        let end = head_end(text.as_bytes(), 0).expect("a complete head");
        parse(text.as_bytes(), end)
    }

    fn host(text: &str) -> Option<String> {
        read(text).unwrap().host
    }

    #[test]
    fn the_host_is_found_in_all_its_forms() {
        let shop = Some("shop.example".to_owned());
        assert_eq!(host("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n"), shop);
        assert_eq!(host("GET / HTTP/1.1\r\nhOST:SHOP.Example.:8080 \r\n\r\n"), shop);
        assert_eq!(host("\r\n\r\nGET / HTTP/1.1\nHost: shop.example\n\n"), shop);
        assert_eq!(
            host("GET http://Shop.example:80/x?y=http://z HTTP/1.1\r\nHost: shop.example\r\n\r\n"),
            shop
        );
        assert_eq!(host("GET http://shop.example HTTP/1.0\r\n\r\n"), shop);
        assert_eq!(host("GET / HTTP/1.0\r\n\r\n"), None);
        assert_eq!(host("GET / HTTP/1.1\r\nHost:\r\n\r\n"), None);
        assert_eq!(
            host("GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n"),
            Some("[2001:db8::1]".to_owned())
        );
        // A URL in the query is no authority.
        assert_eq!(
            host("GET /?u=http://other.example/ HTTP/1.1\r\nHost: shop.example\r\n\r\n"),
            shop
        );
    }

    #[test]
    fn what_is_ambiguous_is_refused() {
        let refused = [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
            "GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.example, b.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.example:80x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.example/b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a@b.example\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
            "GET /\r\n\r\n",
            "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\n",
        ];
        for text in refused {
            assert!(read(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_head_sent_on_closes_after_one_request() {
        let head = read(
            "GET /a HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\n\
             Proxy-Connection: x\r\nCookie: a=b\r\n\r\n",
        )
        .unwrap();
        assert_eq!(
            head.rendered,
            b"GET /a HTTP/1.1\r\nHost: a.example\r\nCookie: a=b\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn a_websocket_keeps_its_upgrade_and_clear_text_http2_loses_it() {
        let head = read(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )
        .unwrap();
        assert!(head.upgrade);
        assert!(head.rendered.ends_with(b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"));
        let head = read(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
             HTTP2-Settings: AAA\r\n\r\n",
        )
        .unwrap();
        assert!(!head.upgrade);
        assert_eq!(head.rendered, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Some(end) = head_end(&bytes, 0) {
                let _ = parse(&bytes, end);
            }
        }

        #[test]
        fn no_near_request_makes_it_panic(text in "(GET|POST|\\x00) [ -~]{0,20} HTTP/1\\.[019]\r?\n((Host|Upgrade|Connection|Content-Length|X)[ -~\t\r]{0,20}\r?\n){0,5}\r?\n") {
            if let Some(end) = head_end(text.as_bytes(), 0)
                && let Ok(head) = parse(text.as_bytes(), end)
            {
                // What is sent on reads the same as what came.
                let end = head_end(&head.rendered, 0).unwrap();
                prop_assert_eq!(end, head.rendered.len());
                let again = parse(&head.rendered, end).unwrap();
                prop_assert_eq!(again.host, head.host);
                prop_assert_eq!(again.body, head.body);
            }
        }
    }
}
