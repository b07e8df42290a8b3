use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use ferry_proto::account::Definition;

use super::*;
use crate::web_fixture::{Web, account};

const GRACE: Duration = Duration::from_secs(10);

/// A server as a provider has set it up: one account by hand, and a neighbour.
fn provider() -> (Web, Definition) {
    let web = Web::start();
    web.put_home("www/index.php", "<?php echo 'php says ', 6 * 7;");
    let root = web.layout.root().display().to_string();
    let port = web.layout.http_port;
    let (pool, params) = (account(), web.layout.path("/etc/nginx/fastcgi_params"));
    web.put(
        "/etc/nginx/sites-available/shop.conf",
        &format!(
            "server {{\n  listen {port};\n  server_name shop.example www.shop.example;\n  root {root}/home/shop/www;\n\
             location / {{ include {}; fastcgi_param SCRIPT_FILENAME {root}/home/shop/www/index.php;\n\
             fastcgi_pass unix:{root}/run/php/{pool}.sock; }}\n}}\n",
            params.display()
        ),
    );
    let enabled = web.layout.path("/etc/nginx/sites-enabled/shop");
    symlink("../sites-available/shop.conf", enabled).unwrap();
    web.put(
        &format!("/etc/php/{}/fpm/pool.d/shop.conf", web.php),
        &format!(
            "[{pool}]\nuser = nobody\ngroup = nogroup\nlisten = {root}/run/php/$pool.sock\n\
             listen.owner = www-data\nlisten.group = www-data\npm = static\npm.max_children = 2\n"
        ),
    );
    web.put(
        "/etc/nginx/conf.d/neighbour.conf",
        &format!(
            "server {{ listen {port}; server_name neighbour.example; return 200 neighbour; }}\n"
        ),
    );
    crate::php::apply(&web.layout, &web.php).unwrap();
    crate::php::wait_listening(&format!("{root}/run/php/{pool}.sock")).unwrap();
    crate::nginx::apply(&web.layout, crate::nginx::IfDown::Leave).unwrap();
    let mut definition = web.definition(serde_json::json!({"sites": [
        {"name": "main", "domains": ["shop.example", "www.shop.example"], "root": "www", "php": {}},
    ]}));
    // As the definition of a host says it, below the root of the test.
    let pool = format!("/etc/php/{}/fpm/pool.d/shop.conf", web.php);
    definition.sites[0].config = vec!["/etc/nginx/sites-available/shop.conf".into(), pool.into()];
    assert!(web.get("shop.example", "/").text.ends_with("php says 42"));
    (web, definition)
}

fn assert_fenced(web: &Web) {
    for host in ["shop.example", "www.shop.example"] {
        let answer = web.get(host, "/");
        assert_eq!(answer.status, 503);
        assert!(answer.text.contains("Retry-After: 30"), "{}", answer.text);
    }
    assert!(web.get("neighbour.example", "/").text.ends_with("neighbour"));
    for name in [account(), format!("ferry-{}.main", account())] {
        let pool = crate::php::Pool { name, listen: None };
        assert!(crate::php::workers(&pool).unwrap().is_empty());
    }
}

#[test]
fn a_fenced_site_answers_503_and_comes_back_exactly() {
    let (web, definition) = provider();
    let before = web.snapshot("/etc/nginx");
    let pools = web.snapshot("/etc/php");
    let plan = plan_fence(&web.layout, &definition).unwrap();
    assert_eq!(plan.findings, []);
    assert_eq!(plan.files.len(), 2);
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<FencePlan>(&text).unwrap(), plan);
    assert_eq!(web.snapshot("/etc/nginx"), before, "planning changes nothing");
    assert!(fence(&web.layout, &plan, Services::Running, GRACE).unwrap());
    assert_fenced(&web);
    let jobs = web.jobs();
    assert!(fence(&web.layout, &plan, Services::Running, GRACE).unwrap());
    assert_eq!(web.jobs(), jobs, "what is fenced already is not reloaded");
    for _ in 0..2 {
        unfence(&web.layout, &plan, Services::Running).unwrap();
        assert!(web.get("shop.example", "/").text.ends_with("php says 42"));
        assert_eq!(web.snapshot("/etc/nginx"), before);
        assert_eq!(web.snapshot("/etc/php"), pools);
    }
    assert!(!web.layout.aside(&definition.name).exists());
}

