//! Reads nginx configuration as far as the fence and the proposals of definitions need it: which names a file serves, where it
//! listens, with which certificate; and makes a copy of which the web server closes each connection
//! after its answer. Follows no include. Knows no accounts.

use std::ops::Range;

/// A directive. Blocks are given by their heads, their content follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directive {
    /// Its name and its arguments.
    pub(crate) words: Vec<String>,
    /// Where it stands in the text, the last sign included.
    span: Range<usize>,
    /// Whether it is the head of a block.
    pub(crate) opens: bool,
    /// In how many blocks it stands.
    pub(crate) depth: usize,
}

/// What a file says about its server blocks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// All names of all server blocks.
    pub(crate) names: Vec<String>,
    /// The addresses they listen on, without duplicates.
    pub(crate) listens: Vec<Listen>,
    /// The first certificate and key.
    pub(crate) certificate: Option<(String, String)>,
}

/// A `listen` directive, as far as another server block on the same address must repeat it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) address: String,
    pub(crate) ssl: bool,
    pub(crate) proxy_protocol: bool,
    pub(crate) default_server: bool,
}

impl Listen {
    /// The port on which plain HTTP is spoken here, if loopback connections reach it.
    pub(crate) fn plain_port(&self) -> Option<u16> {
        if self.ssl || self.proxy_protocol {
            return None;
        }
        let (host, port) = self.host_and_port()?;
        ["*", "0.0.0.0", "127.0.0.1"].contains(&host).then_some(port)
    }

    /// The port at which visitors come here.
    pub(crate) fn visitors_port(&self) -> Option<u16> {
        if self.proxy_protocol {
            return None;
        }
        self.host_and_port().map(|(_, port)| port)
    }

    fn host_and_port(&self) -> Option<(&str, u16)> {
        if self.address.starts_with("unix:") {
            return None;
        }
        match self.address.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => Some((host, port.parse().ok()?)),
            _ if self.address.bytes().all(|b| b.is_ascii_digit()) => {
                Some(("*", self.address.parse().ok()?))
            }
            _ => Some((self.address.as_str(), 80)),
        }
    }

    /// As a directive.
    pub(crate) fn directive(&self) -> String {
        let mut text = format!("listen {}", self.address);
        for (set, word) in [
            (self.ssl, " ssl"),
            (self.proxy_protocol, " proxy_protocol"),
            (self.default_server, " default_server"),
        ] {
            if set {
                text.push_str(word);
            }
        }
        text
    }
}

/// Summarises the text of a configuration file.
pub(crate) fn summarise(text: &str) -> Summary {
    let mut summary = Summary::default();
    let (mut certificate, mut key) = (None, None);
    for Directive { words, .. } in directives(text) {
        match words[0].as_str() {
            "server_name" => summary.names.extend(words[1..].iter().map(|n| n.to_lowercase())),
            "listen" => {
                if let Some(listen) = listen(&words)
                    && !summary.listens.iter().any(|l| l.address == listen.address)
                {
                    summary.listens.push(listen);
                }
            }
            "ssl_certificate" => certificate = certificate.or_else(|| words.get(1).cloned()),
            "ssl_certificate_key" => key = key.or_else(|| words.get(1).cloned()),
            _ => {}
        }
    }
    summary.certificate = certificate.zip(key);
    summary
}

/// The same configuration, but connections to its server blocks are closed after each answer.
pub(crate) fn closing(text: &str) -> String {
    let mut closing = String::with_capacity(text.len() + 64);
    let mut copied = 0;
    for Directive { words, span, opens, .. } in directives(text) {
        let (upto, next) = match (words[0].as_str(), opens) {
            // Other values, also those of locations.
            ("keepalive_timeout", false) => (span.start, span.end),
            ("server", true) if words.len() == 1 => (span.end, span.end),
            _ => continue,
        };
        closing.push_str(&text[copied..upto]);
        if opens {
            closing.push_str(" keepalive_timeout 0;");
        }
        copied = next;
    }
    closing.push_str(&text[copied..]);
    closing
}

fn listen(words: &[String]) -> Option<Listen> {
    let address = words.get(1)?;
    let plain = address.chars().all(|c| c.is_ascii_alphanumeric() || ".:[]*/_-".contains(c));
    let has = |word: &str| words[2..].iter().any(|w| w == word);
    // QUIC has a socket of its own beside TCP's; nobody waits for an answer there.
    (plain && !has("quic")).then(|| Listen {
        address: address.clone(),
        ssl: has("ssl"),
        proxy_protocol: has("proxy_protocol"),
        default_server: has("default_server") || has("default"),
    })
}

