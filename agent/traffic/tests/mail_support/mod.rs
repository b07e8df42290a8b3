//! A server for mail tests: a Postfix and a Dovecot of its own in a temporary directory, on a
//! loopback address of its own, configured as a provider would. Never the system's.

#![allow(dead_code, reason = "each test file uses a part")]

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use ferry_proto::account::MailDomain;
use ferry_traffic::mail::{Mail, MailConfig, MailSpec};
use nix::sys::signal::Signal;

pub const SMTP: u16 = 2525;
const IMAP: u16 = 1143;
const LMTP: u16 = 2424;
/// Owns the Maildirs; needs no name.
pub const OWNER: u32 = 64_001;
pub const PASSWORD: &str = "correct horse";

static HOSTS: AtomicU32 = AtomicU32::new(0);

/// How a provider's Postfix knows its virtual mailboxes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// A new server: nothing is configured.
    Empty,
    /// Domains and mailboxes, delivered by virtual(8).
    Virtual,
    /// Domains only, any recipient accepted and handed to Dovecot's LMTP.
    Lmtp,
}

pub struct Host {
    dir: tempfile::TempDir,
    pub address: IpAddr,
    pub config: MailConfig,
    pub mail: Mail,
}

impl Host {
    pub fn start(name: &str, provider: Provider) -> Self {
        Self::start_on(name, provider, |_| {})
    }

