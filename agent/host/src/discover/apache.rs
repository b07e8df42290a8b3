//! The sites that Apache is configured to serve, includes followed. None of them can be moved yet: the
//! fence and the rendering are nginx's. They are found so that nobody overlooks them.

use std::path::{Path, PathBuf};

use super::reader::{NESTED, Reader};
use super::web::{Served, WebServer};
use crate::Layout;

const ROOT: &str = "/etc/apache2";

/// All virtual hosts, and what could not be read.
pub(super) fn served(layout: &Layout) -> (Vec<Served>, Vec<String>) {
    let mut walk = Walk { reader: Reader::new(layout), found: Vec::new(), host: None };
    walk.file(&Path::new(ROOT).join("apache2.conf"), 0);
    walk.end();
    (walk.found, walk.reader.doubts)
}

struct Walk<'a> {
    reader: Reader<'a>,
    found: Vec<Served>,
    /// The virtual host whose lines are being read, and its certificate so far.
    host: Option<(Served, Option<String>, Option<String>)>,
}

impl Walk<'_> {
    fn file(&mut self, path: &Path, nested: usize) {
        let Some(text) = self.reader.read(path) else { return };
        let text = text.replace("\\\n", " ");
        for line in text.lines().map(str::trim).filter(|l| !l.starts_with('#')) {
            let words = words(line);
            let Some((name, values)) = words.split_first() else { continue };
            let value = values.first().cloned().unwrap_or_default();
            match name.to_ascii_lowercase().as_str() {
                "<virtualhost" => {
                    self.end();
                    self.host = Some((Served::new(WebServer::Apache, path.to_owned()), None, None));
                }
                "</virtualhost>" => self.end(),
                "include" | "includeoptional" if nested < NESTED => {
                    let pattern = Path::new(ROOT).join(&value);
                    let files: Vec<PathBuf> = self.reader.matching(&pattern);
                    let files = files.into_iter().flat_map(|f| self.reader.flattened(f));
                    for file in files.collect::<Vec<_>>() {
                        self.file(&file, nested + 1);
                    }
                }
                directive => self.directive(directive, &value, values),
            }
        }
    }

    fn directive(&mut self, name: &str, value: &str, values: &[String]) {
        let Some((served, certificate, key)) = &mut self.host else { return };
        match name {
            "servername" | "serveralias" => {
                let names = values.iter().map(|v| v.to_lowercase());
                served.names.extend(names.map(|n| n.split(':').next().unwrap_or_default().into()));
            }
            "documentroot" => served.roots.push(value.to_owned()),
            "sslengine" => served.tls |= value.eq_ignore_ascii_case("on"),
            "sslcertificatefile" => *certificate = Some(value.to_owned()),
            "sslcertificatekeyfile" => *key = Some(value.to_owned()),
            "sethandler" | "proxypassmatch" => {
                let socket = values.iter().find_map(|v| v.strip_prefix("proxy:unix:"));
                served.php.extend(socket.and_then(|s| s.split('|').next()).map(str::to_owned));
            }
            _ => {}
        }
    }

    fn end(&mut self) {
        if let Some((mut served, certificate, key)) = self.host.take() {
            served.certificates.extend(certificate.zip(key));
            self.found.push(served);
        }
    }
}

/// The words of a line, quoted ones whole; the end of a section's head is none.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let (word, after) = if first == '"' {
            rest[1..].split_once('"').unwrap_or((&rest[1..], ""))
        } else {
            rest.split_once(char::is_whitespace).unwrap_or((rest, ""))
        };
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    words
}
