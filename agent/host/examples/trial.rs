//! Temporary trial on a booted host.
use ferry_host::processes::*;
use ferry_host::users::*;
use ferry_host::*;
use ferry_proto::account::Definition;
use std::process::Command;
use std::time::{Duration, Instant};

fn sh(script: &str) -> String {
    let o = Command::new("/bin/sh").args(["-c", script]).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
        .trim()
        .to_owned()
}
fn timed<T>(what: &str, f: impl FnOnce() -> Result<T, ferry_proto::Fault>) -> T {
    let t = Instant::now();
    match f() {
        Ok(v) => {
            println!("  {what}: {:?}", t.elapsed());
            v
        }
        Err(e) => {
            println!("  {what}: FAILED after {:?}: {e}", t.elapsed());
            std::process::exit(1)
        }
    }
}
fn expect(what: &str, got: &str, want: &str) {
    if got.contains(want) {
        println!("  ok {what}: {want}");
    } else {
        println!("  BAD {what}: got {got:?}, want {want:?}");
    }
}
fn definition(text: &str) -> Definition {
    let d: Definition = serde_json::from_str(text).unwrap();
    d.check().unwrap();
    d
}

#[allow(clippy::too_many_lines)]
fn main() {
    let layout = Layout::system();
    let php = sh("ls /etc/php | tail -1");
    println!("setup {} php {php}", sh("cat /etc/debian_version"));
    println!(
        "{}",
        sh(&format!(
            r#"
id shop 2>/dev/null || useradd -m -s /bin/bash shop
chmod 711 /home/shop; mkdir -p /home/shop/www; echo '<?php echo "php says ", 6*7;' > /home/shop/www/index.php
mkdir -p /home/shop/.config/systemd/user/default.target.wants
printf '[Service]\nExecStart=/bin/sleep 9999\nRestart=always\n[Install]\nWantedBy=default.target\n' > /home/shop/.config/systemd/user/mine.service
ln -sf ../mine.service /home/shop/.config/systemd/user/default.target.wants/mine.service
chown -R shop:shop /home/shop
printf '[Service]\nUser=shop\nExecStart=/bin/sh -c "exec 3>>/home/shop/open; sleep 9999"\nRestart=always\nRestartSec=0\n[Install]\nWantedBy=multi-user.target\n' > /etc/systemd/system/worker.service
printf '[Service]\nUser=shop\nType=oneshot\nExecStart=/bin/sh -c "date >> /home/shop/ticks"\n' > /etc/systemd/system/tick.service
printf '[Timer]\nOnCalendar=*:*:0/2\nAccuracySec=100ms\n[Install]\nWantedBy=timers.target\n' > /etc/systemd/system/tick.timer
systemctl daemon-reload; systemctl enable --now worker.service tick.timer 2>&1
loginctl enable-linger shop 2>&1
mkdir -p /var/spool/cron/crontabs; echo '* * * * * echo x >> /home/shop/cronlog' | crontab -u shop -
cat > /etc/nginx/sites-available/shop.conf <<X
server {{ listen 80; server_name shop.example; root /home/shop/www; location / {{ include fastcgi_params; fastcgi_param SCRIPT_FILENAME /home/shop/www/index.php; fastcgi_pass unix:/run/php/shop.sock; }} }}
X
ln -sf ../sites-available/shop.conf /etc/nginx/sites-enabled/shop.conf
printf '[shop]\nuser=shop\ngroup=shop\nlisten=/run/php/shop.sock\nlisten.owner=www-data\npm=dynamic\npm.max_children=4\npm.start_servers=2\npm.min_spare_servers=1\npm.max_spare_servers=2\n' > /etc/php/{php}/fpm/pool.d/shop.conf
systemctl restart php{php}-fpm nginx cron 2>&1
sleep 1; curl -s -H 'Host: shop.example' http://127.0.0.1/
"#
        ))
    );
    let d = definition(&format!(
        r#"{{"name":"shop","user":"shop","home":"/home/shop","sites":[{{"name":"main","domains":["shop.example"],"root":"www","php":{{}},"config":["/etc/nginx/sites-available/shop.conf","/etc/php/{php}/fpm/pool.d/shop.conf"]}}]}}"#
    ));
    println!("facts: {:?}", timed("facts", || facts::server(&layout, &["/home".into()])));
    let record = timed("describe", || describe(&layout, &d));
    println!("{record:?}");
    println!(
        "{}",
        sh("systemctl --user -M shop@ list-units 2>&1 | head -3; ps -u shop -o pid,args")
    );
    let fence = timed("plan_fence", || sites_fence::plan_fence(&layout, &d));
    println!("findings {:?}", fence.findings);
    let units = timed("plan_keep_stopped", || plan_keep_stopped(&layout, &d.user, record.uid));
    println!("{units:?}");
    timed("prepare", || prepare_keep_stopped(&layout, &units));
    let logins = timed("plan_close_logins", || plan_close_logins(&layout, &d.user));
    println!("writers {:?}", timed("writers", || writers_below(&["/home/shop".into()], &[])));
    for round in 1..=2 {
        println!("fence {round}");
        let t = Instant::now();
        println!(
            "idle {}",
            timed("sites_fence", || sites_fence::fence(
                &layout,
                &fence,
                sites_fence::Services::Running,
                Duration::from_secs(3)
            ))
        );
        timed("close_logins", || close_logins(&layout, &logins));
        timed("cron", || cron::disable(&layout, &d.user));
        timed("keep_stopped", || keep_stopped(&layout, &units));
        let r = timed("stop_all", || stop_all(&layout, &[record.uid], &[], Duration::from_secs(3)));
        println!("  {} ended, {} killed: {:?}", r.ended.len(), r.killed.len(), r.killed);
        timed("wait_no_writers", || {
            wait_no_writers(&["/home/shop".into()], &[], Duration::from_secs(5))
        });
        println!("  total {:?}", t.elapsed());
    }
    expect("site", &sh("curl -si -H 'Host: shop.example' http://127.0.0.1/"), "503");
    expect("su", &sh("su - shop -c id 2>&1"), "expired");
    sh("systemctl start worker.service tick.service");
    expect("worker", &sh("systemctl is-active worker.service"), "inactive");
    sh(&format!("systemctl start user@{}.service", record.uid));
    expect("manager", &sh(&format!("systemctl is-active user@{}.service", record.uid)), "inactive");
    let ticks = sh("wc -l < /home/shop/ticks");
    let crons = sh("cat /home/shop/cronlog | wc -l");
    println!("  waiting over a minute boundary");
    sh("sleep 65");
    expect("ticks", &sh("wc -l < /home/shop/ticks"), &ticks);
    expect("crons", &sh("cat /home/shop/cronlog | wc -l"), &crons);
    println!("processes left: {:?}", of_users(&[record.uid], &[]).unwrap());
    println!(
        "restart daemons fenced: {}",
        sh(&format!(
            "systemctl restart php{php}-fpm nginx; curl -si -H 'Host: shop.example' http://127.0.0.1/ | head -1"
        ))
    );
    for round in 1..=2 {
        println!("unfence {round}");
        let t = Instant::now();
        timed("open_logins", || open_logins(&layout, &logins));
        println!("  {:?}", timed("allow", || allow(&layout, &units)));
        timed("sites", || sites_fence::unfence(&layout, &fence, sites_fence::Services::Running));
        timed("cron", || cron::enable(&layout, &d.user));
        println!("  total {:?}", t.elapsed());
    }
    sh("sleep 3");
    expect("site", &sh("curl -si -H 'Host: shop.example' http://127.0.0.1/"), "php says 42");
    expect("su", &sh("su - shop -c id 2>&1"), "(shop)");
    expect("worker", &sh("systemctl is-active worker.service"), "active");
    expect("manager", &sh(&format!("systemctl is-active user@{}.service", record.uid)), "active");
    expect("user unit", &sh("ps -u shop -o args"), "sleep 9999");
    expect("linger", &sh("ls /var/lib/systemd/linger"), "shop");
    expect("drop-ins", &sh("ls -d /etc/systemd/system/*.d 2>&1"), "No such");
    expect("crontab", &sh("crontab -u shop -l"), "cronlog");
    sh("sleep 62");
    println!(
        "ticks {ticks} -> {}; crons {crons} -> {}",
        sh("wc -l < /home/shop/ticks"),
        sh("wc -l < /home/shop/cronlog")
    );

    println!("target");
    let d2 = definition(
        r#"{"name":"blog","user":"blog","home":"/srv/clients/blog","groups":["crew"],"sites":[{"name":"main","domains":["blog.example"],"root":"www","php":{},"tls":{"certificate":"cert.pem","key":"key.pem"}}]}"#,
    );
    let mut r2 = record.clone();
    r2.name = "blog".parse().unwrap();
    r2.group.name = "blog".parse().unwrap();
    r2.home = d2.home.clone();
    r2.groups = vec![Group { name: "crew".parse().unwrap(), gid: 4242 }];
    r2.web_group_member = true;
    let before = sh(
        "cat /etc/passwd /etc/group /etc/shadow /etc/gshadow | sort | md5sum; find /etc/nginx /etc/php /srv | sort",
    );
    let p = timed("plan_provision", || {
        plan_provision(&layout, &d2, &r2, Existing::Refuse, &Policy::default())
    });
    println!("{:?} {:?}", p.ids, p.findings);
    for _ in 0..2 {
        timed("provision", || provision(&layout, &p));
    }
    println!("{}", sh("id blog; getent shadow blog; getent group blog; ls -ld /srv/clients/blog"));
    sh(
        "mkdir /srv/clients/blog/www; echo '<?php echo \"blog \", posix_geteuid();' > /srv/clients/blog/www/index.php; cd /srv/clients/blog; openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=blog.example -keyout key.pem -out cert.pem; chown -R blog:blog .; chmod 750 .",
    );
    let s = timed("sites::plan", || sites::plan(&layout, &d2));
    timed("install_closed", || sites::install_closed(&layout, &s));
    for _ in 0..2 {
        println!("  {:?}", timed("rehearse", || sites::rehearse(&layout, &s, sites::Smoke::Ping)));
    }
    expect(
        "closed",
        &sh("curl -si -H 'Host: blog.example' http://127.0.0.1/ | head -1"),
        "HTTP/1.1",
    );
    for _ in 0..2 {
        timed("open", || sites::open(&layout, &s));
    }
    expect("open", &sh("curl -s -H 'Host: blog.example' http://127.0.0.1/"), "blog");
    expect(
        "tls",
        &sh("curl -sk --resolve blog.example:443:127.0.0.1 https://blog.example/"),
        "blog",
    );
    expect("v6", &sh("curl -s -H 'Host: blog.example' 'http://[::1]/'"), "blog");
    println!(
        "cron {:?}",
        timed("cron", || cron::install_disabled(
            &layout,
            &d2.user,
            p.ids.uid,
            b"* * * * * echo y >> /srv/clients/blog/c\n"
        ))
    );
    timed("enable", || cron::enable(&layout, &d2.user));
    timed("open_logins", || {
        open_logins(&layout, &LoginRecord { user: d2.user.clone(), expire: None })
    });
    sh("sleep 65");
    println!("cron ran: {}", sh("cat /srv/clients/blog/c"));
    timed("fence at target", || {
        sites_fence::plan_fence(&layout, &d2).and_then(|f| {
            sites_fence::fence(
                &layout,
                &f,
                sites_fence::Services::Running,
                Duration::from_secs(1),
            )?;
            sites_fence::unfence(&layout, &f, sites_fence::Services::Running)
        })
    });
    expect("open", &sh("curl -s -H 'Host: blog.example' http://127.0.0.1/"), "blog");
    for _ in 0..2 {
        timed("remove", || sites::remove(&layout, &s));
        timed("cron remove", || cron::remove(&layout, &d2.user));
        timed("stop_all", || stop_all(&layout, &[p.ids.uid], &[], Duration::from_secs(1)));
        timed("deprovision", || deprovision(&layout, &p));
    }
    let after = sh(
        "cat /etc/passwd /etc/group /etc/shadow /etc/gshadow | sort | md5sum; find /etc/nginx /etc/php /srv | sort",
    );
    println!("no trace: {}", before == after);
    if before != after {
        println!("{before}\n---\n{after}");
    }
}