    /// `prepare` sees the directories before anything is in them.
    pub fn start_on(name: &str, provider: Provider, prepare: impl FnOnce(&MailConfig)) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "mail servers can only be tested as root");
        for program in ["/usr/sbin/postfix", "/usr/sbin/dovecot", "/usr/lib/dovecot/imap"] {
            assert!(
                Path::new(program).exists(),
                "{program} is missing: install postfix, dovecot-imapd and dovecot-lmtpd"
            );
        }
        let dir = tempfile::Builder::new().prefix("ferry-mail-").tempdir().expect("a directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))
            .expect("a mode");
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let extra = u8::try_from(number % 100).expect("below 100") + 1;
        let address = IpAddr::V4(Ipv4Addr::new(127, 100 + extra, high, low.max(1)));
        let path = dir.path().to_owned();
        let config = MailConfig {
            state_dir: path.join("ferry"),
            dovecot_dir: path.join("dovecot/ferry"),
            dovecot_snippet: path.join("dovecot/conf.d/05-ferry.conf"),
            dovecot_config: Some(path.join("dovecot/dovecot.conf")),
            postfix_config_dir: Some(path.join("postfix")),
            pass_on_port: SMTP,
            drain_timeout: Duration::from_secs(10),
            ..MailConfig::default()
        };
        prepare(&config);
        let host = Self { dir, address, mail: Mail::new(config.clone()), config };
        host.make_account();
        host.configure_dovecot();
        host.configure_postfix(name, provider);
        std::thread::scope(|scope| {
            scope.spawn(|| host.start_dovecot());
            scope.spawn(|| host.start_postfix());
        });
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn home(&self) -> PathBuf {
        self.path("home/shop")
    }

    /// The account: two mailboxes of shop.example.
    pub fn spec(&self) -> MailSpec {
        self.spec_of("shop", "shop.example", &["alice", "bob"])
    }

    pub fn spec_of(&self, account: &str, domain: &str, mailboxes: &[&str]) -> MailSpec {
        let domain = MailDomain {
            domain: domain.parse().expect("a domain"),
            root: format!("mail/{domain}").try_into().expect("a path"),
            mailboxes: mailboxes.iter().map(|m| m.parse().expect("a mailbox")).collect(),
        };
        let account = account.parse().expect("an account");
        MailSpec::new(account, self.home(), OWNER, OWNER, vec![domain]).expect("valid")
    }

    fn make_account(&self) {
        for domain in ["shop.example", "sub.shop.example", "other.example"] {
            std::fs::create_dir_all(self.home().join("mail").join(domain)).expect("a directory");
        }
        run(Command::new("chown").arg("-R").arg(format!("{OWNER}:{OWNER}")).arg(self.home()));
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, text).expect("written");
    }

    fn configure_dovecot(&self) {
        let dir = self.dir.path().display();
        let address = self.address;
        let mut users = String::new();
        for (domain, box_) in [
            ("shop.example", "alice"),
            ("shop.example", "bob"),
            ("other.example", "carol"),
            ("sub.shop.example", "dave"),
        ] {
            users += &format!(
                "{box_}@{domain}:{{SHA512-CRYPT}}{}:{OWNER}:{OWNER}::{dir}/home/shop/mail/{domain}/{box_}::\n",
                hash()
            );
        }
        self.write("dovecot/users", &users);
        self.write("dovecot/conf.d/10-listen.conf", "# a provider's own\n");
        let common = format!(
            "base_dir = {dir}/run\nstate_dir = {dir}/run\nlog_path = {dir}/dovecot.log\n\
             ssl = no\nlisten = {address}\n\
             service imap-login {{\n  inet_listener imap {{\n    port = {IMAP}\n  }}\n  \
             inet_listener imaps {{\n    port = 0\n  }}\n}}\n\
             service lmtp {{\n  inet_listener lmtp {{\n    port = {LMTP}\n  }}\n}}\n\
             service stats {{\n  unix_listener stats-writer {{\n    mode = 0666\n  }}\n}}\n\
             namespace inbox {{\n  inbox = yes\n}}\n"
        );
        let text = if dovecot_is_2_4() {
            format!(
                "dovecot_config_version = 2.4.0\ndovecot_storage_version = 2.4.0\n\
                 protocols {{\n  imap = yes\n  lmtp = yes\n}}\nauth_allow_cleartext = yes\n{common}\
                 mail_driver = maildir\nmail_path = %{{home}}\n\
                 !include conf.d/*.conf\n\
                 passdb passwd-file {{\n  passwd_file_path = {dir}/dovecot/users\n}}\n\
                 userdb passwd-file {{\n  passwd_file_path = {dir}/dovecot/users\n}}\n"
            )
        } else {
            format!(
                "protocols = imap lmtp\ndisable_plaintext_auth = no\n{common}\
                 mail_location = maildir:~/\n\
                 !include conf.d/*.conf\n\
                 passdb {{\n  driver = passwd-file\n  args = {dir}/dovecot/users\n}}\n\
                 userdb {{\n  driver = passwd-file\n  args = {dir}/dovecot/users\n}}\n"
            )
        };
        self.write("dovecot/dovecot.conf", &text);
    }

    fn configure_postfix(&self, name: &str, provider: Provider) {
        let dir = self.dir.path().display();
        let address = self.address;
        let (high, low) = match address {
            IpAddr::V4(v4) => (v4.octets()[2], v4.octets()[3]),
            IpAddr::V6(_) => unreachable!("tests use loopback addresses of version 4"),
        };
        let main = format!(
            "compatibility_level = 3.5\nqueue_directory = {dir}/queue\ndata_directory = {dir}/data\n\
             maillog_file = {dir}/mail.log\nmaillog_file_prefixes = {dir}\n\
             # a comment that stays\n\
             myhostname = {name}-{high}-{low}.test\nmydestination = localhost.localdomain\n\
             inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmynetworks = 192.0.2.0/24\n\
             smtp_host_lookup = native\nalias_maps =\nalias_database =\n\
             smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination\n\
             transport_maps = texthash:{dir}/postfix/transport\n"
        );
        let boxes = |domain: &str, name: &str| {
            format!("{name}@{domain} {dir}/home/shop/mail/{domain}/{name}/\n")
        };
        let provided = match provider {
            Provider::Empty => String::new(),
            Provider::Virtual => format!(
                "virtual_mailbox_domains = shop.example other.example sub.shop.example\n\
                 virtual_mailbox_maps = texthash:{dir}/postfix/boxes\nvirtual_mailbox_base = /\n\
                 virtual_uid_maps = static:{OWNER}\nvirtual_gid_maps = static:{OWNER}\n"
            ),
            Provider::Lmtp => format!(
                "virtual_mailbox_domains = shop.example other.example\n\
                 virtual_transport = lmtp:inet:[{address}]:{LMTP}\n"
            ),
        };
        let boxes = boxes("shop.example", "alice")
            + &boxes("shop.example", "bob")
            + &boxes("shop.example", "slow")
            + &boxes("other.example", "carol")
            + &boxes("sub.shop.example", "dave");
        self.write("postfix/boxes", &boxes);
        self.write("postfix/transport", "slow@shop.example slow:\n");
        self.write("postfix/main.cf", &(main + &provided));
        self.write("postfix/master.cf", &master(address, &self.path("slow.sh")));
        // A delivery that lasts until the test lets it end.
        let slow = format!(
            "#!/bin/sh\ncat >/dev/null\ntouch {dir}/slow.begun\n\
             until [ -e {dir}/slow.go ]; do sleep 0.05; done\ndate >>{dir}/slow.done\n"
        );
        self.write("slow.sh", &slow);
        std::fs::set_permissions(self.path("slow.sh"), std::fs::Permissions::from_mode(0o755))
            .expect("a mode");
        std::fs::set_permissions(self.dir.path(), std::fs::Permissions::from_mode(0o777))
            .expect("a mode");
        // Postfix waits for seconds before it trusts a file that was just modified.
        for name in ["main.cf", "master.cf", "boxes", "transport"] {
            let file = std::fs::File::options().write(true).open(self.path("postfix").join(name));
            let file = file.expect("written before");
            file.set_modified(SystemTime::now() - Duration::from_secs(60)).expect("a time");
        }
        std::fs::create_dir(self.path("queue")).expect("a directory");
        std::fs::create_dir(self.path("data")).expect("a directory");
        run(Command::new("chown").arg("postfix").arg(self.path("data")));
    }

    fn postfix_config(&self) -> PathBuf {
        self.path("postfix")
    }

    pub fn start_postfix(&self) {
        start(Command::new("postfix").arg("-c").arg(self.postfix_config()).arg("start"));
        self.await_port(SMTP);
    }

    /// As a crash would.
    pub fn stop_postfix(&self) {
        start(Command::new("postfix").arg("-c").arg(self.postfix_config()).arg("abort"));
    }

    pub fn postfix_master(&self) -> i32 {
        let pid = std::fs::read_to_string(self.path("queue/pid/master.pid")).expect("it runs");
        pid.trim().parse().expect("a number")
    }

    /// The processes of Postfix with this name; there must be one.
    pub fn deliverers(&self, name: &str) -> Vec<i32> {
        let master = self.postfix_master().to_string();
        let pids = run(Command::new("pgrep").args(["-P", &master, "-x", name]));
        pids.lines().map(|pid| pid.parse().expect("a number")).collect()
    }

    pub fn signal(&self, pid: i32, signal: Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("it is there");
    }

    /// The same mail, for somebody who waits no longer than so for what runs.
    pub fn impatient(&self, drain_timeout: Duration) -> Mail {
        Mail::new(MailConfig { drain_timeout, ..self.config.clone() })
    }

    /// [`Host::impatient`], whose word to Postfix to reload comes only when a delivery to slow@shop.example
    /// has begun.
    pub fn with_a_delivery_before_its_reload(&self, drain_timeout: Duration) -> Mail {
        let (dir, script) = (self.dir.path().display(), self.path("reload.sh"));
        let text = format!(
            "#!/bin/sh\nif [ \"$3\" = reload ]; then\n\
             echo Hello | /usr/sbin/sendmail -C {dir}/postfix -f sender@elsewhere.example slow@shop.example\n\
             until [ -e {dir}/slow.begun ]; do sleep 0.02; done\nfi\nexec /usr/sbin/postfix \"$@\"\n"
        );
        self.write("reload.sh", &text);
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("a mode");
        let mut config = MailConfig { drain_timeout, ..self.config.clone() };
        config.programs.postfix = script;
        Mail::new(config)
    }

    pub fn start_dovecot(&self) {
        start(Command::new("dovecot").arg("-c").arg(self.path("dovecot/dovecot.conf")));
        self.await_port(IMAP);
    }

    /// Somebody has taken its databases of passwords and users away.
    pub fn take_users_away(&self) {
        let path = self.path("dovecot/dovecot.conf");
        let text = std::fs::read_to_string(&path).expect("read");
        let kept = text.split_once("passdb").expect("it has some, and nothing behind them").0;
        std::fs::write(&path, kept).expect("written");
        self.stop_dovecot();
        self.start_dovecot();
    }

    /// As a crash would.
    pub fn stop_dovecot(&self) {
        let pid = std::fs::read_to_string(self.path("run/master.pid")).expect("it runs");
        kill_tree(pid.trim());
        // Nobody may have taken note of its end yet.
        std::fs::remove_file(self.path("run/master.pid")).expect("it was there");
        let address = SocketAddr::new(self.address, IMAP);
        eventually("Dovecot has ended", || TcpStream::connect(address).is_err());
    }

    pub fn doveadm(&self) -> Command {
        let mut command = Command::new("doveadm");
        command.arg("-c").arg(self.path("dovecot/dovecot.conf"));
        command
    }

    pub fn postconf(&self, args: &[&str]) -> String {
        run(Command::new("postconf").arg("-c").arg(self.postfix_config()).args(args))
    }

    fn await_port(&self, port: u16) {
        let address = SocketAddr::new(self.address, port);
        eventually(&format!("{address} answers"), || TcpStream::connect(address).is_ok());
    }

    /// Hands a message to a local `sendmail`.
    pub fn submit(&self, to: &str, subject: &str) {
        let mut child = Command::new("/usr/sbin/sendmail")
            .arg("-C")
            .arg(self.postfix_config())
            .args(["-f", "sender@elsewhere.example", to])
            .stdin(Stdio::piped())
            .spawn()
            .expect("sendmail starts");
        let mut stdin = child.stdin.take().expect("its input");
        write!(stdin, "Subject: {subject}\n\nHello\n").expect("written");
        drop(stdin);
        assert!(child.wait().expect("ends").success());
    }

    /// Sends a message by SMTP: the answer to the recipient, or to the message if that was accepted.
    pub fn send(&self, to: &str, subject: &str) -> String {
        Smtp::connect(self).send(to, subject)
    }

    /// The subjects in a Maildir, of all messages in `new` and `cur`.
    pub fn subjects(&self, domain: &str, name: &str) -> Vec<String> {
        let maildir = self.home().join("mail").join(domain).join(name);
        let mut subjects = Vec::new();
        for part in ["new", "cur"] {
            let Ok(entries) = std::fs::read_dir(maildir.join(part)) else {
                continue;
            };
            for entry in entries.flatten() {
                let Ok(text) = std::fs::read_to_string(entry.path()) else {
                    continue;
                };
                let line = text.lines().find_map(|l| l.strip_prefix("Subject: "));
                subjects.push(line.unwrap_or("?").to_owned());
            }
        }
        subjects.sort();
        subjects
    }

    pub fn await_subject(&self, domain: &str, name: &str, subject: &str) {
        eventually(&format!("{subject:?} arrives at {name}@{domain}"), || {
            self.subjects(domain, name).iter().any(|s| s == subject)
        });
    }

    /// The queue: name, id and recipients of each message.
    pub fn queue(&self) -> String {
        run(Command::new("postqueue").arg("-c").arg(self.postfix_config()).arg("-j"))
    }

    pub fn log(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.path(name)).unwrap_or_default();
        read("mail.log") + &read("dovecot.log")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        // Each may have been stopped by the test.
        let mut abort = Command::new("postfix");
        abort.arg("-c").arg(self.postfix_config()).arg("abort");
        let _ = abort.stdout(Stdio::null()).stderr(Stdio::null()).status();
        if let Ok(pid) = std::fs::read_to_string(self.path("run/master.pid")) {
            kill_tree(pid.trim());
        }
        // A test may have put file systems of its own there.
        for dir in [&self.config.state_dir, &self.config.dovecot_dir] {
            let _ = nix::mount::umount2(dir, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// Ends a private Dovecot at once: asked politely it takes seconds.
fn kill_tree(pid: &str) {
    let pids = Command::new("pgrep").args(["-P", pid]).output().map(|o| o.stdout);
    let pids = String::from_utf8(pids.unwrap_or_default()).unwrap_or_default();
    for pid in std::iter::once(pid).chain(pids.lines()) {
        let Ok(pid) = pid.parse() else { continue };
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
}

fn master(address: IpAddr, slow: &Path) -> String {
    let mut text = format!("{address}:{SMTP} inet n - n - - smtpd\n");
    for (name, kind, private, wakeup, limit, program) in [
        ("pickup", "unix", "n", "60", "1", "pickup"),
        ("cleanup", "unix", "n", "-", "0", "cleanup"),
        ("qmgr", "unix", "n", "300", "1", "qmgr"),
        ("rewrite", "unix", "-", "-", "-", "trivial-rewrite"),
        ("bounce", "unix", "-", "-", "0", "bounce"),
        ("defer", "unix", "-", "-", "0", "bounce"),
        ("trace", "unix", "-", "-", "0", "bounce"),
        ("flush", "unix", "n", "1000?", "0", "flush"),
        ("proxymap", "unix", "-", "-", "-", "proxymap"),
        ("smtp", "unix", "-", "-", "-", "smtp"),
        ("showq", "unix", "n", "-", "-", "showq"),
        ("error", "unix", "-", "-", "-", "error"),
        ("retry", "unix", "-", "-", "-", "error"),
        ("local", "unix", "-", "-", "-", "local"),
        ("virtual", "unix", "-", "-", "-", "virtual"),
        ("lmtp", "unix", "-", "-", "-", "lmtp"),
        ("anvil", "unix", "-", "-", "1", "anvil"),
        ("postlog", "unix-dgram", "n", "-", "1", "postlogd"),
    ] {
        let unprivileged = if matches!(program, "local" | "virtual") { "n" } else { "-" };
        text += &format!("{name} {kind} {private} {unprivileged} n {wakeup} {limit} {program}\n");
    }
    text + &format!("slow unix - n n - - pipe flags=R user=nobody argv={}\n", slow.display())
}

fn dovecot_is_2_4() -> bool {
    run(Command::new("dovecot").arg("--version")).starts_with("2.4")
}

fn hash() -> String {
    run(Command::new("openssl").args(["passwd", "-6", "-salt", "ferrytest", PASSWORD]))
        .trim()
        .to_owned()
}

/// Runs a command that must succeed, and returns what it said.
pub fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|e| panic!("{command:?} cannot be started: {e}"));
    assert!(status.success(), "{command:?}: {status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).into_owned()
}

/// Starts a daemon. It keeps what it inherits, so that must not be a pipe that somebody reads.
fn start(command: &mut Command) {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.as_ref().is_ok_and(|s| s.success()), "{command:?}: {status:?}");
}

/// Waits for something that must become so.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 15 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A conversation of lines.
struct Lines {
    reader: BufReader<TcpStream>,
}

impl Lines {
    fn connect(host: &Host, port: u16) -> Self {
        let stream = TcpStream::connect(SocketAddr::new(host.address, port)).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a timeout");
        Self { reader: BufReader::new(stream) }
    }

    fn say(&mut self, line: &str) {
        // An end of the conversation is seen when the answer is read.
        let _ = self.reader.get_mut().write_all(format!("{line}\r\n").as_bytes());
    }

    fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
        }
    }
}

