//! Reads nginx configuration as far as the fence needs it: which names a file serves, where it
//! listens, with which certificate. Follows no include. Knows no accounts.

/// A directive: its name and its arguments. Blocks are given by their heads, their content follows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Directive(Vec<String>);

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
        if self.ssl || self.proxy_protocol || self.address.starts_with("unix:") {
            return None;
        }
        let (host, port) = match self.address.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            _ if self.address.bytes().all(|b| b.is_ascii_digit()) => {
                ("*", self.address.parse().ok()?)
            }
            _ => (self.address.as_str(), 80),
        };
        ["*", "0.0.0.0", "127.0.0.1"].contains(&host).then_some(port)
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
    for Directive(words) in directives(text) {
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
fn directives(text: &str) -> Vec<Directive> {
    let mut found = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '#' if word.is_empty() => while chars.next_if(|c| *c != '\n').is_some() {},
            '\'' | '"' if word.is_empty() => {
                quoted(c, &mut chars, &mut word);
                words.push(std::mem::take(&mut word));
            }
            '\\' => word.extend(chars.next()),
            // A variable in braces is part of the word.
            '$' if chars.peek() == Some(&'{') => {
                word.push(c);
                for c in chars.by_ref() {
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
                    found.push(Directive(std::mem::take(&mut words)));
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

fn quoted(quote: char, chars: &mut std::iter::Peekable<std::str::Chars<'_>>, word: &mut String) {
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.extend(chars.next()),
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
}