#[test]
fn undoing_a_fence_that_never_was_changes_nothing() {
    let (web, definition) = provider();
    let before = web.snapshot("/etc/nginx");
    let plan = plan_fence(&web.layout, &definition).unwrap();
    let jobs = web.jobs();
    unfence(&web.layout, &plan, Services::Running).unwrap();
    assert_eq!((web.snapshot("/etc/nginx"), web.jobs()), (before, jobs));
}

#[test]
fn a_fence_cut_short_at_any_file_can_be_finished_or_undone() {
    let (web, definition) = provider();
    let before = web.snapshot("/etc/nginx");
    let plan = plan_fence(&web.layout, &definition).unwrap();
    // Only files changed, the services never told: what a crash leaves.
    fs::create_dir_all(plan.files[0].aside.parent().unwrap()).unwrap();
    fs::rename(&plan.files[0].path, &plan.files[0].aside).unwrap();
    unfence(&web.layout, &plan, Services::Running).unwrap();
    assert_eq!(web.snapshot("/etc/nginx"), before);
    fence(&web.layout, &plan, Services::Booting, GRACE).unwrap();
    assert!(web.get("shop.example", "/").text.contains("42"), "the services were not told");
    fence(&web.layout, &plan, Services::Running, GRACE).unwrap();
    assert_fenced(&web);
    // Unfenced on disk only, then finished.
    unfence(&web.layout, &plan, Services::Booting).unwrap();
    assert_eq!(web.snapshot("/etc/nginx"), before);
    unfence(&web.layout, &plan, Services::Running).unwrap();
    assert!(web.get("shop.example", "/").text.ends_with("php says 42"));
}

#[test]
fn what_is_aside_is_rehearsed_without_being_served() {
    let (web, definition) = provider();
    let plan = plan_fence(&web.layout, &definition).unwrap();
    fence(&web.layout, &plan, Services::Running, GRACE).unwrap();
    let fenced = [web.snapshot("/etc/nginx"), web.snapshot("/etc/php")];
    let jobs = web.jobs();
    assert!(rehearse(&web.layout, &plan).unwrap(), "it was tried");
    // While it was away something broke.
    let server = web.layout.path("/etc/nginx/sites-available/shop.conf");
    let text = fs::read_to_string(&server).unwrap();
    fs::write(&server, text.replace("listen", "lissen")).unwrap();
    let fault = rehearse(&web.layout, &plan).unwrap_err();
    assert!(fault.to_string().contains("lissen"), "{fault:?}");
    fs::write(&server, &text).unwrap();
    let pool = plan.files.iter().find(|f| f.target.is_none()).unwrap();
    let text = fs::read_to_string(&pool.aside).unwrap();
    fs::write(&pool.aside, text.replace("pm = static", "pm = wrong")).unwrap();
    let fault = rehearse(&web.layout, &plan).unwrap_err();
    assert!(fault.to_string().contains("PHP-FPM"), "{fault:?}");
    fs::write(&pool.aside, text).unwrap();
    assert_eq!(web.jobs(), jobs, "no service was told anything");
    assert_eq!([web.snapshot("/etc/nginx"), web.snapshot("/etc/php")], fenced);
    assert_eq!(fs::read_dir(web.layout.path("/run/ferry/rehearsal")).unwrap().count(), 0);
    assert_fenced(&web);
    unfence(&web.layout, &plan, Services::Running).unwrap();
    assert!(rehearse(&web.layout, &plan).unwrap(), "what is back is what is checked");
}