/// An SMTP session.
pub struct Smtp(Lines);

impl Smtp {
    pub fn connect(host: &Host) -> Self {
        let mut lines = Lines::connect(host, SMTP);
        lines.hear();
        let mut smtp = Self(lines);
        smtp.ask("EHLO client.test");
        smtp
    }

    pub fn ask(&mut self, line: &str) -> String {
        self.0.say(line);
        loop {
            let answer = self.0.hear().unwrap_or_else(|| "closed".to_owned());
            if answer.as_bytes().get(3) != Some(&b'-') {
                return answer;
            }
        }
    }

    pub fn send(&mut self, to: &str, subject: &str) -> String {
        self.ask("MAIL FROM:<sender@elsewhere.example>");
        let answer = self.ask(&format!("RCPT TO:<{to}>"));
        if !answer.starts_with("250") {
            self.ask("RSET");
            return answer;
        }
        self.ask("DATA");
        self.ask(&format!("Subject: {subject}\r\n\r\nHello\r\n."))
    }
}

/// An IMAP session.
pub struct Imap(Lines);

impl Imap {
    pub fn connect(host: &Host) -> Self {
        let mut lines = Lines::connect(host, IMAP);
        lines.hear();
        Self(lines)
    }

    /// All lines of the answer.
    pub fn ask(&mut self, command: &str) -> Vec<String> {
        self.0.say(&format!("a {command}"));
        let mut answer = Vec::new();
        while let Some(line) = self.0.hear() {
            let last = line.starts_with("a ");
            answer.push(line);
            if last {
                return answer;
            }
        }
        answer.push("closed".to_owned());
        answer
    }

    pub fn login(host: &Host, user: &str, password: &str) -> Result<Self, String> {
        let mut imap = Self::connect(host);
        let answer = imap.ask(&format!("LOGIN {user} \"{password}\"")).join("\n");
        if answer.contains("a OK") { Ok(imap) } else { Err(answer) }
    }

    /// UIDVALIDITY, and the UIDs.
    pub fn uids(&mut self) -> (String, String) {
        let select = self.ask("SELECT INBOX");
        let validity = select.iter().find(|l| l.contains("UIDVALIDITY")).expect("it has one");
        let search = self.ask("UID SEARCH ALL");
        (validity.clone(), search[0].clone())
    }
}
