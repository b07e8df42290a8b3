use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::time::Instant;

use super::*;
use crate::sites_fence::{self, Services};
use crate::web_fixture::Web;

const LONG: Duration = Duration::from_secs(10);

/// A site behind a symlink, as Debian has it, with values of its own; a file of its own that is read
/// directly; a neighbour; and one who shares a file with the account.
fn provider() -> (Web, Definition) {
    let web = Web::start();
    let port = web.layout.http_port;
    let server = |name: &str, more: &str| {
        format!("server {{\n  listen {port};\n  server_name {name};{more}\n}}\n")
    };
    web.put(
        "/etc/nginx/sites-available/shop.conf",
        &server(
            "shop.example",
            "\n  keepalive_timeout 30s;\n  # slow enough to be in use\n  \
             location /slow { keepalive_timeout 20; limit_rate 2k; root /; try_files /etc/services =404; }\n  \
             location / { return 200 shop; }",
        ),
    );
    symlink("../sites-available/shop.conf", web.layout.path("/etc/nginx/sites-enabled/shop"))
        .unwrap();
    web.put(
        "/etc/nginx/conf.d/api.conf",
        &server("api.shop.example", " location / { return 200 api; }"),
    );
    web.put(
        "/etc/nginx/conf.d/neighbour.conf",
        &server("neighbour.example", " location / { return 200 n; }"),
    );
    web.put(
        "/etc/nginx/conf.d/shared.conf",
        &server("old.shop.example stranger.example", " location / { return 200 shared; }"),
    );
    nginx::apply(&web.layout, IfDown::Leave).unwrap();
    let mut definition = web.definition(serde_json::json!({"sites": [{
        "name": "main",
        "domains": ["shop.example", "api.shop.example", "old.shop.example"],
        "root": "www",
    }]}));
    definition.sites[0].config =
        vec!["/etc/nginx/sites-available/shop.conf".into(), "/etc/nginx/conf.d/api.conf".into()];
    (web, definition)
}

/// A connection of a visitor that would keep it.
struct Kept(TcpStream);