#[test]
fn the_last_pool_is_stood_in_for() {
    let (web, definition) = provider();
    let pools = crate::php::pools(&web.layout, &web.php);
    fs::remove_file(pools.join("www.conf")).unwrap();
    let before = web.snapshot("/etc/php");
    let plan = plan_fence(&web.layout, &definition).unwrap();
    fence(&web.layout, &plan, Services::Running, GRACE).unwrap();
    assert_fenced(&web);
    unfence(&web.layout, &plan, Services::Running).unwrap();
    assert_eq!(web.snapshot("/etc/php"), before);
    assert!(web.get("shop.example", "/").text.ends_with("php says 42"));
}

#[test]
fn tls_is_fenced_with_a_copy_of_the_certificate() {
    let (web, definition) = provider();
    let ssl = web.layout.path("/home/shop/ssl");
    fs::create_dir_all(&ssl).unwrap();
    let made = Command::new("/usr/bin/openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=shop.example", "-keyout"])
        .arg(ssl.join("key.pem"))
        .arg("-out")
        .arg(ssl.join("cert.pem"))
        .output()
        .expect("this test needs the Debian package openssl");
    assert!(made.status.success());
    let port = web.layout.https_port;
    let file = web.layout.path("/etc/nginx/sites-available/shop.conf");
    let text = fs::read_to_string(&file).unwrap().replace(
        "  server_name",
        &format!(
            "  listen {port} ssl;\n  ssl_certificate {0}/cert.pem;\n  ssl_certificate_key {0}/key.pem;\n  server_name",
            ssl.display()
        ),
    );
    fs::write(&file, text).unwrap();
    let plan = plan_fence(&web.layout, &definition).unwrap();
    fence(&web.layout, &plan, Services::Running, GRACE).unwrap();
    assert_fenced(&web);
    let shows_certificate = || {
        let shown = Command::new("/usr/bin/openssl")
            .args([
                "s_client",
                "-servername",
                "shop.example",
                "-connect",
                &format!("127.0.0.1:{port}"),
            ])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&shown.stdout).contains("CN = shop.example")
    };
    assert!(shows_certificate());
    // The home goes, the fence stays: also when nginx starts anew.
    fs::remove_dir_all(&ssl).unwrap();
    fence(&web.layout, &plan, Services::Running, GRACE).unwrap();
    crate::nginx::check(&web.layout).unwrap();
    assert!(shows_certificate());
    // A certificate that nobody can use does not keep a fence from being made.
    fs::write(&plan.stubs[0].copies.1, "broken").unwrap();
    fence(&web.layout, &plan, Services::Running, GRACE).unwrap();
    assert_fenced(&web);
    assert!(!shows_certificate());
}

#[test]
fn what_cannot_be_told_apart_is_refused() {
    let (web, definition) = provider();
    let refused =
        |definition: &Definition| plan_fence(&web.layout, definition).unwrap_err().message;
    let mut narrow = definition.clone();
    narrow.sites[0].domains.pop();
    assert!(refused(&narrow).contains("www.shop.example"));
    let mut unnamed = definition.clone();
    unnamed.sites[0].config.remove(0);
    assert!(refused(&unnamed).contains("does not name"));
    let mut pool = definition.clone();
    pool.sites[0].config.remove(1);
    assert!(refused(&pool).contains("pool.d/shop.conf"));
    let mut apache = definition.clone();
    apache.sites[0].config.push("/etc/apache2/sites-enabled/shop.conf".into());
    assert!(refused(&apache).contains("not support"));
    let mut absent = definition.clone();
    absent.sites[0].config.push("/etc/nginx/sites-enabled/gone.conf".into());
    assert_eq!(plan_fence(&web.layout, &absent).unwrap().findings.len(), 1);
}

#[test]
fn a_file_that_comes_back_stops_a_fence_but_not_its_undoing() {
    let (web, definition) = provider();
    let plan = plan_fence(&web.layout, &definition).unwrap();
    fence(&web.layout, &plan, Services::Running, GRACE).unwrap();
    let link = web.layout.path("/etc/nginx/sites-enabled/shop");
    symlink("../sites-available/shop.conf", &link).unwrap();
    unfence(&web.layout, &plan, Services::Running).unwrap();
    assert!(web.get("shop.example", "/").text.ends_with("php says 42"));
    assert!(web.layout.aside(&definition.name).join("00-shop.found").is_symlink());
}

