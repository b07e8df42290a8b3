//! Renders configuration from typed fields: pure, touches nothing. Every value in the text is of a
//! checked type (names, domains, paths below the home, numbers), none of which can hold a quote, a
//! space, a semicolon, a brace or a dollar sign.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use ferry_proto::account::{Definition, Php, Site};

use super::{SitesPlan, available, label, socket};
use crate::users::WEB_USER;
use crate::{Layout, nginx, php};

/// What a rendered file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A server block of the web server.
    Server,
    /// A PHP pool.
    Pool,
}

/// A file that Ferry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedFile {
    /// The name of its site.
    pub site: String,
    /// What it is.
    pub role: Role,
    /// Where it is while the account is open.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
}

/// The files of all sites of the plan.
pub fn render(layout: &Layout, plan: &SitesPlan) -> Vec<RenderedFile> {
    let definition = &plan.definition;
    let mut files = Vec::new();
    for site in &definition.sites {
        let name = site.name.to_string();
        if let (Some(pool), Some(version)) = (&site.php, &plan.php) {
            files.push(RenderedFile {
                site: name.clone(),
                role: Role::Pool,
                path: pool_file(layout, version, definition, site),
                text: pool_text(layout, definition, site, pool),
            });
        }
        files.push(RenderedFile {
            site: name,
            role: Role::Server,
            path: available(layout, definition, site),
            text: server(layout, plan, site).0,
        });
    }
    files
}

pub(super) fn pool_file(
    layout: &Layout,
    version: &str,
    definition: &Definition,
    site: &Site,
) -> PathBuf {
    php::pools(layout, version).join(format!("{}.conf", label(definition, site)))
}

fn header(definition: &Definition, site: &Site) -> String {
    format!(
        " Made by Ferry for site {} of account {}. Changes are overwritten.\n",
        site.name, definition.name
    )
}

fn pool_text(layout: &Layout, definition: &Definition, site: &Site, pool: &Php) -> String {
    format!(
        ";{header}[{label}]\n\
         user = {user}\n\
         listen = {socket}\n\
         listen.owner = {WEB_USER}\n\
         listen.group = {WEB_USER}\n\
         listen.mode = 0600\n\
         pm = ondemand\n\
         pm.max_children = {children}\n\
         pm.process_idle_timeout = 60s\n\
         pm.max_requests = 1000\n\
         ping.path = {PING}\n\
         security.limit_extensions = .php\n\
         php_admin_value[memory_limit] = {memory}M\n",
        header = header(definition, site),
        label = label(definition, site),
        user = definition.user,
        socket = socket(layout, definition, site).display(),
        children = pool.max_children,
        memory = pool.memory_limit_mb,
    )
}

/// The path at which a pool says that it lives, without running anything of the account. Only the
/// rehearsal's server block passes it on.
pub(super) const PING: &str = "/ferry-ping";

/// The site's server block, and the token by which its probe is known.
pub(super) fn server(layout: &Layout, plan: &SitesPlan, site: &Site) -> (String, String) {
    let definition = &plan.definition;
    let mut head = format!("#{}server {{\n", header(definition, site));
    for line in listens(layout, plan.ipv6, site.tls.is_some()) {
        // Writing to a String cannot fail.
        let _ = writeln!(head, "    {line};");
    }
    let names: Vec<&str> = site.domains.iter().map(|d| d.as_str()).collect();
    let _ = writeln!(head, "    server_name {};", names.join(" "));
    head.push_str(
        "    # Connections from the redirector bring the visitor's address along.\n\
         \x20   set_real_ip_from 127.0.0.1;\n    real_ip_header proxy_protocol;\n",
    );
    let body = body(layout, definition, site);
    let token = nginx::token(&format!("{head}{body}"));
    (format!("{head}{}{body}}}\n", nginx::probe_location(&token)), token)
}

fn listens(layout: &Layout, ipv6: bool, tls: bool) -> Vec<String> {
    let ports = layout.redirector_ports;
    let mut lines = Vec::new();
    let mut add = |port: u16, loopback: u16, options: &str| {
        lines.push(format!("listen {port}{options}"));
        if ipv6 {
            lines.push(format!("listen [::]:{port}{options}"));
        }
        lines.push(format!("listen 127.0.0.1:{loopback}{options} proxy_protocol"));
    };
    add(layout.http_port, ports.http, "");
    if tls {
        add(layout.https_port, ports.https, " ssl");
    }
    lines
}

/// Where the web server reads the site's certificate and key.
pub(super) fn certificate_files(
    layout: &Layout,
    definition: &Definition,
    site: &Site,
) -> (PathBuf, PathBuf) {
    let directory = layout.certificates(&definition.name);
    (directory.join(format!("{}.pem", site.name)), directory.join(format!("{}.key", site.name)))
}

/// What is the same for visitors and for the rehearsal.
pub(super) fn body(layout: &Layout, definition: &Definition, site: &Site) -> String {
    let mut text = String::new();
    if site.tls.is_some() {
        let (certificate, key) = certificate_files(layout, definition, site);
        let _ = writeln!(text, "    ssl_certificate {};", certificate.display());
        let _ = writeln!(text, "    ssl_certificate_key {};", key.display());
    }
    let root = site.root.below(&definition.home);
    let index =
        if site.php.is_some() { "index.php index.html index.htm" } else { "index.html index.htm" };
    let _ = writeln!(text, "    root {};", root.display());
    let _ = writeln!(text, "    index {index};");
    text.push_str("    client_max_body_size 64m;\n");
    // A symlink that leads out of the home to another's file is not followed.
    let _ = writeln!(text, "    disable_symlinks if_not_owner from={};", definition.home.display());
    text.push_str("    location ~ /\\.(?!well-known/) { deny all; }\n");
    if site.php.is_some() {
        text.push_str("    location / { try_files $uri $uri/ /index.php?$query_string; }\n");
        text.push_str(&php_location(&socket(layout, definition, site)));
    } else {
        text.push_str("    location / { try_files $uri $uri/ =404; }\n");
    }
    text
}

fn php_location(socket: &Path) -> String {
    format!(
        "    location ~ \\.php$ {{\n\
         \x20       try_files $uri =404;\n\
         \x20       include fastcgi_params;\n\
         \x20       fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name;\n\
         \x20       fastcgi_param HTTP_PROXY \"\";\n\
         \x20       fastcgi_pass unix:{};\n\
         \x20   }}\n",
        socket.display()
    )
}

/// The server block of a rehearsal: on sockets that only root can reach.
pub(super) fn rehearsal(
    layout: &Layout,
    definition: &Definition,
    site: &Site,
    sockets: &(PathBuf, PathBuf),
) -> String {
    let mut text = format!("#{}server {{\n", header(definition, site));
    let _ = writeln!(text, "    listen unix:{};", sockets.0.display());
    if site.tls.is_some() {
        let _ = writeln!(text, "    listen unix:{} ssl;", sockets.1.display());
    }
    let _ = writeln!(text, "    server_name {};", site.domains[0]);
    text.push_str("    access_log off;\n");
    if site.php.is_some() {
        let _ = write!(
            text,
            "    location = {PING} {{\n        include fastcgi_params;\n\
             \x20       fastcgi_param SCRIPT_NAME {PING};\n        fastcgi_param SCRIPT_FILENAME {PING};\n\
             \x20       fastcgi_pass unix:{};\n    }}\n",
            socket(layout, definition, site).display()
        );
    } else {
        let _ = writeln!(text, "    location = {PING} {{ return 200 \"pong\"; }}");
    }
    text.push_str(&body(layout, definition, site));
    text.push_str("}\n");
    text
}
