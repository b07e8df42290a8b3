use std::os::unix::fs::symlink;
use std::process::Command;

use super::*;
use crate::web_fixture::Web;

fn php_and_static(web: &Web) -> Definition {
    web.definition(serde_json::json!({"sites": [
        {"name": "main", "domains": ["shop.example", "*.shop.example"], "root": "www", "php": {}},
        {"name": "docs", "domains": ["docs.example"], "root": "docs"},
    ]}))
}

fn content(web: &Web) {
    web.put_home("www/index.php", "<?php echo 'php says ', 6 * 7, ' ', $_SERVER['QUERY_STRING'];");
    web.put_home("www/plain.txt", "plain");
    web.put_home("docs/index.html", "the docs");
}

/// A certificate and key, self-signed.
fn certificate(web: &Web, directory: &str) {
    let at = web.layout.path("/home/shop").join(directory);
    fs::create_dir_all(&at).unwrap();
    let status = Command::new("/usr/bin/openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=shop.example", "-days", "2", "-keyout"])
        .arg(at.join("key.pem"))
        .arg("-out")
        .arg(at.join("cert.pem"))
        .output()
        .expect("this test needs the Debian package openssl");
    assert!(status.status.success());
}

#[test]
fn rendering_is_stable_and_holds_every_field() {
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::below(directory.path());
    layout.programs = Layout::system().programs;
    let definition: Definition = serde_json::from_value(serde_json::json!({
        "name": "a-b", "user": "usr", "home": "/srv/x", "sites": [
            {"name": "c", "domains": ["shop.example", "www.shop.example"], "root": "a/b",
             "php": {"max_children": 3, "memory_limit_mb": 64},
             "tls": {"certificate": "ssl/c.pem", "key": "ssl/c.key"}},
        ]
    }))
    .unwrap();
    let plan =
        SitesPlan { definition, php: Some("8.4".to_owned()), ipv6: true, findings: Vec::new() };
    let files = render(&layout, &plan);
    assert_eq!(files, render(&layout, &plan));
    let pool = files.iter().find(|f| f.role == Role::Pool).unwrap();
    assert!(pool.path.ends_with("etc/php/8.4/fpm/pool.d/ferry-a-b.c.conf"));
    for line in [
        "[ferry-a-b.c]",
        "user = usr",
        "pm.max_children = 3",
        "php_admin_value[memory_limit] = 64M",
    ] {
        assert!(pool.text.lines().any(|l| l == line), "{line}");
    }
    let server = files.iter().find(|f| f.role == Role::Server).unwrap();
    for line in [
        "listen 80;",
        "listen [::]:80;",
        "listen 127.0.0.1:7482 proxy_protocol;",
        "listen 443 ssl;",
        "listen [::]:443 ssl;",
        "listen 127.0.0.1:7483 ssl proxy_protocol;",
        "server_name shop.example www.shop.example;",
        "root /srv/x/a/b;",
        "disable_symlinks if_not_owner from=/srv/x;",
    ] {
        assert!(server.text.lines().any(|l| l.trim() == line), "{line} in {}", server.text);
    }
    assert!(server.text.contains("/etc/ferry/certificates/a-b/c.pem;"));
}

#[test]
fn a_site_opens_serves_closes_and_goes_without_a_trace() {
    let web = Web::start();
    content(&web);
    let definition = php_and_static(&web);
    let before = web.snapshot("/etc");
    let plan = plan(&web.layout, &definition).unwrap();
    install_closed(&web.layout, &plan).unwrap();
    assert_eq!(web.get("shop.example", "/").status, 404);
    assert_eq!(web.jobs(), 2, "installing closed reloads nothing");

    open(&web.layout, &plan).unwrap();
    assert!(web.get("shop.example", "/any?a=1").text.ends_with("php says 42 a=1"));
    assert!(web.get("www.shop.example", "/plain.txt").text.ends_with("plain"));
    assert!(web.get("docs.example", "/").text.ends_with("the docs"));
    assert_eq!(web.get("docs.example", "/missing").status, 404);
    assert!(!web.get("shop.example", "/ferry-ping").text.contains("pong"));
    let jobs = web.jobs();
    open(&web.layout, &plan).unwrap();
    assert_eq!(web.jobs(), jobs, "what is open already is not reloaded");

    for _ in 0..2 {
        close(&web.layout, &plan).unwrap();
        assert!(web.get("shop.example", "/").text.ends_with("default"));
        assert!(!php::is_listening(
            socket(&web.layout, &definition, &definition.sites[0]).to_str().unwrap()
        ));
    }
    open(&web.layout, &plan).unwrap();
    assert!(web.get("shop.example", "/").text.contains("42"));
    for _ in 0..2 {
        remove(&web.layout, &plan).unwrap();
    }
    let after: Vec<String> = web
        .snapshot("/etc")
        .into_iter()
        .filter(|l| !l.contains("/etc/ferry ") && !l.contains("/etc/ferry/certificates "))
        .collect();
    assert_eq!(after, before);
}