/// As a backup that is restored does it, and a hand that copies a file under another name.
fn reopened_by_others(web: &Web, plan: &FencePlan) {
    for file in &plan.files {
        match &file.target {
            Some(target) => symlink(target, &file.path).unwrap(),
            None => drop(fs::copy(&file.aside, &file.path).unwrap()),
        }
    }
    let port = web.layout.http_port;
    let text =
        format!("server {{ listen {port}; server_name www.shop.example; return 200 open; }}\n");
    web.put("/etc/nginx/conf.d/copy.conf", &text);
    let pool = format!("/etc/php/{}/fpm/pool.d/copy.conf", web.php);
    let root = web.layout.root().display();
    web.put(
        &pool,
        &format!(
            "[copy{}]\nuser = nobody\ngroup = nogroup\nlisten = {root}/run/php/copy.sock\npm = static\n\
             pm.max_children = 1\n",
            std::process::id()
        ),
    );
}

fn close_again_as(
    web: &Web,
    definition: &Definition,
    plan: &FencePlan,
    s: Services,
) -> Vec<String> {
    let enabled = Enabled::read(&web.layout).unwrap();
    close_again(&web.layout, definition, Some(plan), &enabled, s).unwrap()
}

#[test]
fn what_was_opened_behind_a_fences_back_is_closed_again_while_the_host_boots() {
    let (web, definition) = provider();
    let before = [web.snapshot("/etc/nginx"), web.snapshot("/etc/php")];
    let plan = plan_fence(&web.layout, &definition).unwrap();
    fence(&web.layout, &plan, Services::Running, GRACE).unwrap();
    let fenced = [web.snapshot("/etc/nginx"), web.snapshot("/etc/php")];
    assert_eq!(close_again_as(&web, &definition, &plan, Services::Booting), [""; 0]);
    assert_eq!([web.snapshot("/etc/nginx"), web.snapshot("/etc/php")], fenced, "nothing was open");

    reopened_by_others(&web, &plan);
    assert_eq!(reopened(&plan).unwrap().len(), 2);
    let jobs = web.jobs();
    let found = close_again_as(&web, &definition, &plan, Services::Booting);
    assert_eq!(found.len(), 4, "{found:?}");
    assert_eq!(web.jobs(), jobs, "nothing runs that could be told");
    assert_eq!([web.snapshot("/etc/nginx"), web.snapshot("/etc/php")], fenced);
    assert_eq!(close_again_as(&web, &definition, &plan, Services::Booting), [""; 0]);
    // The account's own files are what comes back; what was found is kept.
    unfence(&web.layout, &plan, Services::Running).unwrap();
    assert_eq!([web.snapshot("/etc/nginx"), web.snapshot("/etc/php")], before);
    let kept = fs::read_dir(web.layout.aside(&definition.name)).unwrap().count();
    assert_eq!(kept, 4);
}

#[test]
fn what_is_served_again_behind_a_fences_back_is_closed_while_the_services_run() {
    let (web, definition) = provider();
    let plan = plan_fence(&web.layout, &definition).unwrap();
    fence(&web.layout, &plan, Services::Running, GRACE).unwrap();
    let jobs = web.jobs();
    assert_eq!(close_again_as(&web, &definition, &plan, Services::Running), [""; 0]);
    assert_eq!(web.jobs(), jobs, "nothing was open, and nothing is reloaded");
    reopened_by_others(&web, &plan);
    for stub in &plan.stubs {
        fs::remove_file(&stub.path).unwrap();
    }
    crate::php::apply(&web.layout, &web.php).unwrap();
    crate::php::wait_listening(&format!("{}/run/php/copy.sock", web.layout.root().display()))
        .unwrap();
    crate::nginx::apply(&web.layout, crate::nginx::IfDown::Leave).unwrap();
    assert!(web.get("shop.example", "/").text.ends_with("php says 42"), "it is open");
    let found = close_again_as(&web, &definition, &plan, Services::Running);
    assert!(found.len() >= 4, "{found:?}");
    assert_fenced(&web);
    let copy = crate::php::Pool { name: format!("copy{}", std::process::id()), listen: None };
    assert!(crate::php::workers(&copy).unwrap().is_empty());
}