/// The directives of a text, blocks flattened.
pub(crate) fn directives(text: &str) -> Vec<Directive> {
    let mut found = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut word = String::new();
    let (mut start, mut depth) = (0, 0_usize);
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if words.is_empty() && word.is_empty() {
            start = at;
        }
        match c {
            '#' if word.is_empty() => while chars.next_if(|(_, c)| *c != '\n').is_some() {},
            '\'' | '"' if word.is_empty() => {
                quoted(c, &mut chars, &mut word);
                words.push(std::mem::take(&mut word));
            }
            '\\' => word.extend(chars.next().map(|(_, c)| c)),
            // A variable in braces is part of the word.
            '$' if chars.peek().is_some_and(|(_, c)| *c == '{') => {
                word.push(c);
                for (_, c) in chars.by_ref() {
                    word.push(c);
                    if c == '}' {
                        break;
                    }
                }
            }
            ';' | '{' | '}' => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                if !words.is_empty() {
                    let words = std::mem::take(&mut words);
                    found.push(Directive { words, span: start..at + 1, opens: c == '{', depth });
                }
                match c {
                    '{' => depth += 1,
                    '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
            c if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    found
}

fn quoted(
    quote: char,
    chars: &mut std::iter::Peekable<std::str::CharIndices<'_>>,
    word: &mut String,
) {
    while let Some((_, c)) = chars.next() {
        match c {
            '\\' => word.extend(chars.next().map(|(_, c)| c)),
            c if c == quote => return,
            c => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
# server_name commented.example;
server {
    listen 80; listen [::]:80 default_server;
    listen 443 ssl http2 reuseport;
    listen 127.0.0.1:8080 proxy_protocol;
    server_name Shop.example
        "www.shop.example";   # more.example;
    ssl_certificate '/etc/ssl/shop.pem';
    ssl_certificate_key /etc/ssl/shop.key;
    location ~ \.php$ { fastcgi_pass unix:/run/php/x.sock; add_header X "a;b{c}"; }
    set $x ${y}z;
}
server { listen 80; server_name api.shop.example; return 301 https://$host; }
"#;

    #[test]
    fn a_usual_file_is_understood() {
        let summary = summarise(TEXT);
        assert_eq!(summary.names, ["shop.example", "www.shop.example", "api.shop.example"]);
        let listens: Vec<String> = summary.listens.iter().map(Listen::directive).collect();
        assert_eq!(
            listens,
            [
                "listen 80",
                "listen [::]:80 default_server",
                "listen 443 ssl",
                "listen 127.0.0.1:8080 proxy_protocol"
            ]
        );
        let pair = ("/etc/ssl/shop.pem".to_owned(), "/etc/ssl/shop.key".to_owned());
        assert_eq!(summary.certificate, Some(pair));
    }

    #[test]
    fn only_the_closing_of_connections_changes() {
        let text = "# server { keepalive_timeout 1;\nupstream x { server 127.0.0.1:1; }\n\
                    server{ listen 80; keepalive_timeout 5s 5;\n  set $a \"server {\";\n\
                    location /ü { keepalive_timeout 9; return 204; } }\nserver\n{ listen 81; }\n";
        let expected = "# server { keepalive_timeout 1;\nupstream x { server 127.0.0.1:1; }\n\
                    server{ keepalive_timeout 0; listen 80; \n  set $a \"server {\";\n\
                    location /ü {  return 204; } }\nserver\n{ keepalive_timeout 0; listen 81; }\n";
        assert_eq!(closing(text), expected);
        let nothing = "map $a $b { default 1; }\n";
        assert_eq!(closing(nothing), nothing);
        assert_eq!(summarise(&closing(TEXT)), summarise(TEXT));
    }

    #[test]
    fn ports_that_loopback_reaches() {
        let port = |text: &str| summarise(&format!("listen {text};")).listens[0].plain_port();
        assert_eq!(port("80"), Some(80));
        assert_eq!(port("*:8080"), Some(8080));
        assert_eq!(port("127.0.0.1:81"), Some(81));
        assert_eq!(port("127.0.0.1"), Some(80));
        assert_eq!(port("443 ssl"), None);
        assert_eq!(port("[::]:80"), None);
        assert_eq!(port("192.0.2.1:80"), None);
        assert_eq!(port("unix:/run/x.sock"), None);
    }

    #[test]
    fn ports_that_visitors_reach() {
        let port = |text: &str| summarise(&format!("listen {text};")).listens[0].visitors_port();
        assert_eq!(port("443 ssl"), Some(443));
        assert_eq!(port("[::]:8443 ssl"), Some(8443));
        assert_eq!(port("[::1]"), Some(80));
        assert_eq!(port("192.0.2.1"), Some(80));
        assert_eq!(port("127.0.0.1:8080 proxy_protocol"), None);
        assert_eq!(port("unix:/run/x.sock"), None);
    }
}