impl Kept {
    fn open(web: &Web) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", web.layout.http_port)).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self(stream)
    }

    fn send(&mut self, host: &str, path: &str) {
        write!(self.0, "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    }

    /// Asks, and returns the answer's head.
    fn ask(&mut self, host: &str) -> String {
        self.send(host, "/");
        let mut answer = Vec::new();
        while !answer.windows(4).any(|w| w == b"\r\n\r\n") {
            let mut byte = [0; 1];
            self.0.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        String::from_utf8(answer).unwrap()
    }

    /// What comes until the web server closes.
    fn rest(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).expect("closed, neither broken off nor kept");
        rest
    }
}

fn closes(web: &Web, host: &str) -> bool {
    Kept::open(web).ask(host).contains("\r\nConnection: close\r\n")
}

#[test]
fn kept_connections_end_and_new_ones_are_not_kept() {
    let (web, definition) = provider();
    let before = web.snapshot("/etc");
    let plan = plan_wind_down(&web.layout, &definition).unwrap();
    assert_eq!(plan.files.len(), 2, "{plan:?}");
    assert!(!closes(&web, "shop.example") && !closes(&web, "api.shop.example"));
    let mut idle = Kept::open(&web);
    assert!(idle.ask("shop.example").contains("\r\nConnection: keep-alive\r\n"));
    let mut used = Kept::open(&web);
    used.send("shop.example", "/slow");
    let mut first = [0; 64];
    used.0.read_exact(&mut first).unwrap();

    wind_down(&web.layout, &plan).unwrap();
    assert!(closes(&web, "shop.example") && closes(&web, "api.shop.example"));
    assert!(!closes(&web, "neighbour.example") && !closes(&web, "stranger.example"));
    let asked = Instant::now();
    idle.rest();
    assert!(asked.elapsed() < Duration::from_secs(2), "nothing was to be waited for");
    let size = usize::try_from(fs::metadata("/etc/services").unwrap().len()).unwrap();
    let answer = used.rest();
    assert!(answer.len() + first.len() > size, "the answer under way came in full");
    // Repeated: as it is.
    let wound = web.snapshot("/etc");
    wind_down(&web.layout, &plan).unwrap();
    assert_eq!(web.snapshot("/etc"), wound);

    end_wind_down(&web.layout, &plan, None, true).unwrap();
    end_wind_down(&web.layout, &plan, None, true).unwrap();
    assert_eq!(web.snapshot("/etc").len(), before.len() + 2, "but for Ferry's own directories");
    assert_eq!(web.snapshot("/etc/nginx"), before_nginx(&before));
    assert!(!closes(&web, "shop.example") && !closes(&web, "api.shop.example"));
}

fn before_nginx(all: &[String]) -> Vec<String> {
    all.iter().filter(|line| line.contains("/etc/nginx")).cloned().collect()
}

#[test]
fn a_crash_between_two_files_is_made_good() {
    let (web, definition) = provider();
    let before = web.snapshot("/etc/nginx");
    let plan = plan_wind_down(&web.layout, &definition).unwrap();
    durable::make_directory(&web.layout.aside(&plan.account), 0o700).unwrap();
    // The first file is done; of the second, only the copy was put aside; and no reload came.
    wind(&plan.files[0]).unwrap();
    fs::copy(&plan.files[1].path, &plan.files[1].aside).unwrap();
    wind_down(&web.layout, &plan).unwrap();
    assert!(closes(&web, "shop.example") && closes(&web, "api.shop.example"));
    end_wind_down(&web.layout, &plan, None, true).unwrap();
    assert_eq!(web.snapshot("/etc/nginx"), before);
}

/// After the commit, and after an abort: whether the fence stands or not.
#[test]
fn the_fence_does_not_keep_the_files_from_coming_back() {
    let (web, definition) = provider();
    fs::remove_file(web.layout.path("/etc/nginx/conf.d/shared.conf")).unwrap();
    let before = web.snapshot("/etc/nginx");
    let wound = plan_wind_down(&web.layout, &definition).unwrap();
    wind_down(&web.layout, &wound).unwrap();
    let fence = sites_fence::plan_fence(&web.layout, &definition).unwrap();
    sites_fence::fence(&web.layout, &fence, Services::Running, LONG).unwrap();
    assert!(web.get("shop.example", "/").text.contains("503"));
    end_wind_down(&web.layout, &wound, Some(&fence), false).unwrap();
    assert!(web.get("shop.example", "/").text.contains("503"));
    sites_fence::unfence(&web.layout, &fence, Services::Running).unwrap();
    assert_eq!(web.snapshot("/etc/nginx"), before);
    assert!(!closes(&web, "shop.example") && !closes(&web, "api.shop.example"));

    wind_down(&web.layout, &wound).unwrap();
    let fence = sites_fence::plan_fence(&web.layout, &definition).unwrap();
    sites_fence::fence(&web.layout, &fence, Services::Running, LONG).unwrap();
    sites_fence::unfence(&web.layout, &fence, Services::Running).unwrap();
    assert!(closes(&web, "shop.example") && closes(&web, "api.shop.example"));
    end_wind_down(&web.layout, &wound, Some(&fence), true).unwrap();
    assert_eq!(web.snapshot("/etc/nginx"), before);
    assert!(!web.layout.aside(&definition.name).exists());
}

#[test]
fn what_the_web_server_does_not_accept_and_what_somebody_changes_stays_theirs() {
    let (web, definition) = provider();
    // A value that comes from elsewhere would stand twice in the block.
    let more = web.put("/etc/nginx/more", "keepalive_timeout 7;\n");
    let api = web.layout.path("/etc/nginx/conf.d/api.conf");
    let text = fs::read_to_string(&api).unwrap();
    fs::write(&api, text.replace(" location", &format!(" include {}; location", more.display())))
        .unwrap();
    let before = web.snapshot("/etc/nginx");
    let plan = plan_wind_down(&web.layout, &definition).unwrap();
    let mut idle = Kept::open(&web);
    idle.ask("shop.example");
    wind_down(&web.layout, &plan).unwrap();
    assert_eq!(web.snapshot("/etc/nginx"), before);
    // Those made before are let go of all the same.
    idle.rest();

    fs::write(&api, text).unwrap();
    let plan = plan_wind_down(&web.layout, &definition).unwrap();
    wind_down(&web.layout, &plan).unwrap();
    let theirs = "# changed while the account moved\n";
    fs::write(&api, theirs).unwrap();
    end_wind_down(&web.layout, &plan, None, true).unwrap();
    assert_eq!(fs::read_to_string(&api).unwrap(), theirs);
    assert!(!closes(&web, "shop.example"));
}

#[test]
fn a_file_in_the_home_is_not_touched() {
    let (web, definition) = provider();
    let shop = web.layout.path("/etc/nginx/sites-available/shop.conf");
    let text = fs::read_to_string(&shop).unwrap();
    web.put_home("nginx.conf", &text);
    fs::remove_file(&shop).unwrap();
    symlink(web.layout.path("/home/shop/nginx.conf"), &shop).unwrap();
    let plan = plan_wind_down(&web.layout, &definition).unwrap();
    assert_eq!(plan.files.len(), 1);
    wind_down(&web.layout, &plan).unwrap();
    assert_eq!(fs::read_to_string(web.layout.path("/home/shop/nginx.conf")).unwrap(), text);
}