#[test]
fn what_serves_others_too_is_left_and_told() {
    let (web, definition) = provider();
    let plan = plan_fence(&web.layout, &definition).unwrap();
    fence(&web.layout, &plan, Services::Running, GRACE).unwrap();
    let port = web.layout.http_port;
    let both = web.put(
        "/etc/nginx/conf.d/both.conf",
        &format!(
            "server {{ listen {port}; server_name shop.example other.example; return 200 x; }}\n"
        ),
    );
    let enabled = Enabled::read(&web.layout).unwrap();
    let closed = close_again(&web.layout, &definition, Some(&plan), &enabled, Services::Booting);
    let fault = closed.unwrap_err();
    assert!(fault.message.contains("both.conf"), "{fault}");
    assert!(both.exists());
}

#[test]
fn a_stub_that_is_there_stays_as_it_is_at_boot_and_one_that_is_gone_needs_no_certificate() {
    let (web, definition) = provider();
    let mut plan = plan_fence(&web.layout, &definition).unwrap();
    fence(&web.layout, &plan, Services::Running, GRACE).unwrap();
    // Made without TLS, for its certificate was of no use: with it no site of the host would start.
    let stub = &mut plan.stubs[0];
    stub.listens.push(format!("listen {} ssl", web.layout.https_port));
    stub.secure.push(true);
    let path = stub.path.clone();
    for gone in [false, true] {
        if gone {
            fs::remove_file(&path).unwrap();
        }
        close_again_as(&web, &definition, &plan, Services::Booting);
        assert!(!fs::read_to_string(&path).unwrap().contains("ssl"));
        crate::nginx::check(&web.layout).unwrap();
    }
}

#[test]
fn a_site_that_ferry_rendered_is_fenced_too() {
    let web = Web::start();
    web.put_home("www/index.php", "<?php echo 'php says ', 6 * 7;");
    let definition = web.definition(serde_json::json!({"sites": [
        {"name": "main", "domains": ["shop.example", "www.shop.example"], "root": "www", "php": {}},
    ]}));
    web.put(
        "/etc/nginx/conf.d/neighbour.conf",
        &format!(
            "server {{ listen {}; server_name neighbour.example; return 200 neighbour; }}\n",
            web.layout.http_port
        ),
    );
    let sites = crate::sites::plan(&web.layout, &definition).unwrap();
    crate::sites::open(&web.layout, &sites).unwrap();
    let plan = plan_fence(&web.layout, &definition).unwrap();
    assert_eq!((plan.files.len(), plan.pools.len()), (2, 1));
    fence(&web.layout, &plan, Services::Running, GRACE).unwrap();
    assert_fenced(&web);
    unfence(&web.layout, &plan, Services::Running).unwrap();
    assert!(web.get("shop.example", "/").text.ends_with("php says 42"));
}

#[test]
fn a_request_that_runs_may_end_within_the_grace() {
    let (web, definition) = provider();
    web.put_home("www/index.php", "<?php touch(__DIR__ . '/begun'); sleep(1); echo 'done';");
    std::os::unix::fs::chown(web.layout.path("/home/shop/www"), Some(65_534), None).unwrap();
    let plan = plan_fence(&web.layout, &definition).unwrap();
    std::thread::scope(|scope| {
        let begun = web.layout.path("/home/shop/www/begun");
        let request = scope.spawn(|| web.get("shop.example", "/"));
        while !begun.exists() {
            std::thread::yield_now();
        }
        assert!(fence(&web.layout, &plan, Services::Running, GRACE).unwrap());
        let answer = request.join().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(answer.text.ends_with("done"));
    });
    assert_fenced(&web);
}

