//! For tests: a private nginx and a private PHP-FPM with Debian's layout below a temporary
//! directory, and a `systemctl` that reloads and starts them.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ferry_proto::account::Definition;

use crate::layout::RedirectorPorts;
use crate::{Layout, http, php};

/// The id of `nobody`, who exists everywhere: the account of these tests.
const NOBODY: u32 = 65_534;
/// How many workers the web server has.
const WORKERS: usize = 2;

pub(crate) struct Web {
    directory: tempfile::TempDir,
    pub(crate) layout: Layout,
    pub(crate) php: String,
}

/// The account of this test's process: pools are known by their names in the process table, which all
/// tests share.
pub(crate) fn account() -> String {
    format!("shop{}", std::process::id())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Web {
    /// Both services, running.
    pub(crate) fn start() -> Self {
        let php = php::versions(&Layout::system()).into_iter().next();
        let php = php.expect("this test needs the Debian package php-fpm");
        assert!(Path::new("/usr/sbin/nginx").exists(), "this test needs the Debian package nginx");
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root = directory.path().canonicalize().unwrap();
        let mut layout = Layout::below(&root);
        layout.http_port = free_port();
        layout.https_port = free_port();
        layout.redirector_ports = RedirectorPorts { http: free_port(), https: free_port() };
        // The programs are private too, so that no test can touch the host's services.
        layout.programs = crate::Programs {
            systemctl: layout.path("/bin/systemctl"),
            nginx: layout.path("/bin/nginx"),
            php_fpm: layout.path("/bin/php-fpm"),
        };
        for path in [
            "/etc/nginx/sites-available",
            "/etc/nginx/sites-enabled",
            "/etc/nginx/conf.d",
            "/run/systemd/system",
            "/run/php",
            "/run/ferry",
            "/var/log",
            "/bin",
            "/tmp",
            "/home",
        ] {
            fs::create_dir_all(layout.path(path)).unwrap();
        }
        fs::create_dir_all(php::pools(&layout, &php)).unwrap();
        let web = Self { directory, layout, php };
        web.write_configuration(&root);
        web.write_programs(&root);
        web.systemctl(&["start", "--", &web.unit()]);
        web.systemctl(&["start", "--", "nginx.service"]);
        // Its start ends before its master has made them; one that comes later works by a configuration
        // that a test has changed meanwhile.
        let deadline = Instant::now() + Duration::from_secs(20);
        while crate::nginx::count_workers(&web.layout) < WORKERS {
            assert!(Instant::now() < deadline, "nginx makes no workers");
            std::thread::sleep(Duration::from_millis(1));
        }
        web
    }

    fn unit(&self) -> String {
        format!("php{}-fpm.service", self.php)
    }

    fn write_configuration(&self, root: &Path) {
        let root = root.display();
        self.put("/etc/passwd", &format!("nobody:x:{NOBODY}:{NOBODY}::/home/shop:/bin/sh\n"));
        fs::copy("/etc/nginx/fastcgi_params", self.layout.path("/etc/nginx/fastcgi_params"))
            .unwrap();
        self.put(
            "/etc/nginx/nginx.conf",
            &format!(
                "user www-data;\nworker_processes {WORKERS};\npid {root}/run/nginx.pid;\n\
                 error_log {root}/var/log/nginx.log;\nevents {{ worker_connections 64; }}\n\
                 http {{\n  access_log off;\n  default_type text/html;\n\
                 client_body_temp_path {root}/tmp/b; fastcgi_temp_path {root}/tmp/f;\n\
                 proxy_temp_path {root}/tmp/p; scgi_temp_path {root}/tmp/s; uwsgi_temp_path {root}/tmp/u;\n\
                 server {{ listen {} default_server; return 404 default; }}\n\
                 include {root}/etc/nginx/conf.d/*.conf;\n\
                 include {root}/etc/nginx/sites-enabled/*;\n}}\n",
                self.layout.http_port
            ),
        );
        self.put(
            &format!("/etc/php/{}/fpm/php-fpm.conf", self.php),
            &format!(
                "[global]\npid = {root}/run/php/fpm.pid\nerror_log = {root}/var/log/fpm.log\n\
                 process_control_timeout = 5s\ndaemonize = yes\n\
                 include = {root}/etc/php/{}/fpm/pool.d/*.conf\n",
                self.php
            ),
        );
        self.put(
            &format!("/etc/php/{}/fpm/pool.d/www.conf", self.php),
            &format!(
                "[www]\nuser = www-data\nlisten = {root}/run/php/www.sock\nlisten.owner = www-data\npm = ondemand\n\
                 pm.max_children = 1\n"
            ),
        );
    }

    fn write_programs(&self, root: &Path) {
        let (root, php) = (root.display(), &self.php);
        let nginx = format!(
            "#!/bin/sh\nexec /usr/sbin/nginx -e {root}/var/log/nginx.log -c {root}/etc/nginx/nginx.conf \"$@\"\n"
        );
        let fpm = format!(
            "#!/bin/sh\nexec /usr/sbin/php-fpm{php} -n -y {root}/etc/php/{php}/fpm/php-fpm.conf \"$@\"\n"
        );
        let systemctl = format!(
            "#!/bin/sh\nshift 2\necho \"$@\" >> {root}/var/log/systemctl\nverb=$1\n\
             for unit; do :; done\n\
             case $unit in\n\
             nginx.service) pid={root}/run/nginx.pid; start={root}/bin/nginx; signal=HUP;;\n\
             php*) pid={root}/run/php/fpm.pid; start={root}/bin/php-fpm{php}; signal=USR2;;\n\
             *) exit 5;;\nesac\n\
             case $verb in\n\
             start) exec $start;;\n\
             reload) exec kill -s $signal $(cat $pid);;\n\
             stop) kill -s TERM $(cat $pid);;\n\
             show) echo Id=$unit; if kill -0 $(cat $pid); then echo ActiveState=active; \
             else echo ActiveState=inactive; fi;;\nesac\n"
        );
        for (name, text) in [
            ("nginx".to_owned(), nginx),
            (format!("php-fpm{php}"), fpm),
            ("systemctl".to_owned(), systemctl),
        ] {
            let path = self.put(&format!("/bin/{name}"), &text);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    pub(crate) fn systemctl(&self, arguments: &[&str]) {
        let status = Command::new(self.layout.path("/bin/systemctl"))
            .args(["--no-pager", "--no-ask-password"])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{arguments:?}");
    }

    pub(crate) fn put(&self, path: &str, text: &str) -> PathBuf {
        let path = self.layout.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// A file of the account.
    pub(crate) fn put_home(&self, path: &str, text: &str) {
        let path = self.put(&format!("/home/shop/{path}"), text);
        chown(&path, Some(NOBODY), None).unwrap();
    }

    /// What reloads, starts and stops have been asked for.
    pub(crate) fn jobs(&self) -> usize {
        let log = fs::read_to_string(self.layout.path("/var/log/systemctl")).unwrap_or_default();
        log.lines().filter(|l| !l.starts_with("show")).count()
    }

    /// The definition with a PHP site and a static one.
    pub(crate) fn definition(&self, value: serde_json::Value) -> Definition {
        let mut all = serde_json::json!({
            "name": account(), "user": "nobody", "home": self.layout.path("/home/shop"),
        });
        all.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        let definition: Definition = serde_json::from_value(all).unwrap();
        definition.check().unwrap();
        definition
    }

    pub(crate) fn get(&self, host: &str, path: &str) -> http::Answer {
        http::get(([127, 0, 0, 1], self.layout.http_port).into(), host, path).unwrap()
    }

    /// All files below a directory of the tree, with owner, mode, target and content.
    pub(crate) fn snapshot(&self, path: &str) -> Vec<String> {
        use std::os::unix::fs::MetadataExt;
        let mut found = Vec::new();
        let mut open = vec![self.layout.path(path)];
        while let Some(path) = open.pop() {
            let m = fs::symlink_metadata(&path).unwrap();
            let what = if m.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if m.is_dir() {
                open.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
                String::new()
            } else {
                fs::read_to_string(&path).unwrap()
            };
            found.push(format!("{} {}:{} {:o} {what}", path.display(), m.uid(), m.gid(), m.mode()));
        }
        found.sort();
        found
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        for (unit, file) in
            [("nginx.service".to_owned(), "nginx.pid"), (self.unit(), "php/fpm.pid")]
        {
            let pid = self.layout.path("/run").join(file);
            if pid.exists() {
                let systemctl = self.directory.path().join("bin/systemctl");
                let _ = Command::new(systemctl).args(["-", "-", "stop", "--", &unit]).status();
            }
        }
    }
}
