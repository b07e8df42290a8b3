//! The sites that nginx is configured to serve, includes followed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::reader::{NESTED, Reader};
use super::web::{Served, WebServer};
use crate::Layout;
use crate::nginx_config::{Directive, directives};

const MAIN: &str = "/etc/nginx/nginx.conf";
/// Where the fence can set a file aside.
pub(super) const ENABLED: [&str; 2] = ["/etc/nginx/sites-enabled", "/etc/nginx/conf.d"];

/// What no definition can say: at the target it would be missing.
const UNCARRIED: &[&str] = &[
    "add_header",
    "alias",
    "auth_basic",
    "auth_request",
    "error_page",
    "grpc_pass",
    "limit_req",
    "proxy_pass",
    "rewrite",
    "scgi_pass",
    "sub_filter",
    "uwsgi_pass",
];
/// Ends of `try_files` that come to what Ferry renders.
const USUAL_TRY: &[&str] = &[
    "=404",
    "/index.html",
    "/index.php",
    "/index.php?$args",
    "/index.php?$query_string",
    "/index.php$is_args$args",
    "/index.php?q=$uri&$args",
];

/// All server blocks, and what could not be read.
pub(super) fn served(layout: &Layout) -> (Vec<Served>, Vec<String>) {
    let mut walk =
        Walk { reader: Reader::new(layout), found: Vec::new(), upstreams: BTreeMap::new() };
    walk.file(Path::new(MAIN), 0);
    for served in &mut walk.found {
        for place in &mut served.php {
            if let Some(server) = walk.upstreams.get(place.as_str()) {
                place.clone_from(server);
            }
        }
    }
    (walk.found, walk.reader.doubts)
}

struct Walk<'a> {
    reader: Reader<'a>,
    found: Vec<Served>,
    /// Their names, and the first server of each.
    upstreams: BTreeMap<String, String>,
}

impl Walk<'_> {
    fn file(&mut self, path: &Path, nested: usize) {
        let Some(text) = self.reader.read(path) else { return };
        let all = directives(&text);
        let mut rest = &all[..];
        while let Some((directive, after)) = rest.split_first() {
            let inside = after.iter().take_while(|d| d.depth > directive.depth).count();
            rest = after;
            match directive.words[0].as_str() {
                "server" if directive.opens => {
                    let mut served = Served::new(WebServer::Nginx, path.to_owned());
                    self.block(&after[..inside], &mut served, nested);
                    self.found.push(served);
                    rest = &after[inside..];
                }
                "upstream" if directive.opens => {
                    self.upstream(directive, &after[..inside]);
                    rest = &after[inside..];
                }
                "include" => {
                    for file in self.included(directive, nested) {
                        self.file(&file, nested + 1);
                    }
                }
                _ => {}
            }
        }
    }

    fn upstream(&mut self, head: &Directive, block: &[Directive]) {
        let server = block.iter().find(|d| d.words[0] == "server");
        if let (Some(name), Some(server)) = (head.words.get(1), server.and_then(|d| d.words.get(1)))
        {
            self.upstreams.insert(name.clone(), plain(server));
        }
    }

    fn included(&self, directive: &Directive, nested: usize) -> Vec<PathBuf> {
        match directive.words.get(1) {
            // nginx takes relative names from where its main file is.
            Some(name) if nested < NESTED => {
                self.reader.matching(&Path::new("/etc/nginx").join(name))
            }
            _ => Vec::new(),
        }
    }

    fn block(&mut self, block: &[Directive], served: &mut Served, nested: usize) {
        let (mut certificate, mut key) = (None, None);
        for directive in block {
            let words = &directive.words;
            let value = words.get(1).cloned().unwrap_or_default();
            match words[0].as_str() {
                "server_name" => {
                    for name in words[1..].iter().map(|n| n.to_lowercase()) {
                        if !["_", ""].contains(&name.as_str()) && !served.names.contains(&name) {
                            served.names.push(name);
                        }
                    }
                }
                "listen" => served.tls |= words.iter().any(|w| w == "ssl"),
                "root" if !served.roots.contains(&value) => served.roots.push(value),
                "ssl_certificate" => certificate = certificate.or(Some(value)),
                "ssl_certificate_key" => key = key.or(Some(value)),
                "fastcgi_pass" => {
                    let place = plain(&value);
                    if !served.php.contains(&place) {
                        served.php.push(place);
                    }
                }
                "try_files" => {
                    let last = words.last().map_or("", String::as_str);
                    let usual = USUAL_TRY.contains(&last) || last.starts_with('@');
                    if !usual {
                        served.uncarried.insert(format!("try_files ... {last}"));
                    }
                }
                "auth_basic" if value == "off" => {}
                "include" => {
                    for file in self.included(directive, nested) {
                        if let Some(text) = self.reader.read(&file) {
                            self.block(&directives(&text), served, nested + 1);
                        }
                    }
                }
                name if UNCARRIED.contains(&name) => {
                    served.uncarried.insert(name.to_owned());
                }
                _ => {}
            }
        }
        if let Some(pair) = certificate.zip(key)
            && !served.certificates.contains(&pair)
        {
            served.certificates.push(pair);
        }
    }
}

/// A socket or address without the scheme.
fn plain(place: &str) -> String {
    place.strip_prefix("unix:").unwrap_or(place).to_owned()
}