#[test]
fn a_request_that_runs_too_long_does_not_hold_the_fence() {
    let (web, definition) = provider();
    web.put_home("www/index.php", &busy(60));
    std::os::unix::fs::chown(web.layout.path("/home/shop/www"), Some(65_534), None).unwrap();
    let plan = plan_fence(&web.layout, &definition).unwrap();
    std::thread::scope(|scope| {
        let begun = web.layout.path("/home/shop/www/begun");
        let request = scope.spawn(|| web.get("shop.example", "/"));
        while !begun.exists() {
            std::thread::yield_now();
        }
        let grace = Duration::from_millis(100);
        let begin = std::time::Instant::now();
        assert!(!fence(&web.layout, &plan, Services::Running, grace).unwrap());
        // Not process_control_timeout, which is for others' requests.
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
        assert_eq!(request.join().unwrap().status, 502);
    });
    assert_fenced(&web);
}

/// A page that works for some seconds, also when a signal comes.
fn busy(seconds: u32) -> String {
    format!(
        "<?php touch(__DIR__ . '/begun'); $end = microtime(true) + {seconds};\n\
         while (microtime(true) < $end) usleep(10000); echo 'done';"
    )
}

#[test]
fn a_neighbours_request_neither_ends_nor_holds_the_fence() {
    let (web, definition) = provider();
    let root = web.layout.root().display().to_string();
    web.put("/srv/neighbour/index.php", &busy(3));
    let directory = web.layout.path("/srv/neighbour");
    std::os::unix::fs::chown(&directory, Some(33), None).unwrap();
    web.put(
        "/etc/nginx/conf.d/neighbour.conf",
        &format!(
            "server {{ listen {}; server_name neighbour.example; location / {{\n\
             include {root}/etc/nginx/fastcgi_params;\n\
             fastcgi_param SCRIPT_FILENAME {root}/srv/neighbour/index.php;\n\
             fastcgi_pass unix:{root}/run/php/www.sock; }} }}\n",
            web.layout.http_port
        ),
    );
    crate::nginx::apply(&web.layout, crate::nginx::IfDown::Leave).unwrap();
    let plan = plan_fence(&web.layout, &definition).unwrap();
    std::thread::scope(|scope| {
        let request = scope.spawn(|| web.get("neighbour.example", "/"));
        while !directory.join("begun").exists() {
            std::thread::yield_now();
        }
        fence(&web.layout, &plan, Services::Running, GRACE).unwrap();
        assert!(!request.is_finished(), "the fence has waited for the neighbour");
        assert_eq!(web.get("shop.example", "/").status, 503);
        // And taken back at once, while PHP-FPM still waits for the neighbour.
        unfence(&web.layout, &plan, Services::Running).unwrap();
        assert!(web.get("shop.example", "/").text.ends_with("php says 42"));
        assert!(request.join().unwrap().text.ends_with("done"));
    });
}

#[test]
fn a_discarded_fence_leaves_nothing_and_starts_no_pool() {
    let (web, definition) = provider();
    let plan = plan_fence(&web.layout, &definition).unwrap();
    fence(&web.layout, &plan, Services::Running, GRACE).unwrap();
    assert_fenced(&web);
    let started = std::time::Instant::now();
    for _ in 0..2 {
        discard(&web.layout, &plan).unwrap();
        let answer = web.get("shop.example", "/");
        assert!(answer.text.ends_with("default"), "no block is left for it: {}", answer.text);
        assert!(web.get("neighbour.example", "/").text.ends_with("neighbour"));
        assert!(!web.layout.aside(&definition.name).exists());
        assert!(!web.layout.certificates(&definition.name).exists());
        assert!(plan.stubs.iter().all(|stub| !stub.path.exists()));
        assert!(plan.files.iter().all(|file| !file.path.exists() && !file.aside.exists()));
        let pool = crate::php::Pool { name: account(), listen: None };
        assert!(crate::php::workers(&pool).unwrap().is_empty());
    }
    assert!(started.elapsed() < GRACE, "it does not wait for a pool whose file is gone");
}