#[test]
fn the_redirectors_connection_brings_the_visitors_address() {
    use std::io::{Read, Write};
    let web = Web::start();
    web.put_home(
        "www/index.php",
        "<?php echo $_SERVER['REMOTE_ADDR'], ' ', $_SERVER['SERVER_NAME'];",
    );
    let definition = php_and_static(&web);
    let plan = plan(&web.layout, &definition).unwrap();
    open(&web.layout, &plan).unwrap();
    let port = web.layout.redirector_ports.http;
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .write_all(b"PROXY TCP4 203.0.113.9 192.0.2.1 1234 80\r\nGET / HTTP/1.0\r\nHost: shop.example\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("203.0.113.9 shop.example"), "{answer}");
    // The probe is for this host only.
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let probe = format!(
        "PROXY TCP4 203.0.113.9 192.0.2.1 1234 80\r\nGET {} HTTP/1.0\r\nHost: shop.example\r\n\r\n",
        crate::nginx::PROBE
    );
    stream.write_all(probe.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}

#[test]
fn a_rehearsal_answers_while_the_site_is_closed() {
    let web = Web::start();
    content(&web);
    web.put_home("www/index.php", "<?php touch(__DIR__ . '/touched'); http_response_code(500);");
    std::os::unix::fs::chown(web.layout.path("/home/shop/www"), Some(65_534), None).unwrap();
    let definition = php_and_static(&web);
    let plan = plan(&web.layout, &definition).unwrap();
    let statuses = |smoke| -> Vec<(String, u16)> {
        let answers = rehearse(&web.layout, &plan, smoke).unwrap();
        answers.into_iter().map(|r| (r.site, r.status)).collect()
    };
    let sites = |a, b| vec![("main".to_owned(), a), ("docs".to_owned(), b)];
    for _ in 0..2 {
        assert_eq!(statuses(Smoke::Ping), sites(200, 200));
    }
    let touched = web.layout.path("/home/shop/www/touched");
    assert!(!touched.exists(), "a ping runs nothing of the account");
    assert_eq!(statuses(Smoke::Front), sites(500, 200));
    assert!(touched.exists());
    assert!(web.get("shop.example", "/").text.ends_with("default"));
    assert!(web.get("docs.example", "/").text.ends_with("default"));
    open(&web.layout, &plan).unwrap();
    assert_eq!(web.get("shop.example", "/").status, 500);
    remove(&web.layout, &plan).unwrap();
    let left = fs::read_dir(web.layout.path("/run/ferry/rehearsal")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn what_nginx_refuses_is_taken_back() {
    let web = Web::start();
    content(&web);
    certificate(&web, "ssl");
    let definition = web.definition(serde_json::json!({"sites": [
        {"name": "main", "domains": ["shop.example"], "root": "www", "php": {},
         "tls": {"certificate": "ssl/cert.pem", "key": "ssl/key.pem"}},
    ]}));
    let plan = plan(&web.layout, &definition).unwrap();
    web.put_home("ssl/key.pem", "-----BEGIN PRIVATE KEY-----\nbroken\n-----END PRIVATE KEY-----\n");
    let fault = open(&web.layout, &plan).unwrap_err();
    assert!(fault.to_string().contains("key"), "{fault}");
    assert!(!enabled(&web.layout, &definition, &definition.sites[0]).exists());
    crate::nginx::check(&web.layout).unwrap();
    assert!(web.get("shop.example", "/").text.ends_with("default"));
    // Mended, it opens.
    certificate(&web, "ssl");
    open(&web.layout, &plan).unwrap();
    assert!(web.get("shop.example", "/").text.contains("42"));
    let port = web.layout.https_port.to_string();
    let shown = Command::new("/usr/bin/openssl")
        .args(["s_client", "-servername", "shop.example", "-connect", &format!("127.0.0.1:{port}")])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("CN = shop.example"));
    remove(&web.layout, &plan).unwrap();
}

#[test]
fn a_certificate_that_leads_out_of_the_home_is_refused() {
    let web = Web::start();
    certificate(&web, "ssl");
    let definition = web.definition(serde_json::json!({"sites": [
        {"name": "main", "domains": ["shop.example"], "root": "www",
         "tls": {"certificate": "ssl/cert.pem", "key": "ssl/key.pem"}},
    ]}));
    let site = &definition.sites[0];
    let home = web.layout.path("/home/shop");
    assert!(certificates::refresh(&web.layout, &definition, site).unwrap());
    assert!(!certificates::refresh(&web.layout, &definition, site).unwrap());
    let secret = web.put("/etc/secret", "-----BEGIN PRIVATE KEY-----\n");
    let key = home.join("ssl/key.pem");
    let refused = || {
        let fault = certificates::refresh(&web.layout, &definition, site).unwrap_err();
        assert_eq!(fault.class, ferry_proto::FaultClass::Precondition);
        fault.to_string()
    };
    let replace = |act: &dyn Fn()| {
        fs::remove_file(&key).unwrap();
        act();
    };
    replace(&|| symlink(&secret, &key).unwrap());
    assert!(refused().contains("out of the home"));
    replace(&|| symlink("../../../etc/secret", &key).unwrap());
    assert!(refused().contains("out of the home"));
    replace(&|| nix::unistd::mkfifo(&key, nix::sys::stat::Mode::S_IRWXU).unwrap());
    assert!(refused().contains("regular"));
    replace(&|| fs::write(&key, "no pem").unwrap());
    assert!(refused().contains("PEM"));
    std::os::unix::fs::chown(&key, Some(4321), None).unwrap();
    assert!(refused().contains("belongs"));
}

#[test]
fn a_domain_that_is_served_here_already_is_refused() {
    let web = Web::start();
    web.put("/etc/nginx/conf.d/x.conf", "server { listen 80; server_name docs.example; }\n");
    let fault = plan(&web.layout, &php_and_static(&web)).unwrap_err();
    assert!(fault.message.contains("docs.example") && fault.message.contains("x.conf"), "{fault}");
}
